"""JSON at the entrance and under a hash: what is refused, and the one spelling that is hashed.

`parse` takes what `json` would silently repair or lose and refuses it: duplicate keys, NaN, lone surrogates, integers
beyond ±(2^53-1), depth over 32. `canonical` is RFC 8785 (JSON Canonicalization Scheme). Both are on the path of every
decision, so each has a fast way that is provably equal to the slow one, and falls back to it when in doubt.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import rfc8785

from banksman.errors import InvalidInput

MAX_DEPTH = 32
MAX_INT = 2**53 - 1

_decode = msgspec.json.Decoder().decode
_sorted = msgspec.json.Encoder(order="sorted").encode


def parse(raw: bytes | str, *, max_depth: int = MAX_DEPTH) -> Any:
    """JSON text -> value, or InvalidInput that says what is wrong and, where there is one, in which field."""
    if isinstance(raw, str):
        raw = raw.encode("utf-8", "surrogatepass")
    try:
        value = _decode(raw)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise InvalidInput(f"not JSON: {error}") from None
    except RecursionError:
        raise InvalidInput(f"nested deeper than {max_depth}") from None
    survey = _Survey(max_depth)
    survey.walk(value, 0, "")
    # Each member of an object brings one colon outside strings. If all the colons in the text are those of the members
    # and strings that were kept, none was lost to a duplicate key. An escape could hide a colon from this count.
    if (survey.members + survey.colons != raw.count(b":") or b"\\u" in raw) and survey.members:
        _refuse_duplicates(raw)
    return value


def canonical(value: Any) -> bytes:
    """The RFC 8785 form of a JSON value; InvalidInput for what it cannot hold (NaN, integers beyond ±(2^53-1))."""
    survey = _Survey(MAX_DEPTH)
    survey.walk(value, 0, "")
    if survey.plain:
        return _sorted(value)
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise InvalidInput(str(error)) from None


class _Survey:
    """One walk over a decoded value: refuses what is out of bounds and counts what the fast ways need to know.

    `plain`: no floats and only ASCII keys, where sorting by code point and by UTF-16 unit is the same and numbers have
    one spelling, so that msgspec's sorted output is the RFC 8785 form (a property test holds the two together).
    """

    __slots__ = ("colons", "max_depth", "members", "plain")

    def __init__(self, max_depth: int) -> None:
        self.members = self.colons = 0
        self.plain = True
        self.max_depth = max_depth

    def walk(self, value: Any, depth: int, path: str) -> None:
        kind = type(value)
        if kind is str:
            self.colons += value.count(":")
        elif kind is dict:
            if depth >= self.max_depth:
                raise InvalidInput(f"nested deeper than {self.max_depth}", field=path)
            self.members += len(value)
            for key, item in value.items():
                if not key.isascii():
                    self.plain = False
                self.colons += key.count(":")
                if type(item) is str:
                    self.colons += item.count(":")
                else:
                    self.walk(item, depth + 1, f"{path}.{key}" if path else key)
        elif kind is list:
            if depth >= self.max_depth:
                raise InvalidInput(f"nested deeper than {self.max_depth}", field=path)
            for item in value:
                if type(item) is str:
                    self.colons += item.count(":")
                else:
                    self.walk(item, depth + 1, f"{path}[]")
        elif kind is int:
            if not -MAX_INT <= value <= MAX_INT:
                raise InvalidInput(f"integers beyond ±(2^53-1) have no one meaning in JSON: {value}", field=path)
        elif kind is float:
            self.plain = False
        elif value is not None and kind is not bool:
            raise InvalidInput(f"not a JSON value: {kind.__name__}", field=path)


def _refuse_duplicates(raw: bytes) -> None:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(items)
        if len(seen) != len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidInput("is there twice", field=twice)
        return seen

    json.loads(raw, object_pairs_hook=pairs)
