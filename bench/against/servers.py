"""Decisions over HTTP: the enforcer, which records before it answers, beside OPA's server, the sidecar of
agent-governance-toolkit and the floor of http_decide.py.

All servers run at once on one core and are loaded in turn, by one generator on the other core, with the same question in each
one's own words. A server is asked what it must know first (shapes and edges of agent_rules.py); a wrong answer ends the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from against import agt, fetch, opa
from agent_rules import edges, project_text, shapes
from http_decide import QUESTION, Servers, ask, servers, wait_until
from http_load import SERVER_CORE, Burst, burst, generator, pinned

from banksman import bus, settings
from banksman.local import kafka
from banksman.topics import Topic

AGENTS, ASKER = 100, 7
CONNECTIONS = (1, 16, 64)
OF_FLOOR, OF_OPA = 0.45, 3
NO_LOG = "OPA, no log"
JSON = {"Content-Type": "application/json"}
Question = dict[str, Any]


@dataclass
class Side:
    """One server. `body`: the question in its words; `answer`: its words in ours."""

    name: str
    process: subprocess.Popen[bytes]
    url: str
    headers: dict[str, str]
    body: Callable[[Question], Any]
    answer: Callable[[Any], str]
    bursts: dict[int, list[Burst]] = field(default_factory=dict)

    def decide(self, question: Question) -> str:
        return self.answer(json.loads(ask(self.url, self.headers, json.dumps(self.body(question)).encode())))

    def allows(self, question: Question) -> bool:
        return self.decide(question) == "allow"

    def load(self, question: Question, connections: int, seconds: float) -> Burst:
        body = json.dumps(self.body(question)).encode()
        return burst(self.url, self.headers, body, connections, seconds, self.process.pid)

    def rate(self, connections: int) -> float:
        return statistics.median(one.rate for one in self.bursts[connections])


def questions() -> Iterator[tuple[Question, str]]:
    """What every server must know. Who is not enrolled cannot ask ours, so the last shape, a stranger's, is left out."""
    for (_, _, service, action, resource, branch), expected in shapes(ASKER)[:-1] + edges(ASKER):
        asked = QUESTION | {"service": service, "action": action, "resource": resource, "branch": branch}
        yield {name: value for name, value in asked.items() if value is not None}, expected


def timed_question() -> Question:
    return QUESTION | {"resource": f"acme/app-{ASKER}", "branch": "feature/x1"}


def to_opa(question: Question) -> Any:
    return {"input": {"agent": f"agent-{ASKER}", **question}}


def to_agt(question: Question) -> Any:
    top = {name: question[name] for name in ("action", "resource")}
    rest = {name: value for name, value in question.items() if name not in top}
    return {"agent_did": f"agent-{ASKER}", **top, "context": rest}


def peers(folder: Path, running: contextlib.ExitStack, missing: list[str]) -> Iterator[Side]:
    """Those that can be had. Of the others it is said why not."""
    try:
        made = opa.bundle(folder, AGENTS)
        for name, logs in ((NO_LOG, False), ("OPA, console log", True)):
            port = kafka.free_port()
            command, log = opa.argv(made, port, logs=logs), folder / f"{name}.log"
            process = started(running, command, log, opa.environment())
            url = f"http://127.0.0.1:{port}{opa.PATH}"
            yield Side(name, process, url, JSON, to_opa, lambda said: str(said["result"]))
    except fetch.Missing as why:
        missing.append(f"OPA: {why}")
    try:
        (folder / "agt").mkdir()
        port = kafka.free_port()
        command, environment = agt.sidecar(folder / "agt", AGENTS, port)
        process = started(running, command, folder / "agt.log", environment)
        url = f"http://127.0.0.1:{port}/api/v1/policy/evaluate"
        yield Side("AGT sidecar", process, url, JSON, to_agt, lambda said: agt.ANSWERS[said["decision"]])
    except fetch.Missing as why:
        missing.append(f"agent-governance-toolkit: {why}")


def started(
    running: contextlib.ExitStack, command: list[str], log: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    output = running.enter_context(log.open("wb"))
    process = pinned(command, SERVER_CORE, env=environment, cwd=log.parent, stdout=output, stderr=output)
    running.callback(process.wait, 20)
    running.callback(process.terminate)
    return process


def ours_and_floor(both: Servers) -> list[Side]:
    def same(question: Question) -> Any:
        return question

    def answer(said: Any) -> str:
        return str(said["decision"])

    floor = Side("floor: bare uvicorn", both.floor.process, both.floor.url, both.headers, same, answer)
    return [floor, Side("banksman", both.ours.process, both.ours.url, both.headers, same, answer)]


async def recorded(at: settings.Kafka) -> int:
    """How many records `decisions` holds."""
    topic = at.topic(Topic.DECISIONS)
    return sum(await asyncio.gather(*(bus.end_of(at, topic, partition) for partition in range(at.partitions))))


def row(rounds: int, seconds: float) -> list[str]:
    """The lines of the table."""
    missing: list[str] = []
    policy, asked = project_text(list(range(AGENTS))), timed_question()
    with (
        tempfile.TemporaryDirectory() as made,
        servers(policy, "project-0", f"agent-{ASKER}", asked) as both,
        contextlib.ExitStack() as running,
    ):
        floor, ours = ours_and_floor(both)
        sides = [floor, ours, *peers(Path(made), running, missing)]
        for side in sides:
            wait_until(functools.partial(side.allows, asked), side.url)
            for question, expected in questions() if side is not floor else ():
                assert side.decide(question) == expected, (side.name, question, expected)
        before = asyncio.run(recorded(both.kafka))
        answered = 0
        for side in sides:  # the JVM and the caches warm up
            answered += side.load(asked, 64, seconds).count * (side is ours)
        for _ in range(rounds):
            for connections in CONNECTIONS:
                for side in sides:
                    side.bursts.setdefault(connections, []).append(side.load(asked, connections, seconds))
        answered += sum(one.count for several in ours.bursts.values() for one in several)
        records = asyncio.run(recorded(both.kafka)) - before
        assert records >= answered, (records, answered)
    checked = sum(1 for _ in questions())
    return [
        f"HTTP decisions on one core: {AGENTS} agents with 11 rules each, {checked} answers of each side checked",
        f"load by {generator()}; medians of {rounds} interleaved bursts of {seconds:g} s",
        f"banksman: {answered:,} answers, {records:,} records acknowledged",
        *table(sides, floor, ours),
        *goals(sides, floor, ours),
        *(f"not measured: {one}" for one in missing),
    ]


def goals(sides: list[Side], floor: Side, ours: Side) -> Iterator[str]:
    """What banksman wants to reach, and what it does."""
    most = CONNECTIONS[-1]
    yield ""
    share = ours.rate(most) / floor.rate(most)
    yield f"at {most} connections: {share:.0%} of the floor (wanted: {OF_FLOOR:.0%})"
    for side in sides:
        if side.name == NO_LOG:
            yield f"at {most} connections: {ours.rate(most) / side.rate(most):.2f}x {side.name} (wanted: {OF_OPA:g}x)"


def table(sides: list[Side], floor: Side, ours: Side) -> Iterator[str]:
    yield ""
    yield "connections  server                 req/s    p50 ms   p99 ms   CPU us  of the floor  banksman is"
    for connections in CONNECTIONS:
        for side in sides:
            bursts = side.bursts[connections]
            p50, p99, cpu = (
                statistics.median(getattr(one, name) for one in bursts) for name in ("p50_ms", "p99_ms", "cpu_us")
            )
            yield (
                f"{connections:>11}  {side.name:<20} {side.rate(connections):>7.0f}  {p50:>8.2f} {p99:>8.2f} {cpu:>8.1f}"
                f"  {side.rate(connections) / floor.rate(connections):>12.0%}"
                f"  {ours.rate(connections) / side.rate(connections):>10.2f}x"
            )
