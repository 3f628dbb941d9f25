"""What consumers hand on: records, unpacked to a bound, without those that nobody can read (`banksman.batches`). The archiver
tells of what is unreadable; here it is passed over, and in the log.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from aiokafka.consumer import fetcher
from aiokafka.structs import ConsumerRecord

from banksman.batches import Batches, Fetched

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger("banksman")
_THEIRS = fetcher.PartitionRecords


class Records:
    """In the place of aiokafka's `PartitionRecords`: what was fetched of one partition."""

    def __init__(self, tp: Any, records: Fetched, aborted: Any, fetch_offset: int, *others: Any) -> None:
        self._tp, self._batches = tp, Batches(tp, records, aborted, fetch_offset, *others)
        self._records = self._unpacked()
        self.next_fetch_offset = fetch_offset
        """Where to go on."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._records)

    def _unpacked(self) -> Iterator[Any]:
        topic, partition = self._tp
        for batch in self._batches:
            for one in batch.records:
                self.next_fetch_offset = one.offset + 1
                yield ConsumerRecord(
                    topic, partition, one.offset, one.timestamp, one.timestamp_type, one.key, one.value, None,
                    -1 if one.key is None else len(one.key), -1 if one.value is None else len(one.value), tuple(one.headers),
                )  # fmt: skip
            if batch.unreadable:
                _log.error("%s, partition %d: passed over %s", topic, partition, batch.unreadable)
            self.next_fetch_offset = batch.last + 1
        self.next_fetch_offset = self._batches.next_fetch_offset


def hand_on() -> None:
    """From here on, consumers of this process read so, unless it is an archiver's, which reads whole batches."""
    if fetcher.PartitionRecords is _THEIRS:
        fetcher.MemoryRecords, fetcher.PartitionRecords = Fetched, Records
