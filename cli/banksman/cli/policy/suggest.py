"""`banksman policy suggest`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from banksman.cli import client, show
from banksman.cli.policy import history, versions
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    import argparse

    from banksman.policy.backtest import Recorded
    from banksman.policy.rules import Policy

HELP = """A policy of least privilege for one agent, from what it really did and was allowed to, or asked a human about: few
values are listed, many of one kind become a pattern, and what the present policy grants and nobody used is named. Only what
services have signed counts, and nothing that was denied. What is suggested is checked: it has no error for `lint`, and denies
nothing of the same history. Read it before you use it. Exit code 1: no such history, or the check found something."""
EXAMPLES = """
  banksman policy suggest --agent claude-invoice-01 --since 14d
  banksman policy suggest --agent claude-invoice-01 --out claude-invoice-01.yaml
"""
MOST_DENIED = 10


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--agent", required=True, help="whose policy")
    parser.add_argument("--since", default="14d", metavar="TIME", help="RFC 3339, or a length before now: 2h, 7d (14d)")
    parser.add_argument("--out", metavar="FILE", help="write the policy here; else it is printed")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    from banksman.policy.backtest import Needs, needs
    from banksman.policy.suggest import suggest

    now = datetime.now(UTC)
    begins, project = history.since(args.since, now), _project(args.agent)
    current, document = _current(project, now)
    wanted = needs(current) if current is not None else Needs(args=False, time=False)
    recorded: list[Recorded] = []
    with history.bar(f"decisions of {args.agent}") as progress:
        for several in history.recorded(project, begins, now, wanted, agent=args.agent, progress=progress):
            recorded += several
    found = _merged(recorded)
    if not any(one.said != "deny" for one in found):
        show.note(f"{args.agent} was allowed nothing since {begins:%Y-%m-%d %H:%M} UTC: there is nothing to go by")
        return 1
    made = suggest(project, args.agent, found, current, document)
    if args.out:
        Path(args.out).write_text(made.text, encoding="utf-8")
    else:
        show.say(made.text.rstrip("\n"))
    for operation, times in made.denied[:MOST_DENIED]:
        show.note(f"not in it, as it was denied {show.count(times, 'time')}: {operation}")
    wrong = _wrong(made.text, recorded)
    for one in wrong:
        show.note(f"banksman policy suggest: {one}")
    return 1 if wrong else 0


def _wrong(text: str, recorded: list[Recorded]) -> list[str]:
    """What speaks against the suggestion: errors of lint, and what it would deny that was not denied."""
    from banksman.policy.backtest import Backtest
    from banksman.policy.lint import lint
    from banksman.policy.load import load

    found = [f"line {one.line}: {one.message}" for one in lint(text.encode(), "suggested") if one.level == "error"]
    backtest = Backtest(load(text.encode(), "suggested").policy)
    backtest.take(one for one in recorded if one.said != "deny")
    for kind, moved in backtest.done().moved.items():
        if kind.after == "deny":
            found.append(f"{kind.service} {kind.action} would be denied ({kind.reason}): {moved.examples[0]}")
    return found


def _merged(several: list[Recorded]) -> list[Recorded]:
    """The same operation of several days is one."""
    found: dict[tuple[object, ...], Recorded] = {}
    for one in several:
        key = one[:6]
        known = found.get(key)
        found[key] = one if known is None else known._replace(times=known.times + one.times, days=known.days | one.days)
    return list(found.values())


def _project(agent: str) -> str:
    for one in client.console().get("/v1/agents")["agents"]:
        if one["agent"] == agent and one["project"]:
            return str(one["project"])
    raise InvalidInput(f"no agent {agent} is known", field="--agent")


def _current(project: str, now: datetime) -> tuple[Policy | None, dict[str, Any]]:
    """The policy that is in force, and the document that it was made of."""
    from banksman.policy.load import load

    found = versions.in_force(project, now)
    return (None, {}) if found is None else (load(found[2].encode(), found[1]).policy, json.loads(found[2]))
