"""The events: one JSON object per Kafka message, one typed model per kind.

A model validates and documents; it never decides what is kept. Unknown fields stay in the bytes, which are what is
signed, stored and shown. Common to all: `v` (1), `id` (UUIDv7), `time` (the author's clock, for display and order
inside a session), `kind` and whose it is. Tokens are counts, costs USD, durations milliseconds, latencies microseconds.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from banksman.topics import Topic

NAME = r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,127}"
UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

is_name = re.compile(NAME).fullmatch
"""Truthy for names of projects, agents, sessions and operators: they end up in URLs, commands and Slack."""
is_uuid = re.compile(UUID).fullmatch


def _whole(pattern: str) -> msgspec.Meta:
    # Python's `$` also matches before a line feed at the end; JSON Schema, where this ends up, has no `\Z`.
    return msgspec.Meta(pattern=f"^{pattern}$(?!\\n)")


_NAME = _whole(NAME)
_UUID = _whole(UUID)
_UUID7 = _whole("[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_TIME = _whole(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")

Name = Annotated[str, _NAME]
Uuid = Annotated[str, _UUID]
Uuid7 = Annotated[str, _UUID7]
Time = Annotated[str, _TIME]
SPELLED = {
    str(_NAME.pattern): "must be a name: 1 to 128 letters, digits and . _ @ : -, the first a letter or digit",
    str(_UUID.pattern): "must be a UUID in lower case, e.g. 0190a1b2-0000-7000-8000-000000000000",
    str(_UUID7.pattern): "must be a UUIDv7 in lower case, e.g. 0190a1b2-0000-7000-8000-000000000000",
    str(_TIME.pattern): "must be a time in UTC with microseconds, e.g. 2026-11-24T15:30:00.000000Z",
}
"""What a person is told in place of these patterns."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
Usd = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Outcome = Literal["allow", "deny", "approve"]


class Event(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="kind"):
    """What every event has. A subclass's tag is its `kind`; `topic` says where it may be published."""

    topic: ClassVar[Topic]

    v: Literal[1]
    id: Uuid7
    time: Time
    source: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    seq: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)] | None = None
    """1, 2, 3 … per source instance: gaps and repeats are visible. Absent where nothing counts."""
    call: Uuid | None = None
    """The `tool.call` that this belongs to."""
    parent: Uuid | None = None
    """The event (or question) that this one answers."""


def kind_of(event: Event) -> str:
    """Its `kind`, as on the wire."""
    return str(type(event).__struct_config__.tag)


# ── actions: what agents do and report ──


class Action(Event, kw_only=True, omit_defaults=True):
    """Written by an agent, or by the enforcer in its name.

    Where there are `args`, they are redacted; `args_hash` is over the originals: HMAC-SHA256 under the agent's event
    key over RFC 8785 JSON.
    """

    topic = Topic.ACTIONS
    project: Name
    agent: Name
    session: Name


class SessionStarted(Action, tag="session.started", kw_only=True, omit_defaults=True):
    """A run of an agent begins."""


class SessionEnded(Action, tag="session.ended", kw_only=True, omit_defaults=True):
    """A run is over. `status` error: the session's code raised `error`."""

    status: Literal["ok", "error"] = "ok"
    error: str | None = None


class Prompt(Action, tag="prompt", kw_only=True, omit_defaults=True):
    """What a person asked of the agent."""

    text: str


class Note(Action, tag="note", kw_only=True, omit_defaults=True):
    """Anything an agent wants in the record."""

    text: str


class ModelCall(Action, tag="model.call", kw_only=True, omit_defaults=True):
    """One request to a model. Tokens = input + output + cache writes; without `cost_usd` the price table gives it."""

    model: str
    input_tokens: Count = 0
    output_tokens: Count = 0
    cache_read_tokens: Count = 0
    cache_write_tokens: Count = 0
    cost_usd: Usd | None = None
    status: Literal["ok", "error"] | None = None
    error: str | None = None
    duration_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None


class ToolCall(Action, tag="tool.call", kw_only=True, omit_defaults=True):
    """The intent: what the agent is about to do. `batch`: index in a parallel batch of one model message."""

    service: str
    action: str
    resource: str | None = None
    branch: str | None = None
    args: dict[str, Any] | None = None
    args_hash: str | None = None
    batch: Count | None = None


class ToolResult(Action, tag="tool.result", kw_only=True, omit_defaults=True):
    """What came of it. `outcome_hash`: the result's, with digits and hex masked in errors, so that a loop shows."""

    status: Literal["ok", "error", "denied"]
    error: str | None = None
    result: Any = None
    result_hash: str | None = None
    outcome_hash: str | None = None
    result_size: Count | None = None
    duration_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None
    input_tokens: Count = 0
    output_tokens: Count = 0
    cost_usd: Usd | None = None


class ApiRequest(Action, tag="api.request", kw_only=True, omit_defaults=True):
    """A request made outside of a tool call, with its outcome."""

    service: str
    action: str
    resource: str | None = None
    branch: str | None = None
    args: dict[str, Any] | None = None
    args_hash: str | None = None
    status: Literal["ok", "error", "denied"] | None = None
    error: str | None = None
    result_hash: str | None = None
    outcome_hash: str | None = None
    result_size: Count | None = None
    duration_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None


# ── decisions: what the enforcer answered ──


class Decision(Event, tag="decision", kw_only=True, omit_defaults=True):
    """One answer to one action. Policy fields are never redacted."""

    topic = Topic.DECISIONS
    project: Name
    agent: Name
    session: Name
    service: str
    action: str
    resource: str | None = None
    branch: str | None = None
    args: dict[str, Any] | None = None
    args_hash: str | None = None
    decision: Outcome
    tier: Literal[1, 2, 3, 4]
    rule: str | None = None
    policy: str | None = None
    policy_version: str | None = None
    reason: str
    asked: str | None = None
    """The agent's own words for why it wants this."""
    approval: str | None = None
    shadow: Outcome | None = None
    """In shadow mode: what would have been answered. The decision was not enforced."""
    latency_us: Count | None = None
    owner: str | None = None
    subject: str | None = None
    """Whom it is about, `TYPE:ID`, where a gateway asks about somebody else than itself."""
    budget: dict[str, Any] | None = None
    """The budget that is spent, where that is the reason: unit, spent, limit, resets_at."""


class ApprovalRequested(Event, tag="approval.requested", kw_only=True, omit_defaults=True):
    """A human is asked about one exact action."""

    topic = Topic.DECISIONS
    project: Name
    agent: Name
    session: Name
    approval: str
    service: str
    action: str
    resource: str | None = None
    branch: str | None = None
    args: dict[str, Any] | None = None
    args_hash: str | None = None
    rule: str | None = None
    policy: str | None = None
    policy_version: str | None = None
    reason: str | None = None
    asked: str | None = None
    subject: str | None = None
    """Whom it is about, `TYPE:ID`, where a gateway asks about somebody else than itself."""
    expires_at: Time


class _ApprovalEnd(Event, kw_only=True, omit_defaults=True):
    topic = Topic.DECISIONS
    project: Name
    agent: Name
    session: Name
    approval: str
    approver: Name | None = None
    comment: str | None = None


class ApprovalApproved(_ApprovalEnd, tag="approval.approved", kw_only=True, omit_defaults=True):
    """A human said yes."""


class ApprovalDenied(_ApprovalEnd, tag="approval.denied", kw_only=True, omit_defaults=True):
    """A human said no."""


class ApprovalExpired(_ApprovalEnd, tag="approval.expired", kw_only=True, omit_defaults=True):
    """Nobody said anything in time: no."""


class ApprovalUsed(_ApprovalEnd, tag="approval.used", kw_only=True, omit_defaults=True):
    """The one request that the approval was good for."""


class DecisionVoid(Event, tag="decision.void", kw_only=True, omit_defaults=True):
    """The decision `parent` was recorded but never answered as such: its caller got a 503."""

    topic = Topic.DECISIONS
    project: Name
    agent: Name
    session: Name
    reason: str


# ── control: identities, policies, operators' acts ──


class Control(Event, kw_only=True, omit_defaults=True):
    """Written by services; `by` is the operator who asked for it."""

    topic = Topic.CONTROL
    by: Name | None = None
    reason: str | None = None


class AgentEnrolled(Control, tag="agent.enrolled", kw_only=True, omit_defaults=True):
    """A new identity. Of the token only its SHA-256 (hex) is kept."""

    project: Name
    agent: Name
    owner: str
    token_id: str
    token_hash: str


class AgentRotated(Control, tag="agent.rotated", kw_only=True, omit_defaults=True):
    """A new credential for a known agent; the old token gets 401 from here on."""

    project: Name
    agent: Name
    token_id: str
    token_hash: str


class AgentRevoked(Control, tag="agent.revoked", kw_only=True, omit_defaults=True):
    """Everything the agent asks is denied."""

    project: Name
    agent: Name


class AgentRestored(Control, tag="agent.restored", kw_only=True, omit_defaults=True):
    """Lifts the revocation at the offset `lifts`, and no newer one."""

    project: Name
    agent: Name
    lifts: Count


class OperatorEnrolled(Control, tag="operator.enrolled", kw_only=True, omit_defaults=True):
    """A person with roles."""

    operator: Name
    roles: list[Literal["viewer", "approver", "operator", "admin"]]
    token_id: str
    token_hash: str


class SessionKilled(Control, tag="session.killed", kw_only=True, omit_defaults=True):
    """Everything this session asks is denied, for good."""

    project: Name
    agent: Name
    session: Name


class ProjectPaused(Control, tag="project.paused", kw_only=True, omit_defaults=True):
    """Everything the project's agents ask is denied."""

    project: Name


class ProjectResumed(Control, tag="project.resumed", kw_only=True, omit_defaults=True):
    """Lifts the pause at the offset `lifts`, and no newer one."""

    project: Name
    lifts: Count


class PolicyLoaded(Control, tag="policy.loaded", kw_only=True, omit_defaults=True):
    """A replica has put this policy in force. `text`: the whole normalised policy."""

    project: Name
    policy_version: str
    text: str
    replica: str
    file: str | None = None


class PolicyRejected(Control, tag="policy.rejected", kw_only=True, omit_defaults=True):
    """A file that does not load; what was in force stays."""

    replica: str
    file: str
    error: str
    project: Name | None = None
    line: Count | None = None
    key: str | None = None


class PolicyRemoved(Control, tag="policy.removed", kw_only=True, omit_defaults=True):
    """A policy file went away: default deny for its project."""

    project: Name
    policy_version: str
    replica: str


class Voters(msgspec.Struct, omit_defaults=True, frozen=True):
    """Who must say yes: `min` of the people in `any`; an empty `any`: anybody with the role approver."""

    any: list[str] = []
    min: Annotated[int, msgspec.Meta(ge=1)] = 1


class ApprovalOpened(Control, tag="approval.opened", kw_only=True, omit_defaults=True):
    """An approval can be voted on: what it is about, and whose yes it takes. `approval.requested` tells the session's story of
    it; this one is what every replica judges votes and uses by.
    """

    project: Name
    agent: Name
    session: Name
    approval: str
    service: str
    action: str
    resource: str | None = None
    branch: str | None = None
    args: dict[str, Any] | None = None
    args_hash: str | None = None
    rule: str | None = None
    policy_version: str | None = None
    owner: str | None = None
    asked: str | None = None
    """The agent's own words for why it wants this."""
    resource_hash: str | None = None
    """Where the resource or subject is not shown as it was asked, because it held a secret: what tells it from others."""
    request_hash: str | None = None
    """Where it was asked for in the words of AuthZEN: of all that was asked, to the letter."""
    counted: list[str] = []
    """What of the context, and of who acts for the subject, is part of that: what the policy believed the caller about."""
    subject: str | None = None
    """Whom it is about, `TYPE:ID`, where a gateway asks about somebody else than itself."""
    voters: list[Voters] = []
    """Every one of these must be satisfied."""
    expires_at: Time


class AccessRequested(Control, tag="access.requested", kw_only=True, omit_defaults=True):
    """An access request of AuthZEN about an approval that a denial has opened. `parent` is the denial."""

    project: Name
    agent: Name
    session: Name
    approval: str
    body_hash: str
    """Of the whole request: the same again is the same request."""
    key_hash: str | None = None
    """Of its `Idempotency-Key`: under it no other request is taken."""
    asked: str | None = None
    """The requester's own words for why."""


class Vote(Control, tag="vote", kw_only=True, omit_defaults=True):
    """An operator's answer to an approval, judged in offset order."""

    approval: str
    verdict: Literal["approve", "deny"]
    comment: str | None = None


class Claim(Control, tag="claim", kw_only=True, omit_defaults=True):
    """A request takes an approval; `undoes` gives one back."""

    approval: str
    request: str
    args_hash: str | None = None
    undoes: Count | None = None


class Replica(Control, tag="replica", kw_only=True, omit_defaults=True):
    """An enforcer's heartbeat: who, where, what it has applied. Not archived."""

    replica: str
    address: str
    applied: int
    policies: dict[str, str] = {}
    lease_s: Annotated[float, msgspec.Meta(gt=0)] = 1.5
    """For how many seconds a heartbeat that came back lets it answer: whoever fences it waits as long."""
    ended: bool = False
    """Said goodbye: it answers nothing any more."""


# ── limits, alerts, dead ──


class Budget(Event, tag="budget", kw_only=True, omit_defaults=True):
    """What an agent has spent of one budget window, and which source offsets that counts."""

    topic = Topic.LIMITS
    project: Name
    agent: Name
    window: str
    """The day, in the policy's time zone."""
    unit: Literal["tokens", "usd"]
    spent: float
    limit: float | None = None
    fraction: float | None = None
    burn: float | None = None
    """How fast it was spent in the last hour: 1 is what a whole day can go on with."""
    exhausted_at: Time | None = None
    resets_at: Time | None = None
    offsets: dict[str, int] = {}
    """The last record of each partition that is counted in."""


class Watermark(Event, tag="watermark", kw_only=True, omit_defaults=True):
    """Of a partition of `actions` and `decisions`, all is counted that came up to `lag_ms` before this record. Not archived."""

    topic = Topic.LIMITS
    partition: Count
    lag_ms: Annotated[float, msgspec.Meta(ge=0)]
    worker: str


RANK = {"info": 0, "warn": 1, "page": 2}
"""Severities, the worse the higher."""


class Finding(Event, tag="finding", kw_only=True, omit_defaults=True):
    """What a detector saw. `fingerprint` is the same for the same thing seen again."""

    topic = Topic.ALERTS
    detector: str
    severity: Literal["info", "warn", "page"]
    title: str
    fingerprint: str
    project: str | None = None
    agent: str | None = None
    session: str | None = None
    evidence: dict[str, Any] = {}
    suggestion: str | None = None
    owner: str | None = None
    """Who answers for the agent, as its policy says."""
    policy_version: str | None = None
    """The policy that was in force for the agent when it was told; where several were, one of them."""
    count: Count = 1
    first_seen: Time | None = None
    last_seen: Time | None = None
    over: bool = False
    """What was seen under this fingerprint is over: told by whoever saw it."""


class Alert(Finding, tag="alert", kw_only=True, omit_defaults=True):
    """A finding (or several, grouped) told to a human."""


class AlertResolved(Finding, tag="alert.resolved", kw_only=True, omit_defaults=True):
    """It is over."""


class Dead(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Anything that can never be processed: the raw record (base64), where it lay and why. Not an event itself."""

    v: Literal[1]
    time: Time
    error: str
    topic: str
    partition: int
    offset: int
    key: str | None = None
    value: str | None = None
    headers: dict[str, str] = {}


KINDS: dict[str, type[Event]] = {
    str(model.__struct_config__.tag): model
    for model in (
        SessionStarted, SessionEnded, Prompt, ModelCall, ToolCall, ToolResult, ApiRequest, Note,
        Decision, ApprovalRequested, ApprovalApproved, ApprovalDenied, ApprovalExpired, ApprovalUsed, DecisionVoid,
        AgentEnrolled, AgentRotated, AgentRevoked, AgentRestored, OperatorEnrolled,
        SessionKilled, ProjectPaused, ProjectResumed,
        PolicyLoaded, PolicyRejected, PolicyRemoved, ApprovalOpened, AccessRequested, Vote, Claim, Replica,
        Budget, Watermark, Finding, Alert, AlertResolved,
    )
}  # fmt: skip
"""Every kind of event and its model."""

ACTION_KINDS = frozenset(kind for kind, model in KINDS.items() if model.topic is Topic.ACTIONS)
"""The only kinds that an agent may write."""
