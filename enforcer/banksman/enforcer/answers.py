"""Answers that were given: the same question again gets the same answer while nothing that could change it has changed.

A question is known by (agent, id). Kept for ten minutes, 100,000 at most, on this replica only: another one decides
afresh and both answers are on record (docs/decisions/0051).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

KEEP_S = 600.0
KEEP = 100_000


class Answer(msgspec.Struct, omit_defaults=True, gc=False):
    """What a caller of `POST /v1/decide` gets with its 200."""

    id: str
    """The decision's own id: the record's."""
    decision: Literal["allow", "deny", "approve"]
    tier: int
    rule: str | None
    policy: str | None
    policy_version: str | None
    reason: str
    valid_until: str
    """The end of the lease under which this was answered: who has not acted by then should ask again."""
    approval: str | None = None
    budget: dict[str, Any] | None = None
    """The budget that is spent, where that is the reason: unit, spent, limit, resets_at."""


class Asked:
    """One question: what its body was, and its answer, once there is one."""

    __slots__ = ("answer", "at", "body", "generation", "waiting")

    def __init__(self, body: bytes, at: float) -> None:
        self.body, self.at = body, at
        self.answer: Answer | None = None
        self.generation: object = None
        self.waiting: list[asyncio.Future[None]] | None = None


class Answers:
    """The questions of the last ten minutes. `now` in seconds, of any clock that does not go back."""

    def __init__(self, now: Callable[[], float], *, keep: int = KEEP, keep_s: float = KEEP_S) -> None:
        self._now, self._keep, self._keep_s = now, keep, keep_s
        self._asked: OrderedDict[tuple[str, str], Asked] = OrderedDict()

    def __len__(self) -> int:
        return len(self._asked)

    def find(self, agent: str, question: str) -> Asked | None:
        """What is known of a question, or None."""
        known = self._asked.get((agent, question))
        if known is not None and self._now() - known.at > self._keep_s:
            del self._asked[agent, question]
            return None
        return known

    def begin(self, agent: str, question: str, body: bytes) -> Asked:
        """Note that a question is being decided; whoever asks the same meanwhile waits for this one."""
        asked = Asked(fingerprint(body), self._now())
        asked.waiting = []
        self._asked[agent, question] = asked
        self._asked.move_to_end((agent, question))
        while len(self._asked) > self._keep:
            self._asked.popitem(last=False)
        return asked

    def finish(self, asked: Asked, answer: Answer | None, generation: object) -> None:
        """The answer that was given, or None when there was none (503): the next one who asks is decided afresh."""
        asked.answer, asked.generation = answer, generation
        waiting, asked.waiting = asked.waiting, None
        for future in waiting or ():
            if not future.done():
                future.set_result(None)

    async def settled(self, asked: Asked) -> None:
        """Return when the question is not being decided any more."""
        while asked.waiting is not None:
            future = asyncio.get_running_loop().create_future()
            asked.waiting.append(future)
            await future


def fingerprint(body: bytes) -> bytes:
    """What is kept of a question's body: enough to see that another one came under the same id."""
    return blake2b(body, digest_size=16).digest()
