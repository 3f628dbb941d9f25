"""`POST /v1/events`: what agents report over HTTP, durable before it is accepted.

The whole batch is checked before anything of it is published: one bad event refuses it all and says which. When the
broker does not acknowledge, the answer is 503 and the client sends the same again: same ids, same bytes, shown once.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from banksman.enforcer.aside import HEAVY
from banksman.enforcer.callers import REPLAY_HEADER
from banksman.enforcer.entrance import Ready, join, prepare, split
from banksman.enforcer.limits import MOST_BYTES, AgentLimits
from banksman.enforcer.question import normal_time
from banksman.errors import Unavailable
from banksman.http_body import read_body, require_type
from banksman.http_problem import problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.enforcer.callers import Caller
    from banksman.enforcer.entrance import WhoWrote
    from banksman.enforcer.replica import Replica
    from banksman.identities import Agent, Operator

AT_ONCE = 500
"""Records of a batch that are handed over before the first of them must be acknowledged: an agent's share of the queue."""

SENT_HEADER = b"banksman-sent"
"""When the client sent this request, by its own clock: what it kept during an outage is late then, and its clock right."""


class EventsIn:
    """The entrance for events. One for the process."""

    def __init__(self, replica: Replica) -> None:
        self._records, self._callers, self._lease = replica.records, replica.callers, replica.lease
        self._state, self._metrics, self._aside = replica.state, replica.metrics, replica.aside
        self._settings = replica.settings
        self._bytes = 0
        self._bite = asyncio.Lock()

    async def endpoint(self, request: Request) -> Response:
        """The endpoint."""
        scope = request.scope
        replay = REPLAY_HEADER in scope["fields"]
        holder: Agent | Operator
        if replay:
            run, admin = self._callers.replay(scope)
            holder, limits = admin, AgentLimits(self._settings, self._lease.clock)
            who_wrote = self._recorded(run, admin)
        else:
            caller = self._callers.agent(scope["fields"])
            holder, limits = caller.holder, caller.limits
            who_wrote = _always(caller)
            limits.take()
        kind = require_type(scope, "application/json", "application/x-ndjson")
        sent = scope["fields"].get(SENT_HEADER)
        sent = "" if sent is None else normal_time(sent.decode("latin-1"), "Banksman-Sent")
        body = await read_body(scope, request.receive, limit=self._settings.max_body)
        size = len(body)
        if self._bytes + size > MOST_BYTES:
            raise problem(503, "too many events are under way", retry_after=1)
        self._bytes += size
        try:
            with nullcontext() if replay else limits.carrying(size):
                ready = await self._ready(body, kind, limits, who_wrote)
                del body
                if not replay:
                    now = self._lease.clock()
                    for session in dict.fromkeys(one.session for one in ready):
                        limits.session(session, now)
                async with limits.turn:
                    await self._publish(ready, sent, self._still(holder))
        finally:
            self._bytes -= size
        if not replay:
            for one in ready:
                if one.head["kind"] == "session.ended":
                    limits.session_ended(one.session)
            self._metrics.events += len(ready)
        return JSONResponse({"accepted": len(ready)})

    async def _ready(self, body: bytes, kind: str, limits: AgentLimits, who_wrote: WhoWrote) -> list[Ready]:
        """Every event of the body, checked. In small bites: a large batch must not keep decisions waiting."""
        if len(body) > HEAVY:
            texts, alone = await self._aside(limits, split, body, kind)
        else:
            texts, alone = split(body, kind)
        ready: list[Ready] = []
        for bite in _bites(texts, alone=alone):
            if len(bite[0][1]) > HEAVY:
                ready += await self._aside(limits, prepare, bite, who_wrote, self._records)
                continue
            # One bite in a turn of the loop, whoever's it is. What keeps the lease takes some twenty turns: with a bite of each
            # of many clients in every turn, the lease would run out.
            async with self._bite:
                began = time.thread_time_ns()
                ready += prepare(bite, who_wrote, self._records)
                limits.charge(time.thread_time_ns() - began)
                if len(bite) > 1 or len(ready) < len(texts):
                    await asyncio.sleep(0)
        return ready

    async def _publish(self, ready: list[Ready], sent: str, still: Callable[[], None]) -> None:
        """Return when all of it is acknowledged; Problem 503 when it was not, 401 when the caller is not known any more."""
        records = self._records
        try:
            for at in range(0, len(ready), AT_ONCE):
                still()
                under_way = [
                    records.put(
                        records.actions, one.who.partition, one.who.key, one.head, value=one.value, sent=sent,
                        replay=one.who.replay,
                    )
                    for one in ready[at : at + AT_ONCE]
                ]  # fmt: skip
                for acknowledged in under_way:
                    await acknowledged
        except Unavailable as error:
            raise problem(503, f"not acknowledged; send the same again: {error}", retry_after=1) from None

    def _still(self, holder: Agent | Operator) -> Callable[[], None]:
        """The check that stands before each record: is there a lease, is the caller still who it was?"""

        def check() -> None:
            if not self._lease.valid:
                raise problem(503, "no event without a lease: nothing was heard from Kafka lately", retry_after=1)
            if self._state.refuses(holder):
                raise problem(401, "this token was rotated out meanwhile")

        return check

    def _recorded(self, run: str, holder: Operator) -> WhoWrote:
        """In a replay every event says whose it is."""
        known: dict[tuple[str, str], Caller] = {}

        def who_wrote(event: dict[str, Any], where: str) -> Caller:
            for name in ("project", "agent", "time", "id", "source"):
                if not isinstance(event.get(name), str):
                    raise problem(422, "a replayed event carries its own", field=join(where, name))
            whose = event["project"], event["agent"]
            if whose not in known:
                known[whose] = self._callers.replayed(*whose, holder, run)
            return known[whose]

        return who_wrote


def _always(caller: Caller) -> WhoWrote:
    def who_wrote(_event: dict[str, Any], _where: str) -> Caller:
        return caller

    return who_wrote


def _bites(texts: list[bytes], *, alone: bool) -> Iterator[list[tuple[str, bytes]]]:
    """The texts with their places, so many at a time as are read in a few milliseconds; a large one by itself."""
    bite: list[tuple[str, bytes]] = []
    size = 0
    for index, text in enumerate(texts):
        if bite and size + len(text) > HEAVY:
            yield bite
            bite, size = [], 0
        bite.append(("" if alone else f"[{index}]", text))
        size += len(text)
    if bite:
        yield bite
