"""What an archiver's consumer hands on: whole batches of records, as aiokafka's C code unpacked them.

aiokafka (0.14) makes an object of its own of every record, which costs more than everything else that reading does. And a
batch that it cannot unpack makes it raise, at every try, for ever: whoever may write to Kafka could stop the archiver. So
here a batch is one thing, with its records, and what could not be read of it is said in words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch

from banksman.processors.unpacking import CannotUnpack, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aiokafka import TopicPartition

UNPACKED_AT_ONCE = 16 << 20
"""Bytes that compressed batches of one fetch may unpack to before the rest of it is left for the next fetch."""

# Of a batch (format 2): offset 8 bytes, length 4, leader epoch 4, magic 1, CRC 4, attributes 2, …; after 61 its records.
_BEFORE_LENGTH, _OVERHEAD, _MAGIC, _CODEC_AT, _HEAD = 8, 12, 16, 22, 61
_CODEC_MASK = 0x07


@dataclass(frozen=True, slots=True)
class Batch:
    """Records that Kafka appended at once, at `received_ms`: the offsets `first` to `last`, of which compaction may have left
    some, and of the marks of transactions none. A record has `offset`, `key`, `value` and `headers`. `unreadable`: what is
    wrong with the rest of them; empty when all could be read.
    """

    received_ms: int
    first: int
    last: int
    records: Sequence[Any]
    unreadable: str = ""


class Fetched:
    """In the place of aiokafka's `MemoryRecords`: the bytes that were fetched of one partition, batch by batch."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def size_in_bytes(self) -> int:
        """All of it, with what is no whole batch at the end."""
        return len(self._data)

    def has_next(self) -> bool:
        """Whether there is another whole batch."""
        return self._at + _HEAD <= self._end() <= len(self._data)

    def next_batch(self) -> bytes:
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
                return self._read(data, batch, wanted)
        raise StopIteration

    def _read(self, data: bytes, batch: Any, wanted: int) -> Batch:
        """The records from offset `wanted` on."""
        received_ms, first, last = batch.max_timestamp, max(batch.base_offset, wanted), batch.next_offset - 1
        records: list[Any] = []
        wrong = ""
        try:
            if batch.compression_type:
                batch = DefaultRecordBatch(self._unpack(data, batch.compression_type))
            if not batch.is_control_batch:
                records.extend(batch)  # what came before an error stays in the list
        except CannotUnpack as error:
            wrong = str(error)
        except UnicodeDecodeError as error:
            wrong = f"a header's name is not UTF-8 ({error.reason})"
        except CorruptRecordException as error:
            wrong = f"no records of Kafka's ({error})"
        if records and records[0].offset < wanted:
            records = [record for record in records if record.offset >= wanted]
        if wrong:
            wrong = f"offsets {records[-1].offset + 1 if records else first} to {last}: {wrong}"
        return Batch(received_ms, first, last, records, wrong)

    def _unpack(self, data: bytes, codec: int) -> bytes:
        """The same batch without compression, for which its checksum is wrong."""
        records = unpack(codec, data[_HEAD:])
        self._unpacked += len(records)
        return data[:_CODEC_AT] + bytes([data[_CODEC_AT] & ~_CODEC_MASK]) + data[_CODEC_AT + 1 : _HEAD] + records


def hand_on() -> None:
    """From here on, consumers of this process give batches instead of records, and count these as one."""
    fetcher.MemoryRecords, fetcher.PartitionRecords = Fetched, Batches
