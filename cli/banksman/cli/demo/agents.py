"""One of the demo's agents as a process: `python -m banksman.cli.demo.agents NAME`. Scripted, but everything else is real.

Like any agent it has its own credential (BANKSMAN_TOKEN), reports through an `Emitter`, asks the enforcer before it acts, and
obeys. On stdout, a JSON line each: every session it begins, the id of every record that must be in the audit log in the end,
and what it waits for until a line comes on stdin: that somebody has seen the call that it holds open, has answered the
approval that it asked for, has killed its session.
"""

from __future__ import annotations

import itertools
import json
import select
import sys
import time
from typing import TYPE_CHECKING, Any

from banksman.cli.demo.scripts import SCRIPTS, Act, Again, Killed, Run, Script, Think
from banksman.producers import Emitter

if TYPE_CHECKING:
    from banksman.producers import Session

PAUSE_S = 0.25
_acts = itertools.count(10)
SEEN_WITHIN_S = 30.0


def main(name: str) -> int:
    """0: all that was reported is durable at the enforcer."""
    script = SCRIPTS[name]
    with Emitter.from_settings() as emitter:
        for run in script.runs:
            for _ in range(run.times):
                perform(emitter.session(), script, run)
        if not emitter.flush(30):
            print(f"{name}: not all was delivered: {emitter.stats()}", file=sys.stderr)
            return 1
    return 0


def perform(session: Session, script: Script, run: Run) -> None:
    """One session."""
    tell(session=session.id)
    tell(record=session.started(model=script.model))
    tell(record=session.prompt(run.prompt))
    for step in run.steps:
        if isinstance(step, Killed):
            wait_for(killed=session.id)
        elif isinstance(step, Again):
            denied = 0
            for _ in range(step.most):
                denied += [take(session, script, one) for one in step.steps].count(False)
                if denied >= step.denials:
                    break
        else:
            take(session, script, step)
        time.sleep(PAUSE_S)
    tell(record=session.ended())


def take(session: Session, script: Script, step: Think | Act) -> bool:
    """One step -> False when it was denied."""
    if isinstance(step, Act):
        return act(session, step)
    think(session, script, step)
    return True


def think(session: Session, script: Script, step: Think) -> None:
    """A request to the model, which is not there: it costs its time and its tokens."""
    time.sleep(step.takes)
    tell(
        record=session.model_call(
            script.model,
            input_tokens=step.input_tokens,
            output_tokens=step.output_tokens,
            duration_ms=step.takes * 1000,
        )
    )


def act(session: Session, step: Act) -> bool:
    """Report, ask, do it only when it is allowed, report what came of it. -> whether it was allowed, or waits for a human."""
    resource = step.resource and step.resource.replace("{run}", session.id[:6]).replace("{n}", str(next(_acts)))
    operation: dict[str, Any] = {"resource": resource, "branch": step.branch, "args": step.args or None}
    call = session.tool_call(step.service, step.action, **operation)
    tell(record=call)
    decision = session.decide(step.service, step.action, **operation, call=call)
    if decision.id is None:
        raise SystemExit(f"nobody decided: {decision.reason}")
    tell(record=decision.id)
    if decision.approval is not None and step.waits:
        wait_for(asked=decision.approval)
        decision = session.decide(step.service, step.action, **operation, call=call, approval=decision.approval)
        tell(record=str(decision.id))
    if not decision.allowed:
        tell(record=session.tool_result(call, "denied", error=f"{decision.decision}: {decision.reason}"))
        return decision.decision != "deny"
    began = time.monotonic()
    time.sleep(step.takes)
    if step.until_seen:
        wait_for(held=call)
    took = round((time.monotonic() - began) * 1000, 1)
    status = "error" if step.error else "ok"
    tell(record=session.tool_result(call, status, error=step.error or None, duration_ms=took))
    return True


def wait_for(**what: str) -> None:
    """Say what is waited for, until a line says that it is so."""
    tell(**what)
    if select.select([sys.stdin], [], [], SEEN_WITHIN_S)[0]:
        sys.stdin.readline()


def tell(**what: str) -> None:
    """A line to whoever started us."""
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
