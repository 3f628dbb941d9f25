"""`banksman policy …` as a user runs it."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml
from tests.cli.conftest import Reply, Scribe, Shell

from banksman.cli import main
from banksman.cli.policy import VERBS

GOOD = """project: billing
owner: payments
agents:
  claude:
    budget: {daily_tokens: 5}
    allow:
      - {service: git, actions: [push, pull], resources: [acme/billing], branches: ["feature/*"]}
      - {service: stripe, actions: ["refunds:create"], when: {args.amount: {lt: 500}}}
    require_approval:
      - {service: git, actions: [push], resources: [acme/billing], branches: [main]}
"""
TESTS = """operations:
  feature: {service: git, action: push, resource: acme/billing, branch: feature/x}
  main: {service: git, action: push, resource: acme/billing, branch: main}
  small: {service: stripe, action: "refunds:create", args: {amount: 5}}
tests:
  - name: claude
    expect:
      claude: {feature: allow, main: approve, small: {decision: allow, tier: 2, rule: claude/allow/1}}
      somebody-else: {}
"""


@pytest.fixture
def folder(shell: Shell) -> Path:
    policies = shell.folder / "policies"
    policies.mkdir()
    (policies / "billing.yaml").write_text(GOOD)
    (policies / "billing_test.yaml").write_text(TESTS)
    return policies


# ── lint ──


def test_lint_has_nothing_to_say(shell: Shell, folder: Path) -> None:
    done = shell("policy", "lint", str(folder), "--strict")
    assert (done.code, done.out) == (0, "")
    assert "1 file: 0 errors, 0 warnings" in done.err


def test_lint_exits_1_for_errors_and_with_strict_for_warnings(shell: Shell, folder: Path) -> None:
    file = folder / "billing.yaml"
    file.write_text(GOOD.replace("owner: payments\n", ""))
    assert shell("policy", "lint", str(file)).code == 0
    done = shell("policy", "lint", str(file), "--strict")
    assert done.code == 1
    assert f"{file}:3: warning: no-owner: nobody answers for claude -> " in done.out
    file.write_text(GOOD.replace("[push, pull]", "[push, pul]"))
    done = shell("policy", "lint", str(file))
    assert done.code == 1
    assert f"{file}:7: error: unknown-verb: claude/allow/0: pul is no action of git; did you mean pull? -> " in done.out


def test_lint_for_ci(shell: Shell, folder: Path) -> None:
    (folder / "billing.yaml").write_text(GOOD.replace("actions: [push, pull]", "actoins: [push, pull]"))
    (folder / "other.yaml").write_text(GOOD)
    (folder / "third.yaml").write_text(GOOD)
    told = shell("policy", "lint", str(folder), "--format", "github").out.splitlines()
    assert re.fullmatch(
        r"::error file=\S+billing.yaml,line=7,title=does-not-load::agents.claude.allow\[0\].actoins: .* did you mean actions\?",
        told[0],
    )
    assert [line.partition("title=")[2].partition("::")[0] for line in told[2:]] == ["two-files", "two-files"]
    found = json.loads(shell("policy", "lint", str(folder), "--format", "json").out)["findings"]
    assert {one["code"] for one in found} == {"does-not-load", "two-files"}
    sarif = json.loads(shell("policy", "lint", str(folder), "--format", "sarif").out)
    run = sarif["runs"][0]
    assert {one["ruleId"] for one in run["results"]} <= {one["id"] for one in run["tool"]["driver"]["rules"]}
    assert run["results"][0]["locations"][0]["physicalLocation"]["region"]["startLine"] == 7


def test_lint_of_nothing(shell: Shell) -> None:
    assert shell("policy", "lint", "nowhere").code == 2
    (shell.folder / "empty").mkdir()
    done = shell("policy", "lint", "empty")
    assert done.code == 2
    assert "no *.yaml in empty" in done.err


# ── test ──


def test_test_passes_and_says_what_no_case_decided(shell: Shell, folder: Path) -> None:
    done = shell("policy", "test", str(folder), "--coverage", "100")
    assert done.code == 0, done.err
    assert "6 cases, 0 not as expected; 3 of 3 rules decided one" in done.out


def test_test_fails_with_the_line_and_the_reason(shell: Shell, folder: Path) -> None:
    file = folder / "billing_test.yaml"
    file.write_text(TESTS.replace("main: approve, ", "").replace("somebody-else: {}", "somebody-else: {small: allow}"))
    done = shell("policy", "test", str(file))
    assert done.code == 1
    assert (
        f"{file}:8: claude: claude, main: decision deny is expected, and it is approve by claude/require_approval/0"
        in done.out
    )
    assert (
        f"{file}:9: claude: somebody-else, small: decision allow is expected, and it is deny: the project's policy"
        in done.out
    )
    told = json.loads(shell("policy", "test", str(file), "--json").out)
    assert sum(one["wrong"] is not None for one in told["files"][0]["cases"]) == 2
    assert told["coverage"] == 100.0


def test_test_wants_enough_rules_to_decide_a_case(shell: Shell, folder: Path) -> None:
    (folder / "billing_test.yaml").write_text(
        TESTS.replace(", args: {amount: 5}", "").replace(
            ", small: {decision: allow, tier: 2, rule: claude/allow/1}", ""
        )
    )
    done = shell("policy", "test", str(folder), "--coverage", "90")
    assert done.code == 1
    assert "no case is decided by claude/allow/1" in done.out
    assert "66.7 % of the rules decided a case, 90 % are wanted" in done.err


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("main: approve", "mian: approve", "did you mean main?"),
        (
            "      claude: {",
            "      cluade: {",
            "'cluade' is no agent of the policy; did you mean claude? (who shall be unknown to it",
        ),
        ("somebody-else: {}", "claude-old: {}", "is called somebody-else, or stands under `strangers`)"),
        ("tests:\n", "strangers: [claude]\ntests:\n", "'claude' is known to the policy, and no stranger to it"),
        ("main: approve", "main: maybe", "must be 'allow', 'approve' or 'deny'"),
        ("operations:\n", "operation:\n", "did you mean operations?"),
        ("tests:\n", "policy: gone.yaml\ntests:\n", "the policy gone.yaml cannot be read"),
        ("tests:\n", "at: noon\ntests:\n", "a moment with its zone"),
        ("  - name: claude\n", "  - {name: x}\n  - name: claude\n", "expect: is missing"),
        ("{amount: 5}", "5", "must be a mapping"),
        ("{amount: 5}", "{amount: 99999999999999999}", "integers beyond"),
    ],
)
def test_a_wrong_test_file_is_told_where(shell: Shell, folder: Path, old: str, new: str, wrong: str) -> None:
    (folder / "billing_test.yaml").write_text(TESTS.replace(old, new))
    done = shell("policy", "test", str(folder))
    assert done.code == 2, done.out
    assert wrong in done.err
    assert re.search(r"billing_test.yaml:\d+: ", done.err)


def test_strangers_are_named_as_such(shell: Shell, folder: Path) -> None:
    """A pattern of names that does not take in one that it should not."""
    (folder / "billing.yaml").write_text(GOOD.replace("  claude:\n", '  "claude-?":\n'))
    text = TESTS.replace("      claude: {", "      claude-1: {").replace("claude/allow/1", "claude-?/allow/1")
    (folder / "billing_test.yaml").write_text(text.replace("somebody-else: {}", "claude-12: {}"))
    assert shell("policy", "test", str(folder)).code == 2
    text = text.replace("somebody-else: {}", "claude-12: {}\n      somebody-else: {}")
    (folder / "billing_test.yaml").write_text(f"strangers: [claude-12]\n{text}")
    done = shell("policy", "test", str(folder))
    assert (done.code, "9 cases, 0 not as expected" in done.out) == (0, True), done.out + done.err


def test_where_a_policy_goes_by_the_time_the_file_says_which(shell: Shell, folder: Path) -> None:
    timed = GOOD.replace("when: {args.amount", "when: {time: {during: day}, args.amount")
    (folder / "billing.yaml").write_text(timed + 'schedules: {day: {from: "08:00", to: "20:00"}}\n')
    done = shell("policy", "test", str(folder))
    assert done.code == 2
    assert "the policy goes by the time, so say which" in done.err
    (folder / "billing_test.yaml").write_text('at: "2026-12-01T12:00:00Z"\n' + TESTS)
    assert shell("policy", "test", str(folder)).code == 0
    (folder / "billing_test.yaml").write_text('at: "2026-12-01T21:00:00Z"\n' + TESTS)
    assert shell("policy", "test", str(folder)).code == 1


# ── explain ──


def test_explain_by_a_file(shell: Shell, folder: Path) -> None:
    words = (
        "policy",
        "explain",
        "--file",
        str(folder / "billing.yaml"),
        "--agent",
        "claude",
        "stripe",
        "refunds:create",
    )
    done = shell(*words, "--args", '{"amount": 900}')
    assert done.code == 1
    assert "stripe refunds:create: deny (tier 4)" in done.out
    assert (
        'it would take: claude/allow/1, if this held: {"args.amount": {"lt": 500}}, and args.amount is 900' in done.out
    )
    done = shell(*words, "--args", '{"amount": 9}', "--json")
    assert done.code == 0
    assert json.loads(done.out)["verdict"]["ruling"]["rule"] == "claude/allow/1"
    assert shell(*words, "--args", "[1]").code == 2
    assert shell(*words, "--at", "noon").code == 2


def test_explain_asks_the_enforcer(operator: Shell, scribe: Scribe) -> None:
    ruling = {
        "decision": "deny",
        "tier": 4,
        "rule": None,
        "reason": "default_deny",
        "matched": [],
        "policy_version": "p@v0+sha256:1",
    }
    verdict = {"ruling": ruling, "service": "git", "action": "push", "resource": "a/b", "branch": None}
    looked = [{"rule": "a/allow/0", "effect": "allow", "failed": "action", "wanted": ["pull"], "left_out": False}]
    scribe.on["POST /v1/explain"] = Reply(
        {"verdict": verdict, "because": "no rule matches", "mend": None, "rules": looked}
    )
    done = operator("policy", "explain", "--agent", "a", "git", "push", "a/b")
    assert done.code == 1
    assert "git push a/b: deny (tier 4)" in done.out
    assert "not its action" in done.out
    assert scribe.asked[-1].body == {"agent": "a", "service": "git", "action": "push", "resource": "a/b"}


# ── diff ──


def test_diff(shell: Shell, folder: Path) -> None:
    new = folder / "new.yaml"
    new.write_text(GOOD.replace("lt: 500", "lt: 900").replace("branches: [main]", "branches: [main, release]"))
    done = shell("policy", "diff", str(folder / "billing.yaml"), str(new))
    assert done.code == 1
    assert (
        'looser   claude: stripe refunds:create: deny -> allow where not {"args.amount": {"lt": 500}} and' in done.out
    )
    assert "looser   claude: git push: deny -> approve\n           e.g. acme/billing release" in done.out
    same = shell("policy", "diff", str(new), str(new))
    assert (same.code, same.out) == (0, "every operation gets the same answer\n")
    told = json.loads(shell("policy", "diff", str(folder / "billing.yaml"), str(new), "--json").out)
    assert {one["kind"] for one in told["changes"]} == {"looser"}
    new.write_text(GOOD.replace("project: billing", "project: other"))
    assert shell("policy", "diff", str(folder / "billing.yaml"), str(new)).code == 2


# ── schema ──


def test_the_schema_takes_what_loads_and_refuses_what_is_spelled_wrong(shell: Shell) -> None:
    schema = json.loads(shell("policy", "schema").out)
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    for text in (GOOD, (Path(__file__).parents[2] / "policies" / "billing-automation.yaml").read_text()):
        assert list(validator.iter_errors(yaml.safe_load(text))) == []
    for old, new in (
        ("actions: [push", "action: [push"),
        ("{lt: 500}", "{less: 500}"),
        ("args.amount", "arg.amount"),
        ("claude:", "claude: 1\n  x:"),
    ):
        assert list(validator.iter_errors(yaml.safe_load(GOOD.replace(old, new)))), (old, new)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_examples_of_every_verb_parse(verb: str) -> None:
    parser = main.parser_of("policy", importlib.import_module("banksman.cli.policy"))
    lines = importlib.import_module(f"banksman.cli.policy.{verb}").EXAMPLES.strip().splitlines()
    commands = [re.search(r"banksman policy ([^>]*)", line) for line in lines]
    assert commands
    for command in commands:
        assert command is not None
        assert parser.parse_args(shlex.split(command[1])).verb == verb
