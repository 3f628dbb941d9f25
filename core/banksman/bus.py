"""Publishing on Kafka by group commit, and reading a topic from its beginning. aiokafka underneath.

Group commit without a timer: per partition one batch is in flight, and it gathers what arrives meanwhile; its
acknowledgement releases everybody in it. Waiting longer to fill a batch (linger) would only add its length.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.partitioner import murmur2

from banksman.errors import BrokerAway, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from aiokafka.structs import ConsumerRecord

    from banksman.settings import Kafka
    from banksman.signing import Headers

MAX_BATCH_BYTES = 1 << 20
MAX_REQUEST_BYTES = 17 << 20  # the largest record of all, in `dead`, and its frame


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that every Kafka client's default partitioner gives `key` (murmur2, positive, modulo)."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


def producer(settings: Kafka) -> AIOKafkaProducer:
    """An idempotent producer that waits for every in-sync copy. Not started."""
    made = AIOKafkaProducer(
        **settings.client(),
        enable_idempotence=True,
        acks="all",
        max_batch_size=MAX_BATCH_BYTES,
        max_request_size=MAX_REQUEST_BYTES,
    )
    calm(made.client)
    return made


def calm(client: Any) -> None:
    """Keep an aiokafka client (0.14) from spinning while no broker answers.

    When a partition has no leader, its fetcher and its sender ask for metadata again and again; each try fails at once
    where the connection is refused, and nothing in the loop waits: 10,000 tries a second, and the event loop starves. So a
    failed try takes as long as the client's own back-off.
    """
    once = client._metadata_update  # noqa: SLF001 - there is no public place to wait in

    async def update(*arguments: Any) -> bool:
        found: bool = await once(*arguments)
        if not found:
            await asyncio.sleep(0.1)
        return found

    client._metadata_update = update  # noqa: SLF001 - as above


class _Record:
    __slots__ = ("acknowledged", "deadline", "headers", "key", "landed", "queue", "value")

    def __init__(
        self,
        key: bytes,
        value: bytes,
        headers: Headers,
        acknowledged: asyncio.Future[int],
        deadline: float,
        landed: Callable[[int], None] | None,
        queue: deque[_Record],
    ) -> None:
        self.key, self.value, self.headers = key, value, headers
        self.acknowledged, self.deadline, self.landed = acknowledged, deadline, landed
        self.queue = queue
        """Where it waits to be sent, with what goes to the same partition."""


class Publisher:
    """Records of one topic, each acknowledged by the broker before its future is done.

    `bound`: how many records may be waiting; beyond it `put` raises Unavailable at once. `deadline` seconds after `put`
    a future fails with BrokerAway. A record that was not sent by then is never sent; one that was may still land, and
    then `landed(offset)` is called, so that its author can say that it does not count. An offset of -1, there or in a
    future, means that the record is, or may be, on the log and that nobody can say where.
    """

    def __init__(self, producer: AIOKafkaProducer, topic: str, *, bound: int = 10_000, deadline: float = 5.0) -> None:
        self._producer = producer
        self.topic = topic
        self._bound, self._deadline = bound, deadline
        self._waiting: dict[int, deque[_Record]] = {}
        self._flights: dict[int, asyncio.Task[None]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._open: deque[_Record] = deque()
        self.pending = 0

    @property
    def room(self) -> int:
        """How many more records may wait."""
        return self._bound - self.pending

    def put(
        self, partition: int, key: bytes, value: bytes, headers: Headers, landed: Callable[[int], None] | None = None
    ) -> asyncio.Future[int]:
        """Hand over a record -> a future of its offset. Never waits; raises Unavailable beyond the bound."""
        if self.pending >= self._bound:
            raise Unavailable(f"{self.pending} records are waiting for {self.topic}")
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(partition)
        if waiting is None:
            waiting = self._waiting[partition] = deque()
        record = _Record(key, value, headers, loop.create_future(), time.monotonic() + self._deadline, landed, waiting)
        self.pending += 1
        waiting.append(record)
        self._open.append(record)
        if partition not in self._flights:
            self._flights[partition] = loop.create_task(self._fly(partition, waiting), name=f"{self.topic}/{partition}")
        if self._sweep is None:
            self._sweep = loop.call_later(self._deadline, self._expire)
        return record.acknowledged

    async def flush(self) -> None:
        """Return when nothing is waiting: acknowledged, or given up."""
        while self._flights:
            await asyncio.wait(list(self._flights.values()))

    async def _fly(self, partition: int, waiting: deque[_Record]) -> None:
        try:
            while waiting:
                batch = self._producer.create_batch()
                taken: list[_Record] = []
                while waiting:
                    record = waiting[0]
                    if record.acknowledged.done():  # given up before it was sent: never sent
                        waiting.popleft()
                        self.pending -= 1
                        continue
                    if batch.append(key=record.key, value=record.value, timestamp=None, headers=record.headers) is None:
                        break
                    # The batch has its own copy. What waits for the sweep must be small: thousands of records a second
                    # for the length of the deadline would push everything else out of the processor's caches.
                    record.value, record.headers = b"", []
                    taken.append(waiting.popleft())
                if taken:
                    await self._send(batch, partition, taken)
        finally:
            self._flights.pop(partition, None)
            if waiting:  # only when this task is cancelled: nobody is left waiting for ever
                for record in waiting:
                    _fail(record, BrokerAway(f"{self.topic}: the publisher stopped"))
                self.pending -= len(waiting)
                waiting.clear()

    async def _send(self, batch: Any, partition: int, taken: list[_Record]) -> None:
        try:
            batch.close()
            metadata = await (await self._producer.send_batch(batch, self.topic, partition=partition))
        except (KafkaError, ConnectionError, OSError) as error:
            away = BrokerAway(f"{self.topic}: {type(error).__name__}: {error}")
            for record in taken:
                _fail(record, away)
                if record.landed is not None:
                    record.landed(-1)
        except asyncio.CancelledError:
            for record in taken:
                _fail(record, BrokerAway(f"{self.topic}: the publisher stopped"))
            raise
        else:
            known = metadata.offset >= 0  # a broker that had the batch already may not remember where
            for number, record in enumerate(taken):
                offset = metadata.offset + number if known else -1
                landed, record.landed = record.landed, None
                if not record.acknowledged.done():
                    record.acknowledged.set_result(offset)
                elif landed is not None:
                    landed(offset)
        finally:
            self.pending -= len(taken)

    def _expire(self) -> None:
        now = time.monotonic()
        while self._open and (self._open[0].acknowledged.done() or self._open[0].deadline <= now):
            record = self._open.popleft()
            _fail(record, BrokerAway(f"{self.topic}: not acknowledged within {self._deadline:g} s"))
            queue = record.queue
            while queue and queue[0].acknowledged.done():  # it holds no place: another partition may have a use for it
                queue.popleft()
                self.pending -= 1
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(self._open[0].deadline - now, self._expire) if self._open else None


def _fail(record: _Record, error: Exception) -> None:
    if not record.acknowledged.done():
        record.acknowledged.set_exception(error)
        record.acknowledged.exception()  # looked at: a caller that went away must not make a warning of it


async def died(producer: AIOKafkaProducer) -> None:
    """Return when a started producer can send nothing any more, whatever the broker does. Nothing else would tell."""
    await asyncio.wait([producer._sender.sender_task])  # noqa: SLF001 - there is no public way to see it


async def read_from_start(
    settings: Kafka, topic: str, partition: int = 0
) -> AsyncGenerator[list[ConsumerRecord], None]:
    """Every record of one partition from its beginning, in batches, for ever; an empty batch when nothing new came.

    Leave it through `contextlib.aclosing`, or its consumer stays open.

    Raises aiokafka's OffsetOutOfRangeError when the log under the reader is gone: what it knows is not the truth then.
    """
    where = TopicPartition(topic, partition)
    consumer = AIOKafkaConsumer(
        **settings.client(), enable_auto_commit=False, auto_offset_reset="none", max_poll_records=5000
    )
    calm(consumer._client)  # noqa: SLF001 - as in `calm`
    await consumer.start()
    try:
        consumer.assign([where])
        first = await consumer.beginning_offsets([where])
        consumer.seek(where, first[where])
        while True:
            batches = await consumer.getmany(timeout_ms=200)
            yield batches.get(where, [])
    finally:
        await consumer.stop()
