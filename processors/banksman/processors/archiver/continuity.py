"""Whether the log that is read is the one that ClickHouse has rows of.

A topic that was made anew, or that lost its end, counts from a lower offset. Its new records would stand at places that are
stored already, and reading, which goes on behind the highest of them, would pass over them without a word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from banksman.errors import BadDeployment

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiokafka import AIOKafkaConsumer, TopicPartition

    from banksman.processors.archiver.positions import Place, Stored
    from banksman.store.client import Store

WHAT_TO_DO = (
    "Bring the topic back from a copy, or archive into a new database: set BANKSMAN_CLICKHOUSE_DATABASE, run "
    "`banksman migrate`; the old one stays as it is"
)


async def check(
    consumer: AIOKafkaConsumer,
    names: Mapping[TopicPartition, Place],
    there: Stored,
    received_at: Callable[[Mapping[Place, int]], Awaitable[Mapping[Place, int]]],
) -> None:
    """BadDeployment names a partition that is another one than ClickHouse knows. `received_at`: of the rows at these offsets,
    when they were received (ms); what has no row is left out. KafkaError; Unavailable as `received_at`.

    Kafka is asked for the first record as new as the newest that is stored. If it stands where ClickHouse has a row, that row
    was received at the same millisecond: the broker's stamp, which nobody can give to a record of a later log.
    """
    known = {where: there.last[name] for where, name in names.items() if name in there.last}
    if not known:
        return
    found = await consumer.offsets_for_times({where: received_ms for where, (_, received_ms) in known.items()})
    stamps = {
        where: (at.offset, at.timestamp)
        for where, at in found.items()
        if at is not None and at.offset <= known[where][0]
    }
    rows = await received_at({names[where]: offset for where, (offset, _) in stamps.items()})
    for where, (offset, stamp) in stamps.items():
        row_ms = rows.get(names[where], stamp)
        if row_ms != stamp:
            raise BadDeployment(
                f"{where.topic}, partition {where.partition}, is not the log that was archived: its record {offset} came at "
                f"{stamp} ms, and ClickHouse has one there that came at {row_ms} ms. {WHAT_TO_DO}"
            )


def check_end(where: TopicPartition, following: int, end: int) -> None:
    """BadDeployment: the log ends before what was read of it. `following`: the next offset to read."""
    if end < following:
        raise BadDeployment(
            f"{where.topic}, partition {where.partition}, ends at {end}, and was archived up to {following - 1}: it lost "
            f"records, or was made anew. {WHAT_TO_DO}"
        )


def received_at(store: Store, places: Mapping[Place, int]) -> dict[Place, int]:
    """When the rows at these offsets were received, in ms. Blocking; StoreAway."""
    if not places:
        return {}
    wanted = ", ".join(f"('{topic}', {partition}, {offset})" for (topic, partition), offset in places.items())
    answer = store.query(
        "SELECT topic, partition, toUnixTimestamp64Milli(min(received)) AS ms "  # noqa: S608 - our own topics, and numbers
        f"FROM `{store.database}`.events WHERE (topic, partition, offset) IN ({wanted}) GROUP BY topic, partition"
    )
    return {(row["topic"], row["partition"]): row["ms"] for row in answer}
