"""What was sent again counts once; what only looks like it counts."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from banksman.events import Note
from banksman.processors.worker.resends import IDS, NUMBERS, RANGES, SOURCES, Sources
from banksman.processors.worker.resends import is_resend as is_resend_of
from banksman.stamps import uuid7


def is_resend(known: Sources, event: Any) -> bool:
    return is_resend_of(known, event, time.time_ns() // 1_000_000)


def note(seq: int | None, source: str = "x", name: str = "") -> Any:
    return Note(
        v=1, id=name or uuid7(), time="2026-11-25T12:00:00.000000Z", source=source, seq=seq, project="p", agent="a",
        session="s", text="t",
    )  # fmt: skip


@given(st.lists(st.integers(1, 60), max_size=120))
def test_each_number_counts_once_in_any_order(numbers: list[int]) -> None:
    known, events = Sources(), {number: note(number) for number in set(numbers)}
    counted = [number for number in numbers if not is_resend(known, events[number])]
    assert sorted(counted) == sorted(set(numbers))


def test_a_jump_hides_nothing_that_comes_later() -> None:
    known = Sources()
    assert not is_resend(known, note(2**53 - 1))
    for number in range(1, 100):
        assert not is_resend(known, note(number))


def test_another_event_under_a_number_that_was_used_counts() -> None:
    known, first = Sources(), note(1)
    assert not is_resend(known, first)
    assert is_resend(known, first)
    for _ in range(5):
        assert not is_resend(known, note(1))


def test_a_client_that_counts_anew_under_its_old_name_is_counted() -> None:
    known = Sources()
    first = [note(number) for number in range(1, 301)]
    assert not any(is_resend(known, one) for one in first)
    wait_a_millisecond()
    second = [note(number) for number in range(1, 301)]
    assert not any(is_resend(known, one) for one in second)
    assert all(is_resend(known, one) for one in second[-100:])


def test_what_comes_again_of_before_its_client_counted_anew_is_counted_once() -> None:
    known = Sources()
    first = [note(number) for number in range(1, 301)]
    assert not any(is_resend(known, one) for one in first[:290])
    wait_a_millisecond()
    assert not any(is_resend(known, note(number)) for number in range(1, 100))
    assert all(is_resend(known, one) for one in first[:290])
    assert not any(is_resend(known, one) for one in first[290:])  # they were under way


def test_an_id_from_the_future_does_not_hide_who_counts_anew() -> None:
    known, hour_ms = Sources(), 3_600_000
    assert not is_resend(known, note(1, name=uuid7(time.time_ns() // 1_000_000 + hour_ms)))
    assert not any(is_resend(known, note(number)) for number in range(2, 301))
    wait_a_millisecond()
    assert not any(is_resend(known, note(number)) for number in range(1, 301))


def test_numbers_that_come_into_a_hole_that_was_given_up_are_counted() -> None:
    known = Sources()
    for number in range(40):
        assert not is_resend(known, note(1 + number * 10**13))
    for number in range(2, 400):
        wait_a_millisecond()
        assert not is_resend(known, note(number))


def wait_a_millisecond() -> None:
    before = uuid7()[:13]
    while uuid7()[:13] == before:
        pass


def test_where_nothing_counts_the_ids_do() -> None:
    known, first = Sources(), note(None)
    assert not is_resend(known, first)
    assert not is_resend(known, note(None))
    assert is_resend(known, first)


def test_what_is_known_has_a_bound() -> None:
    known = Sources()
    for number in range(500):
        is_resend(known, note(2 * number + 1))
        is_resend(known, note(1, source=f"s{number}"))
        is_resend(known, note(None))
    assert len(known.sources) == SOURCES
    assert len(known.ids) == IDS
    assert all(len(one.ranges) <= 2 * RANGES and len(one.newest) <= NUMBERS for one in known.sources.values())
