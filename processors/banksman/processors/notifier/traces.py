"""The metadata that our messages carry, and what it says when they are found again: who was told of what, and how.

Slack's payloads hold texts, numbers and truth values, and no lists of texts: the members of a digest are one text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from banksman.events import RANK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from banksman.processors.notifier.incidents import Incident
    from banksman.processors.notifier.slack import Found


@dataclass(frozen=True)
class Trace:
    """An incident was told in the message `ts`, with a severity of this rank. `own`: the message is about it alone."""

    ts: str
    rank: int
    over: bool
    own: bool


def opened(one: Incident) -> dict[str, Any]:
    """Of the message of one incident."""
    return {"incident": one.id, "step": "opened", "severity": one.severity, "over": one.over}


def digest(several: Sequence[Incident]) -> dict[str, Any]:
    """Of the message of many."""
    members = ",".join(f"{_tail(one)}{one.rank}" for one in several)
    return {"incident": several[0].id, "step": "digest", "incidents": members}


def reply(one: Incident, step: str) -> dict[str, Any]:
    """Of what is told in a thread."""
    return {"incident": one.id, "step": step}


def replied(one: Incident, step: str, found: Sequence[Found]) -> bool:
    """Whether a thread has that already."""
    return any(each.payload.get("incident") == one.id and each.payload.get("step") == step for each in found)


def told(one: Incident, found: Sequence[Found]) -> Trace | None:
    """The message that has told of it since it was last known to be told."""
    for each in found:
        step = each.payload.get("step")
        if step == "opened" and each.payload.get("incident") == one.id:
            rank = RANK.get(str(each.payload.get("severity")), RANK["warn"])
            return Trace(each.ts, rank, over=bool(each.payload.get("over")), own=True)
        if step == "digest" and (one.place is None or each.ts > one.place.ts):
            for member in str(each.payload.get("incidents", "")).split(","):
                if member[:-1] == _tail(one) and member[-1:].isdigit():
                    return Trace(each.ts, int(member[-1]), over=False, own=False)
    return None


def _tail(one: Incident) -> str:
    """The random end of its id: enough to tell it from a hundred others, and metadata must be small."""
    return one.id[-12:]
