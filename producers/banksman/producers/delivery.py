"""The thread that sends: the oldest events first, batch by batch, the same bytes until the other side has them.

Spools of processes that are gone come before this process' own, so that an agent's events keep their order over its
restarts. An event that can never be taken is set aside, so that it does not hold up the rest.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING, Protocol

from banksman.producers.record import refused_line
from banksman.producers.transport import Away, NotLetIn, Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from banksman.producers.spool import Event
from banksman.producers.transport import Transport

MOST_EVENTS = 500
MOST_BYTES = 1 << 20
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 5.0
NOT_LET_IN_PAUSE_S = 30.0
GATHER_S = 0.02
"""From one request to the next: each costs the agent's process, and the other side, as much as ten events do."""
LOOK_AROUND_S = 10.0
"""Between two looks for spools whose processes are gone."""

_log = logging.getLogger("banksman.emitter")


class Source(Protocol):
    """A spool, as far as sending goes."""

    def read(self, most: int, most_bytes: int) -> list[Event]:
        """The oldest that are not acknowledged."""

    def acknowledge(self, events: Sequence[Event]) -> None:
        """They need not be sent any more."""

    def set_aside(self, line: bytes) -> None:
        """Keep what can never be sent."""


class Delivery:
    """Sends what stands in the sources. `state`: `sending`, `away` or `not_let_in`; `why`: what the other side said."""

    def __init__(
        self,
        transport: Transport,
        own: Source,
        abandoned: Callable[[], Iterator[Source]],
        done: Callable[[Source], None],
    ) -> None:
        """`abandoned` finds spools whose processes are gone; `done` takes one back when it is empty."""
        self._transport, self._own = transport, own
        self._abandoned, self._done = abandoned, done
        self._left: list[Source] = []
        self._looked = float("-inf")
        self._changed = threading.Condition()
        self._new = self._stopped = False
        self._hurried, self._not_before = 0, float("-inf")
        self._most_bytes = MOST_BYTES
        self.sent = self.adopted = self._set_aside_before = 0
        self.state, self.why = "sending", ""

    # ── for other threads ──

    def wake(self) -> None:
        """There is something new to send."""
        if not self._new:
            with self._changed:
                self._new = True
                self._changed.notify_all()

    def hurry(self, condition: Callable[[], bool], until: float) -> None:
        """Wait for a condition that changes when something was sent, until `time.monotonic()` is `until`, or `stop`.

        Meanwhile nothing is gathered before it is sent.
        """
        with self._changed:
            self._hurried += 1
            self._changed.notify_all()
            try:
                left = None if until == float("inf") else until - time.monotonic()
                self._changed.wait_for(lambda: condition() or self._stopped, left)
            finally:
                self._hurried -= 1

    def stop(self) -> None:
        """End after what is under way."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._transport.abort()

    # ── the thread ──

    def run(self) -> None:
        """Until `stop`. An error of ours is told and tried again like an absence: this thread must not die."""
        pause = FIRST_PAUSE_S
        while not self._stopped:
            try:
                self._some()
                pause = FIRST_PAUSE_S
            except Away as away:
                if self._stopped:
                    break
                self._tell(away)
                most = NOT_LET_IN_PAUSE_S if isinstance(away, NotLetIn) else LAST_PAUSE_S
                pause = min(pause * 2, most)
                self._sleep(max(away.retry_after or 0.0, pause * random.uniform(0.5, 1.0)))
            except Exception:  # noqa: BLE001 - see above
                _log.exception("sending failed; it is tried again")
                self._sleep(LAST_PAUSE_S)
        for source in self._left:
            self._done(source)
        self._transport.close()

    def _some(self) -> None:
        """Send a batch, or wait until there is one."""
        self._look_around()
        while self._left:
            if events := self._left[0].read(MOST_EVENTS, self._most_bytes):
                self._send(self._left[0], events)
                return
            self._done(self._left.pop(0))
            self._moved()
        self._gather()
        with self._changed:
            self._new = False
        if events := self._own.read(MOST_EVENTS, self._most_bytes):
            self._send(self._own, events)
            if len(events) < MOST_EVENTS:  # a backlog is not held up
                self._not_before = time.monotonic() + GATHER_S
        else:
            self._moved()
            with self._changed:
                self._changed.wait_for(lambda: self._new or self._stopped, LOOK_AROUND_S)

    def _gather(self) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._hurried or self._stopped, max(0.0, self._not_before - time.monotonic())
            )

    def _look_around(self) -> None:
        if time.monotonic() - self._looked < LOOK_AROUND_S:
            return
        self._looked = time.monotonic()
        for source in self._abandoned():
            self._left.append(source)
            self.adopted += 1

    def _send(self, source: Source, events: list[Event]) -> None:
        """A batch from the head of a source. What is in the way is found and set aside. Raises Away."""
        parts = [events]
        while parts:
            part = parts.pop(0)
            try:
                self._transport.send([event.payload for event in part], self._tell)
            except Rejected as rejected:
                if len(part) == 1:
                    self._set_aside(source, part[0], str(rejected))
                    continue
                if rejected.too_large and len(events) == len(part):
                    self._most_bytes = max(1 << 14, sum(len(event.payload) for event in part) // 2)
                at = rejected.at
                if at is None:
                    middle = len(part) // 2
                    parts[:0] = [part[:middle], part[middle:]]
                else:
                    parts[:0] = [some for some in (part[:at], part[at : at + 1], part[at + 1 :]) if some]
            else:
                source.acknowledge(part)
                self.sent += len(part)
            self._told_well()
            self._moved()

    def _set_aside(self, source: Source, event: Event, why: str) -> None:
        self._set_aside_before += 1
        if self._set_aside_before.bit_count() == 1:  # the 1st, 2nd, 4th, 8th …: an agent that is wrong is wrong often
            _log.error("%d events can never be stored and were set aside: %s", self._set_aside_before, why)
        source.set_aside(refused_line(event.payload, why))
        source.acknowledge([event])

    # ── telling ──

    def _tell(self, away: Away) -> None:
        state = "not_let_in" if isinstance(away, NotLetIn) else "away"
        if state != self.state:
            _log.warning("events wait in the spool: %s", away)
        with self._changed:
            self.state, self.why = state, str(away)
            self._changed.notify_all()

    def _told_well(self) -> None:
        if self.state != "sending":
            _log.info("events are being sent again")
            self.state, self.why = "sending", ""

    def _moved(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _sleep(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped, seconds)
