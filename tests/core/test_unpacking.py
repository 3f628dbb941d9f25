"""Compressed batches: what other clients write is read, and nothing unpacks to more than the bound."""

from __future__ import annotations

import contextlib
import os
import tracemalloc
import zlib
from collections.abc import Callable

import lz4.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banksman.local.chdb.bodies import zstandard
from banksman.unpacking import CannotUnpack, unpack

GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4


def gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


def varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])


def snappy(data: bytes) -> bytes:
    """Literals of all lengths, and a copy wherever the last bytes come again: enough of the format to read it by."""
    made, at = bytearray(varint(len(data))), 0
    while at < len(data):
        run = next((n for n in range(1, 65) if data[at + n - 1 : at + n] != data[at - 1 : at]), 65) - 1 if at else 0
        if run >= 4:
            made += bytes([(run - 1) << 2 | 2, 1, 0])  # a copy from one byte back: it overlaps itself
            at += run
            continue
        piece = data[at : at + 70_000]
        stop = next((n for n in range(1, len(piece) - 4) if len(set(piece[n - 1 : n + 4])) == 1), len(piece))
        piece = piece[:stop]
        size = len(piece) - 1
        made += bytes([size << 2]) if size < 60 else bytes([61 << 2]) + size.to_bytes(2, "little") if size < 1 << 16 else (
            bytes([62 << 2]) + size.to_bytes(3, "little")
        )  # fmt: skip
        made += piece
        at += len(piece)
    return bytes(made)


def xerial(data: bytes) -> bytes:
    """As the Java client frames it: blocks of 32 KiB."""
    made = bytearray(b"\x82SNAPPY\x00" + (1).to_bytes(4, "big") * 2)
    for first in range(0, len(data), 32 << 10):
        block = snappy(data[first : first + (32 << 10)])
        made += len(block).to_bytes(4, "big") + block
    return bytes(made)


PACKERS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "gzip": (GZIP, gzip), "snappy": (SNAPPY, snappy), "xerial": (SNAPPY, xerial),
    "lz4": (LZ4, lz4.frame.compress), "zstd": (ZSTD, zstandard().compress),
}  # fmt: skip


@pytest.mark.parametrize("name", PACKERS)
@settings(max_examples=30, deadline=None)
@given(
    pieces=st.lists(
        st.one_of(st.binary(max_size=200), st.binary(min_size=1, max_size=1).map(lambda b: b * 500)), max_size=8
    )
)
def test_what_went_in_comes_out(name: str, pieces: list[bytes]) -> None:
    codec, pack = PACKERS[name]
    assert unpack(codec, pack(b"".join(pieces))) == b"".join(pieces)


@pytest.mark.parametrize("name", PACKERS)
def test_larger_ones(name: str) -> None:
    codec, pack = PACKERS[name]
    data = b"".join(os.urandom(50) + b"z" * 100 for _ in range(2000)) + os.urandom(100_000)
    assert unpack(codec, pack(data)) == data


def test_a_text_that_snappy_itself_packed() -> None:
    """From the format's description: a copy that is longer than what it copies."""
    assert unpack(SNAPPY, b"\x0b" + bytes([4 << 2]) + b"hello" + bytes([(6 - 4) << 2 | 1, 5])) == b"hellohelloh"


def test_frames_may_follow_each_other() -> None:
    for codec, pack in (PACKERS["gzip"], PACKERS["lz4"], PACKERS["zstd"]):
        assert unpack(codec, pack(b"one") + pack(b"two")) == b"onetwo"


@pytest.mark.parametrize("name", PACKERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_is_an_error_or_other_bytes_and_nothing_worse(name: str, data: st.DataObject) -> None:
    codec, pack = PACKERS[name]
    packed = bytearray(pack(b"abc" * 50 + bytes(range(200))))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(packed) - 1))
        packed[at] = data.draw(st.integers(0, 255))
    del packed[data.draw(st.integers(0, len(packed))) :]
    with contextlib.suppress(CannotUnpack):
        assert len(unpack(codec, bytes(packed))) <= 32 << 20


@pytest.mark.parametrize("name", PACKERS)
def test_a_bomb_is_not_unpacked(name: str) -> None:
    codec, pack = PACKERS[name]
    bomb = pack(bytes(3 << 20))
    tracemalloc.start()
    with pytest.raises(CannotUnpack, match="unpacks to"):
        unpack(codec, bomb, 1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 << 20


def test_a_way_that_nobody_knows() -> None:
    with pytest.raises(CannotUnpack, match="not known here"):
        unpack(5, b"")
