"""The policy language through a real process: conditions over what was asked, groups, sets, freezes, shadow by rule."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.enforcer.conftest import Answer, Desk, Enforcer, Tape, make_desk, make_replica, until
from tests.servers import Broker

from banksman.enforcer.budgets import Exhausted
from banksman.enforcer.decision import spent
from banksman.policy.verdict import Reason, Ruling, Verdict
from banksman.stamps import uuid7
from banksman.topics import Topic

TRADE = """
project: trade
schedules:
  always: {from: "00:00", to: "24:00"}
rules:
  readers:
    allow: [{service: git, actions: [pull], resources: ["acme/*"]}]
agents:
  "trader-*":
    owner: the-desk
    use: [readers]
    allow:
      - {service: stripe, actions: ["refunds:create"], when: {args.amount: {lt: 500}, args.currency: [usd, eur]}}
      - {service: slack, actions: [post_message]}
      - {service: shop, actions: [order], expr: "args.items.all(item, item.price * item.count < 100) && size(args.items) < 3"}
    require_approval:
      - {service: stripe, actions: ["refunds:create"], resources: ["ch_*"], when: {args.amount: {gte: 500}}}
    never:
      - {service: slack, actions: [post_message], resources: ["#all"], mode: shadow}
"""
FREEZE = "freeze: [{during: [always], services: [slack]}]\n"
REFUND = {"session": "s1", "service": "stripe", "action": "refunds:create", "resource": "ch_1"}


@dataclasses.dataclass
class Trade:
    """The desk with an agent of the group."""

    desk: Desk
    enforcer: Enforcer
    tape: Tape
    token: str
    file: Path

    def decide(self, **changes: Any) -> Answer:
        asked = {name: value for name, value in (REFUND | changes).items() if value is not None}
        return self.enforcer("POST", "/v1/decide", asked, token=self.token)

    def explain(self, **changes: Any) -> Any:
        asked = {name: value for name, value in (REFUND | {"agent": "trader-7"} | changes).items() if value is not None}
        answer = self.enforcer("POST", "/v1/explain", asked, token=self.desk.viewer)
        assert answer.status == 200, answer.raw
        return answer.body


@pytest.fixture(scope="module")
def trade(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trade]:
    desk = make_desk(broker, tmp_path_factory.mktemp("trade"))
    file = desk.policies / "trade.yaml"
    file.write_text(TRADE)
    credential, enrolled = desk.agent("trader-7", "trade")
    desk.write(enrolled)
    replica = make_replica(desk)
    try:
        replica.start()
        with Tape(desk.kafka) as tape:
            yield Trade(desk, replica, tape, credential.token, file)
    finally:
        replica.end()


@pytest.mark.parametrize(
    ("changes", "decision", "reason", "rule"),
    [
        ({"args": {"amount": 5, "currency": "usd"}}, "allow", "allowed", "trader-*/allow/0"),
        ({"args": {"amount": 5, "currency": "gbp"}}, "deny", "default_deny", None),
        ({"args": {"amount": 900, "currency": "usd"}}, "approve", "approval_required", "trader-*/require_approval/0"),
        ({"args": {"amount": "5", "currency": "usd"}}, "approve", "condition_error", "trader-*/require_approval/0"),
        ({"args": {"currency": "usd"}}, "approve", "condition_error", "trader-*/require_approval/0"),
        ({}, "approve", "condition_error", "trader-*/require_approval/0"),
        ({"resource": None, "args": {"amount": 5, "currency": "usd"}}, "allow", "allowed", "trader-*/allow/0"),
        ({"resource": None, "args": {"amount": 900}}, "deny", "incomplete_operation", "trader-*/require_approval/0"),
        ({"service": "git", "action": "pull", "resource": "acme/web"}, "allow", "allowed", "use/readers/allow/0"),
        ({"service": "git", "action": "pull", "resource": "acme/web.git"}, "deny", "not_canonical", None),
        ({"service": "http", "action": "get", "resource": "acme.example"}, "deny", "default_deny", None),
    ],
)  # fmt: skip
def test_conditions(trade: Trade, changes: dict[str, Any], decision: str, reason: str, rule: str | None) -> None:
    answer = trade.decide(**changes)
    assert answer.status == 200, answer.raw
    got = answer.body
    assert (got["decision"], got["reason"], got["rule"]) == (decision, reason, rule)
    (record,) = trade.tape.wait(Topic.DECISIONS, lambda one: one["id"] == got["id"])
    assert (record["decision"], record["reason"], record["owner"]) == (decision, reason, "the-desk")
    told = trade.explain(**changes)
    assert (told["verdict"]["ruling"]["decision"], told["verdict"]["ruling"]["reason"]) == (decision, reason)


@pytest.mark.parametrize(
    ("items", "decision"),
    [
        ([{"price": 5, "count": 2}, {"price": 99.5, "count": 1}], "allow"),
        ([{"price": 5, "count": 2}, {"price": "1", "count": 1}], "deny"),
        ([{"price": 50, "count": 2}], "deny"), ([{"price": 5}], "deny"), ("x", "deny"), ({}, "deny"), (None, "deny"),
        ([{"price": 1, "count": 1}] * 3, "deny"),
    ],
)  # fmt: skip
def test_an_expression(trade: Trade, items: Any, decision: str) -> None:
    """What nobody can say is not allowed."""
    told = trade.decide(service="shop", action="order", resource=None, args={"items": items})
    assert told.body["decision"] == decision, told.raw


def test_a_condition_looks_at_what_was_asked_and_not_at_what_is_recorded(trade: Trade) -> None:
    """Secrets are redacted in the record only."""
    secret = "sk-ant-api03-" + "a1B2" * 20
    answer = trade.decide(args={"amount": 5, "currency": "usd", "key": secret})
    assert answer.body["decision"] == "allow"
    (record,) = trade.tape.wait(Topic.DECISIONS, lambda one: one["id"] == answer.body["id"])
    assert secret not in record["_raw"].decode()


def test_a_rule_in_shadow_is_recorded_and_not_enforced(trade: Trade) -> None:
    answer = trade.decide(service="slack", action="post_message", resource="#all")
    assert (answer.body["decision"], answer.body["rule"]) == ("allow", "trader-*/allow/1")
    (record,) = trade.tape.wait(Topic.DECISIONS, lambda one: one["id"] == answer.body["id"])
    assert record["shadow"] == "deny"
    other = trade.decide(service="slack", action="post_message", resource="#x")
    (record,) = trade.tape.wait(Topic.DECISIONS, lambda one: one["id"] == other.body["id"])
    assert "shadow" not in record


def test_explain_says_what_of_the_condition_does_not_hold(trade: Trade) -> None:
    told = trade.explain(args={"amount": 5, "currency": "gbp"})
    nearest = next(one for one in told["rules"] if one["effect"] == "allow")
    assert (nearest["rule"], nearest["failed"]) == ("trader-*/allow/0", "condition")
    assert 'args.currency is "gbp"' in nearest["wanted"][0]
    assert told["mend"].startswith("trader-*/allow/0, if this held")


def test_a_freeze_holds_on_the_next_request_and_is_lifted_with_the_file(trade: Trade) -> None:
    def said() -> tuple[str, str]:
        body = trade.decide(service="slack", action="post_message", resource="#x").body
        return body["decision"], body["reason"]

    assert said() == ("allow", "allowed")
    trade.file.write_text(TRADE + FREEZE)
    try:
        until(lambda: said() == ("deny", "freeze"), 5)
        told = trade.explain(service="slack", action="post_message", resource="#x")
        assert told["mend"] == "the end of the freeze window freeze/0/slack"
        assert trade.decide(service="slack", action="read", resource="#x").body["reason"] == "default_deny"
    finally:
        trade.file.write_text(TRADE)
    until(lambda: said() == ("allow", "allowed"), 5)


def test_the_same_question_is_decided_anew_when_a_schedule_has_begun(trade: Trade) -> None:
    """Its answer is kept for ten minutes only while nothing changes that could change it: time does."""
    begins = datetime.now(UTC) + timedelta(seconds=4)
    closing = f'  closed: {{begins: "{begins.replace(tzinfo=None).isoformat(timespec="seconds")}"}}\n'
    text = TRADE.replace("schedules:\n", "schedules:\n" + closing) + "freeze: [{during: [closed], services: [slack]}]\n"
    before = trade.explain()["verdict"]["ruling"]["policy_version"]
    trade.file.write_text(text)
    try:
        question = {"id": uuid7(), "service": "slack", "action": "post_message", "resource": "#y"}
        until(lambda: trade.explain()["verdict"]["ruling"]["policy_version"] != before, 3)
        first = trade.decide(**question).body
        assert first["decision"] == "allow"
        assert trade.decide(**question).body["id"] == first["id"]
        until(lambda: time.time() > begins.timestamp() + 0.1, 10)
        again = trade.decide(**question).body
        assert (again["decision"], again["reason"]) == ("deny", "freeze")
        assert again["id"] != first["id"]
    finally:
        trade.file.write_text(TRADE)
        until(lambda: trade.explain()["verdict"]["ruling"]["policy_version"] == before, 5)


@pytest.mark.parametrize(
    ("then", "decision", "shadow"), [("deny", "deny", None), ("approve", "approve", "deny")], ids=["deny", "approve"]
)
def test_a_rule_in_shadow_does_not_take_a_budget_with_it(then: Any, decision: str, shadow: str | None) -> None:
    """Its agent is enforced: what is spent is spent."""
    said = Ruling("allow", 2, "a/allow/0", Reason.ALLOWED, shadow="deny")
    by = Exhausted("tokens", 5, 5, "2026-12-01T00:00:00Z", then, shadow=False)
    ruling = spent(Verdict(said, "git", "push", None, None), by).ruling
    assert (ruling.decision, ruling.reason, ruling.shadow) == (decision, Reason.EXHAUSTED, shadow)


def test_shadow_is_counted_and_named(trade: Trade) -> None:
    trade.decide(service="slack", action="post_message", resource="#all")
    page = trade.enforcer("GET", "/metrics", token=trade.desk.viewer).raw.decode()
    assert re.search(r'^banksman_enforcer_shadow_total\{would="deny"\} [1-9]', page, re.MULTILINE)
    status = trade.enforcer("GET", "/v1/status", token=trade.desk.viewer).body
    (told,) = [one for one in status["policies"] if one["project"] == "trade"]
    assert (told["mode"], told["shadow"]) == ("enforce", ["trader-*/never/0"])
