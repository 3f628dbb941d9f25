"""Dead letters: records that can never be stored, whole, with the reason."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

from banksman import codec, events, stamps
from banksman.processors.archiver.findings import record_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from banksman.processors.archiver.rows import Entry

MOST_VALUE = 8 << 20
"""Bytes of a value that a letter holds: the largest that Kafka takes uncompressed. What is longer was compressed."""
MOST_TEXT = 64 << 10
"""Bytes of a key, and of all headers together."""
MOST_WHY = 2000  # it may quote the record


@dataclass(frozen=True)
class Letter:
    """`received_ms`, `where` (topic/partition/offset) and the letter's bytes; `id` is the same on every replay."""

    received_ms: int
    where: str
    error: str
    value: bytes

    @property
    def id(self) -> str:
        """A UUIDv7 made from the record's coordinates."""
        return record_id(self.received_ms, self.where, "dead")


def of_record(
    why: str, full_topic: str, partition: int, offset: int, received_ms: int,
    key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]],
) -> Letter:  # fmt: skip
    """A record that is no event. What would make the letter itself too large for Kafka is cut, and says so."""
    value = value or b""
    if len(value) > MOST_VALUE:
        why = f"{_cut(why, MOST_WHY - 100)}; the letter holds the first {MOST_VALUE} of its {len(value)} bytes"
    letter = codec.encode(
        events.Dead(
            v=1, time=stamps.rfc3339_ms(received_ms), error=_cut(why, MOST_WHY), topic=full_topic, partition=partition,
            offset=offset, key=_shown(key, MOST_TEXT), value=base64.b64encode(value[:MOST_VALUE]).decode(),
            headers=_fitting(headers),
        )
    )  # fmt: skip
    return Letter(received_ms, f"{full_topic}/{partition}/{offset}", why, letter)


def of_row(why: str, full_topic: str, entry: Entry) -> Letter:
    """A valid event whose row ClickHouse refuses."""
    return of_record(
        f"ClickHouse refused the row: {why}", full_topic, entry.partition, entry.offset, entry.received_ms,
        (entry.agent or "").encode(), entry.raw, [],
    )  # fmt: skip


def _fitting(headers: Sequence[tuple[str, bytes | None]]) -> dict[str, str]:
    made: dict[str, str] = {}
    left = MOST_TEXT
    for name, value in headers:
        if left <= 0:
            made["…"] = "[cut: there are more headers]"
            break
        short = _cut(name, left)
        made[short] = _shown(value, left)
        left -= len(short) + len(made[short]) + 1
    return made


def _shown(data: bytes | None, most: int) -> str:
    """Bytes as text, what is not UTF-8 escaped."""
    data = data or b""
    text = data[:most].decode("utf-8", "backslashreplace")
    return text if len(data) <= most else f"{text}…[cut: {len(data)} bytes]"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}…[cut: {len(text)} characters]"
