"""Whether a record counts, and for what: did its author write it, and is it about now."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from banksman.signing import may_write
from banksman.topics import Topic

if TYPE_CHECKING:
    from banksman.signing import Author

TOLERANCE_S = 120
"""How far an author's clock may be from the broker's before it shows."""

_KEYED_BY_AGENT = frozenset((Topic.ACTIONS, Topic.DECISIONS))


def is_right(
    author: Author | None, topic: Topic, kind: str,
    ce_type: bytes | None, key: bytes | None, is_replay: bool, project: str | None, agent: str | None,
) -> bool:  # fmt: skip
    """Whether `author` may say this of this agent, and the record's key and type say the same."""
    return (
        author is not None
        and may_write(author, topic, kind=kind, project=project, agent=agent)
        and (not is_replay or author.service != "")  # no agent hides what it does as history
        and ce_type == b"banksman." + kind.encode()
        and (topic not in _KEYED_BY_AGENT or key == (agent or "").encode())
    )


def lateness(received_ms: int, sent: bytes | None) -> str:
    """Of an event whose time is far from the broker's. `late`: its author's clock agrees with the broker's, but this happened
    long before it was sent (a spool emptied after an outage). `skew`: it does not, or nothing says so.
    """
    try:
        moment = datetime.fromisoformat((sent or b"").decode())
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return "late" if abs(moment.timestamp() - received_ms / 1000) <= TOLERANCE_S else "skew"
    except (ValueError, OverflowError):
        return "skew"
