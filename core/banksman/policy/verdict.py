"""What the policy core answers, and the closed vocabulary of why.

A `Verdict` is the answer to one operation. Everything but the four fields of the operation is the same for every
operation that matches the same rules: that part, the `Ruling`, is worked out once and shared.
"""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

Outcome = Literal["allow", "deny", "approve"]

FREE, LOGGED, ASK, NEVER = 1, 2, 3, 4
"""The tiers: run freely, log and alert, require approval, never."""


class Reason(enum.StrEnum):
    """Why a decision is what it is. The value stands in records, answers and SQL: it never changes its meaning."""

    ALLOWED = "allowed"
    APPROVAL_REQUIRED = "approval_required"
    NEVER = "never"
    GUARDRAIL = "guardrail"
    DEFAULT_DENY = "default_deny"
    UNKNOWN_AGENT = "unknown_agent"
    NO_POLICY = "no_policy"
    NOT_CANONICAL = "not_canonical"
    TOO_LONG = "too_long"
    INCOMPLETE_OPERATION = "incomplete_operation"
    CONDITION_ERROR = "condition_error"
    FREEZE = "freeze"
    # The enforcer's own, of an operation whose approval the question names:
    APPROVED = "approved"
    APPROVAL_DENIED = "approval_denied"
    APPROVAL_EXPIRED = "approval_expired"
    APPROVAL_USED = "approval_used"
    APPROVAL_UNFIT = "approval_unfit"
    # And those that come before policy is asked:
    REVOKED = "revoked"
    KILLED = "killed"
    PAUSED = "paused"
    EXHAUSTED = "exhausted"


MEANING: dict[Reason, str] = {
    Reason.ALLOWED: "an `allow` rule matches, and nothing stricter does",
    Reason.APPROVAL_REQUIRED: "a `require_approval` rule (the agent's or a guardrail) matches: a human is asked",
    Reason.NEVER: "one of the agent's own `never` rules matches",
    Reason.GUARDRAIL: "one of the project's `guardrails: never` matches; no rule of the agent can lift it",
    Reason.DEFAULT_DENY: "no rule matches; what is not allowed is denied",
    Reason.UNKNOWN_AGENT: "the project's policy does not name this agent",
    Reason.NO_POLICY: "no policy is in force for the project",
    Reason.NOT_CANONICAL: "the operation is spelled in a way that has more than one spelling, so it is not matched",
    Reason.TOO_LONG: "the service, action, resource or branch is longer than anything a policy can name",
    Reason.INCOMPLETE_OPERATION: "the operation leaves out its resource or branch, and a `never` or "
    "`require_approval` rule might match if it did not",
    Reason.CONDITION_ERROR: "whether the condition of a `never` or `require_approval` rule holds cannot be worked out "
    "(an attribute is missing, or has another type), so it counts as holding",
    Reason.FREEZE: "a freeze window of the project holds, and the operation does not only read",
    Reason.APPROVED: "a human said yes to exactly this operation, and this is the one request that may use it",
    Reason.APPROVAL_DENIED: "a human said no",
    Reason.APPROVAL_EXPIRED: "nobody said yes in time, or the yes was not used in time",
    Reason.APPROVAL_USED: "the approval was good for one request: another one has used it, or this one did, about another "
    "call or too long ago to be told again",
    Reason.APPROVAL_UNFIT: "there is no such approval; or it is for another agent, session, operation or other arguments; or "
    "the policy wants other people's yes by now",
    Reason.REVOKED: "an operator revoked the agent",
    Reason.KILLED: "an operator or a detector killed the session",
    Reason.PAUSED: "an operator or a detector paused the project",
    Reason.EXHAUSTED: "the agent's budget is spent",
}


class Approvers(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Who must say yes: `min` people out of the groups (or people) in `any`; an empty `any`: any approver.

    `expires`: seconds until a request that nobody answered is a no.
    """

    any: tuple[str, ...] = ()
    min: int = 1
    expires: int = 900


class Ruling(msgspec.Struct, frozen=True, gc=False):
    """What the policy says about every operation that matches the same rules: a verdict without its operation."""

    decision: Outcome
    """What is answered."""
    tier: int
    """1 run freely, 2 log and alert, 3 require approval, 4 never."""
    rule: str | None
    """The rule that decided, e.g. `claude-invoice-01/allow/0`; None where none did."""
    reason: Reason
    matched: tuple[str, ...] = ()
    """Every rule that matched, guardrails first, then in the order of the file."""
    approvers: tuple[Approvers, ...] = ()
    """For `approve`: every one of these must be satisfied."""
    shadow: Outcome | None = None
    """Not None: the policy is in shadow mode, `decision` is what was answered and this is what the policy says."""
    policy: str | None = None
    """The policy's name, which is its project's."""
    policy_version: str | None = None
    owner: str | None = None
    """Who answers for the agent: its own owner, else the project's."""


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The answer to one operation: the ruling (shared, made once) and the operation as it was matched.

    `resource` and `branch` are None where the operation had none. Record and show these four, not what was asked.
    """

    ruling: Ruling
    service: str
    action: str
    resource: str | None
    branch: str | None

    @property
    def decision(self) -> Outcome:
        return self.ruling.decision

    @property
    def reason(self) -> Reason:
        return self.ruling.reason
