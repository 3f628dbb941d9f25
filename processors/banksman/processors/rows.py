"""Kafka records -> rows of the audit log, by column. Pure: all of a row comes from its record, every replay makes the same."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from banksman import events
from banksman.processors import letters
from banksman.processors.decoding import Decoded, Decoding, microseconds
from banksman.signing import REPLAY, SENT, Verifier, may_write
from banksman.topics import ARCHIVED, SPECS, Topic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from banksman.processors.batches import Batch
    from banksman.processors.letters import Letter
    from banksman.store.prices import PriceTable

TOLERANCE_S = 120
"""How far an author's clock may be from the broker's before it shows."""

NOT_ARCHIVED = frozenset({"replica"})  # heartbeats: thousands an hour that say nothing later

DAY_MS = 86_400_000

_WORD, _TEXT, _COUNT = "LowCardinality(String)", "String", "UInt64"
_FIELDS = {
    "project": _WORD, "agent": _WORD, "session": _TEXT, "source": _WORD, "seq": _COUNT, "call": "UUID", "parent": "UUID",
    "service": _WORD, "action": _WORD, "resource": _TEXT, "branch": _TEXT, "args_hash": _TEXT,
    "status": _WORD, "error": _TEXT, "result_hash": _TEXT, "outcome_hash": _TEXT, "result_size": "Nullable(UInt64)",
    "duration_ms": "Nullable(Float64)", "model": _WORD, "input_tokens": _COUNT, "output_tokens": _COUNT,
    "cache_read_tokens": _COUNT, "cache_write_tokens": _COUNT,
    "decision": _WORD, "tier": "UInt8", "rule": _WORD, "policy": _WORD, "policy_version": _WORD, "reason": _WORD,
    "approval": _TEXT, "approver": _WORD, "shadow": _WORD, "latency_us": "Nullable(UInt64)", "owner": _WORD,
    "detector": _WORD, "severity": _WORD, "title": _TEXT, "fingerprint": _TEXT, "operator": _WORD,
}  # fmt: skip
COLUMNS = _FIELDS | {
    "received": "DateTime64(3, 'UTC')", "time": "DateTime64(6, 'UTC')", "id": "UUID", "kind": _WORD,
    "cost_usd": "Nullable(Decimal(18, 9))", "priced": _WORD, "verified": "Bool", "author": _WORD, "replay": _WORD,
    "late": _WORD, "topic": _WORD, "partition": "UInt16", "offset": _COUNT, "raw": _TEXT,
}  # fmt: skip
"""Every column that a row may fill, and how it is sent. Those of `_FIELDS` are fields of events; the others are ours."""

_COMPACTED = frozenset(topic for topic, spec in SPECS.items() if spec.compact)
_KEYED_BY_AGENT = frozenset((Topic.ACTIONS, Topic.DECISIONS))
_MOST_USD = 999_999_999.0  # what the column holds; the models let a billion pass
_NANO = 1_000_000_000
_EARLIEST_US = -2_208_988_800_000_000  # 1900 and 2299: what ClickHouse's DateTime64 holds
_LATEST_US = 10_413_791_999_999_999


class Entry(NamedTuple):
    """One row, for those who look at few. `time_us` is the author's clock, `late` as in the table, `raw` the record's value."""

    topic: Topic
    partition: int
    offset: int
    received_ms: int
    time_us: int
    kind: str
    id: str
    project: str | None
    agent: str | None
    session: str | None
    source: str
    verified: bool
    author: str
    late: str
    raw: bytes

    @property
    def where(self) -> str:
        """topic/partition/offset"""
        return f"{self.topic}/{self.partition}/{self.offset}"

    @property
    def order(self) -> tuple[int, str, int, int]:
        """What was received first comes first."""
        return self.received_ms, self.topic, self.partition, self.offset


@dataclass(frozen=True)
class Rows:
    """Rows of one kind in one partition, in the order of their offsets. `columns`: by name; none where all are absent."""

    topic: Topic
    partition: int
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.columns["offset"])

    def entry(self, number: int) -> Entry:
        """One of them."""
        here = {name: column[number] for name, column in self.columns.items()}
        return Entry(
            self.topic, self.partition, here["offset"], here["received"], here["time"], here["kind"], here["id"],
            here.get("project"), here.get("agent"), here.get("session"), here["source"], here["verified"],
            here["author"], here["late"], here["raw"],
        )  # fmt: skip

    def live(self) -> Rows:
        """Those that are no replayed history."""
        replays = self.columns["replay"]
        return self.chosen([n for n, replay in enumerate(replays) if not replay]) if any(replays) else self

    def chosen(self, numbers: Sequence[int]) -> Rows:
        """Some of them."""
        return Rows(
            self.topic,
            self.partition,
            {name: [column[n] for n in numbers] for name, column in self.columns.items()},
        )


class RowMaker:
    """Makes rows; holds what that needs: who signed (the secret) and what a call costs (the price table)."""

    def __init__(self, verifier: Verifier, prices: PriceTable) -> None:
        self._verifier, self._prices = verifier, prices
        self._decoding = {topic: Decoding(topic, {*_FIELDS, "id", "time", "by", "cost_usd"}) for topic in ARCHIVED}

    def rows(
        self, batches: Iterable[Batch], topic: Topic, full_topic: str, partition: int
    ) -> tuple[list[Rows], list[Letter]]:
        """The rows of records of one partition, and a letter for each record that can never be stored."""
        dead: list[Letter] = []

        def bury(why: str, received_ms: int, record: Any) -> None:
            dead.append(
                letters.of_record(
                    why, full_topic, partition, record.offset, received_ms, record.key, record.value, record.headers
                )
            )

        records, values, received = [], [], []
        most = SPECS[topic].max_message_bytes
        for batch in batches:
            for record in batch.records:
                value = record.value
                if value is None:
                    if (
                        topic not in _COMPACTED
                    ):  # there it is a tombstone: what it removes was archived when it was written
                        bury("has no value", batch.received_ms, record)
                elif len(value) > most:
                    bury(f"is larger than {most} bytes", batch.received_ms, record)
                else:
                    records.append(record)
                    values.append(value)
                    received.append(batch.received_ms)
            if batch.unreadable:
                where = full_topic, partition, batch.last, batch.received_ms
                dead.append(letters.of_record(batch.unreadable, *where, None, None, []))
        decoded, wrong = self._decoding[topic](values)
        for place, error in wrong:
            bury(str(error), received[place], records[place])
        made = [
            self._rows(one, topic, full_topic, partition, records, values, received)
            for one in decoded
            if one.kind not in NOT_ARCHIVED
        ]
        return made, dead

    def _rows(
        self, decoded: Decoded, topic: Topic, full_topic: str, partition: int,
        records: Sequence[Any], values: Sequence[bytes], all_received: Sequence[int],
    ) -> Rows:  # fmt: skip
        fields, places = decoded.columns, decoded.places
        count, absent = len(places), (None,) * len(places)
        received = [all_received[place] for place in places]
        times = microseconds(fields["time"])
        if min(times) < _EARLIEST_US or max(times) > _LATEST_US:
            times = [max(_EARLIEST_US, min(_LATEST_US, time)) for time in times]
        columns: dict[str, Sequence[Any]] = {name: column for name, column in fields.items() if name in _FIELDS}
        if "by" in fields and "operator" not in fields:
            columns["operator"] = fields["by"]
        if "cost_usd" in fields:
            columns.update(self._costs(fields, table=decoded.model is events.ModelCall))
        verified, authors, replays, sent = self._signatures(decoded, topic, full_topic, records, values)
        columns.update(
            received=received,
            time=times,
            id=fields["id"],
            kind=(decoded.kind,) * count,
            verified=verified,
            author=authors,
            replay=replays,
            late=_lateness(times, received, sent, replays),
            topic=(topic.value,) * count,
            partition=(partition,) * count,
            offset=[records[place].offset for place in places],
            raw=[values[place] for place in places],
        )
        columns.setdefault("agent", absent)
        return Rows(topic, partition, columns)

    def _signatures(
        self, decoded: Decoded, topic: Topic, full_topic: str, records: Sequence[Any], values: Sequence[bytes]
    ) -> tuple[list[bool], list[str], list[str], list[bytes | None]]:
        """(verified, author, replay run, the author's clock at sending) of every event."""
        kind, fields, places = decoded.kind, decoded.columns, decoded.places
        name, ce_type, keyed = full_topic.encode(), b"banksman." + kind.encode(), topic in _KEYED_BY_AGENT
        whose, absent = self._verifier.whose, (None,) * len(places)
        may: dict[tuple[str, str | None, str | None], bool] = {}
        verified, authors, replays, sent = [], [], [], []
        for place, id_, project, agent in zip(
            places, fields["id"], fields.get("project", absent), fields.get("agent", absent), strict=True
        ):
            record = records[place]
            pairs = record.headers
            headers: dict[str, Any] = dict(pairs)
            author = whose(name, record.key, headers, values[place]) if len(headers) == len(pairs) else None
            replay = headers.get(REPLAY) or b""
            if author is None:
                counts, text = False, ""
            else:
                text = author.text
                asked = text, project, agent
                if asked not in may:
                    may[asked] = may_write(author, topic, kind=kind, project=project, agent=agent)
                counts = (
                    may[asked]
                    and (not replay or author.service != "")  # no agent hides what it does as history
                    and headers.get("ce_id") == id_.encode()
                    and headers.get("ce_type") == ce_type
                    and (not keyed or record.key == (agent or "").encode())
                )
            verified.append(counts)
            authors.append(text)
            replays.append(replay.decode("utf-8", "replace") if replay and counts else "")
            sent.append(headers.get(SENT))
        return verified, authors, replays, sent

    def _costs(self, fields: Mapping[str, Sequence[Any]], *, table: bool) -> dict[str, Sequence[Any]]:
        """Columns `cost_usd` (in nano-dollars) and `priced`. `table`: what the author does not say, the price table may."""
        given = fields["cost_usd"]
        if not table:
            costs, priced = list(given), ["" if cost is None else "given" for cost in given]
        else:
            costs, priced = [], []
            tokens = ("input_tokens", "output_tokens", "cache_write_tokens", "cache_read_tokens")
            for cost, model, *used in zip(given, fields["model"], *(fields[name] for name in tokens), strict=True):
                known = self._prices.cost(model, tuple(used)) if cost is None else cost
                costs.append(known)
                priced.append(
                    "given" if cost is not None else "unpriced" if known is None else f"table {self._prices.date}"
                )
        nano = [None if cost is None else round(min(cost, _MOST_USD) * _NANO) for cost in costs]
        return {"cost_usd": nano, "priced": priced}


def _lateness(
    times: Sequence[int], received: Sequence[int], sent: Sequence[bytes | None], replays: Sequence[str]
) -> Sequence[str]:
    tolerance = TOLERANCE_S * 1_000_000
    return [
        "" if abs(time - ms * 1000) <= tolerance or replay else lateness(ms, then)
        for time, ms, then, replay in zip(times, received, sent, replays, strict=True)
    ]


def lateness(received_ms: int, sent: bytes | None) -> str:
    """Of an event whose time is far from the broker's. `late`: its author's clock agrees with the broker's, but this happened
    long before it was sent (a spool emptied after an outage). `skew`: it does not, or nothing says so.
    """
    try:
        moment = datetime.fromisoformat((sent or b"").decode())
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return "late" if abs(moment.timestamp() - received_ms / 1000) <= TOLERANCE_S else "skew"
    except (ValueError, OverflowError):
        return "skew"
