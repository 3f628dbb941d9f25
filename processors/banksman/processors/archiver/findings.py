"""What an archiver sees that is wrong, told as findings: forged events, reused ids, wrong clocks, what cannot be stored.

A finding's id is made from the record that gave rise to it, so a replay tells the same thing under the same id. The same
thing seen again within a minute is counted, and the count is told when the minute is over: a flood of forged events must
not become a flood of alerts, and none of them is left out of the sum.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from banksman import events, stamps
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from banksman.processors.archiver.letters import Letter
    from banksman.processors.archiver.rows import Entry, Rows

QUIET_MS = 60_000
"""The same fingerprint is told once in this time."""
AT_MOST = 30
"""Fingerprints of one detector and severity that are told within that time, however many different agents a forger makes up. A
flood of warnings hides no page.
"""
REMEMBERED = 10_000


def record_id(received_ms: int, *parts: object) -> str:
    """A UUIDv7 whose random bits are a digest of `parts`: the same parts at the same time make the same id."""
    bits = int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:10], "big")
    number = (received_ms << 80) | 0x7 << 76 | (bits >> 68 & 0xFFF) << 64 | 0b10 << 62 | bits & (1 << 62) - 1
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@dataclass(frozen=True)
class Sight:
    """The same thing, seen `times` times in one round, first in the record `where` (topic/partition/offset)."""

    received_ms: int
    where: str
    detector: str
    fingerprint: str
    times: int = 1
    last_ms: int = 0


@dataclass
class _Told:
    """What was last told under a fingerprint, and how often it was seen since, last in which record."""

    finding: events.Finding
    at_ms: int
    clock_ms: int
    unsaid: int = 0
    last_ms: int = 0
    last_where: str = ""


@dataclass
class Findings:
    """Collects findings of one archiver. `source`: who speaks, in every finding."""

    source: str
    _told: OrderedDict[str, _Told] = field(default_factory=OrderedDict)
    _windows: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    def see(
        self,
        sight: Sight,
        clock_ms: int,
        *,
        severity: str,
        title: str,
        evidence: dict[str, Any],
        suggestion: str,
        project: str | None = None,
        agent: str | None = None,
        session: str | None = None,
    ) -> events.Finding | None:
        """A finding to be published, or None when the same was told less than a minute ago (by the records' time)."""
        fingerprint = sight.fingerprint
        if self._is_known(fingerprint, sight, severity):
            return None
        window = sight.detector, severity
        since, others = self._windows.get(window, (sight.received_ms, 0))
        if sight.received_ms - since >= QUIET_MS:
            since, others = sight.received_ms, 0
        self._windows[window] = since, others + 1
        if others >= AT_MOST:
            fingerprint = f"{sight.detector}/more/{severity}"
            title = f"{sight.detector}: more than {AT_MOST} different ones within a minute"
            if self._is_known(fingerprint, sight, severity):
                return None
        before = self._told.get(fingerprint)
        last = stamps.rfc3339_ms(sight.last_ms or sight.received_ms)
        finding = events.Finding(
            v=1,
            id=record_id(sight.received_ms, sight.where, sight.detector),
            time=stamps.rfc3339_ms(sight.received_ms),
            source=self.source,
            detector=sight.detector,
            severity=severity,  # type: ignore[arg-type]  # the three words are written out below
            title=title,
            fingerprint=fingerprint,
            project=project,
            agent=agent,
            session=session,
            evidence={"record": sight.where, **evidence},
            suggestion=suggestion,
            count=sight.times + (before.unsaid if before else 0),
            last_seen=last,
        )
        self._told[fingerprint] = _Told(finding, sight.received_ms, clock_ms)
        self._told.move_to_end(fingerprint)
        while len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        return finding

    def _is_known(self, fingerprint: str, sight: Sight, severity: str) -> bool:
        """Whether it was told less than a minute ago, as no less than this. If so, counts it."""
        told = self._told.get(fingerprint)
        if (
            told is None
            or sight.received_ms - told.at_ms >= QUIET_MS
            or events.RANK[severity] > events.RANK[told.finding.severity]
        ):
            return False
        told.unsaid += sight.times
        told.last_ms, told.last_where = sight.last_ms or sight.received_ms, sight.where
        return True

    def overdue(self, clock_ms: int) -> Iterator[events.Finding]:
        """What was counted and not told for a minute of this archiver's clock."""
        for told in self._told.values():
            if told.unsaid and clock_ms - told.clock_ms >= QUIET_MS:
                finding = told.finding
                yield msgspec.structs.replace(
                    finding,
                    id=record_id(told.last_ms, told.last_where, finding.detector, "again"),
                    time=stamps.rfc3339_ms(told.last_ms),
                    title=f"{told.unsaid} more: {finding.title.split(' more: ', 1)[-1]}",
                    evidence={"record": told.last_where},
                    count=told.unsaid,
                    last_seen=stamps.rfc3339_ms(told.last_ms),
                )
                told.at_ms, told.clock_ms, told.unsaid = told.last_ms, clock_ms, 0

    # ── what is looked for ──

    def about(self, rows: Rows, clock_ms: int) -> Iterable[events.Finding]:
        """What rows show by themselves: nobody signed them, or their clock is wrong."""
        verified, late = rows.columns["verified"], rows.columns["late"]
        if all(verified) and "skew" not in late:
            return
        agents = rows.columns["agent"]
        forged: dict[str, list[int]] = {}
        skewed: dict[str, list[int]] = {}
        for place, (counts, mark, agent) in enumerate(zip(verified, late, agents, strict=True)):
            if not counts:
                forged.setdefault(agent or "", []).append(place)
            if mark == "skew":
                skewed.setdefault(agent or "", []).append(place)
        told = [self._forged(rows, places, clock_ms) for places in forged.values()]
        told += [self._skew(rows, places, clock_ms) for places in skewed.values()]
        yield from (finding for finding in told if finding)

    def _forged(self, rows: Rows, places: Sequence[int], clock_ms: int) -> events.Finding | None:
        entry = rows.entry(places[0])
        who = f"signed by {entry.author}, who may not write this" if entry.author else "signed by nobody we know"
        return self.see(
            _sight(rows, places, "forged", f"forged/{rows.topic}/{entry.agent or ''}"), clock_ms,
            severity="page" if rows.topic.value in ("control", "limits") else "warn",
            title=f"a {entry.kind} in {rows.topic} claims to be {entry.agent or 'a service'} and is {who}",
            evidence={"kind": entry.kind, "author": entry.author, "source": entry.source},
            suggestion="find out who can write to Kafka; the event is stored, marked, and counted by nobody",
            **_whose(entry),
        )  # fmt: skip

    def _skew(self, rows: Rows, places: Sequence[int], clock_ms: int) -> events.Finding | None:
        entry = rows.entry(places[0])
        time = stamps.rfc3339(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=entry.time_us))
        # A service's record about an agent has the service's time.
        whose = entry.agent if rows.topic is Topic.ACTIONS else None
        return self.see(
            _sight(rows, places, "clock_skew", f"clock_skew/{whose or entry.source}"), clock_ms, severity="info",
            title=f"the clock of {whose or entry.source} says {time[:19]}, the broker's does not",
            evidence={"time": time, "received": stamps.rfc3339_ms(entry.received_ms)},
            suggestion="set the machine's clock; budgets and retention go by the broker's",
            **_whose(entry),
        )  # fmt: skip

    def id_reuse(self, entry: Entry, clock_ms: int) -> events.Finding | None:
        """An agent used an id again, for other bytes."""
        return self.see(
            Sight(entry.received_ms, entry.where, "id_reuse", f"id_reuse/{entry.agent or ''}"), clock_ms,
            severity="warn", title=f"the id {entry.id} of {entry.agent} was used again, for other content",
            evidence={"id": entry.id, "kind": entry.kind, "verified": entry.verified},
            suggestion="both records are stored and shown; find out which of the agent's programs repeats ids",
            **_whose(entry),
        )  # fmt: skip

    def gap(
        self, received_ms: int, full_topic: str, partition: int, expected: int, found: int, clock_ms: int
    ) -> events.Finding | None:
        """A partition does not go on where it was left: Kafka removed records before they were archived."""
        title = f"{found - expected} records of {full_topic} were never archived"
        suggestion = "Kafka's retention is shorter than the archiver was away; make it longer"
        where = f"{full_topic}/{partition}/{found}"
        return self.see(
            Sight(received_ms, where, "gap", f"gap/{full_topic}/{partition}"), clock_ms, severity="page", title=title,
            evidence={"expected": expected, "found": found}, suggestion=suggestion,
        )  # fmt: skip

    def dead_letters(self, letters: Sequence[Letter], of: int, dead_topic: str, clock_ms: int) -> events.Finding | None:
        """Some of `of` records can never be stored: a page when they are many."""
        first, last = letters[0], letters[-1]
        many = len(letters) >= 20 and len(letters) * 10 >= of
        return self.see(
            Sight(first.received_ms, first.where, "dead_letters", "dead_letters", len(letters), last.received_ms),
            clock_ms, severity="page" if many else "warn",
            title=f"{len(letters)} of {of} records can never be stored", evidence={"first": first.error[:1000]},
            suggestion=f"read {dead_topic}: each letter holds the record, where it lay and the reason",
        )  # fmt: skip


def _sight(rows: Rows, places: Sequence[int], detector: str, fingerprint: str) -> Sight:
    received, offsets = rows.columns["received"], rows.columns["offset"]
    first, last = places[0], places[-1]
    where = f"{rows.topic}/{rows.partition}/{offsets[first]}"
    return Sight(received[first], where, detector, fingerprint, len(places), received[last])


def _whose(entry: Entry) -> dict[str, str | None]:
    return {"project": entry.project, "agent": entry.agent, "session": entry.session}
