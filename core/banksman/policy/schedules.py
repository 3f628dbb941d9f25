"""Named times: hours of the week, and from one moment to another, each in its zone. `when: {time: {during: office-hours}}`."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import msgspec

if TYPE_CHECKING:
    from datetime import tzinfo

LATEST = 253_370_764_800.0
"""The year 9999: beyond, no zone has a clock."""
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Schedule(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """`days` (0 is Monday; empty: every day) from minute `since` to minute `until` of the day, by the wall clock of
    `timezone`; and `begins` to `ends`, as that clock shows them. What is None bounds nothing. An `until` that is not later than
    `since` is the next day's: the day that counts is the one it began on.
    """

    timezone: str
    days: tuple[int, ...] = ()
    since: int | None = None
    until: int | None = None
    begins: datetime | None = None
    ends: datetime | None = None


def holds(schedule: Schedule, at: float) -> bool:
    """Whether a moment (seconds since 1970) is in it."""
    at = max(0.0, min(at, LATEST))
    begins, ends = _bounds(schedule)
    if not begins <= at < ends:
        return False
    local = datetime.fromtimestamp(at, _zone(schedule.timezone))
    since, until = schedule.since or 0, 1440 if schedule.until is None else schedule.until
    minute, day = local.hour * 60 + local.minute, local.weekday()
    if since < until:
        return since <= minute < until and _on(schedule, day)
    return (minute >= since and _on(schedule, day)) or (minute < until and _on(schedule, (day - 1) % 7))


@lru_cache(1024)
def _bounds(schedule: Schedule) -> tuple[float, float]:
    """When it begins and ends, as moments: an hour that comes twice is in it as a whole."""
    zone = _zone(schedule.timezone)
    begins = -inf if schedule.begins is None else schedule.begins.replace(tzinfo=zone, fold=0).timestamp()
    return begins, inf if schedule.ends is None else schedule.ends.replace(tzinfo=zone, fold=1).timestamp()


def _on(schedule: Schedule, day: int) -> bool:
    return not schedule.days or day in schedule.days


@lru_cache(256)
def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)  # UTC needs no time zone data on the machine
