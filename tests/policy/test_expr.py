"""`expr` in a policy: what is refused and how that is told, what it does to answers, versions, lint, diff and the rest."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from banksman.errors import InvalidPolicy
from banksman.policy import cel
from banksman.policy.backtest import Backtest, Recorded, needs
from banksman.policy.cases import run
from banksman.policy.compile import Bundle, CompiledPolicy
from banksman.policy.conditions import Expr, apart
from banksman.policy.diff import diff, settings
from banksman.policy.explain import explain
from banksman.policy.expr import strict
from banksman.policy.expr_text import MAX_BRACKETS, MAX_EXPR, ExprError
from banksman.policy.holds import NONE, Facts
from banksman.policy.lint import lint
from banksman.policy.load import load
from banksman.policy.rules import Policy
from banksman.policy.schema import schema
from banksman.policy.suggest import suggest
from banksman.policy.verdict import Verdict

REFUND = {"service": "stripe", "actions": ["refunds:create"]}


def policy(**rules: list[dict[str, Any]]) -> Policy:
    return load(json.dumps(document(**rules)).encode()).policy


def document(**rules: list[dict[str, Any]]) -> dict[str, Any]:
    of_agent = {name: [REFUND | rule for rule in several] for name, several in rules.items()}
    return {"project": "p", "owner": "o", "agents": {"a": {"budget": {"daily_tokens": 1}} | of_agent}}


def decide(of: Policy, args: dict[str, Any] | None = None, **more: Any) -> Verdict:
    facts = Facts(args, **more)
    return CompiledPolicy(of).decide("a", "stripe", "refunds:create", "ch_1", None, facts)


def refused(expr: str) -> InvalidPolicy:
    rule = f"      - service: git\n        actions: [push]\n        expr: {json.dumps(expr)}\n"
    text = f"project: p\nagents:\n  a:\n    allow:\n{rule}"
    with pytest.raises(InvalidPolicy) as caught:
        load(text.encode(), "p.yaml")
    return caught.value


# ── what is refused ──


@pytest.mark.parametrize(
    ("expr", "why"),
    [
        ("arg.amount < 5", "at character 1: arg.amount is no attribute: they begin with args, "),
        ("args.a == 1 && arg.b == 2", "at character 16: arg.b is no attribute: they begin with args, "),
        ("args.amount <", "at 1:14: Syntax error: mismatched input '<EOF>'"),
        ("args.a == 1 args.b == 2", "two comparisons follow each other"),
        ("(args.a == 1", "at character 1: ( is never closed"), ("args.a == 1)", "at character 12: ) closes nothing"),
        ("resource", "must be true or false, and it is string"), ("args.a + 1", "must be true or false, and it is"),
        ("resource < 3", "compares what is of two kinds: string, double"),
        ("args.a.startWith('x')", "startWith is no function here; there are"), ("foo(args.a)", "foo is no function here"),
        ("args.l.map(x, x) == args.m", "map is no function here"), ("args.l.filter(x, x).size() > 1", "filter is no function"),
        ("args.l.all(x, args.m.all(y, x == y))", "all within another one"),
        ("args.l.all(args, true)", "args cannot be the name of a member"), ("args.l.all(x)", "write .all(one, what holds"),
        ("args.l.exists(x || x == 'a')", "write .exists(one, what"), ("args.l.all(x && x < 5)", "write .all(one, what holds"),
        ("args.l.all(x - x < 5)", "write .all(one, what holds"), ("args.l.all(x,)", "write .all("),
        ("args.l.all(x, x > 1) && x > 1", "x is no attribute"), ("x.y == 1", "at character 1: x.y is no attribute"),
        ("args.s.matches(args.p)", "the pattern must stand in the policy"), ("args.s.matches('a' + 'b')", "as one text"),
        ("args.s.matches('[')", "is no regular expression (RE2)"), ("args.s.matches('(?<!a)b')", "is no regular expression"),
        ("args.s.matches('(a{1000}){1000}')", "is no regular expression"),
        ("args.a == null", "null is as if it was left out"), ("subject == 'x'", "subject is no value: say what of it"),
        ("branch.x == 1", "branch is one value"), ("args.a % 2 == 0", "% is of whole numbers"),
        ("true", "looks at no attribute"), ("1 < 2", "looks at no attribute"),
        ("args.a == b'x'", "is no one word"), ("args.a < 3u", "is no one word"), ("args.a == '''x'''", "is no one word"),
        ("{'a': 1}.a == args.a", "'{' has no place in an expression here"), ("args.a ~ 1", "'~' has no place"),
        ("args.a < 9007199254740993", "further from zero than numbers in JSON"), ("args.a < 0x20000000000000", "further from"),
        ("args.a == [1]", "lists and mappings cannot be compared"), ("args.a in []", "nothing is in an empty list"),
        ("args.a < args.b < args.c", "two comparisons follow each other"), ("args.__0 == 1 && __0", "__0 is no attribute"),
        ("args.a < 5 ? 1 : true", "found no matching overload"), ("args.a == 'x", "has no place"),
        ("has(args) && args.a == 1", "args is no value"), ("args.l.all(__nobody, true)", "cannot be the name of a member"),
        ("!" * 3 + "args.a." + "b." * 9 + "c", "is no attribute"), ("string(args.a) == '1'", "string is no function here"),
        ("time.getHours() < 5", "getHours is no function here"),
        ("timestamp(args.a, 'x') < time", "undeclared reference to 'timestamp'"),
    ],
)  # fmt: skip
def test_what_is_refused_and_where(expr: str, why: str) -> None:
    error = refused(expr)
    assert (error.line, error.key) == (7, "agents.a.allow[0].expr")
    assert why in error.message


def test_a_typing_error_is_told_with_what_was_meant() -> None:
    assert refused("arg.amount < 5").message.endswith("; did you mean args?")
    assert refused("args.a.startWith('x')").message.endswith("; did you mean startsWith?")


AWS = {"service": "aws", "actions": ["s3:*"], "resources": ["arn:aws:s3:::x"]}


@pytest.mark.parametrize(
    ("service", "expr", "instead"),
    [
        ("aws", "action == 's3:DeleteBucket' && args.a == 1", "write 's3:deletebucket', or say it"),
        ("aws", "action.startsWith('s3:Delete')", "write 's3:delete', or say it"),
        ("aws", r"action.matches('^s3:[A-Z]\\w+$')", "is not: say it under `actions`"),
        ("http", "action in ['POST', 'put']", "write 'PUT', or say it"), ("postgres", "action != 'DROP'", "write 'drop', or"),
    ],
)  # fmt: skip
def test_an_action_in_another_spelling_than_the_one_that_is_looked_at_is_refused(
    service: str, expr: str, instead: str
) -> None:
    """A `never` rule would else never hold, and nobody would hear of it: `when` folds what an action is compared with."""
    rule = {"service": service, "actions": ["*"], "expr": expr}
    with pytest.raises(InvalidPolicy, match="looks at `action`, which is folded") as caught:
        load(json.dumps({"project": "p", "agents": {"a": {"never": [rule]}}}).encode())
    assert caught.value.key == "agents.a.never[0].expr"
    assert instead in caught.value.message


def test_an_action_in_the_spelling_that_is_looked_at() -> None:
    rules = {"allow": [AWS], "never": [AWS | {"expr": "action == 's3:deletebucket' && args.kind != 'x'"}]}
    of = CompiledPolicy(load(json.dumps({"project": "p", "agents": {"a": rules}}).encode()).policy)
    for action, said in (("s3:DeleteBucket", "deny"), ("s3:deletebucket", "deny"), ("s3:GetObject", "allow")):
        verdict = of.decide("a", "aws", action, "arn:aws:s3:::x", None, Facts({"kind": "Y"}))
        assert verdict.ruling.decision == said
    document(never=[{"expr": "args.kind == 'Not An Action'"}])  # of which nothing is folded


def test_how_much_may_be_written() -> None:
    assert f"longer than {MAX_EXPR}" in refused("args.a == 1 || " * 90 + "args.a == 2").message
    deep = "(" * (MAX_BRACKETS + 1) + "args.a == 1" + ")" * (MAX_BRACKETS + 1)
    assert "brackets are nested deeper than 12" in refused(deep).message
    assert "looks at more than 32 attributes" in refused(" || ".join(f"args.a{at}" for at in range(33))).message
    assert "too complicated" in refused("+".join(["args.a"] * 100) + " < 5").message
    twice = "args.a"
    for _ in range(11):
        twice = f"({twice} == args.b)"
    assert "too complicated" in refused(twice).message
    assert {refused(text).message for text in ("", "   ", "// nothing\n")} == {
        "looks at no attribute, so that it always says the same"
    }


def test_it_is_text() -> None:
    with pytest.raises(InvalidPolicy, match="put it in quotes"):
        load(b"project: p\nagents:\n  a:\n    never:\n      - {service: git, actions: [push], expr: true}\n")


def test_positions_are_those_of_the_authors_text() -> None:
    with pytest.raises(ExprError, match="at character 10: "):
        strict("args.a &&~args.b")


def test_without_the_evaluator_a_policy_that_needs_it_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cel_expr_python", None)
    cel._environment.cache_clear()
    error = refused("args.of_no_other_test == 1")
    assert error.message == "expr needs an evaluator of CEL, which is not installed: pip install 'banksman[cel]'"
    assert (error.line, error.key) == (7, "agents.a.allow[0].expr")
    policy(allow=[{"when": {"args.amount": {"lt": 5}}}])  # and no other one minds


# ── what it does to answers ──


def test_both_must_hold() -> None:
    of = policy(allow=[{"when": {"args.amount": {"gte": 0}}, "expr": "args.amount * 2 < 1000"}])
    assert [decide(of, {"amount": amount}).decision for amount in (499, 500, -1, "5")] == [
        "allow",
        "deny",
        "deny",
        "deny",
    ]


@pytest.mark.parametrize("args", [{}, None, {"to": 5}, {"to": ["prod"]}, {"to": None}, {"to": "prod\0"}])
def test_what_cannot_be_worked_out_never_gets_more(args: dict[str, Any] | None) -> None:
    never = policy(allow=[{}], never=[{"expr": "args.to == 'prod'"}])
    asking = policy(allow=[{}], require_approval=[{"expr": "args.to == 'prod'"}])
    allowing = policy(allow=[{"expr": "args.to != 'prod'"}])
    assert [(decide(of, args).decision, decide(of, args).reason) for of in (never, asking, allowing)] == [
        ("deny", "condition_error"), ("approve", "condition_error"), ("deny", "default_deny"),
    ]  # fmt: skip


def test_attributes_are_found_as_when_finds_them() -> None:
    of = policy(allow=[{"expr": "resource.owner == subject.mail && resource.startsWith('ch_') && agent == 'a'"}])
    mine = {"resource.owner": "ann", "subject.mail": "bob"}
    assert decide(of, {}, subject={"mail": "ann"}, claims=mine).decision == "allow"  # the policy's word before a claim
    assert decide(of, {}, subject={}, claims=mine).decision == "deny"
    assert decide(of, {}, claims=mine | {"subject.mail": "ann"}).decision == "allow"


def test_the_clock() -> None:
    of = policy(allow=[{"expr": "time < timestamp('2026-01-01T00:00:00Z')"}])
    assert [decide(of, {}, at=at).decision for at in (1767225599.9, 1767225600.0)] == ["allow", "deny"]
    compiled = CompiledPolicy(of)
    assert compiled.moment(1.0) != compiled.moment(2.0)  # no earlier answer stands
    without = CompiledPolicy(policy(allow=[{"expr": "args.a == 1"}]))
    assert without.moment(1.0) == without.moment(2.0) == ()


def test_a_policy_travels_between_processes_as_data() -> None:
    of = policy(allow=[{"when": {"args.a": 1}, "expr": "args.b > args.c"}])
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(of), type=Policy)
    assert again == of
    assert decide(again, {"a": 1, "b": 3, "c": 2}).decision == "allow"


def test_a_policy_without_any_never_loads_the_evaluator() -> None:
    text = "project: p\nagents: {a: {allow: [{service: git, actions: [push], when: {args.a: 1}}]}}"
    code = (
        "import sys; from banksman.policy.load import load; from banksman.policy.compile import CompiledPolicy;"
        f"CompiledPolicy(load({text.encode()!r}).policy).decide('a', 'git', 'push');"
        "assert not any(name.startswith('cel_expr') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ── versions and text ──


def test_the_version_covers_it() -> None:
    versions = {
        policy(allow=[rule]).version
        for rule in ({}, {"expr": "args.a < 5"}, {"expr": "args.a < 6"}, {"when": {"args.a": 1}})
    }
    assert len(versions) == 4
    assert policy(allow=[{"expr": " args.a < 5\n"}]).version == policy(allow=[{"expr": "args.a < 5"}]).version


def test_the_text_is_the_policy() -> None:
    first = load(json.dumps(document(never=[{"when": {"args.a": 1}, "expr": "args.b == 'é\"'"}])).encode())
    assert load(first.text.encode()) == first
    when, expr = apart(next(first.policy.every_rule()).when)
    assert when is not None
    assert expr == Expr("args.b == 'é\"'", ("args.b",))


def test_editors_know_it() -> None:
    assert "expr" in schema()["$defs"]["AllowRule"]["properties"]
    assert "expr" in schema()["$defs"]["Guard"]["properties"]


# ── what is said about it ──


def codes(**rules: list[dict[str, Any]]) -> list[str]:
    return [one.code for one in lint(json.dumps(document(**rules)).encode(), "p.yaml")]


def test_lint_proves_nothing_by_what_one_says() -> None:
    everything = [{"actions": ["*"], "expr": "args.a < 5"}]
    assert codes(allow=everything) == ["broad"]  # and not allow-everything
    assert codes(allow=[{"expr": "args.a < 5"}], never=[{"expr": "args.a < 9"}]) == []
    assert codes(allow=[{"expr": "args.a < 5"}], never=[{"expr": "args.a < 5 || true"}]) == []
    assert codes(allow=[{"expr": "args.a < 5"}, {"expr": "args.a < 9"}]) == []
    assert codes(allow=[{"expr": "args.a < 5"}], never=[{}]) == ["unreachable"]  # whatever it says
    assert codes(allow=[{"expr": "args.a < 5"}, {"when": {"args.a": {"lt": 5}}}]) == []
    assert codes(allow=[{"expr": "args.a < 5"}, {}]) == ["redundant"]


def test_diff_says_that_answers_may_differ_and_under_what() -> None:
    old, new = policy(allow=[{"expr": "args.a < 5"}]), policy(allow=[{"expr": "args.a < 6"}])
    told = {(one.kind, one.under) for one in diff(old, new)}
    assert told == {
        ("stricter", '{"expr": "args.a < 5"} and not {"expr": "args.a < 6"}'),
        ("looser", 'not {"expr": "args.a < 5"} and {"expr": "args.a < 6"}'),
    }
    assert [tuple(one) for one in settings(old, new)] == [
        ("a/allow/0", "expr (answers may differ)", "args.a < 5", "args.a < 6")
    ]
    above = policy(allow=[{"actions": ["charges:read"]}, {"expr": "args.a < 5"}])
    assert list(settings(old, above)) == []  # it has moved, and says what it said
    assert not [*diff(old, old), *settings(old, old)]
    assert [one.before for one in settings(policy(allow=[{}]), old)] == ["none"]


def test_explain_says_whether_it_is_false_or_cannot_be_worked_out() -> None:
    of = policy(allow=[{"expr": "args.a * 2 < 10"}], never=[{"expr": "args.b == 'x'"}])
    bundle = Bundle({"p": CompiledPolicy(of)})
    asked = "p", "a", "stripe", "refunds:create", "ch_1", None
    told = explain(bundle, *asked, Facts({"a": 5, "b": "y"}, 0.0))
    assert told.mend == 'a/allow/0, if this held: {"expr": "args.a * 2 < 10"}, which is false, and args.a is 5'
    told = explain(bundle, *asked, Facts({"a": "5"}, 0.0))
    by = {one.rule: one for one in told.rules}
    (wanted,) = by["a/allow/0"].wanted
    assert wanted.startswith(
        '{"expr": "args.a * 2 < 10"}, which cannot be worked out (No matching overloads found : _*_(string'
    )
    assert wanted.endswith(', and args.a is "5"')
    assert by["a/never/0"].unsure
    assert by["a/never/0"].wanted == (
        '{"expr": "args.b == \'x\'"}, which cannot be worked out (nobody can say what args.b is), and args.b is not there',
    )


def test_cases_of_policies_that_have_one(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        json.dumps(document(allow=[{"expr": "args.a * 2 < 10 && time > timestamp('2026-01-01T00:00:00Z')"}]))
    )
    cases = {
        "at": "2026-06-01T00:00:00Z",
        "operations": {"few": REFUND_ASKED | {"args": {"a": 1}}, "many": REFUND_ASKED | {"args": {"a": 5}}},
        "tests": [{"name": "t", "expect": {"a": {"few": "allow"}}}],
    }
    (tmp_path / "p_test.yaml").write_text(json.dumps(cases))
    assert not run(tmp_path / "p_test.yaml").failed
    del cases["at"]
    (tmp_path / "p_test.yaml").write_text(json.dumps(cases))
    with pytest.raises(InvalidPolicy, match="the policy goes by the time"):
        run(tmp_path / "p_test.yaml")


REFUND_ASKED = {"service": "stripe", "action": "refunds:create"}


def test_a_backtest_works_it_out_and_knows_what_it_needs() -> None:
    of = policy(allow=[{"expr": "args.a * 2 < 10 || subject.role == 'x' || time > timestamp('2026-01-01T00:00:00Z')"}])
    wanted = needs(of)
    assert (wanted.args, wanted.time, wanted.subject) == (True, True, True)
    assert not any(needs(policy(allow=[{"expr": "branch == 'main'"}])))
    test = Backtest(of)
    test.take(
        Recorded("a", "stripe", "refunds:create", None, None, "allow", 1, "s", {"a": a}, 0.0)
        for a in (1, 5, "[redacted]")
    )
    assert test.done().totals() == {"allow->deny": 2}


def test_suggest_keeps_what_let_it_pass_and_writes_none_of_its_own() -> None:
    of = policy(allow=[{"when": {"args.a": 1}, "expr": "args.b > 2"}])
    recorded = [Recorded("a", "stripe", "refunds:create", "ch_1", None, "allow", 3, "s")]
    made = load(suggest("p", "a", recorded, of).text.encode()).policy
    assert [apart(rule.when)[1] for rule in made.every_rule()] == [Expr("args.b > 2", ("args.b",))]
    assert "expr" not in suggest("p", "a", recorded, policy(allow=[{}])).text


def test_what_the_page_shows_can_be_written() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "policy.md"
    shown = re.findall(r'^ +expr: "(.+)"$', page.read_text(), re.MULTILINE)
    assert len(shown) == 2
    for text in (*shown, "args.count * args.price < 5", "time - timestamp(args.since) < duration('24h')"):
        policy(allow=[{"expr": text}])


def test_a_freeze_and_a_rule_of_guardrails() -> None:
    whole = document(allow=[{}]) | {"guardrails": {"never": [REFUND | {"expr": "args.a > args.b"}]}}
    of = load(json.dumps(whole).encode()).policy
    assert decide(of, {"a": 1, "b": 2}).decision == "allow"
    assert decide(of, {"a": 1}).reason == "condition_error"
    assert CompiledPolicy(of).decide("a", "stripe", "refunds:create", facts=NONE).decision == "deny"
