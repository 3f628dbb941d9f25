"""A client of ours among brokers of which one accepts connections and says nothing, as one does that was stopped."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.structs import BrokerMetadata
from tests.contracts.conftest import Bus
from tests.contracts.test_bus import NO_HEADERS

from banksman import bus, failover
from banksman.errors import BrokerAway
from banksman.topics import Topic

SILENT = 99
"""The node's number."""


@contextlib.asynccontextmanager
async def silent() -> AsyncIterator[int]:
    """Somebody who takes connections and never says a word -> the port."""

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(nothing, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.asynccontextmanager
async def producing(place: Bus) -> AsyncIterator[Any]:
    """A started producer."""
    producer = bus.producer(place.settings)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


@contextlib.asynccontextmanager
async def among(place: Bus) -> AsyncIterator[tuple[Any, int]]:
    """A started producer -> itself, the silent one's port."""
    async with producing(place) as producer, silent() as port:
        yield producer, port


def listed(client: Any, port: int) -> None:
    """The client believes that the silent one belongs to the cluster, until somebody else tells it better."""
    client.cluster._brokers[SILENT] = BrokerMetadata(SILENT, "127.0.0.1", port, None)


async def test_one_that_says_nothing_does_not_keep_the_others_news_back(bus_place: Bus) -> None:
    async with among(bus_place) as (producer, port):
        client = producer.client
        took = []
        random.seed(1)
        for _ in range(12):  # who is asked first is chance: the silent one in half of them
            listed(client, port)
            began = time.monotonic()
            assert await client._metadata_update(client.cluster, client._topics)
            took.append(time.monotonic() - began)
            assert SILENT not in {broker.nodeId for broker in client.cluster.brokers()}
    # Alone it would be one whole time-out (5 s). Four questions in a row meet the silent one in 1 of 16 cases.
    assert sum(seconds < 4 * failover.HEDGE_S for seconds in took) >= 9, took


async def test_a_connection_that_does_not_come_about_holds_up_no_other(bus_place: Bus) -> None:
    async with among(bus_place) as (producer, port):
        client = producer.client
        listed(client, port)
        hanging = asyncio.ensure_future(client._get_conn(SILENT))
        await asyncio.sleep(0)  # it is on its way
        [real] = [broker.nodeId for broker in client.cluster.brokers() if broker.nodeId != SILENT]
        began = time.monotonic()
        assert await client._get_conn(real, group=1) is not None  # one that is not open yet
        assert time.monotonic() - began < 4
        assert not hanging.done()
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging


async def test_a_broker_that_left_the_cluster_gets_no_more_patience(bus_place: Bus) -> None:
    """What waits for its answer is told at once, and can be sent to another."""
    async with among(bus_place) as (producer, _):
        client = producer.client
        [real] = [broker.nodeId for broker in client.cluster.brokers()]
        connection = await client._get_conn(real, group=1)
        client._conns[SILENT, 0] = connection  # open, and its node is one that no metadata lists
        del client._conns[real, 1]
        assert await client._metadata_update(client.cluster, client._topics)
        assert not connection.connected()
        to = bus.Publisher(producer, bus_place.settings.topic(Topic.ACTIONS))
        assert await to.put(0, b"k", b"v", NO_HEADERS) >= 0  # and the others go on


async def test_when_nobody_can_be_reached_each_try_takes_as_long_as_a_pause(bus_place: Bus) -> None:
    producer = bus.producer(bus_place.settings)
    client = producer.client
    tries = 0

    async def refused(*_: Any) -> None:
        nonlocal tries
        tries += 1

    async with silent() as port:
        listed(client, port)
    client._get_conn = refused
    began = time.monotonic()
    for _ in range(5):
        assert not await client._metadata_update(client.cluster, client._topics)
    assert time.monotonic() - began >= 5 * failover.PAUSE_S * 0.9
    assert tries == 5
    await producer.stop()


# ── what a producer numbers ──


async def test_a_batch_whose_partition_has_no_leader_for_long_lands_when_it_has_one(bus_place: Bus) -> None:
    """Two of three brokers away look so. Whoever published it was told after its deadline, and what comes next is taken."""
    async with producing(bus_place) as producer:
        producer._message_accumulator._batch_ttl = min(producer._message_accumulator._batch_ttl, 0.5)
        to = bus.Publisher(producer, bus_place.settings.topic(Topic.ACTIONS), deadline=3.0)
        assert await to.put(0, b"k", b"before", NO_HEADERS) == 0
        cluster, landed, asked = producer.client.cluster, list[int](), [0]
        leader_of, cluster.leader_for_partition = cluster.leader_for_partition, lambda _: -1
        led, cluster.available_partitions_for_topic = cluster.available_partitions_for_topic, lambda _: set()
        update = cluster.update_metadata

        def counted(metadata: Any) -> None:
            asked[0] += 1
            update(metadata)

        cluster.update_metadata = counted
        with pytest.raises(BrokerAway):
            await to.put(0, b"k", b"meanwhile", NO_HEADERS, landed.append)
        assert 1 < asked[0] <= 3.0 / failover.PAUSE_S + 2, "not as fast as the brokers that are left can answer"
        cluster.leader_for_partition, cluster.available_partitions_for_topic = leader_of, led
        assert await to.put(0, b"k", b"after", NO_HEADERS) in (1, 2)
        await to.flush()
        assert landed in ([1], [-1])


async def test_after_a_batch_that_is_refused_the_next_is_taken(bus_place: Bus) -> None:
    """Of each partition, in order, each once; also what is in flight to another partition."""
    async with producing(bus_place) as producer:
        to = bus.Publisher(producer, bus_place.settings.topic(Topic.ACTIONS), deadline=10)
        offsets = []
        for round_ in range(3):
            offsets.append(await to.put(0, b"k", b"%d" % round_, NO_HEADERS))
            others = [to.put(1, b"k", b"%d" % n, NO_HEADERS) for n in range(100)]
            with pytest.raises(BrokerAway, match="MessageSizeTooLarge"):
                await to.put(0, b"k", bytes(4 << 20), NO_HEADERS)
            assert await asyncio.gather(*others) == list(range(100 * round_, 100 * round_ + 100))
        assert offsets == [0, 1, 2]
        assert producer._txn_manager.producer_epoch == 3, "nobody was asked for an id meanwhile"


async def test_after_the_last_epoch_comes_another_id(bus_place: Bus) -> None:
    async with producing(bus_place) as producer:
        to = bus.Publisher(producer, bus_place.settings.topic(Topic.ACTIONS), deadline=10)
        manager = producer._txn_manager
        first = manager.producer_id
        manager._pid_and_epoch = manager._pid_and_epoch._replace(epoch=failover.LAST_EPOCH)
        assert await to.put(0, b"k", b"before", NO_HEADERS) == 0
        with pytest.raises(BrokerAway, match="MessageSizeTooLarge"):
            await to.put(0, b"k", bytes(4 << 20), NO_HEADERS)
        assert await to.put(0, b"k", b"after", NO_HEADERS) == 1
        assert (manager.producer_id != first, manager.producer_epoch) == (True, 0)
