"""The `control` topic as services believe it: in offset order, and of each record only what one of ours has signed.

Who applies it keeps a state of its own; what is not verified is applied by nobody and told to `forged`.

A signature says who wrote a record, not where it belongs. Somebody who can write to `control` could append a copy of a
genuine one: of the rotation that made a stolen token good, after it was rotated out. So a record counts once, and only
close to the time that it was signed at: what was written at another time than its own is a copy, or a wrong clock.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from banksman import codec
from banksman.bus import follow
from banksman.errors import InvalidEvent
from banksman.events import Replica
from banksman.service_events import doubt
from banksman.signing import Verifier
from banksman.stamps import moment_ms
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from aiokafka.structs import ConsumerRecord

    from banksman.events import Event
    from banksman.settings import Kafka
    from banksman.signing import Secret

DETECTORS = "processors"
"""The service that acts for detectors."""
MOST_APART_MS = 10 * 60_000
"""How far a record's own time may be from Kafka's. Within it copies are known by their ids; wrong clocks are mended."""
_log = logging.getLogger("banksman")


@dataclass(frozen=True)
class Forged:
    """A control record that nobody of ours has signed, or that cannot be understood."""

    offset: int
    received_ms: int
    why: str
    key: str
    kind: str


class ControlLog:
    """Reads `control` and judges its records. `forged(Forged)` is called for each that does not count."""

    def __init__(self, kafka: Kafka, secret: Secret, forged: Callable[[Forged], None]) -> None:
        self._kafka, self._topic = kafka, kafka.topic(Topic.CONTROL)
        self._verifier, self._forged = Verifier(secret), forged
        self._counted: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Id -> (Kafka's time, offset) of the records that a copy could still be close enough to."""
        self._clock_is_wrong = False
        self._not_known: set[str] = set()
        """What was said of records of a later version: each kind once."""

    async def batches(self) -> AsyncGenerator[list[ConsumerRecord], None]:
        """As `bus.follow`: every record from the beginning, for ever."""
        async with aclosing(follow(self._kafka, self._topic)) as batches:
            async for batch in batches:
                yield batch

    def verified(self, record: ConsumerRecord) -> Event | None:
        """The record's event if a service of ours wrote it, for live use, exactly so. None: a tombstone, or forged."""
        author = self._verifier.author(self._topic, record.key, record.headers, record.value or b"")
        if record.value is None:
            if author is None or not author.service:  # compaction will take away what it lies over
                self._refuse(record, "a tombstone that nobody of ours has signed", dict(record.headers))
            return None
        headers = dict(record.headers)
        try:
            event = codec.decode(record.value, Topic.CONTROL)
        except InvalidEvent as error:
            if (
                error.field == "kind" and author is not None and author.service
            ):  # no attack: a service is older than another
                self._of_a_later_version(record, str(error))
            else:
                self._refuse(record, f"cannot be understood: {error}", headers)
            return None
        why = doubt(author, event, headers, Topic.CONTROL)
        if not why and not isinstance(event, Replica):
            if author is not None and author.service == DETECTORS and event.id in self._counted:
                return None  # it says the same again when it was ended before it knew that it had
            why = self._copied(event, record)
        if why:
            self._refuse(record, why, headers)
            return None
        return event if not isinstance(event, Replica) or self._in_time(event, record) else None

    def _copied(self, event: Event, record: ConsumerRecord) -> str:
        """Why a signed record does not count where it lies, or "". Remembers it when it does."""
        counted = self._counted
        while counted and record.timestamp - next(iter(counted.values()))[0] > 2 * MOST_APART_MS:
            counted.popitem(last=False)
        if _apart_ms(event, record) > MOST_APART_MS:
            return f"it was signed at {event.time} and written at another time: a copy, or a clock is wrong"
        if event.id in counted:
            return f"it is a copy of the record at offset {counted[event.id][1]}"
        counted[event.id] = record.timestamp, record.offset
        return ""

    def _in_time(self, event: Event, record: ConsumerRecord) -> bool:
        """Whether a heartbeat is about now. One that waited for Kafka while the machine slept is nobody's attack."""
        wrong = _apart_ms(event, record) > MOST_APART_MS
        if wrong and not self._clock_is_wrong:
            _log.warning(
                "heartbeat %s was written at %d ms: a clock is wrong, or a machine slept", event.time, record.timestamp
            )
        self._clock_is_wrong = wrong
        return not wrong

    def _of_a_later_version(self, record: ConsumerRecord, why: str) -> None:
        if why not in self._not_known:
            self._not_known.add(why)
            _log.error(
                "control has records that a later version of ours has signed, and they are not applied here: the first is at "
                "offset %d, %s; upgrade this service, too", record.offset, why,
            )  # fmt: skip

    def _refuse(self, record: ConsumerRecord, why: str, headers: dict[str, bytes]) -> None:
        key = (record.key or b"").decode("utf-8", "backslashreplace")[:200]
        kind = (headers.get("ce_type") or b"").decode("utf-8", "backslashreplace").removeprefix("banksman.")[:64]
        self._forged(Forged(record.offset, record.timestamp, why[:500], key, kind))


def _apart_ms(event: Event, record: ConsumerRecord) -> float:
    return float(abs(record.timestamp - moment_ms(event.time)))
