"""The approvals' inbox: `/v1/approvals`. What waits, how it stands, and the answers of people who may give them.

A vote is a record in `control`, judged where it lies: of two who answer at once the first offset counts, the other gets 409.
What is shown begins with what the enforcer knows by itself; what the agent says stands last, under its name.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.responses import Response

from banksman import codec
from banksman.enforcer.admin import body_of
from banksman.enforcer.approving import now_ms
from banksman.enforcer.command import awake
from banksman.enforcer.record import stamp
from banksman.errors import Unavailable
from banksman.events import Vote, is_uuid
from banksman.http_problem import problem
from banksman.identities import Agent
from banksman.stamps import rfc3339_ms

if TYPE_CHECKING:
    from starlette.requests import Request

    from banksman.approvals import Approval
    from banksman.enforcer.replica import Replica
    from banksman.identities import Operator

STATUSES = ("pending", "approved", "denied", "expired", "used", "all")
LONGEST_WAIT_S = 60.0
MOST = 500
MOST_WAITING = 64
"""Requests of one caller that wait for an answer."""
BRIEF = 1024
_NO_STORE = {"cache-control": "no-store"}


class Verdict(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an answer to an approval."""

    verdict: Literal["approve", "deny"]
    comment: Annotated[str, Meta(max_length=1000)] | None = None
    """For the agent's owner and the log."""


class Inbox:
    """The endpoints. For operators; an agent sees its own approvals and no others."""

    def __init__(self, replica: Replica) -> None:
        self._replica, self._callers = replica, replica.callers
        self._approvals = replica.state.approvals
        self._waiting: Counter[str] = Counter()

    async def list_all(self, request: Request) -> Response:
        """`GET /v1/approvals?status=pending`: the newest first, MOST at the most, without what agents say at length."""
        who = self._reader(request)
        status = request.query_params.get("status", "pending")
        if status not in STATUSES:
            raise problem(422, f"must be one of {', '.join(STATUSES)}", field="status")
        now = now_ms()
        every = self._approvals.of(who.name) if isinstance(who, Agent) else self._approvals.all()
        began = time.thread_time_ns()
        found = islice((one for one in every if status in ("all", one.status(now))), MOST)
        answer = _json({"approvals": [told(one, now, brief=True) for one in found]})
        if isinstance(who, Agent):
            self._callers.agent(request.scope["fields"]).limits.charge(time.thread_time_ns() - began)
        return answer

    async def one(self, request: Request) -> Response:
        """`GET /v1/approvals/{id}?wait=25`: how it stands; with `wait` (seconds) as soon as it is not pending any more."""
        who = self._reader(request)
        approval, clock = await self._found(request, who), self._replica.lease.clock
        until = clock() + _seconds(request)
        if self._waiting[who.name] >= MOST_WAITING:
            raise problem(429, f"{MOST_WAITING} requests of {who.name} wait for approvals already", retry_after=1)
        self._waiting[who.name] += 1
        try:
            while approval.status(now_ms()) == "pending":
                wait = min(until - clock(), (approval.expires_ms - now_ms()) / 1000 + 0.001)
                if wait <= 0:
                    break
                await self._replica.approving.settled(approval, wait)
        finally:
            self._waiting[who.name] -= 1
            if not self._waiting[who.name]:
                del self._waiting[who.name]
        self._callers.anybody(request.scope)  # the token may have been rotated out meanwhile
        return _json(told(approval, now_ms()))

    async def vote(self, request: Request) -> Response:
        """`POST /v1/approvals/{id}`: an approver's answer. 403: the policy wants others; 409: it is settled, or known."""
        by = self._callers.operator(request.scope, "approver")
        asked = await body_of(request, Verdict)
        approval = await self._found(request, by)
        self._refuse(approval, by)
        vote = Vote(
            **stamp(self._replica.records.source), by=by.name, approval=approval.facts.approval, verdict=asked.verdict,
            comment=asked.comment,
        )  # fmt: skip
        awake(self._replica)
        try:
            counted = await self._replica.approving.outcome(await self._replica.records.control(vote))
        except Unavailable as error:
            raise problem(503, f"it may or may not count: {error}", retry_after=1) from None
        if not counted:
            self._refuse(approval, by)
            raise problem(409, "it did not count: the approval ran out at the same moment")
        return _json(told(approval, now_ms()))

    def _refuse(self, approval: Approval, by: Operator) -> None:
        """Problem 403, 409 where this person's answer counts for nothing."""
        if approval.about(by.name):
            raise problem(403, "it is about you: somebody else has to answer")
        if not approval.may_vote(by.name):
            wanted = sorted({name for one in approval.facts.voters for name in one.any})
            raise problem(403, f"the policy wants the answer of {', '.join(wanted)}")
        if approval.verdict is not None:
            assert approval.ended is not None
            word = "approved" if approval.verdict == "approve" else "denied"
            raise problem(409, f"{approval.ended.by} has {word} it already")
        if approval.status(now_ms()) == "expired":
            raise problem(409, f"it ran out at {approval.facts.expires_at}: the answer was no")
        if by.name in approval.votes:
            raise problem(409, "you have answered already; others have to agree")

    def _reader(self, request: Request) -> Agent | Operator:
        who = self._callers.anybody(request.scope)
        if isinstance(who, Agent):
            self._callers.agent(request.scope["fields"]).limits.take()
        elif not who.may("viewer"):
            raise problem(403, "this needs the role viewer")
        return who

    async def _found(self, request: Request, who: Agent | Operator) -> Approval:
        name = request.path_params["approval"]
        if is_uuid(name) and not self._approvals.knows(name):
            await self._replica.approving.abreast()  # another replica may have opened it a moment ago
        approval = self._approvals.get(name)
        if approval is None or not _may_see(who, approval):
            raise problem(404, "there is no such approval, or it ended more than a day ago")
        return approval


def told(approval: Approval, now: float, *, brief: bool = False) -> dict[str, Any]:
    """An approval as JSON. `brief`: arguments and words of more than BRIEF bytes are left out, and `brief` says so."""
    facts = approval.facts
    args, says = facts.args, facts.asked
    if brief and args is not None and len(codec.encode(args)) > BRIEF:
        args = None
    if brief and says is not None and len(says) > BRIEF:
        says = None
    return {
        "approval": facts.approval,
        "status": approval.status(now),
        "project": facts.project,
        "agent": facts.agent,
        "owner": facts.owner,
        "session": facts.session,
        "service": facts.service,
        "action": facts.action,
        "resource": facts.resource,
        "subject": facts.subject,
        "branch": facts.branch,
        "args": args,
        "args_hash": facts.args_hash,
        "rule": facts.rule,
        "policy_version": facts.policy_version,
        "requested_at": rfc3339_ms(approval.opened_ms),
        "expires_at": facts.expires_at,
        "wanted": [{"any": one.any, "min": one.min} for one in facts.voters],
        "votes": [
            {"by": one.by, "verdict": one.verdict, "comment": one.comment, "at": rfc3339_ms(one.at_ms)}
            for one in approval.votes.values()
        ],
        "used_by": approval.use.request if approval.use is not None else None,
        "brief": (args, says) != (facts.args, facts.asked),
        "agent_says": says,
    }


def _json(value: dict[str, Any]) -> Response:
    return Response(codec.encode(value), headers=_NO_STORE, media_type="application/json")


def _may_see(who: Agent | Operator, approval: Approval) -> bool:
    return not isinstance(who, Agent) or who.name == approval.facts.agent


def _seconds(request: Request) -> float:
    given = request.query_params.get("wait", "0")
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_WAIT_S:
        raise problem(422, f"must be seconds from 0 to {LONGEST_WAIT_S:g}", field="wait")
    return seconds
