"""What an emitter is made of inside: a queue, a spool, two threads, and their life through fork, exit and close.

The intake thread takes a folder of its own, opens the spool and appends; the delivery thread sends. Both are daemons: they
never keep a process alive, and nothing of them runs in the agent's threads.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import sys
import threading
import time
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from banksman.producers import claims
from banksman.producers.delivery import Delivery, Source
from banksman.producers.intake import Intake
from banksman.producers.spool import Spool
from banksman.producers.unspooled import Unspooled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from banksman.producers.intake import Record
    from banksman.producers.transport import Transport

JOIN_S = 5.0
_log = logging.getLogger("banksman.emitter")


@dataclass(frozen=True)
class Bounds:
    """How much may wait: `events` and `memory` bytes in the process, `spool` bytes on disk.

    `keep`: a full spool refuses what is new instead of dropping what is old.
    """

    events: int = 100_000
    memory: int = 64 << 20
    spool: int = 256 << 20
    keep: bool = False
    exit_s: float = 2.0
    """How long the end of the process waits for what is not sent, when the other side is there."""


@dataclass(frozen=True)
class Stats:
    """What happened so far in this process. Events, unless it says otherwise."""

    reported: int
    """Handed over by the agent."""
    sent: int
    """Durable on the other side, those of adopted spools included."""
    waiting: int
    """In memory, on their way to the spool."""
    spooled_bytes: int
    """In the spool and not acknowledged."""
    dropped: int
    """Lost: no room in memory or in the spool, or reported after `close`."""
    refused: int
    """Set aside in the spool's file `refused`: they can never be stored."""
    damaged_bytes: int
    """Of the spool's files, that were no events when they were read back."""
    disk_errors: int
    adopted: int
    """Spools of processes that are gone, taken over."""
    state: str
    """`sending`, `away` (nobody answers), `not_let_in` (token or key), `closed`."""
    why: str
    """What the other side, or the disk, said last."""
    source: str
    """This process, as it stands in its events."""


class Outbox:
    """Takes snapshots, and gets them there."""

    def __init__(self, home: Path, name: str, record: Record, transport: Transport, bounds: Bounds) -> None:
        """`home`: the folder that holds the spools of all processes of one author. `name`: of `source`, before the `#`."""
        self.home, self._name, self._record, self._transport, self._bounds = home, name, record, transport, bounds
        self._lock = threading.RLock()
        self._closed = False
        self._ended: Stats | None = None
        self._reset()
        _live.add(self)

    def _reset(self) -> None:
        self._intake = Intake(self._bounds.events, self._bounds.memory, self._start)
        self.put = self._intake.put
        """Hand over a snapshot; never waits. False: it was dropped, and counted. (No call of our own in between.)"""
        self._spool: Spool | Unspooled | None = None
        self._claim: claims.Claim | None = None
        self._adopted: dict[Spool, claims.Claim] = {}
        self._past = {"dropped": 0, "refused": 0, "damaged": 0, "disk_errors": 0}
        self._delivery: Delivery | None = None
        self._threads: list[threading.Thread] = []
        self._opened = threading.Event()
        self.source = ""

    # ── for the agent's threads ──

    def drop(self) -> None:
        """Count an event that could not even be handed over."""
        self._intake.drop()

    @property
    def full(self) -> bool:
        """Whether something new would push out something old, or be dropped."""
        spool = self._spool
        return self._bounds.keep and spool is not None and (spool.full or self._intake.full)

    def start(self) -> None:
        """Begin, if that is not done yet: what others left behind is sent without waiting for an event of ours."""
        if not self._threads:
            self._start()

    def _start(self) -> bool:
        with self._lock:
            if self._closed:
                return False
            if not self._threads:
                thread = threading.Thread(target=self._run, name="banksman-intake", daemon=True)
                self._threads.append(thread)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is ending, or this process may have no more threads
                    self._threads.clear()
                    return False
                _end_with_process(self)
        return True

    def flush(self, timeout: float | None = None, *, while_there: bool = False) -> bool:
        """Wait until everything so far is durable on the other side. False: not in time, or (`while_there`) it is away."""
        until = float("inf") if timeout is None else time.monotonic() + timeout
        if not self._threads:
            return True
        if self._ended is not None:
            return self._ended.waiting == self._ended.spooled_bytes == 0
        if not self._intake.mark().wait(timeout):
            return False
        spool, delivery = self._spool, self._delivery
        if spool is None or delivery is None:  # it was closed meanwhile
            return False
        last = spool.last_seq

        def done() -> bool:
            return spool.acknowledged >= last or (while_there and delivery.state != "sending")

        delivery.hurry(done, until)
        return spool.acknowledged >= last

    def close(self, timeout: float) -> bool:
        """`flush` while the other side is there, then let go of everything. Whether all was sent."""
        sent = self.flush(timeout, while_there=True)
        with self._lock:
            if self._closed or not self._threads:
                self._closed = True
                return sent
            self._closed = True
        self._intake.stop()
        self._spool_the_rest()
        if self._delivery is not None:
            self._delivery.stop()
        for thread in self._threads:
            thread.join(JOIN_S)
        self._ended = self.stats()
        if not any(thread.is_alive() for thread in self._threads):  # else the end of the process lets go of the files
            self._let_go()
        return sent

    def _spool_the_rest(self) -> None:
        """Wait for what was reported last, 100,000 events at most, as long as it gets on: it is this machine's own work."""
        left = sys.maxsize
        while self._threads[0].is_alive() and self._intake.waiting < left:
            left = self._intake.waiting
            self._threads[0].join(JOIN_S)
        if self._intake.waiting:
            _log.error("%d events are not in the spool, the disk does not answer: they are lost", self._intake.waiting)

    def stats(self) -> Stats:
        """What happened so far."""
        if self._ended is not None:
            return self._ended
        intake, spool, delivery = self._intake, self._spool, self._delivery
        spools = [*self._adopted, *([spool] if spool is not None else [])]
        state = delivery.state if delivery is not None else "sending"
        why = delivery.why if delivery is not None else ""
        disk = next((one.last_disk_error for one in spools if one.last_disk_error), "")
        return Stats(
            reported=intake.taken,
            sent=delivery.sent if delivery is not None else 0,
            waiting=intake.waiting,
            spooled_bytes=sum(one.waiting for one in spools),
            dropped=intake.dropped + self._past["dropped"] + sum(one.dropped for one in spools),
            refused=self._past["refused"] + sum(one.refused for one in spools),
            damaged_bytes=self._past["damaged"] + sum(one.damaged for one in spools),
            disk_errors=self._past["disk_errors"] + sum(one.disk_errors for one in spools),
            adopted=delivery.adopted if delivery is not None else 0,
            state="closed" if self._closed else state,
            why=why or disk,
            source=self.source,
        )

    # ── the threads ──

    def _run(self) -> None:
        self._spool, self.source = spool, source = self._open()
        delivery = self._delivery = Delivery(self._transport, spool, self._abandoned, self._done)
        sender = threading.Thread(target=delivery.run, name="banksman-delivery", daemon=True)
        try:
            sender.start()
            self._threads.append(sender)
        except RuntimeError as error:  # no more threads: what is reported waits in the spool for another process
            _log.error("events are spooled but not sent: %s", error)
        self._intake.run(spool, self._record, source, delivery.wake)

    def _open(self) -> tuple[Spool | Unspooled, str]:
        why = ""
        try:
            for claim in claims.own(self.home):
                try:
                    spool = Spool(
                        claim.folder, cap=self._bounds.spool, keep=self._bounds.keep, memory=self._bounds.memory
                    )
                except OSError as error:  # one that cannot be opened must not stand in the way of the next
                    why = error.strerror or str(error)
                    claim.release()
                    continue
                self._claim = claim
                return spool, f"{self._name}#{claim.instance}"
        except OSError as error:
            why = error.strerror or str(error)
        _log.warning("no spool in %s (%s): what is not sent is lost when this process dies", self.home, why)
        return Unspooled(why, memory=self._bounds.memory), f"{self._name}#{secrets.token_hex(4)}"

    def _abandoned(self) -> Iterator[Source]:
        """Spools that wait and whose processes are gone. Empty ones are left for those who come, or tidied away."""
        with contextlib.suppress(OSError):
            for claim in claims.abandoned(self.home):
                try:
                    spool = Spool(claim.folder, cap=sys.maxsize, keep=True)
                except OSError:
                    claim.release()
                    continue
                self._adopted[spool] = claim
                if spool.empty:
                    self._done(spool)
                else:
                    yield spool

    def _done(self, source: Source) -> None:
        assert isinstance(source, Spool)
        claim = self._adopted.pop(source)
        drained = source.empty
        source.close()
        for name in self._past:
            self._past[name] += getattr(source, name)
        if drained and not claim.goes_on:
            claim.remove()
        else:
            claim.release()

    def _let_go(self) -> None:
        spool, ended = self._spool, self._ended
        if spool is not None and ended is not None:
            before = spool.dropped
            spool.close()
            if lost := spool.dropped - before:
                _log.error("%d events that no disk took are lost with this process", lost)
            self._ended = replace(
                ended, dropped=ended.dropped + lost, spooled_bytes=max(0, ended.spooled_bytes - spool.in_memory)
            )
        if self._claim is not None:
            self._claim.release()

    # ── fork and exit ──

    def forked(self) -> None:
        """In a child: the parent's threads are not here and its files were let go of. What the parent took, it sends."""
        self._lock = threading.RLock()
        self._reset()
        self._transport.forked()

    def end(self) -> None:
        """The process ends."""
        self.close(self._bounds.exit_s)


_live: weakref.WeakSet[Outbox] = weakref.WeakSet()


def _forked() -> None:
    for outbox in list(_live):
        outbox.forked()


def _end() -> None:
    for outbox in list(_live):
        outbox.end()


def _end_with_process(outbox: Outbox) -> None:
    """A child of `multiprocessing` ends without `atexit`, but not without its own list."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None and sys.modules["multiprocessing.process"].parent_process() is not None:
        util.Finalize(None, outbox.end, exitpriority=10)


os.register_at_fork(after_in_child=_forked)
atexit.register(_end)
