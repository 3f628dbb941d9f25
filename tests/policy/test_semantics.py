"""The parts of the language that the example does not use: guardrails, tiers, approvers, shadow, owners, budgets."""

from __future__ import annotations

from typing import Any

import pytest

from banksman.policy.compile import Bundle, CompiledPolicy
from banksman.policy.load import load
from banksman.policy.rules import Budget
from banksman.policy.verdict import MEANING, Approvers, Reason, Verdict

FULL = """
project: billing-automation
version: 2
owner: payments-team
mode: enforce
guardrails:
  never: [{service: aws, actions: ["iam:*"]}, {service: postgres, actions: [drop_database]}]
  require_approval: [{service: git, actions: [push], branches: [main], approvers: {any: [security], min: 1, expires: 2h}}]
agents:
  claude-invoice-01:
    owner: ann@acme.example
    allow:
      - {service: git, actions: [push, pull], resources: [acme/billing], branches: ["feature/*"], tier: 2}
      - {service: git, actions: ["*"], resources: [acme/sandbox], tier: 1}
      - {service: git, actions: [pull]}
      - {service: aws, actions: ["*"]}
      - {service: postgres, actions: ["*"]}
    require_approval:
      - {service: git, actions: [push], branches: [main, "release/*"], approvers: {any: [release-managers, leads], min: 2}}
      - {service: git, actions: [push], branches: ["release/*"], approvers: {expires: 90s}}
      - {service: git, actions: [tag], resources: [acme/billing]}
    never:
      - {service: git, actions: [force_push]}
      - {service: git, actions: [push], resources: [acme/infra]}
    budget: {daily_tokens: 500000, daily_cost_usd: 40, alert_threshold: 0.8, on_exhausted: deny, timezone: UTC}
    detect: {loops: {on_alert: pause}, anomalies: {on_alert: alert}}
  helper: {}
notify: {channel: "#payments-agents"}
"""
ME, P = "claude-invoice-01", "billing-automation"


def bundle(text: str = FULL, **changes: str) -> Bundle:
    for old, new in changes.items():
        text = text.replace({"mode": "mode: enforce", "guardrails": "guardrails:"}[old], new)
    policy = load(text.encode()).policy
    return Bundle({policy.project: CompiledPolicy(policy)})


def ask(operation: str, where: Bundle, agent: str = ME) -> Verdict:
    """`git push acme/billing main`; a dash for what is left out."""
    parts: list[Any] = [None if part == "-" else part for part in operation.split()]
    return where.decide(P, agent, *parts)


@pytest.mark.parametrize(
    ("operation", "decision", "tier", "reason", "rule"),
    [
        # never > require_approval > allow > nothing, guardrails first
        ("git push acme/billing feature/x", "allow", 2, "allowed", f"{ME}/allow/0"),
        ("git push acme/infra main", "deny", 4, "never", f"{ME}/never/1"),
        ("git push acme/infra feature/x", "deny", 4, "never", f"{ME}/never/1"),
        ("git force_push acme/sandbox -", "deny", 4, "never", f"{ME}/never/0"),
        ("aws iam:CreateUser arn:aws:iam::1:user/x -", "deny", 4, "guardrail", "guardrails/never/0"),
        ("aws IAM:CREATEUSER - -", "deny", 4, "guardrail", "guardrails/never/0"),
        ("aws s3:GetObject - -", "allow", 1, "allowed", f"{ME}/allow/3"),
        ("aws s3:PutObject - -", "allow", 2, "allowed", f"{ME}/allow/3"),
        ("postgres drop_database prod -", "deny", 4, "guardrail", "guardrails/never/1"),
        ("postgres select prod -", "allow", 1, "allowed", f"{ME}/allow/4"),
        ("git push acme/billing main", "approve", 3, "approval_required", "guardrails/require_approval/0"),
        ("git push acme/billing release/1", "approve", 3, "approval_required", f"{ME}/require_approval/0"),
        ("git push acme/other feature/x", "deny", 4, "default_deny", None),
        # tiers: the rule's own, else the verb's; of several, the one that logs
        ("git pull acme/other x", "allow", 1, "allowed", f"{ME}/allow/2"),
        ("git push acme/sandbox feature/x", "allow", 1, "allowed", f"{ME}/allow/1"),
        ("git pull acme/billing feature/x", "allow", 2, "allowed", f"{ME}/allow/0"),
        ("git anything acme/sandbox -", "allow", 1, "allowed", f"{ME}/allow/1"),
        # leaving out the resource or the branch that a stricter rule asks about
        ("git push acme/sandbox -", "deny", 4, "incomplete_operation", "guardrails/require_approval/0"),
        ("git push - feature/x", "deny", 4, "incomplete_operation", f"{ME}/never/1"),
        ("git push acme/infra -", "deny", 4, "never", f"{ME}/never/1"),
        ("git tag - -", "deny", 4, "incomplete_operation", f"{ME}/require_approval/2"),
        ("git tag acme/billing -", "approve", 3, "approval_required", f"{ME}/require_approval/2"),
        ("git pull - -", "allow", 1, "allowed", f"{ME}/allow/2"),
    ],
)
def test_full_form(operation: str, decision: str, tier: int, reason: str, rule: str | None) -> None:
    ruling = ask(operation, bundle()).ruling
    assert (ruling.decision, ruling.tier, ruling.reason, ruling.rule) == (decision, tier, reason, rule)


def test_every_matching_approval_rule_is_asked_for() -> None:
    """Else the order of rules could pick the easier one."""
    ruling = ask("git push acme/billing main", bundle()).ruling
    assert set(ruling.approvers) == {
        Approvers(("leads", "release-managers"), 2, 900),
        Approvers(("security",), 1, 7200),
    }
    assert ruling.matched == ("guardrails/require_approval/0", f"{ME}/require_approval/0")
    ruling = ask("git push acme/billing release/1", bundle()).ruling
    assert set(ruling.approvers) == {Approvers(("leads", "release-managers"), 2, 900), Approvers((), 1, 90)}
    assert ask("git tag acme/billing -", bundle()).ruling.approvers == (Approvers(),)


def test_owners() -> None:
    where = bundle()
    assert ask("git pull - -", where).ruling.owner == "ann@acme.example"
    assert ask("git pull - -", where, "helper").ruling.owner == "payments-team"
    assert ask("git pull - -", where, "nobody").ruling.owner == "payments-team"


def test_budget_detect_notify() -> None:
    policy = load(FULL.encode()).policy
    assert policy.agents[ME].budget == Budget(500_000, 40.0, 0.8, "deny", "UTC")
    assert (policy.agents[ME].on_loop, policy.agents[ME].on_anomaly) == ("pause", "alert")
    assert (policy.agents["helper"].budget, policy.agents["helper"].on_loop) == (None, "alert")
    assert policy.channel == "#payments-agents"


@pytest.mark.parametrize(
    ("operation", "decision", "shadow", "reason"),
    [
        # only noted
        ("git push acme/other feature/x", "allow", "deny", "default_deny"),
        ("git force_push acme/billing -", "allow", "deny", "never"),
        ("git push acme/billing release/1", "allow", "approve", "approval_required"),
        ("git push acme/billing feature/x", "allow", "allow", "allowed"),
        ("git tag - -", "allow", "deny", "incomplete_operation"),
        # in force: guardrails, and what might be one of them
        ("aws iam:CreateUser - -", "deny", None, "guardrail"),
        ("git push acme/billing main", "approve", None, "approval_required"),
        ("git push acme/infra main", "approve", "deny", "approval_required"),
        ("git push acme/billing -", "deny", None, "incomplete_operation"),
        ("git push acme//billing feature/x", "deny", None, "not_canonical"),
        ("git push acme/billing " + "x" * 1025, "deny", None, "too_long"),
    ],
)
def test_shadow(operation: str, decision: str, shadow: str | None, reason: str) -> None:
    ruling = ask(operation, bundle(mode="mode: shadow")).ruling
    assert (ruling.decision, ruling.shadow, ruling.reason) == (decision, shadow, reason)


def test_shadow_of_an_approval_that_a_guardrail_asks_for_names_the_guardrails_approvers_only() -> None:
    ruling = ask("git push acme/billing main", bundle(mode="mode: shadow")).ruling
    assert ruling.approvers == (Approvers(("security",), 1, 7200),)
    assert ask("git push acme/billing release/1", bundle(mode="mode: shadow")).ruling.approvers == ()


def test_shadow_and_agents_that_nobody_named() -> None:
    where = bundle(mode="mode: shadow")
    ruling = ask("git pull - -", where, "nobody").ruling
    assert (ruling.decision, ruling.shadow, ruling.reason) == ("allow", "deny", "unknown_agent")
    ruling = ask("aws iam:CreateUser - -", where, "nobody").ruling
    assert (ruling.decision, ruling.shadow, ruling.reason) == ("deny", None, "guardrail")


def test_shadow_without_guardrails_covers_spellings_too() -> None:
    where = bundle("project: billing-automation\nmode: shadow\nagents: {claude-invoice-01: {}}\n")
    ruling = ask("git push acme//billing x", where).ruling
    assert (ruling.decision, ruling.shadow, ruling.reason) == ("allow", "deny", "not_canonical")


def test_no_policy_is_denied_also_for_who_is_in_shadow_elsewhere() -> None:
    ruling = bundle(mode="mode: shadow").decide("other", ME, "git", "pull").ruling
    assert (ruling.decision, ruling.shadow, ruling.reason, ruling.policy_version) == ("deny", None, "no_policy", None)


def test_an_agents_choice_of_words_takes_a_bounded_place() -> None:
    """Whatever actions an agent makes up, only so many are remembered; the answers stay right."""
    where = bundle()
    compiled = where.policies[P]
    for at in range(2000):
        assert ask(f"git made_up_{at} acme/sandbox -", where).decision == "allow"
        assert ask(f"git made_up_{at} acme/other -", where).decision == "deny"
        assert ask(f"service_{at} x - -", where).decision == "deny"
        assert ask(f"git x - -", where, f"agent-{at}").reason == "unknown_agent"  # noqa: F541 - one shape for all
    assert len(compiled._buckets) <= 300
    assert ask("git force_push acme/sandbox -", where).decision == "deny"


def test_every_reason_is_explained() -> None:
    assert set(MEANING) == set(Reason)
