"""What an archiver sees that is wrong, told as findings: forged events, reused ids, wrong clocks, what cannot be stored.

A finding's id is made from the record that gave rise to it, so a replay tells the same thing under the same id. The same
thing seen again within a minute is counted, not told: a flood of forged events must not become a flood of alerts.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from banksman import events

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from banksman.processors.rows import Row
    from banksman.topics import Topic

QUIET_S = 60.0
REMEMBERED = 200_000

Key = tuple[str, str]


def record_id(received_ms: int, *parts: object) -> str:
    """A UUIDv7 whose random bits are a digest of `parts`: the same parts at the same time make the same id."""
    bits = int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:10], "big")
    number = (received_ms << 80) | 0x7 << 76 | (bits >> 68 & 0xFFF) << 64 | 0b10 << 62 | bits & (1 << 62) - 1
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@dataclass
class Told:
    """When something was last told, and how often it was seen since."""

    at: float
    unsaid: int = 0


@dataclass
class Findings:
    """Collects findings of one archiver. `source`: who speaks, in every finding."""

    source: str
    _told: OrderedDict[str, Told] = field(default_factory=OrderedDict)

    def see(
        self,
        received_ms: int,
        where: str,
        *,
        detector: str,
        severity: str,
        title: str,
        fingerprint: str,
        evidence: dict[str, Any],
        suggestion: str,
        project: str | None = None,
        agent: str | None = None,
        session: str | None = None,
    ) -> events.Finding | None:
        """A finding to be published, or None when the same was told less than a minute ago (by the records' time)."""
        now = received_ms / 1000
        told = self._told.get(fingerprint)
        if told is not None and now - told.at < QUIET_S:
            told.unsaid += 1
            return None
        count = 1 + (told.unsaid if told else 0)
        self._told[fingerprint] = Told(now)
        self._told.move_to_end(fingerprint)
        while len(self._told) > 10_000:
            self._told.popitem(last=False)
        moment = events.rfc3339_ms(received_ms)
        return events.Finding(
            v=1,
            id=record_id(received_ms, where, detector),
            time=moment,
            source=self.source,
            detector=detector,
            severity=severity,  # type: ignore[arg-type]  # the three words are written out below
            title=title,
            fingerprint=fingerprint,
            project=project,
            agent=agent,
            session=session,
            evidence={"record": where, **evidence},
            suggestion=suggestion,
            count=count,
            last_seen=moment,
        )

    def about(self, row: Row, topic: Topic) -> Iterable[events.Finding]:
        """What one row shows by itself: nobody signed it, or its clock is wrong."""
        values = row.values
        agent, where = values.get("agent", ""), f"{topic}/{values['partition']}/{values['offset']}"
        received_ms = round(values["received"] * 1000)
        whose = {key: values.get(key) for key in ("project", "agent", "session")}
        if not row.verified:
            who = f"signed by {row.author}, who may not write this" if row.author else "signed by nobody we know"
            found = self.see(
                received_ms, where, detector="forged", severity="page" if topic.value in ("control", "limits") else "warn",
                title=f"a {values['kind']} in {topic} claims to be {agent or 'a service'} and is {who}",
                fingerprint=f"forged/{topic}/{agent}",
                evidence={"kind": values["kind"], "author": values["author"], "source": values.get("source", "")},
                suggestion="find out who can write to Kafka; the event is stored, marked, and counted by nobody",
                **whose,
            )  # fmt: skip
            if found:
                yield found
        if values["late"] == "skew":
            found = self.see(
                received_ms, where, detector="clock_skew", severity="info",
                title=f"the clock of {agent or values.get('source', '')} says {values['time'][:19]}, the broker's does not",
                fingerprint=f"clock_skew/{agent}",
                evidence={"time": values["time"], "received": events.rfc3339_ms(received_ms)},
                suggestion="set the machine's clock; budgets and retention go by the broker's",
                **whose,
            )  # fmt: skip
            if found:
                yield found


class SeenIds:
    """Which bytes an (agent, id) had, for the newest 200,000; older ones are asked of ClickHouse.

    `floor_ms`: an id whose own time is younger than this can only be a repeat of one that is remembered here.
    """

    def __init__(self, floor_ms: int) -> None:
        self.floor_ms = floor_ms
        self._seen: OrderedDict[Key, tuple[bytes, int]] = OrderedDict()

    def to_look_up(self, rows: Iterable[Row]) -> list[Key]:
        """The (agent, id) of which only ClickHouse knows whether they were used before."""
        return [
            key
            for row in rows
            if (key := _key(row)) not in self._seen
            and not self.floor_ms <= _made_ms(row) <= _received_ms(row) + 120_000
        ]

    def other_bytes(self, row: Row, stored: Mapping[Key, str]) -> bool:
        """Whether this agent used this id before, for other bytes. `stored`: what `to_look_up` asked for, as found."""
        key, digest = _key(row), _digest(row.values["raw"])
        known = self._seen.get(key)
        first = known[0] if known else _digest(stored[key]) if key in stored else digest
        self._seen[key] = (first, _received_ms(row))
        if len(self._seen) > REMEMBERED:
            _, (_, seen_ms) = self._seen.popitem(last=False)
            self.floor_ms = max(self.floor_ms, seen_ms)
        return first != digest


def _key(row: Row) -> Key:
    return row.values.get("agent", ""), row.values["id"]


def _received_ms(row: Row) -> int:
    received: float = row.values["received"]
    return round(received * 1000)


def _made_ms(row: Row) -> int:
    """The time inside a UUIDv7."""
    text: str = row.values["id"]
    return int(text[:8] + text[9:13], 16)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
