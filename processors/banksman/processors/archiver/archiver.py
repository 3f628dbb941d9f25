"""All topics into ClickHouse, each record shown exactly once.

The rows hold their own offsets: when a partition is assigned, ClickHouse is asked for the highest that it has, and reading
goes on behind it. One insert is one block of one day, there or not there. So a crash at any point costs nothing; two
archivers after a freeze can store a record twice, and ReplacingMergeTree and the views take that as one.
Findings are acknowledged before the rows that they are about are stored: a crash in between repeats them under the same ids.

    poll ─► rows ─► findings acknowledged ─► dead letters acknowledged ─► insert (a thread) ─► offsets committed
            the next poll's rows are made while the inserts run, and what comes behind that is fetched meanwhile
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaError

from banksman import bus, provision
from banksman.errors import BadDeployment, Unavailable
from banksman.processors.archiver import continuity, letters, pieces, positions, rows, seen
from banksman.processors.archiver.blocks import Block, blocks
from banksman.processors.archiver.findings import Findings
from banksman.processors.archiver.gauges import Gauges
from banksman.processors.archiver.patience import Patience, Stopping
from banksman.processors.archiver.telling import Teller
from banksman.signing import Secret, Verifier, service_signer
from banksman.store.client import BadData, Store
from banksman.store.prices import load_prices
from banksman.topics import ARCHIVED, SPECS, Topic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aiokafka.structs import OffsetAndMetadata

    from banksman import events
    from banksman.batches import Batch
    from banksman.processors.archiver.letters import Letter
    from banksman.settings import ClickHouse, Kafka

logger = logging.getLogger("banksman")

GROUP = "archiver"
POLL_MS = 100
FULL_ROUND = 2_000
"""Records from which on a round is worth its part, and the next follows at once."""
PACE_S = 0.15
"""Least time behind a round that stored something and was not full: each makes a part, which ClickHouse has to merge."""
SURE_S = 10.0
"""How long a log has to look like another one than was archived before the archiver refuses it."""

Polled = dict[TopicPartition, "Sequence[Batch]"]


@dataclass(frozen=True)
class _Round:
    """What one poll brought. `records`: those that have rows or letters."""

    next: Mapping[TopicPartition, int]
    """Where each partition goes on behind it."""
    records: int
    blocks: Sequence[Block]
    letters: Sequence[Letter]
    gaps: Sequence[events.Finding]


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
        self._seen = seen.SeenIds()
        self._assigned = asyncio.Event()
        self._next: dict[TopicPartition, int] = {}
        self._highest: dict[tuple[str, int], int] = {}
        self._uncommitted: dict[TopicPartition, OffsetAndMetadata] = {}
        self._begun = False
        self.gauges = Gauges({full: topic.value for full, topic in self._topics.items()})

    def not_ready(self) -> str:
        """Why nothing is archived at the moment, or ""."""
        if not self._begun:
            return "not begun: Kafka or ClickHouse is awaited"
        return "ClickHouse is away" if self.gauges.away_s() else ""

    async def run(self, stop: asyncio.Event) -> None:
        """Archive until `stop` is set. Brokers and ClickHouse may be away for as long as they like."""
        pieces.hand_on()
        consumer = bus.consumer(
            self._kafka,
            group_id=self._group,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=8 << 20,
            fetch_max_bytes=pieces.FETCH,
            max_poll_interval_ms=86_400_000,  # ClickHouse may be away for long: that is no reason to leave the group
            session_timeout_ms=6000,
            heartbeat_interval_ms=1000,
            # What an agent did and what was decided about it stand in partitions of one number: one archiver has both.
            partition_assignment_strategy=(RangePartitionAssignor,),
        )
        producer = bus.producer(self._kafka)
        self._patience = Patience(stop)
        self.gauges.away_s = self._patience.waited_s
        watching = asyncio.create_task(self.gauges.watch(consumer), name="gauges")
        try:
            await self._patience.start(consumer.start)
            await self._patience.start(producer.start)
            self._teller = Teller(producer, self._kafka, self._signer, self._findings.source)
            consumer.subscribe(list(self._topics), listener=_Pause(consumer, self._assigned))
            await self._patience.within(self._work(consumer, stop))
        except Stopping:
            return  # what is under way is not committed; the next archiver reads it again
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await bus.goodbye(consumer.stop())
            await bus.goodbye(producer.stop())
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
                    await self._seek(consumer)
                await asyncio.sleep(max(0.0, not_before - time.monotonic()))
                try:
                    polled: Polled = await consumer.getmany(timeout_ms=POLL_MS)
                except KafkaError as error:  # what was fetched with it may be lost: read again from where we are
                    logger.warning("reading: %s: %s", type(error).__name__, error)
                    self._assigned.set()
                    not_before = time.monotonic() + 0.5
                    continue
                if self._assigned.is_set():
                    continue
                if any(several[0].first < self._next[partition] for partition, several in polled.items()):
                    self._assigned.set()  # the log begins anew: whether it is another one is looked at before it is read
                    continue
                if not polled:
                    await self._teller.tell(self._findings.overdue(_now_ms()))
                    continue
                made = await self._make(polled)
                del polled  # its records are of no use any more, and many
                if made.blocks:  # a round of heartbeats makes no part, and must not hold up the next
                    not_before = 0.0 if made.records >= FULL_ROUND else time.monotonic() + PACE_S
                if storing is not None:
                    await storing
                storing = asyncio.create_task(self._finish(consumer, made))
        except asyncio.CancelledError:
            if storing is not None:
                storing.cancel()
            raise
        finally:
            if storing is not None:
                await storing

    async def _make(self, polled: Polled) -> _Round:
        """Rows are made in the loop: a thread of their own costs more in turns of the interpreter's lock than it gains. Between
        two pieces the loop turns once: the next fetch comes in meanwhile, and what is under way goes on.
        """
        gaps: list[events.Finding] = []
        for partition, several in polled.items():
            gaps += self._gap(partition, several[0])
            self._next[partition] = several[-1].last + 1
        following = {partition: self._next[partition] for partition in polled}
        partitions: list[list[rows.Rows]] = []
        dead: list[Letter] = []
        records = 0
        for partition, several in polled.items():
            topic = self._topics[partition.topic]
            partitions.append([])
            for piece in pieces.pieces(several):
                await asyncio.sleep(0)
                made, buried = self._maker.rows(piece, topic, partition.topic, partition.partition)
                partitions[-1] += made
                dead += buried
                records += sum(map(len, made)) + len(buried)
        return _Round(following, records, blocks(partitions), dead, gaps)

    def _gap(self, partition: TopicPartition, first: Batch) -> list[events.Finding]:
        """Whether a partition goes on where it was left. Compaction leaves gaps of its own."""
        expected, found = self._next[partition], first.first
        if found == expected or SPECS[self._topics[partition.topic]].compact:
            return []
        logger.error("%s goes on at %d instead of %d", partition, found, expected)
        told = self._findings.gap(first.received_ms, partition.topic, partition.partition, expected, found, _now_ms())
        return [told] if told else []

    async def _finish(self, consumer: AIOKafkaConsumer, made: _Round) -> None:
        """Tell, store, commit."""
        await self._teller.tell(await self._find(made), made.letters)
        for block in made.blocks:
            await self._insert(block)
            self._highest.update(block.highest())
        self.gauges.stored(made.next, made.records, len(made.letters), len(made.blocks))
        commits = {
            partition: positions.commit_of(offset, self._highest.get(positions.name_of(self._topics, partition), -1))
            for partition, offset in made.next.items()
        }
        await self._commit(consumer, commits)

    async def _commit(self, consumer: AIOKafkaConsumer, commits: Mapping[TopicPartition, OffsetAndMetadata]) -> None:
        """What cannot be committed now is committed with the next round: ClickHouse knows where to go on, but whoever looks
        at the group from outside would take a partition that is quiet from now on for one that waits.
        """
        self._uncommitted.update(commits)
        try:
            await consumer.commit(self._uncommitted)
        except KafkaError as error:
            logger.debug("not committed: %s", error)
        else:
            self._uncommitted.clear()

    async def _find(self, made: _Round) -> list[events.Finding]:
        """What there is to say about a round."""
        now, found = _now_ms(), list(made.gaps)
        every = [part for block in made.blocks for part in block.parts]
        for part in every:
            found += self._findings.about(part, now)
        live = [part.live() for part in every if part.topic in (Topic.ACTIONS, Topic.DECISIONS)]
        perhaps = self._seen.perhaps_used([part for part in live if len(part)])
        if perhaps:
            entries = sorted((part.entry(place) for part, place in perhaps), key=lambda entry: entry.order)
            stored = await self._patience.ask(partial(seen.stored_digests, self._store, entries))
            again = [self._findings.id_reuse(entry, now) for entry in seen.reused(entries, stored)]
            found += [finding for finding in again if finding]
        if made.letters:
            found += self._about_letters(made.letters, made.records)
        return [*found, *self._findings.overdue(now)]

    def _about_letters(self, several: Sequence[Letter], records: int) -> list[events.Finding]:
        about = self._findings.dead_letters(several, records, self._teller.dead_topic, _now_ms())
        return [about] if about else []

    async def _insert(self, block: Block, *, refused: bool = False) -> None:
        """Store a block. What ClickHouse refuses for its content is halved down to the one bad row. If that is refused again,
        alone and over a new connection, it is a dead letter.
        """
        names, data = await asyncio.to_thread(block.encoded)
        try:
            await self._patience.ask(partial(self._store.insert, "events", names, data))
        except BadData as error:
            if len(block) > 1:
                for half in block.halves():
                    await self._insert(half)
            elif not refused:
                self._store.close()
                await self._insert(block, refused=True)
            else:
                entry = next(block.entries())
                letter = letters.of_row(str(error), self._kafka.topic(entry.topic), entry)
                await self._teller.tell(self._about_letters([letter], 1), [letter])

    async def _seek(self, consumer: AIOKafkaConsumer) -> None:
        """Put every assigned partition behind the last record of it that ClickHouse has. BadDeployment: it is another one."""
        wrong_since: float | None = None
        while self._assigned.is_set():
            self._assigned.clear()
            try:
                there = await self._patience.ask(partial(positions.stored, self._store))
                commits = await provision.committed(self._kafka, self._group)
                names = {where: positions.name_of(self._topics, where) for where in consumer.assignment()}
                ends = await consumer.end_offsets(list(names))
                for partition, name in names.items():
                    self._highest[name] = there.highest(name)
                    following = positions.go_on(self._highest[name], commits.get(partition), ends[partition])
                    continuity.check_end(partition, following, ends[partition])
                    self._next[partition] = following
                await continuity.check(consumer, names, there, self._received_at)
                for partition in names:
                    consumer.seek(partition, self._next[partition])
                    consumer.resume(partition)
                self._seen.forgotten_up_to(there.newest_ms)
                self.gauges.begin({partition: self._next[partition] for partition in names})
                self._uncommitted = {}
                behind = {
                    partition: positions.commit_of(self._next[partition], self._highest[name])
                    for partition, name in names.items()
                    if partition not in commits or commits[partition].offset < self._next[partition]
                }
                if behind:
                    await self._commit(consumer, behind)
                self._begun = True
            except BadDeployment as error:
                # After an election a leader may not know for a moment how far its log is acknowledged.
                wrong_since = wrong_since or time.monotonic()
                if time.monotonic() - wrong_since > SURE_S:
                    raise
                logger.warning("looking again: %s", error)
                self._assigned.set()
                await self._patience.pause(1)
            except (KafkaError, Unavailable) as error:
                logger.warning("assigned partitions: %s", error)
                self._assigned.set()
                await self._patience.pause(0.5)

    async def _received_at(self, places: Mapping[positions.Place, int]) -> Mapping[positions.Place, int]:
        return await self._patience.ask(partial(continuity.received_at, self._store, places))


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


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
