"""All topics into ClickHouse, each record shown exactly once.

The rows hold their own offsets: when a partition is assigned, ClickHouse is asked for the highest that it has, and reading
goes on behind it. One insert is one block of one partition and one day, there or not there. So a crash at any point costs
nothing; two archivers after a freeze can store a record twice, and ReplacingMergeTree and the views take that as one.
Findings are acknowledged before the rows that they are about are stored: a crash in between repeats them under the same ids.

    poll ─► rows (this thread) ─► findings acknowledged ─► dead letters acknowledged ─► insert (threads) ─► offsets committed
            the next poll's rows are made while the inserts run
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError

from banksman import bus, codec, events
from banksman.errors import InvalidEvent, Unavailable
from banksman.processors import letters, positions, rows, unreadable
from banksman.processors.findings import Findings
from banksman.processors.seen import SeenIds
from banksman.signing import Secret, Verifier, service_signer
from banksman.store.client import BadData, BadQuestion, Store
from banksman.store.prices import load_prices
from banksman.topics import ARCHIVED, SPECS, Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from aiokafka import ConsumerRecord

    from banksman.processors.letters import Letter
    from banksman.processors.seen import Key
    from banksman.settings import ClickHouse, Kafka

logger = logging.getLogger("banksman")

GROUP = "archiver"
POLL_RECORDS = 20_000
POLL_MS = 100
FULL_ROUND = 2_000
"""Records from which on a round is worth its parts, and the next follows at once."""
PACE_S = 0.15
"""Least time between two rounds that are not full: each makes a part per partition, which ClickHouse has to merge."""
BACKOFF_S = (0.1, 5.0)
LOOK_UP = 4000
"""Ids in one question: their text stays below ClickHouse's `max_query_size`."""

Polled = dict[TopicPartition, list["ConsumerRecord"]]


@dataclass
class Progress:
    """What `/metrics` and tests see."""

    stored: int = 0
    dead: int = 0
    polls: int = 0
    waiting_since: float | None = None
    """When ClickHouse stopped taking rows; None while it does."""
    positions: dict[str, int] = field(default_factory=dict)


@dataclass
class _Block:
    """Rows of one partition and one day, in the order of their offsets."""

    partition: TopicPartition
    made: list[rows.Row]


class Archiver:
    """One archiver process. `instance`: its name in findings."""

    def __init__(self, kafka: Kafka, clickhouse: ClickHouse, secret: Secret, *, instance: str) -> None:
        self._kafka = kafka
        self._group = kafka.topic_prefix + GROUP
        self._topics = {kafka.topic(topic): topic for topic in ARCHIVED}
        self._store = Store(clickhouse, reader=False, timeout=60)
        self._maker = rows.RowMaker(Verifier(secret), load_prices())
        self._signer = service_signer(secret, "archiver")
        self._findings = Findings(f"archiver#{instance}")
        self._seen = SeenIds()
        self._assigned = asyncio.Event()
        self._next: dict[TopicPartition, int] = {}
        self._highest: dict[TopicPartition, int] = {}
        self.progress = Progress()

    async def run(self, stop: asyncio.Event) -> None:
        """Archive until `stop` is set. Brokers and ClickHouse may be away for as long as they like."""
        consumer = AIOKafkaConsumer(
            **self._kafka.client(),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=POLL_RECORDS,
            max_partition_fetch_bytes=8 << 20,
            fetch_max_bytes=32 << 20,
            max_poll_interval_ms=86_400_000,  # ClickHouse may be away for long: that is no reason to leave the group
            session_timeout_ms=6000,
            heartbeat_interval_ms=1000,
        )
        unreadable.tolerate()
        bus.calm(consumer._client)  # noqa: SLF001 - as in `bus.calm`
        producer = bus.producer(self._kafka)
        await _until_started(consumer.start, stop)
        await _until_started(producer.start, stop)
        if stop.is_set():
            return
        self._alerts = bus.Publisher(producer, self._kafka.topic(Topic.ALERTS), deadline=3600)
        self._dead = bus.Publisher(producer, self._kafka.topic(Topic.DEAD), deadline=3600)
        try:
            consumer.subscribe(list(self._topics), listener=_Pause(consumer, self._assigned))
            await self._work(consumer, stop)
        finally:
            await consumer.stop()
            await producer.stop()
            self._store.close()

    async def _work(self, consumer: AIOKafkaConsumer, stop: asyncio.Event) -> None:
        storing: asyncio.Task[None] | None = None
        not_before = 0.0
        try:
            while not stop.is_set():
                if self._assigned.is_set():
                    if storing is not None:
                        await storing  # what was read before the assignment is stored before ClickHouse is asked
                        storing = None
                    await self._seek(consumer, stop)
                await asyncio.sleep(max(0.0, not_before - time.monotonic()))
                try:
                    polled = await consumer.getmany(timeout_ms=POLL_MS)
                except KafkaError as error:  # what was fetched with it may be lost: read again from where we are
                    logger.warning("reading: %s: %s", type(error).__name__, error)
                    self._assigned.set()
                    not_before = time.monotonic() + 0.5
                    continue
                self.progress.polls += 1
                if not polled or self._assigned.is_set():
                    continue
                full = sum(map(len, polled.values())) >= FULL_ROUND
                not_before = 0.0 if full else time.monotonic() + PACE_S
                blocks, dead = self._make(polled)
                gaps = self._gaps(polled)
                if storing is not None:
                    await storing
                storing = asyncio.create_task(self._store_all(consumer, polled, blocks, dead, gaps, stop))
        finally:
            if storing is not None:
                await storing

    def _make(self, polled: Polled) -> tuple[list[_Block], list[Letter]]:
        blocks: list[_Block] = []
        dead: list[Letter] = []
        for partition, records in polled.items():
            topic = self._topics[partition.topic]
            last: _Block | None = None
            for record in records:
                try:
                    row = self._maker.row(record, topic, partition.topic)
                except InvalidEvent as error:
                    where = partition.topic, partition.partition, record.offset, record.timestamp
                    dead.append(letters.of_record(str(error), *where, record.key, record.value, record.headers))
                    continue
                if row is None:
                    continue
                if last is None or row.day != last.made[0].day:
                    last = _Block(partition, [])
                    blocks.append(last)
                last.made.append(row)
        return blocks, dead

    def _gaps(self, polled: Polled) -> list[events.Finding]:
        """Whether each partition goes on where it was left. Compaction leaves gaps of its own."""
        found = []
        for partition, records in polled.items():
            expected, first = self._next.get(partition, 0), records[0]
            if first.offset < expected or (first.offset > expected and not self._compacted(partition)):
                logger.error("%s goes on at %d instead of %d", partition, first.offset, expected)
                told = self._findings.gap(first.timestamp, partition.topic, partition.partition, expected, first.offset)
                found.extend([told] if told else [])
            self._next[partition] = records[-1].offset + 1
        return found

    async def _store_all(
        self,
        consumer: AIOKafkaConsumer,
        polled: Polled,
        blocks: list[_Block],
        dead: list[Letter],
        found: list[events.Finding],
        stop: asyncio.Event,
    ) -> None:
        by_partition: dict[TopicPartition, list[_Block]] = {}
        for block in blocks:
            by_partition.setdefault(block.partition, []).append(block)
        try:
            await self._tell(blocks, dead, found, sum(map(len, polled.values())), stop)
            done = await asyncio.gather(
                *(self._insert_in_order(several, stop) for several in by_partition.values()), return_exceptions=True
            )
            for one in done:
                if isinstance(one, BaseException):
                    raise one
        except _Stopping:
            return  # nothing of this round is committed; the next archiver reads it again
        offsets = {partition: records[-1].offset + 1 for partition, records in polled.items()}
        self.progress.positions.update({f"{p.topic}/{p.partition}": offset for p, offset in offsets.items()})
        commits = {p: positions.commit_of(offset, self._highest.get(p, -1)) for p, offset in offsets.items()}
        with contextlib.suppress(KafkaError):  # a later commit says the same; ClickHouse knows where to go on
            await consumer.commit(commits)

    async def _tell(
        self, blocks: list[_Block], dead: list[Letter], found: list[events.Finding], polled: int, stop: asyncio.Event
    ) -> None:
        """Findings and dead letters, acknowledged."""
        for block in blocks:
            topic = self._topics[block.partition.topic]
            for row in block.made:
                found.extend(self._findings.about(row, topic))
            if topic in (Topic.ACTIONS, Topic.DECISIONS):
                checked = [row for row in block.made if not row.values["replay"]]
                asked = self._seen.to_look_up(checked)
                stored = await self._patiently(functools.partial(self._look_up, asked), stop) if asked else {}
                again = [self._findings.id_reuse(row) for row in self._seen.reused(checked, stored)]
                found.extend(one for one in again if one)
        if dead:
            about = self._findings.see(
                dead[0].received_ms, dead[0].where, detector="dead_letters", fingerprint="dead_letters",
                **letters.share(dead, polled, self._dead.topic),
            )  # fmt: skip
            found.extend([about] if about else [])
        waiting = [self._publish(self._alerts, _key(f), codec.encode(f), f) for f in found]
        await asyncio.gather(*waiting, *map(self._bury, dead))

    def _look_up(self, keys: Mapping[Key, str]) -> dict[Key, str]:
        """The texts that ClickHouse has of these (agent, id), each the first that was received. Blocking."""
        found: dict[Key, str] = {}
        every = sorted(keys.items(), key=lambda item: item[1])
        for first in range(0, len(every), LOOK_UP):
            part = every[first : first + LOOK_UP]
            made_ms = int(part[0][1].replace("-", ""), 16)
            believed = int(part[-1][1].replace("-", ""), 16) < time.time_ns() // 1_000_000
            ids = ",".join(f"'{id_}'" for (_, id_), _ in part)
            agents = ",".join(f"'{agent}'" for agent in sorted({agent for (agent, _), _ in part}))
            answer = self._store.query(
                f"SELECT agent, toString(id) AS text, argMin(raw, received) AS raw FROM `{self._store.database}`.events "  # noqa: S608 - names and ids hold no quotes: the models saw to it
                f"WHERE agent IN ({agents}) AND id IN ({ids}) AND received >= fromUnixTimestamp64Milli({{since:Int64}}) "
                "GROUP BY agent, id",
                {"since": max(0, made_ms - 120_000) if believed else 0},
            )
            found.update({(row["agent"], row["text"]): row["raw"] for row in answer})
        return found

    async def _publish(self, to: bus.Publisher, key: bytes, value: bytes, event: events.Event) -> None:
        kind = str(event.__struct_config__.tag)
        made = self._signer.headers(to.topic, key, value, id=event.id, kind=kind, time=event.time, source=event.source)
        await _acknowledged(to, key, value, made)

    async def _bury(self, letter: Letter) -> None:
        made = self._signer.headers(
            self._dead.topic, b"", letter.value, id=letter.id, kind="dead", time=events.rfc3339_ms(letter.received_ms),
            source=self._findings.source,
        )  # fmt: skip
        await _acknowledged(self._dead, b"", letter.value, made)
        self.progress.dead += 1

    async def _insert_in_order(self, blocks: list[_Block], stop: asyncio.Event) -> None:
        """The blocks of one partition, one after another: what is stored of a partition never has a hole."""
        for block in blocks:
            await self._insert(block, stop)
            self._highest[block.partition] = block.made[-1].values["offset"]

    async def _insert(self, block: _Block, stop: asyncio.Event) -> None:
        """Store a block. What ClickHouse refuses for its content is halved down to the one bad row, which is a dead letter."""
        lines = b"\n".join([rows.encode(row.values) for row in block.made])
        try:
            await self._patiently(lambda: self._store.insert("events", lines), stop)
        except BadData as error:
            if len(block.made) == 1:
                letter = letters.of_row(str(error), block.partition.topic, block.made[0])
                about = self._findings.see(
                    letter.received_ms, letter.where, detector="dead_letters", fingerprint="dead_letters",
                    **letters.share([letter], 1, self._dead.topic),
                )  # fmt: skip
                if about:
                    await self._publish(self._alerts, _key(about), codec.encode(about), about)
                await self._bury(letter)
                return
            middle = len(block.made) // 2
            for half in (block.made[:middle], block.made[middle:]):
                await self._insert(_Block(block.partition, half), stop)
        else:
            self.progress.stored += len(block.made)

    async def _seek(self, consumer: AIOKafkaConsumer, stop: asyncio.Event) -> None:
        """Put every assigned partition behind the last record of it that ClickHouse has."""
        while self._assigned.is_set() and not stop.is_set():
            self._assigned.clear()
            try:
                there = await self._patiently(lambda: positions.stored(self._store), stop)
                commits = await positions.committed(self._kafka, self._group)
                for partition in consumer.assignment():
                    highest = there.highest.get(positions.name_of(self._topics[partition.topic], partition), -1)
                    self._highest[partition] = highest
                    self._next[partition] = positions.go_on(highest, commits.get(partition))
                    consumer.seek(partition, self._next[partition])
                    consumer.resume(partition)
                self._seen.raise_floor(there.newest_ms)
            except _Stopping:
                return
            except (KafkaError, Unavailable) as error:
                logger.warning("assigned partitions: %s", error)
                self._assigned.set()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), 0.5)

    def _compacted(self, partition: TopicPartition) -> bool:
        return SPECS[self._topics[partition.topic]].compact

    async def _patiently(self, work: Callable[[], Any], stop: asyncio.Event) -> Any:
        """Run blocking `work` in a thread, again and again while ClickHouse is away. _Stopping when told to stop meanwhile."""
        pause, most = BACKOFF_S
        while True:
            try:
                done = await asyncio.to_thread(work)
            except (
                Unavailable,
                BadQuestion,
            ) as error:  # none of our questions is wrong: the database is not as it should be
                if self.progress.waiting_since is None:
                    self.progress.waiting_since = time.monotonic()
                    logger.warning("waiting: %s", error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause)
                if stop.is_set():
                    raise _Stopping from None
                pause = min(pause * 2, most)
            else:
                if self.progress.waiting_since is not None:
                    logger.info("ClickHouse is back after %.1f s", time.monotonic() - self.progress.waiting_since)
                    self.progress.waiting_since = None
                return done


class _Stopping(Exception):
    """Told to stop while ClickHouse is away."""


class _Pause(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Newly assigned partitions stand still until the archiver has asked ClickHouse where to go on."""

    def __init__(self, consumer: AIOKafkaConsumer, assigned: asyncio.Event) -> None:
        self._consumer, self._assigned = consumer, assigned

    def on_partitions_revoked(self, revoked: list[TopicPartition]) -> None:
        """Nothing to do: what is under way may be stored by two, and shows once."""

    def on_partitions_assigned(self, assigned: list[TopicPartition]) -> None:
        if assigned:
            self._consumer.pause(*assigned)
        self._assigned.set()


def _key(finding: events.Finding) -> bytes:
    return (finding.agent or finding.project or "banksman").encode()


async def _acknowledged(to: bus.Publisher, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]]) -> None:
    """Publish, however long it takes: a finding or a dead letter that is lost would be silent."""
    while True:
        try:
            await to.put(0, key, value, list(headers))
        except Unavailable as error:
            logger.warning("%s", error)
            await asyncio.sleep(0.5)
        else:
            return


async def _until_started(start: Callable[[], Coroutine[Any, Any, None]], stop: asyncio.Event) -> None:
    """Start a Kafka client, however long the brokers are away."""
    said = False
    while not stop.is_set():
        try:
            await start()
        except (KafkaError, OSError) as error:
            if not said:
                logger.warning("waiting for Kafka: %s", error)
                said = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.5)
        else:
            return
