"""Whether Kafka's log still reaches as far as ClickHouse has stored of it.

The embedded broker acknowledges to the page cache, and a folder can be damaged or half restored. Kafka would not say so: it
makes what is missing anew and counts from 0. New records would then stand at places of the log that are in ClickHouse
already, and the archiver would pass over them. So `up` looks, and does not start.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiokafka import TopicPartition

from banksman import bus
from banksman.errors import BadDeployment
from banksman.store.client import Store
from banksman.topics import ARCHIVED

if TYPE_CHECKING:
    from pathlib import Path

    from banksman.settings import ClickHouse, Kafka


async def check(kafka: Kafka, clickhouse: ClickHouse, root: Path) -> None:
    """BadDeployment names the first partition that ends before what is stored of it. StoreAway, KafkaError."""
    highest, ends = await asyncio.gather(asyncio.to_thread(_highest, clickhouse), _ends(kafka))
    for (topic, partition), offset in sorted(highest.items()):
        end = ends.get((topic, partition), 0)
        if end <= offset:
            raise BadDeployment(
                f"Kafka's log in {root} has lost records: {kafka.topic_prefix}{topic}, partition {partition}, ends at {end}, "
                f"and ClickHouse has its record {offset}. Bring the folder back from a copy, or move it away and begin anew"
            )


def _highest(clickhouse: ClickHouse) -> dict[tuple[str, int], int]:
    """(topic without the prefix, partition) -> the highest offset that is stored."""
    store = Store(clickhouse, reader=False)
    try:
        rows = store.query(
            f"SELECT topic, partition, max(offset) AS highest FROM `{store.database}`.events GROUP BY ALL"  # noqa: S608 - a checked setting
        )
    finally:
        store.close()
    return {(row["topic"], row["partition"]): row["highest"] for row in rows}


async def _ends(kafka: Kafka) -> dict[tuple[str, int], int]:
    """(topic without the prefix, partition) -> the offset that the next record gets."""
    consumer = bus.consumer(kafka, *map(kafka.topic, ARCHIVED))
    await consumer.start()
    try:
        where = [
            TopicPartition(kafka.topic(topic), partition)
            for topic in ARCHIVED
            for partition in consumer.partitions_for_topic(kafka.topic(topic)) or ()
        ]
        ends = await consumer.end_offsets(where)
    finally:
        await consumer.stop()
    return {(one.topic.removeprefix(kafka.topic_prefix), one.partition): end for one, end in ends.items()}
