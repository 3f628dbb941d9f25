"""The thread between the agent's calls and the spool: takes what was handed over, makes records of it, appends them.

It looks every few milliseconds while the agent reports and writes what it finds at once: within 20 ms of the call an event
is in the spool. Only an agent that was quiet has to wake it up, which costs a call as much again as everything else in it.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from banksman.producers.record import Unrecordable, refused_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from banksman.producers.spool import Spool
    from banksman.producers.unspooled import Unspooled

    Record = Callable[[bytes, str, int], bytes]

GATHER_S = 0.005
QUIET_S = 0.1
"""Without an event for so long, the next one wakes the thread."""
TOGETHER = 64
"""Records that are written at once: the first must not wait long for the last."""
MOST_AT_ONCE = 1024
RETRY_S = 1.0
"""Between two tries to write to a disk that takes no more, when nothing new comes."""
HOLD_S = 0.05

_log = logging.getLogger("banksman.emitter")


class Mark(NamedTuple):
    """Stands in the queue behind everything that was reported before it; set when that is in the spool."""

    passed: threading.Event


class Intake:
    """The queue and what empties it. `waiting` events of `waiting_bytes` are between call and spool."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        # A lock that the same thread may take again: a signal handler or a finalizer may report in the middle of a report.
        self._lock = threading.RLock()
        self._queue: queue.SimpleQueue[bytes | int | Mark | None] = queue.SimpleQueue()
        self.waiting = self.waiting_bytes = 0
        self.taken = self.dropped = self.refused = 0
        self._missing = 0  # dropped since the last one that was taken
        self._closed = self._ended = False
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # not an Event: a signal handler may flush in a flush

    # ── for the agent's threads ──

    def put(self, taken: bytes) -> bool:
        """Hand over a snapshot; never waits. False: there is no room, it was counted as dropped."""
        self._lock.acquire()  # not `with`: that costs some us more where the caller's caches are cold
        try:
            if self._closed or self.waiting >= self._most or self.waiting_bytes >= self._most_bytes:
                self.dropped += 1
                self._missing += 1
                return False
            if self._missing:
                self._queue.put(self._missing)
                self._missing = 0
            self.waiting += 1
            self.waiting_bytes += len(taken)
            self.taken += 1
            self._queue.put(taken)
        finally:
            self._lock.release()
        return True

    @property
    def full(self) -> bool:
        """Whether the next one would be dropped."""
        return self.waiting >= self._most or self.waiting_bytes >= self._most_bytes

    def drop(self) -> None:
        """Count an event that could not even be handed over."""
        with self._lock:
            self.dropped += 1
            self._missing += 1

    def mark(self) -> threading.Event:
        """An event that is set once everything reported before is in the spool."""
        passed = threading.Event()
        with self._lock:
            if self._ended:
                passed.set()
            else:
                self._queue.put(Mark(passed))
                self._bell.put(None)
        return passed

    def stop(self) -> None:
        """Take nothing more; the thread ends when what was taken is in the spool."""
        with self._lock:
            self._closed = True
            self._queue.put(None)
            self._bell.put(None)

    # ── the thread ──

    def run(self, spool: Spool | Unspooled, record: Record, source: str, appended: Callable[[], None]) -> None:
        """Until `stop`. `record` makes bytes of (snapshot, source, seq); `appended` is called after each write."""
        seq = spool.last_seq
        came = tried = float("-inf")
        while True:
            began = time.monotonic()
            items = self._gathered(block=began - came > QUIET_S, timeout=None if spool.written else RETRY_S)
            now = time.monotonic()
            if items:
                began = came = now
            elif not spool.written and now - tried >= RETRY_S:
                tried = now
                if spool.retry():
                    appended()
            for at in range(0, len(items), TOGETHER):
                some = items[at : at + TOGETHER]
                batch: list[tuple[int, bytes]] = []
                for item in some:
                    if isinstance(item, int):
                        seq += item  # numbers that are never used: what was dropped is visible as a gap
                    elif isinstance(item, bytes):
                        seq += 1
                        made = self._made(item, record, source, seq, spool)
                        if made is not None:
                            batch.append((seq, made))
                if batch:
                    spool.append(batch)
                    appended()
                self._passed([item for item in some if isinstance(item, bytes)])
                for item in some:
                    if isinstance(item, Mark):
                        item.passed.set()
            if None in items:
                self._end()
                return
            while spool.stuck and not self._closed:  # the queue fills up meanwhile, and drops and counts
                self._sleep(HOLD_S)
                spool.retry()
            self._sleep(GATHER_S - (time.monotonic() - began))

    def _gathered(self, *, block: bool, timeout: float | None) -> list[bytes | int | Mark | None]:
        """What is in the queue; with `block` once there is something, or the time is over."""
        items: list[bytes | int | Mark | None] = []
        with contextlib.suppress(queue.Empty):
            items.append(self._queue.get(block, timeout))
            while items[-1] is not None and len(items) < MOST_AT_ONCE:
                items.append(self._queue.get_nowait())
        return items

    def _end(self) -> None:
        """Behind the end stand only marks: nobody waits for ever."""
        with self._lock:
            self._ended = True
            while not self._queue.empty():
                item = self._queue.get()
                if isinstance(item, Mark):
                    item.passed.set()

    def _sleep(self, seconds: float) -> None:
        """Not beyond a `mark` or a `stop`."""
        with contextlib.suppress(queue.Empty):
            self._bell.get(timeout=max(0.0, seconds))

    def _passed(self, events: list[bytes]) -> None:
        with self._lock:
            self.waiting -= len(events)
            self.waiting_bytes -= sum(map(len, events))

    def _made(self, taken: bytes, record: Record, source: str, seq: int, spool: Spool | Unspooled) -> bytes | None:
        try:
            return record(taken, source, seq)
        except Unrecordable as error:
            why, redacted = str(error), error.redacted
        except Exception as error:  # noqa: BLE001 - one event must not cost those behind it, nor this thread its life
            why, redacted = f"{type(error).__name__} while it was recorded", b"null"
        self.refused += 1
        if self.refused.bit_count() == 1:  # the 1st, 2nd, 4th, 8th …: an agent that is wrong is wrong often
            _log.error("%d events of this agent can never be stored and were set aside: %s", self.refused, why)
        spool.set_aside(refused_line(redacted, why))
        return None
