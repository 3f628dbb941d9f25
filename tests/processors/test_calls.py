"""Calls without an allow of their own: found, whatever order the topics are read in, and none invented."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.processors.feed import Feed, policy

from banksman import events
from banksman.processors.detectors import calls

STATE_BYTES = 192 * 1024


def feed(*, started: bool = True, **more: Any) -> Feed:
    to = Feed(calls.DETECTOR, **{"policy": policy(), **more})
    if started:
        to.see(to.make(events.SessionStarted))
    return to


def judged(to: Feed) -> list[tuple[str, str]]:
    """Kind and severity of everything that is said when everything was waited for."""
    while to.state is not None and any(call.due_ms for call in to.state.calls.values()):
        to.lapse()
    return [(one.fingerprint.rpartition("/")[2], one.severity) for one in to.said]


def request(to: Feed, **fields: Any) -> None:
    made = {"service": "http", "action": "POST", "resource": "a.example/x", "status": "ok", "args_hash": "h"}
    to.see(to.make(events.ApiRequest, **{**made, **fields}))


@pytest.mark.parametrize("order", ["decision, call, result", "call, decision, result", "call, result, decision"])
def test_what_was_allowed_is_right_in_whatever_order_it_is_read(order: str) -> None:
    to = feed()
    call = to.make(events.ToolCall, service="git", action="push", resource="acme/x", branch="main", args_hash="h")
    for what in order.split(", "):
        to.ms += 2000
        if what == "call":
            to.see(call)
        elif what == "result":
            to.result(call)
        else:
            to.decide(call)
    assert judged(to) == []


def test_what_nobody_was_asked_about() -> None:
    to = feed()
    to.result(to.call("write", resource="invoices/1"))
    assert to.lapse(to.ms + calls.PATIENCE_MS - 1) == []
    [found] = to.lapse()
    assert found.title == "p/a, session s made files:write(invoices/1), and nobody was asked"
    assert (found.severity, found.fingerprint) == ("page", "calls/a/s/without_allow")
    assert found.suggestion == "banksman kill s --agent a --reason without_allow"


def test_what_was_denied_and_done() -> None:
    to = feed()
    call = to.call("read")
    to.decide(call, "deny", reason="default_deny")
    to.result(call)
    assert judged(to) == [("without_allow", "warn")], "it only reads"
    assert to.said[0].title.endswith("made files:read(r) after deny: default_deny")


def test_a_denied_call_that_was_not_made_is_right() -> None:
    to = feed()
    call = to.call("write")
    to.decide(call, "deny")
    to.result(call, "denied")
    assert judged(to) == []


def test_asked_of_humans_and_then_allowed() -> None:
    to = feed()
    call = to.call("write")
    to.decide(call, "approve", reason="approval_required")
    to.ms += 60_000
    to.decide(call, reason="approved")
    to.result(call)
    assert judged(to) == []


def test_an_answer_in_shadow_mode_is_an_answer() -> None:
    to = feed()
    call = to.call("write")
    to.decide(call, shadow="deny")
    to.result(call)
    assert judged(to) == []


def test_other_arguments_than_were_allowed() -> None:
    to = feed()
    call = to.call("write", args_hash="one")
    to.decide(call, args_hash="two")
    to.result(call, "error")
    assert judged(to) == [("other_arguments", "page")]


def test_arguments_that_nobody_hashed_are_not_compared() -> None:
    to = feed()
    call = to.call("write", args={"amount": 1})
    to.decide(call, args={"amount": 1}, args_hash="two")
    to.result(call)
    assert judged(to) == []


def test_another_operation_than_was_allowed() -> None:
    to = feed()
    call = to.call("write", resource="invoices/2")
    to.decide(call, resource="invoices/1")
    to.result(call)
    assert judged(to) == [("other_operation", "page")]
    assert "what was allowed is files:write(invoices/1)" in to.said[0].title


def test_the_case_of_an_aws_action_is_no_other_operation() -> None:
    to = feed()
    call = to.call("s3:PutObject", service="aws")
    to.decide(call, action="s3:putobject")
    to.result(call)
    assert judged(to) == []


def test_one_allow_and_two_results() -> None:
    to = feed()
    call = to.call("write")
    to.decide(call)
    to.result(call)
    assert judged(to) == []
    to.result(call)
    assert judged(to) == [("twice", "page")]


def test_an_allow_that_was_taken_back() -> None:
    for early in (True, False):
        to = feed()
        call = to.call("write")
        decision = to.decide(call) if not early else None
        void_of = decision.id if decision is not None else to.id()
        to.see(to.make(events.DecisionVoid, parent=void_of, reason="not_acknowledged"))
        if early:
            to.decide(call, id=void_of)
        to.result(call)
        assert judged(to) == [("without_allow", "page")], early
    assert "taken back" in to.said[0].title


def test_an_allow_without_a_call_is_for_the_first_one_that_it_fits() -> None:
    to = feed()
    for _ in range(2):
        to.decide(None, service="files", action="write", resource="r")
        to.call("write")  # never made
        to.result(to.call("write"))
    assert judged(to) == []
    to.result(to.call("write"))
    assert judged(to) == [("twice", "page")], "two allows, three calls"
    to.result(to.call("write", resource="another"))
    to.lapse(to.ms + 120_000)
    assert judged(to)[1:] == [("without_allow", "page")]


def test_requests_need_an_allow_too() -> None:
    to = feed()
    of = {"service": "http", "action": "POST", "resource": "a.example/x", "args_hash": "h"}
    to.decide(None, **of)
    request(to)
    request(to, parent=to.decide(None, **of).id)
    name = to.id()
    to.decide(None, call=name, **of)
    request(to, call=name)
    request(to, status="denied")
    request(to, status=None)
    assert judged(to) == []
    request(to, call=name)
    assert judged(to) == [("twice", "page")]
    request(to, resource="a.example/y")
    assert judged(to)[1:] == [("without_allow", "page")]


def test_a_request_inside_of_a_call_goes_with_it() -> None:
    to = feed()
    call = to.call("write")
    to.decide(call)
    request(to, call=call.id)
    to.result(call)
    request(to, call=to.id())  # of a call that is not known
    assert judged(to) == []


def test_a_call_has_the_name_that_it_gives_itself() -> None:
    to = feed()
    name = to.id()
    call = to.call("write", call=name)
    to.decide(call)
    to.call("delete", call=name)  # a part of it
    to.result(call)
    assert judged(to) == []
    to.result(to.call("write", call=to.id()))
    assert judged(to) == [("without_allow", "page")]


def test_a_part_of_a_call_that_had_to_be_forgotten_is_no_finding() -> None:
    to = feed()
    first = to.call("write")
    to.decide(first)
    to.result(first)
    judged(to)
    for _ in range(calls.CALLS):
        to.call("write")
    assert first.id not in to.state.calls
    to.result(to.call("delete", call=first.id))
    assert judged(to) == []


def test_who_never_asks_and_has_no_policy_is_named_once() -> None:
    to = feed(policy=None)
    for _ in range(3):
        to.result(to.call("write"))
        assert judged(to) == [("without_asking", "info")]
    to.decide(to.call("read"))
    to.result(to.call("write"))
    assert judged(to)[1:] == [("without_allow", "page")], "now it asks, so it must"


def test_a_session_that_was_met_in_the_middle() -> None:
    to = feed(started=False)
    to.result(to.call("write"))
    to.ms += 14_000
    early = to.call("write")
    to.ms += 5000
    to.result(early)
    unknown = to.make(events.ToolCall, service="files", action="write")
    to.result(unknown)
    assert judged(to) == []
    to.result(to.call("write"))
    assert judged(to) == [("without_allow", "page")]


def test_what_comes_late_is_not_judged() -> None:
    to = feed()
    call = to.call("write", late=True)
    to.result(call, late=True)
    to.result(to.call("write"), late=True)
    assert judged(to) == []


def test_a_flood_is_told_once_a_minute_and_counted() -> None:
    to = feed()
    for number in range(30):
        to.ms += 1000
        to.result(to.call("write", resource=str(number)))
        to.lapse(to.ms)
    judged(to)
    assert len(to.said) == 1
    [more] = to.lapse()
    assert (more.count, to.said[0].count) == (29, 1)
    assert more.title.startswith("29 times, at last: ")


def test_it_is_forgotten_after_its_end_but_not_before_it_is_judged() -> None:
    to = feed()
    to.result(to.call("write"))
    to.see(to.make(events.SessionEnded))
    assert to.lapse() != []
    assert to.state is not None
    to.lapse()
    assert to.state is None


def test_what_had_to_be_forgotten_is_not_invented() -> None:
    to = feed()
    every = [to.call("write", resource=str(number)) for number in range(3 * calls.CALLS)]
    for call in every:
        to.decide(call)
    for call in every:
        to.result(call)
    assert judged(to) == []


@pytest.mark.parametrize("named", [True, False])
def test_an_allow_that_had_to_be_forgotten_is_no_finding(named: bool) -> None:
    to = feed()
    every = [
        to.make(events.ToolCall, service="files", action="write", resource=str(n)) for n in range(3 * calls.ALLOWS)
    ]
    for call in every:
        to.decide(call if named else None, service="files", action="write", resource=call.resource)
    for call in every:
        to.see(call)
        to.result(call)
        to.lapse(to.ms)
    assert judged(to) == []
    to.ms += calls.GOOD_MS + calls.PATIENCE_MS
    to.result(to.call("write", resource="never asked"))
    assert judged(to) == [("without_allow", "page")], "it looks again after that"


# ── properties ──

STEPS = st.lists(
    st.tuples(st.sampled_from("ccccrrrddddvqel"), st.integers(0, 5), st.sampled_from(["allow", "deny"]), st.booleans()),
    max_size=80,
)


def play(steps: list[Any], *, through: bool = False) -> Feed:
    to = feed(through=through)
    made: list[events.ToolCall] = []
    decisions: list[events.Decision] = []
    for what, which, answer, named in steps:
        to.ms += 700
        one = made[which % len(made)] if made else None
        if what == "c":
            made.append(to.call("write", resource=str(which), args_hash=str(which % 2)))
        elif what == "r" and one is not None:
            to.result(one, "ok" if answer == "allow" else "denied")
        elif what == "d" and one is not None:
            about = {"service": "files", "action": "write", "resource": str(which), "args_hash": "1"}
            decisions.append(to.decide(one if named else None, answer, **({} if named else about)))
        elif what == "v" and decisions:
            to.see(to.make(events.DecisionVoid, parent=decisions[which % len(decisions)].id, reason="x"))
        elif what == "q":
            request(to, resource=str(which), call=one.id if one is not None and named else None)
        elif what == "e":
            to.see(to.make(events.SessionEnded))
        elif what == "l" and to.state is not None:
            to.lapse(to.ms + 3000)
    return to


@given(STEPS)
def test_the_same_records_say_the_same_also_through_an_encoding(steps: list[Any]) -> None:
    once, again, through = play(steps), play(steps), play(steps, through=True)
    assert judged(once) == judged(again) == judged(through)
    assert once.said == through.said
    assert msgspec.msgpack.encode(once.state) == msgspec.msgpack.encode(through.state)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 9999), st.booleans(), st.integers(0, 9999)), min_size=1, max_size=200),
    st.randoms(),
)
def test_a_session_in_which_all_is_right_is_never_reported(jobs: list[tuple[int, bool, int]], random: Any) -> None:
    """Each call is asked about and made, the two topics are read with up to 9 seconds between them."""
    to = feed()
    records: list[tuple[int, events.Event]] = []
    for at, (start, named, lag) in enumerate(jobs):
        to.ms = 1_764_000_000_100 + start
        call = to.make(events.ToolCall, service="files", action="write", resource=str(at % 7), args_hash=str(at % 2))
        about = {"service": "files", "action": "write", "resource": call.resource, "args_hash": call.args_hash}
        decision = to.make(
            events.Decision, decision="allow", tier=1, reason="allowed", call=call.id if named else None, **about
        )
        result = to.make(events.ToolResult, call=call.id, parent=call.id, status="ok")
        records += [(start, call), (start + lag * 9 // 10, decision), (start + random.randint(0, 3000), result)]
    to.ms = 1_764_000_000_100
    for at, event in sorted(records, key=lambda record: record[0]):
        to.ms = max(to.ms, 1_764_000_000_100 + at)
        to.see(event)
        if (due := calls.DETECTOR.due(to.state)) is not None and due <= to.ms:
            to.lapse(to.ms)
    assert judged(to) == []


def test_a_state_has_a_bound_whatever_an_agent_writes() -> None:
    to = feed(agent="a" * 128, session="s" * 128)
    text = "\U0001f600" * 400
    largest = 0
    for number in range(400):
        call = to.call(f"w{number}{text}", resource=f"{number}{text}")
        for _ in range(4):
            to.decide(call, "allow" if number % 2 else "deny", resource=text, reason=text)
        to.decide(call, call=to.id(), resource=text)
        to.result(call, "error", error=text)
        if number % 20 == 0:
            to.lapse(to.ms)
        largest = max(largest, len(msgspec.msgpack.encode(to.state)))
    assert largest < STATE_BYTES
