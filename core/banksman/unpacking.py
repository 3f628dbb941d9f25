"""Compressed record batches, unpacked to a bound.

Kafka takes a batch compressed in any of four ways and looks only at its compressed size, so two megabytes may unpack to
gigabytes. aiokafka unpacks without a bound, and three of the four only where further packages are installed.
"""

from __future__ import annotations

import sys
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 32 << 20
"""Bytes that one batch may unpack to: sixteen times what Kafka takes of one in `actions`."""

_XERIAL = b"\x82SNAPPY\x00"  # the Java library's framing of Snappy: a head of 16 bytes, then blocks with their lengths
_XERIAL_HEAD = 16


class CannotUnpack(Exception):
    """The text says why."""


def unpack(codec: int, data: bytes, most: int = MOST) -> bytes:
    """`codec`: Kafka's number. CannotUnpack: damaged, in a way that is not known here, or more than `most` bytes."""
    if codec not in _CODECS:
        raise CannotUnpack(f"compressed in a way that is not known here ({codec})")
    name, unpacked = _CODECS[codec]
    try:
        out = unpacked(data, most + 1)
    except CannotUnpack:
        raise
    except Exception as error:  # noqa: BLE001 - four libraries, each with errors of its own, over bytes that anybody wrote
        raise CannotUnpack(f"its {name} is damaged ({type(error).__name__}: {error})") from None
    if len(out) > most:
        raise CannotUnpack(f"its {name} unpacks to more than {most >> 20} MiB")
    return out


def _gzip(data: bytes, most: int) -> bytes:
    return _framed(lambda: zlib.decompressobj(31), data, most)


def _lz4(data: bytes, most: int) -> bytes:
    import lz4.frame

    return _framed(lz4.frame.LZ4FrameDecompressor, data, most)


def _zstd(data: bytes, most: int) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return _framed(zstd.ZstdDecompressor, data, most)


def _framed(make: Callable[[], Any], data: bytes, most: int) -> bytes:
    """Frames may follow each other."""
    out = bytearray()
    while data and len(out) < most:
        decoder = make()
        out += decoder.decompress(data, most - len(out))
        if len(out) < most and not decoder.eof:
            raise CannotUnpack("it ends in the middle of its compressed data")
        data = decoder.unused_data or b""
    return bytes(out)


def _snappy(data: bytes, most: int) -> bytes:
    if not data.startswith(_XERIAL):
        return bytes(_snappy_block(data, most))
    out, at = bytearray(), _XERIAL_HEAD
    while at < len(data) and len(out) < most:
        size = int.from_bytes(data[at : at + 4], "big")
        out += _snappy_block(data[at + 4 : at + 4 + size], most - len(out))
        at += 4 + size
    return bytes(out)


def _snappy_block(data: bytes, most: int) -> bytearray:
    """https://github.com/google/snappy/blob/main/format_description.txt. IndexError, ValueError: damaged."""
    length, at = 0, 0
    for shift in range(0, 35, 7):
        length |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            break
    if length >= most:
        raise CannotUnpack(f"its snappy unpacks to {length} bytes, which is too much")
    out = bytearray()
    while at < len(data):
        tag = data[at]
        at += 1
        if tag & 3 == 0:
            size = tag >> 2
            if size >= 60:
                more = size - 59
                size = int.from_bytes(data[at : at + more], "little")
                at += more
            out += data[at : at + size + 1]
            at += size + 1
        else:
            if tag & 3 == 1:
                size, back = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | data[at]
                at += 1
            else:
                more = 2 if tag & 3 == 2 else 4
                size, back = (tag >> 2) + 1, int.from_bytes(data[at : at + more], "little")
                at += more
            start = len(out) - back
            if back == 0 or start < 0:
                raise ValueError("a copy of what is not there")
            piece = out[start : start + size]
            out += piece if back >= size else (piece * (size // back + 1))[:size]
        if len(out) > length:
            break
    if len(out) != length:
        raise ValueError(f"{len(out)} bytes instead of {length}")
    return out


_CODECS: dict[int, tuple[str, Callable[[bytes, int], bytes]]] = {
    1: ("gzip", _gzip), 2: ("snappy", _snappy), 3: ("lz4", _lz4), 4: ("zstd", _zstd),
}  # fmt: skip
