"""Request bodies of the embedded ClickHouse, piece by piece: how long they are, how slow they may be, what they unpack to."""

from __future__ import annotations

import gzip
import io
import time
import zlib
from collections.abc import Iterator
from email.message import Message
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banksman.local.chdb import bodies
from banksman.local.chdb.bodies import Body, decoded
from banksman.local.chdb.compress import encoder
from banksman.local.chdb.faults import Fault


def body(data: bytes, limit: int = 1 << 20, **headers: str) -> Body:
    """The body of a request with these headers."""
    message = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return Body(io.BufferedReader(io.BytesIO(data)), message, limit)


def chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part) + b"0\r\n\r\n"


@given(st.binary(max_size=500), st.binary(max_size=20))
def test_a_body_of_known_length_ends_there(data: bytes, next_request: bytes) -> None:
    assert b"".join(body(data + next_request, Content_Length=str(len(data)))) == data


@given(st.lists(st.binary(max_size=100), max_size=8))
def test_chunks_come_as_one_body(parts: list[bytes]) -> None:
    assert b"".join(body(chunked(parts), Transfer_Encoding="chunked")) == b"".join(parts)


def test_extensions_and_trailers_of_chunks_are_passed_over() -> None:
    data = b"3 ;name=value\r\nabc\r\n0\r\nX-Checksum: 1\r\n\r\n"
    assert b"".join(body(data, Transfer_Encoding="Chunked")) == b"abc"


@pytest.mark.parametrize(
    "data",
    [b"x\r\nabc\r\n0\r\n\r\n", b"-3\r\nabc", b"0x3\r\nabc\r\n", b"2\r\nabc\r\n0\r\n\r\n", b"3\nabc\n0\n\n", b"123456789\r\n",
     b"\r\n",      b"0\r\n" + b"A: b\r\n" * 100 + b"\r\n"],
)  # fmt: skip
def test_chunks_that_could_be_read_in_two_ways_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"chunk|trailers"):
        list(body(data, Transfer_Encoding="chunked"))


@pytest.mark.parametrize("data", [b"ab", b"3\r\nab", b""])
def test_a_body_that_breaks_off_is_no_whole_one(data: bytes) -> None:
    known: dict[str, Any] = {"Transfer_Encoding": "chunked"} if data.startswith(b"3") else {"Content_Length": "3"}
    with pytest.raises(ConnectionResetError):
        list(body(data, **known))


@pytest.mark.parametrize("headers", [{"Content_Length": "11"}, {"Transfer_Encoding": "chunked"}])
def test_nothing_of_a_piece_beyond_the_limit_is_read(headers: dict[str, Any]) -> None:
    data = b"x" * 11 if "Content_Length" in headers else chunked([b"x" * 11])
    with pytest.raises(Fault) as refused:
        list(body(data, limit=10, **headers))
    assert (refused.value.code, refused.value.status) == (307, 413)


def test_a_body_that_comes_too_slowly_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PATIENCE", -1.0)
    with pytest.raises(Fault) as refused:
        list(body(b"abc", Content_Length="3"))
    assert (refused.value.code, refused.value.status) == (209, 408)


def test_every_64_kib_earn_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    sent = body(bytes(4 << 20), limit=8 << 20, Content_Length=str(4 << 20))
    for _ in sent:
        now += 16.0  # a second for each 64 KiB of a piece of 1 MiB, and a minute was there before
    assert now == 64.0


def test_what_is_left_of_a_body_is_drained_but_not_without_end() -> None:
    assert body(b"x" * 100, Content_Length="100").drain(100, 1.0)
    assert not body(b"x" * 101, Content_Length="101").drain(100, 1.0)
    assert not body(b"x", Content_Length="2").drain(100, 1.0)


# --- compressed


@given(st.binary(max_size=3000), st.integers(1, 50), st.sampled_from(["gzip", "deflate", "lz4", "zstd"]))
def test_what_is_packed_unpacks_whatever_the_pieces(data: bytes, size: int, name: str) -> None:
    made = encoder(name, level=3)
    assert made is not None
    half = len(data) // 2
    whole = made.add(data[:half]) + made.flush() + made.add(data[half:]) + made.end()
    pieces = (whole[at : at + size] for at in range(0, len(whole), size))
    assert b"".join(decoded(pieces, name, 1 << 20)) == data


def test_frames_may_follow_each_other_and_the_limit_counts_both() -> None:
    two = gzip.compress(b"a" * 600) + gzip.compress(b"b" * 600)
    assert b"".join(decoded(iter([two]), "gzip", 1200)) == b"a" * 600 + b"b" * 600
    with pytest.raises(Fault) as refused:
        list(decoded(iter([two]), "gzip", 1199))
    assert refused.value.code == 307


def test_a_bomb_is_read_as_far_as_the_limit_only() -> None:
    taken = 0

    def pieces() -> Iterator[bytes]:
        nonlocal taken
        bomb = zlib.compress(bytes(64 << 20))
        for at in range(0, len(bomb), 1000):
            taken += 1
            yield bomb[at : at + 1000]

    with pytest.raises(Fault) as refused:
        for _ in decoded(pieces(), "deflate", 4 << 20):
            pass
    assert refused.value.code == 307
    assert taken < 10


@pytest.mark.parametrize(
    ("accepted", "name"),
    [
        ("gzip, deflate", "gzip"), ("lz4;q=0, zstd", "zstd"), ("identity", None), ("br", None), ("GZIP", "gzip"),
        ("gzip;q=0.0", None), ("gzip, lz4, zstd", "lz4"),
    ],
)  # fmt: skip
def test_which_encoding_an_answer_gets(accepted: str, name: str | None) -> None:
    made = encoder(accepted, level=3)
    assert (made.name if made else None) == name
