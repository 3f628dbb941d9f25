"""The replay header: for admins alone; what comes with it is marked, the same every time, and touches nothing live."""

from __future__ import annotations

from typing import Any

import pytest
from tests.enforcer.conftest import PUSH, Shop

from banksman.stamps import uuid7
from banksman.topics import Topic

RUN = {"Banksman-Replay": "run-7"}
LONG_AGO = "2026-01-02T03:04:05.000006Z"


def question(**more: Any) -> dict[str, Any]:
    return PUSH | {"id": uuid7(), "project": "shop", "agent": "buyer", "time": LONG_AGO} | more


def event(**more: Any) -> dict[str, Any]:
    return {
        "kind": "tool.call", "id": uuid7(), "project": "shop", "agent": "buyer", "session": "old", "time": LONG_AGO,
        "source": "replay/1.0#x", "seq": 3, "service": "git", "action": "push",
    } | more  # fmt: skip


def test_a_replayed_question_is_the_same_record_every_time(shop: Shop) -> None:
    asked = question(args={"key": "ghp_" + "a1B2" * 9}, session="again")
    answers = [shop("POST", "/v1/decide", asked, token=shop.desk.admin, headers=RUN) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200], answers[0].raw
    assert answers[0].body["id"] == answers[1].body["id"]
    assert answers[0].body["decision"] == "allow"
    first, second = shop.tape.wait(Topic.DECISIONS, lambda one: one.get("session") == "again", 2)
    assert first["_raw"] == second["_raw"]
    assert first["_headers"] == second["_headers"]
    assert first["_headers"]["banksman-replay"] == b"run-7"
    assert (first["time"], first["parent"], first["agent"], first["project"]) == (
        LONG_AGO,
        asked["id"],
        "buyer",
        "shop",
    )
    assert "latency_us" not in first
    assert first["id"].replace("-", "")[:12] == f"{1767323045000:012x}"
    other = shop("POST", "/v1/decide", asked, token=shop.desk.admin, headers={"Banksman-Replay": "run-8"})
    assert other.body["id"] != answers[0].body["id"]


def test_it_opens_no_approval(shop: Shop) -> None:
    answer = shop("POST", "/v1/decide", question(branch="main", session="asks"), token=shop.desk.admin, headers=RUN)
    assert answer.body["decision"] == "approve"
    assert "approval" not in answer.body
    record = shop.record(answer)
    assert "approval" not in record
    live = shop.decide(branch="main", session="asks")
    shop.tape.wait(Topic.DECISIONS, lambda one: one.get("approval") == live.body["approval"], 2)
    requests = shop.tape.records(
        Topic.DECISIONS, lambda one: one.get("kind") == "approval.requested" and one["session"] == "asks"
    )
    assert [one["approval"] for one in requests] == [live.body["approval"]]


def test_it_speaks_for_agents_that_nobody_enrolled(shop: Shop) -> None:
    """A recording's agents are whoever they are; the policy of their project decides."""
    for project, agent, reason in (
        ("shop", "never-enrolled", "unknown_agent"),
        ("unheard-of", "x", "no_policy"),
        ("lab", "tester", "default_deny"),
    ):
        answer = shop("POST", "/v1/decide", question(project=project, agent=agent), token=shop.desk.admin, headers=RUN)
        assert answer.body["reason"] == reason


def test_replayed_events_are_marked_and_the_same_every_time(shop: Shop) -> None:
    batch = [event(session="twice", agent=agent, text="x") for agent in ("buyer", "ghost", "buyer")]
    for _ in range(2):
        answer = shop("POST", "/v1/events", batch, token=shop.desk.admin, headers=RUN)
        assert (answer.status, answer.body) == (200, {"accepted": 3})
    records = shop.tape.wait(Topic.ACTIONS, lambda one: one.get("session") == "twice", 6)
    assert len({(one["id"], one["_raw"], one["_headers"]["banksman-auth"]) for one in records}) == 3
    assert {one["_headers"]["banksman-replay"] for one in records} == {b"run-7"}
    assert {one["time"] for one in records} == {LONG_AGO}
    assert {one["_key"] for one in records} == {"buyer", "ghost"}


def test_it_touches_no_live_account(shop: Shop) -> None:
    before = shop("GET", "/v1/status", token=shop.desk.viewer).body["decisions"]
    for _ in range(3):
        assert shop("POST", "/v1/decide", question(), token=shop.desk.admin, headers=RUN).status == 200
        assert shop("POST", "/v1/events", [event()], token=shop.desk.admin, headers=RUN).status == 200
    assert shop("GET", "/v1/status", token=shop.desk.viewer).body["decisions"] == before


@pytest.mark.parametrize("path", ["/v1/decide", "/v1/events"])
def test_only_an_admin_may(shop: Shop, path: str) -> None:
    body = question() if path == "/v1/decide" else event()
    operator = shop(
        "POST",
        "/v1/operators",
        {"name": f"o-{uuid7()[-12:]}", "roles": ["operator", "approver"]},
        token=shop.desk.admin,
    )
    for token, status in (
        (None, 401),
        ("bmo_0123456789abcdef_" + "x" * 43, 401),
        (shop.desk.agents["buyer"].token, 403),
        (shop.desk.viewer, 403),
        (operator.body["token"], 403),
    ):
        answer = shop("POST", path, body, token=token, headers=RUN)
        assert answer.status == status, answer.raw
    assert shop("POST", path, body, token=shop.desk.admin).status == 403  # without the header it is an agent's call


@pytest.mark.parametrize("run", ["", "a b", "../x", "a" * 129, "ä"])
def test_a_run_has_a_name(shop: Shop, run: str) -> None:
    for path, body in (("/v1/decide", question()), ("/v1/events", event())):
        answer = shop("POST", path, body, token=shop.desk.admin, headers={"Banksman-Replay": run})
        assert (answer.status, answer.body["field"]) == (422, "Banksman-Replay")


@pytest.mark.parametrize("missing", ["id", "project", "agent", "time"])
def test_a_replay_carries_everything_itself(shop: Shop, missing: str) -> None:
    for path, body in (("/v1/decide", question()), ("/v1/events", event())):
        del body[missing]
        answer = shop("POST", path, body, token=shop.desk.admin, headers=RUN)
        assert (answer.status, answer.body["field"]) == (422, missing)


@pytest.mark.parametrize(
    ("field", "value"), [("time", "then"), ("agent", "a b"), ("project", ""), ("id", "7"), ("session", "\n")]
)
def test_a_replay_is_checked_like_everything_else(shop: Shop, field: str, value: str) -> None:
    for path, body in (("/v1/decide", question()), ("/v1/events", event())):
        answer = shop("POST", path, body | {field: value}, token=shop.desk.admin, headers=RUN)
        assert (answer.status, answer.body["field"]) == (422, field)
    forbidden = shop("POST", "/v1/events", event(kind="decision"), token=shop.desk.admin, headers=RUN)
    assert (forbidden.status, forbidden.body["field"]) == (422, "kind")
