"""What was fetched of a partition, in batches: where it goes on, what cannot be read, how much of it at once."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from banksman.batches import UNPACKED_AT_ONCE, Batch, Batches, Fetched

WHERE = TopicPartition("t", 0)
GZIP = 1


def packed(
    first: int, values: list[bytes], *, codec: int = 0, header: str = "h", control: bool = False, cut: int = 0
) -> bytes:
    """A batch as Kafka hands it out: its place in the log, stamped on append."""
    builder = DefaultRecordBatchBuilder(2, codec, int(control), -1, -1, -1, 1 << 26)
    for offset, value in enumerate(values):
        assert builder.append(offset, 1000, b"k", value, [(header, b"")]) is not None
    data = bytearray(bytes(builder.build()).replace(b"[[", b"\xff\xfe"))
    if cut:
        del data[-cut:]
        data[8:12] = (len(data) - 12).to_bytes(4, "big")
    data[0:8] = first.to_bytes(8, "big")
    data[22] |= 0x08 | (0x20 if control else 0)  # stamped by the broker; a mark of a transaction
    data[35:43] = (7000).to_bytes(8, "big")
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    return bytes(data)


def read(data: bytes, offset: int = 0) -> tuple[list[Batch], int]:
    """(the batches, where the next fetch goes on)."""
    made = Batches(WHERE, Fetched(data), None, offset, None, None, True, 0)
    return list(made), made.next_fetch_offset


def offsets(found: list[Batch]) -> list[int]:
    return [record.offset for batch in found for record in batch.records]


def test_batches_in_a_row_and_the_beginning_of_one_more() -> None:
    data = packed(10, [b"a", b"b"]) + packed(12, [b"c"]) + packed(13, [b"d"])[:-1]
    found, following = read(data, 10)
    assert [(one.first, one.last, one.received_ms, one.unreadable) for one in found] == [
        (10, 11, 7000, ""),
        (12, 12, 7000, ""),
    ]
    assert offsets(found) == [10, 11, 12]
    assert [record.value for record in found[0].records] == [b"a", b"b"]
    assert following == 13


def test_the_middle_of_a_batch() -> None:
    for codec in (0, GZIP):
        found, following = read(packed(10, [b"a", b"b", b"c"], codec=codec), 11)
        assert (found[0].first, found[0].last, offsets(found), following) == (11, 12, [11, 12], 13)


def test_marks_of_transactions_are_passed_over_and_leave_no_gap() -> None:
    data = packed(0, [b"a"]) + packed(1, [b"\0\0\0\0"], control=True) + packed(2, [b"b"])
    found, following = read(data)
    assert [(one.first, one.last) for one in found] == [(0, 0), (1, 1), (2, 2)]
    assert (offsets(found), following) == ([0, 2], 3)


def test_what_comes_before_an_unreadable_record_is_read() -> None:
    good, bad = packed(0, [b"a", b"b"]), packed(2, [b"c"], header="[[")
    found, following = read(good + bad + packed(3, [b"d"]))
    assert offsets(found) == [0, 1, 3]
    assert found[1].unreadable.startswith("offsets 2 to 2: a header's name is not UTF-8")
    assert following == 4


def test_records_that_are_no_records_are_unreadable_and_a_wrong_checksum_is_read_again() -> None:
    found, following = read(packed(0, [b"abc", b"def"], cut=2))
    assert offsets(found) == [0]
    assert found[0].unreadable.startswith("offsets 1 to 1: no records of Kafka's")
    assert following == 2
    damaged = bytearray(packed(0, [b"abc"]))
    damaged[-1] ^= 1
    with pytest.raises(CorruptRecordException):
        read(bytes(damaged))


@pytest.mark.parametrize("length", [-1, 0, 40, 2**31 - 1])
def test_a_length_that_cannot_be_ends_the_reading(length: int) -> None:
    data = bytearray(packed(0, [b"abc"]))
    data[8:12] = length.to_bytes(4, "big", signed=True)
    assert read(bytes(data)) == ([], 0)


def test_a_bomb_is_one_unreadable_batch() -> None:
    data = packed(5, [bytes(40 << 20)], codec=GZIP)
    found, following = read(data + packed(6, [b"x"]), 5)
    assert found[0].unreadable == "offsets 5 to 5: its gzip unpacks to more than 32 MiB"
    assert len(found) == 1  # each may take as long as all that a fetch may unpack
    found, _ = read(packed(6, [b"x"]), following)
    assert offsets(found) == [6]


def test_records_that_say_that_they_stand_elsewhere() -> None:
    """Kafka gives a batch its place, and does not look at the numbers inside."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 26)
    for delta in (0, 1, 1, 2**31 - 200, 2):
        assert builder.append(delta, 1000, b"k", b"%d" % delta, []) is not None
    data = bytearray(bytes(builder.build()))
    data[0:8] = (5).to_bytes(8, "big")
    data[23:27] = (2).to_bytes(4, "big")  # the last of them
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    found, following = read(bytes(data), 5)
    assert (offsets(found), following) == ([5, 6, 7], 8)
    assert found[0].unreadable == "offsets 5 to 7: 2 records say that they stand elsewhere"


def test_bombs_below_the_bound_are_taken_one_after_another() -> None:
    """Sixteen times 8 MiB in one fetch: what is over the bound is fetched again, and nothing is passed over."""
    data = b"".join(packed(n, [bytes(8 << 20)], codec=GZIP) for n in range(16))
    seen: list[int] = []
    following = fetches = 0
    while following < 16:
        found, following = read(data[_at(data, following) :], following)
        assert sum(len(record.value) for batch in found for record in batch.records) <= UNPACKED_AT_ONCE + (8 << 20)
        seen += offsets(found)
        fetches += 1
    assert seen == list(range(16))
    assert fetches > 4


def _at(data: bytes, offset: int) -> int:
    at = 0
    while int.from_bytes(data[at : at + 8], "big") < offset:
        at += 12 + int.from_bytes(data[at + 8 : at + 12], "big")
    return at


def test_fetched_has_what_aiokafka_asks_of_it() -> None:
    data = packed(0, [b"a"])
    fetched: Any = Fetched(data)
    assert fetched.size_in_bytes() == len(data)
    assert Fetched(b"").has_next() is False
    assert Fetched(data[:-1]).has_next() is False


def test_records_are_made_anew_whenever_they_are_gone_through() -> None:
    found, _ = read(packed(0, [b"a", b"b"]) + packed(2, [b"c"], header="[["))
    for _ in range(2):
        assert offsets(found) == [0, 1]
        assert found[1].unreadable.startswith("offsets 2 to 2: a header's name is not UTF-8")
