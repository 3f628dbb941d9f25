"""Events as frames in a file: what is written, and what can be believed of what is read back.

A frame is length (4 bytes), CRC-32 (4), seq (8), then the event's bytes; the CRC covers seq and bytes. A frame begins with
a zero byte (no event is 16 MiB long), and an event, which is JSON, holds none: so behind damage the next whole frame can
be found again. What is not whole is never handed on.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
from zlib import crc32

MAX_PAYLOAD = 1 << 20
_HEAD = struct.Struct(">IIQ")
_SEQ = struct.Struct(">Q").pack
OVERHEAD = _HEAD.size
MAX_FRAME = OVERHEAD + MAX_PAYLOAD


class Frame(NamedTuple):
    """One event: its number, its bytes, and where its frame ends, counted from where the reading began."""

    seq: int
    payload: bytes
    end: int


class Reading(NamedTuple):
    """What was found: whole frames in ascending `seq`, how far was read, and how many bytes of that made no sense."""

    frames: list[Frame]
    used: int
    damaged: int


def pack(seq: int, payload: bytes) -> bytes:
    """The frame of an event."""
    return _HEAD.pack(len(payload), crc32(payload, crc32(_SEQ(seq))), seq) + payload


def read(data: bytes, after: int, *, last: bool) -> Reading:
    """The whole frames of `data` whose seq is greater than `after`.

    `last`: nothing follows `data`. Otherwise a frame that is cut off at its end is left for the next reading, which must
    begin there and be at least MAX_FRAME long, or reach the end of the file.
    """
    found: list[Frame] = []
    at, damaged, size = 0, 0, len(data)
    while at < size:
        if size - at >= OVERHEAD:
            length, crc, seq = _HEAD.unpack_from(data, at)
            end = at + OVERHEAD + length
            plausible = length <= MAX_PAYLOAD
        else:
            end, plausible = size + 1, data[at] == 0
        if plausible and end > size and not last:
            break
        if plausible and end <= size:
            payload = data[at + OVERHEAD : end]
            if crc32(payload, crc32(_SEQ(seq))) == crc:
                if seq > after:
                    found.append(Frame(seq, payload, end))
                    after = seq
                at = end
                continue
        behind = data.find(b"\0", at + 1)
        behind = size if behind < 0 else behind
        damaged += behind - at
        at = behind
    return Reading(found, at, damaged)
