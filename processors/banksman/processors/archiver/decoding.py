"""The bytes of many records -> events, by kind and column.

What is accepted is what `codec.decode` accepts, and a kind of a later version, of which only what all events have is looked
at. Most of the time that `codec.decode` takes goes into the patterns of ids, times and names, asked of one value at a time.
So here the same models are decoded without these patterns, which are then held against a whole column at once. Where
something does not fit, each record of the chunk is looked at by itself, and `codec.decode` says what is wrong with which.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import repeat
from operator import add, attrgetter
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

import msgspec

from banksman import codec, events
from banksman.errors import InvalidEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from banksman.topics import Topic

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)).difference(b"[]{}"))

CHUNK = 1000
"""Records that one bad one among them makes slow."""

SHARED, SHARED_BYTES = 20_000, 32 << 20
"""Words that are kept, and the bytes of records that they may come from: a word may be long."""

DEPTH = 100
"""Values in values that are looked into; entrances take 32. The decoder has no bound but the stack that is left to it, which
is not the same everywhere.
"""


class AnyKind(msgspec.Struct, kw_only=True):
    """A kind of a later version: stored with what all events have."""

    kind: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    v: int
    id: events.Uuid
    time: events.Time
    source: Annotated[str, msgspec.Meta(max_length=256)] = ""
    seq: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)] | None = None
    call: events.Uuid | None = None
    parent: events.Uuid | None = None
    project: events.Name | None = None
    agent: events.Name | None = None
    session: events.Name | None = None


@dataclass(frozen=True)
class Form:
    """How events of one model become columns: the fields, and what their columns are held against."""

    model: type[msgspec.Struct]
    fields: tuple[str, ...]
    get: Callable[[Any], tuple[Any, ...]]
    checks: tuple[tuple[str, Callable[[Sequence[Any]], bool]], ...]


@dataclass(frozen=True)
class Decoded:
    """Events of one kind. `places`: where in the sequence their values stood. `columns`: by field, None for what is absent."""

    kind: str
    model: type[msgspec.Struct]
    places: list[int]
    columns: Mapping[str, Sequence[Any]]


class Decoding:
    """Decodes the records of one topic."""

    def __init__(self, topic: Topic, wanted: Collection[str], words: Collection[str] = ()) -> None:
        """`wanted`: the fields that are given, as far as a model has them. `words`: those of them that are mostly the same.
        Each such text is one object then, that all rows share: looked at again and again, it stays in the caches.
        """
        self._topic, self._words = topic, words
        self._shared: dict[Any, Any] = {}
        self._shared_from = 0
        models = [model for model in events.KINDS.values() if model.topic is topic]
        bare = {model: _bare(model) for model in models}
        self._decode = msgspec.json.Decoder(Union[tuple(bare.values())]).decode  # noqa: UP007 - made from a tuple
        self._any_kind = msgspec.json.Decoder(AnyKind).decode
        self._forms: dict[type[msgspec.Struct], Form] = {AnyKind: _form(AnyKind, wanted)}
        for model, other in bare.items():
            self._forms[model] = self._forms[other] = _form(model, wanted)

    def __call__(self, values: Sequence[bytes]) -> tuple[list[Decoded], list[tuple[int, InvalidEvent]]]:
        """-> (the events, what is wrong with the values that are none, each with its place)."""
        decoded: list[Decoded] = []
        wrong: list[tuple[int, InvalidEvent]] = []
        for first in range(0, len(values), CHUNK):
            chunk = values[first : first + CHUNK]
            places = range(first, first + len(chunk))
            self._let_go(sum(map(len, chunk)))
            try:
                if not all(map(bytes.isascii, chunk)):
                    for value in chunk:
                        value.decode()  # in fields that no model knows, nobody else looks
                opened = map(add, map(bytes.count, chunk, repeat(b"{")), map(bytes.count, chunk, repeat(b"[")))
                if max(opened) > DEPTH and any(map(too_deep, chunk)):
                    raise RecursionError
                made = list(self._grouped(places, list(map(self._decode, chunk))))
                fits = all(check(one.columns[field]) for one in made for field, check in self._checks(one.model))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                fits = False
            if not fits:
                made = list(self._grouped(*self._one_by_one(places, chunk, wrong)))
            decoded += made
        return decoded, wrong

    def one(self, value: bytes) -> Any:
        """One event. InvalidEvent says which field is wrong."""
        if too_deep(value):
            raise InvalidEvent("is nested too deep")
        try:
            value.decode()
            return codec.decode(value, self._topic)
        except UnicodeDecodeError as error:
            raise InvalidEvent(f"not UTF-8: {error.reason} at byte {error.start}") from None
        except InvalidEvent as error:
            if error.field != "kind":
                raise
        try:
            unknown = self._any_kind(value)
            datetime.fromisoformat(unknown.time)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise codec.invalid(error) from None
        if unknown.kind in events.KINDS:
            raise InvalidEvent(f"{unknown.kind} does not belong in {self._topic}", field="kind")
        return unknown

    def _one_by_one(
        self, places: Sequence[int], values: Sequence[bytes], wrong: list[tuple[int, InvalidEvent]]
    ) -> tuple[list[int], list[Any]]:
        good, found = [], []
        for place, value in zip(places, values, strict=True):
            try:
                found.append(self.one(value))
                good.append(place)
            except InvalidEvent as error:
                wrong.append((place, error))
        return good, found

    def _grouped(self, places: Sequence[int], found: Sequence[Any]) -> Iterator[Decoded]:
        groups: dict[tuple[type[msgspec.Struct], str], tuple[list[int], list[Any]]] = {}
        if len(set(map(type, found))) == 1 and type(found[0]) is not AnyKind:
            groups[type(found[0]), ""] = list(places), list(found)
        else:
            for place, event in zip(places, found, strict=True):
                there, those = groups.setdefault((type(event), getattr(event, "kind", "")), ([], []))
                there.append(place)
                those.append(event)
        for (type_, kind), (there, those) in groups.items():
            form = self._forms[type_]
            columns = dict(zip(form.fields, zip(*map(form.get, those), strict=True), strict=True))
            for name in columns.keys() & self._words:
                columns[name] = tuple(map(self._shared.setdefault, columns[name], columns[name]))
            yield Decoded(kind or str(form.model.__struct_config__.tag), form.model, there, columns)

    def _let_go(self, coming: int) -> None:
        """Of the words, when so many bytes of records come: an agent must not fill the memory with words of its own."""
        self._shared_from += coming
        if self._shared_from > SHARED_BYTES or len(self._shared) > SHARED:
            self._shared.clear()
            self._shared_from = coming

    def _checks(self, model: type[msgspec.Struct]) -> tuple[tuple[str, Callable[[Sequence[Any]], bool]], ...]:
        return self._forms[model].checks


def too_deep(value: bytes) -> bool:
    """Whether JSON is nested deeper than DEPTH, or, where lists and objects take turns, than twice that."""
    brackets = _STRING.sub(b"", value).translate(None, _NO_BRACKETS)
    for _ in range(DEPTH):
        inner, brackets = brackets, brackets.replace(b"{}", b"").replace(b"[]", b"")
        if len(brackets) == len(inner):
            return False  # nothing, or no JSON
    return bool(brackets)


def microseconds(times: Sequence[str]) -> list[int]:
    """Since 1970, of texts that have the one form on the wire. ValueError: no such moment."""
    return [_minute(time[:16]) + int(time[17:19] + time[20:26]) for time in times]


@lru_cache(4096)
def _minute(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


# ── checks of whole columns ──


class Shape:
    """Texts of one width in which every place holds one character of a few. `template` names a set for every place: `h` hex,
    `d` a digit, `v` one of 89ab, `5` one of 0 to 5; anything else stands for itself.
    """

    _SETS = {"h": "0123456789abcdef", "d": "0123456789", "v": "89ab", "5": "012345"}  # noqa: RUF012 - never changed

    def __init__(self, template: str) -> None:
        line = template + "\n"
        self._width = len(line)
        self._most = self._SETS["h" if "h" in template else "d"].encode()
        self._rest = "".join(c for c in line if c not in self._SETS and c.encode() not in self._most).encode()
        self._exact = [(at, c.encode()) for at, c in enumerate(line) if c not in self._SETS]
        self._few = [(at, frozenset(self._SETS[c].encode())) for at, c in enumerate(line) if c in "v5"]

    def __call__(self, values: Sequence[Any]) -> bool:
        """Whether all values (None stands for absent) have this shape."""
        present = [value for value in values if value is not None] if None in values else values
        rows = len(present)
        text = "\n".join([*present, ""])
        if not text.isascii():
            return False
        data = text.encode()
        return (
            len(data) == rows * self._width
            and all(data[at :: self._width] == c * rows for at, c in self._exact)
            and data.translate(None, self._most) == self._rest * rows
            and all(few.issuperset(data[at :: self._width]) for at, few in self._few)
        )


def are_names(values: Sequence[Any]) -> bool:
    """Whether all values (None stands for absent) are names of projects, agents or sessions."""
    return all([value is None or events.is_name(value) for value in set(values)])  # noqa: C419 - a list is faster


_has_time_shape = Shape("dddd-dd-ddTdd:5d:5d.ddddddZ")


def are_times(values: Sequence[Any]) -> bool:
    """Whether all values are moments in the one form on the wire."""
    if not _has_time_shape(values):
        return False
    try:
        for minute in {value[:16] for value in values if value is not None}:
            _minute(minute)
    except ValueError:
        return False
    return True


def _pattern(hint: Any) -> str | None:
    return next((str(meta.pattern) for meta in getattr(hint, "__metadata__", ()) if meta.pattern), None)


_CHECKS: dict[str | None, Callable[[Sequence[Any]], bool]] = {
    _pattern(events.Name): are_names,
    _pattern(events.Uuid): Shape("hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh"),
    _pattern(events.Uuid7): Shape("hhhhhhhh-hhhh-7hhh-vhhh-hhhhhhhhhhhh"),
    _pattern(events.Time): are_times,
}


def _checked(hint: Any) -> Callable[[Sequence[Any]], bool] | None:
    """What a field of that type is held against: `X` or `X | None` of one of the patterns."""
    several = [one for one in get_args(hint) if one is not type(None)] if get_origin(hint) is not Annotated else []
    return _CHECKS.get(_pattern(several[0] if len(several) == 1 else hint))


def _form(model: type[msgspec.Struct], wanted: Collection[str]) -> Form:
    hints = get_type_hints(model, include_extras=True)
    checks = tuple((name, check) for name in model.__struct_fields__ if (check := _checked(hints[name])))
    checked = [name for name, _ in checks]
    fields = tuple(name for name in model.__struct_fields__ if name in wanted or name in checked)
    return Form(model, fields, attrgetter(*fields), checks)


def _bare(model: type[events.Event]) -> type[msgspec.Struct]:
    """The same model without the patterns that are held against columns."""
    hints = get_type_hints(model, include_extras=True)
    fields: list[tuple[str, Any, Any]] = []
    for field in msgspec.structs.fields(model):
        type_ = hints[field.name]
        if _checked(type_):
            type_ = str if field.required else str | None
        if field.default_factory is not msgspec.NODEFAULT:
            fields.append((field.name, type_, msgspec.field(default_factory=field.default_factory)))
        else:
            fields.append((field.name, type_, msgspec.field(default=field.default)))  # none: msgspec.NODEFAULT
    return msgspec.defstruct(
        model.__name__, fields, tag_field="kind", tag=str(model.__struct_config__.tag), kw_only=True, gc=False
    )
