"""A Kafka record -> a row of the audit log. Pure: all of a row comes from its record, so that every replay makes the same."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from banksman import codec, events
from banksman.errors import InvalidEvent
from banksman.signing import REPLAY, Author, Verifier, may_write
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from banksman.store.prices import PriceTable

SENT = "banksman-sent"
"""Kafka header: the author's clock when it sent the record. Not signed: it is set again at each attempt."""

TOLERANCE_S = 120.0
"""How far an author's clock may be from the broker's before it shows."""

NOT_ARCHIVED = frozenset({"replica"})  # heartbeats: thousands an hour that say nothing later

_COLUMNS = frozenset(
    [
        "project",
        "agent",
        "session",
        "source",
        "seq",
        "call",
        "parent",
        "service",
        "action",
        "resource",
        "branch",
        "args_hash",
        "status",
        "error",
        "result_hash",
        "outcome_hash",
        "result_size",
        "duration_ms",
        "model",
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
        "cost_usd",
        "decision",
        "tier",
        "rule",
        "policy",
        "policy_version",
        "reason",
        "approval",
        "approver",
        "shadow",
        "latency_us",
        "owner",
        "detector",
        "severity",
        "title",
        "fingerprint",
    ]
)
_FIELDS: dict[type, tuple[str, ...]] = {
    model: tuple(name for name in model.__struct_fields__ if name in _COLUMNS) for model in events.KINDS.values()
}
_EARLIEST, _LATEST = "1900-01-01 00:00:00.000000", "2299-12-31 23:59:59.999999"  # what ClickHouse's DateTime64 holds

encode = msgspec.json.Encoder().encode


class Record(Protocol):
    """What is used of a consumed Kafka record."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class AnyKind(msgspec.Struct, kw_only=True):
    """A kind of a later version: stored with what all events have."""

    kind: str
    v: int
    id: events.Uuid
    time: events.Time
    source: str = ""
    seq: int | None = None
    call: events.Uuid | None = None
    parent: events.Uuid | None = None
    project: events.Name | None = None
    agent: events.Name | None = None
    session: events.Name | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row, and what the detectors of the archiver look at."""

    values: dict[str, Any]
    day: int
    author: Author | None

    @property
    def verified(self) -> bool:
        """The signature fits and its author may write this."""
        return bool(self.values["verified"])


class RowMaker:
    """Makes rows; holds what that needs: who signed (the secret) and what a call costs (the price table)."""

    def __init__(self, verifier: Verifier, prices: PriceTable) -> None:
        self._verifier, self._prices = verifier, prices
        self._any_kind = msgspec.json.Decoder(AnyKind)

    def row(self, record: Record, topic: Topic, full_topic: str) -> Row | None:
        """The row of one record of `topic`; None for what is not archived. InvalidEvent: it can never be stored."""
        value = record.value
        if value is None:
            return None  # a tombstone: what it removes was archived when it was written
        event, kind = self._decode(value, topic)
        if kind in NOT_ARCHIVED:
            return None
        headers = dict(record.headers)
        author = self._verifier.author(full_topic, record.key, record.headers, value)
        project, agent = getattr(event, "project", None), getattr(event, "agent", None)
        verified = (
            may_write(author, topic, kind=kind, project=project, agent=agent)
            and headers.get("ce_id") == event.id.encode()
            and headers.get("ce_type") == b"banksman." + kind.encode()
            and (topic not in (Topic.ACTIONS, Topic.DECISIONS) or record.key == (agent or "").encode())
        )
        replay = headers.get(REPLAY, b"").decode("utf-8", "replace") if verified else ""
        received = record.timestamp / 1000
        values: dict[str, Any] = {
            "received": received,
            "time": clickhouse_time(event.time),
            "id": event.id,
            "kind": kind,
            "verified": verified,
            "author": str(author) if author else "",
            "replay": replay,
            "late": "" if replay else lateness(event.time, received, headers.get(SENT)),
            "topic": str(topic),
            "partition": record.partition,
            "offset": record.offset,
            "raw": value.decode("utf-8", "replace"),
        }
        for name in _FIELDS.get(type(event), ("source", "seq", "call", "parent", "project", "agent", "session")):
            found = getattr(event, name)
            if found is not None:
                values[name] = found
        self._complete(event, values)
        return Row(values, record.timestamp // 86_400_000, author)

    def _decode(self, value: bytes, topic: Topic) -> tuple[Any, str]:
        try:
            event = codec.decode(value, topic)
        except InvalidEvent as error:
            if error.field != "kind":
                raise
            try:
                unknown = self._any_kind.decode(value)
                datetime.fromisoformat(unknown.time)
            except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as second:
                raise codec.invalid(second) from None
            if unknown.kind in events.KINDS:
                raise InvalidEvent(f"{unknown.kind} does not belong in {topic}", field="kind") from None
            return unknown, unknown.kind
        return event, str(event.__struct_config__.tag)

    def _complete(self, event: Any, values: dict[str, Any]) -> None:
        operator = getattr(event, "operator", None) or getattr(event, "by", None)
        if operator:
            values["operator"] = operator
        if isinstance(event, events.ModelCall):
            if event.cost_usd is not None:
                values["priced"] = "given"
                return
            tokens = (event.input_tokens, event.output_tokens, event.cache_write_tokens, event.cache_read_tokens)
            cost = self._prices.cost(event.model, tokens)
            values["priced"] = "unpriced" if cost is None else f"table {self._prices.date}"
            if cost is not None:
                values["cost_usd"] = cost
        elif isinstance(event, events.ToolResult) and event.cost_usd is not None:
            values["priced"] = "given"


def clickhouse_time(time: str) -> str:
    """`2026-11-24T15:30:00.000001Z` -> as ClickHouse reads it; beyond what it can hold: the nearest that it can."""
    if "1900" <= time[:4] <= "2299":
        return f"{time[:10]} {time[11:26]}"
    return _EARLIEST if time[:4] < "1900" else _LATEST


def lateness(time: str, received: float, sent: bytes | None) -> str:
    """`""`: the author's clock agrees with the broker's. `late`: it does now, but this happened long before it was sent (a
    spool emptied after an outage). `skew`: it does not, or nothing says so.
    """
    if abs(_seconds(time) - received) <= TOLERANCE_S:
        return ""
    if sent is not None:
        try:
            if abs(_seconds(sent.decode()) - received) <= TOLERANCE_S:
                return "late"
        except ValueError:
            return "skew"
    return "skew"


def _seconds(time: str) -> float:
    moment = datetime.fromisoformat(time)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
