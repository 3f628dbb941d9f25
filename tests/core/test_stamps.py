"""Ids that are made in advance."""

from __future__ import annotations

import os
import threading
import time
import uuid

import pytest

from banksman import stamps


def ms_of(name: str) -> int:
    made = uuid.UUID(name)
    assert (made.version, str(made)) == (7, name)
    return made.int >> 80


@pytest.fixture(autouse=True)
def none_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other tests."""
    stamps._ready.clear()
    monkeypatch.setattr(stamps, "_ready_ns", 0)


def test_an_id_is_never_older_than_50_ms_nor_younger_than_its_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_764_000_000_000_000_000
    for made, asked in ((0, 0), (0, 49), (0, 51), (0, -1), (100, 100), (0, 7_200_000)):
        monkeypatch.setattr(time, "time_ns", lambda made=made: now + made * 1_000_000)
        stamps.prepare()
        wanted = (now + asked * 1_000_000) // 1_000_000
        assert wanted - 50 < ms_of(stamps.uuid7_ready(now + asked * 1_000_000)) <= wanted
        stamps._ready.clear()


def test_what_was_made_in_advance_is_taken_and_made_again_when_it_is_old() -> None:
    stamps.prepare()
    there = set(stamps._ready)
    assert {stamps.uuid7_ready(stamps._ready_ns) for _ in there} == there
    later = stamps.uuid7_ready(stamps._ready_ns)  # none is left
    assert later not in there
    stamps.prepare()
    there = set(stamps._ready)
    stamps.prepare()
    assert set(stamps._ready) == there, "they are young"
    stamps._ready_ns -= 30_000_000
    stamps.prepare()
    assert not there & set(stamps._ready)


def test_no_id_is_given_twice_by_threads_that_take_and_one_that_makes() -> None:
    found: list[list[str]] = [[] for _ in range(4)]
    over = threading.Event()

    def take(mine: list[str]) -> None:
        mine.extend(stamps.uuid7_ready(time.time_ns()) for _ in range(20_000))

    def make() -> None:
        while not over.is_set():
            stamps.prepare()

    maker = threading.Thread(target=make)
    takers = [threading.Thread(target=take, args=(mine,)) for mine in found]
    for thread in (maker, *takers):
        thread.start()
    for thread in takers:
        thread.join()
    over.set()
    maker.join()
    assert len({name for mine in found for name in mine}) == 80_000


def test_a_forked_child_has_none_of_its_parents_ids() -> None:
    stamps.prepare()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, stamps.uuid7_ready(stamps._ready_ns).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with open(reading, "rb") as told:
        assert told.read().decode() not in stamps._ready
