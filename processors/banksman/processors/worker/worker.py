"""One worker: Faust brings the records and keeps the tables, the engine works through them, the outbox tells.

    actions ─┐                          ┌─► alerts, limits, control   (acknowledged first)
             ├─► engine: every detector ─┼─► changelogs of states      (then)
    decisions┘                          └─► changelog of `sources`     (last), and only then the batch is done

Faust marks a batch as done when its body ends, also when it ends with an exception: so a batch that fails ends the process,
and is delivered to the next one. A worker that was away for longer than its session may have been replaced meanwhile. It looks
before it writes, and ends too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter, defaultdict, deque
from typing import TYPE_CHECKING, Any, NoReturn

from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError

from banksman import bus
from banksman.errors import BrokerAway, Unavailable
from banksman.metrics import Measure
from banksman.processors.detector import Sighting
from banksman.processors.worker import frame, tables, transport
from banksman.processors.worker.engine import SOURCES, Engine, Record
from banksman.processors.worker.outbox import Outbox
from banksman.processors.worker.watermarks import Watermarks
from banksman.signing import Verifier
from banksman.stamps import boottime
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aiokafka import AIOKafkaProducer

    from banksman.processors.detector import Detector
    from banksman.processors.worker.frame import Laid
    from banksman.processors.worker.known import Known
    from banksman.processors.worker.states import Encoded
    from banksman.settings import Kafka
    from banksman.settings import Worker as Settings
    from banksman.signing import Secret
    from banksman.store.prices import PriceTable

READ = (Topic.ACTIONS, Topic.DECISIONS)
AT_MOST = 5000
"""Records that are worked through, and written, before the next. Each state that they change is written once: twice as many
change little more.
"""
PIECE_S = 0.05
AT_ONCE = 6 << 20
"""The same in bytes: read, they may take twenty times as much."""
WITHIN_S = 0.05
TICK_S = 0.25
SILENT_S = 30.0
"""Without a mark for so long nobody may go by what is counted."""
STUCK_S = 60.0
"""Nothing moves for so long, though Kafka answers: this process ends. A start anew heals more than anybody knows of."""
TOO_OFTEN_S = 20.0
"""Two workers under one name take the partitions from each other, several times within this."""
REPLACED, BROKEN = 70, 1
"""Exit codes: for Kafka's sake, or because it stood still; and because of an error of ours."""
_log = logging.getLogger("banksman")


class Worker:
    """Everything but the process around it. Make it inside of the running loop."""

    def __init__(
        self, kafka: Kafka, secret: Secret, settings: Settings, name: str, laid: Laid, known: Known,
        producer: AIOKafkaProducer, detectors: Iterable[Detector[Any]], prices: PriceTable,
    ) -> None:  # fmt: skip
        self._kafka, self._known, self._session_s, self._name = kafka, known, settings.worker_session_s, name
        self._laid = laid
        self._topics = {kafka.topic(topic): topic for topic in READ}
        self._outbox = Outbox(producer, kafka, secret, name, known)
        self.app = frame.app(kafka, settings, name, laid)
        detectors = list(detectors)
        self._tables = {one: frame.table(self.app, one, laid) for one in (SOURCES, *(each.name for each in detectors))}
        held = {one: table.data for one, table in self._tables.items()}
        verifier = tables.Store.verifier = Verifier(secret)
        self.engine = Engine(verifier, prices, known.policy_of, detectors, held, laid.partitions)
        self._marks = Watermarks(kafka, self.app.conf.id, self._topics)
        self._one_at_a_time = asyncio.Lock()
        self._seen_alive = boottime()
        self._looked_at: dict[int, set[str] | None] = {}
        """Of our partitions, the projects whose policy has changed since their states were looked at; None: all of them."""
        self.ready = asyncio.Event()
        """Set when a mark has said that its partitions are counted, or when there are none for it."""
        self._marked = 0.0
        self._has_partitions = False
        self._new_partitions = False
        self._findings: Counter[str] = Counter(dict.fromkeys((one.name for one in detectors), 0))
        self._given: deque[float] = deque(maxlen=6)
        """When partitions were dealt out, of the last times."""
        revoked: Any = self._revoked
        assigned: Any = self._assigned
        self.app.on_partitions_revoked.connect(revoked, weak=False)
        self.app.on_rebalance_complete.connect(assigned, weak=False)
        topic = self.app.topic(*self._topics, key_type=bytes, value_type=bytes, partitions=laid.partitions)
        self.app.agent(topic, name="detect")(self._detect)

    def not_ready(self) -> str:
        """Why nothing is counted at the moment, or ""."""
        if not self.ready.is_set():
            return "what waits is not counted yet"
        silent = boottime() - self._marked
        if self._has_partitions and silent > SILENT_S:
            return f"nothing was seen to be counted for {silent:.0f} s"
        return ""

    def measures(self) -> Iterable[Measure]:
        """For `/metrics`."""
        for name, about, count in (
            ("counted", "Records that were counted.", lambda: self.engine.counted),
            ("skipped", "Records that count for nothing: forged, no event, sent again.", lambda: self.engine.skipped),
            ("misplaced", "Records in a partition that their key does not belong in.", lambda: self.engine.misplaced),
        ):
            yield Measure(name, about, count, counter=True)
        yield Measure(
            "findings", "What was seen, by detector.",
            lambda: {(detector,): count for detector, count in self._findings.items()}, labels=("detector",), counter=True,
        )  # fmt: skip
        yield Measure(
            "states", "States that are kept, by detector.",
            lambda: {(name,): len(table.data) for name, table in self._tables.items()}, labels=("detector",),
        )  # fmt: skip
        yield Measure("partitions", "Partitions that are ours.", lambda: len(self._looked_at))
        yield Measure("lag", "Records that were there at the last look and are not counted.", self._marks.lag)
        yield Measure(
            "waiting_seconds", "For how long at least the oldest of them has been waiting.", self._marks.waiting_s
        )

    async def run(self) -> None:
        """Work until cancelled. What it cannot go on after ends the process: Faust may wait for ever when it is stopped."""
        self._seen_alive = boottime()
        watching = asyncio.gather(self._pulse(), self._see_to_it_that_it_moves())
        try:
            async with self.app:
                await asyncio.gather(watching, self._tick(), self.app.wait_until_stopped())
                raise RuntimeError("Faust has stopped")
        except Exception as error:  # noqa: BLE001 - whatever it is, this process must not go on
            _end_because("a worker cannot go on", error)
        finally:
            watching.cancel()

    async def _detect(self, stream: Any) -> None:
        async for batch in stream.take_events(frame.FETCHES, within=WITHIN_S):
            try:
                async with self._one_at_a_time:
                    await self._work([event.message for event in batch])
            except Exception as error:  # noqa: BLE001 - whatever it is, this process must not go on
                _end_because("a batch failed, and the next worker gets it again", error)
            except BaseException:  # told to end: Faust would commit what it was at
                self.app.consumer.forget()  # type: ignore[attr-defined]
                raise

    async def _work(self, batch: list[transport.Fetch]) -> None:
        self._look_alive()
        done: dict[tuple[str, int], int] = {}
        for generation, piece in _pieces(batch):
            await self._know_states()
            # What waited here while its partition went to another worker is that one's: its states are not here any more, and
            # made anew they would say that nothing was ever spent. And what waited while partitions were dealt out comes again,
            # from what is committed on: to take the later half of it now would be to pass over the earlier. So nothing comes
            # between this look and the engine.
            dealt_out_since = generation != self.app.consumer_generation_id
            ours = [] if dealt_out_since else [record for record in piece if record.partition in self._looked_at]
            topics = self._topics
            self.engine.take(
                Record(
                    topics[one.topic], one.topic, one.partition, one.offset, one.timestamp, one.key, one.value, one.headers
                )
                for one in ours
            )  # fmt: skip
            await asyncio.sleep(0)  # so that large records are not taken for a freeze
            await self._write()
            done.update(((one.topic, one.partition), one.offset) for one in ours)
        for (topic, partition), offset in done.items():
            self._marks.worked(topic, partition, offset)

    async def _write(self) -> None:
        """What was seen, then the states that have seen it, then which records those were."""
        by_table: dict[str, list[Encoded]] = defaultdict(list)
        for state in self.engine.encoded():
            by_table[state.name].append(state)
        self._look_alive()
        await self._outbox.tell(self.engine.outputs)
        self._findings.update(one.detector for one in self.engine.outputs if isinstance(one.what, Sighting))
        last = by_table.pop(SOURCES, [])
        await asyncio.gather(*(self._write_table(name, several) for name, several in by_table.items()))
        await self._write_table(SOURCES, last)
        self.engine.written()

    async def _write_table(self, name: str, several: list[Encoded]) -> None:
        if not several:
            return
        self._look_alive()
        table = self._tables[name]
        await self._outbox.write(table.changelog_topic.get_topic_name(), several)
        for state in several:
            table.data.put(state.key, state.value, state.partition)

    async def _tick(self) -> None:
        """Time passes for the states: up to where their partitions are worked through, never further."""
        while True:
            await asyncio.sleep(TICK_S)
            if self.app.rebalancing or not self._has_partitions:
                continue
            try:
                async with self._one_at_a_time:
                    await self._know_states()
                    reached = await self._let_time_pass()
                await self._tell_marks(reached)
                await self._marks.look()
            except (KafkaError, OSError, BrokerAway) as error:  # a TimeoutError is an OSError
                _log.warning("where the partitions end is not known: %s: %s", type(error).__name__, error)
                await self._marks.close()

    async def _let_time_pass(self) -> dict[int, float]:
        """-> the partitions that are counted, and up to how many ms ago."""
        reached = self._marks.reached()
        if not reached:
            return {}
        changed, began = self._known.changed(), time.monotonic()
        for partition, known in self._looked_at.items():
            self._looked_at[partition] = known if known is None else known | changed
        for partition, (until_ms, _lag) in reached.items():
            await self._give_way(self.engine.lapse(until_ms, partition, self._looked_at.get(partition)))
            self._looked_at[partition] = set()
        await self._write()
        took_ms = (time.monotonic() - began) * 1000
        return {partition: lag_ms + took_ms for partition, (_until, lag_ms) in reached.items()}

    async def _tell_marks(self, reached: dict[int, float]) -> None:
        began = time.monotonic()
        for partition, lag_ms in reached.items():
            try:
                await self._outbox.watermark(partition, lag_ms + (time.monotonic() - began) * 1000)
            except Unavailable as error:
                _log.warning("%s", error)
            else:
                self.ready.set()
                self._marked = boottime()

    async def _give_way(self, work: Iterator[None]) -> None:
        """Do what may take long, piece by piece, so that it is not taken for a freeze."""
        until = time.monotonic() + PIECE_S
        for _ in work:
            if time.monotonic() > until:
                await asyncio.sleep(0)
                self._look_alive()
                until = time.monotonic() + PIECE_S

    # ── being one of several ──

    async def _revoked(self, _app: Any, *_what: Any, **_more: Any) -> None:
        self._has_partitions = False

    async def _assigned(self, _app: Any, *_what: Any, **_more: Any) -> None:
        self._new_partitions = self._has_partitions = True

    async def _know_states(self) -> None:
        """After a rebalance: the tables hold other states than before."""
        while self._new_partitions:
            committed = await self._marks.committed()
            self._new_partitions = False
            ours = {where.partition for where in self.app.consumer.assignment() if where.topic in self._topics}
            self._marks.assigned(ours, committed)
            self._looked_at = dict.fromkeys(ours)
            await self._give_way(self.engine.begin())
            _log.info("partitions %s are ours", ", ".join(map(str, sorted(ours))) or "none")
            self._given.append(boottime())
            if len(self._given) == self._given.maxlen and self._given[-1] - self._given[0] < TOO_OFTEN_S:
                _log.warning(
                    "partitions were dealt out %d times within %.0f s, and little is counted meanwhile: does another worker "
                    "run under the name %r (BANKSMAN_WORKER)?", len(self._given), self._given[-1] - self._given[0], self._name,
                )  # fmt: skip
                self._given.clear()
            if not ours:
                self.ready.set()

    async def _pulse(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            self._look_alive()

    async def _see_to_it_that_it_moves(self) -> None:
        """End where nothing is counted, read back or found to be counted, for no reason of Kafka's: Faust waits, once in a few
        hundred rebalances, for what will never come, and an agent with a budget waits for this worker.
        """
        moved, since, answered = self._moved(), boottime(), False
        patience = (STUCK_S + self._session_s) / 2  # for so long others may keep a rebalance waiting
        while True:
            await asyncio.sleep(TICK_S)
            now = self._moved()
            if (now != moved or self._is_idle()) and self._marks.stands_s() < patience:
                moved, since, answered = now, boottime(), False
            if boottime() - since < patience:
                continue
            # Asked twice: after an outage nothing has moved either, and it needs a moment to.
            before, answered = answered, await self._kafka_answers()
            if before and answered:
                _log.error("nothing moves, though Kafka answers: ends, to begin anew")
                os._exit(REPLACED)
            since = boottime()

    def _moved(self) -> tuple[float, ...]:
        """Another one whenever something was done."""
        recovery: Any = self.app.tables.recovery  # type: ignore[attr-defined]
        read_back = sum(offset or 0 for offset in recovery.active_offsets.values())  # None: nothing was read of it yet
        return self._marked, self.engine.counted + self.engine.skipped, read_back

    def _is_idle(self) -> bool:
        """Whether others have all partitions."""
        return self._has_partitions and not (self._new_partitions or self._looked_at or self.app.rebalancing)

    async def _kafka_answers(self) -> bool:
        """Whether every partition has somebody who leads it: else it is that which is waited for."""
        names = (*self._topics, *self.app.tables.changelog_topics)
        try:
            async with asyncio.timeout(2 * frame.REQUEST_S):
                await bus.ends_of(
                    self._kafka, [TopicPartition(n, p) for n in names for p in range(self._laid.partitions)]
                )
        except (KafkaError, OSError) as error:  # a TimeoutError is an OSError
            _log.warning("nothing moves, and Kafka does not answer: %s: %s", type(error).__name__, error)
            return False
        return True

    def _look_alive(self) -> None:
        """End where this process stood still for longer than its session: another worker has its partitions, perhaps."""
        now = boottime()
        if now - self._seen_alive > self._session_s:
            _log.error("stood still for %.1f s, longer than the session of a worker: ends", now - self._seen_alive)
            os._exit(REPLACED)
        self._seen_alive = now


def _end_because(what: str, error: Exception) -> NoReturn:
    away = isinstance(error, KafkaError) and (error.retriable or isinstance(error, KafkaConnectionError))
    away |= isinstance(error, AssertionError) and "bootstrap" in str(error)  # aiokafka's
    if away or isinstance(error, (ConnectionError, TimeoutError, BrokerAway)):
        _log.error("%s: %s: %s", what, type(error).__name__, error)
        os._exit(REPLACED)
    _log.error("%s", what, exc_info=error)
    os._exit(BROKEN)


def _pieces(batch: list[transport.Fetch]) -> Iterator[tuple[int | None, list[Any]]]:
    """Of its records, so many at a time, and so many bytes, with the generation of the group that they were fetched in."""
    piece: list[Any] = []
    size, generation = 0, batch[0].generation_id
    for fetch in batch:
        if fetch.generation_id != generation:
            yield generation, piece
            piece, size, generation = [], 0, fetch.generation_id
        for record in fetch.records:
            piece.append(record)
            size += transport.size_of(record)
            if size >= AT_ONCE or len(piece) >= AT_MOST:
                yield generation, piece
                piece, size = [], 0
    yield generation, piece
