"""What `control` says, read from its beginning: who is known, which replicas there are, what each has in force.

Records are applied in offset order, each only when a service of ours has signed it. What is not verified is applied by
nobody and becomes a finding. Kill, revoke and pause have their place in `State.refuses`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from banksman import codec
from banksman.bus import read_from_start
from banksman.errors import InvalidEvent
from banksman.events import PolicyLoaded, PolicyRejected, PolicyRemoved, Replica
from banksman.identities import Agent, Identities, Operator
from banksman.signing import REPLAY, Author, Verifier, may_write
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiokafka.structs import ConsumerRecord

    from banksman.enforcer.lease import Lease
    from banksman.events import Event
    from banksman.settings import Kafka
    from banksman.signing import Secret

_log = logging.getLogger("banksman")


@dataclass
class Peer:
    """Another replica (or this one), as its last heartbeat said."""

    replica: str
    address: str
    applied: int
    policies: dict[str, str]
    ended: bool
    met: float
    """When the reader met the heartbeat, on this replica's clock."""


@dataclass(frozen=True)
class Forged:
    """A control record that nobody of ours has signed, or that cannot be understood."""

    offset: int
    received_ms: int
    why: str
    key: str
    kind: str


@dataclass
class State:
    """Everything that this replica knows from `control`, up to and including the record at `applied`."""

    identities: Identities = field(default_factory=Identities)
    peers: dict[str, Peer] = field(default_factory=dict)
    loaded: dict[str, PolicyLoaded] = field(default_factory=dict)
    """The newest `policy.loaded` of each project that nobody has removed since."""
    rejected: dict[str, PolicyRejected] = field(default_factory=dict)
    """By file: what does not load, until something loads from that file again."""
    applied: int = -1
    generation: int = 0
    """Goes up with every record that can change an answer or who may ask."""

    def apply(self, event: Event, now: float) -> bool:
        """Take in one verified record; True when it is more than a heartbeat."""
        if isinstance(event, Replica):
            self.peers[event.replica] = Peer(
                event.replica, event.address, event.applied, event.policies, event.ended, now
            )
            return False
        if isinstance(event, PolicyLoaded):
            self.loaded[event.project] = event
            if event.file is not None:
                self.rejected.pop(event.file, None)
        elif isinstance(event, PolicyRejected):
            self.rejected[event.file] = event
        elif isinstance(event, PolicyRemoved):
            self.loaded.pop(event.project, None)
        elif self.identities.apply(event):
            self.generation += 1
        return True

    def refuses(self, holder: Agent | Operator) -> bool:
        """Whether a caller whose token was `holder`'s may not be answered any more: it was rotated out."""
        if isinstance(holder, Agent):
            return self.identities.agents.get(holder.name) is not holder
        return self.identities.operators.get(holder.name) is not holder

    def live(self, now: float, lease_s: float) -> list[Peer]:
        """The replicas whose heartbeat was met within one lease and that have not said goodbye; forgets the long gone."""
        for name in [name for name, peer in self.peers.items() if now - peer.met > 3600 or peer.ended]:
            del self.peers[name]
        return [peer for peer in self.peers.values() if now - peer.met <= lease_s]


class ControlReader:
    """Applies `control` to a `State`, for as long as the process lives.

    `forged(Forged)` is called for what is not verified, `changed()` after anything but heartbeats was applied: the next
    heartbeat, which tells how far this replica has come, must not wait.
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
    ) -> None:
        self.state = state
        self.caught_up = asyncio.Event()
        """Set when a heartbeat of this replica's own came back: what was on the log before it began is applied."""
        self._kafka, self._topic = kafka, kafka.topic(Topic.CONTROL)
        self._verifier, self._lease = Verifier(secret), lease
        self._forged, self._changed = forged, changed
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def run(self) -> None:
        """Never returns. Raises when the log under the reader is gone (OffsetOutOfRangeError) or it dies otherwise.

        Until Kafka was reached for the first time it tries again.
        """
        async for batch in self._batches():
            news = False
            for record in batch:
                event = self._verified(record)
                if event is not None:
                    news |= self.state.apply(event, self._lease.clock())
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

    def _tell(self) -> None:
        for _ in range(len(self._waiting)):
            offset, future = self._waiting.popleft()
            if offset > self.state.applied:
                self._waiting.append((offset, future))
            elif not future.done():
                future.set_result(None)

    async def _batches(self) -> AsyncIterator[list[ConsumerRecord]]:
        said = False
        while True:
            try:
                async for batch in read_from_start(self._kafka, self._topic):
                    said = True
                    yield batch
            except (KafkaError, OSError) as error:
                if self.state.applied >= 0 or said:
                    raise  # what was missed cannot be known: only a fresh reader can
                _log.warning("control cannot be read yet: %s", error)
                said = False
            await asyncio.sleep(0.5)

    def _verified(self, record: ConsumerRecord) -> Event | None:
        """The record's event if a service of ours wrote it, for live use, exactly so."""
        if record.value is None:  # a tombstone: nothing to apply
            return None
        author = self._verifier.author(self._topic, record.key, record.headers, record.value)
        headers = dict(record.headers)
        try:
            event = codec.decode(record.value, Topic.CONTROL)
        except InvalidEvent as error:
            self._refuse(record, f"cannot be understood: {error}", headers)
            return None
        kind = str(type(event).__struct_config__.tag)
        why = _doubt(author, event, kind, headers)
        if why:
            self._refuse(record, why, headers)
            return None
        return event

    def _refuse(self, record: ConsumerRecord, why: str, headers: dict[str, bytes]) -> None:
        key = (record.key or b"").decode("utf-8", "backslashreplace")[:200]
        kind = (headers.get("ce_type") or b"").decode("utf-8", "backslashreplace").removeprefix("banksman.")[:64]
        self._forged(Forged(record.offset, record.timestamp, why[:500], key, kind))


def _doubt(author: Author | None, event: Event, kind: str, headers: dict[str, bytes]) -> str:
    if not may_write(author, Topic.CONTROL, kind=kind, project=None, agent=None):
        return "nobody of ours has signed it" if author is None else f"{author} may not write control"
    if headers.get("ce_id") != event.id.encode() or headers.get("ce_type") != f"banksman.{kind}".encode():
        return "its headers name another event than its body"
    if REPLAY in headers:
        return "a replay touches no control"
    return ""
