"""What one agent may take of a replica: rate, share of the queue, open sessions, pending approvals. Beyond it: 429.

One agent in a loop, or one that floods on purpose, must not keep the others from their answers.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from banksman.http_problem import problem

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from banksman.settings import Enforcer

SESSION_OPEN_S = 3600.0  # a session that was silent for so long does not count as open


class AgentLimits:
    """The account of one agent on this replica. It outlives rotations: it belongs to the name, not to the token."""

    __slots__ = ("_allowance", "_at", "_now", "_rate", "_sessions", "_sessions_max", "_share", "approvals", "waiting")

    def __init__(self, settings: Enforcer, now: Callable[[], float]) -> None:
        self._now = now
        self._rate = settings.agent_rate
        self._share = max(1, int(settings.queue * settings.agent_share))
        self._sessions_max = settings.agent_sessions
        self._allowance, self._at = self._rate, now()
        self._sessions: OrderedDict[str, float] = OrderedDict()
        self.waiting = 0
        """Decisions and events of this agent that wait for their acknowledgement."""
        self.approvals = PendingApprovals(settings.agent_approvals)

    def take(self, count: int = 1) -> float:
        """Charge `count` requests; Problem 429 when the rate or the share is used up. -> the moment, for `session`."""
        now = self._now()
        allowance = min(self._rate, self._allowance + (now - self._at) * self._rate)  # one second's worth may be saved
        self._at = now
        if allowance < 1:
            self._allowance = allowance
            raise problem(429, f"more than {self._rate:g} requests a second", retry_after=1)
        self._allowance = allowance - count  # a batch may overdraw: what follows waits longer
        if self.waiting >= self._share:
            raise problem(429, f"{self.waiting} requests of this agent are waiting already", retry_after=1)
        return now

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

    @property
    def sessions(self) -> int:
        """How many sessions count as open."""
        return len(self._sessions)


class Pending:
    """One approval that a human is asked for. `ends`: its `expires_at` on this replica's clock."""

    __slots__ = ("acknowledged", "approval", "ends", "event", "operation")

    def __init__(self, approval: str, ends: float, event: dict[str, Any]) -> None:
        self.approval, self.ends, self.event = approval, ends, event
        self.operation: tuple[object, ...] = ()
        self.acknowledged: asyncio.Future[int] | None = None
        """Of the record that asks for it: until then nobody may be told of this approval."""


class PendingApprovals:
    """The approvals of one agent that this replica opened and that have not run out, by the exact operation."""

    __slots__ = ("_by_operation", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_operation: dict[tuple[object, ...], Pending] = {}

    def find(self, operation: tuple[object, ...], now: float) -> Pending | None:
        """The pending approval for the identical operation, or None."""
        known = self._by_operation.get(operation)
        return known if known is not None and known.ends > now else None

    def pending(self, approval: str, now: float) -> bool:
        """Whether this approval has not run out."""
        return any(known.approval == approval and known.ends > now for known in self._by_operation.values())

    def room(self, now: float) -> None:
        """Problem 429 when no further approval may be opened."""
        if len(self._by_operation) >= self._most:
            self._by_operation = {key: known for key, known in self._by_operation.items() if known.ends > now}
        if len(self._by_operation) >= self._most:
            raise problem(429, f"{self._most} approvals of this agent are pending already", retry_after=60)

    def open(self, operation: tuple[object, ...], pending: Pending) -> Pending:
        """Remember a new one."""
        pending.operation = operation
        self._by_operation[operation] = pending
        return pending

    def drop(self, pending: Pending) -> None:
        """Its request could not be recorded: nobody will ever answer it."""
        if self._by_operation.get(pending.operation) is pending:
            del self._by_operation[pending.operation]
