"""What everybody above relies on when they publish and read: group commit, deadlines, and a log read from its beginning.

What is on the log is read back by a plain consumer, never by the code that is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st
from tests.contracts.conftest import Bus

from banksman import bus, provision, settings
from banksman.errors import BrokerAway, Unavailable
from banksman.topics import Topic

NO_HEADERS: list[tuple[str, bytes]] = []


@contextlib.asynccontextmanager
async def publisher(place: Bus, topic: Topic = Topic.ACTIONS, **limits: Any) -> AsyncIterator[bus.Publisher]:
    producer = bus.producer(place.settings)
    await producer.start()
    try:
        yield bus.Publisher(producer, place.settings.topic(topic), **limits)
    finally:
        await producer.stop()


async def log(place: Bus, topic: Topic = Topic.ACTIONS, partition: int = 0) -> list[Any]:
    """Every record of a partition, as it stands now."""
    where = TopicPartition(place.settings.topic(topic), partition)
    consumer = AIOKafkaConsumer(**place.settings.client(), enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([where])
        await consumer.seek_to_beginning(where)
        end = (await consumer.end_offsets([where]))[where]
        found: list[Any] = []
        async with asyncio.timeout(30):
            while await consumer.position(where) < end:
                found += (await consumer.getmany(timeout_ms=200)).get(where, [])
        return found
    finally:
        await consumer.stop()


async def true(condition: Any, seconds: float = 30) -> None:
    """Return when it holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - any condition, also of another process
            await asyncio.sleep(0.01)  # between two looks


# ── group commit ──


async def test_each_record_once_in_order_with_the_offset_that_its_author_was_told(bus_place: Bus) -> None:
    async with publisher(bus_place) as to:
        offsets = await asyncio.gather(*[to.put(n % 2, b"k%d" % n, b"%d" % n, [("h", b"%d" % n)]) for n in range(3000)])
        assert to.pending == 0
    for partition in (0, 1):
        assert offsets[partition::2] == list(range(1500))
        records = await log(bus_place, partition=partition)
        assert [int(r.value) for r in records] == list(range(partition, 3000, 2))
        assert all(r.key == b"k" + r.value and r.headers == (("h", r.value),) for r in records)


def flights(to: bus.Publisher) -> list[int]:
    """How many records each batch has that leaves from here on."""
    sizes: list[int] = []
    send = to._producer.send_batch

    async def counted(batch: Any, *more: Any, **named: Any) -> Any:
        sizes.append(batch.record_count())
        return await send(batch, *more, **named)

    to._producer.send_batch = counted
    return sizes


async def test_what_comes_while_a_batch_is_in_flight_goes_into_the_next_one(bus_place: Bus) -> None:
    """No timer and no linger: a lone record leaves at once, those behind it leave together when it is acknowledged."""
    async with publisher(bus_place) as to:
        await to.put(0, b"k", b"first of all", NO_HEADERS)  # the producer knows its partitions from here on
        sizes = flights(to)
        lone = to.put(0, b"k", b"lone", NO_HEADERS)
        await true(lambda: sizes == [1])
        together = [to.put(0, b"k", b"%d" % n, NO_HEADERS) for n in range(500)]
        assert await asyncio.gather(lone, *together) == list(range(1, 502))
        assert sizes == [1, 500]


async def test_the_next_batch_is_on_the_socket_before_those_in_one_are_told(
    bus_place: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker has something to do while many are told and come again."""
    async with publisher(bus_place, halves=True) as to:
        await to.put(0, b"k", b"first of all", NO_HEADERS)
        written = 0
        send = AIOKafkaConnection.send

        def noted(connection: AIOKafkaConnection, request: Any, *more: Any, **named: Any) -> Any:
            nonlocal written
            written += type(request).__name__.startswith("ProduceRequest")
            return send(connection, request, *more, **named)

        monkeypatch.setattr(AIOKafkaConnection, "send", noted)
        seen: list[int] = []
        several = [to.put(0, b"k", b"%d" % n, NO_HEADERS) for n in range(96)]
        for future in several:
            future.add_done_callback(lambda _: seen.append(written))
        await asyncio.gather(*several)
        assert seen == [2] * 48 + [3] * 32 + [3] * 16


async def test_of_much_that_waits_half_goes_at_once_where_authors_come_again(bus_place: Bus) -> None:
    async with publisher(bus_place, halves=True) as to:
        await to.put(0, b"k", b"first of all", NO_HEADERS)
        sizes = flights(to)
        lone = to.put(0, b"k", b"lone", NO_HEADERS)
        await true(lambda: sizes == [1])
        several = [to.put(0, b"k", b"%d" % n, NO_HEADERS) for n in range(150)]
        assert await asyncio.gather(lone, *several) == list(range(1, 152))
        assert sizes == [1, 75, 38, 32, 5]
        assert [int(r.value) for r in (await log(bus_place))[2:]] == list(range(150))


async def test_no_future_is_done_before_the_broker_has_the_record(bus_place: Bus) -> None:
    async with publisher(bus_place) as to:
        for n in range(20):
            offset = await to.put(0, b"k", b"%d" % n, NO_HEADERS)
            assert [r.value for r in await log(bus_place)][offset] == b"%d" % n


async def test_a_record_larger_than_a_batch_goes_alone_and_in_its_place(bus_place: Bus) -> None:
    """Policy texts in `control` may have 8 MiB, a batch has one."""
    large = b"x" * (5 << 20)
    async with publisher(bus_place, Topic.CONTROL) as to:
        put = [to.put(0, b"k%d" % n, value, NO_HEADERS) for n, value in enumerate((b"before", large, b"after"))]
        async with asyncio.timeout(30):
            assert await asyncio.gather(*put) == [0, 1, 2]
    assert [r.value for r in await log(bus_place, Topic.CONTROL)] == [b"before", large, b"after"]


async def test_a_record_that_the_broker_refuses_fails_alone(bus_place: Bus) -> None:
    """Beyond the topic's largest record: its author is told; the publisher goes on."""
    async with publisher(bus_place) as to:
        with pytest.raises(BrokerAway, match="MessageSizeTooLarge"):
            await to.put(0, b"k", b"x" * (3 << 20), NO_HEADERS)
        assert await to.put(0, b"k", b"after", NO_HEADERS) == 0
        assert to.pending == 0


async def test_beyond_the_bound_it_refuses_at_once_and_loses_nothing(bus_place: Bus) -> None:
    async with publisher(bus_place, bound=3) as to:
        futures = [to.put(0, b"k", b"%d" % n, NO_HEADERS) for n in range(3)]
        with pytest.raises(Unavailable):
            to.put(1, b"k", b"one too many", NO_HEADERS)
        assert await asyncio.gather(*futures) == [0, 1, 2]
        assert await to.put(0, b"k", b"3", NO_HEADERS) == 3
    assert [r.value for r in await log(bus_place)] == [b"0", b"1", b"2", b"3"]
    assert await log(bus_place, partition=1) == []


async def test_flush_returns_when_nothing_is_waiting(bus_place: Bus) -> None:
    async with publisher(bus_place) as to:
        futures = [to.put(n % 2, b"k", b"x", NO_HEADERS) for n in range(100)]
        await to.flush()
        assert to.pending == 0
        assert all(future.done() for future in futures)


async def test_a_caller_that_goes_away_takes_nothing_with_it(bus_place: Bus) -> None:
    """A cancelled future is its caller's affair: the record is sent, its neighbours are told."""
    async with publisher(bus_place) as to:
        first, second = (to.put(0, b"k", value, NO_HEADERS) for value in (b"in flight", b"waiting"))
        await asyncio.sleep(0)  # the flight begins
        first.cancel()
        assert await second in (0, 1)
        assert await to.put(0, b"k", b"after", NO_HEADERS) == (await log(bus_place))[-1].offset
        assert to.pending == 0


@given(st.binary(max_size=64))
def test_keys_go_where_every_other_client_puts_them(key: bytes) -> None:
    partitions = list(range(7))
    assert bus.partition_of(key, 7) == DefaultPartitioner()(key, partitions, partitions)


# ── a broker that does not answer ──


@pytest.mark.slow
async def test_deadlines_hold_while_the_broker_stands_still(bus_place: Bus) -> None:
    """At its deadline a future fails. What was not sent by then never is; what was, lands, and its author is told where."""
    broker = bus_place.own()
    landed: dict[str, int] = {}
    async with publisher(bus_place, deadline=1.0) as to:
        assert await to.put(0, b"k", b"before", NO_HEADERS, lambda at: landed.update(before=at)) == 0
        java = psutil.Process(broker.process.pid)
        java.suspend()
        try:
            await true(lambda: java.status() == psutil.STATUS_STOPPED)
            began = time.monotonic()
            in_flight = to.put(0, b"k", b"in flight", NO_HEADERS, lambda at: landed.update(in_flight=at))
            await true(lambda: to._flights)
            await asyncio.sleep(0)  # the flight has taken it
            queued = to.put(0, b"k", b"queued", NO_HEADERS, lambda at: landed.update(queued=at))
            for future in (in_flight, queued):
                with pytest.raises(BrokerAway, match="not acknowledged within 1 s"):
                    await future
            assert time.monotonic() - began >= 0.99
            assert to.pending == 1, "the one in flight holds its place until it is known what became of it"
            fresh = to.put(0, b"k", b"fresh", NO_HEADERS)
        finally:
            java.resume()
        with contextlib.suppress(BrokerAway):  # as good: it depends on how long the broker needs to wake up
            await fresh
        await to.flush()
        assert to.pending == 0
    values = [r.value for r in await log(bus_place)]
    assert values[:2] == [b"before", b"in flight"]
    assert b"queued" not in values
    assert landed == {"in_flight": 1}, "told of what came late, and of nothing else"


class Waiter:
    """One who waits without a future."""

    def __init__(self, *, broken: bool = False) -> None:
        self.told: list[Any] = []
        self.gone, self.broken = False, broken

    def acknowledged(self, offset: int) -> None:
        self.told.append(offset)
        if self.broken:
            raise RuntimeError("a bug of one waiter")

    def failed(self, error: Unavailable) -> None:
        self.told.append(str(error))

    def landed(self, offset: int) -> None:
        self.told.append(("landed", offset))


async def test_waiters_are_told_like_futures_and_all_of_a_batch_in_one_step(bus_place: Bus) -> None:
    async with publisher(bus_place) as to:
        assert await to.put(0, b"k", b"first", NO_HEADERS) == 0
        waiters = [Waiter(broken=number == 7) for number in range(50)]  # which costs the others nothing
        for waiter in waiters:
            to.hand_over(0, b"k", b"together", NO_HEADERS, waiter)
        last = to.put(0, b"k", b"last", NO_HEADERS)
        assert await last == 51
        assert [waiter.told for waiter in waiters] == [[offset] for offset in range(1, 51)]
        assert to.pending == 0
        assert not to._open, "what is over does not wait for the sweep"


async def test_a_fault_of_the_client_fails_those_who_wait_and_nobody_who_comes_again(
    bus_place: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of 503 is written in the step in which it is told, and the connection's next question handed over in it."""

    class Again(Waiter):
        def failed(self, error: Unavailable) -> None:
            super().failed(error)
            to.hand_over(0, b"k", b"again", NO_HEADERS, next_)

    async with publisher(bus_place, deadline=20.0) as to:
        await to.put(0, b"k", b"first", NO_HEADERS)
        await to.flush()
        sent, next_ = Again(), Waiter()
        send = to._producer.send_batch

        async def broken(*of: Any, **named: Any) -> Any:
            monkeypatch.setattr(to._producer, "send_batch", send)
            await send(*of, **named)
            raise RuntimeError("a bug of the client's")

        monkeypatch.setattr(to._producer, "send_batch", broken)
        to.hand_over(0, b"k", b"sent", NO_HEADERS, sent)
        (flight,) = to._flights
        with pytest.raises(RuntimeError, match="a bug of the client's"):
            await flight
        await true(lambda: next_.told, 10)
        assert next_.told == [2]
        assert sent.told == [f"{to.topic}: the publisher stopped", ("landed", -1)]
        assert to.pending == 0


async def test_a_waiter_is_told_that_it_is_too_late_and_then_what_became_of_it(bus_place: Bus) -> None:
    broker = bus_place.own()
    in_flight, queued = Waiter(), Waiter()
    async with publisher(bus_place, deadline=1.0) as to:
        await to.put(0, b"k", b"before", NO_HEADERS)
        java = psutil.Process(broker.process.pid)
        java.suspend()
        try:
            await true(lambda: java.status() == psutil.STATUS_STOPPED)
            to.hand_over(0, b"k", b"in flight", NO_HEADERS, in_flight)
            await true(lambda: to._flights)
            await asyncio.sleep(0)  # the flight has taken it
            to.hand_over(0, b"k", b"queued", NO_HEADERS, queued)
            await true(lambda: in_flight.told and queued.told)
        finally:
            java.resume()
        await to.flush()
    assert "not acknowledged within 1 s" in in_flight.told[0]
    assert in_flight.told[1:] == [("landed", 1)]
    assert "not acknowledged within 1 s" in queued.told[0]
    assert queued.told[1:] == []
    assert [r.value for r in await log(bus_place)] == [b"before", b"in flight"]


@pytest.mark.slow
async def test_a_killed_broker_loses_and_doubles_nothing(bus_place: Bus) -> None:
    """kill -9 with records in flight, then a restart. What was acknowledged is there once, in order; the rest failed."""
    broker = bus_place.own()
    acknowledged: dict[int, bytes] = {}
    late: dict[int, bytes] = {}
    failed: list[bytes] = []

    async with publisher(bus_place, deadline=2.0) as to:

        async def put(number: int) -> None:
            value = b"%d" % number
            try:
                acknowledged[await to.put(0, b"k", value, NO_HEADERS, lambda at: late.update({at: value}))] = value
            except BrokerAway:
                failed.append(value)

        async def flow() -> None:
            for number in range(10**9):
                if to.room:
                    waiting.append(asyncio.ensure_future(put(number)))
                await asyncio.sleep(0.001)

        waiting: list[asyncio.Task[None]] = []
        flowing = asyncio.ensure_future(flow())
        await true(lambda: len(acknowledged) > 200)
        broker.kill()
        try:
            used, began = time.process_time(), time.monotonic()
            await true(lambda: failed)
            share = (time.process_time() - used) / (time.monotonic() - began)
        finally:
            await _restart(broker)
        enough = len(acknowledged) + 200
        await true(lambda: len(acknowledged) > enough, 60)
        flowing.cancel()
        await asyncio.gather(*waiting)
        await to.flush()
    on_log = {r.offset: r.value for r in await log(bus_place)}
    assert on_log == acknowledged | late
    numbers = [int(on_log[offset]) for offset in sorted(on_log)]
    assert numbers == sorted(set(numbers)), "in the order in which they were handed over, each once"
    assert share < 0.7, f"{share:.0%} of a core while no broker answered: the client must not spin"


async def _restart(broker: Any) -> None:
    """In this thread: children die with the thread that starts them."""
    from tests.servers import child_environment

    from banksman.local import children

    broker.process = children.spawn(broker.node.argv(), log=broker.node.log, env=child_environment())
    await broker.node.ready()


# ── reading from the beginning ──


async def test_reading_begins_at_the_beginning_and_goes_on(bus_place: Bus) -> None:
    async with publisher(bus_place, Topic.CONTROL) as to:
        await asyncio.gather(*[to.put(0, b"k%d" % n, b"%d" % n, [("h", b"v")]) for n in range(10)])
        seen: list[Any] = []
        empty = 0
        reading = bus.read_from_start(bus_place.settings, bus_place.settings.topic(Topic.CONTROL))
        async with asyncio.timeout(30), contextlib.aclosing(reading):
            async for batch in reading:
                seen += batch
                if not batch and len(seen) == 10 and not empty:
                    empty += 1
                    await to.put(0, b"k", b"more", NO_HEADERS)
                if len(seen) == 11:
                    break
    assert empty, "an empty batch says that nothing new came"
    assert [r.value for r in seen] == [b"%d" % n for n in range(10)] + [b"more"]
    assert [r.offset for r in seen] == list(range(11))
    assert seen[0].headers == (("h", b"v"),)
    assert seen[0].timestamp_type == 1, "the broker's time, not the author's"


async def test_the_beginning_is_where_the_log_begins_now(bus_place: Bus) -> None:
    async with publisher(bus_place) as to:
        await asyncio.gather(*[to.put(0, b"k", b"%d" % n, NO_HEADERS) for n in range(10)])
    await forget(bus_place.settings, bus_place.settings.topic(Topic.ACTIONS), 6)
    reading = bus.read_from_start(bus_place.settings, bus_place.settings.topic(Topic.ACTIONS))
    seen: list[bytes] = []
    async with asyncio.timeout(30), contextlib.aclosing(reading):
        async for batch in reading:
            seen += [r.value for r in batch]
            if len(seen) == 4:
                break
    assert seen == [b"6", b"7", b"8", b"9"]


async def test_a_reader_whose_place_in_the_log_is_gone_says_so(bus_place: Bus) -> None:
    """It must never go on somewhere else: what it knows would not be the truth."""
    topic = bus_place.settings.topic(Topic.ACTIONS)
    async with publisher(bus_place) as to:
        await asyncio.gather(*[to.put(0, b"k", b"%d" % n + b"x" * 900_000, NO_HEADERS) for n in range(8)])
    reading = bus.read_from_start(bus_place.settings, topic)
    seen: list[int] = []
    async with asyncio.timeout(30), contextlib.aclosing(reading):
        while not seen:  # one record fills a fetch, so the reader is at the first or second now
            seen += [r.offset for r in await anext(reading)]
        await forget(bus_place.settings, topic, 7)
        with pytest.raises(OffsetOutOfRangeError):
            await _read_on(reading, seen)
    assert seen == list(range(len(seen)))
    assert len(seen) < 7


async def _read_on(reading: AsyncIterator[list[Any]], seen: list[int]) -> None:
    async for batch in reading:
        seen += [record.offset for record in batch]


async def forget(kafka: settings.Kafka, topic: str, before: int) -> None:
    """Let retention have taken everything before an offset of partition 0."""
    from aiokafka.admin import RecordsToDelete

    admin = await provision.connect_admin(kafka)
    try:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=before)})
    finally:
        await admin.close()
