"""Records onto the session's Kafka, as whoever signed them wrote them."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.servers import PARTITIONS

from banksman import bus, settings
from banksman.topics import Topic


def publish(kafka: settings.Kafka, *records: tuple[Any, ...]) -> None:
    """(topic, key, value, headers), in this order, each in its key's partition, all acknowledged when this returns."""

    async def put() -> None:
        producer = bus.producer(kafka)
        await producer.start()
        try:
            to = {one: bus.Publisher(producer, kafka.topic(one), bound=10**6, deadline=60) for one in Topic}
            many = {Topic.ACTIONS: PARTITIONS, Topic.DECISIONS: PARTITIONS}
            await asyncio.gather(
                *(
                    to[topic].put(bus.partition_of(key, many.get(topic, 1)), key, value, headers)
                    for topic, key, value, headers in records
                )
            )
        finally:
            await producer.stop()

    asyncio.run(put())
