"""What an agent's own code uses: reports what it does, asks before it acts. docs/reference/emitter.md

    emitter = Emitter.from_settings()
    with emitter.session() as session:
        session.prompt("…")

A report is a snapshot in a queue: it never waits, and no error of ours comes out of it. Everything else happens in two
threads of the emitter (outbox.py).
"""

from __future__ import annotations

import logging
import os
import secrets
import weakref
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Any, Literal, Self

from banksman import stamps
from banksman.errors import InvalidInput, Unavailable
from banksman.events import is_name
from banksman.producers import snapshot
from banksman.producers.asking import Asker, Decision, nobody
from banksman.producers.http_transport import HttpTransport
from banksman.producers.outbox import Bounds, Outbox, Stats
from banksman.producers.record import Recorder, jsonable
from banksman.producers.session import Session
from banksman.producers.snapshot import encode
from banksman.signing import Credential, parse_credential
from banksman.stamps import uuid7, uuid7_from, uuid7_ready

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import ThreadPoolExecutor
    from types import TracebackType

    from banksman.producers.transport import Transport

NAME = "emitter-python/1.0"
DEFAULT_URL = "http://127.0.0.1:7700"
ASKING_THREADS, WAITING_THREADS = 32, 128
FULL = "the spool is at its cap, and what cannot be recorded is refused"
_log = logging.getLogger("banksman.emitter")


class SpoolFull(Unavailable):
    """The spool is at its cap and this emitter is to refuse then: what cannot be recorded should not be done."""


class Emitter:
    """One for a process and a credential; safe to use from any thread and any event loop."""

    def __init__(
        self,
        credential: Credential | str,
        *,
        url: str = DEFAULT_URL,
        transport: Transport | None = None,
        spool: Path | None = None,
        spool_bytes: int = Bounds.spool,
        when_full: Literal["drop", "refuse"] = "drop",
        decide_timeout: float = 10.0,
        exit_timeout: float = Bounds.exit_s,
        ca_file: str = "",
    ) -> None:
        """InvalidSetting: credential, address or certificates cannot be used. Nothing that comes later raises, but for
        `SpoolFull` where `when_full` is `refuse`.
        """
        known = parse_credential(credential) if isinstance(credential, str) else credential
        self.project, self.agent = known.project, known.agent
        self._refuses = when_full == "refuse"
        self._decide_timeout = decide_timeout
        self._asker = Asker(url, known.token, ca_file=ca_file)
        self._threads: ThreadPoolExecutor | None = None
        self._waiting: ThreadPoolExecutor | None = None
        self._outbox = Outbox(
            (spool or default_spool()) / known.project / known.agent,
            NAME,
            Recorder(known),
            transport or HttpTransport(url, known, ca_file=ca_file),
            Bounds(spool=spool_bytes, keep=self._refuses, exit_s=exit_timeout),
        )
        _live.add(self)
        stamps.prepare()  # the first calls come before the sender's thread does
        self._outbox.start()

    @classmethod
    def from_settings(cls) -> Self:
        """As the environment and `banksman.yaml` say. InvalidSetting names the variable that cannot be used."""
        from banksman import settings

        known = settings.load(settings.Client)
        credential = parse_credential(known.credential())
        transport: Transport | None = None
        if known.transport == "kafka":
            from banksman.producers.kafka_transport import KafkaTransport

            transport = KafkaTransport(settings.load(settings.Kafka), credential)
        return cls(
            credential,
            url=known.url,
            transport=transport,
            spool=Path(known.spool).expanduser() if known.spool else None,
            spool_bytes=known.spool_bytes,
            when_full=known.spool_full,
            decide_timeout=known.decide_timeout_s,
            ca_file=known.ca_file,
        )

    # ── reporting ──

    def session(self, id: str | None = None, **fields: Any) -> Session:  # noqa: A002 - the field's own name
        """A session; `fields` go into `session.started`. InvalidInput: the id is not a name."""
        name = secrets.token_hex(8) if id is None else id
        if not is_name(str(name)):
            raise InvalidInput("must be a name of at most 128 letters, digits and . _ @ : -", field="session")
        return Session(self, name, fields)

    def emit(self, event: Mapping[str, Any]) -> str:
        """Report an event -> its id. It has `kind` and `session`; `v id time project agent` are filled in where missing, and
        what is None is left out. Never waits. SpoolFull: only where the emitter is to refuse.
        """
        if self._refuses and self._outbox.full:
            self._outbox.drop()
            raise SpoolFull(FULL)
        now, name, taken = time_ns(), "", False
        try:
            given = event.get("id")
            name = str(given) if given else uuid7_ready(now)
            try:
                made = encode((name, now, event))  # as `snapshot.take` does, with a call less
            except Exception:  # noqa: BLE001 - as there
                made = snapshot.take((name, now, event))
            put = self._outbox.put  # looked up and called apart: as one step it goes through the class, in vain
            taken = put(made)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not be the agent's trouble
            self._outbox.drop()
            _log.error("an event could not be taken (%s)", type(error).__name__)  # its text may hold the event
        if self._refuses and not taken and self._outbox.full:  # another thread was quicker
            raise SpoolFull(FULL)
        return name or uuid7()

    # ── asking ──

    def decide(self, question: Mapping[str, Any], timeout: float | None = None, wait: float = 0.0) -> Decision:
        """May this be done? `question`: `session service action resource? branch? args? call? reason? approval?`. Waits;
        never raises. Whatever is not a 200 with `allow` means no. `wait`: seconds to wait for humans where they are asked; what
        comes back after that is their answer, or still `approve`.
        """
        refusal, asked = self._question(question)
        if refusal is not None:
            return refusal
        limit = self._decide_timeout if timeout is None else timeout
        decision = self._asker.ask(asked, limit).now()
        approval = _waited_for(decision, wait)
        if approval is not None and self._asker.settled(approval, wait):
            return self._asker.ask(_with(asked, approval), limit).now()
        return decision

    async def adecide(
        self,
        question: Mapping[str, Any],
        timeout: float | None = None,  # noqa: ASYNC109
        wait: float = 0.0,
    ) -> Decision:
        """The same for asyncio: it waits in a thread, the event loop does not."""
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        refusal, asked = self._question(question)
        if refusal is not None:
            return refusal
        if self._threads is None:
            self._threads = ThreadPoolExecutor(ASKING_THREADS, "banksman-ask")
        limit, loop = self._decide_timeout if timeout is None else timeout, asyncio.get_running_loop()
        heard = await loop.run_in_executor(self._threads, self._asker.ask, asked, limit)
        decision = heard.now()  # judged here: the loop may have been busy since
        approval = _waited_for(decision, wait)
        if approval is not None:
            if self._waiting is None:  # others: who waits for minutes must not keep those who ask from a thread
                self._waiting = ThreadPoolExecutor(WAITING_THREADS, "banksman-wait")
            if await loop.run_in_executor(self._waiting, self._asker.settled, approval, wait):
                again = _with(asked, approval)
                decision = (await loop.run_in_executor(self._threads, self._asker.ask, again, limit)).now()
        return decision

    def _question(self, question: Mapping[str, Any]) -> tuple[Decision | None, dict[str, Any]]:
        if self._refuses and self._outbox.full:
            return nobody(f"not_asked: {FULL}"), {}
        asked = jsonable(snapshot.give(snapshot.take(question)))  # what is asked is what a report of it says
        if not isinstance(asked, dict):
            return nobody("not_asked: the question cannot be written as JSON"), {}
        return None, {"id": uuid7(), **asked}

    # ── its life ──

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything reported so far is durable on the other side. False: not in time; it will be sent later."""
        return self._outbox.flush(timeout)

    async def aflush(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as `flush`
        """The same for asyncio."""
        import asyncio

        return await asyncio.get_running_loop().run_in_executor(None, self._outbox.flush, timeout)

    def stats(self) -> Stats:
        """What happened so far."""
        return self._outbox.stats()

    def close(self, timeout: float = 5.0) -> bool:
        """`flush` while the other side is there, then let go of the spool. Whether all was sent; the rest is next time's."""
        sent = self._outbox.close(timeout)
        for threads in (self._threads, self._waiting):
            if threads is not None:
                threads.shutdown(wait=False)
        self._threads = self._waiting = None
        self._asker.close()
        return sent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def forked(self) -> None:
        """In a child: threads and connections of the parent are not ours. (The outbox looks after itself.)"""
        self._threads = self._waiting = None
        self._asker.forked()


def default_spool() -> Path:
    """`~/.local/state/banksman/spool`, or where XDG_STATE_HOME says."""
    state = os.environ.get("XDG_STATE_HOME")
    try:
        return (Path(state) if state else Path.home() / ".local" / "state") / "banksman" / "spool"
    except RuntimeError:  # a user without a home
        return Path("/var/lib/banksman/spool")


def _waited_for(decision: Decision, wait: float) -> str | None:
    return decision.approval if wait > 0 and decision.decision == "approve" else None


def _with(asked: dict[str, Any], approval: str) -> dict[str, Any]:
    """The question that is put once humans have said yes: another one, and the same one whenever it follows from the first."""
    first = str(asked["id"])
    return asked | {"id": uuid7_from(int(first[:13].replace("-", ""), 16), first, approval), "approval": approval}


_live: weakref.WeakSet[Emitter] = weakref.WeakSet()


def _forked() -> None:
    for emitter in list(_live):
        emitter.forked()


os.register_at_fork(after_in_child=_forked)
