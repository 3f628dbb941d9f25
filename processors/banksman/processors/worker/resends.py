"""Which records of an agent were sent again: they are stored again, and counted once.

A client numbers its events (`seq`) and sends what was not acknowledged again, under the same numbers. So per source the
numbers are kept that came, as the few ranges that they make; of the newest ones also what their ids were: a program that
gives a number to two events must not hide the second. An event whose id (a UUIDv7) is younger than every one before it was
never sent before, whatever its number: its client began to count anew, and what it made before that is looked for in the
numbers before that. Where nothing counts, the newest ids are kept instead.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from banksman.events import Event

SOURCES = 100
"""Of one agent, the most lately heard of: a process is one."""
RANGES = 32
"""Of one source: holes in its numbers that may still be filled."""
NUMBERS = 64
"""Of one source, the newest, whose ids are known."""
IDS = 256
AHEAD_MS = 60_000
"""An id that was made so long after its record was received says nothing of when."""


class Source(msgspec.Struct, array_like=True):
    """`ranges`: first and last of each, one after another, ascending. `newest`: number -> CRC-32 of its id."""

    ranges: list[int] = []
    newest: dict[int, int] = {}
    last_ms: int = 0
    """When the newest id was made, as the id says."""
    earlier: list[int] = []
    """The ranges of before its client began to count anew."""
    since_ms: int = 0
    """When that was."""


class Sources(msgspec.Struct, array_like=True):
    """What one agent has sent. `sources`: the most lately heard of last."""

    sources: dict[str, Source] = {}
    ids: list[bytes] = []


def is_resend(known: Sources, event: Event, received_ms: int) -> bool:
    """Whether a record was there before. Notes it. `received_ms`: when the broker got it."""
    if event.seq is None:
        name = bytes.fromhex(event.id.replace("-", ""))
        if name in known.ids:
            return True
        known.ids.append(name)
        del known.ids[:-IDS]
        return False
    source = known.sources.pop(event.source, None) or Source()
    known.sources[event.source] = source
    while len(known.sources) > SOURCES:
        del known.sources[next(iter(known.sources))]
    crc, made_ms = zlib.crc32(event.id.encode()), int(event.id[:8] + event.id[9:13], 16)
    if made_ms < source.since_ms:
        return not _note(source.earlier, event.seq)
    new = _note(source.ranges, event.seq)
    said = made_ms if made_ms <= received_ms + AHEAD_MS else 0
    if not new and source.newest.get(event.seq, crc) != crc:
        new = True  # another event under a number that was used
    elif not new and said > source.last_ms:  # its client counts anew
        new, source.earlier, source.since_ms = True, source.ranges, said
        source.ranges, source.newest = [event.seq, event.seq], {}
    source.last_ms = max(source.last_ms, said)
    source.newest.pop(event.seq, None)
    source.newest[event.seq] = crc
    while len(source.newest) > NUMBERS:
        del source.newest[next(iter(source.newest))]
    return not new


def _note(ranges: list[int], number: int) -> bool:
    """Put a number into ranges; True when it was in none of them. Beyond so many ranges the lowest hole is given up: what would
    still come into it counts as sent again.
    """
    at = bisect_right(ranges, number)
    if at % 2 or (at and ranges[at - 1] == number):
        return False
    joins_before = at > 0 and ranges[at - 1] == number - 1
    joins_after = at < len(ranges) and ranges[at] == number + 1
    if joins_before and joins_after:
        del ranges[at - 1 : at + 1]
    elif joins_before:
        ranges[at - 1] = number
    elif joins_after:
        ranges[at] = number
    else:
        ranges[at:at] = [number, number]
    if len(ranges) > 2 * RANGES:
        del ranges[1:3]
    return True
