"""`when`: what holds, what does not, and what nobody can say; groups of agents, sets of rules, schedules, freezes, shadow."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banksman.errors import InvalidPolicy
from banksman.policy.compile import Bundle, CompiledPolicy
from banksman.policy.conditions import Condition, comparisons, moment, parse, plain
from banksman.policy.explain import explain
from banksman.policy.holds import Asked, Facts, compile_condition
from banksman.policy.load import load
from banksman.policy.reach import implies
from banksman.policy.subjects import attributes
from banksman.policy.verdict import Verdict


def truth(when: dict[str, Any], args: dict[str, Any] | None = None, **more: Any) -> bool | None:
    facts = Facts(args, more.pop("at", 0.0), more.pop("subject", None), more.pop("claims", None))
    asked = Asked("git", "push", more.pop("resource", "acme/billing"), more.pop("branch", "main"), "ann", facts)
    assert not more
    return compile_condition(parse(when, "git"), "git", {})(asked)


X: dict[str, Any] = {
    "n": 5, "f": 5.0, "t": "five", "yes": True, "none": None, "list": [1, "a", True], "deep": {"er": 7}, "path": "src/a/b.py",
    "up": "src/../etc", "url": "https://api.acme.example/v1", "m": 6,
}  # fmt: skip


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ({"args.n": 5}, True), ({"args.n": {"is": 5}}, True), ({"args.f": 5}, True), ({"args.n": 6}, False),
        ({"args.n": "5"}, None), ({"args.yes": 1}, None), ({"args.n": True}, None), ({"args.yes": True}, True),
        ({"args.none": 5}, None), ({"args.gone": 5}, None), ({"args.deep": 5}, None), ({"args.deep.er": 7}, True),
        ({"args.n.er": 7}, None), ({"args.list.1": "a"}, True), ({"args.list.9": "a"}, None), ({"args.list.0": 1}, True),
        ({"args.t": {"in": ["four", "five"]}}, True), ({"args.t": ["four"]}, False), ({"args.t": [4, 5]}, None),
        ({"args.yes": {"in": [1]}}, None), ({"args.n": {"in": [1, "a", 5]}}, True),
        ({"args.n": {"lt": 6}}, True), ({"args.n": {"lt": 5}}, False), ({"args.n": {"lte": 5}}, True),
        ({"args.n": {"gt": 4.9, "lt": 5.1}}, True), ({"args.n": {"gte": 5, "lt": 5}}, False), ({"args.yes": {"lt": 6}}, None),
        ({"args.t": {"lt": 6}}, None), ({"args.gone": {"lt": 6}}, None),
        ({"args.n": {"not": 5}}, False), ({"args.n": {"not": [6, 7]}}, True), ({"args.n": {"not": {"lt": 5}}}, True),
        ({"args.n": {"not": {"not": 5}}}, True), ({"args.gone": {"not": 5}}, None), ({"args.n": {"not": "x"}}, None),
        ({"args.n": {"exists": True}}, True), ({"args.gone": {"exists": True}}, False),
        ({"args.gone": {"exists": False}}, True),
        ({"args.none": {"exists": True}}, False), ({"args.deep": {"exists": True}}, True),
        ({"args.path": {"glob": "src/**"}}, True), ({"args.path": {"glob": "src/*"}}, False),
        ({"args.up": {"glob": "src/**"}}, None),
        ({"args.up": {"not": {"glob": "src/**"}}}, None), ({"args.n": {"glob": "5"}}, None),
        ({"args.path": {"glob": ["a/*", "**/*.py"]}}, True), ({"args.url": {"glob": "https://api.acme.example/*"}}, True),
        ({"args.list": {"has": "a"}}, True), ({"args.list": {"has": ["z", 1]}}, True), ({"args.list": {"has": "z"}}, False),
        ({"args.list": {"has": 2}}, False), ({"args.t": {"has": "five"}}, None), ({"args.gone": {"has": "five"}}, None),
        ({"args.n": {"lt": {"attr": "args.m"}}}, True), ({"args.n": {"is": {"attr": "args.f"}}}, True),
        ({"args.n": {"is": {"attr": "args.t"}}}, None), ({"args.n": {"is": {"attr": "args.gone"}}}, None),
        ({"args.t": {"in": {"attr": "args.list"}}}, False), ({"args.n": {"in": {"attr": "args.t"}}}, None),
        ({"branch": "main"}, True), ({"branch": {"glob": "m*"}}, True), ({"resource": {"glob": "acme/*"}}, True),
        ({"agent": {"in": ["ann", "bob"]}}, True), ({"action": "pull"}, False),
        # one plain no is a no, one plain yes a yes, whatever else cannot be said
        ({"args.gone": 1, "args.n": 6}, False), ({"args.gone": 1, "args.n": 5}, None),
        ({"any": [{"args.gone": 1}, {"args.n": 5}]}, True), ({"any": [{"args.gone": 1}, {"args.n": 6}]}, None),
        ({"any": [{"args.n": 6}, {"args.n": 7}]}, False), ({"all": [{"args.n": 5}, {"args.t": "five"}]}, True),
        ({"not": {"args.gone": 1, "args.n": 6}}, True), ({"not": {"args.gone": 1}}, None),
    ],
)  # fmt: skip
def test_holds(when: dict[str, Any], holds: bool | None) -> None:
    assert truth(when, X) is holds


def test_left_out_fields_cannot_be_worked_out() -> None:
    assert truth({"branch": "main"}, branch=None) is None
    assert truth({"resource": {"glob": "acme/*"}}, resource=None) is None
    assert truth({"args.n": 5}) is None


def test_the_policy_speaks_before_a_claim() -> None:
    when = {"subject.roles": {"has": "admin"}}
    assert truth(when, claims={"subject.roles": ["admin"]}) is True
    assert truth(when, subject={"roles": ("viewer",)}, claims={"subject.roles": ["admin"]}) is False
    assert (
        truth(
            {"resource.owner": {"is": {"attr": "subject.mail"}}}, subject={"mail": "a"}, claims={"resource.owner": "a"}
        )
        is True
    )


def test_what_an_agent_makes_long_is_not_gone_through() -> None:
    assert truth({"args.t": {"glob": "**"}}, {"t": "x" * 4097}) is None
    assert truth({"args.l": {"has": "a"}}, {"l": ["a"] * 1001}) is None
    assert truth({"args.t": {"in": {"attr": "args.l"}}}, {"t": "a", "l": ["a"] * 1001}) is None


# ── forms ──

names = st.sampled_from(["args.a", "args.b", "resource", "branch", "subject.role", "time"])
scalars = st.one_of(st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, 1.0]), st.sampled_from(["a", "b", "x/y"]))
texts = st.sampled_from(["a", "b", "x/y"])


@st.composite
def conditions(draw: st.DrawFn, depth: int = 3) -> dict[str, Any]:
    kind = draw(st.sampled_from(["test", "test", "all", "any", "not"] if depth else ["test"]))
    if kind in {"all", "any"}:
        return {kind: draw(st.lists(conditions(depth - 1), min_size=1, max_size=3))}
    if kind == "not":
        return {"not": draw(conditions(depth - 1))}
    name = draw(names)
    if name == "time":
        return {
            name: {
                draw(st.sampled_from(["lt", "gte"])): draw(
                    st.sampled_from(["1970-01-01T00:00:09Z", "2026-12-01T10:00:00+01:00"])
                )
            }
        }
    value = texts if name in {"resource", "branch"} else scalars
    if name in {"resource", "branch"}:
        ops = {
            "is": value,
            "in": st.lists(value, min_size=1, max_size=3),
            "glob": st.sampled_from(["*", "x/*", "a"]),
            "exists": st.booleans(),
        }
    else:
        ops = {"is": value, "in": st.lists(value, min_size=1, max_size=3), "has": value, "lt": st.integers(-2, 2),
               "gte": st.integers(-2, 2),
               "exists": st.booleans()}  # fmt: skip
    op = draw(st.sampled_from(sorted(ops)))
    test = {op: draw(ops[op])}
    return {name: {"not": test} if draw(st.booleans()) else test}


worlds = st.builds(
    lambda args, branch, role: Asked("git", "push", "x/y", branch, "ann", Facts(args, 0.0, {"role": role})),
    st.dictionaries(st.sampled_from(["a", "b"]), st.one_of(scalars, st.none(), st.lists(scalars, max_size=2))),
    st.sampled_from([None, "a", "b", "x/y"]),
    scalars,
)


@given(conditions(), worlds)
@settings(max_examples=400, deadline=None)
def test_the_one_form_says_the_same_and_stays(when: dict[str, Any], asked: Asked) -> None:
    first = parse(when, "git")
    again = parse(plain(first), "git")
    assert again == first
    assert json.dumps(plain(again)) == json.dumps(plain(first))
    assert compile_condition(again, "git", {})(asked) is _slowly(when, asked)


def _slowly(when: dict[str, Any], asked: Asked) -> bool | None:
    """An oracle without the forms in between."""
    found: list[bool | None] = []
    for key, value in when.items():
        if key in {"all", "any"}:
            each = [_slowly(part, asked) for part in value]
            found.append(_kleene(each) if key == "all" else _not(_kleene([_not(one) for one in each])))
        elif key == "not":
            found.append(_not(_slowly(value, asked)))
        else:
            found += [_test(key, op, operand, asked) for op, operand in value.items()]
    return _kleene(found)


def _kleene(each: list[bool | None]) -> bool | None:
    return False if False in each else None if None in each else True


def _not(one: bool | None) -> bool | None:
    return None if one is None else not one


def _test(name: str, op: str, operand: Any, asked: Asked) -> bool | None:
    if op == "not":
        inner, value = next(iter(operand.items()))
        return _not(_test(name, inner, value, asked))
    return compile_condition(parse({name: {op: operand}}, "git"), "git", {})(asked)


@given(conditions(), conditions(), worlds)
@settings(max_examples=600, deadline=None)
def test_what_is_implied_holds(one: dict[str, Any], other: dict[str, Any], asked: Asked) -> None:
    first, second = parse(one, "git"), parse(other, "git")
    if implies(first, second) and compile_condition(first, "git", {})(asked) is True:
        assert compile_condition(second, "git", {})(asked) is True


@pytest.mark.parametrize(
    ("one", "other", "follows"),
    [
        ({"args.a": {"lt": 5}}, {"args.a": {"lt": 9}}, True), ({"args.a": {"lt": 9}}, {"args.a": {"lt": 5}}, False),
        ({"args.a": {"lt": 5}}, {"args.a": {"lte": 5}}, True), ({"args.a": {"lte": 5}}, {"args.a": {"lt": 5}}, False),
        ({"args.a": {"gt": 9}}, {"args.a": {"gte": 5}}, True), ({"args.a": {"gt": 9}}, {"args.b": {"gt": 5}}, False),
        ({"args.a": "x"}, {"args.a": ["x", "y"]}, True), ({"args.a": ["x", "z"]}, {"args.a": ["x", "y"]}, False),
        ({"args.a": 1, "args.b": 2}, {"args.b": 2}, True), ({"args.b": 2}, {"args.a": 1, "args.b": 2}, False),
        ({"args.a": 1}, {"any": [{"args.a": 1}, {"args.b": 2}]}, True),
        ({"not": {"args.a": {"lt": 9}}}, {"not": {"args.a": {"lt": 5}}}, True), ({"args.a": 1}, {"args.a": True}, False),
    ],
)  # fmt: skip
def test_implies(one: dict[str, Any], other: dict[str, Any], follows: bool) -> None:
    assert implies(parse(one, ""), parse(other, "")) is follows


def test_one_and_true_are_two_values() -> None:
    several: Condition = parse({"all": [{"args.a": 1}, {"args.a": True}]}, "")
    assert [one.operand for one in comparisons(several)] in ([1, True], [True, 1])
    assert len(list(comparisons(several))) == 2
    assert truth({"args.yes": {"in": [1, True]}}, X) is True


def test_true_and_false_are_written_plainly_and_only_so() -> None:
    head = "project: p\nagents: {a: {allow: [{service: git, actions: [push], when: {args.x: "
    loaded = load(f"{head}true, args.y: {{exists: false}}}}}}]}}}}".encode())
    assert load(loaded.text.encode()) == loaded
    for text in ("True", "yes", "on", "TRUE"):
        with pytest.raises(InvalidPolicy, match="put it in quotes"):
            load(f"{head}{text}}}}}]}}}}".encode())


# ── in a policy ──

FULL = """
project: p
schedules:
  office: {days: [mon, tue, wed, thu, fri], from: "09:00", to: "18:00", timezone: Europe/Berlin}
  nights: {from: "22:00", to: "06:00"}
  christmas: {begins: "2026-12-19", ends: "2027-01-04T08:00", timezone: Europe/Berlin}
freeze:
  - {during: [christmas], services: [git]}
  - {during: [nights], then: approve, approvers: {any: [ann]}}
rules:
  readers:
    allow: [{service: git, actions: [pull, log]}]
agents:
  "claude-*":
    use: [readers]
    owner: the-group
    budget: {daily_tokens: 100}
    allow:
      - {service: git, actions: [push], resources: ["acme/*"], when: {time: {during: office}}}
      - {service: stripe, actions: ["refunds:create"], when: {args.amount: {lt: 500}}}
    never:
      - {service: stripe, actions: ["refunds:create"], when: {args.currency: {not: eur}}}
  claude-7:
    owner: seven
    allow:
      - {service: slack, actions: [read], mode: shadow}
      - {service: slack, actions: [post_message]}
      - {service: own, actions: ["*"]}
    never: [{service: slack, actions: [post_message], resources: ["#all"], mode: shadow}]
    detect: {loops: {on_alert: kill}}
  trial: {mode: shadow, use: [readers]}
"""
NOON, NIGHT, XMAS = (moment(f"2026-{at}:00+01:00") for at in ("12-01T12:00", "12-01T23:30", "12-24T12:00"))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    policy = load(FULL.encode()).policy
    return Bundle({"p": CompiledPolicy(policy)})


def ask(
    where: Bundle, agent: str, operation: str, args: dict[str, Any] | None = None, at: float | None = NOON
) -> Verdict:
    facts, (service, action, resource) = Facts(args, at), [*operation.split(), None][:3]
    assert service is not None
    assert action is not None
    verdict = where.decide("p", agent, service, action, resource, facts=facts)
    assert explain(where, "p", agent, service, action, resource, facts=facts).verdict == verdict
    return verdict


@pytest.mark.parametrize(
    ("agent", "operation", "args", "at", "decision", "reason", "rule"),
    [
        ("claude-7", "git pull acme/web", None, NOON, "allow", "allowed", "use/readers/allow/0"),
        ("claude-7", "git push acme/web", None, NOON, "allow", "allowed", "claude-*/allow/0"),
        ("claude-7", "git push acme/web", None, NIGHT, "deny", "default_deny", None),
        ("claude-8", "git push acme/web", None, XMAS, "deny", "freeze", "freeze/0/git"),
        ("claude-8", "git pull acme/web", None, XMAS, "allow", "allowed", "use/readers/allow/0"),
        ("claude-8", "slack post_message", None, XMAS, "deny", "default_deny", None),
        ("claude-8", "stripe refunds:create", {"amount": 5, "currency": "eur"}, NOON, "allow", "allowed", "claude-*/allow/1"),
        ("claude-8", "stripe refunds:create", {"amount": 500, "currency": "eur"}, NOON, "deny", "default_deny", None),
        ("claude-8", "stripe refunds:create", {"amount": 5, "currency": "usd"}, NOON, "deny", "never", "claude-*/never/0"),
        ("claude-8", "stripe refunds:create", {"amount": 5}, NOON, "deny", "condition_error", "claude-*/never/0"),
        ("claude-8", "stripe refunds:create", None, NOON, "deny", "condition_error", "claude-*/never/0"),
        ("other", "git pull acme/web", None, NOON, "deny", "unknown_agent", None),
    ],
)  # fmt: skip
def test_in_a_policy(
    bundle: Bundle,
    agent: str,
    operation: str,
    args: dict[str, Any] | None,
    at: float,
    decision: str,
    reason: str,
    rule: str | None,
) -> None:
    verdict = ask(bundle, agent, operation, args, at)
    assert (verdict.decision, verdict.reason, verdict.ruling.rule) == (decision, reason, rule)


def test_a_freeze_that_asks(bundle: Bundle) -> None:
    midnight = moment("2026-12-01T23:30:00Z")
    verdict = ask(bundle, "claude-7", "slack post_message #payments", at=midnight)
    assert (verdict.decision, verdict.ruling.rule) == ("approve", "freeze/1")
    assert verdict.ruling.approvers[0].any == ("ann",)
    assert ask(bundle, "claude-7", "git pull acme/web", at=midnight).decision == "allow"  # it only reads
    # What nobody knows to read only is not let pass, whatever it is called.
    assert ask(bundle, "claude-7", "own get_and_delete", at=midnight).ruling.rule == "freeze/1"


def test_rules_in_shadow_are_only_noted(bundle: Bundle) -> None:
    said = ask(bundle, "claude-7", "slack read #payments").ruling
    assert (said.decision, said.shadow) == ("deny", "allow")
    said = ask(bundle, "claude-7", "slack post_message #all").ruling
    assert (said.decision, said.shadow, said.rule) == ("allow", "deny", "claude-7/allow/1")
    assert ask(bundle, "claude-7", "slack post_message #x").ruling.shadow is None


def test_an_agent_in_shadow_meets_guardrails_all_the_same(bundle: Bundle) -> None:
    said = ask(bundle, "trial", "aws ec2:RunInstances").ruling
    assert (said.decision, said.shadow) == ("allow", "deny")
    assert ask(bundle, "trial", "git push acme/web", at=XMAS).decision == "deny"


def test_entries_about_one_agent_go_together(bundle: Bundle) -> None:
    compiled = bundle.policies["p"]
    seven, eight = compiled.agent("claude-7"), compiled.agent("claude-8")
    assert seven is not None
    assert eight is not None
    assert (seven.owner, eight.owner) == ("seven", "the-group")
    assert (seven.on_loop, eight.on_loop) == ("kill", "alert")
    assert seven.budget == eight.budget is not None
    assert compiled.agent("nobody") is None
    assert (compiled.is_shadow("trial"), compiled.is_shadow("claude-7")) == (True, False)


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("office", ["2026-12-01T09:00", "2026-12-01T17:59", "2026-12-04T12:00"],
         ["2026-12-01T08:59", "2026-12-01T18:00", "2026-12-05T12:00"]),
        ("christmas", ["2026-12-19T00:00", "2027-01-04T07:59"], ["2026-12-18T23:59", "2027-01-04T08:00"]),
    ],
)  # fmt: skip
def test_schedules_go_by_their_own_clock(bundle: Bundle, name: str, inside: list[str], outside: list[str]) -> None:
    from zoneinfo import ZoneInfo

    from banksman.policy.schedules import holds

    schedule = bundle.policies["p"].policy.schedules[name]
    for texts_, wanted in ((inside, True), (outside, False)):
        for text in texts_:
            at = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
            assert holds(schedule, at) is wanted, text


def test_a_night_belongs_to_the_day_that_it_began_on() -> None:
    from banksman.policy.schedules import Schedule, holds

    friday_night = Schedule("UTC", (4,), 22 * 60, 6 * 60)
    for text, wanted in (
        ("2026-12-04T23:00", True),
        ("2026-12-05T05:59", True),
        ("2026-12-05T23:00", False),
        ("2026-12-04T05:00", False),
    ):
        assert holds(friday_night, moment(f"{text}:00Z") or 0) is wanted, text


def test_a_moment_is_another_one_when_a_schedule_begins(bundle: Bundle) -> None:
    compiled = bundle.policies["p"]
    assert NOON is not None
    assert XMAS is not None
    assert compiled.moment(NOON) == compiled.moment(NOON + 60)
    assert compiled.moment(NOON) != compiled.moment(XMAS)
    plain_policy = CompiledPolicy(load(b"project: q\nagents: {a: {allow: [{service: git, actions: [pull]}]}}").policy)
    assert plain_policy.moment(NOON) == ()


def test_explain_says_what_of_a_condition_did_not_hold(bundle: Bundle) -> None:
    told = explain(
        bundle, "p", "claude-8", "stripe", "refunds:create", facts=Facts({"amount": 900, "currency": "eur"}, NOON)
    )
    nearest = told.rules[0]
    assert (nearest.rule, nearest.failed) == ("claude-*/allow/1", "condition")
    assert nearest.wanted == ('{"args.amount": {"lt": 500}}, and args.amount is 900',)
    assert told.mend is not None
    assert told.mend.startswith("claude-*/allow/1, if this held")


def test_whom_an_agent_asks_about_without_a_word_is_itself() -> None:
    """At `/v1/decide` as at AuthZEN: a rule about users is none about agents, and what is said of an agent holds for it."""
    policy = CompiledPolicy(
        load(b"""
project: p
subjects: {agent: {a: {team: payments}}}
agents:
  "*":
    allow: [{service: git, actions: [push], when: {subject.type: agent, subject.team: payments}}]
    never: [{service: git, actions: [push], when: {subject.type: user}}]
""").policy
    )
    assert policy.decide("a", "git", "push").reason == "allowed"
    assert policy.decide("b", "git", "push").reason == "default_deny"
    carl = Facts(subject=attributes(policy.policy, "user", "carl"))
    assert policy.decide("a", "git", "push", facts=carl).reason == "never"
    told = explain(Bundle({"p": policy}), "p", "b", "git", "push")
    assert "payments" in told.because + str(told.mend) + str([one.failed for one in told.rules])
