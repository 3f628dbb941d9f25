"""`POST /v1/events`: what agents report over HTTP, stamped, checked, redacted, signed in their name, durable.

The whole batch is checked before anything of it is published: one bad event refuses it all and says which. When the
broker does not acknowledge, the answer is 503 and the client sends the same again: same ids, same bytes, shown once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import JSONResponse

from banksman import codec
from banksman.canonical import canonical, parse
from banksman.enforcer.callers import REPLAY_HEADER
from banksman.enforcer.question import normal_time
from banksman.errors import InvalidInput, Unavailable
from banksman.events import ACTION_KINDS, rfc3339, uuid7
from banksman.http_body import read_body, require_type
from banksman.http_problem import problem
from banksman.signing import digest_by
from banksman.topics import Topic

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.enforcer.callers import Caller
    from banksman.enforcer.replica import Replica
    from banksman.identities import Operator

MAX_EVENTS = 10_000
SENT_HEADER = b"banksman-sent"
"""When the client sent this request, by its own clock: what it kept during an outage is late then, and its clock right."""
BREATHE = 50  # events between two looks at the event loop: a large batch must not keep decisions waiting
MOST_UNDER_WAY = 64 * 1024 * 1024
SOURCE = "http/1.0"
_raw_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


class EventsIn:
    """The entrance for events. One for the process."""

    def __init__(self, replica: Replica) -> None:
        self._records, self._callers, self._lease = replica.records, replica.callers, replica.lease
        self._state, self._metrics, self._max_body = replica.state, replica.metrics, replica.settings.max_body
        self._under_way = 0

    async def endpoint(self, request: Request) -> Response:
        """The endpoint."""
        scope, run, holder = request.scope, "", None
        caller: Caller | None = None
        if REPLAY_HEADER in scope["fields"]:
            run, holder = self._callers.replay(scope)
        else:
            caller = self._callers.agent(scope)
            caller.limits.take()
        kind = require_type(scope, "application/json", "application/x-ndjson")
        sent = scope["fields"].get(SENT_HEADER)
        stamp = "" if sent is None else normal_time(sent.decode("latin-1"), "Banksman-Sent")
        body = await read_body(scope, request.receive, limit=self._max_body)
        if self._under_way + len(body) > MOST_UNDER_WAY:
            raise problem(503, "too many events are under way", retry_after=1)
        self._under_way += len(body)
        try:
            accepted = await self._take(body, kind, caller, run, holder, stamp)
        finally:
            self._under_way -= len(body)
        return JSONResponse({"accepted": accepted})

    async def _take(
        self, body: bytes, kind: str, caller: Caller | None, run: str, holder: Operator | None, sent: str
    ) -> int:
        texts, alone = _split(body, kind)
        if not texts:
            return 0
        ready: list[tuple[Caller, dict[str, Any]]] = []
        for index, text in enumerate(texts):
            where = "" if alone else f"[{index}]"
            ready.append(self._checked(text, where, caller, holder))
            if index % BREATHE == BREATHE - 1:
                await asyncio.sleep(0)
        if not self._lease.valid:
            raise problem(503, "no event is taken without a lease: nothing was heard from Kafka lately", retry_after=1)
        if caller is not None and self._state.refuses(caller.holder):
            raise problem(401, "this token was rotated out meanwhile")
        return await self._publish(ready, run, sent)

    async def _publish(self, ready: list[tuple[Caller, dict[str, Any]]], run: str, sent: str) -> int:
        records, limits = self._records, ready[0][0].limits
        limits.waiting += 1
        try:
            under_way = []
            for who, event in ready:
                under_way.append(records.put(records.actions, who.partition, who.key, event, replay=run, sent=sent))
                if len(under_way) % BREATHE == 0:
                    await asyncio.sleep(0)
            for acknowledged in under_way:
                await acknowledged
        except Unavailable as error:
            raise problem(503, f"not acknowledged; send the same again: {error}", retry_after=1) from None
        finally:
            limits.waiting -= 1
        for who, event in ready:
            if event["kind"] == "session.ended":
                who.limits.session_ended(event["session"])
        self._metrics.events += len(ready)
        return len(ready)

    def _checked(
        self, text: bytes, where: str, caller: Caller | None, holder: Operator | None
    ) -> tuple[Caller, dict[str, Any]]:
        """One event, ready to be signed. Problem 400, 403, 422 with the place in the batch."""
        try:
            event = parse(text)
        except InvalidInput as error:
            raise problem(400, error.message, field=_join(where, error.field)) from None
        if not isinstance(event, dict):
            raise problem(422, "an event is an object", field=where)
        who = caller or self._replayed(event, where, holder)
        _stamp(event, who, where, replayed=caller is None)
        try:
            codec.validate(event, Topic.ACTIONS)
        except InvalidInput as error:
            raise problem(422, error.message, field=_join(where, error.field)) from None
        args = event.get("args")
        if args is not None and "args_hash" not in event:
            event["args_hash"] = digest_by(who.mac, canonical(args))
        if caller is not None:
            who.limits.session(event["session"], self._lease.clock())
        return who, who.redactor.event(event)

    def _replayed(self, event: dict[str, Any], where: str, holder: Operator | None) -> Caller:
        assert holder is not None
        for name in ("project", "agent", "time", "id", "source"):
            if not isinstance(event.get(name), str):
                raise problem(422, "a replayed event carries its own", field=_join(where, name))
        return self._callers.replayed(event["project"], event["agent"], holder)


def _split(body: bytes, kind: str) -> tuple[list[bytes], bool]:
    """The texts of the events in a body, and whether it is one event alone rather than a batch."""
    if kind == "application/x-ndjson":
        texts = [line for line in body.split(b"\n") if line.strip()]
    elif body.lstrip(b" \t\r\n")[:1] != b"[":
        return [body], True
    else:
        try:
            texts = [bytes(raw) for raw in _raw_list(body)]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise problem(400, f"not JSON: {error}") from None
    if len(texts) > MAX_EVENTS:
        raise problem(413, f"more than {MAX_EVENTS} events at once")
    return texts, False


def _stamp(event: dict[str, Any], who: Caller, where: str, *, replayed: bool) -> None:
    """What the token says and what is missing. 403: the body speaks for somebody else; 422: a kind of ours."""
    for name, own in (("agent", who.name), ("project", who.project)):
        if event.setdefault(name, own) != own:
            raise problem(403, f"this token speaks for the {name} {own} alone", field=_join(where, name))
    if event.get("kind") not in ACTION_KINDS:
        known = ", ".join(sorted(ACTION_KINDS))
        raise problem(422, f"an agent may write {known}", field=_join(where, "kind"))
    event.setdefault("v", 1)
    event.setdefault("id", uuid7())
    event.setdefault("source", SOURCE)
    if replayed or "time" in event:
        event["time"] = normal_time(event["time"], _join(where, "time"))
    else:
        event["time"] = rfc3339()


def _join(where: str, field: str) -> str:
    if not where or not field:
        return where or field
    return f"{where}{field}" if field.startswith("[") else f"{where}.{field}"
