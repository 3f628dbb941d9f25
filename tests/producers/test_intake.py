"""The queue between calls and spool: its bounds, its end, and what a call does not do."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from banksman import stamps
from banksman.producers import Emitter
from banksman.producers.intake import Intake
from banksman.producers.unspooled import Unspooled


def as_it_is(taken: bytes, _source: str, _seq: int) -> bytes:
    return taken


def intake(most: int = 10, most_bytes: int = 1000) -> Intake:
    return Intake(most, most_bytes, lambda: True)


def ended(one: Intake) -> Unspooled:
    """It runs, on this thread, until what it has taken is in the spool."""
    spool = Unspooled("", memory=1 << 20)
    one.stop()
    one.run(spool, as_it_is, "here", lambda: None)
    return spool


@pytest.mark.parametrize(("size", "fit"), [(1, 10), (100, 10), (101, 10), (200, 5), (300, 4), (1000, 1), (5000, 1)])
def test_so_many_of_one_size_fit(size: int, fit: int) -> None:
    """The last one is taken whole where it goes over the bound."""
    one = intake()
    assert [one.put(b"x" * size) for _ in range(20)] == [True] * fit + [False] * (20 - fit)
    assert one.full
    assert (one.taken, one.waiting, one.dropped) == (fit, fit, 20 - fit)


def test_large_ones_take_the_place_of_small_ones_until_they_are_gone() -> None:
    one = intake()
    assert one.put(b"x" * 600)
    assert [one.put(b"x") for _ in range(6)] == [True] * 4 + [False] * 2
    assert len(ended(one).read(100, 1000)) == 5
    assert one.waiting == one.waiting_bytes == 0
    assert (one.taken, one.dropped) == (5, 2)


def test_marks_take_no_ones_place() -> None:
    one = intake()
    assert one.put(b"x")
    for _ in range(5):
        one.mark()
    assert [one.put(b"x") for _ in range(10)] == [True] * 9 + [False]


def test_what_was_dropped_is_a_gap_where_it_would_have_stood() -> None:
    one = intake(2, 200)
    assert [one.put(b"x") for _ in range(5)] == [True, True, False, False, False]
    one._passed([b"x", b"x"])
    assert one.put(b"y")
    spool = ended(one)
    assert [event.place.seq for event in spool.read(10, 100)] == [4]
    assert (one.taken, one.dropped) == (3, 3)


def test_no_thread_no_events() -> None:
    one = Intake(10, 1000, lambda: False)
    assert not one.put(b"x")
    assert (one.taken, one.dropped) == (0, 1)


def test_a_call_that_is_overtaken_by_the_end_is_counted() -> None:
    """It had looked for room, then the thread ended, then it appended: nobody takes that any more."""
    one = intake()
    one.put(b"x")
    assert len(ended(one).read(10, 100)) == 1
    one._room = 10  # what it had seen
    one.put(b"late")
    assert (one.taken, one.waiting, one.dropped) == (1, 0, 1)
    assert one.mark().is_set()


def test_many_threads_lose_nothing() -> None:
    one, spool = Intake(100_000, 64 << 20, lambda: True), Unspooled("", memory=1 << 30)
    thread = threading.Thread(target=one.run, args=(spool, as_it_is, "here", lambda: None))
    thread.start()

    def report(name: int) -> None:
        for n in range(2000):
            assert one.put(b"%d %d" % (name, n) + b"." * (700 if n % 100 == 0 else 0))

    agents = [threading.Thread(target=report, args=(name,)) for name in range(4)]
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join()
    assert one.mark().wait(20)
    one.stop()
    thread.join(20)
    found = [tuple(map(int, event.payload.rstrip(b".").split())) for event in spool.read(10_000, 1 << 30)]
    for name in range(4):
        assert [n for who, n in found if who == name] == list(range(2000))
    assert (one.taken, one.waiting, one.waiting_bytes, one.dropped) == (8000, 0, 0, 0)


@pytest.mark.parametrize("left", [0, 30])
def test_a_call_does_not_ask_the_system_for_random_bits(
    make_emitter: Callable[..., Emitter], monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """They are there before it comes, however few were left when the emitter was made."""
    del stamps._tails[left:]
    emitter = make_emitter()
    session = emitter.session("s1")
    here, asked, real = threading.get_ident(), list[int](), os.urandom

    def urandom(count: int) -> bytes:
        asked.append(threading.get_ident())
        return real(count)

    monkeypatch.setattr(os, "urandom", urandom)
    for _ in range(20):
        for _ in range(100):
            session.note("x")
        assert emitter.flush(20)
    assert here not in asked
    assert asked
