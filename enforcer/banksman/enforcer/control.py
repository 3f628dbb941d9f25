"""What `control` says, read from its beginning: who is known, which replicas there are, what each has in force.

Records are applied in offset order, each only when a service of ours has signed it. What is not verified is applied by
nobody and becomes a finding.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from banksman.approvals import Approvals
from banksman.control_log import ControlLog
from banksman.controls import Controls
from banksman.events import (
    AccessRequested,
    ApprovalOpened,
    Claim,
    PolicyLoaded,
    PolicyRejected,
    PolicyRemoved,
    Replica,
    Vote,
)
from banksman.identities import Agent, Identities, Operator

if TYPE_CHECKING:
    from collections.abc import Callable

    from banksman.approvals import Approval
    from banksman.control_log import Forged
    from banksman.enforcer.lease import Lease
    from banksman.events import Event
    from banksman.settings import Kafka
    from banksman.signing import Secret


@dataclass
class Peer:
    """Another replica (or this one), as its last heartbeat said."""

    replica: str
    address: str
    applied: int
    policies: dict[str, str]
    lease_s: float
    ended: bool
    met: float
    """When the reader met the heartbeat, on this replica's clock."""


@dataclass
class State:
    """Everything that this replica knows from `control`, up to and including the record at `applied`."""

    identities: Identities = field(default_factory=Identities)
    controls: Controls = field(default_factory=Controls)
    approvals: Approvals = field(default_factory=Approvals)
    peers: dict[str, Peer] = field(default_factory=dict)
    loaded: dict[str, PolicyLoaded] = field(default_factory=dict)
    """The newest `policy.loaded` of each project that nobody has removed since."""
    rejected: dict[str, PolicyRejected] = field(default_factory=dict)
    """By file: what does not load, until something loads from that file again."""
    applied: int = -1
    generation: int = 0
    """Goes up with every record that can change an answer or who may ask."""

    def apply(self, event: Event, offset: int, received_ms: int, now: float) -> bool:
        """Take in the verified record at `offset`; True when others wait to hear that it was applied here."""
        if isinstance(event, Replica):
            self.peers[event.replica] = Peer(
                event.replica, event.address, event.applied, event.policies, event.lease_s, event.ended, now
            )
            return False
        if isinstance(event, ApprovalOpened | AccessRequested | Vote | Claim):
            if self.approvals.apply(event, offset, received_ms, self._may_approve) and isinstance(event, Vote):
                self.generation += 1
            return False
        if isinstance(event, PolicyLoaded):
            self.loaded[event.project] = event
            if event.file is not None:
                self.rejected.pop(event.file, None)
        elif isinstance(event, PolicyRejected):
            self.rejected[event.file] = event
        elif isinstance(event, PolicyRemoved):
            self.loaded.pop(event.project, None)
        elif self.identities.apply(event) or self.controls.apply(event, offset):
            self.generation += 1
        return True

    def _may_approve(self, name: str) -> bool:
        known = self.identities.operators.get(name)
        return known is not None and known.may("approver")

    def refuses(self, holder: Agent | Operator) -> bool:
        """Whether a caller whose token was `holder`'s may not be answered any more: it was rotated out."""
        if isinstance(holder, Agent):
            return self.identities.agents.get(holder.name) is not holder
        return self.identities.operators.get(holder.name) is not holder

    def live(self, now: float) -> list[Peer]:
        """The replicas whose heartbeat was met within one lease of theirs; not who said goodbye. Forgets the long gone."""
        for name in [name for name, peer in self.peers.items() if now - peer.met > 3600 or peer.ended]:
            del self.peers[name]
        return [peer for peer in self.peers.values() if now - peer.met <= peer.lease_s]


class ControlReader:
    """Applies `control` to a `State`, for as long as the process lives.

    `forged(Forged)` is called for what is not verified, `changed()` after anything was applied that others wait for: the next
    heartbeat, which tells how far this replica has come, must not wait. `settled(approval, vote)`: the vote, which came in just
    now, was the last that the approval needed.
    """

    def __init__(
        self,
        kafka: Kafka,
        secret: Secret,
        lease: Lease,
        state: State,
        *,
        forged: Callable[[Forged], None],
        changed: Callable[[], None],
        settled: Callable[[Approval, Vote], None],
    ) -> None:
        self.state = state
        self.caught_up = asyncio.Event()
        """Set when a heartbeat of this replica's own came back: what was on the log before it began is applied."""
        self._log, self._lease = ControlLog(kafka, secret, forged), lease
        self._changed, self._settled = changed, settled
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """Never returns. Raises when the log under the reader is gone (OffsetOutOfRangeError) or it dies otherwise.

        Until Kafka was reached for the first time it tries again.
        """
        async with aclosing(self._log.batches()) as batches:
            async for batch in batches:
                news = False
                for record in batch:
                    event = self._log.verified(record)
                    if event is not None:
                        news |= self.state.apply(event, record.offset, record.timestamp, self._lease.clock())
                        if isinstance(event, Vote) and self.caught_up.is_set():
                            self._judged(event, record.offset)
                    self.state.applied = record.offset
                    if isinstance(event, Replica) and self._lease.came_back(event.id):
                        self.caught_up.set()
                if batch:
                    self._tell()
                if news:
                    self._changed()

    async def applied(self, offset: int) -> None:
        """Return when the record at `offset` has been applied here."""
        if self.state.applied >= offset:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((offset, future))
        await future

    async def moved(self, seconds: float) -> None:
        """Return when something more was applied, or after so many seconds."""
        moved = self._moved
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await moved.wait()
        except TimeoutError:
            pass

    def _judged(self, vote: Vote, offset: int) -> None:
        approval = self.state.approvals.get(vote.approval)
        if approval is None or approval.ended is None or approval.ended.by != vote.by:
            return
        if self.state.approvals.outcome(offset):
            self._settled(approval, vote)

    def _tell(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()
        for _ in range(len(self._waiting)):
            offset, future = self._waiting.popleft()
            if offset > self.state.applied:
                self._waiting.append((offset, future))
            elif not future.done():
                future.set_result(None)
