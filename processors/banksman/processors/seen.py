"""Which bytes an (agent, id) had: how a reused id is noticed, also across restarts, without asking ClickHouse for each.

An id is a UUIDv7 and says when it was made. One that was made after the newest record that this archiver knows to be
stored can only be in memory; one that was made before is asked of ClickHouse, as is one that claims to be from the future.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from banksman.processors.rows import Row

Key = tuple[str, str]

GENERATION = 150_000
"""Ids in each of the two generations that are remembered."""

CLOCKS_MS = 120_000
"""How far an author's clock may be ahead before its ids are not believed."""


class SeenIds:
    """Not for replayed history, whose ids come from a file and are the same in every run.

    `hash` is SipHash under a key of this process: nobody outside can make two texts that collide.
    """

    def __init__(self) -> None:
        self.floor_ms = 0
        self._floor = _prefix(0)
        self._young: dict[Key, int] = {}
        self._old: dict[Key, int] = {}
        self._ceiling_of, self._ceiling = 0.0, ""
        self._newest_ms = self._old_newest_ms = 0

    def raise_floor(self, received_ms: int) -> None:
        """Records received up to then may be stored without being remembered here."""
        if received_ms + CLOCKS_MS > self.floor_ms:
            self.floor_ms = received_ms + CLOCKS_MS
            self._floor = _prefix(self.floor_ms)

    def to_look_up(self, rows: Iterable[Row]) -> dict[Key, str]:
        """The (agent, id) of which only ClickHouse knows whether they were used before -> the id's own time, as hex."""
        asked: dict[Key, str] = {}
        young, old, floor = self._young, self._old, self._floor
        for row in rows:
            values = row.values
            made = values["id"][:13]
            if floor <= made <= self._latest(values["received"]):
                continue
            key = (values["agent"] or "", values["id"])
            if key not in young and key not in old:
                asked[key] = made
        return asked

    def reused(self, rows: Iterable[Row], stored: Mapping[Key, str]) -> list[Row]:
        """The rows whose agent used their id before, for other bytes. `stored`: the texts that ClickHouse had of them."""
        found = []
        for row in rows:
            values = row.values
            key, mark = (values["agent"] or "", values["id"]), hash(values["raw"])
            first = self._young.get(key)
            if first is None:
                first = self._old.get(key)
                if first is None:
                    first = hash(stored[key]) if key in stored else mark
                self._young[key] = first
            if first != mark:
                found.append(row)
            self._newest_ms = max(self._newest_ms, round(values["received"] * 1000))
        if len(self._young) > GENERATION:
            if self._old:
                self.raise_floor(self._old_newest_ms)
            self._old, self._young = self._young, {}
            self._old_newest_ms = self._newest_ms
        return found

    def _latest(self, received: float) -> str:
        if received != self._ceiling_of:  # all records of one batch were received at the same moment
            self._ceiling_of, self._ceiling = received, _prefix(round(received * 1000) + CLOCKS_MS)
        return self._ceiling


def _prefix(ms: int) -> str:
    """The first 13 characters of a UUIDv7 of that millisecond: they sort as their times do."""
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}"
