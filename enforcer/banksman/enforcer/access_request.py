"""The words of OpenID AuthZEN's *Access Request and Approval Profile, draft 1*: every name of it that goes over the wire.

A draft: what it renames is renamed here. What the words stand for is not decided here.

    denied, but a human can be asked    -> context.access_request
    asked for, by `POST` of a Submission -> {task}, until it is settled -> {task, result: {approval}}
    evaluated again with the approval   -> true and context.approval; or why not, and what to do next
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from banksman.enforcer.binding import Denied
from banksman.enforcer.evaluation import Action, Resource, Subject  # noqa: TC001 - msgspec resolves them
from banksman.http_problem import Problem, problem
from banksman.policy.verdict import Reason
from banksman.stamps import rfc3339_ms

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from banksman.approvals import Approval
    from banksman.enforcer.answers import Answer
    from banksman.enforcer.binding import Binding

REQUESTS = "/access/v1/requests"
ENDPOINT = "access_request_endpoint"
"""Where it stands in the metadata."""
CAPABILITY = "urn:openid:authzen:capability:access-request"
IDEMPOTENCY_KEY = "Idempotency-Key"

NOT_REQUESTABLE, INVALID_BINDING, EXPIRED_DENIAL = "not_requestable", "invalid_denial_binding", "expired_denial"
DUPLICATE, UNKNOWN_TASK, TASK_EXPIRED = "duplicate_request", "unknown_task", "task_expired"
_ERROR = "urn:openid:authzen:access-request:error:"
_STATUS = {
    NOT_REQUESTABLE: 400, INVALID_BINDING: 400, EXPIRED_DENIAL: 410, DUPLICATE: 409, UNKNOWN_TASK: 404, TASK_EXPIRED: 410,
}  # fmt: skip

PENDING, APPROVED, DENIED, EXPIRED = TASK_STATUSES = ("pending", "approved", "denied", "expired")
"""No task of ours is `cancelled`, `failed` or `partial`: nobody can cancel one, and one is about one thing."""

REEVALUATE = "reevaluate"
RETRY_S = 5
"""After so many seconds a yes can be there that was not."""
LATER_S = 30
"""After so many seconds a control, a freeze or a spent budget can be over."""

_AGAIN, _LATER, _NEVER = "request", "retry", "none"


class Denial(msgspec.Struct, gc=False):
    """What was denied: of its context `evaluation_id`, and `expires_at` of `access_request`, as they were."""

    evaluation_id: Annotated[str, Meta(max_length=256)]
    expires_at: Annotated[str, Meta(max_length=64)]
    reason: str | None = None
    """Not looked at"""


class Actor(msgspec.Struct, gc=False):
    """Who acts for the subject."""

    id: Annotated[str, Meta(max_length=4096)]
    act: Any = None
    """Must be absent: for whom another one acts cannot be verified here"""


class Client(msgspec.Struct, gc=False):
    """Who submits it, besides what the token says."""

    actor: Actor | None = None
    """`id` is the agent itself"""


class Submission(msgspec.Struct, gc=False):
    """An access request: what was denied, to the letter, and which denial it was. Fields that are not known are ignored."""

    subject: Subject
    """`type`, `id`, `properties`"""
    action: Action
    """`name`, `properties`"""
    resource: Resource
    """`type`, `id`, `properties`"""
    denial: Denial
    """`evaluation_id`, and `expires_at` of `access_request`, as the denial had them"""
    context: dict[str, Any] | None = None
    """As it was; and `business_justification` for those who approve"""
    client: Client | None = None
    """`actor.id`, if it is there, is the agent itself"""
    callback: Any = None
    """Must be absent: nobody is called back"""
    items: Any = None
    """Must be absent: one request is about one denial"""


def unsupported(asked: Submission, agent: str) -> Problem | None:
    """What of the profile is refused, so that nobody relies on it."""
    if asked.items is not None:
        return problem(400, "items: one request is about one denial; send one for each", field="items")
    if asked.callback is not None:
        return problem(400, "callback: nobody is called back; poll the task's status_endpoint", field="callback")
    actor = asked.client.actor if asked.client is not None else None
    if actor is not None and actor.id != agent:
        return problem(403, "client.actor.id: this token speaks for its own agent alone", field="client.actor.id")
    if actor is not None and actor.act is not None:
        return problem(403, "client.actor.act: for whom it acts cannot be verified", field="client.actor.act")
    return None


def failure(word: str, detail: str, field: str = "") -> Problem:
    """A problem type of the profile."""
    return Problem(_STATUS[word], detail, field=field, type=_ERROR + word)


def base_of(scope: MutableMapping[str, Any]) -> str:
    """The address of this server, by the name that it was asked under.

    `Host` was checked before. A proxy in front that ends TLS says so by `X-Forwarded-Proto`, which whoever forges it tells
    only himself.
    """
    fields = scope["fields"]
    scheme = fields.get(b"x-forwarded-proto", b"").decode("latin-1").strip().lower()
    if scheme not in {"http", "https"}:
        scheme = scope.get("scheme", "http")
    return f"{scheme}://{fields.get(b'host', b'').decode('latin-1')}"


# ── in the context of an evaluation ──


def requestable(
    binding: Binding, agent: str, answer: Answer, evaluated_at: str, expires_at: str, base: str
) -> dict[str, Any]:
    """Of a denial that waits for a human: what an access request about it needs."""
    assert answer.approval is not None
    return {
        "reason": Reason.APPROVAL_REQUIRED.value,
        "evaluation_id": binding.evaluation(agent, Denied(answer.id, answer.approval)),
        "evaluated_at": evaluated_at,
        "access_request": {"expires_at": expires_at, "endpoint": base + REQUESTS},
        "approval": {"id": answer.approval},
    }


def granted(answer: Answer, approved_until: str) -> dict[str, Any]:
    """Of an evaluation that used its approval."""
    return {"approval": {"id": answer.approval, "approved_until": approved_until}}


def refused(answer: Answer) -> dict[str, Any]:
    """Of a denial in spite of an approval: why in the profile's words, what to do next, and the reason that is on record."""
    waits, reason = answer.decision == "approve", Reason(answer.reason)
    known = (_NEW if waits else _OVER).get(reason)
    if known is not None:
        told: dict[str, Any] = {"reason": known, "next_action": _AGAIN if waits else _NEVER}
    elif waits:  # nobody has settled it yet
        told = {"reason": Reason.APPROVAL_REQUIRED.value, "next_action": _LATER, "retry_after": RETRY_S}
    elif reason in _PASSING:
        told = {"reason": "policy_denied", "next_action": _LATER, "retry_after": LATER_S}
    else:
        told = {"reason": "policy_denied", "next_action": _NEVER}
    return told | {"recorded_reason": answer.reason}


_NEW = {
    Reason.APPROVAL_EXPIRED: "approval_expired",
    Reason.APPROVAL_USED: "approval_used",  # ours: the profile lets an approval be used again
    Reason.APPROVAL_UNFIT: "out_of_scope",
}
_OVER = {Reason.APPROVAL_UNFIT: "approval_unverifiable", Reason.APPROVAL_DENIED: "approval_denied"}
_PASSING = (Reason.PAUSED, Reason.FREEZE, Reason.EXHAUSTED)


# ── tasks ──


def task_status(approval: Approval, now_ms: float) -> str:
    """How a task stands. What people have settled stays so: a yes that was used, or not in time, is still `approved`."""
    if approval.verdict is not None:
        return APPROVED if approval.verdict == "approve" else DENIED
    return EXPIRED if now_ms >= approval.expires_ms else PENDING


def task(approval: Approval, now_ms: float, ends_ms: int, base: str) -> dict[str, Any]:
    """The body that tells of a task. `ends_ms`: from when on nobody knows of it any more."""
    name, status = approval.facts.approval, task_status(approval, now_ms)
    made: dict[str, Any] = {
        "id": name, "status": status, "status_endpoint": f"{base}{REQUESTS}/{name}", "expires_at": rfc3339_ms(ends_ms),
    }  # fmt: skip
    if approval.ended is not None and approval.ended.comment:
        made["display"] = {"description": approval.ended.comment}
    told: dict[str, Any] = {"task": made}
    if status == APPROVED:
        assert approval.ended is not None
        told["result"] = {
            "mode": REEVALUATE,
            "approval": {
                "id": name,
                "approved_at": rfc3339_ms(approval.ended.at_ms),
                "approved_until": approval.facts.expires_at,
            },
        }
    return told
