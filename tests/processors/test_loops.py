"""Loops: what is one, what is none, what is said of it and how often."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.processors.feed import NOW, Feed, policy

from banksman import events, stamps
from banksman.processors.detectors import loops

STATE_BYTES = 32 * 1024


def feed(**more: Any) -> Feed:
    return Feed(loops.DETECTOR, **more)


def act(
    to: Feed, action: str = "read", *, outcome: str | None = "same", status: str = "ok", **fields: Any
) -> list[Any]:
    to.ms += 1000
    of_result = {name: fields.pop(name) for name in ("error", "late") if name in fields}
    call = to.call(action, **fields)
    return to.result(call, status, outcome_hash=outcome, **of_result)


def severities(to: Feed) -> list[str]:
    return [one.severity if not one.over else "over" for one in to.said]


def test_the_same_with_the_same_outcome_is_a_warning_at_four_and_a_page_at_five() -> None:
    to = feed()
    for count in range(1, 12):
        act(to)
        assert severities(to) == ["warn"] * (count >= 4) + ["page"] * (count >= 5), count
    warn, page = to.said
    assert warn.fingerprint == page.fingerprint == "loops/a/s"
    assert (warn.count, page.count) == (4, 5)
    assert warn.title.startswith("p/a, session s: files:read(r) repeated 4x in 2 s with identical arguments")
    assert "3 duplicates" in warn.title
    assert warn.suggestion == "banksman kill s --agent a --reason loop"
    assert warn.evidence["side_effects"] is False
    assert warn.evidence["first_repeat"] == stamps.rfc3339_ms(warn.first_ms or 0)
    assert warn.first_ms == NOW + 2 * 1002


def test_another_outcome_each_time_is_a_loop_at_eight() -> None:
    to = feed()
    for count in range(1, 9):
        act(to, outcome=str(count))
    assert severities(to) == ["page"]
    assert to.said[0].evidence["rule"] == "same_arguments"
    assert to.said[0].count == 8


@pytest.mark.parametrize("period", [2, 3, 8])
def test_a_cycle_is_named(period: int) -> None:
    to = feed()
    for _ in range(3):
        for number in range(period):
            act(to, f"read_{number}")
    assert severities(to)[0] == "warn"
    assert to.said[0].evidence["rule"] == ("nothing_new" if period == 8 else "same_outcome")
    if period == 2:
        assert "the cycle files:read_0(r) -> files:read_1(r) repeated 3x" in to.said[0].title
        assert to.said[0].evidence["cycle"] == ["files:read_0(r)", "files:read_1(r)"]


def test_three_failures_of_the_same_whatever_the_error() -> None:
    to = feed()
    for number in range(3):
        act(to, "push", outcome=None, status="error", error=f"line {number}: {'x' * number}")
    assert severities(to) == ["warn"]
    assert to.said[0].evidence["rule"] == "same_failure"
    assert '"line #: xx"' in to.said[0].title
    assert to.said[0].evidence["side_effects"] is True


def test_errors_that_differ_in_digits_only_are_the_same_outcome_without_hashes() -> None:
    to = feed()
    for number in range(4):
        act(to, "push", outcome=None, status="error", error=f"at 0x{number}f: line {number}")
    assert [one.evidence["rule"] for one in to.said] == ["same_failure"]
    assert "nothing" not in to.said[0].title


def test_hammering_at_a_closed_door_is_a_loop() -> None:
    to = feed(policy=policy("kill"))
    for _ in range(5):
        act(to, "push", outcome=None, status="denied", error="deny: default_deny")
    assert severities(to) == ["warn", "page"]
    assert {one.act for one in to.said} == {"alert"}, "it is stopped already"


@pytest.mark.parametrize("said", ["deny: no_answer: refused", "deny: paused", "approve: approval_required"])
def test_who_has_to_wait_is_no_page_and_killed_by_nobody(said: str) -> None:
    to = feed(policy=policy("kill"))
    for _ in range(20):
        act(to, "push", outcome=None, status="denied", error=said)
    assert severities(to) == ["warn"]
    for _ in range(5):
        act(to, "push", outcome=None, status="error", error="no such remote")
    assert severities(to) == ["warn", "page"]
    assert to.said[-1].act == "kill", "this one fails by itself"


def test_what_nobody_knows_the_outcome_of_goes_by_arguments() -> None:
    to = feed()
    for _ in range(4):
        act(to, outcome=None)
    assert to.said == []
    act(to, outcome=None)
    assert severities(to) == ["page"]
    assert "not known" in to.said[0].title


def test_requests_count_as_actions() -> None:
    to = feed()
    for _ in range(4):
        to.see(
            to.make(
                events.ApiRequest, service="http", action="GET", resource="a.example/x", status="ok", result_hash="h"
            )
        )
    assert severities(to) == ["warn"]


def test_little_that_is_new() -> None:
    to = feed()
    for name in "abc":
        act(to, name)
    for name in "acbbacabcbac":
        act(to, name)
    assert to.said[0].evidence["rule"] == "nothing_new"
    assert severities(to).count("page") == 0


def test_a_call_has_the_name_that_it_gives_itself() -> None:
    to = feed()
    for _ in range(4):
        act(to, call=to.id())
    assert severities(to) == ["warn"]


def test_paging_is_none() -> None:
    to = feed()
    for page in range(60):
        act(to, "list", args_hash=f"page {page}", outcome=str(page))
    assert to.said == []


def test_what_one_message_says_twice_is_one_decision() -> None:
    to = feed()
    for message in range(3):
        calls = [to.call("read", resource="same", batch=index) for index in range(6)]
        for call in calls:
            assert to.result(call, outcome_hash="same") == [], message
    assert to.said == []


def test_an_index_that_stands_still_hides_nothing() -> None:
    to = feed()
    for _ in range(6):
        act(to, batch=5)
    assert severities(to) == ["warn", "page"]


def test_it_is_said_when_it_is_over_and_a_new_one_is_told_anew() -> None:
    to = feed()
    for _ in range(2):
        for _ in range(6):
            act(to)
        for number in range(3):
            act(to, f"other_{number}{to.ms}")
    assert severities(to) == ["warn", "page", "over"] * 2
    assert {one.fingerprint for one in to.said} == {"loops/a/s"}


def test_the_end_of_the_session_is_the_end_of_it() -> None:
    to = feed()
    for _ in range(5):
        act(to)
    to.see(to.make(events.SessionEnded))
    assert severities(to) == ["warn", "page", "over"]
    assert to.lapse() == []
    assert to.state is None


def test_a_silent_session_is_forgotten_after_a_day() -> None:
    to = feed()
    for _ in range(5):
        act(to)
    assert to.lapse(to.ms + 23 * 3_600_000) == []
    assert to.state is not None
    to.lapse()
    assert severities(to)[-1] == "over"
    assert to.state is None


def test_it_acts_once_in_a_session_and_on_the_page() -> None:
    to = feed(policy=policy("pause"))
    for _ in range(2):
        for _ in range(9):
            act(to)
        for number in range(9):
            act(to, f"other_{number}{to.ms}")
    assert severities(to) == ["warn", "page", "over"] * 2
    assert [one.act for one in to.said] == ["alert", "pause", "alert", "alert", "alert", "alert"]


def test_a_policy_that_changes_counts_from_then_on() -> None:
    to = feed(policy=policy("alert"))
    for _ in range(6):
        act(to)
    to.policy = policy("kill")
    act(to)
    assert [one.act for one in to.said] == ["alert", "alert", "kill"]


def test_what_it_cost_since_the_first_repeat() -> None:
    to = feed()
    for _ in range(5):
        to.see(
            to.make(
                events.ModelCall,
                model="m",
                input_tokens=100,
                output_tokens=10,
                cache_read_tokens=9,
                cache_write_tokens=1,
            ),
            cost_nano=2_000_000,
        )
        act(to)
    assert to.said[1].evidence["tokens_since"] == 3 * 111
    assert to.said[1].evidence["cost_usd_since"] == 0.006


def test_words_of_an_agent_cannot_draw_in_a_title() -> None:
    to = feed()
    for _ in range(4):
        act(to, resource="x\nALERT\x1b[2J" + "y" * 1000)
    assert to.said[0].title.isprintable()
    assert len(to.said[0].title) < 300


def test_calls_without_a_result_hold_nothing_up() -> None:
    to = feed()
    for number in range(1000):
        to.call("read", resource=str(number))
    assert len(to.state.calls) == loops.OPEN_CALLS
    for _ in range(4):
        act(to)
    assert severities(to) == ["warn"]


def test_a_state_that_only_late_records_made_is_none() -> None:
    to = feed()
    act_late = to.call(late=True)
    to.result(act_late, late=True)
    assert to.state is None


# ── properties ──

STEPS = st.lists(
    st.tuples(
        st.sampled_from("cccrrrramse"), st.integers(0, 3), st.sampled_from(["ok", "error", "denied"]), st.integers(0, 2),
        st.booleans(),
    ),
    max_size=80,
)  # fmt: skip


def play(steps: list[Any], *, through: bool = False, lates: bool = True) -> Feed:
    """Calls that get their results in any order or never, requests, model calls, and an end in the middle."""
    to = feed(through=through)
    open_calls: list[Any] = []
    for what, which, status, outcome, late in steps:
        to.ms += 500
        if late and not lates:  # the same ids and times without it
            to.make(events.Note, text="")
            continue
        if what == "c":
            call = to.make(events.ToolCall, service="git", action="read", resource=str(which), batch=outcome)
            to.see(call, late=late)
            if not late:
                open_calls.append(call)
        elif what == "r" and open_calls:
            call = open_calls.pop(which % len(open_calls)) if not late else open_calls[0]
            to.see(to.make(events.ToolResult, call=call.id, status=status, outcome_hash=str(outcome)), late=late)
        elif what == "a":
            to.see(
                to.make(events.ApiRequest, service="http", action="GET", resource=str(which), status=status), late=late
            )
        elif what == "m":
            to.see(to.make(events.ModelCall, model="m", input_tokens=which), late=late, cost_nano=which)
        elif what == "e":
            to.see(to.make(events.SessionEnded), late=late)
        else:
            to.make(events.Note, text="")
    return to


@given(STEPS)
def test_the_same_records_say_the_same(steps: list[Any]) -> None:
    assert play(steps).said == play(steps).said


@given(STEPS)
def test_a_state_survives_its_encoding_at_any_point(steps: list[Any]) -> None:
    kept, through = play(steps), play(steps, through=True)
    assert through.said == kept.said
    assert msgspec.msgpack.encode(through.state) == msgspec.msgpack.encode(kept.state)


@given(STEPS)
def test_late_records_change_nothing(steps: list[Any]) -> None:
    with_them, without = play(steps), play(steps, lates=False)
    assert with_them.said == without.said
    assert with_them.state == without.state


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=200), st.booleans()), min_size=1, max_size=30))
def test_a_state_has_a_bound_whatever_an_agent_writes(texts: list[tuple[str, str, bool]]) -> None:
    to = feed(through=True, session="s" * 128, agent="a" * 128)
    for number in range(600):
        action, resource, answered = texts[number % len(texts)]
        call = to.call(f"{action}{number % 50}" * 20, resource=f"{resource}\U0001f600" * 300, batch=number)
        if answered:
            to.result(call, "error", error=resource * 50)
    assert to.largest < STATE_BYTES
