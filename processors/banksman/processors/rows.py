"""A Kafka record -> a row of the audit log. Pure: all of a row comes from its record, so that every replay makes the same."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from banksman import codec, events
from banksman.errors import InvalidEvent
from banksman.signing import REPLAY, Author, Verifier, may_write
from banksman.topics import SPECS, Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
_WHOSE = ("project", "agent", "session", "source", "seq", "call", "parent")


def _columns_of(model: type[events.Event]) -> tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]], str]:
    names = tuple(name for name in model.__struct_fields__ if name in _COLUMNS)
    return names, attrgetter(*names), str(model.__struct_config__.tag)


# Per model: the columns that it fills, how to get at all of them at once, and its kind.
_FIELDS = {model: _columns_of(model) for model in events.KINDS.values()}
_get_whose = attrgetter(*_WHOSE)
_COMPACTED = frozenset(topic for topic, spec in SPECS.items() if spec.compact)
_KEYED_BY_AGENT = frozenset((Topic.ACTIONS, Topic.DECISIONS))
_MOST_USD = 999_999_999.0  # what the column holds; the models let a billion pass
_EARLIEST, _LATEST = "1900-01-01 00:00:00.000000", "2299-12-31 23:59:59.999999"  # what ClickHouse's DateTime64 holds

COLUMNS = _COLUMNS | {
    "received", "time", "id", "kind", "operator", "priced", "verified", "author", "replay", "late", "topic", "partition",
    "offset", "raw",
}  # fmt: skip
"""Every column that a row may fill."""

encode = msgspec.json.Encoder().encode


class Record(Protocol):
    """What is used of a consumed Kafka record."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


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
            if topic in _COMPACTED:
                return None  # a tombstone: what it removes was archived when it was written
            raise InvalidEvent("has no value")
        event, kind = self._decode(value, topic)
        if kind in NOT_ARCHIVED:
            return None
        try:
            raw = value.decode()
        except UnicodeDecodeError as error:  # in a field that no model knows, or the decoder would have said so
            raise InvalidEvent(f"not UTF-8: {error.reason} at byte {error.start}") from None
        names, get, _ = _FIELDS.get(type(event)) or (_WHOSE, _get_whose, "")
        received = record.timestamp / 1000
        values: dict[str, Any] = {"project": None, "agent": None, "session": None}
        values.update(zip(names, get(event), strict=True))
        project, agent = values["project"], values["agent"]
        headers = dict(record.headers)
        author = self._verifier.author(full_topic, record.key, record.headers, value)
        verified = (
            may_write(author, topic, kind=kind, project=project, agent=agent)
            and headers.get("ce_id") == event.id.encode()
            and headers.get("ce_type") == b"banksman." + kind.encode()
            and (topic not in _KEYED_BY_AGENT or record.key == (agent or "").encode())
        )
        replay = (headers.get(REPLAY) or b"").decode("utf-8", "replace") if verified else ""
        values["received"] = received
        values["time"] = clickhouse_time(event.time)
        values["id"] = event.id
        values["kind"] = kind
        values["verified"] = verified
        values["author"] = str(author) if author else ""
        values["replay"] = replay
        values["late"] = "" if replay else lateness(event.time, received, headers.get(SENT))
        values["topic"] = topic.value
        values["partition"] = record.partition
        values["offset"] = record.offset
        values["raw"] = raw
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
        return event, _FIELDS[type(event)][2]

    def _complete(self, event: Any, values: dict[str, Any]) -> None:
        operator = getattr(event, "operator", None) or getattr(event, "by", None)
        if operator:
            values["operator"] = operator
        cost = values.get("cost_usd")
        if cost is not None:
            values["priced"] = "given"
        elif isinstance(event, events.ModelCall):
            tokens = (event.input_tokens, event.output_tokens, event.cache_write_tokens, event.cache_read_tokens)
            cost = self._prices.cost(event.model, tokens)
            values["priced"] = "unpriced" if cost is None else f"table {self._prices.date}"
        if cost is not None:
            values["cost_usd"] = round(min(cost, _MOST_USD), 9)


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
        except (ValueError, OverflowError):
            return "skew"
    return "skew"


def _seconds(time: str) -> float:
    if len(time) == 27 and time[26] == "Z":  # the one form on the wire; what is in a header may be any
        return _minute(time[:16]) + float(time[17:26])
    moment = datetime.fromisoformat(time)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@lru_cache(4096)
def _minute(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
