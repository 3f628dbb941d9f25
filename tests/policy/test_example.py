"""The example policy, and what a careful reader of it expects of seventy operations."""

from __future__ import annotations

from pathlib import Path

import pytest

from banksman.policy.compile import Bundle, CompiledPolicy
from banksman.policy.load import load

HERE = Path(__file__).parent
EXAMPLE = HERE / "data" / "policy-example.yaml"
SHARED = HERE.parents[2] / "shared" / "data" / "policy-example.yaml"
ME = "claude-invoice-01"
S3 = "arn:aws:s3:::invoice-data"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    policy = load(EXAMPLE.read_bytes(), "policy-example.yaml").policy
    return Bundle({policy.project: CompiledPolicy(policy)})


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is not beside this checkout")
def test_it_is_the_shared_one_unchanged() -> None:
    assert EXAMPLE.read_bytes() == SHARED.read_bytes()


ALLOW_GIT, ALLOW_S3, ALLOW_STRIPE = f"{ME}/allow/0", f"{ME}/allow/1", f"{ME}/allow/2"
ASK_GIT, ASK_STRIPE = f"{ME}/require_approval/0", f"{ME}/require_approval/1"
NO = None

# (service, action, resource, branch) -> decision, tier, reason, rule
TABLE = [
    # git: push and pull of two repositories on two kinds of branches
    ("git", "push", "acme/billing", "feature/x", "allow", 2, "allowed", ALLOW_GIT),
    ("git", "push", "acme/invoices", "fix/y", "allow", 2, "allowed", ALLOW_GIT),
    ("git", "push", "acme/invoices", "feature/a.b-c_d", "allow", 2, "allowed", ALLOW_GIT),
    ("git", "pull", "acme/billing", "feature/x", "allow", 1, "allowed", ALLOW_GIT),
    ("git", "pull", "acme/billing", "main", "deny", 4, "default_deny", NO),
    ("git", "pull", "acme/billing", None, "deny", 4, "default_deny", NO),
    ("git", "pull", None, "feature/x", "deny", 4, "default_deny", NO),
    ("git", "push", "acme/billing", "feature/a/b", "deny", 4, "default_deny", NO),
    ("git", "push", "acme/billing", "feature", "deny", 4, "default_deny", NO),
    ("git", "push", "acme/billing", "features/x", "deny", 4, "default_deny", NO),
    ("git", "push", "acme/billing", "xfeature/x", "deny", 4, "default_deny", NO),
    ("git", "push", "acme/billing", "develop", "deny", 4, "default_deny", NO),
    ("git", "push", "acme/other", "feature/x", "deny", 4, "default_deny", NO),
    ("git", "push", "acme/billing-old", "feature/x", "deny", 4, "default_deny", NO),
    ("git", "push", "acme/billing/sub", "feature/x", "deny", 4, "default_deny", NO),
    ("git", "push", "evil/acme/billing", "feature/x", "deny", 4, "default_deny", NO),
    ("git", "push", "billing", "feature/x", "deny", 4, "default_deny", NO),
    ("git", "push", "/acme/billing", "feature/x", "deny", 4, "default_deny", NO),
    # … and main or a release of any repository goes to a human: the rule names no repository
    ("git", "push", "acme/billing", "main", "approve", 3, "approval_required", ASK_GIT),
    ("git", "push", "acme/billing", "release/1.2", "approve", 3, "approval_required", ASK_GIT),
    ("git", "push", "acme/other", "main", "approve", 3, "approval_required", ASK_GIT),
    ("git", "push", None, "main", "approve", 3, "approval_required", ASK_GIT),
    ("git", "push", "acme/billing", "release/1/2", "deny", 4, "default_deny", NO),
    ("git", "push", "acme/billing", "main2", "deny", 4, "default_deny", NO),
    ("git", "push", "acme/billing", "origin/main", "deny", 4, "default_deny", NO),
    # leaving the branch out never gets more: it might be main
    ("git", "push", "acme/billing", None, "deny", 4, "incomplete_operation", ASK_GIT),
    ("git", "push", None, None, "deny", 4, "incomplete_operation", ASK_GIT),
    # case is exact
    ("git", "push", "ACME/billing", "feature/x", "deny", 4, "default_deny", NO),
    ("git", "push", "acme/billing", "Feature/x", "deny", 4, "default_deny", NO),
    ("git", "push", "acme/billing", "MAIN", "deny", 4, "default_deny", NO),
    ("git", "PUSH", "acme/billing", "feature/x", "deny", 4, "default_deny", NO),
    ("GIT", "push", "acme/billing", "feature/x", "deny", 4, "default_deny", NO),
    # other actions of a service that is known
    ("git", "force_push", "acme/billing", "feature/x", "deny", 4, "default_deny", NO),
    ("git", "push --force", "acme/billing", "feature/x", "deny", 4, "default_deny", NO),
    ("git", "*", "acme/billing", "feature/x", "deny", 4, "default_deny", NO),
    # more than one spelling
    ("git", "push", "acme/../acme/billing", "feature/x", "deny", 4, "not_canonical", NO),
    ("git", "push", "acme/./billing", "feature/x", "deny", 4, "not_canonical", NO),
    ("git", "push", "acme//billing", "feature/x", "deny", 4, "not_canonical", NO),
    ("git", "push", "acme/billing/", "feature/x", "deny", 4, "not_canonical", NO),
    ("git", "push", "acme%2Fbilling", "feature/x", "deny", 4, "not_canonical", NO),
    ("git", "push", "acme\\billing", "feature/x", "deny", 4, "not_canonical", NO),
    ("git", "push", "acme/billing", "feature/../main", "deny", 4, "not_canonical", NO),
    ("git", "push", "acme/billing", "feature/x\n", "deny", 4, "not_canonical", NO),
    ("git", "push", "acme/billing\x00", "feature/x", "deny", 4, "not_canonical", NO),
    ("git", "pu\u200bsh", "acme/billing", "feature/x", "deny", 4, "not_canonical", NO),
    ("git", "push", "acme/billing", "feature/e\u0301", "deny", 4, "not_canonical", NO),
    ("git", "push", "acme/billing", "feature/\u00e9", "allow", 2, "allowed", ALLOW_GIT),
    # look-alikes are other strings: Cyrillic a, fullwidth m, Greek o, a right-to-left override
    ("git", "push", "\u0430cme/billing", "feature/x", "deny", 4, "default_deny", NO),
    ("git", "push", "acme/billing", "\uff4dain", "deny", 4, "default_deny", NO),
    ("git", "push", "acme/billing\u202e", "feature/x", "deny", 4, "not_canonical", NO),
    ("g\u0456t", "push", "acme/billing", "feature/x", "deny", 4, "default_deny", NO),
    # S3: two actions on one bucket; in the sixth part of an ARN * crosses /
    ("aws", "s3:GetObject", f"{S3}/2026/11/a.pdf", None, "allow", 1, "allowed", ALLOW_S3),
    ("aws", "s3:PutObject", f"{S3}/a.pdf", None, "allow", 2, "allowed", ALLOW_S3),
    ("aws", "S3:getobject", f"{S3}/a.pdf", None, "allow", 1, "allowed", ALLOW_S3),
    ("aws", "s3:GetObject", f"{S3}/a:b//c", None, "allow", 1, "allowed", ALLOW_S3),
    ("aws", "s3:GetObject", f"{S3}/a.pdf", "main", "allow", 1, "allowed", ALLOW_S3),
    ("aws", "s3:DeleteObject", f"{S3}/a.pdf", None, "deny", 4, "default_deny", NO),
    ("aws", "s3:GetObjectAcl", f"{S3}/a.pdf", None, "deny", 4, "default_deny", NO),
    ("aws", "s3:GetObject", f"{S3}-old/a.pdf", None, "deny", 4, "default_deny", NO),
    ("aws", "s3:GetObject", S3, None, "deny", 4, "default_deny", NO),
    ("aws", "s3:GetObject", "arn:aws:s3:eu-west-1::invoice-data/a", None, "deny", 4, "default_deny", NO),
    ("aws", "s3:GetObject", "arn:aws-cn:s3:::invoice-data/a", None, "deny", 4, "default_deny", NO),
    ("aws", "s3:GetObject", "ARN:aws:s3:::invoice-data/a", None, "deny", 4, "default_deny", NO),
    ("aws", "s3:GetObject", "invoice-data/a", None, "deny", 4, "default_deny", NO),
    ("aws", "s3:GetObject", None, None, "deny", 4, "default_deny", NO),
    ("aws", "s3:GetObject", f"{S3}/../secrets/a", None, "deny", 4, "not_canonical", NO),
    ("aws", "s3:GetObject", f"{S3}/a/.", None, "deny", 4, "not_canonical", NO),
    ("aws", "s3:GetObject", f"{S3}/%2e%2e/a", None, "deny", 4, "not_canonical", NO),
    ("aws", "s3:GetObject", "arn:aws:s3:::", None, "deny", 4, "not_canonical", NO),
    ("aws", "s3:GetObject", "arn:aws:s3", None, "deny", 4, "not_canonical", NO),
    ("AWS", "s3:GetObject", f"{S3}/a.pdf", None, "deny", 4, "default_deny", NO),
    # Stripe: rules without resources match any, and none
    ("stripe", "charges:read", "ch_1", None, "allow", 1, "allowed", ALLOW_STRIPE),
    ("stripe", "invoices:read", None, None, "allow", 1, "allowed", ALLOW_STRIPE),
    ("stripe", "charges:create", "ch_1", None, "approve", 3, "approval_required", ASK_STRIPE),
    ("stripe", "refunds:create", None, None, "approve", 3, "approval_required", ASK_STRIPE),
    ("stripe", "refunds:Create", None, None, "deny", 4, "default_deny", NO),
    ("stripe", "payouts:create", None, None, "deny", 4, "default_deny", NO),
    # services nobody named
    ("postgres", "drop_database", "prod", None, "deny", 4, "default_deny", NO),
    ("shell", "run", "ls", None, "deny", 4, "default_deny", NO),
    # nothing at all
    ("", "push", "acme/billing", "feature/x", "deny", 4, "not_canonical", NO),
    ("git", "", "acme/billing", "feature/x", "deny", 4, "not_canonical", NO),
    ("git", "push", "", "feature/x", "deny", 4, "not_canonical", NO),
    ("git", "push", "acme/billing", "", "deny", 4, "not_canonical", NO),
    ("stripe", "charges:read", "", None, "deny", 4, "not_canonical", NO),
    # far too much
    ("git", "push", "acme/billing", "feature/" + "x" * 10_240, "deny", 4, "too_long", NO),
    ("git", "push", "acme/" + "b" * 10_240, "feature/x", "deny", 4, "too_long", NO),
    ("git", "p" * 10_240, "acme/billing", "feature/x", "deny", 4, "too_long", NO),
    ("g" * 10_240, "push", "acme/billing", "feature/x", "deny", 4, "too_long", NO),
    ("aws", "s3:GetObject", f"{S3}/" + "k" * 10_240, None, "deny", 4, "too_long", NO),
    ("stripe", "charges:read", "../" * 3_500, None, "deny", 4, "too_long", NO),
    ("aws", "s3:GetObject", f"{S3}/" + "k" * 4_000, None, "allow", 1, "allowed", ALLOW_S3),
]


def test_the_table_has_no_operation_twice() -> None:
    assert len({row[:4] for row in TABLE}) == len(TABLE) >= 40


@pytest.mark.parametrize(
    ("service", "action", "resource", "branch", "decision", "tier", "reason", "rule"),
    TABLE,
    ids=[f"{at}-{row[6]}" for at, row in enumerate(TABLE)],
)
def test_decision(
    bundle: Bundle,
    service: str,
    action: str,
    resource: str | None,
    branch: str | None,
    decision: str,
    tier: int,
    reason: str,
    rule: str | None,
) -> None:
    verdict = bundle.decide("billing-automation", ME, service, action, resource, branch)
    ruling = verdict.ruling
    assert (ruling.decision, ruling.tier, ruling.reason, ruling.rule) == (decision, tier, reason, rule)
    # The same again: from here on it comes out of what was worked out the first time.
    assert bundle.decide("billing-automation", ME, service, action, resource, branch) == verdict
    assert ruling.policy == "billing-automation"
    assert (ruling.policy_version or "").startswith("billing-automation@v0+sha256:")
    assert (verdict.service, verdict.resource, verdict.branch) == (service, resource, branch)
    assert verdict.action == (action.lower() if service == "aws" else action)


@pytest.mark.parametrize(
    ("project", "agent", "reason"),
    [
        ("billing-automation", "claude-invoice-02", "unknown_agent"),
        ("billing-automation", "Claude-Invoice-01", "unknown_agent"),
        ("billing-automation", "", "unknown_agent"),
        ("billing-automation", "claude-invoice-0\u0661", "unknown_agent"),
        ("billing-automation", "x" * 10_240, "unknown_agent"),
        ("billing", ME, "no_policy"),
        ("", ME, "no_policy"),
    ],
)
def test_who_is_not_in_the_policy(bundle: Bundle, project: str, agent: str, reason: str) -> None:
    for operation in (("git", "push", "acme/billing", "feature/x"), ("stripe", "charges:read", None, None)):
        ruling = bundle.decide(project, agent, *operation).ruling
        assert (ruling.decision, ruling.tier, ruling.reason, ruling.rule) == ("deny", 4, reason, None)


def test_the_answer_holds_what_a_record_needs(bundle: Bundle) -> None:
    ruling = bundle.decide("billing-automation", ME, "git", "push", "acme/billing", "main").ruling
    assert ruling.matched == (ASK_GIT,)
    assert [(one.any, one.min, one.expires) for one in ruling.approvers] == [((), 1, 900)]
    assert ruling.shadow is None
    assert ruling.owner is None


def test_budget_of_the_example() -> None:
    budget = load(EXAMPLE.read_bytes()).policy.agents[ME].budget
    assert budget is not None
    assert (budget.daily_tokens, budget.alert_threshold, budget.on_exhausted) == (500_000, 0.8, "deny")
