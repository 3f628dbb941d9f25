"""`POST /v1/decide`: from a question to an answer that is on record before it is given.

Who asks, within which limits, what exactly; then the verdict, its record handed to group commit, the broker's
acknowledgement, and in the same event-loop step as writing the answer the last check: is the lease still good, is the
caller still who it was, does no control forbid by now what was allowed. Whatever fails on the way is a 503 and never a
decision; a record that landed all the same is followed by a `decision.void`.

The usual question goes the same way without ASGI: `banksman.enforcer.short_way`.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from banksman.bus import nothing
from banksman.enforcer.answers import Answer, fingerprint
from banksman.enforcer.approving import now_ms
from banksman.enforcer.aside import HEAVY
from banksman.enforcer.asking import Asking, Given
from banksman.enforcer.budgets import Exhausted, Unknown, counted
from banksman.enforcer.callers import REPLAY_HEADER
from banksman.enforcer.decision import answer_of, held, record_of, spent
from banksman.enforcer.limits import Pending
from banksman.enforcer.question import (
    MAX_QUESTION_BYTES,
    Question,
    ReplayedQuestion,
    normal_time,
    parse,
)
from banksman.enforcer.record import SERVICE, stamp
from banksman.errors import Unavailable
from banksman.events import DecisionVoid
from banksman.http_body import read_body, require_type
from banksman.http_problem import Problem, problem
from banksman.policy.verdict import Reason
from banksman.stamps import rfc3339_ns, uuid7, uuid7_from

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from banksman.enforcer.callers import Caller
    from banksman.enforcer.replica import Replica
    from banksman.http_problem import Receive, Scope, Send
    from banksman.policy.verdict import Ruling, Verdict

_encode = msgspec.json.Encoder().encode
_JSON = (b"content-type", b"application/json")
RETRY_S = 1

_ASKED_ANEW = (Reason.APPROVAL_EXPIRED, Reason.APPROVAL_USED, Reason.APPROVAL_UNFIT)
"""Why the caller's own approval is not good for a question that another one can be given for. After a no, nobody is asked."""


class Decider:
    """The hot path. One for the process."""

    def __init__(self, replica: Replica) -> None:
        self.policies, self._state, self.lease = replica.policies, replica.state, replica.lease
        self._controls, self._approving, self._budgets = replica.state.controls, replica.approving, replica.budgets
        self.records, self.callers, self.aside = replica.records, replica.callers, replica.aside
        self.answers, self.metrics = replica.answers, replica.metrics
        self.binding = replica.binding
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
        caller = self.callers.agent(fields)
        limits = caller.limits
        now = limits.take()
        if fields.get(b"content-type") != b"application/json":
            require_type(scope, "application/json")
        body = await read_body(scope, receive, limit=MAX_QUESTION_BYTES)
        asked = Asking(began, time.thread_time_ns(), len(body) > HEAVY)
        if asked.heavy:
            question = await self.aside(limits, parse, body, Question)
        else:
            question = parse(body, Question)
        limits.session(question.session, now)
        limits.waiting += 1
        try:
            if question.id is None:
                asked.id = uuid7()
                answer, record = await self.decided(caller, question, asked)
                await self._send(scope, send, caller, question.session, answer, record)
            else:
                asked.id = question.id
                await self._once(scope, send, caller, question, body, asked)
        except Problem:
            self.give_back(asked)
            raise
        finally:
            limits.waiting -= 1
        self.metrics.took(time.perf_counter_ns() - began)

    async def _once(
        self, scope: Scope, send: Send, caller: Caller, question: Question, body: bytes, asked: Asking
    ) -> None:
        """The same question again gets the same answer, unless anything changed that could change it."""
        while (known := self.answers.find(caller.name, asked.id)) is not None:
            if known.body != fingerprint(body):
                raise problem(409, "another question was asked under this id", field="id")
            if known.waiting is None:
                if known.answer is not None and self._stands(caller, known.answer, known.generation):
                    await self._send(scope, send, caller, question.session, known.answer, None)
                    return
                break
            await self.answers.settled(known)
            asked.read = time.thread_time_ns()
        kept = self.answers.begin(caller.name, asked.id, body)
        generation = self.generation(caller)
        given: Answer | None = None
        try:
            answer, record = await self.decided(caller, question, asked)
            await self._send(scope, send, caller, question.session, answer, record)
            given = answer
        finally:
            self.answers.finish(kept, given, generation)

    def verdict(self, caller: Caller, question: Question) -> Verdict:
        """What holds for the question: a control that is in force, a budget that is spent, else the policy. Neither is about
        replays. Problem 503: whether the budget is spent is not known, and only then it would not be denied.
        """
        bundle = self.policies.bundle
        verdict = bundle.decide(
            caller.project, caller.name, question.service, question.action, question.resource, question.branch,
            question.facts(bundle, caller.project),
        )  # fmt: skip
        if caller.replay:
            return verdict
        control = self._controls.first(caller.project, caller.name, question.session)
        if control is not None:
            return held(verdict, control)
        budget = self._budgets.held(caller.project, caller.name, caller.partition)
        if isinstance(budget, Exhausted):
            return spent(verdict, budget)
        if budget is None or budget.shadow or verdict.ruling.decision == "deny":
            return verdict
        why = f"budget_unknown: {counted(budget)}, so nobody can say whether its budget is spent"
        raise problem(503, why, retry_after=RETRY_S)

    def _judged(self, caller: Caller, question: Question) -> Verdict:
        """The same, where a Problem is the answer."""
        try:
            return self.verdict(caller, question)
        except Problem:
            self._budgets.unknown += 1
            raise

    def generation(self, caller: Caller) -> tuple[object, ...]:
        """Another value whenever something changed that could change an answer."""
        budget = None if caller.replay else self._budgets.held(caller.project, caller.name, caller.partition)
        told = (budget.unit, budget.then) if isinstance(budget, Exhausted) else isinstance(budget, Unknown)
        policy = self.policies.bundle.policies.get(caller.project)
        moment = policy.moment(time.time()) if policy is not None else ()
        return self._state.generation, self.policies.generation, told, moment

    def _stands(self, caller: Caller, answer: Answer, generation: object) -> bool:
        if generation != self.generation(caller):
            return False
        if answer.decision != "approve" or answer.approval is None:
            return True
        approval = self._state.approvals.get(answer.approval)
        return approval is None or approval.status(now_ms()) == "pending"

    async def _replayed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A recorded question, asked again: the same record whenever and wherever it is run, and no approval."""
        run, holder = self.callers.replay(scope)
        require_type(scope, "application/json")
        body = await read_body(scope, receive, limit=MAX_QUESTION_BYTES)
        question = parse(body, ReplayedQuestion)
        asked = Asking(0, time.thread_time_ns(), len(body) > HEAVY, question.id, normal_time(question.time, "time"))
        caller = self.callers.replayed(question.project, question.agent, holder, run)
        answer, record = await self.decided(caller, question, asked)
        await self._send(scope, send, caller, question.session, answer, record)

    async def decided(self, caller: Caller, question: Question, asked: Asking) -> tuple[Answer, dict[str, Any]]:
        """Decide, record, wait for the acknowledgement. Problem 503 when that cannot be had; 429 beyond the limits."""
        if not self.lease.valid:
            raise problem(503, "no decision without a lease: nothing was heard from Kafka lately", retry_after=RETRY_S)
        verdict = self._judged(caller, question)
        ruling, head = verdict.ruling, self._head(caller, verdict.ruling, asked)
        if asked.heavy:
            record = await self.aside(caller.limits, record_of, caller, question, asked.id, verdict, head)
            asked.read = time.thread_time_ns()
        else:
            record = record_of(caller, question, asked.id, verdict, head)
        pending: Pending | None = None
        if not caller.replay:
            _pays(caller, asked)
            if ruling.decision == "approve":
                ruling, pending = await self._waits(caller, question, asked, record, verdict)
            record["latency_us"] = (time.perf_counter_ns() - asked.began) // 1000
        await self._on_record(caller, record, ruling, pending)
        if self.acknowledged is not None:
            await self.acknowledged(record["id"])
        return answer_of(record, ruling), record

    async def _waits(
        self, caller: Caller, question: Question, asked: Asking, record: dict[str, Any], verdict: Verdict
    ) -> tuple[Ruling, Pending | None]:
        """What becomes of an `approve`: with an approval that fits and is given an `allow`; else it waits for one, which may
        have to be opened.
        """
        named, ruling = question.approval, verdict.ruling
        if named is None:
            return ruling, await self._asks(caller, question, asked, record, verdict, ruling)
        known = await self._approving.named(caller, named)
        counted = known.facts.counted if known is not None else []  # what counted when it was opened
        unshown = await self.binding.unshown(caller, question, record, verdict, counted, heavy=asked.heavy)
        ruling, asked.claim = await self._approving.use(known, record, ruling, unshown)
        asked.read = time.thread_time_ns()
        again = self._judged(caller, question)
        _pays(caller, asked)
        if again.ruling != verdict.ruling:  # that took a while
            raise problem(
                503, "policy or controls changed while the approval was taken; ask again", retry_after=RETRY_S
            )
        anew = known is not None and ruling.reason in _ASKED_ANEW and question.asks_anew()
        if anew:
            ruling = msgspec.structs.replace(verdict.ruling, reason=ruling.reason)
        record["decision"], record["tier"], record["reason"] = ruling.decision, ruling.tier, ruling.reason
        if ruling.reason is not Reason.EXHAUSTED:
            record.pop("budget", None)
        if anew:
            return ruling, await self._asks(caller, question, asked, record, verdict, ruling)
        if known is not None and ruling.reason is not Reason.APPROVAL_UNFIT:
            record["approval"], asked.expires_at = named, known.facts.expires_at
        return ruling, None

    async def _asks(
        self,
        caller: Caller,
        question: Question,
        asked: Asking,
        record: dict[str, Any],
        verdict: Verdict,
        ruling: Ruling,
    ) -> Pending | None:
        """The approval that it waits for stands in `record` -> it, while it is still to be opened."""
        counted = question.counted(self.policies.bundle, caller.project)
        unshown = await self.binding.unshown(caller, question, record, verdict, counted, heavy=asked.heavy)
        found = self._approving.pending(caller, record, ruling, unshown)
        if isinstance(found, Pending):
            record["approval"], asked.expires_at = found.approval, found.event["expires_at"]
            return found
        record["approval"], asked.expires_at = found.facts.approval, found.facts.expires_at
        return None

    def give_back(self, asked: Asking) -> None:
        """It got no answer: the approval that it took, if it did, is as good as before."""
        if asked.claim is not None:
            self._approving.undo(asked.claim)
            asked.claim = None

    async def _on_record(self, caller: Caller, record: dict[str, Any], ruling: Ruling, pending: Pending | None) -> None:
        """Return when the decision, and what belongs to its approval, are acknowledged; Problem 503."""
        records = self.records
        decisions, opens = records.decisions, pending is not None and pending.requested is None
        landed = nothing if caller.replay else partial(self.void, caller, record, "not_acknowledged")
        decision: asyncio.Future[int] | None = None
        try:
            if decisions.room < 2 and (opens or ruling.reason is Reason.APPROVED):
                raise Unavailable("the queue is full")
            decision = records.put(decisions, caller.partition, caller.key, record, replay=caller.replay, landed=landed)
            if pending is not None:
                requested = pending.requested or self._approving.open(caller, record, ruling, pending)
                await decision
                await asyncio.shield(requested)  # others may wait for the same one
            elif ruling.reason is Reason.APPROVED:
                used = self._approving.used(caller, record)
                await decision  # first: if only this one lands, it is voided
                await used
            else:
                await decision
        except Unavailable as error:
            self.metrics.unrecorded += 1
            if decision is not None and decision.done() and decision.exception() is None:
                self.void(caller, record, "approval_not_recorded")
            raise problem(503, f"the decision is not on record: {error}", retry_after=RETRY_S) from None

    async def _send(
        self, scope: Scope, send: Send, caller: Caller, session: str, answer: Answer, record: dict[str, Any] | None
    ) -> None:
        """The answer to one question, as `POST /v1/decide` gives it."""
        await self.send(scope, send, caller, [Given(session, answer, record)], lambda: _encode(answer))

    async def send(
        self,
        scope: Scope,
        send: Send,
        caller: Caller,
        given: Sequence[Given],
        body: Callable[[], bytes],
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """The last check of all that is answered together, and the answer, in one event-loop step. `body`: what is written,
        made when `valid_until` is known. Problem 503: one of them is overtaken, so none of them is answered.
        """
        flow = scope.get("flow")
        while flow is not None and flow.write_paused:  # a slow reader must not come between the two
            await flow.drain()
        why = next((why for one in given if (why := self._overtaken(caller, one.session, one.answer))), "")
        if why:
            raise self._too_late(caller, [one.record for one in given], why)
        for one in given:
            one.answer.valid_until = self.lease.until
        out = body()
        length = (b"content-length", b"%d" % len(out))
        await send({"type": "http.response.start", "status": 200, "headers": [_JSON, length, *headers]})
        await send({"type": "http.response.body", "body": out})
        if not caller.replay:
            for one in given:
                self.metrics.answers[one.answer.decision] += 1
                if one.record is not None and "shadow" in one.record:
                    self.metrics.shadow[one.record["shadow"]] += 1

    def checked(self, caller: Caller, session: str, answer: Answer, record: dict[str, Any] | None) -> bytes:
        """The last check -> the answer's bytes, to be written in the same step of the loop. Problem 503: it is overtaken."""
        why = self._overtaken(caller, session, answer)
        if why:
            raise self._too_late(caller, [record], why)
        answer.valid_until = self.lease.until
        return _encode(answer)

    def _overtaken(self, caller: Caller, session: str, answer: Answer) -> str:
        """Why an answer must not go out any more; "" when it may."""
        if not self.lease.valid:
            return "lease_ended"
        if self._state.refuses(caller.holder):
            return "caller_refused"
        controlled = answer.decision != "deny" and not caller.replay
        if controlled and self._controls.first(caller.project, caller.name, session) is not None:
            return "controlled"
        return ""

    def _too_late(self, caller: Caller, records: Sequence[dict[str, Any] | None], why: str) -> Problem:
        """The 503, after what is on record was taken back. None: an answer that was given before."""
        if not caller.replay:
            for record in records:
                if record is not None:
                    self.void(caller, record, why)
        return problem(503, f"the answer was overtaken while it waited ({why}); ask again", retry_after=RETRY_S)

    def _head(self, caller: Caller, ruling: Ruling, asked: Asking) -> dict[str, Any]:
        """How the `decision` begins. In a replay it is the same every time."""
        if caller.replay:
            moment = datetime.fromisoformat(asked.at)
            name = uuid7_from(int(moment.timestamp() * 1000), "decision", caller.replay, asked.id)
            return {"kind": "decision", "v": 1, "id": name, "time": asked.at, "source": SERVICE}
        return self.begin(caller, ruling)

    def begin(self, caller: Caller, ruling: Ruling) -> dict[str, Any]:
        """How a `decision` of this moment begins; with the budget that is spent, where that is the reason."""
        now = time.time_ns()
        head: dict[str, Any] = {
            "kind": "decision", "v": 1, "id": uuid7(now // 1_000_000), "time": rfc3339_ns(now), "source": self.records.source,
        }  # fmt: skip
        if ruling.reason is Reason.EXHAUSTED:
            budget = self._budgets.held(caller.project, caller.name, caller.partition)
            if isinstance(budget, Exhausted):
                head["budget"] = budget.told()
        return head

    def void(self, caller: Caller, record: dict[str, Any], why: str, _offset: int = -1) -> None:
        """Say on the log that a decision which is, or may be, on record was never answered as such.

        Not in a replay: nobody acts upon its decisions, and its next run records the same bytes again.
        """
        void = DecisionVoid(
            **stamp(self.records.source),
            call=record.get("call"),
            parent=record["id"],
            project=caller.project,
            agent=caller.name,
            session=record["session"],
            reason=why,
        )
        self.records.later(void, caller.name)
        self.metrics.voids += 1


def _pays(caller: Caller, asked: Asking) -> None:
    """For the time that its question kept the replica busy. Before it may be refused, or waits: in that time others do."""
    caller.limits.charge(time.thread_time_ns() - asked.read)
