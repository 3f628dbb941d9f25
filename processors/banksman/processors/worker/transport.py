"""Faust's aiokafka transport, which hands on what was fetched of a partition as one message, not record by record.

    aiokafka ─► fetched of each partition ─► pieces of TOGETHER records ─► one Fetch each ─► streams, tables
                                                                            │
    what a group goes on with ◄─ the last of those that are done in a row ◄─┘

A record by itself takes Faust fifty microseconds and more: four tasks, an event, a place in two sets. Together they share that.
And there is a bound of bytes on what waits in a stream.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

import faust
from faust.tables import manager, recovery
from faust.transport.drivers import TRANSPORTS, aiokafka
from faust.types.tuples import ConsumerMessage
from mode.utils.queues import ThrowableQueue

from banksman.failover import ready_for_failover

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SCHEME = "banksman"
TOGETHER = 250
"""Records in a message: whoever waits for room, or looks for a rebalance, does so between two of them."""
FETCH_WAIT_MS = 100
"""For so long a broker waits for something new. There is one request at a time to each broker, and it asks for what is not held
here already: in Faust's second and a half of waiting where there is nothing, a worker that catches up works through what it
holds of the other partitions, and stands still.
"""
WAITING, OBJECTS = 32 << 20, 1000
"""Bytes of records that wait in a stream: Faust counts messages alone, and each record may have two megabytes, be it in its
headers. So many come on top for the objects of each.
"""


class Fetch(ConsumerMessage):
    """What was fetched of a partition, or a piece of it. `records`: aiokafka's, in order. It stands where the last one does."""

    __slots__ = ("records", "size")

    def __init__(self, tp: Any, records: Sequence[Any], generation: int) -> None:
        last = records[-1]
        super().__init__(
            last.topic, last.partition, last.offset, last.timestamp / 1000, last.timestamp_type, None, None, b"", None,
            tp=tp, generation_id=generation,
        )  # fmt: skip
        self.records = records
        self.size = sum(map(size_of, records)) + OBJECTS * len(records)

    def on_final_ack(self, consumer: Any) -> bool:
        """What was done is kept until it is committed, which may take long: its place, not its records."""
        self.records = ()
        return super().on_final_ack(consumer)


class Thread(aiokafka.AIOKafkaConsumerThread):
    """Its client goes on when one of several brokers hangs, as all of ours do."""

    def _create_consumer(self, loop: asyncio.AbstractEventLoop) -> Any:
        made = super()._create_consumer(loop)
        ready_for_failover(made._client)  # noqa: SLF001 - there is no public way to it
        made._fetch_max_wait_ms = FETCH_WAIT_MS  # noqa: SLF001 - Faust has a number of its own
        return made


class Consumer(aiokafka.Consumer):
    """Delivers fetches, none that Faust would throw away, and commits up to where they are done in a row.

    Gaps around a recovery of tables, each of which loses records until the next start:

    * A fetch goes by the set of partitions that are active, while others change it. At the end of a recovery it is empty for a
      moment, which means all of them: records of the streams are taken, and thrown away. A fetch gets a set of its own.
    * The partitions of the streams are resumed, then the flow, which empties the queues of the streams: what was delivered in
      between is gone. They are resumed with the flow.
    * Of a partition of which nothing was ever committed aiokafka seeks nowhere: it goes on behind what was thrown away. It
      begins at its beginning.

    And one that outlives the recovery: a stream whose queue was full, and is emptied, lets its partition be fetched again, be
    it paused. It stays paused, and what comes of a paused partition all the same is fetched again when it is not any more.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: set[Any] = set()
        self._under_way: defaultdict[Any, deque[Fetch]] = defaultdict(deque)
        """By partition, what was delivered since it was dealt out and is not committed, in that order."""

    def _new_consumer_thread(self) -> Thread:
        return Thread(self, loop=self.loop, beacon=self.beacon)

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:  # noqa: ASYNC109 - Faust's signature
        fetched = await super()._getmany(None if active_partitions is None else set(active_partitions), timeout)
        return {
            tp: [records[at : at + TOGETHER] for at in range(0, len(records), TOGETHER)]
            for tp, records in fetched.items()
        }

    def _to_message(self, tp: Any, record: Any) -> Fetch:
        return Fetch(tp, record, self.app.consumer_generation_id)

    async def _drain_messages(self, fetcher: Any) -> None:
        """Faust's, for fetches: it knows of every offset what became of it."""
        try:
            while not (self.should_stop or fetcher.should_stop):
                await self.sleep(0)
                async for tp, fetch in self.getmany(timeout=1.0):
                    await self._deliver(tp, fetch)
        except BaseException as error:
            stopped = isinstance(error, (*self.consumer_stopped_errors, asyncio.CancelledError))
            if not (stopped and self.app.should_stop):
                raise

    async def _deliver(self, tp: Any, fetch: Any) -> None:
        """To whoever reads the partition, unless a rebalance comes first, or it was read before."""
        read = self._read_offset[tp]
        if read is not None and fetch.offset < read:
            return
        if tp in self._paused_partitions:
            await self.seek(tp, fetch.records[0].offset)
            return
        if self.app.topics.acks_enabled_for(tp.topic):
            self._under_way[tp].append(fetch)
        await self.wait_first(self.callback(fetch), self.suspend_flow.wait())
        self._read_offset[tp] = fetch.offset

    def _new_offset(self, tp: Any) -> int | None:
        """Where the group goes on: behind what is done in a row. What was not delivered is never done, and comes again."""
        under_way, done = self._under_way[tp], None
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        while under_way and under_way[0].acked:
            done = under_way.popleft().offset + 1
        return done

    def resume_partitions(self, tps: Iterable[Any]) -> None:
        """Changelogs at once; the others with the flow."""
        changelogs = {tp for tp in tps if tp.topic in self.app.tables.changelog_topics}
        self._held |= set(tps) - changelogs
        super().resume_partitions(changelogs)

    def on_buffer_drop(self, tp: Any) -> None:
        """There is room in a stream's queue again."""
        if tp in self._paused_partitions:
            self._buffered_partitions.discard(tp)
        else:
            super().on_buffer_drop(tp)

    def forget(self) -> None:
        """What was delivered and is not committed is not done, whatever is said of it from here on."""
        self._under_way.clear()

    def pause_partitions(self, tps: Iterable[Any]) -> None:
        """At once."""
        self._held -= set(tps)
        super().pause_partitions(tps)

    def resume_flow(self) -> None:
        """The queues are empty, and what is delivered now stays."""
        super().resume_flow()
        held, self._held = self._held, set()
        super().resume_partitions(held & self.assignment())

    async def on_partitions_revoked(self, revoked: Any) -> None:
        """What is under way of them is done by whoever gets them."""
        for tp in revoked:
            self._under_way.pop(tp, None)
        self._buffered_partitions -= set(revoked)
        await super().on_partitions_revoked(revoked)

    async def perform_seek(self) -> None:
        """Back to what is committed, or to the beginning."""
        self.forget()
        await super().perform_seek()
        self.forget()
        changelogs = self.app.tables.changelog_topics
        never = [tp for tp in self.assignment() if tp.topic not in changelogs and not self._committed_offset[tp]]
        if never:
            await self.seek_wait(await self.earliest_offsets(*never))


class Transport(aiokafka.Transport):
    """`banksman://host:port`"""

    Consumer = Consumer


class Waiting(ThrowableQueue):  # type: ignore[type-arg]  # of Faust's events
    """What waits in a stream: full also when it has WAITING bytes."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self.bytes, self._sizes = 0, deque[int]()

    def _put(self, item: Any) -> None:
        super()._put(item)
        size = item.message.size
        self._sizes.append(size)
        self.bytes += size

    def _get(self) -> Any:
        self.bytes -= self._sizes.popleft()
        return super()._get()

    def full(self) -> bool:
        """Whether a record has to wait before it waits here."""
        return self.bytes >= WAITING or super().full()

    def clear(self) -> None:
        """Partitions were dealt out anew."""
        super().clear()
        self._sizes.clear()
        self.bytes = 0


def size_of(record: Any) -> int:
    """Bytes of a record."""
    size = len(record.value or b"") + len(record.key or b"")
    for name, value in record.headers or ():
        size += len(name) + len(value or b"")
    return size


class Recovery(recovery.Recovery):
    """Faust's ends for good, without a word, when a broker takes too long to answer: a timeout looks like a stop to it."""

    async def _wait(self, coro: Any, timeout: Any = None) -> None:  # noqa: ASYNC109 - Faust's signature
        try:
            await super()._wait(coro, timeout)
        except recovery.ServiceStopped:
            if self.should_stop:
                raise
            self.signal_recovery_start.set()  # from its beginning, as after a rebalance
            raise recovery.RebalanceAgain from None


class Tables(manager.TableManager):
    """With that."""

    @property
    def recovery(self) -> recovery.Recovery:
        """What reads changelogs back."""
        if self._recovery is None:
            self._recovery = Recovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


class App(faust.App):
    """With streams of which nobody can make a worker's memory full."""

    def FlowControlQueue(  # noqa: N802 - Faust's name
        self, maxsize: int | None = None, *, clear_on_resume: bool = False
    ) -> ThrowableQueue[Any]:
        """A stream's queue, which stands still when Faust wants it to."""
        return Waiting(maxsize=maxsize, flow_control=self.flow_control, clear_on_resume=clear_on_resume)


TRANSPORTS[SCHEME] = f"{__name__}:Transport"
