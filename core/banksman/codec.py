"""Bytes to events and back: what is decoded, what is refused with which field, and what is cut to fit."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Union

import msgspec

from banksman.errors import InvalidEvent
from banksman.events import KINDS, SPELLED, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    if "matching regex" in message:
        message = next((told for pattern, told in SPELLED.items() if repr(pattern) in message), message)
    unknown = re.fullmatch(r"Object contains unknown field `(.+)`", message, re.DOTALL)
    if unknown:
        field = f"{field}.{unknown[1]}" if field else unknown[1]
        message = "is not a field of this call"
    return InvalidEvent(message, field=field)


def cut(event: dict[str, Any], digest: Callable[[bytes], str], *, limit: int = MAX_EVENT_BYTES) -> dict[str, Any]:
    """The event, its long texts cut until it fits in `limit` bytes: each ends in a marker with its size and digest.

    Never drops an event: where there are too many short values, the whole field that holds them is cut as its JSON.
    `digest` is keyed (plain hashes of secrets can be guessed). What is short stays whole, so the fields that policy and
    people go by are not touched. Changes the event in place, at a cost that grows with its size alone. InvalidEvent: it is
    all short fields.
    """
    over = len(encode(event)) - limit
    if over <= 0:
        return event
    texts = [(holder, key, len(encode(holder[key]))) for holder, key in _long_texts(event)]
    most = _cap([size for _, _, size in texts], over)
    for holder, key, size in texts:
        if size > most + _MARKER:
            holder[key] = _cut(holder[key], most, digest)
    while (over := len(encode(event)) - limit) > 0:
        sizes = [(len(encode(value)), key) for key, value in event.items() if isinstance(value, (dict, list))]
        size, key = max(sizes, default=(0, ""))
        if size <= 2 * _MARKER:
            raise InvalidEvent(f"larger than {limit} bytes, and nothing in it can be cut")
        left = _cut(encode(event[key]).decode(), max(0, size - over - _MARKER), digest)
        event[key] = {"cut": left} if isinstance(event[key], dict) else left
    return event


_LONG, _SHORTEST = 1024, 512
_MARKER = 200
"""Bytes: more than a marker takes, and what is around it."""


def _long_texts(event: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Where texts stand that are long enough to be cut: their container and their key in it."""
    stack: list[tuple[Any, Any]] = [(event, key) for key in event]
    while stack:
        holder, key = stack.pop()
        value = holder[key]
        if isinstance(value, str):
            if len(value) >= _LONG:
                yield holder, key
        elif isinstance(value, dict):
            stack.extend((value, inner) for inner in value)
        elif isinstance(value, list):
            stack.extend((value, inner) for inner in range(len(value)))


def _cap(sizes: list[int], over: int) -> int:
    """The most bytes that every text may keep so that all of them lose `over` together; not less than `_SHORTEST`."""
    low, high = _SHORTEST, max(sizes, default=_SHORTEST)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(max(0, size - middle - _MARKER) for size in sizes) >= over:
            low = middle
        else:
            high = middle - 1
    return low


def _cut(text: str, room: int, digest: Callable[[bytes], str]) -> str:
    """The beginning of a text that takes at most `room` bytes as JSON, and the marker."""
    keep = min(len(text), room)
    while (size := len(encode(text[:keep])) - 2) > room:
        keep = keep * room // size
    return f"{text[:keep]}…[cut: {len(text)} characters, {digest(text.encode('utf-8', 'surrogatepass'))}]"
