"""Writing: what this replica puts on the log, signed as the service `enforcer`, by group commit.

Three kinds of promise: `put` hands over and returns a future (the hot path waits for it), `control` waits for the
acknowledgement, `later` keeps on trying by itself (findings, voids: nobody waits for them, and none may be lost while
the process lives).
"""

from __future__ import annotations

import asyncio
import logging
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from banksman import codec
from banksman.bus import Publisher, died, goodbye, nothing, partition_of, producer
from banksman.errors import Unavailable
from banksman.signing import SENT, digest, service_signer
from banksman.stamps import rfc3339, uuid7
from banksman.topics import SPECS, Topic

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka import AIOKafkaProducer

    from banksman.bus import Waiter
    from banksman.events import Event
    from banksman.settings import Enforcer, Kafka
    from banksman.signing import Headers, Secret

SERVICE = "enforcer"
KEPT_FOR_LATER = 10_000
RETRY_S = 0.5
AT_ONCE = 250
MAX_CONTROL_BYTES = SPECS[Topic.CONTROL].max_message_bytes - 64 * 1024  # headers and framing come on top
_log = logging.getLogger("banksman")


def stamp(source: str) -> dict[str, Any]:
    """The fields that every new event of ours begins with."""
    return {"v": 1, "id": uuid7(), "time": rfc3339(), "source": source}


class Records:
    """The replica's pen. Every method but `connect` and `close` needs `connect` to have returned."""

    def __init__(self, kafka: Kafka, secret: Secret, settings: Enforcer, replica: str) -> None:
        self.source = f"{SERVICE}#{replica}"
        self.signer = service_signer(secret, SERVICE)
        self.connected = False
        self._kafka, self._settings = kafka, settings
        self._cut_key = secret.derive(secret.current, "service-key", SERVICE)
        self._producers: list[AIOKafkaProducer] = []
        self._later: dict[Topic, dict[str, tuple[bytes, dict[str, Any]]]] = {Topic.DECISIONS: {}, Topic.ALERTS: {}}
        self._wake, self._empty = asyncio.Event(), asyncio.Event()
        self.dropped = 0
        """Findings that had no room while Kafka was away."""

    async def connect(self, partitions: dict[Topic, int]) -> None:
        """Open the producers. Control has its own: a heartbeat must not wait behind a large batch of decisions.

        Raises KafkaError when the broker is not there.
        """
        opened: list[AIOKafkaProducer] = []
        try:
            for _ in range(2):
                made = producer(self._kafka)
                opened.append(made)
                await made.start()
        except BaseException:
            for made in opened:
                await made.stop()
            raise
        self._producers = opened
        records, control = opened
        self.partitions = partitions[Topic.DECISIONS]
        deadline = self._settings.record_deadline_s
        topic = self._kafka.topic
        self.decisions = Publisher(
            records, topic(Topic.DECISIONS), bound=self._settings.queue, deadline=deadline, halves=True
        )
        self.actions = Publisher(records, topic(Topic.ACTIONS), bound=20_000, deadline=deadline)
        self.alerts = Publisher(records, topic(Topic.ALERTS), bound=KEPT_FOR_LATER, deadline=deadline)
        self.controls = Publisher(control, topic(Topic.CONTROL), bound=10_000, deadline=deadline)
        self.connected = True

    async def close(self) -> None:
        """Close the producers. What is not acknowledged by then was never answered."""
        self.connected = False
        for made in self._producers:
            await goodbye(made.stop())

    async def die(self) -> None:
        """Return when a producer is dead: whatever Kafka does, nothing will be recorded by this process any more."""
        ends = [asyncio.ensure_future(died(made)) for made in self._producers]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        _log.error("a Kafka producer of this process is dead; only a new process can record again")

    def partition(self, key: bytes) -> int:
        """Where an agent's records lie, in `actions` and `decisions` alike."""
        return partition_of(key, self.partitions)

    def encode(self, event: dict[str, Any], *, limit: int = codec.MAX_EVENT_BYTES) -> bytes:
        """An event's bytes; what is too large is cut, never dropped. InvalidEvent: there is nothing in it to cut."""
        value = codec.encode(event)
        return value if len(value) <= limit else codec.encode(codec.cut(event, self.digest, limit=limit))

    def put(
        self,
        publisher: Publisher,
        partition: int,
        key: bytes,
        event: dict[str, Any],
        *,
        value: bytes | None = None,
        replay: str = "",
        sent: str = "",
        landed: Callable[[int], None] = nothing,
    ) -> asyncio.Future[int]:
        """Sign and hand over one event -> a future of its offset. Unavailable when the queue is full.

        `value`: its bytes where they are known already; of `event` only id, kind, time and source are looked at then.
        `sent`: when its author sent it, by the author's clock.
        """
        if value is None:
            value = self.encode(event)
        headers = self._headers(publisher, key, event, value, replay)
        if sent:
            headers.append((SENT, sent.encode()))
        return publisher.put(partition, key, value, headers, landed)

    def decision(self, partition: int, key: bytes, event: dict[str, Any], waiter: Waiter) -> None:
        """Sign and hand over a decision that `waiter` waits for. Unavailable when the queue is full."""
        value = self.encode(event)
        self.decisions.hand_over(partition, key, value, self._headers(self.decisions, key, event, value), waiter)

    def _headers(self, to: Publisher, key: bytes, event: dict[str, Any], value: bytes, replay: str = "") -> Headers:
        return self.signer.headers(
            to.topic, key, value, id=event["id"], kind=event["kind"], time=event["time"], source=event["source"],
            replay=replay,
        )  # fmt: skip

    async def control(self, event: Event, *, key: str = "") -> int:
        """Append to `control` -> its offset, acknowledged. Unavailable when it was not (it may still land)."""
        return await self.control_soon(event, key=key)

    def control_soon(
        self, event: Event, *, key: str = "", landed: Callable[[int], None] = nothing
    ) -> asyncio.Future[int]:
        """The same without waiting: a future of the offset. `landed`: called with it when it comes after all."""
        plain = msgspec.to_builtins(event)
        raw = (key or f"{plain['kind']}/{event.id}").encode()
        value = self.encode(plain, limit=MAX_CONTROL_BYTES)
        return self.put(self.controls, 0, raw, plain, value=value, landed=landed)

    def later(self, event: Event, key: str) -> None:
        """Keep on trying to write a finding or a void until it is acknowledged. The same id again changes nothing.

        Voids are never dropped: there are no more of them than decisions were under way. Findings have a bound.
        """
        self.keep(event.topic, msgspec.to_builtins(event), key)

    def keep(self, topic: Topic, event: dict[str, Any], key: str) -> None:
        """The same for an event that was tried before, as it was then: other bytes under its id would be another event."""
        waiting = self._later[topic]
        if event["id"] in waiting:
            return
        if topic is Topic.ALERTS and len(waiting) >= KEPT_FOR_LATER:
            self.dropped += 1
            return
        waiting[event["id"]] = (key.encode(), event)
        self._wake.set()

    @property
    def undelivered(self) -> int:
        """Findings and voids that are not acknowledged yet."""
        return sum(map(len, self._later.values()))

    async def delivered(self) -> None:
        """Return when nothing is left of what `later` was given."""
        while self.undelivered:
            self._empty.clear()
            await self._empty.wait()

    async def deliver(self) -> None:
        """The task behind `later`. Never returns."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self.undelivered:
                why = await self._deliver_some()
                if why:
                    _log.warning("%d findings and voids are not delivered yet: %s", self.undelivered, why)
                    await asyncio.sleep(RETRY_S)
            self._empty.set()

    async def _deliver_some(self) -> str:
        """One round -> "", or why something of it was not acknowledged."""
        why, under_way = "", []
        for topic, publisher in ((Topic.DECISIONS, self.decisions), (Topic.ALERTS, self.alerts)):
            waiting = self._later[topic]
            for name, (key, event) in list(islice(waiting.items(), AT_ONCE)):
                partition = self.partition(key) if topic is Topic.DECISIONS else 0
                try:
                    under_way.append((waiting, name, self.put(publisher, partition, key, event)))
                except Unavailable as error:  # the queue is full of decisions: they come first
                    why = str(error)
                    break
        for waiting, name, acknowledged in under_way:
            try:
                await acknowledged
            except Unavailable as error:
                why = str(error)
            else:
                del waiting[name]
        return why

    def digest(self, raw: bytes) -> str:
        """What stands in the place of a text that was cut."""
        return digest(self._cut_key, raw)
