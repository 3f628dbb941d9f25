"""What one agent may take of a replica: rate, time, share of the queue, open sessions, pending approvals. Beyond it: 429.

One agent in a loop, or one that floods on purpose, must not keep the others from their answers. A request that takes the
replica longer than most counts as several: so the rate bounds how much of the core an agent can have, whatever it sends.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from banksman.http_problem import problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from banksman.settings import Enforcer

SESSION_OPEN_S = 3600.0  # a session that was silent for so long does not count as open
REQUEST_NS = 200_000
"""What one request pays for; each further 200 us of work count as one more. A usual decision takes well below."""

WATCHED = 100
"""So many of an agent's requests are timed by the thread's own clock after one that seemed slow. To read that clock is a
system call, half a microsecond of the forty that a decision takes: of an agent that is never slow nobody does.
"""

MOST_BYTES = 64 * 1024 * 1024
"""Bytes of events that may be under way in a replica; an agent may have its share of them."""


class AgentLimits:
    """The account of one agent on this replica. It outlives rotations: it belongs to the name, not to the token."""

    __slots__ = (
        "_allowance",
        "_at",
        "_bytes",
        "_bytes_max",
        "_most",
        "_now",
        "_rate",
        "_sessions",
        "_sessions_max",
        "_share",
        "approvals",
        "turn",
        "waiting",
        "watched",
    )

    def __init__(self, settings: Enforcer, now: Callable[[], float]) -> None:
        self._now = now
        self._rate = settings.agent_rate
        self._most = max(1.0, self._rate)  # one second's worth may be saved
        self._share = max(1, int(settings.queue * settings.agent_share))
        self._bytes, self._bytes_max = 0, int(MOST_BYTES * settings.agent_share)
        self._sessions_max = settings.agent_sessions
        self._allowance, self._at = self._most, now()
        self._sessions: OrderedDict[str, float] = OrderedDict()
        self.waiting = 0
        """Requests of this agent that wait for the acknowledgement of what they record."""
        self.watched = 0
        """How many of its next requests are timed."""
        self.turn = asyncio.Lock()
        """Held by the batch of events that is being published: one at a time, in the order in which they came."""
        self.approvals = PendingApprovals(settings.agent_approvals)

    @property
    def crowded(self) -> bool:
        """Whether as many requests of this agent are waiting as its share of the queue allows."""
        return self.waiting >= self._share

    def take(self) -> float:
        """Charge one request; Problem 429 when the rate or the share is used up. -> the moment, for `session`."""
        now = self._now()
        allowance = min(self._most, self._allowance + (now - self._at) * self._rate)
        self._at = now
        if allowance < 1:
            self._allowance = allowance
            raise problem(
                429,
                f"more than {self._rate:g} requests a second (a large or slow one counts as several)",
                retry_after=(1 - allowance) / self._rate,
            )
        self._allowance = allowance - 1
        if self.crowded:
            raise problem(429, f"{self.waiting} requests of this agent are waiting already", retry_after=1)
        return now

    def several(self, further: int) -> None:
        """A request asks for so many things more than one. It pays for them, if it has to later; Problem 429: they do not fit
        into the share, beside what is waiting already.
        """
        if further and self.waiting and self.waiting + further >= self._share:
            raise problem(429, f"{self.waiting} requests of this agent are waiting already", retry_after=1)
        self._allowance -= further

    def give_back(self) -> None:
        """A request that was charged comes again by another way."""
        self._allowance += 1

    def charge(self, nanoseconds: int) -> None:
        """Note how long a request kept the replica busy. May overdraw: what follows waits longer."""
        if nanoseconds > REQUEST_NS:
            self._allowance -= nanoseconds // REQUEST_NS

    @contextmanager
    def carrying(self, size: int) -> Iterator[None]:
        """While a body of so many bytes is under way; Problem 429 when they are too many."""
        if self._bytes + size > self._bytes_max:
            raise problem(429, f"{self._bytes} bytes of this agent's events are under way already", retry_after=1)
        self._bytes += size
        self.waiting += 1
        try:
            yield
        finally:
            self._bytes -= size
            self.waiting -= 1

    def session(self, name: str, now: float) -> None:
        """Note that a session is alive; Problem 429 when it is one too many."""
        sessions = self._sessions
        if name in sessions:
            sessions[name] = now
            sessions.move_to_end(name)
            return
        while sessions:
            oldest = next(iter(sessions))
            if now - sessions[oldest] <= SESSION_OPEN_S:
                break
            del sessions[oldest]
        if len(sessions) >= self._sessions_max:
            raise problem(
                429, f"{len(sessions)} sessions of this agent are open already", field="session", retry_after=60
            )
        sessions[name] = now

    def session_ended(self, name: str) -> None:
        """A session said goodbye."""
        self._sessions.pop(name, None)

    def is_open(self, name: str) -> bool:
        """Whether this session was seen lately and has not said goodbye."""
        return self._now() - self._sessions.get(name, float("-inf")) <= SESSION_OPEN_S

    @property
    def sessions(self) -> int:
        """How many sessions count as open."""
        return len(self._sessions)


class Pending:
    """One approval that a human is asked for. `ends`: its `expires_at` on this replica's clock."""

    __slots__ = ("approval", "ends", "event", "operation", "requested", "unshown")

    def __init__(
        self, operation: tuple[object, ...], ends: float, event: dict[str, Any], unshown: Mapping[str, Any]
    ) -> None:
        self.approval: str = event["approval"]
        self.operation, self.ends, self.event, self.unshown = operation, ends, event, unshown
        self.requested: asyncio.Future[Any] | None = None
        """Of the record that asks for it: until then nobody may be told of this approval. None: not handed over yet."""


class PendingApprovals:
    """The approvals of one agent that this replica is opening, by the exact operation; once they are on the log, `Approvals`
    knows them.
    """

    __slots__ = ("_by_operation", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_operation: dict[tuple[object, ...], Pending] = {}

    def find(self, operation: tuple[object, ...], now: float) -> Pending | None:
        """The one for the identical operation, or None."""
        known = self._by_operation.get(operation)
        return known if known is not None and known.ends > now else None

    def room(self, now: float, pending: int, on_log: Callable[[str], bool]) -> None:
        """Problem 429 when no further approval may be opened. `pending`: how many the log knows; it tells which it has."""
        self._by_operation = {
            operation: known
            for operation, known in self._by_operation.items()
            if known.ends > now and not on_log(known.approval)
        }
        if len(self._by_operation) + pending >= self._most:
            raise problem(429, f"{self._most} approvals of this agent are pending already", retry_after=60)

    def open(self, pending: Pending, requested: asyncio.Future[Any]) -> None:
        """Remember one whose request was handed over; forget it when that is not recorded: nobody will ever answer it."""
        pending.requested = requested
        self._by_operation[pending.operation] = pending

        def ended(future: asyncio.Future[Any]) -> None:
            failed = future.cancelled() or future.exception() is not None
            if failed and self._by_operation.get(pending.operation) is pending:
                del self._by_operation[pending.operation]

        requested.add_done_callback(ended)
