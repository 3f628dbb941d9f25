"""How detectors tell operations apart, remember that they saw one, and show them to people.

What an agent wrote is only ever kept as a digest or as a short visible text: it must not fill a state, nor draw in a title.
"""

from __future__ import annotations

import hashlib
import shlex
from typing import TYPE_CHECKING

import msgspec

from banksman import canonical
from banksman.policy.normal import fold_action

if TYPE_CHECKING:
    from banksman.events import ApiRequest, Decision, ToolCall

    Operation = ToolCall | ApiRequest | Decision

DIGEST = 8
"""Bytes. Enough that nobody finds an other text with the same one among the few that a state holds."""


def digest(*parts: str | None) -> bytes:
    """Of texts, and which of them there are."""
    joined = "\x00".join(["\x01" if part is None else part for part in parts])
    return hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=DIGEST).digest()


def digest_of(event: Operation) -> bytes:
    """Of the operation without its arguments."""
    return digest(event.service, fold_action(event.service, event.action), event.resource, event.branch)


def arguments_of(event: Operation) -> str | None:
    """What tells these arguments from others: their hash; where nobody made one, the arguments. None: there are none."""
    if event.args_hash is not None or event.args is None:
        return event.args_hash
    return msgspec.json.encode(event.args, order="sorted").decode()


def masked(error: str | None, most: int = 1000) -> str:
    """An error's text as producers hash it, for people: the same failure at another line is the same."""
    return visible(canonical.masked((error or "")[:1000]), most)


def call_of(event: ToolCall) -> str:
    """What decision and result name: the call that it says it is, or its id."""
    return event.call or event.id


# ── a set of digests that is one value: small on the wire, and copied faster than it could be encoded ──


def holds(packed: bytes, one: bytes) -> bool:
    """Whether a digest is among them."""
    return _place(packed, one) >= 0


def with_one(packed: bytes, one: bytes, most: int) -> bytes:
    """With a digest as the newest; beyond `most` the oldest goes."""
    place = _place(packed, one)
    if place >= 0:
        packed = packed[:place] + packed[place + DIGEST :]
    return (packed + one)[-most * DIGEST :]


def _place(packed: bytes, one: bytes) -> int:
    place = packed.find(one)
    while place > 0 and place % DIGEST:  # across two of them
        place = packed.find(one, place + 1)
    return place


# ── for people ──


def visible(text: str, most: int) -> str:
    """An agent's words as a part of a sentence: one line, nothing invisible, not longer than `most`."""
    cut = text[:most]
    if not cut.isprintable():
        cut = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in cut)
    return cut if len(text) <= most else cut + "…"


def label(event: Operation, most: int = 60) -> str:
    """The operation in short: `git:push(acme/billing main)`."""
    name = visible(f"{event.service}:{event.action}", 60)
    target = " ".join(part for part in (event.resource, event.branch) if part)
    return f"{name}({visible(target, most)})" if target else name


def command(*words: str) -> str:
    """A command of ours to be copied."""
    return shlex.join(("banksman", *words))
