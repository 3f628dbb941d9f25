"""Whether the services do their work, seen from the log alone: one that hangs is seen as well as one that is gone.

What is wrong is a finding like any other, so it is told once, and that it is over too. It needs no memory: what was told is
an incident that is open, whoever opened it. With Kafka away nothing can be written down, and nothing is told.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError

from banksman.errors import BanksmanError, Unavailable
from banksman.events import Finding
from banksman.events import Replica as Heartbeat
from banksman.progress import ARCHIVER, PROCESSORS
from banksman.stamps import boottime, rfc3339, uuid7
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from banksman.events import Event
    from banksman.processors.notifier.incidents import Incidents
    from banksman.processors.notifier.records import Records
    from banksman.progress import Progress

LOOK_S = 1.0
SURE_S = 3.0
"""Beyond what makes a service late, that it has to be well for: looks and marks are a second apart."""
AGAIN_S = 300.0
"""What goes on being wrong is written down again after so long, with what is known then."""
DETECTOR = "watchdog"
ENFORCERS = "enforcers"
_log = logging.getLogger("banksman")


@dataclass(frozen=True)
class Word:
    """What to say about a service that does not do its work, and what to do about it."""

    wrong: str
    fine: str
    suggestion: str


WORDS = {
    ARCHIVER: Word(
        "the audit log is not kept up to date: records have been waiting for the archiver for {seconds:.0f} s",
        "the archiver has caught up",
        "banksman doctor; is `banksman serve archiver` running, and ClickHouse? Decisions go on, and Kafka keeps all records",
    ),
    PROCESSORS: Word(
        "nobody counts what agents do: records have been waiting for the processors for {seconds:.0f} s",
        "the processors have caught up",
        "banksman doctor; is `banksman serve processors` running? Agents with a budget are refused, and no loop is seen",
    ),
    ENFORCERS: Word(
        "no enforcer has been alive for {seconds:.0f} s: agents get no answer, and so may do nothing",
        "an enforcer is alive",
        "banksman doctor; start `banksman serve enforcer`, and read its log",
    ),
}


class Enforcers:
    """When replicas were last alive, by their heartbeats in `control`."""

    def __init__(self) -> None:
        self._read: float | None = None

    def seen(self, event: Event) -> None:
        """Any verified record of `control`, at the moment it is read. No clock but this machine's: an old heartbeat counts as
        one of the moment in which a notifier that starts reads it, which gives enforcers that start with it their time.
        """
        if isinstance(event, Heartbeat) and (self._read is None or not event.ended):
            self._read = boottime()  # a goodbye says, at least, that there was one

    def away_s(self) -> float | None:
        """For how long at least none has been; None where there never was one."""
        return boottime() - self._read if self._read is not None else None


class Watchdog:
    """Of one notifier. `late_s`: how long a service may not do its work before people are told."""

    def __init__(
        self, progress: Progress, records: Records, enforcers: Enforcers, late_s: float, *, may: Callable[[], Incidents | None],
        now_ms: Callable[[], int], applied: Callable[[], int],
    ) -> None:  # fmt: skip
        """`may`: what is known, while this notifier is the one that tells. `applied`: up to which offset `control` is read."""
        self._progress, self._records, self._enforcers, self._late_s = progress, records, enforcers, late_s
        self._may, self._now_ms, self._applied = may, now_ms, applied
        self._well_since: dict[str, float] = {}
        self._blind = False

    async def run(self) -> None:
        """Look, again and again. Never returns."""
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                await self.look()
        finally:
            await self._progress.close()

    async def look(self) -> None:
        """Look once, and write down what there is to say."""
        try:
            await self._progress.look()
        except (KafkaError, OSError, BanksmanError) as error:  # a time-out is an OSError
            self._well_since.clear()
            if not self._blind:
                _log.warning("the watchdog does not see Kafka: %s: %s", type(error).__name__, error)
            self._blind = True
            return
        self._blind = False
        incidents = self._may()
        if incidents is None:
            self._well_since.clear()
            return
        for finding in list(self.found(incidents)):
            try:
                await self._records.found(finding)
            except Unavailable as error:  # the next look says it afresh, if it is still so
                _log.warning("%s", error)
                return

    def found(self, incidents: Incidents) -> Iterator[Finding]:
        """What there is to say that was not said."""
        for service, word in WORDS.items():
            seconds = self._seconds(service)
            if seconds is None:
                self._well_since.pop(service, None)
                continue
            known = incidents.open(f"{DETECTOR}/{service}")
            if seconds > self._late_s:
                self._well_since.pop(service, None)
                if known is None or self._now_ms() - known.seen_ms > AGAIN_S * 1000:
                    yield self._finding(service, word, seconds)
            elif known is not None:
                # One that is always a little too late is, by marks, well for so long after each of them.
                since = self._well_since.setdefault(service, boottime())
                if boottime() - since > self._late_s + SURE_S:
                    yield self._finding(service, word, seconds, over=True)

    def _seconds(self, service: str) -> float | None:
        """For how long it has not done its work; None: that is not known."""
        if service == ENFORCERS:
            ends = self._progress.ends or {}
            read = self._applied() >= ends.get((Topic.CONTROL.value, 0), 0) - 1  # else heartbeats may be on their way
            return self._enforcers.away_s() if read else None
        return self._progress.seconds(service)

    def _finding(self, service: str, word: Word, seconds: float, *, over: bool = False) -> Finding:
        evidence: dict[str, Any] = {"service": service, "seconds": round(seconds, 1)}
        if service != ENFORCERS:
            evidence["waiting"] = self._progress.lag(service)
        return Finding(
            v=1, id=uuid7(), time=rfc3339(), source=self._records.source, detector=DETECTOR,
            severity="info" if over else "page",
            title=word.fine if over else word.wrong.format(seconds=seconds), fingerprint=f"{DETECTOR}/{service}",
            evidence=evidence, suggestion=None if over else word.suggestion, over=over,
        )  # fmt: skip
