"""Dead letters: records that can never be stored, whole, with the reason."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from banksman import codec, events
from banksman.processors.findings import record_id
from banksman.signing import header_map

if TYPE_CHECKING:
    from collections.abc import Sequence

    from banksman.processors.rows import Row
    from banksman.topics import Topic


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
    """A record that is no event."""
    letter = codec.encode(
        events.Dead(
            v=1, time=events.rfc3339_ms(received_ms), error=why, topic=full_topic, partition=partition, offset=offset,
            key=(key or b"").decode("utf-8", "backslashreplace"),
            value=base64.b64encode(value or b"").decode(), headers=header_map(headers),
        )
    )  # fmt: skip
    return Letter(received_ms, f"{full_topic}/{partition}/{offset}", why, letter)


def of_row(why: str, full_topic: str, row: Row) -> Letter:
    """A valid event whose row ClickHouse refuses."""
    values = row.values
    return of_record(
        f"ClickHouse refused the row: {why}", full_topic, values["partition"], values["offset"],
        round(values["received"] * 1000), (values["agent"] or "").encode(), values["raw"].encode(), [],
    )  # fmt: skip


def share(letters: Sequence[Letter], of: int, dead_topic: Topic | str) -> dict[str, Any]:
    """What a finding says of the dead letters among `of` records: a page when they are many."""
    many = len(letters) >= 20 and len(letters) * 10 >= of
    return {
        "severity": "page" if many else "warn",
        "title": f"{len(letters)} of {of} records can never be stored",
        "evidence": {"first": letters[0].error},
        "suggestion": f"read {dead_topic}: each letter holds the record, where it lay and the reason",
    }
