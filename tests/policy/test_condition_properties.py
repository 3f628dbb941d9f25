"""What holds for every policy also when its rules have conditions, and for every question about them."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.worlds import PROJECT, Operation, guardrails, operations, policies, rules

from banksman.policy.compile import Bundle, CompiledPolicy
from banksman.policy.explain import explain
from banksman.policy.holds import Facts
from banksman.policy.lint import lint
from banksman.policy.load import load
from banksman.policy.rules import Policy
from banksman.policy.verdict import Ruling

STRICTNESS = {"allow": 0, "approve": 1, "deny": 2}
CONDITIONS: list[dict[str, Any]] = [
    {"args.n": {"lt": 3}}, {"args.n": {"lt": 5}}, {"args.n": {"gte": 3}}, {"args.s": ["x", "y"]}, {"args.s": "x"},
    {"args.l": {"has": "a"}}, {"not": {"args.n": {"lt": 3}}}, {"args.s": {"not": ["x", "z"]}}, {"args.n": 3, "args.s": "x"},
    {"any": [{"args.n": {"lt": 3}}, {"args.s": "x"}]}, {"args.n": {"lt": {"attr": "args.m"}}},
    {"branch": {"glob": "feature/*"}},
    {"not": {"any": [{"args.n": 3}, {"all": [{"args.s": "x"}, {"args.b": True}]}]}}, {"args.p": {"glob": "src/**"}},
]  # fmt: skip
EXPRS = [
    "args.n < 3", "args.n * 2 < 10", "args.s in ['x', 'y']", "args.s != 'x'", "args.l.exists(one, one == 'a')",
    "args.n + args.m < 6 || args.s == 'x'", "resource.startsWith('acme/')", "!(args.n < 3)", "args.l.all(one, one in ['a'])",
]  # fmt: skip
ARGS: dict[str, st.SearchStrategy[Any]] = {
    "n": st.sampled_from([1, 3, 4, 9, 2.5, "3", True, None]), "m": st.sampled_from([2, 5, "x"]),
    "s": st.sampled_from(["x", "y", "z", 1, ["x"]]), "l": st.sampled_from([["a"], ["b"], [], "a"]),
    "b": st.booleans(), "p": st.sampled_from(["src/a", "src/../etc", "x", "src//a"]),
}  # fmt: skip
arguments = st.fixed_dictionaries({}, optional=ARGS)
asked = st.lists(st.tuples(operations(), arguments), min_size=1, max_size=12)


@st.composite
def conditional(draw: st.DrawFn) -> dict[str, Any]:
    """A policy, half of whose rules have a condition, and some an expression beside it or alone."""
    document: dict[str, Any] = json.loads(json.dumps(draw(policies())))
    document.pop("mode", None)
    for part in [document.get("guardrails", {}), *document["agents"].values()]:
        for effect in ("allow", "require_approval", "never"):
            for rule in part.get(effect, []):
                if draw(st.booleans()):
                    rule["when"] = draw(st.sampled_from(CONDITIONS))
                if draw(st.integers(0, 3)) == 0:
                    rule["expr"] = draw(st.sampled_from(EXPRS))
    return document


def bundle_of(document: dict[str, Any]) -> Bundle:
    return Bundle({PROJECT: CompiledPolicy(policy_of(document))})


def policy_of(document: dict[str, Any]) -> Policy:
    return load(json.dumps(document).encode()).policy


def ruling(where: Bundle, operation: Operation, args: dict[str, Any], agent: str = "a") -> Ruling:
    service, action, resource, branch = operation
    return where.decide(PROJECT, agent, service, action, resource, branch, Facts(args, 0.0)).ruling


@given(conditional(), asked, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_order_never_changes_an_answer(document: dict[str, Any], several: list[Any], rng: random.Random) -> None:
    shuffled = json.loads(json.dumps(document))
    for part in [*shuffled["agents"].values(), shuffled.get("guardrails", {})]:
        for effect in ("allow", "require_approval", "never"):
            rng.shuffle(part.get(effect, []))
            for rule in part.get(effect, []):
                rule["when"] = dict(reversed(rule.get("when", {}).items())) or {"branch": {"exists": True}}
                if "when" not in rule or rule["when"] == {"branch": {"exists": True}}:
                    del rule["when"]
    before, after = bundle_of(document), bundle_of(shuffled)
    for operation, args in several:
        one, two = ruling(before, operation, args), ruling(after, operation, args)
        assert (one.decision, one.tier, one.reason, one.approvers) == (
            two.decision,
            two.tier,
            two.reason,
            two.approvers,
        )


@given(conditional(), rules("never"), st.sampled_from(CONDITIONS), asked)
@settings(max_examples=150, deadline=None)
def test_adding_a_never_never_allows_more(
    document: dict[str, Any], rule: dict[str, Any], when: dict[str, Any], several: list[Any]
) -> None:
    stricter = json.loads(json.dumps(document))
    for part in stricter["agents"].values():
        part.setdefault("never", []).append(rule | {"when": when})
    before, after = bundle_of(document), bundle_of(stricter)
    for operation, args in several:
        one, two = ruling(before, operation, args), ruling(after, operation, args)
        assert STRICTNESS[two.decision] >= STRICTNESS[one.decision]


@given(conditional(), guardrails(), st.sampled_from(CONDITIONS), asked)
@settings(max_examples=200, deadline=None)
def test_guardrails_hold_whatever_an_agent_file_says(
    document: dict[str, Any], held: dict[str, Any], when: dict[str, Any], several: list[Any]
) -> None:
    held = {effect: [rule | {"when": when} for rule in of_it] for effect, of_it in held.items()}
    everything = [{"service": service, "actions": ["*"]} for service in ("git", "aws")]
    alone = bundle_of({"project": PROJECT, "guardrails": held, "agents": {"a": {"allow": everything}}})
    both = bundle_of(document | {"guardrails": held})
    for operation, args in several:
        assert STRICTNESS[ruling(both, operation, args).decision] >= STRICTNESS[ruling(alone, operation, args).decision]


@given(conditional(), asked)
@settings(max_examples=200, deadline=None)
def test_leaving_an_argument_out_never_gets_more(document: dict[str, Any], several: list[Any]) -> None:
    """No answer becomes an allow. What no rule named may come to a human: an approval rule whose condition cannot be worked out
    matches, as the contract has it, and says so.
    """
    bundle = bundle_of(document)
    for operation, args in several:
        full = ruling(bundle, operation, args)
        for less in ({}, *({other: args[other] for other in args if other != name} for name in args)):
            got = ruling(bundle, operation, less)
            if STRICTNESS[got.decision] < STRICTNESS[full.decision]:
                assert (full.decision, full.reason) == ("deny", "default_deny"), (operation, args, less)
                assert (got.decision, got.reason) == ("approve", "condition_error"), (operation, args, less)


@given(conditional(), asked)
@settings(max_examples=100, deadline=None)
def test_the_text_is_the_policy_and_explain_agrees(document: dict[str, Any], several: list[Any]) -> None:
    first = load(json.dumps(document).encode())
    assert load(first.text.encode()) == first
    bundle = bundle_of(document)
    for operation, args in several:
        facts = Facts(args, 0.0)
        service, action, resource, branch = operation
        told = explain(bundle, PROJECT, "a", service, action, resource, branch, facts)
        assert told.verdict == bundle.decide(PROJECT, "a", service, action, resource, branch, facts)
        if told.verdict.reason not in {"unknown_agent", "not_canonical"}:
            assert sorted(one.rule for one in told.rules if one.failed is None) == sorted(told.verdict.ruling.matched)


@given(conditional(), st.lists(st.tuples(operations(), arguments), min_size=40, max_size=40))
@settings(max_examples=150, deadline=None)
def test_lint_is_right_about_what_never_decides_and_what_could_go(document: dict[str, Any], several: list[Any]) -> None:
    found = lint(json.dumps(document).encode(), "p.yaml")
    dead = {one.rule for one in found if one.code == "unreachable"}
    useless = dead | {one.rule for one in found if one.code == "redundant"}
    slim = json.loads(json.dumps(document))
    for name, part in [("guardrails", slim.get("guardrails", {})), *slim["agents"].items()]:
        for effect in ("allow", "require_approval", "never"):
            if effect in part:
                part[effect] = [rule for at, rule in enumerate(part[effect]) if f"{name}/{effect}/{at}" not in useless]
    before, after = bundle_of(document), bundle_of(slim)
    for operation, args in several:
        for agent in document["agents"]:
            one, two = ruling(before, operation, args, agent), ruling(after, operation, args, agent)
            assert one.rule not in dead
            assert (one.decision, one.tier, one.approvers) == (two.decision, two.tier, two.approvers), (operation, args)
