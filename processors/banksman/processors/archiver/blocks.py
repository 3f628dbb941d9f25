"""Rows of one round -> inserts. Each is one block of one day: it is in ClickHouse or it is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from banksman.processors.archiver.rows import COLUMNS, DAY_MS
from banksman.store import native

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from banksman.processors.archiver.rows import Entry, Rows

    Place = tuple[str, int]


@dataclass
class Block:
    """Rows of one day (days since 1970), of any partitions."""

    day: int
    parts: list[Rows] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def encoded(self) -> tuple[list[str], bytes]:
        """(column names, the block in ClickHouse's Native format). Columns that are absent in all rows are left out."""
        names = [name for name in COLUMNS if any(name in part.columns for part in self.parts)]
        columns = (
            (
                name,
                COLUMNS[name],
                list(chain.from_iterable(part.columns.get(name) or (None,) * len(part) for part in self.parts)),
            )
            for name in names
        )
        return names, native.block(columns, len(self))

    def entries(self) -> Iterator[Entry]:
        """Every row by itself."""
        return (part.entry(place) for part in self.parts for place in range(len(part)))

    def highest(self) -> dict[Place, int]:
        """The highest offset per (topic, partition)."""
        found: dict[Place, int] = {}
        for part in self.parts:
            where = part.topic.value, part.partition
            found[where] = max(found.get(where, -1), part.columns["offset"][-1])
        return found

    def halves(self) -> tuple[Block, Block]:
        """Two blocks of about the same size. Stored one after the other, they leave no hole in a partition in between."""
        order = sorted((part.topic, part.partition, offset) for part in self.parts for offset in part.columns["offset"])
        middle = order[len(order) // 2]
        halves = Block(self.day), Block(self.day)
        for part in self.parts:
            before = sum((part.topic, part.partition, offset) < middle for offset in part.columns["offset"])
            for half, places in zip(halves, (range(before), range(before, len(part))), strict=True):
                if places:
                    half.parts.append(part.chosen(places))
        return halves


def blocks(partitions: Iterable[Sequence[Rows]]) -> list[Block]:
    """For each partition its rows, those of one day after those of another as they stand in the log -> as few blocks as
    can be. Stored one after the other, they leave no hole in a partition in between: also when the broker's clock was set
    back over midnight.
    """
    made: list[Block] = []
    for several in partitions:
        at = 0
        for rows in several:
            day = rows.columns["received"][0] // DAY_MS
            while at < len(made) and made[at].day != day:
                at += 1
            if at == len(made):
                made.append(Block(day))
            made[at].parts.append(rows)
    return made
