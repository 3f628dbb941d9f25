"""`policy diff`: what it says differs, differs; what it does not, does not."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.worlds import PROJECT, bundle_of, operations, policies

from banksman.policy.diff import Change, diff
from banksman.policy.diff import settings as other_settings
from banksman.policy.load import load
from banksman.policy.rules import Policy


def policy(document: dict[str, Any]) -> Policy:
    return load(json.dumps(document).encode()).policy


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    return list(diff(policy(old), policy(new)))


def of(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"project": PROJECT, "agents": {"a": {"allow": list(rules)} | more}}


PUSH = {"service": "git", "actions": ["push"], "resources": ["acme/*"]}


def test_the_same_in_other_words_differs_in_nothing() -> None:
    one = of({"service": "git", "actions": ["push", "pull"], "resources": ["acme/web", "acme/api"]})
    other = of(
        {"service": "git", "actions": ["pull"], "resources": ["acme/api", "acme/web"]},
        {"service": "git", "actions": ["push"], "resources": ["acme/api"]},
        {"service": "git", "actions": ["push"], "resources": ["acme/web"], "tier": 2},
    )
    assert changes(one, other) == []


def test_what_is_looser_and_what_is_stricter() -> None:
    told = changes(of(PUSH), of(PUSH | {"resources": ["acme/**"]}, never=[PUSH | {"resources": ["acme/old"]}]))
    assert sorted((one.kind, one.resource) for one in told if one.resource) == [
        ("looser", "acme/x/x"),
        ("stricter", "acme/old"),
    ]
    assert [one.kind for one in told if one.resource is None] == []  # left out, it was denied and is


def test_under_which_condition() -> None:
    told = changes(of(PUSH | {"when": {"args.n": {"lt": 5}}}), of(PUSH | {"when": {"args.n": {"lt": 9}}}))
    assert [(one.kind, one.under) for one in told] == [
        ("looser", 'not {"args.n": {"lt": 5}} and {"args.n": {"lt": 9}}')
    ]


def test_tiers_approvers_and_agents() -> None:
    told = changes(of(PUSH | {"tier": 1}), of(PUSH | {"tier": 2}))
    assert [(one.kind, one.before and one.before.tier, one.after and one.after.tier) for one in told] == [
        ("other", 1, 2)
    ]
    asks = [of(require_approval=[PUSH | {"approvers": {"min": n}}]) for n in (1, 2)]
    assert {one.kind for one in changes(*asks)} == {"other"}
    gone = changes(of(PUSH), {"project": PROJECT, "agents": {}})
    assert [(one.kind, one.after and one.after.reason) for one in gone] == [("stricter", "unknown_agent")]
    group = {"project": PROJECT, "agents": {"claude-*": {"allow": [PUSH]}}}
    assert {one.agent for one in changes({"project": PROJECT, "agents": {}}, group)} == {"claude-"}


def test_another_mode_changes_what_no_rule_names() -> None:
    told = changes(of(PUSH), of(PUSH) | {"mode": "shadow"})
    assert ("*", "looser", "deny") in [(one.service, one.kind, one.after and one.after.shadow) for one in told]


def test_settings() -> None:
    old, new = of(owner="ann"), of(owner="bob", budget={"daily_tokens": 5})
    told = [(one.about, one.what, one.after) for one in other_settings(policy(old), policy(new))]
    budget = '{"daily_tokens": 5, "alert_threshold": 0.8, "on_exhausted": "deny", "timezone": "UTC"}'
    assert told == [("a", "owner", '"bob"'), ("a", "budget", budget)]


@given(policies(), policies(), st.lists(operations(), min_size=40, max_size=40))
@settings(max_examples=150, deadline=None)
def test_an_answer_that_changes_is_in_it_and_examples_are_true(
    old: dict[str, Any], new: dict[str, Any], asked: list[Any]
) -> None:
    before, after, told = bundle_of(old), bundle_of(new), changes(old, new)
    for one in told:
        assert one.before is not None
        assert one.after is not None
        if one.service == "*":  # what no rule names
            continue
        operation = one.service, one.action, one.resource, one.branch
        rulings = [where.decide(PROJECT, one.agent, *operation).ruling for where in (before, after)]
        assert [said.decision for said in rulings] == [one.before.decision, one.after.decision], one
    for agent in {*old["agents"], *new["agents"]}:
        by_place = {one.service for one in told if one.agent == agent}
        for operation in asked:
            was, now = (where.decide(PROJECT, agent, *operation).ruling for where in (before, after))
            if was.reason == "not_canonical" or (was.decision, was.tier) == (now.decision, now.tier):
                continue
            assert {operation[0], "*"} & by_place, (operation, told)
