"""Kafka records -> rows of the audit log, by column. Pure: all of a row comes from its record, every replay makes the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from banksman import events
from banksman.processors.archiver import letters
from banksman.processors.archiver.decoding import Decoded, Decoding, microseconds
from banksman.processors.authorship import TOLERANCE_S, is_right, lateness
from banksman.signing import REPLAY, SENT, Verifier
from banksman.topics import ARCHIVED, SPECS, Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from banksman.batches import Batch
    from banksman.processors.archiver.letters import Letter
    from banksman.signing import Author
    from banksman.store.prices import PriceTable

NOT_ARCHIVED = frozenset({"replica", "watermark"})  # heartbeats: thousands an hour that say nothing later

DAY_MS = 86_400_000

_WORD, _TEXT, _COUNT = "LowCardinality(String)", "String", "UInt64"
_FIELDS = {
    "project": _WORD, "agent": _WORD, "session": _TEXT, "source": _WORD, "seq": _COUNT, "call": "UUID", "parent": "UUID",
    "service": _WORD, "action": _WORD, "resource": _TEXT, "branch": _TEXT, "args_hash": _TEXT,
    "status": _WORD, "error": _TEXT, "result_hash": _TEXT, "outcome_hash": _TEXT, "result_size": "Nullable(UInt64)",
    "duration_ms": "Nullable(Float64)", "model": _WORD, "input_tokens": _COUNT, "output_tokens": _COUNT,
    "cache_read_tokens": _COUNT, "cache_write_tokens": _COUNT,
    "decision": _WORD, "tier": "UInt8", "rule": _WORD, "policy": _WORD, "policy_version": _WORD, "reason": _WORD,
    "approval": _TEXT, "approver": _WORD, "shadow": _WORD, "latency_us": "Nullable(UInt64)", "owner": _WORD, "subject": _TEXT,
    "detector": _WORD, "severity": _WORD, "title": _TEXT, "fingerprint": _TEXT, "operator": _WORD,
}  # fmt: skip
COLUMNS = _FIELDS | {
    "received": "DateTime64(3, 'UTC')", "time": "DateTime64(6, 'UTC')", "id": "UUID", "kind": _WORD,
    "cost_usd": "Nullable(Decimal(18, 9))", "priced": _WORD, "verified": "Bool", "author": _WORD, "replay": _WORD,
    "late": _WORD, "topic": _WORD, "partition": "UInt16", "offset": _COUNT, "raw": _TEXT,
}  # fmt: skip
"""Every column that a row may fill, and how it is sent. Those of `_FIELDS` are fields of events; the others are ours."""

_COMPACTED = frozenset(topic for topic, spec in SPECS.items() if spec.compact)
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


_Marks = tuple["Author | None", "bytes | None", "bytes | None", "bytes | None", bytes, "bytes | None"]
"""Of a record: who signed it, its key, `ce_id`, `ce_type`, the replay it belongs to, the author's clock at sending."""


@dataclass(frozen=True)
class _Taken:
    """What is kept of records, of each in the same place."""

    values: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    marks: list[_Marks] = field(default_factory=list)


class RowMaker:
    """Makes rows; holds what that needs: who signed (the secret) and what a call costs (the price table)."""

    def __init__(self, verifier: Verifier, prices: PriceTable) -> None:
        self._verifier, self._prices = verifier, prices
        wanted, words = (
            {*_FIELDS, "id", "time", "by", "cost_usd"},
            {name for name, type_ in _FIELDS.items() if type_ == _WORD},
        )
        self._decoding = {topic: Decoding(topic, wanted, words) for topic in ARCHIVED}

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

        several = list(batches)
        taken = self._taken(several, topic, full_topic.encode(), bury)
        for batch in several:
            if batch.unreadable:
                where = full_topic, partition, batch.last, batch.received_ms
                dead.append(letters.of_record(batch.unreadable, *where, None, None, []))
        decoded, wrong = self._decoding[topic](taken.values)
        if wrong:
            errors = {taken.offsets[place]: error for place, error in wrong}
            for batch in several:
                for record in batch.records:
                    if record.offset in errors:
                        bury(str(errors[record.offset]), batch.received_ms, record)
        made = [self._rows(one, topic, partition, taken) for one in decoded if one.kind not in NOT_ARCHIVED]
        return made, dead

    def _taken(
        self, batches: Iterable[Batch], topic: Topic, full_topic: bytes, bury: Callable[[str, int, Any], None]
    ) -> _Taken:
        """Goes through the records, and keeps what rows are made of: the rest of each goes before the next one comes."""
        taken, whose, most = _Taken(), self._verifier.whose, SPECS[topic].max_message_bytes
        values, offsets, marks = taken.values, taken.offsets, taken.marks
        for batch in batches:
            for record in batch.records:
                value = record.value
                if value is None:
                    if (
                        topic not in _COMPACTED
                    ):  # there it is a tombstone: what it removes was archived when it was written
                        bury("has no value", batch.received_ms, record)
                    continue
                if len(value) > most:
                    bury(f"is larger than {most} bytes", batch.received_ms, record)
                    continue
                key, pairs = record.key, record.headers
                headers: dict[str, Any] = dict(pairs)
                author = whose(full_topic, key, headers, value) if len(headers) == len(pairs) else None
                get = headers.get
                values.append(value)
                offsets.append(record.offset)
                marks.append((author, key, get("ce_id"), get("ce_type"), get(REPLAY) or b"", get(SENT)))
            taken.received.extend([batch.received_ms] * (len(values) - len(taken.received)))
        return taken

    def _rows(self, decoded: Decoded, topic: Topic, partition: int, taken: _Taken) -> Rows:
        fields, places = decoded.columns, decoded.places
        count, absent = len(places), (None,) * len(places)
        received = [taken.received[place] for place in places]
        times = microseconds(fields["time"])
        if min(times) < _EARLIEST_US or max(times) > _LATEST_US:
            times = [max(_EARLIEST_US, min(_LATEST_US, time)) for time in times]
        columns: dict[str, Sequence[Any]] = {name: column for name, column in fields.items() if name in _FIELDS}
        if "by" in fields and "operator" not in fields:
            columns["operator"] = fields["by"]
        if "cost_usd" in fields:
            columns.update(self._costs(fields, table=decoded.model is events.ModelCall))
        verified, authors, replays, sent = _signatures(decoded, topic, [taken.marks[place] for place in places])
        columns.update(
            received=received,
            time=times,
            id=fields["id"],
            kind=(decoded.kind,) * count,
            verified=verified,
            author=authors,
            replay=replays,
            late=_lateness(topic, times, received, sent, replays),
            topic=(topic.value,) * count,
            partition=(partition,) * count,
            offset=[taken.offsets[place] for place in places],
            raw=[taken.values[place] for place in places],
        )
        columns.setdefault("agent", absent)
        return Rows(topic, partition, columns)

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


def _signatures(
    decoded: Decoded, topic: Topic, marks: Sequence[_Marks]
) -> tuple[list[bool], list[str], list[str], Sequence[bytes | None]]:
    """(verified, author, replay run, the author's clock at sending) of every event."""
    absent = (None,) * len(marks)
    authors, keys, ids, types, replays, sent = zip(*marks, strict=True)
    texts = [author.text if author else "" for author in authors]
    claims = list(
        zip(
            texts, types, keys, map(bool, replays),
            decoded.columns.get("project", absent), decoded.columns.get("agent", absent), strict=True,
        )
    )  # fmt: skip
    known = dict(zip(texts, authors, strict=True))
    right = {claim for claim in set(claims) if is_right(known[claim[0]], topic, decoded.kind, *claim[1:])}
    verified = [
        claim in right and given == id_.encode()
        for claim, given, id_ in zip(claims, ids, decoded.columns["id"], strict=True)
    ]
    if any(replays):
        runs = [run.decode("utf-8", "replace") if counts else "" for run, counts in zip(replays, verified, strict=True)]
    else:
        runs = [""] * len(marks)
    return verified, texts, runs, sent


def _lateness(
    topic: Topic, times: Sequence[int], received: Sequence[int], sent: Sequence[bytes | None], replays: Sequence[str]
) -> Sequence[str]:
    tolerance = TOLERANCE_S * 1_000_000
    return [
        "" if abs(time - ms * 1000) <= tolerance or replay else _far(topic, time, ms, then)
        for time, ms, then, replay in zip(times, received, sent, replays, strict=True)
    ]


def _far(topic: Topic, time: int, received_ms: int, sent: bytes | None) -> str:
    """Of a record whose time is far from the broker's. A service's of what was long before says nothing of a clock: a worker
    had much to catch up with, a decision waited for a leader. One of what is still to come does.
    """
    if topic is not Topic.ACTIONS and time < received_ms * 1000:
        return "late"
    return lateness(received_ms, sent)
