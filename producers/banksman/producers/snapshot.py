"""What an agent hands over, frozen in the moment of the call: it may change its objects right afterwards.

A snapshot is MessagePack, made in C in a fraction of a microsecond where the values are JSON's own, and 3 us for 100 kB of
text. What JSON does not know is described here, by what costs little; all other work is done later, in another thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

MAX_DEPTH = 64
MAX_TEXT = 1000
"""Characters of the description of an object that is not data."""


def take(value: Any) -> bytes:
    """A snapshot of any value. Never raises: what cannot be had is described, or said to be missing."""
    try:
        return encode(value)
    except Exception:  # noqa: BLE001 - integers beyond 64 bits, lone surrogates, cycles, objects that raise: looked at one by one
        return encode(_plain(value, 0))


def give(snapshot: bytes) -> Any:
    """The value of a snapshot: dicts, lists, texts, numbers, and the few types that MessagePack has besides."""
    return _decode(snapshot)


def describe(value: Any) -> Any:
    """Something that stands for an object that is not data."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if isinstance(value, os.PathLike):
        return str(value)
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"[:MAX_TEXT]
    dump = getattr(type(value), "model_dump", None)  # pydantic: what agents' tools take and give
    if dump is not None:
        return dump(value)
    return repr(value)[:MAX_TEXT]


encode = msgspec.msgpack.Encoder(enc_hook=describe).encode
"""`take` of what is data: raises what the rest is looked at one by one for."""
_decode = msgspec.msgpack.Decoder().decode


def _plain(value: Any, depth: int) -> Any:
    """The slow way: whatever can be said of a value."""
    try:
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, int):
            return int(value) if -(2**63) <= value < 2**63 else _digits(value)
        if isinstance(value, str):
            return str.__str__(value).encode("utf-8", "backslashreplace").decode()
        if depth >= MAX_DEPTH:
            return f"[nested deeper than {MAX_DEPTH}]"
        if isinstance(value, Mapping):
            return {str(_plain(key, MAX_DEPTH)): _plain(item, depth + 1) for key, item in list(value.items())}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [_plain(item, depth + 1) for item in list(value)]
        try:
            encode(value)
        except Exception:  # noqa: BLE001 - see `take`
            return _plain(describe(value), depth + 1)
    except Exception as error:  # noqa: BLE001 - an object that raises when it is looked at
        return f"[{type(value).__name__}: {type(error).__name__}]"
    return value


def _digits(number: int) -> str:
    try:
        return str(number)
    except ValueError:  # Python refuses to spell more than 4,300 digits
        return hex(number)[:MAX_TEXT]
