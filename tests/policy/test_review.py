"""What a review of the language found: each was wrong once."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from banksman.errors import InvalidPolicy
from banksman.policy.catalogue import surely_reads
from banksman.policy.compile import CompiledPolicy
from banksman.policy.diff import diff
from banksman.policy.diff import settings as other_settings
from banksman.policy.holds import Facts
from banksman.policy.lint import lint
from banksman.policy.load import load
from banksman.policy.reader import Bad, read_policy
from banksman.policy.rules import Policy
from banksman.policy.schedules import Schedule, holds

GIT = {"service": "git", "actions": ["push"]}


def of(**agent: Any) -> dict[str, Any]:
    return {"project": "p", "owner": "x", "agents": {"a": {"budget": {"daily_tokens": 1}} | agent}}


def policy(document: dict[str, Any]) -> Policy:
    return load(json.dumps(document).encode()).policy


def codes(document: dict[str, Any]) -> set[tuple[str, str]]:
    return {(one.code, one.rule) for one in lint(json.dumps(document).encode(), "p.yaml")}


# ── one form ──


@pytest.mark.parametrize(
    "when",
    [
        {"args.a": 1, "any": [{"args.x": 1}, {"args.b": 2, "any": [{"args.y": 1}, {"args.c": 2, "args.e": 1}]}]},
        {"args.a": {"lt": 0.0000001}},
        {"args.a": "\x7f\x85"},
        {"args.a": [1, 1.0]},
        {"args.a": [2.0, 1]},
        {"any": [{"args.a": {"lt": 1.0}}, {"args.a": {"lt": 10}}]},
        {"args.a": -0.0},
        {"args.a": "null"},
        {"args.a": "1e5"},
    ],
)
def test_what_is_published_is_the_policy(when: dict[str, Any]) -> None:
    first = load(json.dumps(of(allow=[GIT | {"when": when}])).encode())
    assert load(first.text.encode()) == first


def test_sets_and_subjects_without_anything_stay() -> None:
    document = of(use=["empty"]) | {
        "rules": {"empty": {}},
        "subjects": {"user": {"ann": {"agents": ["x"], "groups": []}}},
    }
    first = load(json.dumps(document).encode())
    assert load(first.text.encode()) == first
    assert first.policy.subjects["user"]["ann"] == {"agents": ("x",), "groups": ()}


@pytest.mark.parametrize("number", [2**53, -(2**53), 10**17, 1e300])
def test_a_number_that_json_cannot_hold_is_told_and_kills_nobody(number: float) -> None:
    for document in (
        of(allow=[GIT | {"when": {"args.n": {"lt": number}}}]),
        of() | {"subjects": {"u": {"a": {"n": number}}}},
    ):
        raw = json.dumps(document).encode()
        with pytest.raises(InvalidPolicy):
            load(raw)
        assert isinstance(read_policy("p.yaml", raw, "0" * 64), Bad)


def test_an_error_of_ours_in_one_file_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("banksman.policy.reader.load", lambda *_: 1 // 0)
    found = read_policy("p.yaml", b"project: p\n", "0" * 64)
    assert isinstance(found, Bad)
    assert (found.project, found.error) == (
        "p",
        "an error of ours: ZeroDivisionError: integer division or modulo by zero",
    )


# ── what a condition compares with ──


@pytest.mark.parametrize(
    ("service", "when", "action"),
    [
        ("aws", {"action": {"glob": "s3:Delete*"}}, "s3:DeleteObject"),
        ("aws", {"action": "s3:DeleteObject"}, "S3:DELETEOBJECT"),
        ("http", {"action": "delete"}, "DELETE"),
        ("postgres", {"action": ["DROP_TABLE"]}, "drop_table"),
    ],
)
def test_an_action_in_a_condition_is_folded(service: str, when: dict[str, Any], action: str) -> None:
    never = [{"service": service, "actions": ["*"], "when": when}]
    compiled = CompiledPolicy(policy(of(allow=[{"service": service, "actions": ["*"]}], never=never)))
    assert compiled.decide("a", service, action).reason == "never"


@pytest.mark.parametrize("when", [{"resource": "acme/*"}, {"action": ["p*"]}, {"agent": "ci-?"}])
def test_a_wildcard_in_a_plain_value_is_refused(when: dict[str, Any]) -> None:
    with pytest.raises(InvalidPolicy, match="use glob"):
        policy(of(never=[GIT | {"when": when}]))
    assert ("literal-wildcard", "a/never/0") in codes(of(never=[GIT | {"when": {"args.env": "prod-*"}}]))


@pytest.mark.parametrize(
    ("when", "args"),
    [
        ({"args.r": {"has": "admin"}}, {"r": [["admin"]]}),
        ({"args.o.force": {"exists": True}}, {"o": [{"force": 1}]}),
        ({"args.o.force": {"exists": True}}, {"o": "force"}),
        ({"args.o.force": True}, {"o": "force"}),
    ],
)
def test_what_is_wrapped_into_something_else_does_not_escape_a_never(
    when: dict[str, Any], args: dict[str, Any]
) -> None:
    compiled = CompiledPolicy(policy(of(allow=[GIT], never=[GIT | {"when": when}])))
    assert compiled.decide("a", "git", "push", facts=Facts(args)).reason == "condition_error"


def test_aws_names_that_only_end_like_a_read_do_not_pass_a_freeze() -> None:
    assert surely_reads("aws", "s3:getobject")
    assert not surely_reads("aws", "s3:deleteobject:get")
    assert not surely_reads("aws", "getobject")


# ── time ──


def test_no_moment_is_too_early_or_too_late() -> None:
    for zone in ("America/New_York", "Asia/Tokyo"):
        for at in (-1e12, -62135596800.0, 253402300799.0, 1e15):
            assert holds(Schedule(zone, (0, 1, 2, 3, 4, 5, 6)), at)


def test_an_hour_that_comes_twice_is_in_a_schedule_as_a_whole() -> None:
    zone, at = ZoneInfo("Europe/Berlin"), datetime(2026, 10, 25, 2, 30)  # noqa: DTZ001 - by its own clock
    first = at.replace(tzinfo=zone, fold=0).timestamp()
    ends, begins = Schedule("Europe/Berlin", ends=at), Schedule("Europe/Berlin", begins=at)
    minutes = range(-60, 180, 5)
    assert [holds(ends, first + 60 * minute) for minute in minutes] == [minute < 60 for minute in minutes]
    assert [holds(begins, first + 60 * minute) for minute in minutes] == [minute >= 0 for minute in minutes]


# ── proofs ──


def rules(service: str, *actions: str, **more: Any) -> dict[str, Any]:
    return {"service": service, "actions": list(actions)} | more


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (of(), of(allow=[rules("http", "GET", resources=["https://api.example/*"])])),
        (
            of(allow=[rules("http", "GET", resources=["https://a.example/**"])]),
            of(allow=[rules("http", "GET", resources=["https://**"])]),
        ),
        (
            of(allow=[rules("git", "*")], never=[rules("git", "force*")]),
            of(allow=[rules("git", "*")], never=[rules("git", "force_push")]),
        ),
        (of(allow=[rules("git", "*")]), of(allow=[rules("git", "*", tier=2)])),
        (of(allow=[rules("aws", "s3:*")]), of(allow=[rules("aws", "s3:*", tier=2)])),
        (
            of() | {"mode": "shadow", "schedules": {"s": {"begins": "2026-12-01"}}},
            of() | {"mode": "shadow", "schedules": {"s": {"begins": "2026-12-01"}}, "freeze": [{"during": ["s"]}]},
        ),
        (
            of(allow=[rules("git", "push")])
            | {"schedules": {"s": {"ends": "2027-01-04"}}, "freeze": [{"during": ["s"]}]},
            of(allow=[rules("git", "push")])
            | {"schedules": {"s": {"ends": "2026-12-20"}}, "freeze": [{"during": ["s"]}]},
        ),
    ],
)
def test_diff_sees_it(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert list(diff(policy(old), policy(new)))


def test_diff_sees_schedules_and_claims_among_the_settings() -> None:
    new = of() | {"claims": ["resource.owner"], "schedules": {"s": {"days": ["mon"]}}}
    assert {one.what for one in other_settings(policy(of()), policy(new))} == {"claims", "schedules"}


def test_diff_sees_what_changes_for_everybody_but_one() -> None:
    old = {"project": "p", "agents": {"x": {}, "*": {"allow": [GIT]}}}
    new = {"project": "p", "agents": {"x": {"allow": [GIT]}, "*": {}}}
    assert [one.kind for one in diff(policy(old), policy(new))] == ["stricter"]


@pytest.mark.parametrize(
    ("document", "rule"),
    [
        (
            of(
                allow=[rules("http", "*")],
                never=[rules("http", "GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")],
            ),
            "a/allow/0",
        ),
        ({"project": "p", "agents": {"ci-*": {"allow": [GIT]}, "ci-?": {"never": [GIT]}}}, "ci-*/allow/0"),
        (
            of(never=[GIT]) | {"mode": "shadow", "guardrails": {"require_approval": [GIT]}},
            "guardrails/require_approval/0",
        ),
        (
            of(require_approval=[GIT | {"when": {"args.x": 6}}], never=[GIT | {"when": {"args.x": ["5", 6]}}]),
            "a/require_approval/0",
        ),
        (
            of(allow=[rules("aws", "s3:*", when={"time": {"during": "s"}})])
            | {"schedules": {"s": {"days": ["mon"]}}, "freeze": [{"during": ["s"]}]},
            "a/allow/0",
        ),
    ],
)
def test_lint_does_not_call_it_unreachable(document: dict[str, Any], rule: str) -> None:
    assert ("unreachable", rule) not in codes(document)


def test_lint_does_not_call_a_pattern_dead_that_another_verb_needs() -> None:
    document = of(allow=[rules("git", "log", "p*", resources=["a/b"])], never=[rules("git", "push")])
    assert ("dead-pattern", "a/allow/0") not in codes(document)


def test_lint_knows_a_misspelled_service_of_a_freeze() -> None:
    document = of() | {"schedules": {"s": {"days": ["mon"]}}, "freeze": [{"during": ["s"], "services": ["gti"]}]}
    assert ("unknown-service", "freeze/0/gti") in codes(document)
