"""The thread between the agent's calls and the spool: takes what was handed over, makes records of it, appends them.

It looks every few milliseconds while the agent reports and writes what it finds at once: within 20 ms of the call an event
is in the spool. Only an agent that was quiet has to wake it up.

An agent that reports now and then comes out of a sleep into cold caches, and a call costs what it touches. So an event of
usual size goes the short way: two comparisons and an append that is whole by itself. Whatever has to be looked at more
closely (a first event, a large one, a bound, an end) goes through the lock.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from banksman import stamps
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
    """The queue and what empties it. An event stays in it until it is in the spool."""

    def __init__(self, most: int, most_bytes: int, begin: Callable[[], bool]) -> None:
        """At most so many events of so many bytes. `begin` sees to the thread when the first comes; False: there is none."""
        self._most, self._most_bytes, self._begin = most, most_bytes, begin
        self._usual = most_bytes // most  # bytes that each event may have; what is larger is counted beyond that
        # A lock that the same thread may take again: a signal handler or a finalizer may report in the middle of a report.
        self._lock = threading.RLock()
        self._queue: deque[bytes | int | Mark | None] = deque()
        self._others = 0  # what stands in the queue and is no event
        self._beyond = 0  # bytes of the large events in the queue, beyond what each may have
        self._room = 0  # as long as the queue is shorter, an event of usual size goes the short way
        self._passed_on = 0
        self.dropped = self.refused = 0
        self._missing = 0  # dropped since the last one that was taken
        self._begun = self._closed = self._ended = False
        self._heed = False  # the thread rests or is gone: who appended has to look
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # not an Event: a signal handler may flush in a flush

    # ── for the agent's threads ──

    def put(self, taken: bytes) -> bool:
        """Hand over a snapshot; never waits. False: there is no room, it was counted as dropped."""
        if len(taken) <= self._usual and len(self._queue) < self._room:
            self._queue.append(taken)
            if self._heed:
                self._look_behind()
            return True
        return self._put_closely(taken)

    def _put_closely(self, taken: bytes) -> bool:
        if not self._begun and not self._begin():
            self.drop()
            return False
        with self._lock:
            self._begun = True
            if self._closed or self.full:
                self.dropped += 1
                self._missing += 1
                self._measure()
                return False
            missing, self._missing = self._missing, 0
            if missing:
                self._others += 1
                self._queue.append(missing)
            self._beyond += max(0, len(taken) - self._usual)
            self._queue.append(taken)
            self._measure()
            if self._heed:
                self._look_behind()
        return True

    def _measure(self) -> None:
        """How far the short way goes, after anything changed that it does not look at."""
        if self._closed or self._missing or not self._begun or not self._usual:
            self._room = 0
        else:
            self._room = min(self._most, (self._most_bytes - self._beyond) // self._usual) + self._others

    def _look_behind(self) -> None:
        """After an append: wake the thread that rests. Behind the end nobody takes it any more: it was dropped."""
        with self._lock:
            if self._ended:
                self._empty_out()
            elif self._heed:
                self._heed = False
                self._bell.put(None)

    @property
    def full(self) -> bool:
        """Whether the next one would be dropped. Without the lock: agents' calls ask for this."""
        waiting = len(self._queue) - self._others
        return waiting >= self._most or waiting * self._usual + self._beyond >= self._most_bytes

    @property
    def waiting(self) -> int:
        """Events between call and spool."""
        with self._lock:
            return len(self._queue) - self._others

    @property
    def waiting_bytes(self) -> int:
        """Theirs at most: a small event counts as if it were of usual size."""
        with self._lock:
            return self.waiting * self._usual + self._beyond

    @property
    def taken(self) -> int:
        """Events that were handed over."""
        with self._lock:
            return self._passed_on + self.waiting

    def drop(self) -> None:
        """Count an event that could not even be handed over."""
        with self._lock:
            self.dropped += 1
            self._missing += 1
            self._measure()

    def mark(self) -> threading.Event:
        """An event that is set once everything reported before is in the spool."""
        passed = threading.Event()
        with self._lock:
            if self._ended:
                passed.set()
            else:
                self._add(Mark(passed))
        return passed

    def stop(self) -> None:
        """Take nothing more; the thread ends when what was taken is in the spool."""
        with self._lock:
            self._closed = True
            self._add(None)

    def _add(self, item: Mark | None) -> None:
        self._others += 1
        self._queue.append(item)
        self._measure()
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
                self._passed(some)
                for item in some:
                    if isinstance(item, Mark):
                        item.passed.set()
            if items and items[-1] is None:
                self._end()
                return
            while spool.stuck and not self._closed:  # the queue fills up meanwhile, and drops and counts
                self._sleep(HOLD_S)
                spool.retry()
            self._sleep(GATHER_S - (time.monotonic() - began))

    def _gathered(self, *, block: bool, timeout: float | None) -> list[bytes | int | Mark | None]:
        """What stands in the queue, up to the end; with `block` once there is something, or the time is over."""
        if block:
            self._heed = True
            if not self._queue:  # looked at after `_heed` was set: who appends now rings
                self._sleep(timeout)
            with self._lock:
                self._heed = False
        stamps.prepare()
        items: list[bytes | int | Mark | None] = []
        for at in range(min(len(self._queue), MOST_AT_ONCE)):
            items.append(self._queue[at])
            if items[-1] is None:
                break
        return items

    def _end(self) -> None:
        with self._lock:
            self._ended = self._heed = True
            self._empty_out()

    def _empty_out(self) -> None:
        """Behind the end stand marks, which nobody waits for for ever, and what was reported in the moment of the end."""
        while self._queue:
            item = self._queue.popleft()
            if isinstance(item, Mark):
                item.passed.set()
            if isinstance(item, bytes):
                self.dropped += 1
            else:
                self._others -= 1

    def _sleep(self, seconds: float | None) -> None:
        """Not beyond a `mark` or a `stop`."""
        with contextlib.suppress(queue.Empty):
            self._bell.get(timeout=None if seconds is None else max(0.0, seconds))

    def _passed(self, items: list[bytes | int | Mark | None]) -> None:
        """The oldest of the queue are in the spool."""
        with self._lock:
            for item in items:
                self._queue.popleft()
                if isinstance(item, bytes):
                    self._passed_on += 1
                    self._beyond -= max(0, len(item) - self._usual)
                else:
                    self._others -= 1
            self._measure()

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
