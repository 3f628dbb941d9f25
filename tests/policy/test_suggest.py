"""`policy suggest`: what it grants is what was used, and hardly more."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.worlds import PROJECT, bundle_of, operations, policies

from banksman.policy.backtest import Backtest, Needs, Recorded, needs
from banksman.policy.compile import CompiledPolicy
from banksman.policy.holds import Facts
from banksman.policy.lint import lint
from banksman.policy.load import load
from banksman.policy.subjects import read, written
from banksman.policy.suggest import ENOUGH, LISTED, Suggestion, generalised, suggest
from banksman.policy.verdict import Outcome


def did(operation: str, said: Outcome = "allow", times: int = 1, days: int = 1) -> Recorded:
    """`git push acme/web main`; a dash for what was left out."""
    service, action, resource, branch = [*operation.split(), "-", "-"][:4]
    where, on = (None if part == "-" else part for part in (resource, branch))
    return Recorded("a", service, action, where, on, said, times, "s1", days=frozenset(map(str, range(days))))


def rules(made: Suggestion) -> dict[str, Any]:
    policy = load(made.text.encode()).policy
    return {rule.id: rule for rule in policy.agents["a"].rules}


def test_few_are_listed_and_actions_with_the_same_places_share_a_rule() -> None:
    made = suggest(
        "p", "a", [did(f"git {action} acme/{name} main") for action in ("push", "pull") for name in ("web", "api")]
    )
    assert [one.rule for one in made.grants] == [
        {"service": "git", "actions": ["pull", "push"], "resources": ["acme/api", "acme/web"], "branches": ["main"]}
    ]


@pytest.mark.parametrize(
    ("values", "patterns"),
    [
        ([f"feature/{n}" for n in range(LISTED + 1)], ["feature/*"]),
        ([f"feature/{n}" for n in range(LISTED)], [f"feature/{n}" for n in range(LISTED)]),
        ([f"feature/{n}" for n in range(LISTED)] + ["main"], ["feature/*", "main"]),
        ([f"ch_{n}x" for n in range(20)], ["ch_*"]),
        ([f"x{n}" for n in range(20)], sorted(f"x{n}" for n in range(20))),
        ([f"arn:aws:s3:::data/{n}.csv" for n in range(20)], ["arn:aws:s3:::data/*"]),
        ([f"src/{m}/f{n}.py" for m in range(9) for n in range(ENOUGH)], ["src/**"]),
        ([f"t{n}/x" for n in range(20)], sorted(f"t{n}/x" for n in range(20))),
        (["a[1].txt"], ["a?1?.txt"]),
        ([f"data/2026/11/{n}" for n in range(20)], ["data/2026/11/*"]),  # one month: nobody has seen another one
        ([f"data/2026/{m}/{n}" for m in (11, 12) for n in range(6)], ["data/20??/??/*"]),
        ([f"data/2026-11-{day:02}/r.csv" for day in range(1, 20)], ["data/20??-??-??/r.csv"]),
        ([f"{n}?/2026/{m}/{n}?" for n in "ab" for m in range(10, 16)], ["a?/20??/??/a?", "b?/20??/??/b?"]),
        ([f"/{y}/{n}" for y in (2025, 2026) for n in range(9)], ["/20??/*"]),  # and not /etc/passwd
        (
            [*(f"b/2026-11-0{day}/{name}" for day in range(1, 6) for name in ("x", "y")), "b/2026-11-01/key"],
            ["b/2026-11-01/key", "b/20??-??-??/x", "b/20??-??-??/y"],  # on one day is not on any
        ),
    ],
)
def test_generalised(values: list[str], patterns: list[str]) -> None:
    assert list(generalised(values)) == patterns


def test_nothing_becomes_a_pattern_without_a_literal() -> None:
    made = generalised([f"{n}/{m}" for n in range(30) for m in range(30)])
    assert all(one.strip("*/?") for one in made)


def test_what_was_denied_is_not_in_it_and_is_said() -> None:
    made = suggest("p", "a", [did("git push acme/web main"), did("aws iam:CreateUser", "deny", times=7)])
    assert "iam" not in made.text
    assert made.denied == (("aws iam:CreateUser", 7),)


def test_what_needed_a_human_still_does() -> None:
    made = suggest("p", "a", [did("git push acme/web main", "approve"), did("git push acme/web feature/x")])
    policy = CompiledPolicy(load(made.text.encode()).policy)
    decisions = [
        policy.decide("a", "git", "push", "acme/web", branch).decision for branch in ("main", "feature/x", "other")
    ]
    assert decisions == ["approve", "allow", "deny"]


def test_what_was_left_out_is_granted_only_where_it_is_left_out() -> None:
    made = suggest("p", "a", [did("stripe refunds:create"), did("git push acme/web -"), did("git log acme/web -")])
    policy = CompiledPolicy(load(made.text.encode()).policy)
    assert policy.decide("a", "stripe", "refunds:create").decision == "allow"
    assert policy.decide("a", "stripe", "refunds:create", "ch_1").decision == "deny"
    assert policy.decide("a", "git", "push", "acme/web").decision == "allow"
    assert policy.decide("a", "git", "push", "acme/web", "main").decision == "deny"
    assert policy.decide("a", "git", "log", "acme/web", "main").decision == "allow"  # it only reads


def test_what_is_granted_and_never_used_is_named_and_owner_and_budget_stay() -> None:
    current = load(b"""
project: p
owner: ann
agents:
  a:
    budget: {daily_tokens: 5}
    allow:
      - {service: git, actions: [push], resources: ["acme/*"]}
      - {service: aws, actions: ["s3:*"]}
    never: [{service: git, actions: [force_push]}]
""").policy
    made = suggest("p", "a", [did("git push acme/web main", times=30, days=6)], current)
    assert [rule.id for rule in made.unused] == ["a/allow/1"]
    assert "# never used:\n    #   a/allow/1: aws s3:*" in made.text
    assert "confidence high" in made.text
    again = load(made.text.encode()).policy
    assert again.owner == "ann"
    assert again.agents["a"].budget is not None
    assert [one for one in lint(made.text.encode(), "x") if one.level == "error"] == []


def test_what_holds_it_now_holds_it_then() -> None:
    text = b"""
project: p
schedules: {office: {from: "08:00", to: "20:00"}, unused: {days: [mon]}}
freeze: [{during: [office], services: [kubernetes]}]
guardrails: {never: [{service: aws, actions: ["iam:*"]}]}
rules: {shared: {never: [{service: git, actions: [force_push]}]}}
agents:
  a:
    use: [shared]
    detect: {loops: {on_alert: kill}}
    allow:
      - {service: stripe, actions: ["refunds:create"], when: {args.amount: {lt: 500}}}
      - {service: x, actions: ["*"]}
    require_approval:
      - {service: git, actions: [push], branches: [main], approvers: {any: [cfo, ceo], min: 2, expires: 1h}}
"""
    loaded = load(text)
    recorded = [
        did("stripe refunds:create ch_1"), did("git push acme/web main", "approve"), did("x *"), did("x a[b"),
        did("x go https://a/" + "[" * 20),
    ]  # fmt: skip
    made = suggest("p", "a", recorded, loaded.policy, json.loads(loaded.text))
    again = CompiledPolicy(load(made.text.encode()).policy)
    assert again.decide("a", "stripe", "refunds:create", "ch_1", facts=Facts({"amount": 5})).decision == "allow"
    assert again.decide("a", "stripe", "refunds:create", "ch_1", facts=Facts({"amount": 9999})).decision == "deny"
    asked = again.decide("a", "git", "push", "acme/web", "main").ruling
    assert [(one.any, one.min, one.expires) for one in asked.approvers] == [(("ceo", "cfo"), 2, 3600)]
    assert again.decide("a", "git", "force_push", "acme/web", "main").reason == "never"
    assert again.decide("a", "aws", "iam:CreateUser").reason == "guardrail"
    assert again.decide("a", "x", "anything").decision == "deny"
    assert again.policy.agents["a"].on_loop == "kill"
    assert set(again.policy.schedules) == {"office"}


def test_of_several_rules_that_had_humans_asked_all_stay() -> None:
    """Each may want the yes of others, and a condition says in which cases."""
    current = load(b"""
project: p
agents:
  a:
    require_approval:
      - {service: git, actions: [push], approvers: {any: [ann]}}
      - {service: git, actions: ["p*"], approvers: {any: [ann]}}
      - {service: git, actions: [push], branches: [main], approvers: {any: [bob]}}
      - {service: git, actions: [push], branches: [main], when: {args.force: true}, approvers: {any: [eve]}}
""").policy
    made = suggest("p", "a", [did("git push acme/web main", "approve", times=3)], current)
    assert [grant.times for grant in made.grants] == [3] * 3
    policy = CompiledPolicy(load(made.text.encode()).policy)
    for args, wanted in (({"force": False}, {"ann", "bob"}), ({"force": True}, {"ann", "bob", "eve"})):
        ruling = policy.decide("a", "git", "push", "acme/web", "main", Facts(args)).ruling
        assert (ruling.decision, {one.any[0] for one in ruling.approvers}) == ("approve", wanted)


def test_a_tier_that_a_rule_says_stays() -> None:
    current = load(b"""
project: p
agents:
  a:
    allow:
      - {service: aws, actions: ["s3:*"], resources: ["arn:aws:s3:::secrets/*"], tier: 2}
      - {service: aws, actions: ["s3:GetObject"]}
      - {service: git, actions: [push, pull]}
""").policy
    done = [did("aws s3:GetObject arn:aws:s3:::secrets/k"), did("aws s3:GetObject arn:aws:s3:::open/k")]
    made = suggest("p", "a", [*done, did("git push acme/web main"), did("git pull acme/web main")], current)
    policy = CompiledPolicy(load(made.text.encode()).policy)
    tiers = [
        policy.decide("a", "aws", "s3:GetObject", f"arn:aws:s3:::{name}/k").ruling.tier for name in ("secrets", "open")
    ]
    assert tiers == [2, 1]
    assert "confidence low, tier 1 and 2\n      - service: git" in made.text


def test_no_pattern_is_about_many_hosts() -> None:
    made = generalised([f"https://host-{n}.example/p{m}" for n in range(10) for m in range(6)])
    assert made == tuple(sorted(f"https://host-{n}.example/*" for n in range(10)))


@given(policies(), st.lists(st.tuples(operations(), st.integers(1, 9)), min_size=1, max_size=40))
@settings(max_examples=150, deadline=None)
def test_it_passes_lint_and_denies_nothing_of_what_was_allowed(document: dict[str, Any], asked: list[Any]) -> None:
    document = {key: value for key, value in document.items() if key not in {"mode", "guardrails"}}
    document["agents"] = {"a": {"allow": document["agents"].get("a", {}).get("allow", [])}}
    bundle = bundle_of(document)
    seen = dict(asked)
    recorded = []
    for operation, times in seen.items():
        said = bundle.decide(PROJECT, "a", *operation)
        recorded.append(
            Recorded(
                "a",
                said.service,
                said.action,
                said.resource,
                said.branch,
                said.decision,
                times,
                "s",
                days=frozenset({"2026-12-01"}),
            )
        )
    made = suggest(PROJECT, "a", recorded, load(json.dumps(document).encode()).policy)
    assert [one for one in lint(made.text.encode(), "x") if one.level == "error" and one.code != "never-matches"] == []
    backtest = Backtest(load(made.text.encode()).policy)
    backtest.take(one for one in recorded if one.said == "allow")
    assert backtest.done().moved == {}


def test_needs() -> None:
    def of(when: str) -> Needs:
        return needs(
            load(f"project: p\nagents: {{a: {{allow: [{{service: git, actions: [push]{when}}}]}}}}".encode()).policy
        )

    assert of("") == Needs(args=False, time=False)
    assert of(", when: {args.n: 1}") == Needs(args=True, time=False)
    assert of(", when: {branch: main, time: {lt: '2026-12-01T00:00:00Z'}}") == Needs(args=False, time=True)
    assert of(", when: {subject.role: x}") == Needs(args=False, time=False, subject=True)
    assert of(", when: {args.n: {is: {attr: subject.n}}}") == Needs(args=True, time=False, subject=True)


def test_backtest_knows_whom_it_was_about() -> None:
    policy = load(b"""
project: p
subjects: {user: {ann: {role: editor}, bob: {role: viewer}}}
agents: {a: {allow: [{service: doc, actions: [edit], when: {subject.role: editor}}]}}
""").policy
    backtest = Backtest(policy)
    backtest.take(did("doc edit x", times=2)._replace(subject=written("user", who)) for who in ("ann", "bob", "eve"))
    assert dict(backtest.done().totals()) == {"allow->deny": 4}
    assert read(written("a:%3A", "x:y")) == ("a:%3A", "x:y")
