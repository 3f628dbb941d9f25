"""The short way of the usual question: the same steps as `Decider`'s, in callbacks, without ASGI and without a task.

    exchange -> who, limits, question, verdict, record -> group commit ... its acknowledgement -> last check -> answer

Every other question (it was asked before, it waits for an approval, it is refused, it is large) is for the `Decider`,
which finds the same and has the words for it; nothing was done by then but to charge the limits, which is given back.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from banksman.enforcer.callers import REPLAY_HEADER
from banksman.enforcer.decide import RETRY_S
from banksman.enforcer.decision import answer_of, record_of
from banksman.enforcer.limits import REQUEST_NS, WATCHED
from banksman.enforcer.question import Question, parse
from banksman.errors import Unavailable
from banksman.http_problem import Problem, problem
from banksman.stamps import uuid7

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from banksman.enforcer.answers import Answer, Asked
    from banksman.enforcer.callers import Caller
    from banksman.enforcer.decide import Decider
    from banksman.enforcer.limits import AgentLimits
    from banksman.http_shortcuts import Exchange
    from banksman.policy.verdict import Ruling

_HEAD = b"content-type: application/json\r\n"


class ShortWay:
    """A `Direct` for `POST /v1/decide`."""

    def __init__(self, decider: Decider) -> None:
        self.decider = decider
        self._late: set[asyncio.Task[None]] = set()

    def __call__(self, exchange: Exchange) -> bool:
        """The usual question -> True, and its answer follows; False: it is for the ASGI application."""
        began, decider, fields = time.perf_counter_ns(), self.decider, exchange.fields
        if REPLAY_HEADER in fields or fields.get(b"content-type") != b"application/json" or not decider.lease.valid:
            return False
        try:
            caller = decider.callers.agent(fields)
            limits = caller.limits
            if limits.crowded:
                return False
            now = limits.take()
        except Problem:
            return False
        body, read = exchange.body, time.thread_time_ns() if limits.watched else 0
        try:
            question = parse(body, Question)
            limits.session(question.session, now)
            asked = question.id
            if asked is not None and decider.answers.find(caller.name, asked) is not None:
                limits.give_back()
                return False
            verdict = decider.verdict(caller, question)
            ruling = verdict.ruling
            if ruling.decision != "approve":
                record = record_of(caller, question, asked or uuid7(), verdict, decider.begin(caller, ruling))
                took = time.perf_counter_ns() - began
                record["latency_us"] = took // 1000
                _pays(limits, took, read)
                waiting = _Waiting(self, exchange, caller, record, ruling, began)
                decider.records.decision(caller.partition, caller.key, record, waiting)
                limits.waiting += 1
                if asked is not None:
                    waiting.keep(decider.answers.begin(caller.name, asked, body), decider.generation(caller))
                return True
            _pays(limits, time.perf_counter_ns() - began, read)  # the application will look at its own time only
        except (Problem, Unavailable):
            pass  # the application finds the same, and has the words for it
        limits.give_back()
        return False

    def later(self, answering: Coroutine[Any, Any, None]) -> None:
        """An answer that cannot be written at once."""
        task = asyncio.get_running_loop().create_task(answering)
        self._late.add(task)
        task.add_done_callback(self._late.discard)


def _pays(limits: AgentLimits, took: int, read: int) -> None:
    """For the time that a question kept the replica busy. `read`: the thread's own clock when it began; 0: it is not timed."""
    if took > REQUEST_NS:  # busy, or only not let run: the next ones are looked at
        if read:
            limits.charge(time.thread_time_ns() - read)
        limits.watched = WATCHED
    elif read:
        limits.watched -= 1


class _Waiting:
    """An answer by the short way, while its record is on its way to the log: the `bus.Waiter` of that record."""

    __slots__ = ("_began", "_caller", "_exchange", "_generation", "_kept", "_record", "_ruling", "_way")

    def __init__(
        self, way: ShortWay, exchange: Exchange, caller: Caller, record: dict[str, Any], ruling: Ruling, began: int
    ) -> None:
        self._way, self._exchange, self._caller = way, exchange, caller
        self._record, self._ruling, self._began = record, ruling, began
        self._kept: Asked | None = None
        self._generation: object = None

    gone = False  # a client that hangs up is not heard of before it is written to

    def keep(self, kept: Asked, generation: object) -> None:
        """Who asks the same again gets the same answer."""
        self._kept, self._generation = kept, generation

    def acknowledged(self, _offset: int) -> None:
        if self._way.decider.acknowledged is not None or self._exchange.flow.write_paused:
            self._way.later(self._when_it_can())
        else:
            self._answer()

    def failed(self, error: Unavailable) -> None:
        self._way.decider.metrics.unrecorded += 1
        self._end(None, problem(503, f"the decision is not on record: {error}", retry_after=RETRY_S))

    def landed(self, _offset: int) -> None:
        self._way.decider.void(self._caller, self._record, "not_acknowledged")

    async def _when_it_can(self) -> None:
        """The answer after the named point, and when a slow reader is there for it again."""
        if self._way.decider.acknowledged is not None:
            await self._way.decider.acknowledged(self._record["id"])
        while self._exchange.flow.write_paused:
            await self._exchange.flow.drain()
        self._answer()

    def _answer(self) -> None:
        answer = answer_of(self._record, self._ruling)
        try:
            out = self._way.decider.checked(self._caller, self._record["session"], answer, self._record)
        except Problem as told:
            self._end(None, told)
        else:
            self._exchange.answer(200, _HEAD, out)
            self._end(answer, None)

    def _end(self, given: Answer | None, told: Problem | None) -> None:
        decider, metrics = self._way.decider, self._way.decider.metrics
        self._caller.limits.waiting -= 1
        if self._kept is not None:
            decider.answers.finish(self._kept, given, self._generation)
        if told is not None:
            metrics.problems[told.status] += 1
            self._exchange.answer(told.status, told.head(), told.body())
        elif given is not None:
            metrics.answers[given.decision] += 1
            if self._ruling.shadow is not None:
                metrics.shadow[self._ruling.shadow] += 1
            metrics.took(time.perf_counter_ns() - self._began)
