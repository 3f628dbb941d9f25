"""Bytes to events and back: what is decoded, what is refused with which field, and what is cut to fit."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Union

import msgspec

from banksman.errors import InvalidEvent
from banksman.events import KINDS, Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from banksman.topics import Topic

MAX_EVENT_BYTES = 1024 * 1024

_UNIONS: dict[Topic, Any] = {
    topic: Union[tuple(model for model in KINDS.values() if model.topic is topic)]  # noqa: UP007 - made from a tuple
    for topic in sorted({model.topic for model in KINDS.values()})
}
_DECODERS: dict[Topic, msgspec.json.Decoder[Any]] = {
    topic: msgspec.json.Decoder(union) for topic, union in _UNIONS.items()
}

encode = msgspec.json.Encoder().encode
"""An event (model or plain dict) -> its bytes on the wire."""


def decode(raw: bytes, topic: Topic) -> Event:
    """The bytes of a record of `topic` -> its typed model; InvalidEvent says which field is wrong.

    Unknown fields are not in the model, they stay in the bytes.
    """
    try:
        event: Event = _DECODERS[topic].decode(raw)
        datetime.fromisoformat(event.time)  # the pattern lets 2026-13-45 pass
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise invalid(error) from None
    return event


def validate(value: dict[str, Any], topic: Topic) -> Event:
    """The same for an event that is already parsed."""
    try:
        event: Event = msgspec.convert(value, _UNIONS[topic])
        datetime.fromisoformat(event.time)
    except (msgspec.ValidationError, ValueError) as error:
        raise invalid(error) from None
    return event


def invalid(error: Exception) -> InvalidEvent:
    """A sentence of msgspec's -> ours: the path of the field apart from what is wrong with it."""
    text = str(error)
    message, at, path = text.partition(" - at `$")
    field = path.rstrip("`").lstrip(".") if at else ""
    missing = re.fullmatch(r"Object missing required field `(.+)`", message)
    if missing:
        field = f"{field}.{missing[1]}" if field else missing[1]
        message = "is missing"
    return InvalidEvent(message, field=field)


def cut(event: dict[str, Any], digest: Callable[[bytes], str], *, limit: int = MAX_EVENT_BYTES) -> dict[str, Any]:
    """The event, its longest texts cut until it fits in `limit` bytes: each ends in a marker with size and digest.

    Never drops an event. `digest` is keyed (plain hashes of secrets can be guessed). What is short stays whole, so the
    fields that policy and people go by are not touched.
    """
    size = len(encode(event))
    while size > limit:
        holder, key, longest = _longest(event)
        text = holder[key] if isinstance(holder[key], str) else encode(holder[key]).decode()
        keep = max(0, len(text) - (size - limit) - 256)  # bytes over may be fewer characters: then another round
        keep = min(keep, longest // 2)
        left = f"{text[:keep]}…[cut: {longest} characters, {digest(text.encode('utf-8', 'surrogatepass'))}]"
        holder[key] = {"cut": left} if isinstance(holder[key], dict) else left
        smaller = len(encode(event))
        if smaller >= size:
            raise InvalidEvent("too large, and nothing in it can be cut")
        size = smaller
    return event


def _longest(event: dict[str, Any]) -> tuple[Any, Any, int]:
    """Where the longest text of an event stands: (its container, its key, its length).

    A container of very many small values is itself a text: it is cut as its JSON.
    """
    best: tuple[Any, Any, int] = (event, "kind", 0)
    stack: list[tuple[Any, Any]] = [(event, key) for key in event]
    while stack:
        holder, key = stack.pop()
        value = holder[key]
        if isinstance(value, str):
            if len(value) > best[2]:
                best = (holder, key, len(value))
        elif isinstance(value, dict):
            stack.extend((value, inner) for inner in value)
        elif isinstance(value, list):
            stack.extend((value, inner) for inner in range(len(value)))
    if best[2] >= 1024:
        return best
    sizes = [(len(encode(value)), key) for key, value in event.items() if isinstance(value, (dict, list))]
    if not sizes:
        return best
    size, key = max(sizes)
    return (event, key, size)
