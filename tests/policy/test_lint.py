"""`policy lint`: each kind of finding, and that what is called dead is dead."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.worlds import PROJECT, SERVICES, any_operations, bundle_of, operations, policies

from banksman.policy.compile import Bundle
from banksman.policy.globs import Custom, bad_pattern, compile_patterns
from banksman.policy.lint import CODES, Finding, lint, two_files
from banksman.policy.normal import bad_branch, bad_resource
from banksman.policy.regions import TooMany, sorts

HEAD = """project: p
owner: me
agents:
  a:
    budget: {daily_tokens: 5}
"""


def found(text: str) -> list[tuple[int, str, str]]:
    return [(one.line, one.code, one.rule) for one in lint(text.encode(), "p.yaml")]


CASES: list[tuple[dict[str, list[str]], list[tuple[int, str, str]]]] = [
    ({"allow": ["git, actions: [pull], resources: [acme/web]"]}, []),
    ({"allow": ["git, actions: [pul], resources: [acme/web]"]}, [(7, "unknown-verb", "a/allow/0")]),
    ({"allow": ["http, actions: [get], resources: [acme.example]"]}, []),
    ({"allow": ["stripe, actions: ['refund:*'], resources: [x]"]}, [(7, "unknown-verb", "a/allow/0")]),
    ({"allow": ["gti, actions: [pull], resources: [x]"]}, [(7, "unknown-service", "a/allow/0")]),
    ({"allow": ["warehouse, actions: [pick], resources: [x]"]}, [(7, "unknown-service", "a/allow/0")]),
    (
        {"allow": ["stripe, actions: ['refunds:create'], resources: [x], branches: [main]"]},
        [(7, "never-matches", "a/allow/0")],
    ),
    ({"allow": ["aws, actions: ['s3:GetObject'], resources: [bucket/key]"]}, [(7, "never-matches", "a/allow/0")]),
    ({"allow": ["aws, actions: [GetObject], resources: ['arn:aws:s3:::b/k']"]}, [(7, "never-matches", "a/allow/0")]),
    ({"allow": ["aws, actions: ['*']"]}, [(7, "allow-everything", "a/allow/0")]),
    ({"allow": ["aws, actions: ['*'], when: {args.x: 1}"]}, [(7, "broad", "a/allow/0")]),
    ({"allow": ["git, actions: [pull], resources: ['*/*']"]}, [(7, "broad", "a/allow/0")]),
    ({"require_approval": ["git, actions: [push]"]}, [(7, "approval-without-resources", "a/require_approval/0")]),
    (
        {"allow": ["git, actions: [push], resources: [acme/web]"], "never": ["git, actions: [p*]"]},
        [(7, "unreachable", "a/allow/0")],
    ),
    (
        {
            "allow": ["git, actions: [push], resources: [acme/web, acme/old]"],
            "never": ["git, actions: [push], resources: [acme/old]"],
        },
        [(7, "dead-pattern", "a/allow/0")],
    ),
    (
        {"allow": ["git, actions: [pull], resources: [acme/web]", "git, actions: [pull, log], resources: ['acme/*']"]},
        [(7, "redundant", "a/allow/0")],
    ),
    (
        {
            "allow": [
                "git, actions: [pull], resources: [acme/web], when: {args.n: {lt: 5}}",
                "git, actions: [pull], resources: [acme/web], when: {args.n: {lt: 9}}",
            ]
        },
        [(7, "redundant", "a/allow/0")],
    ),
    ({"allow": ["git, actions: [pull], resources: [a/b], tier: 2", "git, actions: [pull], resources: ['a/*']"]}, []),
    (  # two together leave nothing, though neither does alone
        {
            "allow": ["git, actions: [push], resources: [acme/web], branches: ['*']"],
            "never": ["git, actions: [push], branches: ['a*', '?']", "git, actions: [push], branches: ['*']"],
        },
        [(7, "broad", "a/allow/0"), (7, "unreachable", "a/allow/0"), (9, "redundant", "a/never/0")],
    ),
    ({"allow": ["git, actions: [pull], resources: [acme/web], mode: shadow"]}, [(7, "shadow", "a/allow/0")]),
    ({"never": ["git, actions: [push]"]}, [(4, "no-rules", "")]),
]


@pytest.mark.parametrize(("rules", "wanted"), CASES)
def test_one_agent(rules: dict[str, list[str]], wanted: list[tuple[int, str, str]]) -> None:
    written = "".join(
        f"    {effect}:\n" + "".join(f"      - {{service: {one}}}\n" for one in several)
        for effect, several in rules.items()
    )
    assert found(HEAD + written) == wanted


def test_what_is_said_of_agents_sets_and_schedules() -> None:
    text = """project: p
mode: shadow
schedules: {office: {days: [mon]}}
rules:
  readers: {allow: [{service: git, actions: [pull], resources: [x]}]}
agents:
  a: {allow: [{service: git, actions: [pull], resources: [x]}]}
"""
    assert found(text) == [
        (2, "shadow", ""),
        (3, "unused", ""),
        (5, "unused", ""),
        (7, "no-budget", ""),
        (7, "no-owner", ""),
    ]


def test_a_file_that_does_not_load_says_everything_that_is_wrong() -> None:
    told = lint(b"project: p\ncolour: red\nagents:\n  a: {alow: []}\n  b: {owner: ''}\n", "p.yaml")
    assert [(one.line, one.code) for one in told] == [(2, "does-not-load"), (4, "does-not-load"), (5, "does-not-load")]
    assert "did you mean allow?" in told[1].message


def test_two_files_for_one_project() -> None:
    told = two_files([("a.yaml", "p"), ("b.yaml", "q"), ("c.yaml", "p")])
    assert [(one.file, one.code) for one in told] == [("a.yaml", "two-files"), ("c.yaml", "two-files")]


def test_every_code_is_explained() -> None:
    assert {one.code for one in [Finding("error", code, "", "", "", 1) for code in CODES]} == set(CODES)


def test_too_many_patterns_are_not_called_proved() -> None:
    rules = [{"service": "git", "actions": ["push"], "resources": [f"*{n}*{m}*" for m in range(9)]} for n in range(20)]
    text = json.dumps({"project": "p", "owner": "x", "agents": {"a": {"allow": rules}}})
    assert "not-proved" in {one.code for one in lint(text.encode(), "p.yaml")}


# ── what is proved ──


@given(policies(), st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)  # one in nine has such a rule
def test_what_is_unreachable_is_reached_by_none_of_ten_thousand_operations(document: dict[str, Any], seed: int) -> None:
    document = {key: value for key, value in document.items() if key != "mode"}
    dead = {one.rule for one in lint(json.dumps(document).encode(), "p.yaml") if one.code == "unreachable"}
    if not dead:
        return
    bundle = bundle_of(document)
    for operation in any_operations(seed, 10_000):
        for agent in document["agents"]:
            rule = bundle.decide(PROJECT, agent, *operation).ruling.rule
            assert rule not in dead, operation


@given(policies(), st.sampled_from(["a", "b"]), st.lists(operations(), min_size=40, max_size=40))
@settings(max_examples=150, deadline=None)
def test_without_what_is_redundant_every_answer_is_the_same(
    document: dict[str, Any], agent: str, asked: list[Any]
) -> None:
    document = {key: value for key, value in document.items() if key != "mode"}
    useless = {
        one.rule for one in lint(json.dumps(document).encode(), "p.yaml") if one.code in {"redundant", "unreachable"}
    }
    slim = json.loads(json.dumps(document))
    for name, part in [("guardrails", slim.get("guardrails", {})), *slim["agents"].items()]:
        for effect in ("allow", "require_approval", "never"):
            kept = [rule for at, rule in enumerate(part.get(effect, [])) if f"{name}/{effect}/{at}" not in useless]
            if effect in part:
                part[effect] = kept
    before, after = bundle_of(document), bundle_of(slim)
    for operation in asked:
        one, two = (bundle.decide(PROJECT, agent, *operation).ruling for bundle in (before, after))
        assert (one.decision, one.tier, one.approvers) == (two.decision, two.tier, two.approvers), operation


def patterns(service: str, key: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(SERVICES[service][key]), min_size=1, max_size=5, unique=True)


@given(
    st.sampled_from(["git", "aws"]).flatmap(
        lambda service: st.tuples(st.just(service), patterns(service, "resource_patterns"))
    ),
    st.text(alphabet="acme/billngxyd:.-s3rw", min_size=1, max_size=24),
)
@settings(max_examples=400, deadline=None)
def test_every_value_is_of_a_sort(given_: tuple[str, list[str]], text: str) -> None:
    service, several = given_
    made = sorts(Custom.RESOURCE, service, several)
    for one in made:
        assert one.matched == _matched(service, several, one.example), one
    for value in (text, *SERVICES[service]["resources"]):
        if bad_resource(service, value) is None:
            assert _matched(service, several, value) in {one.matched for one in made}, value


def _matched(service: str, several: list[str], value: str) -> frozenset[int]:
    return frozenset(at for at, one in enumerate(several) if compile_patterns(Custom.RESOURCE, service, (one,))(value))


@given(
    st.lists(st.text(alphabet="ab*?/.", min_size=1, max_size=7), min_size=1, max_size=4, unique=True),
    st.text(alphabet="ab/.c", min_size=1, max_size=8),
)
@settings(max_examples=400, deadline=None)
def test_every_branch_is_of_a_sort(several: list[str], text: str) -> None:
    several = [one for one in several if bad_pattern(Custom.BRANCH, "git", one) is None]
    try:
        made = {one.matched for one in sorts(Custom.BRANCH, "git", several)}
    except TooMany:
        return
    if bad_branch(text) is None:
        matched = frozenset(
            at for at, one in enumerate(several) if compile_patterns(Custom.BRANCH, "git", (one,))(text)
        )
        assert matched in made


def test_a_policy_of_a_thousand_patterns_is_gone_through() -> None:
    several = [f"acme/service-{n}" for n in range(1000)]
    rules = [{"service": "git", "actions": ["push"], "resources": several}]
    document = {"project": "p", "owner": "x", "agents": {"a": {"budget": {"daily_tokens": 1}, "allow": rules}}}
    assert lint(json.dumps(document).encode(), "p.yaml") == []
    assert isinstance(bundle_of(document), Bundle)
