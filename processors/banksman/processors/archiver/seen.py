"""Which ids an agent has used: how a reused one is noticed, also across restarts, without asking ClickHouse for each.

An id is a UUIDv7 and says when it was made, which is before its record is received. So one that was made after everything
that this archiver does not remember was received is new if it is not remembered. The others are asked of ClickHouse, which
has every row of the rounds before: those that were made earlier, those that are remembered, and those that claim to be from
the future.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from banksman.processors.archiver.rows import Entry, Rows
    from banksman.store.client import Store

GENERATION = 500_000
"""Ids in each of the two generations that are remembered (about 80 bytes an id): ten seconds at 50,000 a second."""

AHEAD_MS = 2000
"""How far an author's clock may be ahead of the broker's before its ids are from the future."""

LOOK_UP = 4000
"""Ids in one question: their text stays below ClickHouse's `max_query_size`."""

CLOCKS_MS = 600_000
"""How far an author's clock may have been ahead when it first used an id, for ClickHouse to be asked that far back."""

FROM_THE_FUTURE = 100_000
"""Ids of that sort that are remembered for longer, until their time has come."""


class Key(NamedTuple):
    """Ids of two agents never meet."""

    agent: str
    id: str


class SeenIds:
    """Not for replayed history, whose ids come from a file and are the same in every run.

    What is remembered of an id is its SipHash under a key of this process: nobody outside can make two that collide.
    """

    def __init__(self, generation: int = GENERATION) -> None:
        self._most = generation
        self._young: set[int] = set()
        self._old: set[int] = set()
        self._future: OrderedDict[int, None] = (
            OrderedDict()
        )  # a dict finds its first key slowly when many were taken out
        self._floor_ms, self._floor = 0, ""
        self._newest_ms = self._old_newest_ms = 0

    def forgotten_up_to(self, received_ms: int) -> None:
        """Records received until then may have been stored without being remembered here."""
        if received_ms + AHEAD_MS > self._floor_ms:
            self._floor_ms = received_ms + AHEAD_MS
            self._floor = prefix(self._floor_ms)

    def perhaps_used(self, many: Sequence[Rows]) -> list[tuple[Rows, int]]:
        """The rows of one round whose (agent, id) may have been used before, in rounds before or in this one, as (rows,
        place); all of those that share one in this round. Remembers all of them. Those that are not given are new.
        """
        hashed = [(rows, list(map(hash, zip(rows.columns["agent"], rows.columns["id"], strict=True)))) for rows in many]
        once: set[int] = set().union(*(hashes for _, hashes in hashed))
        known = once & self._young | once & self._old | once & self._future.keys()
        if len(once) < sum(map(len, many)):
            times = Counter(chain.from_iterable(hashes for _, hashes in hashed))
            known.update(h for h, count in times.items() if count > 1)
        found: list[tuple[Rows, int]] = []
        for rows, hashes in hashed:
            places = self._not_believed(rows.columns["id"], rows.columns["received"], hashes)
            if known:
                places.update(place for place, h in enumerate(hashes) if h in known)
            found += [(rows, place) for place in sorted(places)]
        self._remember(once, max((rows.columns["received"][-1] for rows in many), default=0))
        return found

    def _not_believed(self, ids: Sequence[str], received: Sequence[int], hashes: Sequence[int]) -> set[int]:
        """Those made before what is remembered, or in the future."""
        made = [id_[:13] for id_ in ids]
        if min(made) > self._floor and max(made) <= prefix(min(received) + AHEAD_MS):
            return set()
        ends = {ms: prefix(ms + AHEAD_MS) for ms in set(received)}
        found = set()
        for place, (at, ms, h) in enumerate(zip(made, received, hashes, strict=True)):
            if not self._floor < at <= ends[ms]:
                found.add(place)
            if at > ends[ms]:
                self._future[h] = None
        while len(self._future) > FROM_THE_FUTURE:
            self._future.popitem(last=False)
        return found

    def _remember(self, hashes: set[int], newest_ms: int) -> None:
        self._young |= hashes
        self._newest_ms = max(self._newest_ms, newest_ms)
        if len(self._young) >= self._most:
            if self._old:
                self.forgotten_up_to(self._old_newest_ms)
            self._old, self._young = self._young, set()
            self._old_newest_ms = self._newest_ms


def reused(entries: Iterable[Entry], stored: Mapping[Key, int]) -> list[Entry]:
    """Those whose agent used their id before, for other bytes. `stored`: digests of the first bytes that ClickHouse has."""
    first = dict(stored)
    found = []
    for entry in entries:
        mine = digest(entry.raw)
        if first.setdefault(Key(entry.agent or "", entry.id), mine) != mine:
            found.append(entry)
    return found


def stored_digests(store: Store, entries: Iterable[Entry]) -> dict[Key, int]:
    """Of the first bytes that ClickHouse has under the ids of these entries; what it does not have is left out. Blocking."""
    asked = {Key(entry.agent or "", entry.id): entry for entry in entries}
    found: dict[Key, int] = {}
    keys = sorted(asked, key=lambda key: key.id)  # those that were made at the same time are in one question
    for at in range(0, len(keys), LOOK_UP):
        part = keys[at : at + LOOK_UP]
        made_ms = int(part[0].id[:13].replace("-", ""), 16)
        future = part[-1].id[:13] > prefix(max(asked[key].received_ms for key in part) + AHEAD_MS)
        ids = ",".join(f"'{key.id}'" for key in part)
        agents = ",".join(f"'{agent}'" for agent in sorted({key.agent for key in part}))
        answer = store.query(
            "SELECT agent, toString(id) AS text, argMin(body_hash, (received, topic, partition, offset)) AS body "  # noqa: S608 - names and ids hold no quotes: the models saw to it
            f"FROM `{store.database}`.events WHERE agent IN ({agents}) AND id IN ({ids}) "
            "AND received >= fromUnixTimestamp64Milli({since:Int64}) GROUP BY agent, id",
            {"since": 0 if future else max(0, made_ms - CLOCKS_MS)},
        )
        found.update({Key(row["agent"], row["text"]): row["body"] for row in answer})
    return found


def digest(raw: bytes) -> int:
    """What bytes are compared by: the table's `body_hash`."""
    return int.from_bytes(sha256(raw).digest()[:16], "little")


def prefix(ms: int) -> str:
    """The first 13 characters of a UUIDv7 of that millisecond: they sort as their times do."""
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}"
