"""A client of ours among brokers of which one accepts connections and says nothing, as one does that was stopped."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka.structs import BrokerMetadata
from tests.contracts.conftest import Bus
from tests.contracts.test_bus import NO_HEADERS

from banksman import bus, failover
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
async def among(place: Bus) -> AsyncIterator[tuple[Any, int]]:
    """A started producer -> itself, the silent one's port."""
    producer = bus.producer(place.settings)
    await producer.start()
    try:
        async with silent() as port:
            yield producer, port
    finally:
        await producer.stop()


def listed(client: Any, port: int) -> None:
    """The client believes that the silent one belongs to the cluster, until somebody else tells it better."""
    client.cluster._brokers[SILENT] = BrokerMetadata(SILENT, "127.0.0.1", port, None)


async def test_one_that_says_nothing_does_not_keep_the_others_news_back(bus_place: Bus) -> None:
    async with among(bus_place) as (producer, port):
        client = producer.client
        took = []
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
