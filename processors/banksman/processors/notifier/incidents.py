"""From findings to incidents, and what has to be told of them next. No clock, no Kafka, no Slack: a fold over the log.

Findings of one fingerprint are one incident until what was seen is over: whoever saw it says so, or, for those who never
do, it was not seen for a while by the time of the broker's stamps. What comes after that is another incident.

What was told stands on the same log, in the notifier's own records. So a notifier that starts anew reads the log, and knows
what is open, what was told where, and what is still to be told.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from banksman import codec
from banksman.events import RANK, Alert, AlertResolved

if TYPE_CHECKING:
    from collections.abc import Callable

    from banksman.events import Finding

DAY_MS = 86_400_000
WINDOW_MS = 7 * DAY_MS
"""How far back the log is read at a start. What was made longer ago than that and comes again was told long ago."""
QUIET_MS = dict.fromkeys(
    (
        "forged", "id_reuse", "clock_skew", "dead_letters", "gap", "policy_rejected", "policy_disagreement", "failed",
        "anomalies", "calls",
    ),
    30 * 60_000,
)  # fmt: skip
"""Detectors that never say that it is over -> after how long without a finding it is."""
SILENCE_MS = WINDOW_MS
"""The same for those who do say it: whoever would have said it is gone."""
REMEMBERED = 200_000
MOST_EVIDENCE = 40
LONGEST = 2000
"""Characters that are kept of one value: more has no room in a message."""
DIGEST_BEYOND = 20
"""New incidents that may wait for one channel; of more a digest is told."""
DIGEST_MOST = 100
LOG = "log"
"""The channel of what is told in the notifier's log alone."""

Need = Literal["open", "escalate", "resolve"]
_again = re.compile(r"\A\d+ more: ")
"""How the archiver begins the title of what it has counted."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an incident was told. `name`: as people write it; `channel`: Slack's id; `own`: the message is about it alone."""

    name: str
    channel: str = LOG
    ts: str = ""
    own: bool = False


IN_LOG = Place(LOG)


@dataclass(slots=True)
class Incident:
    """One thing that is wrong, from its first finding to its resolution."""

    id: str
    """The id of the finding that opened it."""
    fingerprint: str
    detector: str
    opened: int
    """The offset of that finding, and when the broker got it."""
    opened_ms: int
    severity: Literal["info", "warn", "page"]
    """The worst so far."""
    title: str
    project: str | None = None
    agent: str | None = None
    session: str | None = None
    owner: str | None = None
    suggestion: str | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    count: int = 0
    first_ms: int = 0
    last_ms: int = 0
    seen_ms: int = 0
    """When the broker got the last finding."""
    over_ms: int | None = None
    how: str = ""
    """How it ended, in words."""
    since: int = 0
    """The offset that made what is to be told next."""
    revision: int = 0
    # ── what was told ──
    place: Place | None = None
    told: int = -1
    """The rank of the severity that it was told with."""
    told_over: bool = False
    shown: int = -1
    """The revision that its message shows."""
    shown_over: bool = False
    """Its message was posted when it was over already: there is nobody to tell that it is."""
    unsure: int = 0
    """What is to be told next may have been told: by a process that died, or in a request whose answer was lost. So often it
    is looked for.
    """
    busy: bool = False

    @property
    def rank(self) -> int:
        """Of its severity."""
        return RANK[self.severity]

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.over_ms is not None

    @property
    def settled(self) -> bool:
        """Over, and everything told."""
        return self.over and self.told_over

    @property
    def ends_ms(self) -> int:
        """When it is over unless it is seen again."""
        return self.seen_ms + QUIET_MS.get(self.detector, SILENCE_MS)

    def need(self) -> Need | None:
        """What has to be told next."""
        own = self.place is not None and self.place.own
        if self.told < self.rank and not (own and self.over):
            return "escalate" if own else "open"
        return "resolve" if self.over and not self.told_over else None

    def stale(self) -> bool:
        """Whether its message shows less than is known."""
        return self.place is not None and self.place.own and self.shown != self.revision

    def see(self, finding: Finding, received_ms: int, offset: int) -> None:
        """It was seen again; or what ended it was."""
        self.evidence |= {name[:LONGEST]: _short(value) for name, value in finding.evidence.items()}
        while len(self.evidence) > MOST_EVIDENCE:
            self.evidence.pop(next(iter(self.evidence)))
        self.revision += 1
        if finding.over:
            return
        if RANK[finding.severity] > self.rank:
            if self.need() is None:
                self.since = offset
            self.severity = finding.severity
        self.title = _again.sub("", finding.title)[:LONGEST]
        for name in ("project", "agent", "session", "owner", "suggestion"):
            setattr(self, name, (getattr(finding, name) or "")[:LONGEST] or getattr(self, name))
        time = _ms(finding.time, received_ms)
        last = _ms(finding.last_seen, time)
        first = _ms(finding.first_seen, min(last, time))
        # Who says since when has counted since then; who does not, since its last finding.
        total = finding.first_seen is not None and first < min(last, time)
        self.count = max(self.count, finding.count) if total else self.count + finding.count
        self.first_ms = min(first, self.first_ms or first)
        self.last_ms = max(last, self.last_ms)
        self.seen_ms = max(received_ms, self.seen_ms)


class Incidents:
    """All that are open or not fully told. Offsets and times are those of the log of alerts."""

    def __init__(self) -> None:
        self.by_id: dict[str, Incident] = {}
        self.pending: dict[str, Incident] = {}
        """Those of which something has to be told."""
        self.next = 0
        """The offset behind what was applied."""
        self._open: dict[str, Incident] = {}
        self._stale: dict[str, Incident] = {}
        self._ids: OrderedDict[str, None] = OrderedDict()

    # ── from the log ──

    def apply(self, finding: Finding, received_ms: int, offset: int) -> bool:
        """A finding that counts, in the order of the log. The same id again changes nothing. False: too old to be told."""
        self.next = max(self.next, offset + 1)
        if self._known(finding.id):
            return True
        if received_ms - _ms(finding.time, received_ms) > WINDOW_MS:
            return False
        incident = self._open.get(finding.fingerprint)
        if incident is not None and incident.ends_ms <= received_ms:
            self._quiet(incident, offset)
            incident = None
        if finding.over:
            if incident is not None:
                incident.see(finding, received_ms, offset)
                self._close(incident, received_ms, finding.title, offset)
            return True
        if incident is None:
            incident = Incident(
                finding.id, finding.fingerprint, finding.detector, offset, received_ms, finding.severity, finding.title,
                since=offset,
            )  # fmt: skip
            self._add(incident)
        incident.see(finding, received_ms, offset)
        self.note(incident)
        return True

    def heard(self, record: Alert | AlertResolved, received_ms: int, offset: int) -> None:
        """What a notifier wrote down as told. For reading the log again: whoever tells notes it by itself."""
        self.next = max(self.next, offset + 1)
        name = record.evidence.get("incident")
        if self._known(record.id) or not isinstance(name, str):
            return
        incident = self.by_id.get(name)
        if isinstance(record, AlertResolved):
            if incident is not None:
                if not incident.over:
                    self._close(incident, received_ms, str(record.evidence.get("how", "")), offset)
                incident.told_over, incident.told = True, max(incident.told, RANK[record.severity])
                self.note(incident)
            return
        if incident is None:
            if record.fingerprint in self._open:
                return  # what is open under this name knows better
            incident = self._revived(record, name, received_ms, offset)
        incident.told = max(incident.told, RANK[record.severity])
        place = place_of(record.evidence)
        if place.channel != LOG or incident.place is None:
            incident.place = place
        incident.shown_over = bool(record.evidence.get("over"))
        incident.shown = -1  # whether later updates arrived nobody wrote down: showing it once more is no harm
        self.note(incident)

    def lapse(self, now_ms: int) -> list[Incident]:
        """Those that were not seen for as long as makes them over -> closed now. `now_ms`: by the broker's clock."""
        ended = [incident for incident in self._open.values() if incident.ends_ms <= now_ms]
        for incident in ended:
            self._quiet(incident, self.next)
        return ended

    def forget_past(self, before_ms: int) -> None:
        """What was over before a notifier ran for the first time is no news, and is not told."""
        for incident in list(self.pending.values()):
            if incident.told < 0 and incident.over_ms is not None and incident.over_ms < before_ms:
                self._drop(incident)

    def doubt(self) -> None:
        """Whatever is to be told may have been told by the process before."""
        for incident in self.pending.values():
            incident.unsure = 1

    # ── what is to be told, and was ──

    def waiting(self, here: Callable[[Incident], bool]) -> list[Incident]:
        """What has to be told next in one place: one incident, or those of a digest. []: nothing.

        What got worse comes before what is new, what is new before what is over; each in the order of the log.
        """
        found: dict[Need, list[Incident]] = {"escalate": [], "open": [], "resolve": []}
        for incident in self.pending.values():
            need = incident.need()
            if need is not None and not incident.busy and here(incident):
                found[need].append(incident)
        for several in found.values():
            several.sort(key=lambda incident: (incident.since, incident.opened))
        if found["escalate"]:
            return found["escalate"][:1]
        if len(found["open"]) > DIGEST_BEYOND:
            return found["open"][:DIGEST_MOST]
        return (found["open"] or found["resolve"])[:1]

    def stale(self, here: Callable[[Incident], bool]) -> list[Incident]:
        """Those whose message shows less than is known, and of which nothing else is to be told."""
        return [one for one in self._stale.values() if not one.busy and one.need() is None and here(one)]

    def note(self, incident: Incident) -> None:
        """To be called when an incident was changed: by what was seen, or by what was told."""
        if incident.settled:
            self._drop(incident)
            return
        if incident.need() is None:
            self.pending.pop(incident.id, None)
        else:
            self.pending[incident.id] = incident
        if incident.stale():
            self._stale[incident.id] = incident
        else:
            self._stale.pop(incident.id, None)

    def open(self, fingerprint: str) -> Incident | None:
        """The one of this fingerprint that is not over."""
        return self._open.get(fingerprint)

    @property
    def done(self) -> int:
        """The offset below which everything was told."""
        return min((incident.since for incident in self.pending.values()), default=self.next)

    @property
    def oldest(self) -> int:
        """The offset from which the log has to be read to know what is known."""
        return min((incident.opened for incident in self.by_id.values()), default=self.next)

    # ── inside ──

    def _known(self, name: str) -> bool:
        if name in self._ids:
            return True
        self._ids[name] = None
        if len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)
        return False

    def _revived(self, record: Alert, name: str, received_ms: int, offset: int) -> Incident:
        """One that is known from what was told of it alone."""
        made = Incident(
            name, record.fingerprint, record.detector, offset, received_ms, record.severity, record.title,
            project=record.project, agent=record.agent, session=record.session, owner=record.owner,
            suggestion=record.suggestion, count=record.count, since=offset,
            first_ms=_ms(record.first_seen, received_ms), last_ms=_ms(record.last_seen, received_ms), seen_ms=received_ms,
        )  # fmt: skip
        self._add(made)
        return made

    def _add(self, incident: Incident) -> None:
        self.by_id[incident.id] = incident
        self._open[incident.fingerprint] = incident

    def _quiet(self, incident: Incident, offset: int) -> None:
        minutes = (incident.ends_ms - incident.seen_ms) // 60_000
        how = f"not seen again for {minutes} min" if minutes < 600 else f"not seen again for {minutes // 1440} days"
        self._close(incident, incident.ends_ms, how, offset)

    def _close(self, incident: Incident, at_ms: int, how: str, offset: int) -> None:
        if incident.need() is None:
            incident.since = offset
        incident.over_ms, incident.how = at_ms, how
        incident.revision += 1
        if self._open.get(incident.fingerprint) is incident:
            del self._open[incident.fingerprint]
        self.note(incident)

    def _drop(self, incident: Incident) -> None:
        for several in (self.by_id, self.pending, self._stale):
            several.pop(incident.id, None)


def place_of(evidence: dict[str, Any]) -> Place:
    """Where something was told, as its record says."""
    channel = str(evidence.get("channel", LOG))
    return Place(
        str(evidence.get("name", channel)), channel, str(evidence.get("ts", "")), own=evidence.get("digest") is not True
    ) if channel != LOG else IN_LOG  # fmt: skip


def _short(value: Any) -> Any:
    if isinstance(value, (int, float, bool)) or value is None:
        return value
    text = value if isinstance(value, str) else codec.encode(value).decode()
    return value if len(text) <= LONGEST else text[:LONGEST]


def _ms(time: str | None, otherwise: int) -> int:
    """RFC 3339 -> ms since 1970."""
    try:
        return int(datetime.fromisoformat(time or "").timestamp() * 1000)
    except (ValueError, OverflowError):
        return otherwise
