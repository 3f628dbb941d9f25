"""`POST /access/v1/requests`, `GET /access/v1/requests/{task}`: an agent asks for what it was denied, and waits for the answer.

The denial has opened the approval and told people of it. The request says that it is meant, and why; it is on the log before
it is answered, so every replica knows its task, its key and its words, also after a restart. The task is the approval.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from starlette.responses import Response

from banksman import codec
from banksman.approvals import KEPT_MS, MOST_REQUESTS
from banksman.enforcer import access_request as words
from banksman.enforcer.approving import MOST_SHOWN, now_ms
from banksman.enforcer.aside import HEAVY
from banksman.enforcer.command import awake
from banksman.enforcer.evaluation import question_of
from banksman.enforcer.evaluation import wrong as wrong_field
from banksman.enforcer.question import MAX_QUESTION_BYTES, normal_time, strict
from banksman.enforcer.record import stamp
from banksman.errors import Unavailable
from banksman.events import AccessRequested
from banksman.http_body import read_body, require_type
from banksman.http_problem import Problem, problem
from banksman.stamps import moment_ms

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from banksman.approvals import Approval
    from banksman.enforcer.binding import Denied
    from banksman.enforcer.callers import Caller
    from banksman.enforcer.evaluation import Evaluation
    from banksman.enforcer.replica import Replica

LONGEST_KEY = 255
SAME_MOMENT_S = 1.0
"""A caller may round `expires_at` on its way; what counts is what the log says."""


class _Submitted(NamedTuple):
    """What a request says. `echoed_ms`: when it says that the denial expires; `heavy`: it is too much for the loop."""

    question: Evaluation
    evaluation: str
    echoed_ms: float
    body_hash: str
    heavy: bool


class AccessTasks:
    """The endpoints. Agents only; of a task nobody hears but the agent that asked for it."""

    def __init__(self, replica: Replica) -> None:
        self._replica, self._callers, self._binding = replica, replica.callers, replica.binding
        self._approvals, self._approving = replica.state.approvals, replica.approving

    async def submit(self, request: Request) -> Response:
        """`POST /access/v1/requests`: 202 with the task; 201 where it is settled already."""
        return await _under_its_name(request, self._submit)

    async def status(self, request: Request) -> Response:
        """`GET /access/v1/requests/{task}`: how it stands, with the result once it is approved."""
        return await _under_its_name(request, self._status)

    async def _submit(self, request: Request) -> Response:
        caller = self._callers.agent(request.scope["fields"])
        limits = caller.limits
        limits.take()
        asked = await self._read(request, caller)
        key = _key(request)
        key_hash = self._binding.key(caller.name, key) if key is not None else None
        denied = self._binding.denied(caller.name, asked.evaluation)
        if denied is None:
            raise words.failure(
                words.INVALID_BINDING, "no evaluation of yours has this id", field="denial.evaluation_id"
            )
        limits.waiting += 1
        try:
            approval = await self._bound(caller, asked, denied)
            await self._on_record(caller, asked.question, approval, denied, asked.body_hash, key_hash)
        finally:
            limits.waiting -= 1
        return self._told(request, approval, submitted=True)

    async def _read(self, request: Request, caller: Caller) -> _Submitted:
        """The body. Problem 400, 403, 413 names the field."""
        try:
            require_type(request.scope, "application/json")
        except Problem as refusal:  # these protocols have one word for it
            raise problem(400, refusal.detail, field="Content-Type") from None
        body = await read_body(request.scope, request.receive, limit=MAX_QUESTION_BYTES)
        if not body:
            raise problem(400, "the body is empty")
        heavy = len(body) > HEAVY
        if heavy:
            value, body_hash = await self._replica.aside(caller.limits, self._hashed, body)
        else:
            began = time.thread_time_ns()
            value, body_hash = self._hashed(body)
            caller.limits.charge(time.thread_time_ns() - began)
        try:
            asked = msgspec.convert(value, words.Submission)
        except msgspec.ValidationError as error:
            raise wrong_field(error) from None
        if (unsupported := words.unsupported(asked, caller.name)) is not None:
            raise unsupported
        given = value["denial"]
        if given.get("binding_token") is not None:
            raise words.failure(words.INVALID_BINDING, "none is given out here", field="denial.binding_token")
        try:
            echoed_ms = moment_ms(normal_time(asked.denial.expires_at, "denial.expires_at"))
        except Problem as told:
            raise problem(400, f"denial.expires_at: {told.detail}", field=told.field) from None
        return _Submitted(question_of(caller, value), asked.denial.evaluation_id, echoed_ms, body_hash, heavy)

    def _hashed(self, body: bytes) -> tuple[Any, str]:
        value = strict(body)
        return value, self._binding.body(value)

    async def _bound(self, caller: Caller, asked: _Submitted, denied: Denied) -> Approval:
        """The approval that the denial opened. Problem 400, 410: there is none for what is asked for."""
        approval = await self._approving.named(caller, denied.approval)
        if approval is None:  # it was there: its evaluation id was made by one of us
            raise words.failure(words.EXPIRED_DENIAL, "the denial expired more than a day ago")
        facts = approval.facts
        whole = asked.question.whole(facts.counted)
        if facts.request_hash != await self._binding.hashed(caller, whole, heavy=asked.heavy):
            told = (
                "subject, resource, action, their properties or the context that counts are not those that were denied"
            )
            raise words.failure(words.INVALID_BINDING, told)
        if abs(asked.echoed_ms - approval.expires_ms) > SAME_MOMENT_S * 1000:
            raise words.failure(words.INVALID_BINDING, "this is not when the denial expires", field="denial.expires_at")
        return approval

    async def _on_record(
        self,
        caller: Caller,
        question: Evaluation,
        approval: Approval,
        denied: Denied,
        body_hash: str,
        key_hash: str | None,
    ) -> None:
        """Return when the log has it, here and now or from before. Problem 400, 409, 410, 429: it is not taken; 503."""
        name, agent = approval.facts.approval, caller.name
        if (key_hash, body_hash) in ((one.key_hash, one.body_hash) for one in approval.requests):
            return
        self._refuse(agent, approval, key_hash)
        if self._replica.state.controls.first(caller.project, agent, question.session) is not None:
            raise words.failure(words.NOT_REQUESTABLE, "an operator has stopped the agent, its session or its project")
        awake(self._replica)
        event = AccessRequested(
            **stamp(self._replica.records.source), parent=denied.decision, project=caller.project, agent=agent,
            session=approval.facts.session, approval=name, body_hash=body_hash, key_hash=key_hash,
            asked=self._words(caller, question.reason),
        )  # fmt: skip
        try:
            counted = await self._approving.outcome(await self._replica.records.control(event))
        except Unavailable as error:
            raise problem(503, f"it may or may not be on record: {error}; send it again", retry_after=1) from None
        if not counted:
            self._refuse(agent, approval, key_hash)
            raise words.failure(words.EXPIRED_DENIAL, "the denial expired at the same moment")

    def _words(self, caller: Caller, said: str | None) -> str | None:
        """As people are shown them: without secrets, and cut where they are long."""
        if said is None:
            return None
        shown = {"asked": caller.redactor.text(said, [], "/asked")}
        if len(codec.encode(shown)) > MOST_SHOWN:
            shown = codec.cut(shown, self._replica.records.digest, limit=MOST_SHOWN)
        return shown["asked"]

    def _refuse(self, agent: str, approval: Approval, key_hash: str | None) -> None:
        """Problem 409, 410, 429 where a request that is not known yet is not taken."""
        if key_hash is not None and self._approvals.requested(agent, key_hash) is not None:
            raise words.failure(words.DUPLICATE, "another request was sent under this key", field=words.IDEMPOTENCY_KEY)
        if now_ms() >= approval.expires_ms:
            raise words.failure(words.EXPIRED_DENIAL, f"the denial expired at {approval.facts.expires_at}")
        if len(approval.requests) >= MOST_REQUESTS:
            raise problem(429, f"this was asked for {MOST_REQUESTS} times already, each time otherwise", retry_after=60)

    async def _status(self, request: Request) -> Response:
        caller = self._callers.agent(request.scope["fields"])
        caller.limits.take()
        name = request.path_params["task"]
        approval = self._approvals.get(name)
        if approval is None or not approval.requests:
            approval = await self._approving.named(caller, name)
            if approval is not None and not approval.requests:
                await self._approving.abreast()  # another replica may have taken its request a moment ago
        if approval is None or approval.facts.agent != caller.name or not approval.requests:
            raise words.failure(words.UNKNOWN_TASK, "there is no such task, or it ended more than a day ago")
        if now_ms() >= approval.expires_ms + KEPT_MS:
            raise words.failure(words.TASK_EXPIRED, "the task ended more than a day ago")
        return self._told(request, approval, submitted=False)

    def _told(self, request: Request, approval: Approval, *, submitted: bool) -> Response:
        told = words.task(approval, now_ms(), approval.expires_ms + KEPT_MS, words.base_of(request.scope))
        pending = told["task"]["status"] == words.PENDING
        headers = {"cache-control": "no-store"}
        if pending:
            headers["retry-after"] = str(words.RETRY_S)
        if submitted:
            headers["location"] = told["task"]["status_endpoint"]
        status = 200 if not submitted else 202 if pending else 201
        return Response(codec.encode(told), status, headers=headers, media_type="application/json")


async def _under_its_name(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """Whatever the answer is, with the request's own name for itself."""
    name = request.headers.get("x-request-id")
    try:
        told = await answer(request)
    except Problem as refusal:
        raise refusal if name is None else refusal.beside("X-Request-ID", name) from None
    if name is not None:
        told.headers["x-request-id"] = name
    return told


def _key(request: Request) -> bytes | None:
    """The `Idempotency-Key`; None: it has none. Problem 400."""
    key: bytes | None = request.scope["fields"].get(words.IDEMPOTENCY_KEY.lower().encode())
    if key is not None and not (0 < len(key) <= LONGEST_KEY and key.isascii() and key.decode("latin-1").isprintable()):
        raise problem(
            400,
            f"Idempotency-Key: must be 1 to {LONGEST_KEY} printable characters of ASCII",
            field=words.IDEMPOTENCY_KEY,
        )
    return key
