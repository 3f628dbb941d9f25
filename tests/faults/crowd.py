"""Everybody who is there in a fault run besides the load of `tests.e2e.load`: operators who stop agents and let them go on,
approvers, somebody who edits a policy, agents that spend, that are stuck, and that use our own emitter.

All but the emitters know nothing of the product. What they do and see stands in the load's journal:

    {"what": "acted", "act": "kill" | "revoke" | "restore" | "pause" | "resume" | "approve", …}    and its answers
    {"what": "edited", "version", "at"}         the file has its new text
    {"what": "spent", "agent"}                  has a budget
    {"what": "looped", "agent", "session"}      its session did the same thing in vain, often, and all of it was taken
    {"what": "emitted", "id", "agent", "at"}    `emit` has returned
    {"what": "flushed", "agent", "ids"}         `flush` has returned True
    {"what": "killed", "name", "at"}            written by whoever killed an emitter's process
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tests.e2e.load import Client, Load, Session
from tests.e2e.stack import POLICY, Program, Stack

PULL = {"service": "git", "action": "pull"}
PUSH = {"service": "git", "action": "push", "resource": "acme/billing"}
SIDES = ("left", "right")
"""Which of them an agent of `edited` may pull: the first in versions with an even number, the second in the others."""

AGENTS = {
    "stopped": "stops", "asking": "crowd", "spending": "crowd", "looping": "crowd", "first": "edited", "second": "edited",
    "emits-http": "emits", "emits-kafka": "emits",
}  # fmt: skip
EMITTERS = ("emits-http", "emits-kafka")
USES, REPEATS = 4, 6
EDIT_S, LOOP_S, SPEND_S, STOP_S = 0.5, 2.0, 0.1, 0.5

_CROWD = """\
project: crowd
agents:
  asking: {{require_approval: [{{service: git, actions: [push]}}]}}
  spending: {{allow: [{{service: git, actions: [pull]}}], budget: {budget}}}
  looping: {{allow: [{{service: ci, actions: [run]}}]}}
"""
_EMITS = """\
project: emits
agents:
  emits-http: {{allow: [], budget: {budget}}}
  emits-kafka: {{allow: [], budget: {budget}}}
"""
_STOPS = """\
project: stops
agents:
  stopped: {allow: [{service: git, actions: [pull]}]}
"""
_EDITED = """\
project: edited
version: {version}
agents:
  first: {{allow: [{{service: git, actions: [pull], resources: [{side}]}}]}}
  second: {{allow: [{{service: git, actions: [pull], resources: [{side}]}}]}}
"""


def policies() -> dict[str, str]:
    """The files that a fault run begins with. No day ends while it runs, by the time zone of its budgets."""
    hours = 12 - datetime.now(UTC).hour  # where it is noon now
    zone = f"Etc/GMT{-hours:+d}" if hours else "Etc/GMT"
    budget = f"{{daily_tokens: 1000000000, timezone: {zone}}}"
    return POLICY | {
        "crowd.yaml": _CROWD.format(budget=budget), "emits.yaml": _EMITS.format(budget=budget), "stops.yaml": _STOPS,
        "edited.yaml": edited(0),
    }  # fmt: skip


def edited(version: int) -> str:
    """The policy file of `edited`: in half of it, `second` may do nothing."""
    return _EDITED.format(version=version, side=SIDES[version % 2])


class Crowd:
    """`Crowd(...)` before the load starts; `emitters` names its programs in the stack, which run when this returns."""

    def __init__(self, stack: Stack, load: Load, journal: Path, *, seed: int) -> None:
        self._stack, self._load, self._seed = stack, load, seed
        self._tokens = {agent: stack.enrol(agent, project) for agent, project in AGENTS.items()}
        actors = (self.stops, self.approves, self.edits, self.asks_the_edited, self.spends, self.loops)
        for actor in actors:
            load.join(actor)
        for agent in ("spending", *EMITTERS):
            load.journal.write("spent", agent=agent)
        for agent in EMITTERS:
            stack.programs[agent] = self._emitter(agent, journal)
        stack.start(*EMITTERS)

    # ── the actors ──

    def stops(self) -> None:
        """Kills a session, revokes and restores an agent, pauses and resumes a project, in turn; every replica is asked before
        and after each.
        """
        for number in self._on(STOP_S):
            session = f"stopped-{number}"
            self._everywhere(session)
            if number % 3 == 0:
                self._act("kill", f"/v1/sessions/{session}/kill?agent=stopped", session=session)
                self._everywhere(session)
                continue
            path, stop, lift = (
                ("/v1/agents/stopped", "revoke", "restore")
                if number % 3 == 1
                else ("/v1/projects/stops", "pause", "resume")
            )
            self._act(stop, f"{path}/{stop}")
            self._everywhere(session)
            self._act(lift, f"{path}/{lift}")
            self._everywhere(session)

    def approves(self) -> None:
        """Asks for an approval, gives it, and uses it several times at once, on all replicas."""
        for number in self._on(STOP_S):
            name, operation = f"asking-{number}", PUSH | {"args": {"n": number}}
            with self._session("asking", name, number) as session:
                _, opened = session.ask(operation, expected="approve")
            if opened is None or opened["decision"] != "approve":
                continue  # given up at the end, or wrong, which the checker sees
            approval = opened["approval"]
            self._act("approve", f"/v1/approvals/{approval}", {"verdict": "approve"}, approval=approval)
            with ThreadPoolExecutor(USES) as pool:
                list(pool.map(partial(self._use, name, operation, approval), range(USES)))

    def edits(self) -> None:
        """Writes one version of a policy after the other: by a rename, in two halves, and after something that is no policy."""
        file = self._stack.folder / "policies" / "edited.yaml"
        for version in self._on(EDIT_S, first=1):
            text = edited(version)
            if version % 3 == 0:
                with file.open("w") as writing:
                    writing.write(text[: text.index("  second")])
                    writing.flush()
                    time.sleep(0.03)  # what an editor on a slow disk takes for the other half
                    writing.write(text[text.index("  second") :])
            else:
                if version % 3 == 1:
                    file.write_text(f"project: edited\nversion: {version}\nagents: [no, policy")
                    self._load.stopping.wait(EDIT_S)
                made = file.with_suffix(".new")
                made.write_text(text)
                made.replace(file)
            self._load.journal.write("edited", version=version, at=time.time())

    def asks_the_edited(self) -> None:
        """What it may, now and now."""
        chance = random.Random(f"{self._seed} edited")
        with self._session("first", "edited", 0) as first, self._session("second", "edited", 1) as second:
            for _ in self._on(0.02):
                chance.choice((first, second)).ask(PULL | {"resource": chance.choice(SIDES)})

    def spends(self) -> None:
        """Tells of model calls."""
        chance = random.Random(f"{self._seed} spends")
        with self._session("spending", "spending", 0) as session:
            for _ in self._on(SPEND_S):
                calls = [
                    session.event("model.call", model="m", input_tokens=chance.randrange(1000), output_tokens=1)
                    for _ in range(chance.randrange(1, 5))
                ]
                session.tell(*calls)

    def loops(self) -> None:
        """A session does the same in vain, again and again."""
        run = {"service": "ci", "action": "run", "resource": "acme/api"}
        for number in self._on(LOOP_S):
            taken = []
            with self._session("looping", f"looping-{number}", number) as session:
                for _ in range(REPEATS):
                    call = session.event("tool.call", **run)
                    about = {"call": call["id"], "parent": call["id"], "status": "error", "error": "2 tests failed"}
                    taken += [session.tell(call), session.tell(session.event("tool.result", **about))]
                session.tell(session.event("session.ended", status="error"))
            if all(taken):
                self._load.journal.write("looped", agent="looping", session=session.name)

    # ── what they have in common ──

    def _on(self, pause: float, first: int = 0) -> Iterator[int]:
        for number in itertools.count(first):
            if self._load.stopping.wait(pause):
                return
            yield number

    def _way(self, first: int) -> Iterator[str]:
        names = list(self._load.replicas)
        at = first % len(names)
        return itertools.cycle(names[at:] + names[:at])

    @contextmanager
    def _session(self, agent: str, name: str, first: int) -> Iterator[Session]:
        client = Client(self._load, agent, self._tokens[agent], self._way(first))
        try:
            yield Session(client, name)
        finally:
            client.close()

    def _everywhere(self, name: str) -> None:
        for first in range(len(self._load.replicas)):
            with self._session("stopped", name, first) as session:
                session.ask(PULL)

    def _use(self, name: str, operation: dict[str, Any], approval: str, first: int) -> None:
        with self._session("asking", name, first) as session:
            session.ask(operation, approval=approval)

    def _act(self, act: str, path: str, body: dict[str, Any] | None = None, **about: str) -> None:
        client = Client(
            self._load, "", self._stack.admin, self._way(len(act + path))
        )  # any of them, the same each time
        raw = json.dumps(body or {"reason": "a fault run"}).encode()
        client.answer(path, "acted", str(uuid.uuid4()), raw, act=act, **about)
        client.close()

    def _emitter(self, agent: str, journal: Path) -> Program:
        own = {
            "BANKSMAN_TOKEN": self._stack.credentials[agent], "BANKSMAN_SPOOL": str(self._stack.folder / "spool"),
            "BANKSMAN_TRANSPORT": agent.removeprefix("emits-"), "PYTHONPATH": os.pathsep.join(sys.path),
            "BANKSMAN_URL": "http://{}:{}".format(*next(iter(self._load.replicas.values()))),
        }  # fmt: skip
        kafka = {
            name: value
            for name, value in self._stack.env.items()
            if name.startswith(("BANKSMAN_KAFKA", "BANKSMAN_TOPIC"))
        }
        pid = self._stack.folder / f"{agent}.pid"
        argv = [sys.executable, "-m", "tests.faults.emitting", agent, str(journal), str(pid)]

        def ready() -> bool:
            return pid.exists() and pid.read_text() == str(self._stack.process(agent).pid)

        return Program(argv, kafka | own, self._stack.folder / f"{agent}.log", ready)
