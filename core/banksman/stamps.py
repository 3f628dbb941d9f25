"""Ids and times as they stand on the wire: UUIDv7 (RFC 9562) in lower case, RFC 3339 in UTC with microseconds and a `Z`. And
the clock for what must not last longer because a machine slept.
"""

from __future__ import annotations

import hashlib
import os
import time
from datetime import UTC, datetime
from functools import lru_cache

_TAILS_AT_ONCE = 512
_tails: list[str] = []
"""The random parts of the next ids. The system's call for random bits lets go of the interpreter, which another thread then
has for milliseconds: so it is made once for many. A forked child must not use its parent's.
"""
os.register_at_fork(after_in_child=_tails.clear)

_READY, _FRESH_NS = 8, 50_000_000
_ready: list[str] = []
_ready_ns = 0
"""Whole ids, made in advance, and when. Out of cold caches, to take one costs a tenth of making one."""
os.register_at_fork(after_in_child=_ready.clear)


def boottime() -> float:
    """Seconds since boot, those of suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def uuid7(at_ms: int | None = None) -> str:
    """A fresh UUIDv7: milliseconds since 1970, then 72 random bits."""
    ms = time.time_ns() // 1_000_000 if at_ms is None else at_ms
    digits = hex(1 << 48 | ms & 0xFFFFFFFFFFFF)  # "0x1" and twelve digits: half the work of a format
    while True:
        try:
            return f"{digits[3:11]}-{digits[11:]}{_tails.pop()}"
        except IndexError:  # another thread may take them all before this one has its own
            _more_tails(_TAILS_AT_ONCE)


def uuid7_ready(now_ns: int) -> str:
    """A fresh UUIDv7 for nanoseconds since 1970: one that was made at most 50 ms before, where there is one."""
    if 0 <= now_ns - _ready_ns < _FRESH_NS:
        try:
            return _ready.pop()
        except IndexError:
            pass
    return uuid7(now_ns // 1_000_000)


def prepare() -> None:
    """Make ids, and random parts, before they run out or are too old, in a thread that has the time: 512 random parts cost as
    much as a hundred ids.
    """
    global _ready_ns  # noqa: PLW0603 - one process, one store of ids
    if len(_tails) < _TAILS_AT_ONCE // 2:
        _more_tails(_TAILS_AT_ONCE // 4)
    now = time.time_ns()
    if len(_ready) <= _READY // 2 or not 0 <= now - _ready_ns < _FRESH_NS // 2:
        _ready[:] = [uuid7(now // 1_000_000) for _ in range(_READY)]
        _ready_ns = now


def _more_tails(count: int) -> None:
    _tails.extend(map(_tail, os.urandom(10 * count).hex(" ", 10).split()))


def uuid7_from(at_ms: int, *parts: str) -> str:
    """A UUIDv7 that is the same whenever it is made: the given milliseconds, then a hash where randomness would be."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    tail = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:10], "big")
    number = (at_ms & (1 << 48) - 1) << 80 | 0x7 << 76 | (tail >> 68 & 0xFFF) << 64 | 0b10 << 62 | tail & (1 << 62) - 1
    made = f"{number:032x}"
    return f"{made[:8]}-{made[8:12]}-{made[12:16]}-{made[16:20]}-{made[20:]}"


def _tail(digits: str) -> str:
    return f"-7{digits[:3]}-8{digits[3:6]}-{digits[6:18]}"


def rfc3339(moment: datetime | None = None) -> str:
    """Of now when no moment is given."""
    moment = datetime.now(UTC) if moment is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds")[:26] + "Z"


def rfc3339_ms(ms: int) -> str:
    """Of milliseconds since 1970: Kafka's timestamps."""
    return rfc3339(datetime.fromtimestamp(ms / 1000, UTC))


def moment_ms(text: str) -> float:
    """Milliseconds since 1970 of a time as `rfc3339` writes it."""
    return datetime.fromisoformat(text).timestamp() * 1000


def rfc3339_ns(ns: int) -> str:
    """Of nanoseconds since 1970, cut to microseconds. The text of a second is kept: a fraction of the work of `rfc3339`."""
    second, rest = divmod(ns, 1_000_000_000)
    return f"{_second(second)}.{rest // 1000:06d}Z"


@lru_cache(maxsize=8)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
