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
    from collections.abc import Iterable

    from banksman.processors.rows import Row
    from banksman.topics import Topic

QUIET_S = 60.0
"""The same fingerprint is told once in this many seconds of the records' time."""
AT_MOST = 30
"""Fingerprints of one detector that are told within QUIET_S, however many different agents a forger makes up."""


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
    _windows: dict[str, tuple[float, int]] = field(default_factory=dict)

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
        since, others = self._windows.get(detector, (now, 0))
        if now - since >= QUIET_S:
            since, others = now, 0
        self._windows[detector] = since, others + 1
        if others >= AT_MOST:
            fingerprint, title = f"{detector}/more", f"{detector}: more than {AT_MOST} different ones within a minute"
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
        if values["verified"] and values["late"] != "skew":
            return
        agent, where = values["agent"] or "", where_of(row)
        received_ms = round(values["received"] * 1000)
        whose = {key: values.get(key) for key in ("project", "agent", "session")}
        if not row.verified:
            who = f"signed by {row.author}, who may not write this" if row.author else "signed by nobody we know"
            found = self.see(
                received_ms, where, detector="forged", severity="page" if topic.value in ("control", "limits") else "warn",
                title=f"a {values['kind']} in {topic} claims to be {agent or 'a service'} and is {who}",
                fingerprint=f"forged/{topic}/{agent}",
                evidence={"kind": values["kind"], "author": values["author"], "source": values["source"]},
                suggestion="find out who can write to Kafka; the event is stored, marked, and counted by nobody",
                **whose,
            )  # fmt: skip
            if found:
                yield found
        if values["late"] == "skew":
            found = self.see(
                received_ms, where, detector="clock_skew", severity="info",
                title=f"the clock of {agent or values['source']} says {values['time'][:19]}, the broker's does not",
                fingerprint=f"clock_skew/{agent}",
                evidence={"time": values["time"], "received": events.rfc3339_ms(received_ms)},
                suggestion="set the machine's clock; budgets and retention go by the broker's",
                **whose,
            )  # fmt: skip
            if found:
                yield found

    def id_reuse(self, row: Row) -> events.Finding | None:
        """An agent used an id again, for other bytes."""
        values = row.values
        return self.see(
            round(values["received"] * 1000), where_of(row), detector="id_reuse", severity="warn",
            title=f"the id {values['id']} of {values['agent']} was used again, for other content",
            fingerprint=f"id_reuse/{values['agent']}",
            evidence={"id": values["id"], "kind": values["kind"], "verified": values["verified"]},
            suggestion="both records are stored and shown; find out which of the agent's programs repeats ids",
            **{key: values[key] for key in ("project", "agent", "session")},
        )  # fmt: skip

    def gap(
        self, received_ms: int, full_topic: str, partition: int, expected: int, found: int
    ) -> events.Finding | None:
        """A partition does not go on where it was left: Kafka lost records, or is another Kafka."""
        if found > expected:
            title = f"{found - expected} records of {full_topic} were never archived"
            suggestion = "Kafka's retention is shorter than the archiver was away; make it longer"
        else:
            title = f"{full_topic} begins anew at {found}, and was archived up to {expected - 1}"
            suggestion = "the topic was made again or the broker lost its data; nothing archived is lost"
        return self.see(
            received_ms, f"{full_topic}/{partition}/{found}", detector="gap", severity="page", title=title,
            fingerprint=f"gap/{full_topic}/{partition}", evidence={"expected": expected, "found": found},
            suggestion=suggestion,
        )  # fmt: skip


def where_of(row: Row) -> str:
    """topic/partition/offset"""
    values = row.values
    return f"{values['topic']}/{values['partition']}/{values['offset']}"
