"""What holds for every policy and every operation."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.worlds import (
    PROJECT,
    Operation,
    agents,
    bundle_of,
    expected,
    guardrails,
    operations,
    policies,
    rules,
)

from banksman.policy.compile import Bundle, CompiledPolicy
from banksman.policy.explain import explain
from banksman.policy.load import load
from banksman.policy.verdict import Reason

STRICTNESS = {"allow": 0, "approve": 1, "deny": 2}
many = st.lists(operations(), min_size=1, max_size=12)
who = st.sampled_from(["a", "b", "stranger"])


def enforced(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "mode"}


@given(policies().map(enforced), who, many)
@settings(max_examples=300, deadline=None)
def test_an_independent_oracle_agrees(document: dict[str, Any], agent: str, asked: list[Operation]) -> None:
    bundle = bundle_of(document)
    for operation in asked:
        verdict = bundle.decide(PROJECT, agent, *operation)
        assert (verdict.decision, verdict.reason) == expected(document, agent, operation), operation


@given(policies(), who, many, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_order_never_changes_an_answer(
    document: dict[str, Any], agent: str, asked: list[Operation], rng: random.Random
) -> None:
    shuffled = json.loads(json.dumps(document))
    for part in [*shuffled["agents"].values(), shuffled.get("guardrails", {})]:
        for effect in ("allow", "require_approval", "never"):
            rng.shuffle(part.get(effect, []))
            for rule in part.get(effect, []):
                for patterns in (rule["actions"], rule.get("resources", []), rule.get("branches", [])):
                    rng.shuffle(patterns)
    before, after = bundle_of(document), bundle_of(dict(reversed(shuffled.items())))
    for operation in asked:
        one, two = (bundle.decide(PROJECT, agent, *operation).ruling for bundle in (before, after))
        assert (one.decision, one.tier, one.reason, one.approvers, one.shadow, one.owner) == (
            two.decision, two.tier, two.reason, two.approvers, two.shadow, two.owner,
        )  # fmt: skip
        assert len(one.matched) == len(two.matched)


@given(policies(), st.sampled_from(["agents", "guardrails"]), rules("never"), who, many)
@settings(max_examples=100, deadline=None)
def test_adding_a_never_never_allows_more(
    document: dict[str, Any], where: str, rule: dict[str, Any], agent: str, asked: list[Operation]
) -> None:
    stricter = json.loads(json.dumps(document))
    if where == "guardrails":
        stricter.setdefault("guardrails", {}).setdefault("never", []).append(rule)
    for part in stricter["agents"].values() if where == "agents" else ():
        part.setdefault("never", []).append(rule)
    before, after = bundle_of(document), bundle_of(stricter)
    for operation in asked:
        one, two = before.decide(PROJECT, agent, *operation), after.decide(PROJECT, agent, *operation)
        assert STRICTNESS[two.decision] >= STRICTNESS[one.decision]
        said = [verdict.ruling.shadow or verdict.decision for verdict in (one, two)]
        assert STRICTNESS[said[1]] >= STRICTNESS[said[0]]


@given(policies(), guardrails(), agents(), st.sampled_from(["enforce", "shadow"]), many)
@settings(max_examples=300, deadline=None)
def test_guardrails_hold_whatever_an_agent_file_says(
    document: dict[str, Any], held: dict[str, Any], mine: dict[str, Any], mode: str, asked: list[Operation]
) -> None:
    document = {**document, "guardrails": held, "mode": mode, "agents": {"a": mine}}
    # What the guardrails alone say about an agent that may do everything else.
    everything = [{"service": service, "actions": ["*"]} for service in ("git", "aws")]
    alone = {"project": PROJECT, "guardrails": held, "agents": {"a": {"allow": everything}}}
    bundle = bundle_of(document)
    for operation in asked:
        least, _ = expected(alone, "a", operation)
        for agent in ("a", "stranger"):
            assert STRICTNESS[bundle.decide(PROJECT, agent, *operation).decision] >= STRICTNESS[least]


@given(policies().map(enforced), who, many)
@settings(max_examples=100, deadline=None)
def test_leaving_a_field_out_never_gets_more(document: dict[str, Any], agent: str, asked: list[Operation]) -> None:
    bundle = bundle_of(document)
    for service, action, resource, branch in asked:
        full = bundle.decide(PROJECT, agent, service, action, resource, branch).decision
        for less in ((None, branch), (resource, None), (None, None)):
            got = bundle.decide(PROJECT, agent, service, action, *less).decision
            assert STRICTNESS[got] >= STRICTNESS[full], less


@given(policies().map(enforced), who, many)
@settings(max_examples=100, deadline=None)
def test_shadow_says_what_enforce_does_and_answers_allow(
    document: dict[str, Any], agent: str, asked: list[Operation]
) -> None:
    real, shadow = bundle_of(document), bundle_of({**document, "mode": "shadow"})
    held = document.get("guardrails", {})
    for operation in asked:
        said = real.decide(PROJECT, agent, *operation).decision
        ruling = shadow.decide(PROJECT, agent, *operation).ruling
        if not any(held.values()):
            assert (ruling.decision, ruling.shadow) == ("allow", said)
        if ruling.shadow is None:
            # Enforced, and then by a guardrail.
            assert ruling.rule is not None
            assert ruling.rule.startswith("guardrails/")
            assert ruling.decision == said or agent not in document["agents"]  # whom shadow knows no more than enforce


@given(policies())
@settings(max_examples=300, deadline=None)
def test_the_normalised_text_is_the_policy(document: dict[str, Any]) -> None:
    first = load(json.dumps(document, indent=3).encode())
    again = load(first.text.encode())
    assert again == first
    assert again.policy.version == first.policy.version


@given(policies(), who, many)
@settings(max_examples=100, deadline=None)
def test_explain_agrees_with_decide(document: dict[str, Any], agent: str, asked: list[Operation]) -> None:
    bundle = bundle_of(document)
    for operation in asked:
        verdict = bundle.decide(PROJECT, agent, *operation)
        told = explain(bundle, PROJECT, agent, *operation)
        assert told.verdict == verdict
        if verdict.reason is not Reason.UNKNOWN_AGENT:
            assert sorted(one.rule for one in told.rules if one.failed is None) == sorted(verdict.ruling.matched)
        depth = {None: 9, "branch": 3, "resource": 2, "action": 1, "service": 0}
        assert [depth[one.failed] for one in told.rules] == sorted(
            (depth[one.failed] for one in told.rules), reverse=True
        )


@given(policies(), who, many, many)
@settings(max_examples=100, deadline=None)
def test_what_was_asked_before_never_matters(
    document: dict[str, Any], agent: str, asked: list[Operation], before: list[Operation]
) -> None:
    """Rulings are kept; a kept one must be the one that a fresh start would give."""
    policy = load(json.dumps(document).encode()).policy
    used = Bundle({PROJECT: CompiledPolicy(policy)})
    for operation in before:
        used.decide(PROJECT, agent, *operation)
    for operation in asked:
        fresh = Bundle({PROJECT: CompiledPolicy(policy)})
        assert used.decide(PROJECT, agent, *operation) == fresh.decide(PROJECT, agent, *operation)
