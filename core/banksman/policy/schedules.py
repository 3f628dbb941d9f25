"""Named times: hours of the week, and from one moment to another, each in its zone. `when: {time: {during: office-hours}}`."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import msgspec

if TYPE_CHECKING:
    from datetime import tzinfo

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
    local = datetime.fromtimestamp(at, _zone(schedule.timezone)).replace(tzinfo=None)
    if schedule.begins is not None and local < schedule.begins:
        return False
    if schedule.ends is not None and local >= schedule.ends:
        return False
    since, until = schedule.since or 0, 1440 if schedule.until is None else schedule.until
    minute, day = local.hour * 60 + local.minute, local.weekday()
    if since < until:
        return since <= minute < until and _on(schedule, day)
    return (minute >= since and _on(schedule, day)) or (minute < until and _on(schedule, (day - 1) % 7))


def _on(schedule: Schedule, day: int) -> bool:
    return not schedule.days or day in schedule.days


@lru_cache(256)
def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)  # UTC needs no time zone data on the machine
