"""Reused ids are noticed as by somebody who remembers everything, while little is remembered and little is asked."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from banksman.processors.archiver.rows import Entry, Rows
from banksman.processors.archiver.seen import AHEAD_MS, FROM_THE_FUTURE, Key, SeenIds, digest, prefix, reused
from banksman.stamps import uuid7
from banksman.topics import Topic

NOW = 1_764_000_000_000


@dataclass
class World:
    """ClickHouse, and an archiver that asks it. `asked`: how often."""

    generation: int = 10
    stored: list[Entry] = field(default_factory=list)
    asked: int = 0
    seen: SeenIds = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.seen = SeenIds(self.generation)
        self.seen.forgotten_up_to(max((entry.received_ms for entry in self.stored), default=0))

    def round(self, *records: tuple[str, str, int, bytes], topic: Topic = Topic.ACTIONS) -> list[bytes]:
        """(agent, id, received, bytes) of one partition -> the bytes that are told as reused ids."""
        columns: dict[str, Any] = {
            "agent": [agent for agent, _, _, _ in records], "id": [id_ for _, id_, _, _ in records],
            "received": [ms for _, _, ms, _ in records], "raw": [raw for _, _, _, raw in records],
            "offset": range(len(self.stored), len(self.stored) + len(records)), "time": [0] * len(records),
            "kind": ["note"] * len(records), "source": [""] * len(records), "verified": [True] * len(records),
            "author": [""] * len(records), "late": [""] * len(records),
        }  # fmt: skip
        rows = Rows(topic, 0, columns)
        perhaps = self.seen.perhaps_used([rows])
        self.asked += len(perhaps)
        entries = sorted((one.entry(place) for one, place in perhaps), key=lambda entry: entry.order)
        first: dict[Key, int] = {}
        for entry in self.stored:
            first.setdefault(Key(entry.agent or "", entry.id), digest(entry.raw))
        asked = {Key(entry.agent or "", entry.id) for entry in entries}
        found = reused(entries, {key: first[key] for key in asked & first.keys()})
        self.stored += [rows.entry(place) for place in range(len(rows))]
        return [entry.raw for entry in found]


def test_ids_as_they_come_are_never_asked_of_clickhouse() -> None:
    """Also when what is remembered was turned over many times."""
    world = World()
    for second in range(200):
        now = NOW + second * 1000
        assert world.round(*[("a", uuid7(now - lag), now, b"x") for lag in (0, 3, 40, 400)]) == []
    assert world.asked <= 4 * 3, "at the most those that were made before it began"


def test_other_bytes_under_the_same_id() -> None:
    world = World()
    one = uuid7(NOW)
    assert world.round(("a", one, NOW, b"first")) == []
    assert world.round(("a", one, NOW + 1, b"second"), ("b", one, NOW + 1, b"another agent's")) == [b"second"]
    assert world.round(("a", one, NOW + 2, b"first")) == [], "a resend"


def test_twice_in_one_round() -> None:
    world = World()
    one, two = uuid7(NOW), uuid7(NOW)
    same = [("a", one, NOW, b"x"), ("a", two, NOW, b"first"), ("a", one, NOW, b"x"), ("a", two, NOW, b"second")]
    assert world.round(*same) == [b"second"]


def test_long_forgotten_and_after_a_restart() -> None:
    world = World()
    one = uuid7(NOW)
    world.round(("a", one, NOW, b"first"))
    for n in range(100):
        world.round(("a", uuid7(NOW + n * 1000), NOW + n * 1000, b"x"))
    assert world.round(("a", one, NOW + 200_000, b"second")) == [b"second"]
    world.restart()
    assert world.round(("a", one, NOW + 200_001, b"third")) == [b"third"]


def test_ids_from_the_future_are_noticed_when_their_time_has_come() -> None:
    world = World()
    ahead = uuid7(NOW + 3_600_000)
    assert world.round(("a", ahead, NOW, b"first")) == []
    for n in range(100):
        world.round(("a", uuid7(NOW + n), NOW + n, b"x"))
    assert world.round(("a", ahead, NOW + 3_600_000, b"second")) == [b"second"]


def test_what_is_remembered_has_a_bound() -> None:
    seen = SeenIds(generation=1000)
    for n in range(60):
        ids = [uuid7(NOW + 10**9 + n) for _ in range(5000)]
        columns: dict[str, Any] = {"agent": ["a"] * 5000, "id": ids, "received": [NOW] * 5000, "offset": range(5000)}
        seen.perhaps_used([Rows(Topic.ACTIONS, 0, columns)])
    assert len(seen._young) + len(seen._old) <= 3 * 5000
    assert len(seen._future) == FROM_THE_FUTURE


@given(st.integers(0, 2**32), st.integers(1, 30))
def test_as_by_somebody_who_remembers_everything(seed: int, generation: int) -> None:
    """Random lags, clocks that are up to two seconds ahead, resends, reuses, restarts: each reuse is told, nothing else is."""
    random_ = random.Random(seed)
    world = World(generation)
    first: dict[tuple[str, str], bytes] = {}
    now = NOW
    for _ in range(30):
        records, expected = [], []
        now += random_.choice([0, 1, 100, 5000])
        for _ in range(random_.randint(1, 6)):
            agent = random_.choice("ab")
            if first and random_.random() < 0.3:
                agent, id_ = random_.choice(sorted(first))
            else:
                id_ = uuid7(now + random_.choice([AHEAD_MS, 0, -1, -500, -100_000]))
            raw = random_.choice([b"x", b"y"])
            if first.setdefault((agent, id_), raw) != raw:
                expected.append(raw)
            records.append((agent, id_, now, raw))
        assert world.round(*records) == expected
        if random_.random() < 0.1:
            world.restart()


def test_prefixes_sort_as_their_times() -> None:
    for ms in (0, 1, 65_535, 65_536, NOW, 2**48 - 1):
        assert prefix(ms) == uuid7(ms)[:13]
    assert prefix(NOW) < prefix(NOW + 1)
