"""Publishing on Kafka by group commit, and reading a topic from its beginning. aiokafka underneath.

Group commit without a timer: per partition one batch is in flight, and it gathers what arrives meanwhile; its
acknowledgement releases everybody in it. Waiting longer to fill a batch (linger) would only add its length.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.partitioner import murmur2

from banksman import fetched
from banksman.errors import BrokerAway, Unavailable
from banksman.failover import never_out_of_order, ready_for_failover

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence

    from aiokafka.structs import ConsumerRecord

    from banksman.settings import Kafka
    from banksman.signing import Headers

_log = logging.getLogger("banksman")
MAX_BATCH_BYTES = 1 << 20
RETRY_S = 0.5
CLOSE_S = 2.0
HALVED = 32
"""Records in a flight that are too few to be halved: each flight has its price."""

STEPS = 5
"""Steps of the event loop that aiokafka (0.14) takes from a batch to its bytes on the socket."""

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
    ready_for_failover(made.client)
    never_out_of_order(made)
    return made


def consumer(settings: Kafka, *topics: str, **options: Any) -> AIOKafkaConsumer:
    """A consumer that commits nothing by itself, and that no record can stop. `options`: of aiokafka's. Not started."""
    fetched.hand_on()
    made = AIOKafkaConsumer(*topics, **settings.client(), enable_auto_commit=False, **options)
    ready_for_failover(made._client)  # noqa: SLF001 - there is no public way to it
    return made


async def end_of(settings: Kafka, topic: str, partition: int = 0) -> int:
    """The offset that a partition's next record gets. KafkaError, OSError: Kafka is away."""
    where = TopicPartition(topic, partition)
    return (await ends_of(settings, [where]))[where]


async def ends_of(settings: Kafka, places: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
    """The same of several."""
    asking = consumer(settings)
    try:
        await asking.start()
        asking.assign(places)  # of a topic that it has nothing to do with it would know nothing for seconds
        found: dict[TopicPartition, int] = await asking.end_offsets(places)
        return found
    finally:
        await asking.stop()


async def goodbye(closing: Coroutine[Any, Any, None]) -> None:
    """Close a client, for CLOSE_S at the most: without a broker it may wait for one, or (aiokafka 0.14) end with the
    CancelledError of a task of its own.
    """
    task = asyncio.ensure_future(closing)
    await asyncio.wait({task}, timeout=CLOSE_S)
    if not task.done():
        _log.warning("a Kafka client waits for its broker: it is closed without an answer")
        task.cancel()
    elif not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("closing a Kafka client: %s: %s", type(error).__name__, error)


class Waiter(Protocol):
    """Who handed over a record: called in the event loop, in the middle of telling all of its batch."""

    @property
    def gone(self) -> bool:
        """Whether it gave up by itself: then a record that was not sent yet is never sent."""

    def acknowledged(self, offset: int) -> None:
        """The broker has it, in time."""

    def failed(self, error: Unavailable) -> None:
        """It was not acknowledged in time."""

    def landed(self, offset: int) -> None:
        """It is, or may be, on the log all the same, after `failed` or when it was gone: it does not count."""


class _Promise:
    """A waiter with a future."""

    __slots__ = ("future", "landed")

    def __init__(self, future: asyncio.Future[int], landed: Callable[[int], None]) -> None:
        self.future, self.landed = future, landed

    @property
    def gone(self) -> bool:
        return self.future.done()

    def acknowledged(self, offset: int) -> None:
        self.future.set_result(offset)

    def failed(self, error: Unavailable) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # looked at: a caller that went away must not make a warning of it


class _Record:
    __slots__ = ("deadline", "headers", "key", "over", "queue", "value", "waiter")

    def __init__(
        self, key: bytes, value: bytes, headers: Headers, deadline: float, queue: deque[_Record], waiter: Waiter
    ) -> None:
        self.key, self.value, self.headers, self.deadline = key, value, headers, deadline
        self.queue = queue
        """Where it waits to be sent, with what goes to the same partition."""
        self.waiter = waiter
        self.over = False
        """Its waiter was told how it ended."""

    def given_up(self) -> bool:
        """Whether nobody counts on it any more."""
        return self.over or self.waiter.gone

    def fail(self, error: Unavailable) -> None:
        if not self.over:
            self.over = True
            _tell(self.waiter.failed, error)


def _tell(what: Callable[[Any], None], told: Any) -> None:
    """What goes wrong with one waiter is in the log, and all the others are told all the same."""
    try:
        what(told)
    except Exception:  # noqa: BLE001 - the edge of whoever published
        _log.exception("what became of a record could not be told")


def nothing(_offset: int) -> None:
    """For whoever does not mind that a record landed after all."""


class Publisher:
    """Records of one topic, each acknowledged by the broker before whoever waits for it is told.

    `bound`: how many records may be waiting; beyond it `put` raises Unavailable at once. `deadline` seconds after `put`
    a record fails with BrokerAway. One that was not sent by then is never sent; one that was may still land, and then
    `landed(offset)` is called, so that its author can say that it does not count. An offset of -1, there or in an
    acknowledgement, means that the record is, or may be, on the log and that nobody can say where.

    `halves`: of much that waits, half goes at once. Authors who wait for their records and then come with the next would soon
    go all together, and there would be nothing to do while they are in flight.
    """

    def __init__(
        self,
        producer: AIOKafkaProducer,
        topic: str,
        *,
        bound: int = 10_000,
        deadline: float = 5.0,
        halves: bool = False,
    ) -> None:
        self._producer = producer
        self.topic = topic
        self._halves = halves
        self._bound, self._deadline = bound, deadline
        self._waiting: dict[int, deque[_Record]] = {}
        self._flights: set[asyncio.Task[None]] = set()
        self._flying: set[int] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._open: deque[_Record] = deque()
        self.pending = 0

    @property
    def room(self) -> int:
        """How many more records may wait."""
        return self._bound - self.pending

    def put(
        self, partition: int, key: bytes, value: bytes, headers: Headers, landed: Callable[[int], None] = nothing
    ) -> asyncio.Future[int]:
        """Hand over a record -> a future of its offset. Never waits; raises Unavailable beyond the bound."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.hand_over(partition, key, value, headers, _Promise(future, landed))
        return future

    def hand_over(self, partition: int, key: bytes, value: bytes, headers: Headers, waiter: Waiter) -> None:
        """The same for a waiter: everybody in a batch is told in one step of the loop, without a future for each."""
        if self.pending >= self._bound:
            raise Unavailable(f"{self.pending} records are waiting for {self.topic}")
        waiting = self._waiting.get(partition)
        if waiting is None:
            waiting = self._waiting[partition] = deque()
        record = _Record(key, value, headers, time.monotonic() + self._deadline, waiting, waiter)
        self.pending += 1
        waiting.append(record)
        self._open.append(record)
        if partition not in self._flying:
            self._start(partition, waiting)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(self._deadline, self._expire)

    async def flush(self) -> None:
        """Return when nothing is waiting: acknowledged, or given up."""
        while self._flights:
            await asyncio.wait(self._flights)

    def _start(self, partition: int, waiting: deque[_Record]) -> None:
        """Send what waits for a partition that has nothing in flight."""
        self._flying.add(partition)
        flight = asyncio.create_task(self._fly(partition, waiting), name=f"{self.topic}/{partition}")
        self._flights.add(flight)
        flight.add_done_callback(self._flights.discard)

    async def _fly(self, partition: int, waiting: deque[_Record]) -> None:
        """One batch: sent, acknowledged; then the next one is on its way before those in this one are told."""
        taken: list[_Record] = []
        first, away = -1, None
        try:
            batch = self._loaded(waiting, taken)
            if taken:
                sent = await self._producer.send_batch(batch, self.topic, partition=partition)
                first = (await sent).offset
        except (KafkaError, ConnectionError, OSError) as error:
            away = BrokerAway(f"{self.topic}: {type(error).__name__}: {error}")
        except BaseException as error:  # cancelled, or a fault of the client's: nobody is left waiting for ever
            self._flying.discard(partition)
            lost = [*taken, *waiting]
            waiting.clear()  # before anybody is told: who is may hand over the next
            self.pending -= len(lost)
            for record in lost:
                record.fail(BrokerAway(f"{self.topic}: the publisher stopped"))
            if isinstance(error, Exception):
                for record in taken:
                    _tell(record.waiter.landed, -1)
            raise
        try:
            if waiting:
                self._start(partition, waiting)
                for _ in range(STEPS):
                    await asyncio.sleep(0)
            else:
                self._flying.discard(partition)
        finally:
            self._over(taken, first, away)

    def _loaded(self, waiting: deque[_Record], taken: list[_Record]) -> Any:
        """A batch of what waits, closed; `taken` gets its records."""
        batch = self._producer.create_batch()
        most = max(HALVED, (len(waiting) + 1) // 2) if self._halves else len(waiting)
        while waiting and len(taken) < most:
            record = waiting[0]
            if record.given_up():  # before it was sent: never sent
                waiting.popleft()
                self.pending -= 1
                continue
            if batch.append(key=record.key, value=record.value, timestamp=None, headers=record.headers) is None:
                break
            # The batch has its own copy, and another partition that does not get on keeps what is behind it in `_open`.
            record.value, record.headers = b"", []
            taken.append(waiting.popleft())
        batch.close()
        return batch

    def _over(self, taken: list[_Record], first: int, away: BrokerAway | None) -> None:
        """Tell those in a batch what became of it. `first`: the offset of its first record; -1: nobody knows."""
        for number, record in enumerate(taken):
            offset = first + number if first >= 0 else -1  # a broker that had the batch already may not remember where
            if away is not None:
                record.fail(away)
                _tell(record.waiter.landed, -1)
            elif record.given_up():
                _tell(record.waiter.landed, offset)
            else:
                record.over = True
                _tell(record.waiter.acknowledged, offset)
        self.pending -= len(taken)
        while self._open and self._open[0].over:  # the sweep has no use for them, and they would fill its memory
            self._open.popleft()

    def _expire(self) -> None:
        now = time.monotonic()
        while self._open and (self._open[0].given_up() or self._open[0].deadline <= now):
            record = self._open.popleft()
            record.fail(BrokerAway(f"{self.topic}: not acknowledged within {self._deadline:g} s"))
            queue = record.queue
            while queue and queue[0].given_up():  # it holds no place: another partition may have a use for it
                queue.popleft()
                self.pending -= 1
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(self._open[0].deadline - now, self._expire) if self._open else None


async def died(producer: AIOKafkaProducer) -> None:
    """Return when a started producer can send nothing any more, whatever the broker does. Nothing else would tell."""
    await asyncio.wait([producer._sender.sender_task])  # noqa: SLF001 - there is no public way to see it


async def follow(settings: Kafka, topic: str) -> AsyncGenerator[list[ConsumerRecord], None]:
    """Every record of a topic of one partition, as `read_from_start`. It tries until Kafka was reached for the first time.

    Leave it through `contextlib.aclosing`. Raises what reading dies of after that, such as OffsetOutOfRangeError: what was
    missed cannot be known, only a fresh state can be right.
    """
    said = False
    while True:
        reached = False
        try:
            async with aclosing(read_from_start(settings, topic)) as batches:
                async for batch in batches:
                    reached = True
                    yield batch
        except (KafkaError, OSError) as error:
            if reached:
                raise
            if not said:
                _log.warning("%s cannot be read yet: %s", topic, error)
                said = True
        await asyncio.sleep(RETRY_S)


async def read_from_start(
    settings: Kafka, topic: str, partition: int = 0
) -> AsyncGenerator[list[ConsumerRecord], None]:
    """Every record of one partition from its beginning, in batches, for ever; an empty batch when nothing new came.

    Leave it through `contextlib.aclosing`, or its consumer stays open.

    Raises aiokafka's OffsetOutOfRangeError when the log under the reader is gone: what it knows is not the truth then.
    """
    where = TopicPartition(topic, partition)
    reading = consumer(settings, auto_offset_reset="none", max_poll_records=5000)
    await reading.start()
    try:
        reading.assign([where])
        first = await reading.beginning_offsets([where])
        reading.seek(where, first[where])
        while True:
            batches = await reading.getmany(timeout_ms=200)
            yield batches.get(where, [])
    finally:
        await reading.stop()
