"""What an archiver reads at once: whole batches as they were fetched, and a few of them at a time.

aiokafka (0.14) makes an object of its own of every record, which costs more than everything else that reading does. So an
archiver's consumer hands on batches (`banksman.batches`), and each record is made when its turn comes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiokafka import conn
from aiokafka.consumer import fetcher

from banksman.batches import Batches, Fetched
from banksman.processors.archiver.rows import DAY_MS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from banksman.batches import Batch

FETCH = 32 << 20
"""Bytes that one fetch brings: a round of some 30,000 rows. Each is a part, and fewer of them are merged less often."""

PIECE = 3 << 16
"""Bytes of batches that are made into rows in one go: some hundred records, a few milliseconds."""


def pieces(several: Sequence[Batch]) -> Iterator[list[Batch]]:
    """Batches of a partition, a few at a time: of one day, and of PIECE bytes or little more."""
    taken: list[Batch] = []
    size = 0
    for one in several:
        if taken and (size >= PIECE or one.received_ms // DAY_MS != taken[0].received_ms // DAY_MS):
            yield taken
            taken, size = [], 0
        taken.append(one)
        size += one.size
    if taken:
        yield taken


def hand_on() -> None:
    """From here on, consumers of this process give batches instead of records, and count these as one. An answer is read as
    it comes: aiokafka stops and goes on twice for each quarter of a megabyte, which takes turns of the loop.
    """
    fetcher.MemoryRecords, fetcher.PartitionRecords = Fetched, Batches
    conn.READER_LIMIT = FETCH
