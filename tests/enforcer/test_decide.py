"""`POST /v1/decide` through a real process: every outcome, its record, and what a repeated question gets."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.enforcer.conftest import PUSH, Shop

from banksman import codec
from banksman.canonical import canonical
from banksman.signing import Verifier, digest
from banksman.stamps import uuid7
from banksman.topics import Topic

ARGS = {"amount": 12.5, "note": "für Ann", "nested": {"b": [1, 2], "a": None}}


# agent, what is changed in PUSH, decision, tier, reason, rule
OUTCOMES: list[tuple[str, dict[str, Any], str, int, str, str | None]] = [
    ("buyer", {}, "allow", 2, "allowed", "buyer/allow/0"),
    ("buyer", {"action": "pull"}, "allow", 1, "allowed", "buyer/allow/0"),
    (
        "buyer",
        {"service": "stripe", "action": "invoices:read", "resource": None, "branch": None},
        "allow",
        1,
        "allowed",
        "buyer/allow/1",
    ),
    ("buyer", {"branch": "main"}, "approve", 3, "approval_required", "buyer/require_approval/0"),
    ("buyer", {"resource": "acme/other", "branch": "main"}, "approve", 3, "approval_required", "buyer/require_approval/0"),
    ("buyer", {"action": "force_push"}, "deny", 4, "never", "buyer/never/0"),
    (
        "buyer",
        {"service": "aws", "action": "IAM:CreateUser", "resource": None, "branch": None},
        "deny",
        4,
        "guardrail",
        "guardrails/never/0",
    ),
    ("buyer", {"resource": "acme/other"}, "deny", 4, "default_deny", None),
    ("buyer", {"branch": "feature/a/b"}, "deny", 4, "default_deny", None),
    ("buyer", {"service": "nobody-knows"}, "deny", 4, "default_deny", None),
    ("buyer", {"branch": None}, "deny", 4, "incomplete_operation", "buyer/require_approval/0"),
    ("buyer", {"resource": "acme/../billing"}, "deny", 4, "not_canonical", None),
    ("buyer", {"branch": "feature/a%2Fb"}, "deny", 4, "not_canonical", None),
    ("buyer", {"resource": ""}, "deny", 4, "not_canonical", None),
    ("buyer", {"action": "pu\u200bsh"}, "deny", 4, "not_canonical", None),
    ("buyer", {"service": ""}, "deny", 4, "not_canonical", None),
    ("buyer", {"resource": "a" * 10_000}, "deny", 4, "too_long", None),
    ("stranger", {}, "deny", 4, "unknown_agent", None),
    ("homeless", {}, "deny", 4, "no_policy", None),
]  # fmt: skip


@pytest.mark.parametrize(("agent", "changes", "decision", "tier", "reason", "rule"), OUTCOMES)
def test_outcomes_and_their_records(
    shop: Shop, agent: str, changes: dict[str, Any], decision: str, tier: int, reason: str, rule: str | None
) -> None:
    answer = shop.decide(agent=agent, **changes)
    assert answer.status == 200, answer.raw
    got = answer.body
    assert (got["decision"], got["tier"], got["reason"], got["rule"]) == (decision, tier, reason, rule)
    assert set(got) - {"approval"} == {
        "id", "decision", "tier", "rule", "policy", "policy_version", "reason", "valid_until",
    }  # fmt: skip
    assert ("approval" in got) == (decision == "approve")
    if agent == "homeless":
        assert got["policy"] is got["policy_version"] is None
    else:
        assert got["policy"] == "shop"
        assert got["policy_version"].startswith("shop@v3+sha256:")
    record = shop.record(answer)
    told = ("decision", "tier", "rule", "policy", "policy_version", "reason", "approval")
    assert {name: record[name] for name in told if name in record} == {
        name: got[name] for name in told if got.get(name) is not None
    }


def test_a_record_has_every_field_that_the_contract_names(shop: Shop) -> None:
    call, question = uuid7(), uuid7()
    answer = shop.decide(id=question, call=call, args=ARGS, reason="the tests pass", session="whole")
    record = shop.record(answer)
    credential = shop.desk.agents["buyer"]
    assert {name: value for name, value in record.items() if not name.startswith("_")} == {
        "v": 1,
        "id": answer.body["id"],
        "time": record["time"],
        "kind": "decision",
        "source": record["source"],
        "call": call,
        "parent": question,
        "project": "shop",
        "agent": "buyer",
        "session": "whole",
        "service": "git",
        "action": "push",
        "resource": "acme/billing",
        "branch": "feature/a",
        "args": ARGS,
        "args_hash": digest(credential.event_key, canonical(ARGS)),
        "asked": "the tests pass",
        "decision": "allow",
        "tier": 2,
        "rule": "buyer/allow/0",
        "policy": "shop",
        "policy_version": answer.body["policy_version"],
        "reason": "allowed",
        "owner": "ann@acme.example",
        "latency_us": record["latency_us"],
    }
    assert record["source"].startswith("enforcer#")
    assert 0 < record["latency_us"] < 1_000_000
    assert record["_key"] == "buyer"
    codec.decode(record["_raw"], Topic.DECISIONS)
    headers = record["_headers"]
    assert headers["ce_type"] == b"banksman.decision"
    assert headers["ce_id"].decode() == answer.body["id"]
    author = Verifier(shop.desk.secret).author(
        shop.desk.kafka.topic(Topic.DECISIONS), b"buyer", list(headers.items()), record["_raw"]
    )
    assert str(author) == "service:enforcer"


def test_actions_and_decisions_of_an_agent_lie_in_the_same_partition(shop: Shop) -> None:
    record = shop.record(shop.decide(agent="seller"))
    event = {"kind": "note", "session": "where", "text": "here"}
    assert shop("POST", "/v1/events", event, token=shop.desk.agents["seller"].token).status == 200
    (action,) = shop.tape.wait(Topic.ACTIONS, lambda one: one.get("session") == "where")
    assert action["_partition"] == record["_partition"]


def test_secrets_are_redacted_before_anything_is_recorded(shop: Shop) -> None:
    secret = "ghp_" + "a1B2" * 9
    args = {"header": f"token {secret}", "password": "hunter2hunter2"}
    answer = shop.decide(args=args, reason=f"because {secret}", resource=f"acme/{secret}")
    record = shop.record(answer)
    assert secret.encode() not in record["_raw"]
    assert b"hunter2" not in record["_raw"]
    assert record["redactions"] == ["/args/header github-token", "/args/password field", "/asked github-token",
                                    "/resource github-token"]  # fmt: skip
    assert record["args_hash"] == digest(shop.desk.agents["buyer"].event_key, canonical(args))


def test_what_is_too_large_is_cut_and_decided_all_the_same(shop: Shop) -> None:
    args = {"small": 1, "large": "x" * 600_000, "wide": {str(n): '"' for n in range(20_000)}}
    answer = shop.decide(args=args, session="large")
    assert answer.body["decision"] == "allow"
    record = shop.record(answer)
    assert len(record["_raw"]) <= codec.MAX_EVENT_BYTES
    assert record["args"]["small"] == 1
    assert record["args"]["large"].endswith(
        "…[cut: 600000 characters]"
    )  # the redactor's: no text is longer than it reads
    assert record["args_hash"] == digest(shop.desk.agents["buyer"].event_key, canonical(args))


def test_an_answer_says_how_long_it_is_good_for(shop: Shop) -> None:
    answer = shop.decide()
    left = (datetime.fromisoformat(answer.body["valid_until"]) - datetime.now(UTC)).total_seconds()
    assert 0 < left <= 10  # BANKSMAN_LEASE_S, here


# ── shadow ──


@pytest.mark.parametrize(
    ("changes", "decision", "shadow"),
    [
        ({"action": "pull"}, "allow", "allow"),
        ({}, "allow", "deny"),
        ({"service": "aws", "action": "iam:CreateUser", "resource": None, "branch": None}, "deny", None),
        ({"resource": "a/../b"}, "deny", None),  # it could be one of what the guardrails forbid
    ],
)
def test_shadow_records_what_it_would_have_said(
    shop: Shop, changes: dict[str, Any], decision: str, shadow: str | None
) -> None:
    answer = shop.decide(agent="tester", **changes)
    assert answer.body["decision"] == decision
    assert shop.record(answer).get("shadow") == shadow


# ── approvals ──


def test_approve_asks_a_human_about_one_exact_operation(shop: Shop) -> None:
    args = {"force": False}
    first = shop.decide(session="ask", branch="main", args=args, reason="release", call=(call := uuid7()))
    assert first.body["decision"] == "approve"
    approval = first.body["approval"]
    record = shop.record(first)
    assert record["approval"] == approval
    (asked,) = shop.tape.wait(Topic.DECISIONS, lambda one: one.get("kind") == "approval.requested"
                              and one["approval"] == approval)  # fmt: skip
    codec.decode(asked["_raw"], Topic.DECISIONS)
    assert asked["_partition"] == record["_partition"]
    assert asked["parent"] == first.body["id"]
    same = ("call", "project", "agent", "session", "service", "action", "resource", "branch", "args", "args_hash",
            "rule", "policy", "policy_version", "reason", "asked")  # fmt: skip
    assert {name: asked[name] for name in same} == {name: record[name] for name in same}
    assert asked["call"] == call
    expires = datetime.fromisoformat(asked["expires_at"]) - datetime.now(UTC)
    assert 800 < expires.total_seconds() < 901

    again = shop.decide(session="ask", branch="main", args=args)
    assert again.body["approval"] == approval
    assert again.body["id"] != first.body["id"]
    others: list[dict[str, Any]] = [
        {"args": {"force": True}},
        {"args": None},
        {"session": "ask2"},
        {"resource": "acme/x"},
    ]
    found = {
        shop.decide(**{"session": "ask", "branch": "main", "args": args} | other).body["approval"] for other in others
    }
    assert len(found | {approval}) == 5
    requests = shop.tape.wait(Topic.DECISIONS, lambda one: one.get("kind") == "approval.requested"
                              and one["session"] in ("ask", "ask2"), 5)  # fmt: skip
    assert {one["approval"] for one in requests} == found | {approval}
    assert len(requests) == 5


def test_many_who_ask_the_same_at_once_get_one_approval(shop: Shop) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: shop.decide(session="crowd", branch="main"), range(36)))
    (approval,) = {answer.body["approval"] for answer in answers}
    assert len({answer.body["id"] for answer in answers}) == 36
    for answer in answers:
        assert shop.record(answer)["approval"] == approval
    assert len(shop.tape.records(Topic.DECISIONS, lambda one: one.get("kind") == "approval.requested"
                                 and one["session"] == "crowd")) == 1  # fmt: skip


# ── the same question again ──


def test_the_same_question_gets_the_same_answer_and_one_record(shop: Shop) -> None:
    question = uuid7()
    answers = [shop.decide(id=question, session="twice") for _ in range(3)]
    assert len({answer.body["id"] for answer in answers}) == 1
    shop.record(shop.decide(session="twice-after"))
    assert len(shop.tape.records(Topic.DECISIONS, lambda one: one.get("session") == "twice")) == 1


def test_another_question_under_the_same_id_is_refused(shop: Shop) -> None:
    question = uuid7()
    first = shop.decide(id=question)
    others: list[dict[str, Any]] = [{"branch": "main"}, {"args": {}}, {"session": "s2"}, {"action": "pull"}]
    for changes in others:
        other = shop.decide(id=question, **changes)
        assert (other.status, other.body["field"]) == (409, "id")
    assert shop.decide(id=question).body["id"] == first.body["id"]
    assert shop.decide(id=question, agent="seller", action="pull").status == 200  # an id is the agent's own


def test_the_same_question_at_the_same_moment_is_decided_once(shop: Shop) -> None:
    for turn in range(5):
        question, gate = uuid7(), threading.Barrier(12)

        def ask(question: str = question, gate: threading.Barrier = gate, turn: int = turn) -> str:
            gate.wait()
            return str(shop.decide(id=question, session=f"together-{turn}").body["id"])

        with ThreadPoolExecutor(12) as pool:
            futures = [pool.submit(ask) for _ in range(12)]
            assert len({future.result() for future in futures}) == 1
    shop.record(shop.decide(session="together-after"))
    assert len(shop.tape.records(Topic.DECISIONS, lambda one: one.get("session", "").startswith("together-"))) == 6


def test_a_question_without_an_id_is_a_new_one_each_time(shop: Shop) -> None:
    first, second = shop.decide(session="new"), shop.decide(session="new")
    assert first.body["id"] != second.body["id"]
    assert shop.record(first)["parent"] != shop.record(second)["parent"]


def test_who_is_enrolled_meanwhile_is_decided_afresh(shop: Shop) -> None:
    """Whatever could change an answer makes it none: here, that somebody was enrolled."""
    question = uuid7()
    first = shop.decide(id=question)
    name = f"new-{uuid7()[-6:]}"
    body = {"agent": name, "project": "shop", "owner": "ann"}
    assert shop("POST", "/v1/agents", body, token=shop.desk.admin).status == 201
    second = shop.decide(id=question)
    assert second.body["id"] != first.body["id"]
    assert shop.record(first)["parent"] == shop.record(second)["parent"] == question


# ── what is no question ──

DEEP = b'{"session": "s", "service": "git", "action": "pull", "args": %b}'


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, ""),
        (b"{", 400, ""),
        (b"\xff", 400, ""),
        (b'{"session": "s", "session": "t", "service": "git", "action": "pull"}', 400, "session"),
        (b'{"session": "s", "service": "git", "action": "pull", "args": {"a": 9007199254740992}}', 400, "args.a"),
        (b'{"session": "s", "service": "git", "action": "pull", "args": {"a": NaN}}', 400, ""),
        (b'{"session": "s", "service": "git", "action": "pull", "args": {"a": "\\ud800"}}', 400, ""),
        (DEEP % (b'{"a":' * 33 + b"1" + b"}" * 33), 400, "args" + ".a" * 31),
        (DEEP % (b'{"a":' * 9000 + b"1" + b"}" * 9000), 400, ""),
        (b"[]", 422, ""),
        (b"null", 422, ""),
        ({**PUSH, "session": None}, 422, "session"),
        ({**PUSH, "session": "a b"}, 422, "session"),
        ({**PUSH, "session": "a\n"}, 422, "session"),
        ({**PUSH, "service": 1}, 422, "service"),
        ({**PUSH, "args": []}, 422, "args"),
        ({**PUSH, "id": "1"}, 422, "id"),
        ({**PUSH, "id": uuid7().upper()}, 422, "id"),
        ({**PUSH, "call": "x"}, 422, "call"),
        ({**PUSH, "resource": "a" * 70_000}, 422, "resource"),
        ({**PUSH, "barnch": "main"}, 422, "barnch"),
        ({**PUSH, "agent": "seller"}, 422, "agent"),
        ({**PUSH, "project": "lab"}, 422, "project"),
        ({**PUSH, "time": "2020-01-01T00:00:00.000000Z"}, 422, "time"),
        ({"session": "s1", "action": "push"}, 422, "service"),
    ],
)  # fmt: skip
def test_bad_questions_name_their_field(shop: Shop, body: Any, status: int, field: str) -> None:
    answer = shop("POST", "/v1/decide", body, token=shop.desk.agents["buyer"].token)
    assert answer.status == status, answer.raw
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.body.get("field", "") == field
    assert answer.body["status"] == status


def test_hostile_but_valid_arguments_do_not_stop_the_others(shop: Shop) -> None:
    """A megabyte that is slow to read is read aside: meanwhile others are answered, and no lease runs out."""
    slow: dict[str, Any] = {"args": {"many": [1.5] * 200_000}, "session": "slow"}
    done = threading.Event()
    statuses: list[int] = []

    def flood() -> None:
        try:
            statuses.extend(shop.decide(**slow).status for _ in range(3))
        finally:
            done.set()

    thread = threading.Thread(target=flood)
    thread.start()
    asked = 0
    while not done.is_set():
        assert shop.decide(agent="seller", action="pull").status == 200
        asked += 1
    thread.join()
    assert set(statuses) <= {200, 429}
    assert statuses[0] == 200
    assert asked > 5
