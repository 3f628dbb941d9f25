"""What was fetched of a partition, as whole batches, whose records aiokafka's C code makes when they are wanted.

A batch that aiokafka (0.14) cannot unpack, or a header whose name is not UTF-8, makes it raise, at every try, for ever: whoever
may write to Kafka could stop every reader. And it unpacks without a bound. So here a batch is one thing, with its records, and
what could not be read of it is said in words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch

from banksman.unpacking import CannotUnpack, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aiokafka import TopicPartition

UNPACKED_AT_ONCE = 16 << 20
"""Bytes that compressed batches of one fetch may unpack to before the rest of it is left for the next fetch."""

# Of a batch (format 2): offset 8 bytes, length 4, leader epoch 4, magic 1, CRC 4, attributes 2, …; after 61 its records.
_BEFORE_LENGTH, _OVERHEAD, _MAGIC, _CODEC_AT, _HEAD = 8, 12, 16, 22, 61
_CODEC_MASK = 0x07


@dataclass(slots=True)
class Batch:
    """What Kafka appended at once, at `received_ms`: the offsets `first` to `last`, of which compaction may have left some, and
    of the marks of transactions none. `content`: records, or the bytes of an uncompressed batch. `unreadable`: what is wrong
    with those that are not among `records`; empty when all could be read. Known when these were gone through.
    """

    received_ms: int
    first: int
    last: int
    content: Sequence[Any] | bytes | memoryview
    unreadable: str = ""

    @property
    def size(self) -> int:
        """In bytes, where it was not read before."""
        return len(self.content)

    @property
    def records(self) -> Iterator[Any]:
        """Each with `offset`, `key`, `value` and `headers`, and made when its turn comes: whoever lets it go finds the next one
        in the same place. The objects of a whole fetch would have left the processor's caches before they are looked at.
        """
        if not isinstance(self.content, bytes | memoryview):
            yield from self.content
            return
        at, strange = self.first, 0
        try:
            for record in DefaultRecordBatch(self.content):
                if at <= record.offset <= self.last:
                    at = record.offset + 1  # before: whoever reads may not come back
                    yield record
                elif record.offset >= self.first:
                    strange += 1  # Kafka does not look at the numbers inside of a batch
            if strange:
                self.unreadable = (
                    f"offsets {self.first} to {self.last}: {strange} records say that they stand elsewhere"
                )
        except UnicodeDecodeError as error:
            self.unreadable = f"offsets {at} to {self.last}: a header's name is not UTF-8 ({error.reason})"
        except CorruptRecordException as error:
            self.unreadable = f"offsets {at} to {self.last}: no records of Kafka's ({error})"


class Fetched:
    """In the place of aiokafka's `MemoryRecords`: the bytes that were fetched of one partition, batch by batch."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = memoryview(data), 0  # nothing of it is copied before it is made into records

    def size_in_bytes(self) -> int:
        """All of it, with what is no whole batch at the end."""
        return len(self._data)

    def has_next(self) -> bool:
        """Whether there is another whole batch."""
        return self._at + _HEAD <= self._end() <= len(self._data)

    def next_batch(self) -> memoryview:
        """Its bytes."""
        first, self._at = self._at, self._end()
        return self._data[first : self._at]

    def _end(self) -> int:
        at = self._at + _BEFORE_LENGTH
        return self._at + _OVERHEAD + int.from_bytes(self._data[at : at + 4], "big", signed=True)


class Batches:
    """In the place of aiokafka's `PartitionRecords`: what was fetched of one partition.

    Transactions are looked at as if they were none: what an agent wrote and took back is shown, too.
    """

    def __init__(self, tp: TopicPartition, records: Fetched, _aborted: Any, fetch_offset: int, *_others: Any) -> None:
        self._partition, self._fetched = tp, records
        self.next_fetch_offset = fetch_offset
        self._unpacked = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while self._fetched.has_next() and self._unpacked < UNPACKED_AT_ONCE:
            data = self._fetched.next_batch()
            batch = DefaultRecordBatch(data)
            if data[_MAGIC] != 2 or not batch.validate_crc():
                raise CorruptRecordException(f"{self._partition}: a damaged batch at {self.next_fetch_offset}")
            wanted, self.next_fetch_offset = self.next_fetch_offset, batch.next_offset
            if batch.next_offset > wanted:
                return self._batch(data, batch, wanted)
        raise StopIteration

    def _batch(self, data: memoryview, head: Any, wanted: int) -> Batch:
        """The records from offset `wanted` on."""
        made = Batch(head.max_timestamp, max(head.base_offset, wanted), head.next_offset - 1, ())
        if not head.compression_type:
            made.content = () if head.is_control_batch else data
            return made
        try:
            content = self._unpack(bytes(data), head.compression_type)
        except CannotUnpack as error:
            self._unpacked += UNPACKED_AT_ONCE  # it may have cost as much: no other one in this fetch
            made.unreadable = f"offsets {made.first} to {made.last}: {error}"
        else:
            made.content = () if head.is_control_batch else content
        return made

    def _unpack(self, data: bytes, codec: int) -> bytes:
        """The same batch without compression, for which its checksum is wrong."""
        records = unpack(codec, data[_HEAD:])
        self._unpacked += len(records)
        return data[:_CODEC_AT] + bytes([data[_CODEC_AT] & ~_CODEC_MASK]) + data[_CODEC_AT + 1 : _HEAD] + records
