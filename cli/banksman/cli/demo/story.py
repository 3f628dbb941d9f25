"""`banksman up --demo`: everything is started, agents act, the two questions are answered, every record is counted.

It ends with 0 only when every record that was sent is in the audit log exactly once, both answers came in time, and everything
that a human should hear of was told.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import time
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from banksman import settings
from banksman.cli import client, folder, now, show, transcript
from banksman.cli import story as sessions
from banksman.cli.demo import alerts, cast, count
from banksman.cli.demo.live import Live
from banksman.cli.demo.operator import Operator
from banksman.cli.demo.scripts import BILLING, REPORT
from banksman.cli.demo.slack import TOKEN, Slack
from banksman.cli.stack import Ports, Stack, all_of
from banksman.cli.steps import Steps
from banksman.errors import InvalidInput, Unavailable
from banksman.local.kafka import free_port
from banksman.policy.load import load
from banksman.stamps import rfc3339

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

T = TypeVar("T")

KEPT = ("BANKSMAN_DATA", "BANKSMAN_JAVA", "BANKSMAN_CACHE", "BANKSMAN_MAVEN_MIRROR")
IN_TIME_S, TRIES = 1.0, 5
SEEN_WITHIN_S, STORED_WITHIN_S, ACT_WITHIN_S = 20.0, 60.0, 150.0
REPLAY_SPEED = 2000.0
"""The recording is nine hours of work: it goes by while the agents act."""
INTERRUPTED = 130


@dataclass
class Answers:
    """What the answers to the two questions took, in seconds."""

    now_s: float = 0.0
    session_s: float = 0.0
    asked_of: tuple[str, str] = ("", "")
    """Agent and session that the second question is about: those of the first."""


def run(args: argparse.Namespace) -> int:
    """Do it. 0: all was as promised; 1: something was not, and it is said."""
    if args.policies is not None:
        raise InvalidInput("the demo brings its own policies", field="--policies")
    root = args.data or Path(settings.load(settings.Local).data) / "demo"
    _own_settings()
    where = folder.Folder(root)
    own = where.root / "policies"
    began = time.monotonic()
    steps = Steps()
    show.say(f"banksman demo: everything runs on this machine, in {where.root}", "bold")
    stack = Stack(where, _ports(args), own, steps, lambda name, text: show.note(f"{name}: {text}"))
    stack.claim()
    with folder.disk_errors(where.root), resources.as_file(_bundled("policies")) as bundled:
        shutil.copytree(bundled, own, dirs_exist_ok=True)
    live = Live()
    slack = Slack(where.root / "slack.json", lambda what, message: alerts.tell(live, what, message))
    os.environ |= {"BANKSMAN_SLACK_URL": slack.url, "BANKSMAN_SLACK_TOKEN": TOKEN}
    try:
        return asyncio.run(_show(stack, steps, began, live, slack))
    finally:
        slack.close()


def _own_settings() -> None:
    """The demo is about itself: nobody's settings but where things are found have a say in it."""
    local = settings.load(settings.Local)
    for name in [name for name in os.environ if name.startswith("BANKSMAN_") and name not in KEPT]:
        del os.environ[name]
    os.environ["BANKSMAN_CONFIG"] = os.devnull
    os.environ |= {
        "BANKSMAN_JAVA": local.java,
        "BANKSMAN_CACHE": local.cache,
        "BANKSMAN_MAVEN_MIRROR": local.maven_mirror,
    }


def _ports(args: argparse.Namespace) -> Ports:
    """Free ones, unless they were chosen: it runs beside whatever else there is."""
    chosen = {name: getattr(args, f"{name}_port") for name in Ports().named()}
    return Ports(**{name: port if port is not None else free_port() for name, port in chosen.items()})


def _bundled(name: str) -> Any:
    return resources.files(__package__).joinpath(name)


async def _show(stack: Stack, steps: Steps, began: float, live: Live, slack: Slack) -> int:
    from banksman.cli.up import stopping, until

    stop = stopping(stack)
    try:
        if not await until(stop, stack, steps):
            return INTERRUPTED
        show.say(f"ready after {show.seconds(time.monotonic() - began)}")
        os.environ |= {**stack.addresses(), "BANKSMAN_DATA": str(stack.folder.root)}
        playing, asked = asyncio.ensure_future(_play(stack, live, slack)), asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({playing, asked}, return_when=asyncio.FIRST_COMPLETED)
            code = playing.result() if playing.done() else INTERRUPTED
        finally:
            for task in (playing, asked):
                task.cancel()
            await asyncio.gather(playing, asked, return_exceptions=True)
    finally:
        await stack.stop()
    show.say(f"stopped after {show.seconds(time.monotonic() - began)} in all; everything is kept. To look around:")
    show.say(
        f"  banksman up --data {shlex.quote(str(stack.folder.root))} --policies {shlex.quote(str(stack.policies))}"
    )
    return code


async def _play(stack: Stack, live: Live, slack: Slack) -> int:
    console, since = client.console(), rfc3339()[:23].replace("T", " ")
    credentials = await asyncio.to_thread(cast.enrol, client.enforcer(), stack.folder)
    await asyncio.to_thread(_give_budget, console, client.enforcer(), stack.policies)
    with resources.as_file(_bundled("recorded.jsonl")) as file:
        recorded = count.of_recording(file)
        show.say(
            f"\n{len(credentials)} agents act, each under its policy, and beside them a recording of "
            f"{len(recorded.sessions)} sessions is replayed.\n"
        )
        answers, operator = Answers(), Operator(client.enforcer())
        live.start(console)
        replaying = asyncio.ensure_future(cast.replay(file, REPLAY_SPEED, stack.folder))

        async def waits(agent: str, session: str, what: str, which: str) -> None:
            if what == "held":
                await asyncio.to_thread(_ask_now, console, live, answers, (agent, session, which))
            elif what == "asked":
                await asyncio.to_thread(operator.approve, live, which)
            else:
                await asyncio.to_thread(operator.kill, live, agent, session)

        async def acting(agent: str, credential: Path) -> None:
            live_records.add(await cast.act(agent, credential, stack.folder, waits))

        live_records = count.Expected()
        try:
            async with asyncio.timeout(ACT_WITHIN_S):
                await all_of(replaying, *(acting(*one) for one in credentials.items()))
        except TimeoutError:
            raise Unavailable(f"the agents did not come to an end within {ACT_WITHIN_S:g} s") from None
    await asyncio.to_thread(live.until_quiet)
    live.stop()
    counts = await asyncio.to_thread(_counted, console, recorded, live_records)
    await asyncio.to_thread(_ask_session, console, answers)
    verdicts = [_verdict(answers, counts, replaying.result()), operator.verdict(console)]
    return max(*verdicts, await asyncio.to_thread(alerts.verdict, console, slack, since))


def _give_budget(console: client.Client, enforcer: client.Client, policies: Path) -> None:
    """An agent that has spent its budget in an earlier demo of today gets as much again: its limit is raised."""
    until = time.monotonic() + SEEN_WITHIN_S
    while REPORT not in [one["agent"] for one in console.get("/v1/agents")["agents"]]:
        if time.monotonic() > until:
            raise Unavailable(f"the console does not know {REPORT} after {SEEN_WITHIN_S:g} s")
        time.sleep(0.05)  # between two looks
    used = int(now.ask(console, REPORT)["tokens"]["used"] or 0)
    file = policies / f"{BILLING}.yaml"
    text = file.read_text()
    raised = text.replace("daily_tokens: 30000", f"daily_tokens: {used + 30000}")
    version = load(raised.encode(), file.name).policy.version
    file.write_text(raised)
    while version not in [one["policy_version"] for one in enforcer.get("/v1/status")["policies"]]:
        if time.monotonic() > until:
            raise Unavailable(f"{version} is not in force after {SEEN_WITHIN_S:g} s")
        time.sleep(0.05)  # between two looks


def _ask_now(console: client.Client, live: Live, answers: Answers, held: tuple[str, str, str]) -> None:
    """The first question, until the answer names the call that the agent is in. Unavailable: it never does."""
    agent, session, call = held
    until = time.monotonic() + SEEN_WITHIN_S
    while True:
        answer, took = _in_time(lambda: now.ask(console, agent))
        if answer["open_call"] and answer["open_call"]["call"] == call:
            break
        if time.monotonic() > until:
            raise Unavailable(f"{agent} has been in {call} for {SEEN_WITHIN_S:g} s, and the console does not know it")
        time.sleep(0.02)  # between two looks
    answers.asked_of, answers.now_s = (agent, session), took
    with live.printing:
        _question(f"what is {agent} doing right now?", f"banksman now {agent}")
        now.tell(answer)
        show.say(f"-> {show.seconds(took)}; the call began {show.age(answer['open_call']['age_s'])}\n", "bold")


def _ask_session(console: client.Client, answers: Answers) -> None:
    """The second one."""
    agent, session = answers.asked_of
    told, answers.session_s = _in_time(lambda: sessions.whole(console, sessions.Asked(session, agent=agent)))
    _question(f"what exactly happened in session {session}?", f"banksman session {session}")
    transcript.tell(told)
    show.say(f"-> {show.seconds(answers.session_s)}\n", "bold")


def _in_time(ask: Callable[[], T]) -> tuple[T, float]:
    """The first answer that came in time, or the last of TRIES, and what it took: a machine may stand still for a moment."""
    for _ in range(TRIES):
        began = time.monotonic()
        answer = ask()
        took = time.monotonic() - began
        if took < IN_TIME_S:
            break
        show.note(f"asked again: an answer took {show.seconds(took)}")
    return answer, took


def _question(text: str, command: str) -> None:
    show.say(f"\n? {text}    $ {command}", "bold")


def _counted(console: client.Client, *expected: count.Expected) -> list[count.Count]:
    """Look until nothing is missing, or the time is over."""
    until = time.monotonic() + STORED_WITHIN_S
    while True:
        counts = [count.count(console, one) for one in expected]
        if not any(one.missing for one in counts) or time.monotonic() > until:
            return counts
        time.sleep(0.1)  # between two looks


def _verdict(answers: Answers, counts: list[count.Count], replayed: dict[str, Any]) -> int:
    """Say what came of it -> the exit code."""
    wrong = []
    for what, one in zip(("replayed", "live"), counts, strict=True):
        exact = "each exactly once" if one.exact else "which is wrong"
        show.say(f"  {what:<10} {one.found:,} of {one.sent:,} records are in the audit log, {exact}")
        wrong += [f"{len(ids):,} {what} records {how}" for how, ids in one.faults().items() if ids]
    decided = ", ".join(f"{replayed['decisions'][word]:,} {word}" for word in ("allow", "deny", "approve"))
    show.say(
        f"  recording  {replayed['actions']:,} actions of {len(replayed['agents'])} agents, under today's policies: {decided}"
    )
    for name, took in (("right now", answers.now_s), ("session", answers.session_s)):
        show.say(f"  {name:<10} answered in {show.seconds(took)}")
        if took >= IN_TIME_S:
            wrong.append(f"the question took {show.seconds(took)}, more than {IN_TIME_S:g} s")
    for fault in wrong:
        show.say(f"  WRONG: {fault}", "red")
    return 1 if wrong else 0
