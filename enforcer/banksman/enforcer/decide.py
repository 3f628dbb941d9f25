"""`POST /v1/decide`: from a question to an answer that is on record before it is given.

Who asks, within which limits, what exactly; then the verdict, its record handed to group commit, the broker's
acknowledgement, and in the same event-loop step as writing the answer the last check: is the lease still good, is the
caller still who it was. Whatever fails on the way is a 503 and never a decision; a record that landed all the same is
followed by a `decision.void`.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from banksman.canonical import canonical
from banksman.enforcer.answers import Answer, fingerprint
from banksman.enforcer.aside import HEAVY
from banksman.enforcer.callers import REPLAY_HEADER
from banksman.enforcer.limits import Pending
from banksman.enforcer.question import MAX_QUESTION_BYTES, Question, ReplayedQuestion, normal_time, parse
from banksman.enforcer.record import SERVICE, stamp
from banksman.errors import Unavailable
from banksman.events import DecisionVoid
from banksman.http_body import read_body, require_type
from banksman.http_problem import Problem, problem
from banksman.signing import digest_by
from banksman.stamps import rfc3339, rfc3339_ns, uuid7, uuid7_from

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from banksman.enforcer.callers import Caller
    from banksman.enforcer.replica import Replica
    from banksman.http_problem import Receive, Scope, Send
    from banksman.policy.verdict import Ruling, Verdict

_encode = msgspec.json.Encoder().encode
_JSON = (b"content-type", b"application/json")
RETRY_S = 1
APPROVAL_S = 900  # where a rule says nothing else
OPERATION = ("session", "service", "action", "resource", "branch", "args_hash")
REQUESTED = frozenset(
    (
        *OPERATION,
        "v",
        "call",
        "project",
        "agent",
        "args",
        "rule",
        "policy",
        "policy_version",
        "reason",
        "asked",
        "redactions",
    )
)


class Decider:
    """The hot path. One for the process."""

    def __init__(self, replica: Replica) -> None:
        self._policies, self._state, self._lease = replica.policies, replica.state, replica.lease
        self._records, self._callers, self._aside = replica.records, replica.callers, replica.aside
        self._answers, self._metrics = replica.answers, replica.metrics
        self.acknowledged: Callable[[str], Awaitable[None]] | None = None
        """A named point between the acknowledgement and the last check: tests stop here and change the world."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        began = time.perf_counter_ns()
        fields = scope["fields"]
        if scope["method"] != "POST":
            raise Problem(405, "this method is not for this address", headers={"Allow": "POST"})
        if REPLAY_HEADER in fields:
            await self._replayed(scope, receive, send)
            return
        caller = self._callers.agent(scope)
        limits = caller.limits
        now = limits.take()
        if fields.get(b"content-type") != b"application/json":
            require_type(scope, "application/json")
        body = await read_body(scope, receive, limit=MAX_QUESTION_BYTES)
        asked = _Asking(began, time.thread_time_ns(), len(body) > HEAVY)
        if asked.heavy:
            question = await self._aside(limits, parse, body, Question)
        else:
            question = parse(body, Question)
        limits.session(question.session, now)
        limits.waiting += 1
        try:
            if question.id is None:
                asked.id = uuid7()
                answer, record = await self._answer(caller, question, asked)
                await self._send(scope, send, caller, answer, record)
            else:
                asked.id = question.id
                await self._once(scope, send, caller, question, body, asked)
        finally:
            limits.waiting -= 1
        self._metrics.took(time.perf_counter_ns() - began)

    async def _once(
        self, scope: Scope, send: Send, caller: Caller, question: Question, body: bytes, asked: _Asking
    ) -> None:
        """The same question again gets the same answer, unless anything changed that could change it."""
        while (known := self._answers.find(caller.name, asked.id)) is not None:
            if known.body != fingerprint(body):
                raise problem(409, "another question was asked under this id", field="id")
            if known.waiting is None:
                if known.answer is not None and self._stands(known.answer, known.generation, caller):
                    await self._send(scope, send, caller, known.answer, None)
                    return
                break
            await self._answers.settled(known)
            asked.read = time.thread_time_ns()
        kept = self._answers.begin(caller.name, asked.id, body)
        generation = self._generation()
        given: Answer | None = None
        try:
            answer, record = await self._answer(caller, question, asked)
            await self._send(scope, send, caller, answer, record)
            given = answer
        finally:
            self._answers.finish(kept, given, generation)

    def _generation(self) -> tuple[int, int]:
        """Another value whenever something changed that could change an answer."""
        return self._state.generation, self._policies.generation

    def _stands(self, answer: Answer, generation: object, caller: Caller) -> bool:
        if generation != self._generation():
            return False
        return answer.approval is None or caller.limits.approvals.pending(answer.approval, self._lease.clock())

    async def _replayed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A recorded question, asked again: the same record whenever and wherever it is run, and no approval."""
        run, holder = self._callers.replay(scope)
        require_type(scope, "application/json")
        body = await read_body(scope, receive, limit=MAX_QUESTION_BYTES)
        question = parse(body, ReplayedQuestion)
        asked = _Asking(0, time.thread_time_ns(), len(body) > HEAVY, question.id, normal_time(question.time, "time"))
        caller = self._callers.replayed(question.project, question.agent, holder, run)
        answer, record = await self._answer(caller, question, asked)
        await self._send(scope, send, caller, answer, record)

    async def _answer(self, caller: Caller, question: Question, asked: _Asking) -> tuple[Answer, dict[str, Any]]:
        """Decide, record, wait for the acknowledgement. Problem 503 when that cannot be had; 429 beyond the limits."""
        if not self._lease.valid:
            raise problem(503, "no decision without a lease: nothing was heard from Kafka lately", retry_after=RETRY_S)
        # Controls and spent budgets come here, before policy is asked: `State` and `limits` know them.
        verdict = self._policies.bundle.decide(
            caller.project, caller.name, question.service, question.action, question.resource, question.branch
        )
        ruling, head = verdict.ruling, self._head(caller, asked)
        if asked.heavy:
            record = await self._aside(caller.limits, _record, caller, question, asked.id, verdict, head)
            asked.read = time.thread_time_ns()
        else:
            record = _record(caller, question, asked.id, verdict, head)
        pending = None
        if not caller.replay:
            if ruling.decision == "approve":
                pending = self._pending(caller, record, ruling)
                record["approval"] = pending.approval
            record["latency_us"] = (time.perf_counter_ns() - asked.began) // 1000
            caller.limits.charge(time.thread_time_ns() - asked.read)
        await self._on_record(caller, record, pending)
        if self.acknowledged is not None:
            await self.acknowledged(record["id"])
        answer = Answer(
            id=record["id"],
            decision=ruling.decision,
            tier=ruling.tier,
            rule=ruling.rule,
            policy=ruling.policy,
            policy_version=ruling.policy_version,
            reason=ruling.reason,
            valid_until="",
            approval=record.get("approval"),
        )
        return answer, record

    async def _on_record(self, caller: Caller, record: dict[str, Any], pending: Pending | None) -> None:
        """Return when the decision, and the request for the approval that it waits for, are acknowledged; Problem 503."""
        records = self._records
        decisions, opens = records.decisions, pending is not None and pending.requested is None
        landed = None if caller.replay else partial(self._void, caller, record, "not_acknowledged")
        decision: asyncio.Future[int] | None = None
        try:
            if opens and decisions.room < 2:
                raise Unavailable("the queue is full")
            decision = records.put(decisions, caller.partition, caller.key, record, replay=caller.replay, landed=landed)
            if pending is None:
                await decision
            else:
                requested = pending.requested
                if requested is None:
                    requested = records.put(decisions, caller.partition, caller.key, pending.event)
                    caller.limits.approvals.open(pending, requested)
                await decision
                await asyncio.shield(requested)  # others may wait for the same one
        except Unavailable as error:
            self._metrics.unrecorded += 1
            if decision is not None and decision.done() and decision.exception() is None:
                self._void(caller, record, "approval_not_recorded")
            raise problem(503, f"the decision is not on record: {error}", retry_after=RETRY_S) from None

    async def _send(
        self, scope: Scope, send: Send, caller: Caller, answer: Answer, record: dict[str, Any] | None
    ) -> None:
        """The last check and the answer, in one event-loop step. `record` None: an answer that was given before."""
        flow = scope.get("flow")
        while flow is not None and flow.write_paused:  # a slow reader must not come between the two
            await flow.drain()
        why = "" if self._lease.valid else "lease_ended"
        if not why and self._state.refuses(caller.holder):
            why = "caller_refused"
        if why:
            if record is not None and not caller.replay:
                self._void(caller, record, why)
            raise problem(503, f"the answer was overtaken while it waited ({why}); ask again", retry_after=RETRY_S)
        answer.valid_until = self._lease.until
        out = _encode(answer)
        headers = [_JSON, (b"content-length", b"%d" % len(out))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": out})
        if not caller.replay:
            self._metrics.answers[answer.decision] += 1

    def _head(self, caller: Caller, asked: _Asking) -> dict[str, Any]:
        """How the `decision` begins. In a replay it is the same every time."""
        if caller.replay:
            moment = datetime.fromisoformat(asked.at)
            name = uuid7_from(int(moment.timestamp() * 1000), "decision", caller.replay, asked.id)
            return {"kind": "decision", "v": 1, "id": name, "time": asked.at, "source": SERVICE}
        now = time.time_ns()
        return {
            "kind": "decision", "v": 1, "id": uuid7(now // 1_000_000), "time": rfc3339_ns(now), "source": self._records.source,
        }  # fmt: skip

    def _pending(self, caller: Caller, record: dict[str, Any], ruling: Ruling) -> Pending:
        """The approval that this decision waits for: one that is pending for the identical operation, or a new one."""
        approvals, now = caller.limits.approvals, self._lease.clock()
        operation = tuple(record.get(name) for name in OPERATION)
        pending = approvals.find(operation, now)
        if pending is not None:
            return pending
        approvals.room(now)
        seconds = min((wanted.expires for wanted in ruling.approvers), default=APPROVAL_S)
        event = {name: value for name, value in record.items() if name in REQUESTED} | {
            **stamp(self._records.source),
            "kind": "approval.requested",
            "approval": uuid7(),  # 72 random bits: nobody guesses it, and it opens nothing by itself
            "expires_at": rfc3339(datetime.now(UTC) + timedelta(seconds=seconds)),
            "parent": record["id"],
        }
        return Pending(operation, now + seconds, event)

    def _void(self, caller: Caller, record: dict[str, Any], why: str, _offset: int = -1) -> None:
        """Say on the log that a decision which is, or may be, on record was never answered as such.

        Not in a replay: nobody acts upon its decisions, and its next run records the same bytes again.
        """
        void = DecisionVoid(
            **stamp(self._records.source),
            call=record.get("call"),
            parent=record["id"],
            project=caller.project,
            agent=caller.name,
            session=record["session"],
            reason=why,
        )
        self._records.later(void, caller.name)
        self._metrics.voids += 1


class _Asking:
    """One question on its way. `began`: its head was there; `read`: the thread's own time since when it
    keeps the replica busy (both ns).
    """

    __slots__ = ("at", "began", "heavy", "id", "read")

    def __init__(self, began: int, read: int, heavy: bool, name: str = "", at: str = "") -> None:
        self.began, self.read, self.heavy, self.id = began, read, heavy, name
        self.at = at
        """In a replay, when it was asked first."""


def _record(caller: Caller, question: Question, asked: str, verdict: Verdict, head: dict[str, Any]) -> dict[str, Any]:
    """The `decision`, redacted."""
    record = head
    if question.call is not None:
        record["call"] = question.call
    record["parent"] = asked
    record["project"], record["agent"], record["session"] = caller.project, caller.name, question.session
    record["service"], record["action"] = verdict.service, verdict.action
    if verdict.resource is not None:
        record["resource"] = verdict.resource
    if verdict.branch is not None:
        record["branch"] = verdict.branch
    if question.args is not None:
        record["args"] = question.args
        record["args_hash"] = digest_by(caller.mac, canonical(question.args))
    if question.reason is not None:
        record["asked"] = question.reason
    record = caller.redactor.event(record)
    ruling = verdict.ruling
    record["decision"], record["tier"], record["reason"] = ruling.decision, ruling.tier, ruling.reason
    if ruling.rule is not None:
        record["rule"] = ruling.rule
    if ruling.policy is not None:
        record["policy"], record["policy_version"] = ruling.policy, ruling.policy_version
    if ruling.shadow is not None:
        record["shadow"] = ruling.shadow
    if owner := ruling.owner or caller.owner:  # the policy's word, else that of whoever enrolled the agent
        record["owner"] = owner
    return record
