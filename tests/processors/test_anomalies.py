"""Anomalies: what is learnt, what is strange, what is said of it, and that nothing grows."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.processors.feed import Feed, policy

from banksman import events
from banksman.processors.detectors import anomalies
from banksman.processors.habits import SLOTS, VALUES, targets_of

STATE_BYTES = 256 * 1024
USUAL = [("read", "invoices/1"), ("search", "query:acme"), ("send", "to:ann@acme.example")]
STRANGE = [("read", "invoices/1"), ("send", "to:eve@evil.example"), ("delete", "invoices/1")]


def feed(**more: Any) -> Feed:
    return Feed(anomalies.DETECTOR, **more)


def run(to: Feed, name: str, actions: list[tuple[str, str]], *, end: bool = True, late: bool = False) -> list[Any]:
    before = len(to.said)
    to.session = name
    for action, resource in actions:
        to.ms += 1000
        to.call(action, resource=resource, late=late)
    if end:
        to.see(to.make(events.SessionEnded))
    return to.said[before:]


def known(**more: Any) -> Feed:
    """An agent that did the same in 20 sessions."""
    to = feed(**more)
    for number in range(20):
        assert run(to, f"usual-{number}", USUAL) == []
    return to


def test_the_usual_is_not_told_and_the_strange_is() -> None:
    to = known()
    found = run(to, "strange", STRANGE)
    assert found
    assert {one.severity for one in found} == {"warn"}
    first = found[0]
    assert first.session == "strange"
    assert first.title.startswith("p/a, session strange, action 2: files:send(to:eve@evil.example): ")
    assert "eve@evil.example is new among 1 targets in 20 uses, @evil.example is new as well" in first.title
    assert first.fingerprint.startswith("anomalies/a/files:send/")
    assert first.suggestion == "banksman session strange --agent a"
    assert first.evidence["history"] == {
        "sessions": 20, "actions": 60, "this_action": 20, "after_previous": 20, "this_after_previous": 0,
        "usual_after_previous": [["files:search", 1.0]], "uses_with_a_target": 20, "different_targets": 1,
        "peers": "not compared",
    }  # fmt: skip
    assert first.evidence["score"] > first.evidence["threshold"] >= anomalies.FLOOR


def test_an_agent_that_is_new_is_learning() -> None:
    to = feed()
    for number in range(anomalies.LEARNING):
        assert run(to, f"s{number}", [(f"do_{number}", f"to:x{number}@y.example")] * 3) == []
    assert to.state.recent == []


def test_a_session_is_learnt_when_it_ended_and_not_before() -> None:
    to = feed()
    run(to, "s", USUAL, end=False)
    assert to.state.habits.sessions == 0
    to.see(to.make(events.SessionEnded))
    assert to.state.habits.sessions == 1
    assert to.state.open == {}


def test_a_session_that_is_silent_for_an_hour_is_learnt() -> None:
    to = feed()
    run(to, "s", USUAL, end=False)
    assert to.lapse(to.ms + 3_599_000) == []
    assert to.state.habits.sessions == 0
    to.lapse()
    assert to.state.habits.sessions == 1


def test_what_was_told_is_not_learnt_and_told_again() -> None:
    to = known()
    for number in range(anomalies.ABOVE):
        found = run(to, f"strange-{number}", STRANGE)
        assert found, number
        assert found[0].fingerprint == to.said[0].fingerprint
    assert to.state.habits.actions.keys() == known().state.habits.actions.keys(), "nobody has learnt to delete"


def test_who_changes_for_good_gets_some_warnings_only() -> None:
    to = known()
    told = [bool(run(to, f"strange-{number}", STRANGE)) for number in range(200)]
    assert told[0]
    assert anomalies.ABOVE < sum(told) < 20
    assert not any(told[20:])


def test_a_silent_session_that_was_told_is_dropped_after_a_day() -> None:
    to = known()
    run(to, "strange", STRANGE, end=False)
    to.lapse(to.ms + 3_700_000)
    assert "strange" in to.state.open, "what it does next belongs to it"
    to.lapse()
    assert to.state.open == {}


def test_an_agent_is_forgotten_after_three_months() -> None:
    to = known()
    assert to.lapse() == []
    assert to.state is None


@pytest.mark.parametrize("wanted", ["alert", "pause", "kill"])
def test_only_a_policy_makes_it_act_and_once(wanted: str) -> None:
    to = known(policy=policy(on_anomaly=wanted))
    found = run(to, "strange", [*STRANGE, ("wire", "to:DE99123456789"), ("wire", "to:KY99123456789")])
    assert [one.act for one in found] == [wanted] + ["alert"] * (len(found) - 1)
    assert len(found) <= anomalies.TOLD_MOST


def test_what_comes_late_is_told_and_kills_nobody() -> None:
    to = known(policy=policy(on_anomaly="kill"))
    found = run(to, "strange", STRANGE, late=True)
    assert found
    assert {one.act for one in found} == {"alert"}


def test_reading_something_new_is_little() -> None:
    to = known()
    assert run(to, "reader", [("read", "invoices/99"), ("search", "query:else"), ("read", "letters/4")]) == []


def test_requests_count_too_and_branches_are_targets() -> None:
    to = feed()
    event = to.make(events.ApiRequest, service="git", action="push", resource="acme/billing", branch="feature/x")
    found = targets_of(event, b"12345678")
    assert [(one.text, one.kind_text) for one in found] == [("acme/billing", "acme/"), ("feature/x", "feature/")]
    to.see(event)
    assert len(to.state.open["s"].acts) == 1


@pytest.mark.parametrize(
    ("resource", "found"),
    [
        ("to:a@x.example,b@y.example", [("a@x.example", "@x.example"), ("b@y.example", "@y.example")]),
        ("https://a.example/b/c", [("https://a.example/b/c", "host a.example")]),
        ("arn:aws:s3:::bucket/key", [("arn:aws:s3:::bucket/key", "arn:aws:s3:::bucket/")]),
        ("iban:DE8910000000", [("DE8910000000", "DE#")]),
        ("id:12", [("12", "a number")]),
        ("plain", [("plain", "")]),
        (",".join("abcdefgh"), [(one, "") for one in "abcdef"]),
    ],
)
def test_targets_and_their_classes(resource: str, found: list[tuple[str, str]]) -> None:
    event = feed().make(events.ToolCall, service="x", action="y", resource=resource)
    assert [(one.text, one.kind_text) for one in targets_of(event, b"12345678")] == found


def test_more_values_than_are_kept_make_nothing_strange() -> None:
    to = feed()
    for number in range(10 * VALUES):
        run(to, f"s{number}", [("send", f"to:{number}")])
    to.said.clear()
    assert run(to, "next", [("send", "to:never-seen")]) == []


def test_what_is_used_often_stays_known_beside_many_that_are_rare() -> None:
    to = feed()
    for number in range(3 * VALUES):
        run(to, f"s{number}", [("send", "to:ann@acme.example"), ("send", f"to:{number}@x.example")])
    to.said.clear()
    assert run(to, "next", [("send", "to:ann@acme.example"), ("send", "to:ann@acme.example")]) == []
    slot = next(iter(to.state.habits.slots.values()))
    assert slot.distinct == 3 * VALUES + 1
    assert len(slot.values) == 8 * VALUES


# ── properties ──

SESSIONS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from(["read", "send", "wire", "delete", "END", "IDLE"]), st.integers(0, 5)),
    max_size=120,
)


def play(steps: list[Any], *, through: bool = False) -> Feed:
    to = known(through=through)
    for which, what, target in steps:
        to.session = f"s{which}"
        to.ms += 60_000
        if what == "END":
            to.see(to.make(events.SessionEnded))
        elif what == "IDLE":
            to.lapse(to.ms + 3_600_000)
        else:
            to.call(what, resource=f"to:{target}@{'x' * target}.example")
    return to


@settings(max_examples=30, deadline=None)
@given(SESSIONS)
def test_the_same_records_say_the_same_also_through_an_encoding(steps: list[Any]) -> None:
    once, again, through = play(steps), play(steps), play(steps, through=True)
    assert once.said == again.said == through.said
    assert msgspec.msgpack.encode(once.state) == msgspec.msgpack.encode(through.state)


def test_a_state_has_a_bound_whatever_an_agent_writes() -> None:
    to = feed(agent="a" * 128, policy=policy(on_anomaly="kill"))
    largest = 0
    for number in range(12_000):
        to.session = f"s{number % 150}" * 20
        text = f"{number}\U0001f600" * 50
        to.call(
            f"do{number % 300}{text}", resource=f"arg{number % 7}:{text}@{number}.example,{text}/{number}", branch=text
        )
        if number % 50 == 0:
            to.see(to.make(events.SessionEnded))
        if number % 400 == 0:
            to.lapse(to.ms + 3_600_000)
            largest = max(largest, len(msgspec.msgpack.encode(to.state)))
            to.state = msgspec.msgpack.decode(msgspec.msgpack.encode(to.state), type=anomalies.State)
        assert len(to.state.open) <= anomalies.OPEN
        assert to.state.held == sum(len(one.acts) for one in to.state.open.values()) <= anomalies.ACTS_IN_ALL
    assert len(to.state.habits.slots) <= SLOTS
    assert largest < STATE_BYTES
