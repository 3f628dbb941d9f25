"""`GET /v1/agents/{agent}/now`: each state, and what stands beside it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.console.conftest import Stand
from tests.enforcer.conftest import until

from banksman import stamps
from banksman.events import AgentRevoked, PolicyLoaded
from banksman.stamps import rfc3339, uuid7
from banksman.store.client import Store

PUSH = {"service": "git", "action": "push", "resource": "acme/billing", "branch": "feature/a", "args": {"force": False}}


def now(stand: Stand, agent: str, query: str = "") -> Any:
    return stand.get(f"/v1/agents/{agent}/now{query}")


def test_an_agent_at_work(stand: Stand) -> None:
    started = stand.action("session.started", "worker", "w1")
    model = stand.action(
        "model.call", "worker", "w1", model="claude-sonnet-4-5", input_tokens=100, output_tokens=20, cost_usd=0.5
    )
    call = stand.action("tool.call", "worker", "w1", **PUSH)
    stand.publish(started, model, call, stand.decision(call))
    told = now(stand, "worker")
    assert told["state"] == "running"
    assert told["session"] == "w1"
    assert told["open_call"]["call"] == call["id"]
    assert told["open_call"]["branch"] == "feature/a"
    assert told["open_calls"] == 1
    assert (told["last_decision"]["decision"], told["last_decision"]["rule"]) == ("allow", "worker/allow/0")
    assert (told["tokens"]["used"], told["tokens"]["cost_usd"], told["tokens"]["limit"]) == (120, 0.5, None)
    assert [(one["kind"], one["open"]) for one in told["last_actions"]] == [("tool.call", True), ("model.call", False)]
    assert told["last_actions"][0]["decision"] == "allow"
    result = stand.action(
        "tool.result", "worker", "w1", call=call["id"], parent=call["id"], status="ok", duration_ms=12.5
    )
    stand.publish(result)
    told = now(stand, "worker")
    assert told["open_call"] is None
    assert (told["last_actions"][0]["status"], told["last_actions"][0]["duration_ms"]) == ("ok", 12.5)
    stand.publish(stand.action("session.ended", "worker", "w1", status="ok"))
    assert now(stand, "worker")["state"] == "ended"


def test_a_denied_call_is_not_open(stand: Stand) -> None:
    call = stand.action("tool.call", "denied", "d1", **PUSH)
    stand.publish(call, stand.decision(call, "deny", reason="never"))
    told = now(stand, "denied")
    assert told["open_calls"] == 0
    assert told["last_actions"][0]["open"] is False


def test_waiting_for_a_human(stand: Stand) -> None:
    call, approval = stand.action("tool.call", "waiter", "q1", **PUSH), uuid7()
    expires = rfc3339(datetime.now(UTC) + timedelta(minutes=15))
    asked = stand.decision(call, "approve", approval=approval, reason="approval_required")
    requested = {
        "v": 1, "id": uuid7(), "time": stamps.rfc3339(), "kind": "approval.requested", "source": "enforcer#1",
        "call": call["id"], "project": "shop", "agent": "waiter", "session": "q1", "approval": approval,
        "service": "git", "action": "push",
        "expires_at": expires,
    }  # fmt: skip
    stand.publish(call, asked, requested)
    told = now(stand, "waiter")
    assert told["state"] == "waiting"
    assert (told["approval"]["approval"], told["approval"]["expires_at"]) == (approval, expires)
    answered = {name: requested[name] for name in ("v", "source", "project", "agent", "session", "approval")}
    stand.publish(answered | {"id": uuid7(), "time": stamps.rfc3339(), "kind": "approval.approved", "approver": "vera"})
    assert now(stand, "waiter")["state"] == "running"


def test_who_was_never_seen_and_who_is_not_there(stand: Stand) -> None:
    told = now(stand, "stranger")
    assert (told["state"], told["session"], told["last_actions"]) == ("never_seen", None, [])
    assert told["owner"] == "ann"
    assert "no agent nobody-at-all" in stand.get("/v1/agents/nobody-at-all/now", 404)["detail"]


def test_a_voided_decision_is_not_the_last_one(stand: Stand) -> None:
    call = stand.action("tool.call", "voided", "v1", **PUSH)
    first, second = stand.decision(call), stand.decision(call, rule="voided/allow/1")
    void = {name: second[name] for name in ("v", "source", "project", "agent", "session")}
    void |= {
        "id": uuid7(),
        "time": stamps.rfc3339(),
        "kind": "decision.void",
        "parent": second["id"],
        "reason": "lease_ended",
    }
    stand.publish(call, first, second, void)
    assert now(stand, "voided")["last_decision"]["rule"] == "voided/allow/0"


def test_an_allow_that_was_taken_back_opens_nothing(stand: Stand) -> None:
    call = stand.action("tool.call", "taken", "t1", **PUSH)
    allow = stand.decision(call)
    void = {name: allow[name] for name in ("v", "source", "project", "agent", "session")}
    void |= {"id": uuid7(), "time": rfc3339(), "kind": "decision.void", "parent": allow["id"], "reason": "lease_ended"}
    stand.publish(allow, void)
    told = now(stand, "taken")
    assert (told["open_calls"], told["last_decision"]) == (0, None)
    (header,) = stand.get("/v1/sessions?agent=taken")["sessions"]
    assert header["allowed"] == 0
    told = stand.get("/v1/sessions/t1?agent=taken")["header"]
    assert (told["allowed"], told["voided"]) == (0, 1)


def test_a_tool_call_without_a_call_goes_by_its_id(stand: Stand) -> None:
    call = stand.action("tool.call", "plain", "p1", **PUSH)
    del call["call"]
    stand.publish(call)
    told = now(stand, "plain")
    assert (told["open_calls"], told["open_call"]["call"]) == (1, call["id"])
    assert told["last_actions"][0]["open"] is True
    stand.publish(stand.action("tool.result", "plain", "p1", call=call["id"], parent=call["id"], status="ok"))
    told = now(stand, "plain")
    assert told["open_calls"] == 0
    assert told["last_actions"][0]["status"] == "ok"


def test_tokens_of_a_reused_id_are_all_counted_and_of_a_resend_once(stand: Stand) -> None:
    first = stand.action("model.call", "spender", "m1", model="m", input_tokens=10, output_tokens=1)
    other = first | {"input_tokens": 100}
    stand.publish(first, first, other)
    assert now(stand, "spender")["tokens"]["used"] == 11 + 101


def test_nothing_unsigned_counts(stand: Stand) -> None:
    call = stand.action("tool.call", "honest", "h1", **PUSH)
    stand.publish(call)
    stand.publish(stand.action("session.ended", "honest", "h1", source="liar"), signed=False)
    assert now(stand, "honest")["state"] == "running"


def test_a_replay_is_history(stand: Stand) -> None:
    call = stand.action("tool.call", "recorded", "r1", **PUSH)
    stand.publish(call, replay="run-1")
    told = now(stand, "recorded")
    assert (told["replay"], told["session"]) == ("run-1", "r1")
    assert now(stand, "recorded", "?replay=run-1")["session"] == "r1"
    stand.get("/v1/agents/recorded/now?replay=run-2", 404)
    listed = {one["agent"] for one in stand.get("/v1/agents")["agents"]}
    assert "recorded" not in listed
    assert {"worker", "buyer"} <= listed | {"worker"}


def test_limits_come_from_the_policy_in_force(stand: Stand) -> None:
    budget = '{"daily_cost_usd":40.0,"daily_tokens":500,"timezone":"Europe/Berlin"}'
    text = f'{{"agents":{{"buyer":{{"budget":{budget}}}}},"project":"shop"}}'
    loaded = PolicyLoaded(
        v=1, id=uuid7(), time=rfc3339(), source="test", project="shop", policy_version="shop@v4+sha256:0123456789ab", text=text,
        replica="r",
    )  # fmt: skip
    stand.desk.write(loaded)
    until(lambda: now(stand, "buyer")["tokens"]["limit"] == 500)
    told = now(stand, "buyer")["tokens"]
    assert (told["limit_usd"], told["timezone"]) == (40.0, "Europe/Berlin")


def test_who_answers_for_an_agent_is_what_its_decisions_say(stand: Stand) -> None:
    """The policy, for the agent before for all; where it has no word, whoever was named when the agent was enrolled."""
    assert now(stand, "homeless")["owner"] == "ann"
    for agents, owner in (("", "rent-team"), ('"owner":"hugo"', "hugo"), ("", "rent-team")):
        loaded = PolicyLoaded(
            v=1, id=uuid7(), time=rfc3339(), source="test", project="nowhere", policy_version="nowhere@v1+sha256:0123456789ab",
            text=f'{{"agents":{{"homeless":{{{agents}}}}},"owner":"rent-team","project":"nowhere"}}', replica="r",
        )  # fmt: skip
        stand.desk.write(loaded)
        until(lambda: now(stand, "homeless")["owner"] == owner)  # noqa: B023
        listed = {one["agent"]: one["owner"] for one in stand.get("/v1/agents?project=nowhere")["agents"]}
        assert listed == {"homeless": owner}


def test_a_revoked_agent_is_killed_whatever_it_sent(stand: Stand) -> None:
    stand.publish(stand.action("note", "seller", "s9", text="hello"))
    revoked = AgentRevoked(
        v=1, id=uuid7(), time=rfc3339(), source="test", by="root", agent="seller", project="shop", reason="it leaks"
    )
    stand.desk.write(revoked)
    until(lambda: now(stand, "seller")["state"] == "killed")
    (control,) = now(stand, "seller")["controls"]
    assert (control["kind"], control["by"], control["reason"]) == ("agent.revoked", "root", "it leaks")


def test_a_copy_of_what_is_long_over_is_no_news(stand: Stand) -> None:
    """Whoever can write to Kafka appends a genuine call of the day before yesterday again, signature and all."""
    then = int(time.time() * 1000) - 2 * 86_400_000
    call = stand.action("tool.call", "older", "o1", id=uuid7(then), **PUSH)
    result = stand.action(
        "tool.result", "older", "o1", id=uuid7(then + 5), call=call["id"], parent=call["id"], status="ok"
    )
    stand.publish(call, result)
    clickhouse = stand.archive.clickhouse
    table, store = f"`{clickhouse.clickhouse_database}`.events", Store(clickhouse, reader=False)
    store.command(
        f"INSERT INTO {table} (* EXCEPT body_hash) SELECT * EXCEPT body_hash REPLACE (received - INTERVAL 2 DAY AS received) "
        f"FROM {table} WHERE agent = 'older'"
    )
    store.command(f"DELETE FROM {table} WHERE agent = 'older' AND received > now64(3) - INTERVAL 1 DAY")
    store.close()
    before = stand.get("/v1/agents/older/now")
    assert (before["state"], before["open_calls"]) == ("idle", 0)
    stand.publish(call)
    again = stand.get("/v1/agents/older/now")
    for name in ("state", "since", "last_seen", "open_call", "open_calls", "last_actions"):
        assert again[name] == before[name], name
