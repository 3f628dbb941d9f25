"""Findings and dead letters on their way to Kafka: signed, and acknowledged before the rows that they are about are stored."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from banksman import bus, codec, events, stamps
from banksman.errors import Unavailable
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from aiokafka import AIOKafkaProducer

    from banksman.processors.archiver.letters import Letter
    from banksman.settings import Kafka
    from banksman.signing import Headers, Signer

logger = logging.getLogger("banksman")


class Teller:
    """Publishes for one archiver. `source`: who speaks."""

    def __init__(self, producer: AIOKafkaProducer, kafka: Kafka, signer: Signer, source: str) -> None:
        self._signer, self._source = signer, source
        self._alerts = bus.Publisher(producer, kafka.topic(Topic.ALERTS), deadline=3600)
        self._dead = bus.Publisher(producer, kafka.topic(Topic.DEAD), deadline=3600)

    @property
    def dead_topic(self) -> str:
        """The full name of the topic of dead letters."""
        return self._dead.topic

    async def tell(self, findings: Iterable[events.Finding], letters: Sequence[Letter] = ()) -> None:
        """All of them, acknowledged."""
        await asyncio.gather(*map(self._finding, findings))
        for letter in letters:  # one after another: each may have megabytes
            await self._letter(letter)

    async def _finding(self, finding: events.Finding) -> None:
        key, value = (finding.agent or finding.project or "banksman").encode(), codec.encode(finding)
        made = self._signer.headers(
            self._alerts.topic, key, value, id=finding.id, kind="finding", time=finding.time, source=finding.source
        )
        await _acknowledged(self._alerts, key, value, made)

    async def _letter(self, letter: Letter) -> None:
        made = self._signer.headers(
            self._dead.topic, b"", letter.value, id=letter.id, kind="dead", time=stamps.rfc3339_ms(letter.received_ms),
            source=self._source,
        )  # fmt: skip
        await _acknowledged(self._dead, b"", letter.value, made)


async def _acknowledged(to: bus.Publisher, key: bytes, value: bytes, headers: Headers) -> None:
    """Publish, however long it takes: a finding or a dead letter that is lost would be silent."""
    while True:
        try:
            await to.put(0, key, value, list(headers))
        except Unavailable as error:
            logger.warning("%s", error)
            await asyncio.sleep(0.5)
        else:
            return
