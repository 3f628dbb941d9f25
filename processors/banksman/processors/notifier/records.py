"""What the notifier writes down: that an incident was told, where, and that it is over. It is what the next start goes by."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from banksman import bus, codec, events, stamps
from banksman.errors import Unavailable
from banksman.events import RANK, kind_of
from banksman.service_events import service_event
from banksman.signing import service_signer
from banksman.topics import Topic

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer
    from aiokafka.structs import ConsumerRecord

    from banksman.processors.notifier.incidents import Incident, Place
    from banksman.settings import Kafka
    from banksman.signing import Secret, Verifier

SERVICE = "notifier"
_SEVERITIES: tuple[Any, ...] = tuple(RANK)
_log = logging.getLogger("banksman")


def counted(record: ConsumerRecord, topic: str, verifier: Verifier) -> events.Finding | None:
    """The finding, or what a notifier wrote, if one of our services wrote it for live use, exactly so. Everything else is
    stored by the archiver and told by it.
    """
    event, author = service_event(record, Topic.ALERTS, topic, verifier) or (None, None)
    if author is None or not isinstance(event, events.Finding):
        return None
    ours = author.service == SERVICE or not isinstance(event, (events.Alert, events.AlertResolved))
    return event if ours else None


def alert(incident: Incident, place: Place, rank: int, source: str, *, over: bool) -> events.Alert:
    """That it was told. Its id comes from the incident and the severity alone: what is written twice is seen to be the same."""
    severity = _SEVERITIES[rank]
    evidence: dict[str, Any] = {"incident": incident.id, "name": place.name, "channel": place.channel}
    if place.ts:
        evidence |= {"ts": place.ts} if place.own else {"ts": place.ts, "digest": True}
    if over:
        evidence["over"] = True
    id_ = stamps.uuid7_from(incident.opened_ms, "alert", incident.id, severity)
    return events.Alert(**_about(incident, id_, source), severity=severity, evidence=evidence)


def resolution(incident: Incident, source: str) -> events.AlertResolved:
    """That it is over."""
    evidence: dict[str, Any] = {"incident": incident.id, "how": incident.how}
    if incident.over_ms is not None:
        evidence["over_at"] = stamps.rfc3339_ms(incident.over_ms)
    if incident.place is not None:
        evidence |= {"name": incident.place.name, "channel": incident.place.channel, "ts": incident.place.ts}
    id_ = stamps.uuid7_from(incident.opened_ms, "alert.resolved", incident.id)
    about = _about(incident, id_, source)
    return events.AlertResolved(**about, severity=incident.severity, evidence=evidence, over=True)


def _about(incident: Incident, id_: str, source: str) -> dict[str, Any]:
    return {
        "v": 1, "id": id_, "time": stamps.rfc3339(), "source": source, "parent": incident.id,
        "detector": incident.detector, "title": incident.title, "fingerprint": incident.fingerprint,
        "project": incident.project, "agent": incident.agent, "session": incident.session, "owner": incident.owner,
        "suggestion": incident.suggestion, "count": incident.count,
        "first_seen": stamps.rfc3339_ms(incident.first_ms), "last_seen": stamps.rfc3339_ms(incident.last_ms),
    }  # fmt: skip


class Records:
    """The notifier's pen."""

    def __init__(self, producer: AIOKafkaProducer, kafka: Kafka, secret: Secret, instance: str) -> None:
        self._signer, self.source = service_signer(secret, SERVICE), f"{SERVICE}#{instance}"
        self._to = bus.Publisher(producer, kafka.topic(Topic.ALERTS), deadline=30)

    async def told(self, incident: Incident, place: Place, rank: int, *, over: bool) -> None:
        """An `alert`, acknowledged."""
        await self._write(alert(incident, place, rank, self.source, over=over))

    async def resolved(self, incident: Incident) -> None:
        """An `alert.resolved`, acknowledged."""
        await self._write(resolution(incident, self.source))

    async def found(self, finding: events.Finding) -> None:
        """Something that the notifier saw itself, acknowledged. Unavailable: it was not (it may still land)."""
        await self._put(finding)

    async def _write(self, event: events.Finding) -> None:
        """However long it takes: what was told and is not on record would be told again."""
        while True:
            try:
                await self._put(event)
            except Unavailable as error:
                _log.warning("%s", error)
                await asyncio.sleep(0.5)
            else:
                return

    async def _put(self, event: events.Finding) -> None:
        key, value = (event.agent or event.project or "banksman").encode(), codec.encode(event)
        kind = kind_of(event)
        headers = self._signer.headers(
            self._to.topic, key, value, id=event.id, kind=kind, time=event.time, source=event.source
        )
        await self._to.put(0, key, value, list(headers))
