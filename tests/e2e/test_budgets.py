"""A worker and an enforcer on one log: what an agent spends decides what it may do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.house import House, open_house
from tests.enforcer.conftest import until
from tests.servers import PARTITIONS, Broker, freeze

from banksman.bus import partition_of
from banksman.events import Budget, Watermark
from banksman.signing import Signer
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic

POLICY = """\
project: shop
version: {version}
agents:
  denied: {{allow: [{git}], budget: {{daily_tokens: {tokens}, timezone: Europe/Berlin}}}}
  asking: {{allow: [{git}], budget: {{daily_tokens: 100, on_exhausted: approve}}, require_approval: [{push}]}}
  warned: {{allow: [{git}], budget: {{daily_tokens: 100, on_exhausted: alert}}}}
  paying: {{allow: [{git}], budget: {{daily_cost_usd: 1.5}}}}
  quiet: {{allow: [{git}], budget: {{daily_tokens: 100}}}}
  free: {{allow: [{git}]}}
"""
SHADOW = """\
project: lab
mode: shadow
guardrails: {never: [{service: aws, actions: ["iam:*"]}]}
agents:
  shadowed: {allow: [{service: git, actions: [pull]}], budget: {daily_tokens: 100}}
"""
NAMES = {
    "denied": "shop",
    "asking": "shop",
    "warned": "shop",
    "paying": "shop",
    "free": "shop",
    "quiet": "shop",
    "shadowed": "lab",
}


def policy(tokens: int = 1000, version: int = 1) -> str:
    return POLICY.format(
        tokens=tokens, version=version, git="{service: git, actions: [pull]}", push="{service: git, actions: [push]}"
    )


POLICIES = {"shop": policy(), "lab": SHADOW}


@pytest.fixture(scope="module")
def house(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with open_house(broker, tmp_path_factory.mktemp("house"), POLICIES, NAMES) as made:
        yield made


def test_a_spent_budget_denies_and_a_higher_limit_holds_on_the_next_request(house: House) -> None:
    assert house.reason("denied") == "allowed"
    house.spend("denied", 999)
    until(lambda: house.floor.spent("denied") == 999)
    assert house.reason("denied") == "allowed"
    house.spend("denied", 2)
    until(lambda: house.reason("denied") == "exhausted")
    answer = house.ask("denied").body
    assert (answer["decision"], answer["tier"], answer["rule"]) == ("deny", 4, "budget/tokens")
    assert {k: answer["budget"][k] for k in ("unit", "spent", "limit")} == {
        "unit": "tokens",
        "spent": 1001,
        "limit": 1000,
    }
    (record,) = house.floor.tape.wait(Topic.DECISIONS, lambda one: one["id"] == answer["id"])
    assert record["budget"] == answer["budget"]
    assert house.reason("denied", "force_push") == "default_deny"  # what policy denies has the policy's reason
    body = {"agent": "denied", "session": "s1", "service": "git", "action": "pull"}
    told = house.enforcer("POST", "/v1/explain", body, token=house.desk.viewer).body
    assert (told["verdict"]["ruling"]["reason"], told["budget"]["state"]) == ("exhausted", "exhausted")
    question = uuid7()
    assert house.reason("denied", id=question) == "exhausted"
    (house.desk.policies / "shop.yaml").write_text(policy(tokens=5000, version=2))
    until(lambda: house.reason("denied") == "allowed", 3)
    assert house.reason("denied", id=question) == "allowed"  # the answer from before does not stand
    over = house.floor.until(
        lambda: house.floor.records(Topic.ALERTS, kind="finding", fingerprint="budgets/denied/tokens", over=True)
    )
    assert len(over) == 1


def test_what_else_a_policy_can_want(house: House) -> None:
    for name in ("asking", "warned"):
        house.spend(name, 150)
    until(lambda: house.reason("asking") == "exhausted")
    waiting = house.ask("asking").body
    assert (waiting["decision"], waiting["tier"], waiting["rule"]) == ("approve", 3, "budget/tokens")
    assert waiting["approval"]
    assert waiting["budget"]["unit"] == "tokens"
    path = f"/v1/approvals/{waiting['approval']}"
    until(lambda: house.enforcer("GET", path, token=house.desk.admin).status == 200)
    assert house.enforcer("POST", path, {"verdict": "approve"}, token=house.desk.admin).status == 200
    used = until(lambda: (it := house.ask("asking", approval=waiting["approval"]).body)["decision"] == "allow" and it)
    assert (used["reason"], used.get("budget")) == ("approved", None)  # it was not the budget that decided
    (record,) = house.floor.tape.wait(Topic.DECISIONS, lambda one: one["id"] == used["id"])
    assert "budget" not in record
    assert house.reason("asking", "push") == "approval_required"
    until(lambda: house.floor.spent("warned") == 150)
    assert house.reason("warned") == "allowed"
    found = house.floor.until(
        lambda: house.floor.records(Topic.ALERTS, kind="finding", agent="warned", severity="page")
    )
    assert found[0]["evidence"]["on_exhausted"] == "alert"


def test_money_counts_with_the_price_that_the_agent_gives(house: House) -> None:
    house.spend("paying", 10, cost_usd=1.49)
    until(lambda: house.floor.spent("paying", "usd") == 1.49)
    assert house.reason("paying") == "allowed"
    house.spend("paying", 10, cost_usd=0.02)
    until(lambda: house.reason("paying") == "exhausted")


def test_shadow_only_notes_it(house: House) -> None:
    house.spend("shadowed", 500)
    until(lambda: house.reason("shadowed") == "exhausted")
    answer = house.ask("shadowed").body
    assert answer["decision"] == "allow"
    record = house.floor.tape.wait(Topic.DECISIONS, lambda one: one["id"] == answer["id"])[0]
    assert (record["shadow"], record["rule"]) == ("deny", "budget/tokens")


def test_nobody_but_a_service_says_what_was_spent(house: House) -> None:
    floor, agent = house.floor, house.agents["quiet"].signer()

    def told(spent: float, offset: int, at: str = "", signer: Signer | None = None) -> None:
        event = Budget(
            v=1, id=uuid7(), time=at or rfc3339(), source="x", project="shop", agent="quiet", window="2026-11-29",
            unit="tokens", spent=spent, resets_at="2099-01-01T00:00:00.000000Z", offsets={"actions/0": offset},
        )  # fmt: skip
        floor.put(floor.service(Topic.LIMITS, "quiet/tokens", event, "processors", signer))

    told(10**9, 10**6, signer=agent)
    told(10**9, 20)
    until(lambda: house.reason("quiet") == "exhausted")
    told(0, 19)  # late, or a copy
    told(0, 20, "2026-11-01T00:00:00.000000Z")
    told(10**9 + 1, 20)
    until(lambda: house.ask("quiet").body["budget"]["spent"] == 10**9 + 1)
    told(0, 21, "2026-11-01T00:00:00.000000Z")  # it counts more, whatever the clock says of whoever told it
    until(lambda: house.reason("quiet") == "allowed")


def mark(house: House, partition: int, signer: Signer | None = None) -> tuple[Any, ...]:
    """Put one. -> the record."""
    event = Watermark(v=1, id=uuid7(), time=rfc3339(), source="x", partition=partition, lag_ms=0, worker="x")
    record = house.floor.service(Topic.LIMITS, f"watermark/{partition}", event, "processors", signer)
    house.floor.put(record)
    return record


def unanswered(house: House) -> int:
    """Questions that got a 503 because nobody had counted."""
    found: int = house.enforcer("GET", "/v1/status", token=house.desk.viewer).body["budgets"]["unknown"]
    return found


def test_where_nobody_counts_nobody_with_a_budget_goes_on(broker: Broker, tmp_path: Path) -> None:
    with open_house(broker, tmp_path, POLICIES, NAMES, worker=False, BANKSMAN_BUDGET_STALE_S="3") as house:
        until(lambda: house.reason("free") == "allowed")
        unknown = unanswered(house)
        assert house.ask("denied").status == 503
        assert unanswered(house) == unknown + 1
        assert "budget_unknown: no processor has counted" in house.ask("denied").body["detail"]
        assert house.reason("warned") == "allowed"  # its budget stops nothing
        assert house.reason("shadowed") == "allowed"  # shadow
        assert house.reason("denied", "force_push") == "default_deny"
        for partition in range(PARTITIONS):
            mark(house, partition, house.agents["free"].signer())
        one, other = "denied", "quiet"
        assert [partition_of(name.encode(), PARTITIONS) for name in (one, other)] == [0, 1]
        first = mark(house, 0)
        until(lambda: house.ask(one).status == 200)  # so what came before was read, and believed by nobody
        assert house.ask(other).status == 503
        until(lambda: house.ask(one).status == 503)
        house.floor.put(first)  # a copy is as old as the mark
        mark(house, 1)
        until(lambda: house.ask(other).status == 200)  # so it was read
        assert house.ask(one).status == 503
        worker = house.floor.start()
        house.floor.ready(worker)
        until(lambda: house.ask("denied").status == 200)
        freeze(worker.pid)
        began = time.monotonic()
        until(lambda: house.ask("denied").status == 503)
        assert 1 < time.monotonic() - began < 6
        assert "was last counted" in house.ask("denied").body["detail"]
        assert house.reason("free") == "allowed"
        again = house.floor.start("two")  # the frozen one is not waited for
        house.floor.ready(again, "two")
        until(lambda: house.ask("denied").status == 200)
