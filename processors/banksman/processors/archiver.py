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
import base64
import contextlib
import functools
import json
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError

from banksman import bus, codec, events
from banksman.errors import InvalidEvent, Unavailable
from banksman.processors import rows
from banksman.processors.findings import Findings, Key, SeenIds
from banksman.signing import Secret, Verifier, header_map, service_signer
from banksman.store.client import BadData, Store
from banksman.store.prices import load_prices
from banksman.topics import ARCHIVED, Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from aiokafka import ConsumerRecord

    from banksman.settings import ClickHouse, Kafka

logger = logging.getLogger("banksman")

GROUP = "archiver"
POLL_RECORDS = 20_000
POLL_MS = 100
BACKOFF_S = (0.1, 5.0)


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
    """Rows of one partition and one day."""

    partition: TopicPartition
    made: list[rows.Row]


class Archiver:
    """One archiver process. `instance`: its name in findings."""

    def __init__(self, kafka: Kafka, clickhouse: ClickHouse, secret: Secret, *, instance: str) -> None:
        self._kafka = kafka
        self._topics = {kafka.topic(topic): topic for topic in ARCHIVED}
        self._store = Store(clickhouse, reader=False, timeout=60)
        self._maker = rows.RowMaker(Verifier(secret), load_prices())
        self._signer = service_signer(secret, "archiver")
        self._findings = Findings(f"archiver#{instance}")
        self._seen = SeenIds(time.time_ns() // 1_000_000)
        self._assigned = asyncio.Event()
        self.progress = Progress()

    async def run(self, stop: asyncio.Event) -> None:
        """Archive until `stop` is set. Brokers and ClickHouse may be away for as long as they like."""
        consumer = AIOKafkaConsumer(
            **self._kafka.client(),
            group_id=self._kafka.topic_prefix + GROUP,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=POLL_RECORDS,
            max_partition_fetch_bytes=4 << 20,
            fetch_max_bytes=32 << 20,
            max_poll_interval_ms=86_400_000,  # ClickHouse may be away for long: that is no reason to leave the group
            session_timeout_ms=6000,
            heartbeat_interval_ms=1000,
        )
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
        try:
            while not stop.is_set():
                if self._assigned.is_set():
                    if storing is not None:
                        await storing  # what was read before the assignment is stored before ClickHouse is asked
                        storing = None
                    self._assigned.clear()
                    await self._seek(consumer, stop)
                polled = await consumer.getmany(timeout_ms=POLL_MS)
                self.progress.polls += 1
                if not polled:
                    continue
                blocks, letters = self._make(polled)
                if storing is not None:
                    await storing
                storing = asyncio.create_task(self._store_all(consumer, polled, blocks, letters, stop))
        finally:
            if storing is not None:
                await storing

    def _make(self, polled: dict[TopicPartition, list[ConsumerRecord]]) -> tuple[list[_Block], list[bytes]]:
        blocks: list[_Block] = []
        letters: list[bytes] = []
        for partition, records in polled.items():
            topic = self._topics[partition.topic]
            days: dict[int, _Block] = {}
            for record in records:
                try:
                    row = self._maker.row(record, topic, partition.topic)
                except InvalidEvent as error:
                    letters.append(dead_letter(record, str(error)))
                    continue
                if row is not None:
                    days.setdefault(row.day, _Block(partition, [])).made.append(row)
            blocks.extend(days.values())
        return blocks, letters

    async def _store_all(
        self,
        consumer: AIOKafkaConsumer,
        polled: dict[TopicPartition, list[ConsumerRecord]],
        blocks: list[_Block],
        letters: list[bytes],
        stop: asyncio.Event,
    ) -> None:
        try:
            await self._tell(blocks, letters, stop)
            await asyncio.gather(*(self._insert(block, stop) for block in blocks))
        except _Stopping:
            return  # nothing of this round is committed; the next archiver reads it again
        offsets = {partition: records[-1].offset + 1 for partition, records in polled.items()}
        self.progress.positions.update({f"{p.topic}/{p.partition}": offset for p, offset in offsets.items()})
        with contextlib.suppress(KafkaError):  # for the eyes of `status` only: ClickHouse knows where to go on
            await consumer.commit(offsets)

    async def _tell(self, blocks: list[_Block], letters: list[bytes], stop: asyncio.Event) -> None:
        """Findings and dead letters, acknowledged."""
        found: list[events.Finding] = []
        for block in blocks:
            topic = self._topics[block.partition.topic]
            checked = [
                row for row in block.made if topic in (Topic.ACTIONS, Topic.DECISIONS) and not row.values["replay"]
            ]
            asked = self._seen.to_look_up(checked)
            stored = await self._patiently(functools.partial(self._look_up, asked), stop) if asked else {}
            for row in block.made:
                found.extend(self._findings.about(row, topic))
            for row in checked:
                if self._seen.other_bytes(row, stored):
                    again = self._id_reuse(row, topic)
                    found.extend([again] if again else [])
        if letters:
            about = self._findings.see(
                time.time_ns() // 1_000_000, "dead", detector="dead_letters", severity="warn",
                title=f"{len(letters)} record(s) can never be stored", fingerprint="dead_letters",
                evidence={"first": json.loads(letters[0])["error"]},
                suggestion=f"read {self._kafka.topic(Topic.DEAD)}: each holds the record, where it lay and the reason",
            )  # fmt: skip
            found.extend([about] if about else [])
        waiting = [self._publish(self._alerts, _key(f), codec.encode(f), f) for f in found]
        now = events.rfc3339()
        for letter in letters:
            made = self._signer.headers(
                self._dead.topic, b"", letter, id=events.uuid7(), kind="dead", time=now, source=self._findings.source
            )
            waiting.append(_acknowledged(self._dead, b"", letter, made))
        await asyncio.gather(*waiting)
        self.progress.dead += len(letters)

    def _id_reuse(self, row: rows.Row, topic: Topic) -> events.Finding | None:
        values = row.values
        return self._findings.see(
            round(values["received"] * 1000), f"{topic}/{values['partition']}/{values['offset']}", detector="id_reuse",
            severity="warn", title=f"{values.get('agent')} used the id {values['id']} again, for other content",
            fingerprint=f"id_reuse/{values.get('agent')}", evidence={"id": values["id"], "kind": values["kind"]},
            suggestion="both records are stored and shown; find out which of the agent's programs repeats ids",
            **{key: values.get(key) for key in ("project", "agent", "session")},
        )  # fmt: skip

    def _look_up(self, keys: list[Key]) -> dict[Key, str]:
        found: dict[Key, str] = {}
        for first in range(0, len(keys), 1000):
            part = keys[first : first + 1000]
            answer = self._store.query(
                f"SELECT agent, toString(id) AS id, argMin(raw, received) AS raw FROM `{self._store.database}`.events "  # noqa: S608
                "WHERE agent IN {agents:Array(String)} AND id IN {ids:Array(UUID)} GROUP BY agent, id",
                {"agents": sorted({agent for agent, _ in part}), "ids": [id_ for _, id_ in part]},
            )
            found.update({(row["agent"], row["id"]): row["raw"] for row in answer})
        return found

    async def _publish(self, to: bus.Publisher, key: bytes, value: bytes, event: events.Event) -> None:
        kind = str(event.__struct_config__.tag)
        made = self._signer.headers(to.topic, key, value, id=event.id, kind=kind, time=event.time, source=event.source)
        await _acknowledged(to, key, value, made)

    async def _insert(self, block: _Block, stop: asyncio.Event) -> None:
        """Store a block. What ClickHouse refuses for its content is halved down to the one bad row, which is a dead letter."""
        lines = b"\n".join([rows.encode(row.values) for row in block.made])
        try:
            await self._patiently(lambda: self._store.insert("events", lines), stop)
        except BadData as error:
            if len(block.made) == 1:
                values = block.made[0].values
                letter = codec.encode(
                    events.Dead(
                        v=1, time=events.rfc3339(), error=f"ClickHouse refused the row: {error}",
                        topic=block.partition.topic, partition=values["partition"], offset=values["offset"],
                        value=base64.b64encode(values["raw"].encode()).decode(),
                    )
                )  # fmt: skip
                made = self._signer.headers(
                    self._dead.topic, b"", letter, id=events.uuid7(), kind="dead", time=events.rfc3339(),
                    source=self._findings.source,
                )  # fmt: skip
                await _acknowledged(self._dead, b"", letter, made)
                self.progress.dead += 1
                return
            middle = len(block.made) // 2
            for half in (block.made[:middle], block.made[middle:]):
                await self._insert(_Block(block.partition, half), stop)
        else:
            self.progress.stored += len(block.made)

    async def _seek(self, consumer: AIOKafkaConsumer, stop: asyncio.Event) -> None:
        """Put every assigned partition behind the last record of it that ClickHouse has."""
        assigned = list(consumer.assignment())
        try:
            known = await self._patiently(self._highest, stop)
        except _Stopping:
            return
        first = await consumer.beginning_offsets(assigned)
        for partition in assigned:
            wanted = known.get((str(self._topics[partition.topic]), partition.partition), -1) + 1
            if wanted < first[partition] and not self._kafka_may_forget(partition.topic):
                logger.error("%s: records %d to %d are gone from Kafka", partition, wanted, first[partition] - 1)
                lost = self._findings.see(
                    time.time_ns() // 1_000_000, f"{partition.topic}/{partition.partition}/{wanted}", detector="gap",
                    severity="page", title=f"{first[partition] - wanted} records of {partition.topic} were never archived",
                    fingerprint=f"gap/{partition.topic}/{partition.partition}",
                    evidence={"from": wanted, "to": first[partition] - 1},
                    suggestion="Kafka's retention is shorter than the archiver was away; make it longer",
                )  # fmt: skip
                if lost:
                    await self._publish(self._alerts, _key(lost), codec.encode(lost), lost)
            consumer.seek(partition, max(wanted, first[partition]))
        consumer.resume(*assigned)

    def _kafka_may_forget(self, full_topic: str) -> bool:
        """Compaction moves the beginning of `control` and `limits`: what it removes was replaced."""
        return self._topics[full_topic] in (Topic.CONTROL, Topic.LIMITS)

    def _highest(self) -> dict[tuple[str, int], int]:
        answer = self._store.query(
            f"SELECT topic, partition, max(offset) AS highest FROM `{self._store.database}`.events GROUP BY topic, partition"  # noqa: S608
        )
        return {(row["topic"], row["partition"]): row["highest"] for row in answer}

    async def _patiently(self, work: Callable[[], Any], stop: asyncio.Event) -> Any:
        """Run blocking `work` in a thread, again and again while ClickHouse is away. _Stopping when told to stop meanwhile."""
        pause, most = BACKOFF_S
        while True:
            try:
                done = await asyncio.to_thread(work)
            except Unavailable as error:
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


def dead_letter(record: ConsumerRecord, why: str) -> bytes:
    """A record that can never be stored, whole, with the reason."""
    return codec.encode(
        events.Dead(
            v=1, time=events.rfc3339(), error=why, topic=record.topic, partition=record.partition, offset=record.offset,
            key=(record.key or b"").decode("utf-8", "backslashreplace"),
            value=base64.b64encode(record.value or b"").decode(), headers=header_map(record.headers),
        )
    )  # fmt: skip


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
