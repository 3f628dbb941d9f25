"""What comes in at `POST /v1/events`, made ready to be signed: taken apart, stamped, checked, redacted, cut to size.

Nothing here looks at the clock of a lease or changes anything that the event loop shares, so it can run aside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from banksman import codec
from banksman.canonical import canonical, parse
from banksman.enforcer.question import normal_time, wrong
from banksman.errors import InvalidInput
from banksman.events import ACTION_KINDS
from banksman.http_problem import problem
from banksman.signing import digest_by
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from banksman.enforcer.callers import Caller
    from banksman.enforcer.record import Records

    WhoWrote = Callable[[dict[str, Any], str], Caller]

MAX_EVENTS = 10_000
SOURCE = "http/1.0"
_KINDS = ", ".join(sorted(ACTION_KINDS))


class Ready(NamedTuple):
    """One event that may go on the log: in whose name, its bytes, and what its headers and its session's account need."""

    who: Caller
    value: bytes
    head: dict[str, str]
    session: str


class _Slim(msgspec.Struct):
    """The least that an event has. Millions of small values in an array must not be kept to find out that they are none."""

    kind: str
    session: str


_slim_list = msgspec.json.Decoder(list[_Slim]).decode
_raw_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def split(body: bytes, kind: str) -> tuple[list[bytes], bool]:
    """A body of this media type -> (the texts of its events, whether it is one event alone rather than a batch).

    Problem 400: not JSON; 413: too many; 422: in an array, what is no event at all.
    """
    if kind == "application/x-ndjson":
        if body.count(b"\n") > MAX_EVENTS:
            raise problem(413, f"more than {MAX_EVENTS} lines at once")
        texts = [line for line in body.split(b"\n") if line.strip()]
    elif body.lstrip(b" \t\r\n")[:1] != b"[":
        return [body], True
    else:
        try:
            count = len(_slim_list(body))
            texts = [bytes(raw) for raw in _raw_list(body)] if count <= MAX_EVENTS else []
        except msgspec.ValidationError as error:
            raise wrong(error) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise problem(400, f"not JSON: {error}") from None
        if count > MAX_EVENTS:
            raise problem(413, f"more than {MAX_EVENTS} events at once")
    return texts, False


def prepare(texts: Iterable[tuple[str, bytes]], who_wrote: WhoWrote, records: Records) -> list[Ready]:
    """(place in the batch, text) of some events -> the events as they will be recorded, in the same order.

    Problem 400, 403, 413, 422 with the place in the batch.
    """
    return [_prepared(where, text, who_wrote, records) for where, text in texts]


def _prepared(where: str, text: bytes, who_wrote: WhoWrote, records: Records) -> Ready:
    try:
        event = parse(text)
    except InvalidInput as error:
        raise problem(400, error.message, field=join(where, error.field)) from None
    if not isinstance(event, dict):
        raise problem(422, "an event is an object", field=where)
    who = who_wrote(event, where)
    _stamp(event, who, where)
    try:
        codec.validate(event, Topic.ACTIONS)
    except InvalidInput as error:
        raise problem(422, error.message, field=join(where, error.field)) from None
    args = event.get("args")
    if args is not None and "args_hash" not in event:
        event["args_hash"] = digest_by(who.mac, canonical(args))
    event = who.redactor.event(event)
    try:
        value = records.encode(event)
    except InvalidInput as error:
        raise problem(413, error.message, field=where) from None
    return Ready(who, value, {name: event[name] for name in ("id", "kind", "time", "source")}, event["session"])


def _stamp(event: dict[str, Any], who: Caller, where: str) -> None:
    """What the token says and what is missing. 403: the body speaks for somebody else; 422: a kind of ours."""
    for name, own in (("agent", who.name), ("project", who.project)):
        if event.setdefault(name, own) != own:
            raise problem(403, f"this token speaks for the {name} {own} alone", field=join(where, name))
    kind = event.get("kind")
    if not isinstance(kind, str) or kind not in ACTION_KINDS:
        raise problem(422, f"an agent may write {_KINDS}", field=join(where, "kind"))
    event.setdefault("v", 1)
    event.setdefault("id", uuid7())
    event.setdefault("source", SOURCE)
    event["time"] = normal_time(event["time"], join(where, "time")) if "time" in event else rfc3339()


def join(where: str, field: str) -> str:
    """The path of a field of the event at `where` in a batch."""
    if not where or not field:
        return where or field
    return f"{where}{field}" if field.startswith("[") else f"{where}.{field}"
