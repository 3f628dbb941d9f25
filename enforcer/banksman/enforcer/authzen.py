"""`POST /access/v1/evaluation`, `/evaluations`: the questions of OpenID AuthZEN, decided and recorded as `/v1/decide` does it.

    body -> one question, or a batch of them (defaults put in)
         -> each by `Decider`: verdict, record, acknowledgement
         -> all together: the last check, and in the same event-loop step {decision: true or false, context: why}

Only `allow` is true: a caller may ignore the context, so an `approve` is false. An item that cannot be understood is false,
with `context.error`; what cannot be decided or recorded is a 503 for all of it, and what was recorded is taken back.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import JSONResponse

from banksman.enforcer import access_request as profile
from banksman.enforcer.aside import HEAVY
from banksman.enforcer.asking import Asking, Given
from banksman.enforcer.callers import REPLAY_HEADER
from banksman.enforcer.evaluation import KEYS, check_defaults, question_of
from banksman.enforcer.question import MAX_QUESTION_BYTES, strict
from banksman.http_body import read_body, require_type
from banksman.http_problem import Problem, problem
from banksman.policy.verdict import MEANING, Reason
from banksman.stamps import uuid7

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.enforcer.callers import Caller
    from banksman.enforcer.decide import Decider
    from banksman.http_problem import Receive, Scope, Send

EVALUATION, EVALUATIONS = "/access/v1/evaluation", "/access/v1/evaluations"
METADATA = "/.well-known/authzen-configuration"
MOST_ITEMS = 100
SEMANTICS = ("execute_all", "deny_on_first_deny", "permit_on_first_permit")

_encode = msgspec.json.Encoder().encode
_REQUEST_ID = b"x-request-id"


@dataclass(frozen=True)
class _Batch:
    """What was asked. `alone`: as one question, answered as such."""

    items: Sequence[Any]
    heavy: bool
    """Whether they are too much to be hashed and redacted in the loop, one behind the other."""
    semantic: str = SEMANTICS[0]
    alone: bool = False


_Outcome = Given | Problem
"""Of one item: its answer, or what is wrong with it."""


class AuthZen:
    """One of the two endpoints, an ASGI application. `several`: a body may hold a batch."""

    def __init__(self, decider: Decider, *, several: bool) -> None:
        self._decider, self._several = decider, several

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, under the request's own name for itself, whatever the answer is."""
        name = scope["fields"].get(_REQUEST_ID)
        try:
            await self._answer(scope, receive, send, [(_REQUEST_ID, name)] if name is not None else [])
        except Problem as refusal:
            raise refusal if name is None else refusal.beside("X-Request-ID", name.decode("latin-1")) from None

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Sequence[tuple[bytes, bytes]]) -> None:
        began, decider, fields = time.perf_counter_ns(), self._decider, scope["fields"]
        if REPLAY_HEADER in fields:
            raise problem(400, "there is no replay of this call", field="Banksman-Replay")
        caller = decider.callers.agent(fields)
        limits = caller.limits
        now = limits.take()
        try:
            require_type(scope, "application/json")
        except Problem as refusal:  # this protocol has one word for it
            raise problem(400, refusal.detail, field="Content-Type") from None
        body = await read_body(scope, receive, limit=MAX_QUESTION_BYTES)
        if not body:
            raise problem(400, "the body is empty")
        read = time.thread_time_ns()
        if len(body) > HEAVY:
            asked = await decider.aside(limits, strict, body)
            read = time.thread_time_ns()
        else:
            asked = strict(body)
        batch = self._batch(caller, asked, len(body))
        limits.charge(time.thread_time_ns() - read)
        further = len(batch.items) - 1
        limits.several(further)
        limits.waiting += 1 + further
        base = profile.base_of(scope)
        try:
            outcomes = await self._all(caller, batch, began, now)
            given = [one for one in outcomes if isinstance(one, Given)]
            try:
                await decider.send(
                    scope, send, caller, given, lambda: self._written(caller, outcomes, batch, base), headers
                )
            except Problem:  # it was not answered
                self._give_back(given)
                raise
        finally:
            limits.waiting -= 1 + further
        decider.metrics.took(time.perf_counter_ns() - began)

    def _batch(self, caller: Caller, asked: Any, size: int) -> _Batch:
        """Problem 400: it is neither one question nor a batch; 413: too much in all."""
        if not isinstance(asked, dict):
            raise problem(400, "the body must be a JSON object")
        if not self._several:
            return _Batch([asked], size > HEAVY, alone=True)
        items, options = asked.get("evaluations", []), asked.get("options", {})
        if not isinstance(items, list):
            raise problem(400, "evaluations: must be an array of objects", field="evaluations")
        if len(items) > MOST_ITEMS:
            raise problem(400, f"evaluations: more than {MOST_ITEMS} are not decided at once", field="evaluations")
        if not isinstance(options, dict):
            raise problem(400, "options: must be an object", field="options")
        semantic = options.get("evaluations_semantic", SEMANTICS[0])
        if semantic not in SEMANTICS:
            raise problem(
                400, f"options.evaluations_semantic: must be one of {', '.join(SEMANTICS)}",
                field="options.evaluations_semantic",
            )  # fmt: skip
        if not items:
            return _Batch([asked], size > HEAVY, alone=True)
        defaults = {key: asked[key] for key in KEYS if key in asked}
        check_defaults(caller, defaults)
        weights = {key: len(_encode(value)) for key, value in defaults.items()}
        size = sum(len(_encode(item)) for item in items)
        size += sum(weights[key] for item in items if isinstance(item, dict) for key in weights if key not in item)
        if size > MAX_QUESTION_BYTES:  # else a large default would be recorded with every item
            raise problem(413, f"with its defaults put in, the batch is larger than {MAX_QUESTION_BYTES} bytes")
        return _Batch([defaults | item if isinstance(item, dict) else item for item in items], size > HEAVY, semantic)

    async def _all(self, caller: Caller, batch: _Batch, began: int, now: float) -> list[_Outcome]:
        """The outcomes in the order of the items, as far as they are executed. Problem: there is no answer at all."""
        outcomes: list[_Outcome | BaseException] = []
        asked = (self._one(caller, item, batch.heavy, began, now) for item in batch.items)
        if batch.semantic == SEMANTICS[0]:
            # At once: their records share a batch on their way to the log. Each settles, so that what landed is known.
            outcomes += await asyncio.gather(*asked, return_exceptions=True)
        else:
            stops_at = batch.semantic == "permit_on_first_permit"
            for one in asked:
                outcomes += await asyncio.gather(one, return_exceptions=True)
                if _is_fatal(outcomes[-1]) or _permits(outcomes[-1]) is stops_at:
                    break
        told: list[_Outcome] = []
        fatal: BaseException | None = None
        for outcome in outcomes:
            if isinstance(outcome, Given) or (
                isinstance(outcome, Problem) and not _is_fatal(outcome) and not batch.alone
            ):
                told.append(outcome)
            else:
                fatal = fatal or outcome
        if fatal is not None:
            given = [outcome for outcome in told if isinstance(outcome, Given)]
            for answered in given:
                if answered.record is not None:
                    self._decider.void(caller, answered.record, "not_answered")
            self._give_back(given)
            raise fatal
        return told

    def _give_back(self, given: Sequence[Given]) -> None:
        for one in given:
            if one.asked is not None:
                self._decider.give_back(one.asked)

    async def _one(self, caller: Caller, item: Any, heavy: bool, began: int, now: float) -> _Outcome:
        """One item, decided and on record; or what is wrong with it, or with everything."""
        asking = Asking(began, time.thread_time_ns(), heavy, uuid7())
        try:
            question = question_of(caller, item)
            asking.named = question.approval is not None
            caller.limits.session(question.session, now)
            answer, record = await self._decider.decided(caller, question, asking)
        except Problem as refusal:
            self._decider.give_back(asking)
            return refusal
        return Given(question.session, answer, record, asking)

    def _written(self, caller: Caller, outcomes: Sequence[_Outcome], batch: _Batch, base: str) -> bytes:
        told = [self._told(caller, one, base) if isinstance(one, Given) else _error(one) for one in outcomes]
        return _encode(told[0] if batch.alone else {"evaluations": told})

    def _told(self, caller: Caller, given: Given, base: str) -> dict[str, Any]:
        """The decision, and in `context` what `/v1/decide` would say of it, and what the profile has for it."""
        answer, asked, record = given.answer, given.asked, given.record
        assert asked is not None
        assert record is not None
        context: dict[str, Any] = {
            "id": answer.id,
            "reason": answer.reason,
            "message": MEANING[Reason(answer.reason)],
            "tier": answer.tier,
            "rule": answer.rule,
            "policy_version": answer.policy_version,
            "valid_until": answer.valid_until,
            "budget": answer.budget,
        }
        if answer.decision == "approve":
            context |= profile.requestable(
                self._decider.binding, caller.name, answer, record["time"], asked.expires_at, base
            )
        elif answer.reason == Reason.APPROVED:
            context |= profile.granted(answer, asked.expires_at)
        if asked.named and answer.decision != "allow":
            context |= profile.refused(answer)
        return {
            "decision": answer.decision == "allow",
            "context": {name: value for name, value in context.items() if value is not None},
        }


def _is_fatal(outcome: _Outcome | BaseException) -> bool:
    """Whether it is no matter of the one item."""
    return outcome.status >= 500 if isinstance(outcome, Problem) else isinstance(outcome, BaseException)


def _permits(outcome: _Outcome | BaseException) -> bool:
    return isinstance(outcome, Given) and outcome.answer.decision == "allow"


# ── what is answered ──


def _error(refusal: Problem) -> dict[str, Any]:
    """An item that was not decided: nothing is on record of it, and it is a no."""
    error: dict[str, Any] = {"status": refusal.status, "message": refusal.detail}
    if refusal.field:
        error["field"] = refusal.field
    return {"decision": False, "context": {"error": error}}


async def metadata(request: Request) -> Response:
    """`GET /.well-known/authzen-configuration`: where these calls are, by the name that this server was asked under."""
    base = profile.base_of(request.scope)
    told = {
        "policy_decision_point": base,
        "access_evaluation_endpoint": base + EVALUATION,
        "access_evaluations_endpoint": base + EVALUATIONS,
        profile.ENDPOINT: base + profile.REQUESTS,
        "capabilities": [profile.CAPABILITY],
    }
    return JSONResponse(told, headers={"Cache-Control": "no-store"})
