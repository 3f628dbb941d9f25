"""Load from the outside: agents that tell and ask over HTTP, as a client in any language would, and write down everything.

Standard library only, nothing of the product. Each worker is one session of one agent in a thread: it tells of a call, asks
whether it may, tells what came of it, one request after another. A request that got no answer, or 503 or 429, is sent again
as documented: the same id, the same body, after `Retry-After`, to the next replica. Before a request leaves, and before the
next one does, a line stands in the journal (JSON lines):

    {"what": "asked", "id", "agent", "session", "body", "expected", "replica", "sent"}      a question, at its first try;
                                                                                     expected None: it depends on others
    {"what": "acted", "id", "agent", "act", …, "replica", "sent"}                            what an operator does, likewise
    {"what": "told", "id", "agent", "session", "events", "replica", "sent"}                  a batch of events, likewise
    {"what": "answer", "id", "agent", "try", "replica", "sent", "received", "status", "body"}
    {"what": "silence", "id", "agent", "try", "replica", "sent", "received", "error"}        nothing came, or too late
    {"what": "frozen", "replica", "from", "to"}                                              written by whoever froze it

Times are seconds since 1970. An answer that comes after the client's own time-out is never seen: the connection is closed.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

PROJECT = "faults"
POLICY = """\
project: faults
version: 1
owner: payments-team
guardrails:
  never: [{service: aws, actions: ["iam:*"]}]
agents:
  "AGENT":
    allow:
      - {service: git, actions: [push, pull], resources: ["acme/billing"], branches: ["feature/*"]}
      - {service: stripe, actions: ["invoices:read"]}
    require_approval:
      - {service: git, actions: [push], branches: ["main"]}
    never:
      - {service: git, actions: [force_push]}
"""
# What an agent asks, and what a reader of the policy expects to be answered.
OPERATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("allow", {"service": "git", "action": "push", "resource": "acme/billing", "branch": "feature/a"}),
    ("allow", {"service": "git", "action": "pull", "resource": "acme/billing", "branch": "feature/b"}),
    ("allow", {"service": "stripe", "action": "invoices:read", "args": {"invoice": "in_1", "lines": [1, 2.5, None]}}),
    ("approve", {"service": "git", "action": "push", "resource": "acme/billing", "branch": "main"}),
    ("deny", {"service": "git", "action": "force_push", "resource": "acme/billing", "branch": "feature/a"}),
    ("deny", {"service": "git", "action": "push", "resource": "acme/other", "branch": "feature/a"}),
    ("deny", {"service": "aws", "action": "iam:createuser", "resource": "arn:aws:iam::1:user/x"}),
    ("deny", {"service": "nobody", "action": "knows"}),
)
IMPATIENT_S, PATIENT_S = 4.0, 60.0
LAST_TRY_S = 60.0
"""How long after `stop` a request may still be without an answer."""


def policy_of(agents: Iterable[str]) -> str:
    """The policy file under which the answers are as `OPERATIONS` expects."""
    head, _, rules = POLICY.partition('  "AGENT":\n')
    return head + "".join(f'  "{agent}":\n{rules}' for agent in agents)


class Journal:
    """The file. One write a line, so that lines of several threads never mix and none is lost when this process is killed."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, what: str, **line: Any) -> None:
        """Append one line."""
        os.write(self._file, json.dumps({"what": what} | line).encode() + b"\n")

    def close(self) -> None:
        """Let the file go."""
        os.close(self._file)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Its lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclass
class Tally:
    """What the workers have seen so far, for whoever waits for them."""

    answers: Counter[str] = field(default_factory=Counter)
    """Decisions answered, by replica."""
    _news: threading.Condition = field(default_factory=threading.Condition)

    def add(self, replica: str) -> None:
        """One more decision was answered."""
        with self._news:
            self.answers[replica] += 1
            self._news.notify_all()

    def total(self, replica: str | None) -> int:
        """Of one replica, or of all."""
        return self.answers[replica] if replica else self.answers.total()

    def wait(self, more: int, replica: str | None = None, *, seconds: float = 60) -> None:
        """Return when so many more decisions were answered; AssertionError when they are not in time."""
        with self._news:
            wanted = self.total(replica) + more
            came = self._news.wait_for(lambda: self.total(replica) >= wanted, seconds)
            assert came, (
                f"{self.total(replica) - wanted + more} of {more} answers of {replica or 'anybody'} in {seconds} s"
            )


class Load:
    """`with Load(...) as load:` the workers run inside; leaving waits until each has an answer to all it has sent.

    `replicas`: name -> (host, port). `agents`: name -> token. Each agent has two sessions that tell and ask, go from replica
    to replica and give up waiting after 4 s; and one per replica that stays there, only asks, and waits for a minute: these
    are always in the middle of a question, and are what a frozen replica finds when it wakes up. `pause`: the most that a
    session rests between two calls, in seconds.
    """

    def __init__(
        self, replicas: dict[str, tuple[str, int]], agents: dict[str, str], journal: Path, *, seed: int, pause: float
    ) -> None:
        self.replicas, self.pause = replicas, pause
        self.journal, self.tally, self.stopping = Journal(journal), Tally(), threading.Event()
        chance = random.Random(seed)
        self._workers: list[threading.Thread] = []
        self._broken: list[BaseException] = []
        for agent, token in agents.items():
            for number in range(2):
                way = itertools.cycle(chance.sample(list(replicas), len(replicas)))
                client = Client(self, agent, token, way, IMPATIENT_S)
                worker = _Worker(self, client, f"{agent}-roams-{number}", random.Random(chance.random()))
                self.join(partial(worker.run, worker.tell_and_ask))
            for replica in replicas:
                client = Client(self, agent, token, itertools.repeat(replica), PATIENT_S)
                worker = _Worker(self, client, f"{agent}-{replica}", random.Random(chance.random()))
                self.join(partial(worker.run, worker.ask))

    def join(self, actor: Callable[[], None]) -> None:
        """Before the start: one more who goes on, in a thread of its own, until `stopping` is set. What it dies of is raised
        when the load ends.
        """

        def run() -> None:
            try:
                actor()
            except BaseException as error:  # noqa: BLE001 - raised by whoever ends the load
                self._broken.append(error)

        self._workers.append(threading.Thread(target=run, daemon=True))

    def __enter__(self) -> Self:
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for worker in self._workers:
            worker.join()  # ends: see LAST_TRY_S
        self.journal.close()
        if self._broken:
            raise self._broken[0]


class Client:
    """One session's connection. `way`: the replicas in the order in which they are tried, for ever."""

    def __init__(
        self, load: Load, agent: str, token: str, way: Iterator[str], limit: float = IMPATIENT_S
    ) -> None:  # fmt: skip
        self.agent, self._load, self._way, self._limit = agent, load, way, limit
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._at = next(way)
        self._connection: http.client.HTTPConnection | None = None

    def send(self, path: str, what: str, id_: str, raw: bytes, **said: Any) -> str | None:
        """The replica of a 200, or None. As `answer`."""
        where, status, _ = self.answer(path, what, id_, raw, **said)
        return where if status == 200 else None

    def answer(self, path: str, what: str, id_: str, raw: bytes, **said: Any) -> tuple[str, int, Any]:
        """Send the same again until the answer is not "later" -> (replica, status, body).

        Long after the stop it gives up with status 0; the journal shows a question without an answer then.
        """
        give_up = float("inf")
        for attempt in itertools.count(1):
            where, sent, pause = self._at, time.time(), 0.05
            if attempt == 1:
                self._load.journal.write(what, id=id_, agent=self.agent, replica=where, sent=sent, **said)
            about = {"id": id_, "agent": self.agent, "try": attempt, "replica": where, "sent": sent}
            try:
                status, answer, retry_after = self._once(path, raw)
            except (OSError, http.client.HTTPException) as error:
                self._load.journal.write(
                    "silence", **about, received=time.time(), error=f"{type(error).__name__}: {error}"
                )
            else:
                self._load.journal.write("answer", **about, received=time.time(), status=status, body=answer)
                if status not in (429, 503):
                    return where, status, answer
                pause = retry_after
            self.close()
            self._at = next(self._way)
            if self._load.stopping.is_set():
                give_up = min(give_up, time.monotonic() + LAST_TRY_S)
                if time.monotonic() >= give_up:
                    return where, 0, None
            time.sleep(pause)  # Retry-After
        raise AssertionError

    def _once(self, path: str, raw: bytes) -> tuple[int, Any, float]:
        if self._connection is None:
            host, port = self._load.replicas[self._at]
            self._connection = http.client.HTTPConnection(host, port, timeout=self._limit)
        self._connection.request("POST", path, raw, self._headers)
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read()), float(answer.headers.get("Retry-After", 0))

    def close(self) -> None:
        """Let the connection go."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Session:
    """One session of an agent, through one client."""

    def __init__(self, client: Client, name: str) -> None:
        self.name, self._client = name, client
        self._seq, self._last = 0, 0

    def ask(self, operation: dict[str, Any], *, expected: str | None = None, **more: Any) -> tuple[str, Any]:
        """A question, asked until it is answered -> (the replica, the answer; None when it was given up)."""
        question = {"id": str(uuid.uuid4()), "session": self.name, **operation, **more}
        said = {"session": self.name, "body": question, "expected": expected}
        raw = json.dumps(question).encode()
        replica, status, body = self._client.answer("/v1/decide", "asked", question["id"], raw, **said)
        return replica, body if status == 200 else None

    def tell(self, *events: dict[str, Any]) -> bool:
        """What happened, told until it is taken."""
        said = {"session": self.name, "events": events}
        return bool(self._client.send("/v1/events", "told", str(uuid.uuid4()), json.dumps(events).encode(), **said))

    def event(self, kind: str, **more: Any) -> dict[str, Any]:
        """An event that is the next of the session."""
        self._seq += 1
        self._last = max(self._last + 1, time.time_ns() // 1000)  # microseconds, never twice the same in a session
        moment = datetime.fromtimestamp(self._last // 1_000_000, UTC)
        return {
            "id": _uuid7(self._last // 1000), "kind": kind, "session": self.name, "seq": self._seq,
            "time": f"{moment:%Y-%m-%dT%H:%M:%S}.{self._last % 1_000_000:06d}Z", "source": f"load/1#{self.name}", **more,
        }  # fmt: skip


class _Worker:
    """One session that goes on for as long as the load."""

    def __init__(self, load: Load, client: Client, session: str, chance: random.Random) -> None:
        self._load, self._client, self._chance = load, client, chance
        self._session = Session(client, session)

    def run(self, step: Callable[[], None]) -> None:
        """One step after another until the load stops."""
        while not self._load.stopping.is_set():
            step()
            self._load.stopping.wait(self._load.pause * self._chance.random())
        self._client.close()

    def tell_and_ask(self) -> None:
        """A call, the question whether it may be, and what came of it."""
        expected, operation = self._chance.choice(OPERATIONS)
        notes = self._notes()
        call = self._session.event("tool.call", **operation)
        self._session.tell(*notes, call)
        self._ask(expected, operation, call=call["id"])
        notes = self._notes(call=call["id"])
        result = self._session.event("tool.result", call=call["id"], parent=call["id"], status="ok", duration_ms=1.5)
        self._session.tell(*notes, result)

    def ask(self) -> None:
        """A question alone."""
        self._ask(*self._chance.choice(OPERATIONS))

    def _ask(self, expected: str, operation: dict[str, Any], **more: str) -> None:
        again = {"id": str(uuid.uuid4())} | more
        for _ in range(1 + (self._chance.random() < 0.1)):  # now and then the same question a second time
            replica, answer = self._session.ask(operation, expected=expected, **again)
            if answer is not None:
                self._load.tally.add(replica)

    def _notes(self, **more: Any) -> list[dict[str, Any]]:
        return [self._session.event("note", text=f"note {n}", **more) for n in range(self._chance.randrange(4))]


def _uuid7(ms: int) -> str:
    """RFC 9562, written out here because nothing of the product is used."""
    chance = int.from_bytes(os.urandom(10), "big")
    number = ms << 80 | 7 << 76 | (chance >> 68 & 0xFFF) << 64 | 2 << 62 | chance & (1 << 62) - 1
    return str(uuid.UUID(int=number))
