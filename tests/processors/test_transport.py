"""What our subclass of Faust's consumer does otherwise: fetches are messages, and no record is lost around a recovery."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import faust
import pytest
from aiokafka.structs import ConsumerRecord
from faust.tables.recovery import RebalanceAgain, ServiceStopped
from faust.types import TP

from banksman.processors.worker import tables, transport


@pytest.fixture
async def consumer() -> AsyncIterator[Any]:
    app = faust.App(
        "t", broker=f"{transport.SCHEME}://127.0.0.1:9", store=f"{tables.SCHEME}://", web_enabled=False,
        TableManager=transport.Tables,
    )  # fmt: skip
    app.Table("states", partitions=2)
    made = app.consumer
    assert isinstance(made, transport.Consumer)
    made._active_partitions = set()
    yield made
    made._thread.thread_loop.close()


STREAM = [TP("actions", 0), TP("actions", 1)]


def changelog(consumer: Any) -> TP:
    (topic,) = consumer.app.tables.changelog_topics
    return TP(topic, 0)


async def test_partitions_of_streams_wait_for_the_flow(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(consumer), "assignment", lambda _: set(STREAM[:1]))
    consumer.pause_partitions([*STREAM, changelog(consumer)])
    consumer.resume_partitions([*STREAM, changelog(consumer)])
    assert consumer._active_partitions == {
        changelog(consumer)
    }  # else what is delivered now is thrown away with the queues
    consumer.resume_flow()
    assert consumer._active_partitions == {changelog(consumer), STREAM[0]}  # the other one is not ours any more


async def test_a_paused_partition_is_not_resumed_with_the_flow(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(consumer), "assignment", lambda _: set(STREAM))
    consumer.resume_partitions(STREAM)
    consumer.pause_partitions(STREAM[:1])
    consumer.resume_flow()
    assert consumer._active_partitions == {STREAM[1]}


async def test_a_fetch_has_a_set_of_partitions_of_its_own(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    async def getmany(_self: Any, active: Any, _timeout: float) -> dict[Any, Any]:
        given.append(active)
        return {}

    monkeypatch.setattr(transport.Consumer.__mro__[1], "_getmany", getmany)
    consumer._active_partitions = {STREAM[0]}
    await consumer._getmany(consumer._active_partitions, 1.0)
    consumer._active_partitions.clear()  # at the end of a recovery; an empty set would mean all
    assert given == [{STREAM[0]}]


async def test_what_was_never_committed_begins_at_the_beginning(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sought: dict[TP, int] = {}

    async def committed() -> dict[TP, int | None]:
        return {STREAM[0]: 7, STREAM[1]: None, changelog(consumer): None}

    async def earliest(*places: TP) -> dict[TP, int]:
        return dict.fromkeys(places, 3)

    async def seek(places: dict[TP, int]) -> None:
        sought.update(places)

    monkeypatch.setattr(consumer, "seek_to_committed", committed)
    monkeypatch.setattr(consumer, "earliest_offsets", earliest)
    monkeypatch.setattr(consumer, "seek_wait", seek)
    monkeypatch.setattr(type(consumer), "assignment", lambda _: {*STREAM, changelog(consumer)})
    await consumer.perform_seek()
    assert sought == {STREAM[1]: 3}


async def test_room_in_a_queue_does_not_resume_what_is_paused(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(consumer), "assignment", lambda _: set(STREAM))
    consumer._active_partitions = set(STREAM)
    for place in STREAM:
        consumer.on_buffer_full(place)
    consumer.pause_partitions(STREAM[:1])
    for place in STREAM:
        consumer.on_buffer_drop(place)
    assert (consumer._active_partitions, consumer._buffered_partitions) == ({STREAM[1]}, set())


async def test_a_broker_that_takes_too_long_does_not_end_what_reads_changelogs_back(consumer: Any) -> None:
    recovery = consumer.app.tables.recovery
    with pytest.raises(RebalanceAgain):
        await recovery._wait(asyncio.sleep(60), timeout=0.01)
    assert recovery.signal_recovery_start.is_set()  # it begins anew
    recovery.signal_recovery_start.clear()
    await recovery._wait(asyncio.sleep(0), timeout=5)
    recovery._stopped.set()
    with pytest.raises(ServiceStopped):
        await recovery._wait(asyncio.sleep(60), timeout=5)


# ── what is delivered, and what is committed of it ──


def records(
    place: TP, first: int, last: int, value: bytes | None = b"v", key: bytes | None = None, headers: Any = ()
) -> Any:
    return [
        ConsumerRecord(place.topic, place.partition, offset, 1000, 0, key, value, None, 0, 0, headers)
        for offset in range(first, last + 1)
    ]


class Reader:
    """In place of Faust's streams."""

    def __init__(self) -> None:
        self.got: list[transport.Fetch] = []
        self.room = asyncio.Event()
        self.room.set()

    async def __call__(self, fetch: transport.Fetch) -> None:
        await self.room.wait()
        self.got.append(fetch)


@pytest.fixture
def reader(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> Reader:
    consumer.callback = made = Reader()
    monkeypatch.setattr(consumer.app.topics, "acks_enabled_for", lambda topic: topic == "actions")
    return made


async def deliver(consumer: Any, place: TP, first: int, last: int) -> transport.Fetch:
    fetch = consumer._to_message(place, records(place, first, last))
    await consumer._deliver(place, fetch)
    assert isinstance(fetch, transport.Fetch)
    return fetch


async def test_what_was_fetched_comes_in_pieces_and_in_order(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def getmany(_self: Any, _active: Any, _timeout: float) -> dict[Any, Any]:
        return {STREAM[0]: records(STREAM[0], 5, 11), STREAM[1]: records(STREAM[1], 3, 3), changelog(consumer): []}

    monkeypatch.setattr(transport, "TOGETHER", 3)
    monkeypatch.setattr(transport.Consumer.__mro__[1], "_getmany", getmany)
    pieces = await consumer._getmany(set(STREAM), 1.0)
    assert {tp: [[one.offset for one in piece] for piece in several] for tp, several in pieces.items()} == {
        STREAM[0]: [[5, 6, 7], [8, 9, 10], [11]], STREAM[1]: [[3]], changelog(consumer): [],
    }  # fmt: skip
    fetch = consumer._to_message(STREAM[0], pieces[STREAM[0]][1])
    assert (fetch.tp, fetch.offset, fetch.timestamp, len(fetch.records)) == (STREAM[0], 10, 1.0, 3)


async def test_a_group_goes_on_behind_what_is_done_in_a_row(consumer: Any, reader: Reader) -> None:
    first, second, third = [
        await deliver(consumer, STREAM[0], low, low + 9) for low in (0, 10, 25)
    ]  # 20 to 24 nobody can read
    other = await deliver(consumer, STREAM[1], 0, 0)
    assert [fetch.offset for fetch in reader.got] == [9, 19, 34, 0]
    assert consumer._new_offset(STREAM[0]) is None
    consumer.ack(third)
    consumer.ack(other)
    assert consumer._new_offset(STREAM[0]) is None  # else a crash would lose the first two
    assert consumer._new_offset(STREAM[1]) == 1
    consumer.ack(first)
    assert consumer._new_offset(STREAM[0]) == 10
    assert consumer._new_offset(STREAM[0]) is None
    consumer.ack(second)
    assert consumer._new_offset(STREAM[0]) == 35


async def test_what_is_acknowledged_is_what_faust_commits(consumer: Any, reader: Reader) -> None:
    fetch = await deliver(consumer, STREAM[0], 0, 9)
    consumer.ack(fetch)
    assert list(consumer._filter_tps_with_pending_acks()) == [STREAM[0]]
    assert consumer._filter_committable_offsets([STREAM[0]]) == {STREAM[0]: 10}
    assert len(reader.got) == 1


async def test_of_a_changelog_nothing_is_committed(consumer: Any, reader: Reader) -> None:
    fetch = await deliver(consumer, changelog(consumer), 0, 9)
    consumer.ack(fetch)
    assert consumer._new_offset(changelog(consumer)) is None
    assert reader.got == [fetch]


async def test_what_was_delivered_before_a_rebalance_is_not_waited_for_after_it(
    consumer: Any, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def committed() -> dict[TP, int | None]:
        return {STREAM[0]: 5, STREAM[1]: 7}

    monkeypatch.setattr(consumer, "seek_to_committed", committed)
    monkeypatch.setattr(type(consumer), "assignment", lambda _: set(STREAM))
    before = await deliver(consumer, STREAM[0], 5, 9)
    await consumer.perform_seek()
    again = await deliver(consumer, STREAM[0], 5, 12)
    assert reader.got == [before, again]
    consumer.ack(before)  # what was in work meanwhile
    assert consumer._new_offset(STREAM[0]) is None
    consumer.ack(again)
    assert consumer._new_offset(STREAM[0]) == 13


async def test_what_was_under_way_at_the_end_is_not_committed(consumer: Any, reader: Reader) -> None:
    fetch = await deliver(consumer, STREAM[0], 0, 9)
    consumer.forget()
    consumer.ack(fetch)  # Faust does, whatever became of it
    assert (consumer._new_offset(STREAM[0]), len(reader.got)) == (None, 1)


async def test_what_is_done_is_kept_without_its_records(consumer: Any, reader: Reader) -> None:
    fetch = await deliver(consumer, STREAM[0], 0, 9)
    fetch.incref()
    fetch.ack(consumer)
    assert (fetch.records, fetch.acked, len(reader.got)) == ((), True, 1)
    assert consumer._new_offset(STREAM[0]) == 10


async def test_what_comes_of_a_paused_partition_is_fetched_again(
    consumer: Any, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    sought: list[Any] = []

    async def seek(place: TP, offset: int) -> None:
        sought.append((place, offset))

    monkeypatch.setattr(consumer, "_seek", seek)
    consumer.pause_partitions(STREAM[:1])
    await deliver(consumer, STREAM[0], 5, 9)
    assert (reader.got, sought, consumer._read_offset[STREAM[0]]) == ([], [(STREAM[0], 5)], 5)


async def test_of_a_partition_that_went_away_nothing_is_committed(consumer: Any, reader: Reader) -> None:
    fetch = await deliver(consumer, STREAM[0], 5, 9)
    await consumer.on_partitions_revoked({STREAM[0]})
    consumer.ack(fetch)
    assert consumer._new_offset(STREAM[0]) is None
    assert reader.got == [fetch]


async def test_what_was_read_before_is_not_delivered(consumer: Any, reader: Reader) -> None:
    await deliver(consumer, STREAM[0], 5, 9)
    await deliver(consumer, STREAM[0], 3, 7)
    part = await deliver(consumer, STREAM[0], 8, 12)  # some of it is new
    assert [fetch.offset for fetch in reader.got] == [9, 12]
    assert part in reader.got


async def test_a_delivery_that_waits_gives_way_to_a_rebalance(consumer: Any, reader: Reader) -> None:
    reader.room.clear()
    asyncio.get_running_loop().call_soon(consumer.suspend_flow.set)
    stuck = await deliver(consumer, STREAM[0], 5, 9)
    later = await deliver(consumer, STREAM[0], 10, 19)
    consumer.ack(later)
    assert reader.got == []
    assert consumer._new_offset(STREAM[0]) is None, stuck  # it was not delivered, and is fetched again


async def test_what_a_delivery_raises_is_raised(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wrong(_fetch: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr(consumer, "callback", wrong)
    with pytest.raises(KeyError):
        await deliver(consumer, STREAM[0], 0, 9)


# ── what waits in a stream ──


@dataclass
class Event:
    message: transport.Fetch


def waits(*several: Any) -> Event:
    return Event(transport.Fetch(STREAM[0], several, 1))


def of(size: int | None) -> Any:
    return records(STREAM[0], 0, 0, None if size is None else b"x" * size)[0]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> transport.Waiting:
    monkeypatch.setattr(transport, "WAITING", 100)
    monkeypatch.setattr(transport, "OBJECTS", 1)
    app = transport.App("t", broker=f"{transport.SCHEME}://127.0.0.1:9", web_enabled=False)
    app.flow_control.resume()
    made = app.FlowControlQueue(maxsize=4, clear_on_resume=True)
    assert isinstance(made, transport.Waiting)
    return made


async def test_so_many_bytes_wait_and_no_more(queue: transport.Waiting) -> None:
    for sizes in ((20, 40), (60,)):
        await queue.put(waits(*map(of, sizes)))
    assert queue.full()
    third = asyncio.create_task(queue.put(waits(of(None))))
    await asyncio.sleep(0)
    assert (third.done(), queue.qsize()) == (False, 2)
    queue.get_nowait()
    await asyncio.wait_for(third, 5)
    assert (queue.full(), queue.bytes) == (False, 62)


async def test_bytes_may_be_in_keys_and_headers(queue: transport.Waiting) -> None:
    heads = (("h" * 30, b"v" * 40), ("n", None))
    await queue.put(waits(*records(STREAM[0], 0, 0, None, b"k" * 30, heads)))
    assert (queue.full(), queue.bytes) == (True, 102)
    queue.get_nowait()
    assert (queue.full(), queue.bytes) == (False, 0)


async def test_so_many_fetches_wait_and_no_more(queue: transport.Waiting) -> None:
    for _ in range(4):
        await queue.put(waits(of(0)))
    assert queue.full()


async def test_nothing_waits_when_partitions_were_dealt_out_anew(queue: transport.Waiting) -> None:
    await queue.put(waits(of(200)))
    queue._flow_control.suspend()
    queue._flow_control.resume()
    assert (queue.full(), queue.bytes, queue.qsize()) == (False, 0, 0)
