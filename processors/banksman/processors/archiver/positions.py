"""Where to go on: behind the last record of each partition that ClickHouse has.

The group's committed offset is trusted beyond that, so that heartbeats, tombstones and dead letters at the end of a partition
are not read again, but only while ClickHouse still has what it had when the offset was committed: each commit carries
the highest stored offset as its metadata. A database that was made anew or brought back from a backup is filled again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka.structs import OffsetAndMetadata, TopicPartition

from banksman.errors import StoreAway
from banksman.processors.archiver import rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from banksman.store.client import Store
    from banksman.topics import Topic


Place = tuple[str, int]
"""How ClickHouse names a partition: the topic without the prefix, and the number."""


@dataclass(frozen=True)
class Stored:
    """What ClickHouse has: per partition the highest offset and when that was received, and when the newest of all was (ms)."""

    last: dict[Place, tuple[int, int]]
    newest_ms: int

    def highest(self, place: Place) -> int:
        """-1 for none."""
        return self.last.get(place, (-1, 0))[0]


def stored(store: Store) -> Stored:
    """Blocking. StoreAway also when the table lacks a column: rows would be refused for no fault of theirs."""
    there = store.query(
        "SELECT name FROM system.columns WHERE database = {database:String} AND table = 'events'",
        {"database": store.database},
    )
    missing = rows.COLUMNS.keys() - {row["name"] for row in there}
    if missing:
        raise StoreAway(
            f"`{store.database}`.events "
            + (f"has no columns {sorted(missing)}" if there else "is not there")
            + ": run `banksman migrate`"
        )
    answer = store.query(
        "SELECT topic, partition, max(offset) AS highest, toUnixTimestamp64Milli(argMax(received, offset)) AS received_ms, "  # noqa: S608 - a checked setting
        "toUnixTimestamp64Milli(max(received)) AS newest "
        f"FROM `{store.database}`.events GROUP BY topic, partition"
    )
    return Stored(
        {(row["topic"], row["partition"]): (row["highest"], row["received_ms"]) for row in answer},
        max((row["newest"] for row in answer), default=0),
    )


def go_on(highest: int, commit: OffsetAndMetadata | None, end: int) -> int:
    """The first offset to read. `highest`: of the stored ones, -1 for none. `end`: of the log."""
    if commit is not None and commit.offset >= 0 and _had(commit.metadata) <= highest:
        if highest < 0 and commit.offset > end:
            return 0  # of another log, and nothing is stored of either
        return max(highest + 1, int(commit.offset))
    return highest + 1


def commit_of(offset: int, highest: int) -> OffsetAndMetadata:
    """`offset`: the next to read; `highest`: of the stored ones."""
    return OffsetAndMetadata(offset, f"stored={highest}")


def name_of(topics: Mapping[str, Topic], partition: TopicPartition) -> Place:
    """How ClickHouse names a partition. `topics`: by full name."""
    return topics[partition.topic].value, partition.partition


def _had(metadata: str) -> float:
    word, _, number = metadata.partition("=")
    return int(number) if word == "stored" and number.lstrip("-").isdigit() else float("inf")
