"""What our subclass of Faust's consumer does otherwise: no record is lost around a recovery, and delivery takes no task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import faust
import pytest
from faust.types import TP

from banksman.processors.worker import tables, transport


@pytest.fixture
async def consumer() -> AsyncIterator[Any]:
    app = faust.App("t", broker=f"{transport.SCHEME}://127.0.0.1:9", store=f"{tables.SCHEME}://", web_enabled=False)
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


async def test_a_delivery_that_does_not_wait_takes_no_task(consumer: Any) -> None:
    delivered: list[int] = []

    async def at_once() -> None:
        delivered.append(1)

    before = len(asyncio.all_tasks())
    waiting = consumer.suspend_flow.wait()
    await consumer.wait_first(at_once(), waiting)
    assert delivered == [1]
    assert len(asyncio.all_tasks()) == before


async def test_a_delivery_that_waits_goes_on_in_the_same_place(consumer: Any) -> None:
    room, delivered = asyncio.Event(), []

    async def slow() -> None:
        await room.wait()
        delivered.append(1)

    asyncio.get_running_loop().call_soon(room.set)
    await consumer.wait_first(slow(), consumer.suspend_flow.wait())
    assert delivered == [1]


async def test_a_delivery_that_waits_gives_way_to_a_rebalance(consumer: Any) -> None:
    never, closed = asyncio.Event(), []

    async def stuck() -> None:
        try:
            await never.wait()
        finally:
            closed.append(1)

    asyncio.get_running_loop().call_soon(consumer.suspend_flow.set)
    await consumer.wait_first(stuck(), consumer.suspend_flow.wait())
    await asyncio.sleep(0)
    assert closed == [1]


async def test_what_a_delivery_raises_is_raised(consumer: Any) -> None:
    async def wrong() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await consumer.wait_first(wrong(), consumer.suspend_flow.wait())


# ── what waits in a stream ──


@dataclass
class Message:
    value: bytes | None
    key: bytes | None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass
class Event:
    message: Message


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
    for size in (60, 60):
        await queue.put(Event(Message(b"x" * size)))
    assert queue.full()
    third = asyncio.create_task(queue.put(Event(Message(None))))
    await asyncio.sleep(0)
    assert (third.done(), queue.qsize()) == (False, 2)
    queue.get_nowait()
    await asyncio.wait_for(third, 5)
    assert (queue.full(), queue.bytes) == (False, 62)


async def test_bytes_may_be_in_keys_and_headers(queue: transport.Waiting) -> None:
    await queue.put(Event(Message(None, b"k" * 30, (("h" * 30, b"v" * 40), ("n", None)))))
    assert (queue.full(), queue.bytes) == (True, 102)
    queue.get_nowait()
    assert (queue.full(), queue.bytes) == (False, 0)


async def test_so_many_records_wait_and_no_more(queue: transport.Waiting) -> None:
    for _ in range(4):
        await queue.put(Event(Message(b"")))
    assert queue.full()


async def test_nothing_waits_when_partitions_were_dealt_out_anew(queue: transport.Waiting) -> None:
    await queue.put(Event(Message(b"x" * 200)))
    queue._flow_control.suspend()
    queue._flow_control.resume()
    assert (queue.full(), queue.bytes, queue.qsize()) == (False, 0, 0)
