"""Records that aiokafka (0.14) cannot read must not stop the archiver: whoever may write to Kafka may write them.

The name of a Kafka header that is not UTF-8 makes the client raise in the middle of a batch, at every try, for ever, and
forget the records before it. Here such a batch ends with one stand-in for everything from the bad record on: an empty
record at the batch's last offset, which says so in a header, and which the archiver buries like any other record that is
no event. A batch is written by one producer, so nobody can hide another's records in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka.consumer import fetcher
from aiokafka.record.memory_records import MemoryRecords

if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = "banksman-unreadable"


@dataclass(frozen=True)
class StandIn:
    """What is handed on instead. Has what aiokafka's fetcher takes from a record."""

    offset: int
    timestamp: int
    headers: tuple[tuple[str, bytes], ...]
    timestamp_type: int = 1
    key: bytes | None = None
    value: bytes = b""
    checksum: int | None = None


class Batches:
    """aiokafka's MemoryRecords, of which every batch can be read to its end."""

    def __init__(self, data: Any) -> None:
        self._records = MemoryRecords(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)

    def next_batch(self) -> Any:
        """The next batch, or None."""
        batch = self._records.next_batch()
        return batch if batch is None or batch.is_control_batch else _Batch(batch)


class _Batch:
    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        offset = self._batch.base_offset - 1
        try:
            for record in self._batch:
                offset = record.offset
                yield record
        except UnicodeDecodeError as error:
            last = self._batch.next_offset - 1
            text = f"offsets {offset + 1} to {last}: a header's name is not UTF-8 ({error.reason})"
            yield StandIn(last, self._batch.max_timestamp, ((HEADER, text.encode()),))


def tolerate() -> None:
    """From here on, consumers of this process read such batches as said above."""
    fetcher.MemoryRecords = Batches
