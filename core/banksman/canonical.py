"""JSON at the entrance and under a hash: what is refused, and the one spelling that is hashed.

`parse` takes what `json` would silently repair or lose and refuses it: duplicate keys, NaN, lone surrogates, integers
beyond ±(2^53-1), depth over 32. `canonical` is RFC 8785 (JSON Canonicalization Scheme). Both are on the path of every
decision, so each has a fast way that is provably equal to the slow one, and falls back to it when in doubt.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import rfc8785

from banksman.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable

S = TypeVar("S", bound=msgspec.Struct)
MAX_DEPTH = 32
MAX_INT = 2**53 - 1

_VARIABLE = re.compile(
    r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"
    r"|0[xX][0-9a-fA-F]+|\b(?=[0-9a-fA-F]*[0-9])[0-9a-fA-F]{6,}\b|[0-9]+"
)
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_sorted = msgspec.json.Encoder(order="sorted").encode
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_NO_MARKS = bytes(set(range(256)) - set(b"{[:\\"))
_SIXTEEN_DIGITS = b"0" * len(str(MAX_INT))


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
    if raw.count(b"{") + raw.count(b"[") > max_depth or _SIXTEEN_DIGITS in raw.translate(_DIGITS):
        _Survey(max_depth).walk(value, 0, "")
    # Each member of an object brings one colon outside strings. A text of what was kept that has fewer colons has lost a
    # member to a duplicate key. An escape could hide a colon of a string from this count.
    if b"\\u" in raw or raw.count(b":") != _encode(value).count(b":"):
        _refuse_duplicates(raw)
    return value


def parse_as(raw: bytes, decode: Callable[[bytes], S]) -> S | None:
    """The same straight into a model, when it takes no closer look to see that nothing is wrong; None otherwise.

    `decode`: a msgspec decoder of a model that forbids unknown fields and omits its defaults, all of which are None.
    """
    marks = raw.translate(None, _NO_MARKS)
    colons = marks.count(b":")
    if len(marks) - colons > MAX_DEPTH or b"\\" in marks or _SIXTEEN_DIGITS in raw.translate(_DIGITS):
        return None
    try:
        value = decode(raw)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
        return None
    return value if colons == _encode(value).count(b":") else None  # see `parse`; a null, too, is one colon less


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
    """One walk over a value: refuses what is out of bounds, and finds out whether it is plain.

    `plain`: no floats and only ASCII keys, where sorting by code point and by UTF-16 unit is the same and numbers have
    one spelling, so that msgspec's sorted output is the RFC 8785 form (a property test holds the two together).
    """

    __slots__ = ("max_depth", "plain")

    def __init__(self, max_depth: int) -> None:
        self.plain = True
        self.max_depth = max_depth

    def walk(self, value: Any, depth: int, path: str) -> None:
        kind = type(value)
        if kind is str:
            return
        if kind is dict:
            if depth >= self.max_depth:
                raise InvalidInput(f"nested deeper than {self.max_depth}", field=path)
            for key, item in value.items():
                if not key.isascii():
                    self.plain = False
                if type(item) is not str:
                    self.walk(item, depth + 1, f"{path}.{key}" if path else key)
        elif kind is list:
            if depth >= self.max_depth:
                raise InvalidInput(f"nested deeper than {self.max_depth}", field=path)
            for item in value:
                if type(item) is not str:
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


def masked(error: str) -> str:
    """An error's text with digits and hex as `#`: the same failure at another line or address is the same failure."""
    return _VARIABLE.sub("#", error)
