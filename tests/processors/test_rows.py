"""Rows by column are the rows that one gets record by record, whatever stands beside a record."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.golden.test_events import sample
from tests.processors import oracle

from banksman import codec, events, signing, stamps
from banksman.batches import Batch
from banksman.errors import InvalidEvent
from banksman.processors.archiver import decoding
from banksman.processors.archiver.rows import COLUMNS, RowMaker
from banksman.store.prices import load_prices
from banksman.topics import ARCHIVED, SPECS, Topic

SECRET = signing.Secret({1: b"s" * 32}, 1)
VERIFIER = signing.Verifier(SECRET)
MAKER = RowMaker(VERIFIER, load_prices())
NOW_MS = 1_764_000_000_000
NOW = stamps.rfc3339_ms(NOW_MS)
ARCHIVED_KINDS = sorted(kind for kind in events.KINDS if kind not in ("replica", "watermark"))


@dataclass
class Record:
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)


def made(records: list[Record], topic: Topic) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """({offset: columns that are not absent}, {offset: why it is a dead letter})."""
    batches = [Batch(NOW_MS, records[0].offset, records[-1].offset, records)]
    found, dead = MAKER.rows(batches, topic, f"t.{topic}", 3)
    rows = {}
    for part in found:
        assert part.columns.keys() <= COLUMNS.keys()
        assert list(part.columns["offset"]) == sorted(part.columns["offset"])
        for place in range(len(part)):
            one = {name: column[place] for name, column in part.columns.items()}
            rows[one["offset"]] = {name: value for name, value in one.items() if value is not None and value != ""}
    letters = [json.loads(letter.value) for letter in dead]
    return rows, {letter["offset"]: letter["error"] for letter in letters}


def signed(event: dict[str, Any], topic: Topic, offset: int, *, by: str, replay: str = "", sent: str = "") -> Record:
    agent = str(event.get("agent", ""))
    value = codec.encode(event)
    author = signing.Author(project=str(event.get("project")), agent=agent, token_id="t1")
    signer = signing.service_signer(SECRET, "enforcer")
    if by != "service":
        signer = signing.Signer(author, signing.key_of(SECRET, 1, author), 1)
    marks = {name: str(event.get(name)) for name in ("id", "kind", "time", "source")}
    headers: list[Any] = signer.headers(f"t.{topic}", agent.encode(), value, replay=replay, **marks) if by else []
    headers += [("banksman-sent", sent.encode())] if sent else []
    return Record(offset, agent.encode(), value, headers)


times = st.sampled_from([
    NOW, "2020-01-01T00:00:00.000000Z", "2099-12-31T23:59:59.999999Z", "0001-01-01T00:00:00.000000Z",
    "9999-12-31T23:59:59.999999Z", "1899-12-31T23:59:59.999999Z", "2299-12-31T23:59:59.999999Z",
    stamps.rfc3339_ms(NOW_MS - 121_000), stamps.rfc3339_ms(NOW_MS + 119_000), "2026-13-45T00:00:00.000000Z",
    "2026-02-30T00:00:00.000000Z", "2025-11-24T24:00:00.000000Z", "2025-11-24T15:60:00.000000Z",
    "2025-11-24T15:59:60.000000Z", "0000-01-01T00:00:00.000000Z", "2025-11-24T15:59:59Z",
])  # fmt: skip
names = st.sampled_from(["a", "claude@x:1", "", "../x", "a\n", "é", "A" * 128, "A" * 129, "billing"])
ids = st.sampled_from([
    "019a0000-0000-7000-8000-000000000001", "019A0000-0000-7000-8000-000000000001", "019a0000-0000-4000-8000-000000000001",
    "019a0000-0000-7000-c000-000000000001", "019a0000-0000-7000-8000-00000000000", "019a0000-0000-7000-8000-000000000001\n", "",
    "019a00000-000-7000-8000-000000000001", "00000000-0000-0000-0000-000000000000",
])  # fmt: skip
junk = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**65), 2**65), st.floats(), st.text(max_size=5), st.just({}), st.just([1]),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), ids, times, names,
)  # fmt: skip


@st.composite
def changed(draw: st.DrawFn, kinds: list[str]) -> dict[str, Any]:
    """An event of a kind, with some fields changed, taken away or made up."""
    event: dict[str, Any] = json.loads(codec.encode(sample(draw(st.sampled_from(kinds)))))
    event["time"] = draw(st.one_of(st.just(NOW), times))
    for name in draw(st.lists(st.sampled_from([*event, "project", "agent", "unknown", "by", "cost_usd"]), max_size=3)):
        value = draw(st.one_of(junk, {"id": ids, "agent": names, "call": ids}.get(name, junk), st.just(...)))
        if value is ...:
            event.pop(name, None)
        else:
            event[name] = value
    return event


def of(topic: Topic) -> list[str]:
    return [kind for kind in ARCHIVED_KINDS if events.KINDS[kind].topic is topic]


@st.composite
def several(draw: st.DrawFn) -> tuple[Topic, list[Record]]:
    topic = draw(st.sampled_from(ARCHIVED))
    offsets = sorted(draw(st.sets(st.integers(0, 1000), min_size=1, max_size=8)))
    kinds = draw(st.sampled_from([of(topic), of(topic), [*of(topic), "note", "decision"]]))
    records = []
    for offset in offsets:
        event = draw(changed(kinds))
        if draw(st.integers(0, 9)) == 0:
            event["kind"] = draw(st.sampled_from(["tool.thought", "", "x" * 65, "note", "decision"]))
        by = draw(st.sampled_from(["agent", "service", ""]))
        replay = draw(st.sampled_from(["", "", "run-1"]))
        sent = draw(st.sampled_from(["", NOW, "2020-01-01T00:00:00.000000Z", "2025-11-24", "x"]))
        try:
            record = signed(event, topic, offset, by=by, replay=replay, sent=sent)
        except (TypeError, OverflowError, ValueError, msgspec.MsgspecError):
            continue  # what no JSON encoder writes
        spoiled = draw(
            st.sampled_from(["", "", "", "cut", "bytes", "key", "twice", "null", "surrogate", "deep", "deepest", "dup"])
        )
        records.append(_spoiled(record, spoiled))
    return topic, records or [Record(0, b"", b"{", [])]


def _spoiled(record: Record, how: str) -> Record:
    assert record.value is not None
    if how == "cut":
        record.value = record.value[:-3]
    elif how == "bytes":
        record.value = record.value[:-1] + b',"more":"\xff"}'
    elif how == "key":
        record.key = b"somebody"
    elif how == "twice":
        record.headers = [*record.headers, ("ce_id", b"x"), ("ce_id", b"x")]
    elif how == "null":
        record.headers = [(name, None) for name, _ in record.headers]
    elif how == "surrogate":
        record.value = record.value[:-1] + b',"args":{"a":"\\ud800"}}'
    elif how.startswith("deep"):
        depth = 90 if how == "deep" else 3000
        record.value = record.value[:-1] + b',"more":' + b"[" * depth + b"]" * depth + b"}"
    elif how == "dup":
        record.value = record.value[:-1] + b',"agent":"other"}'
    return record


@settings(max_examples=200, deadline=None)
@given(several())
def test_the_same_as_record_by_record(given_: tuple[Topic, list[Record]]) -> None:
    topic, records = given_
    rows, dead = made(records, topic)
    for record in records:
        try:
            expected = oracle.row(record, NOW_MS, topic, f"t.{topic}", VERIFIER)
        except InvalidEvent:
            assert record.offset in dead
            assert record.offset not in rows
        else:
            assert record.offset not in dead
            assert _without_zeros(rows[record.offset]) == _without_zeros(expected)


def _without_zeros(row: dict[str, Any]) -> dict[str, Any]:
    """An absent count and 0 are one: the table has no NULL there."""
    return {name: value for name, value in row.items() if value != 0 or "Nullable" in COLUMNS[name]}


@settings(max_examples=60, deadline=None)
@given(several())
def test_what_a_record_becomes_does_not_depend_on_its_neighbours(given_: tuple[Topic, list[Record]]) -> None:
    topic, records = given_
    together = made(records, topic)
    rows: dict[int, Any] = {}
    dead: dict[int, str] = {}
    for record in records:
        one = made([record], topic)
        rows.update(one[0])
        dead.update(one[1])
    assert (rows, dead) == together


def test_an_agent_cannot_pass_off_what_it_does_as_a_replay() -> None:
    """Replays are nobody's present: `now`, findings and the live views leave them out. Only the enforcer says what is one."""
    event = msgspec.to_builtins(sample("note"))
    rows, _ = made(
        [
            signed(event, Topic.ACTIONS, 1, by="agent", replay="run-1"),
            signed(event, Topic.ACTIONS, 2, by="service", replay="run-1"),
            signed(event, Topic.ACTIONS, 3, by="agent"),
        ],
        Topic.ACTIONS,
    )
    assert [(rows[n]["verified"], rows[n].get("replay")) for n in (1, 2, 3)] == [
        (False, None),
        (True, "run-1"),
        (True, None),
    ]


def test_one_bad_record_among_thousands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunk of the bad one takes the slow way; all rows are there, in order, and the letter says which field."""
    monkeypatch.setattr(decoding, "CHUNK", 100)
    event = json.loads(codec.encode(sample("tool.call")))
    records = [signed(event | {"id": stamps.uuid7(), "seq": n + 1}, Topic.ACTIONS, n, by="agent") for n in range(1000)]
    records[450].value = codec.encode(event | {"agent": "../x"})
    rows, dead = made(records, Topic.ACTIONS)
    assert dead.keys() == {450}
    assert "agent" in dead[450]
    assert [row["seq"] for _, row in sorted(rows.items())] == [n + 1 for n in range(1000) if n != 450]


def test_what_is_larger_than_kafka_takes_is_a_dead_letter() -> None:
    """It came compressed."""
    value = codec.encode(
        json.loads(codec.encode(sample("note"))) | {"text": "x" * SPECS[Topic.ACTIONS].max_message_bytes}
    )
    rows, dead = made([Record(0, b"a", value)], Topic.ACTIONS)
    assert not rows
    assert dead[0].startswith("is larger than")


@pytest.mark.parametrize("topic", ARCHIVED)
def test_tombstones_and_heartbeats(topic: Topic) -> None:
    rows, dead = made([Record(0, b"a", None)], topic)
    assert not rows
    assert bool(dead) != SPECS[topic].compact
    if topic is Topic.CONTROL:
        assert made([Record(0, b"r", codec.encode(sample("replica")))], topic) == ({}, {})


@pytest.mark.parametrize("kind", ARCHIVED_KINDS)
def test_every_kind_without_the_slow_way(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden sample of each kind is decoded by column."""

    def never(*_: object) -> None:
        raise AssertionError("decoded one by one")

    monkeypatch.setattr(decoding.Decoding, "one", never)
    rows, dead = made([Record(0, b"a", codec.encode(sample(kind)))], events.KINDS[kind].topic)
    assert not dead
    assert rows[0]["kind"] == kind


def test_prices() -> None:
    """Given, from the table, or unknown: which is not 0."""
    event = json.loads(codec.encode(sample("model.call")))
    del event["cost_usd"]
    several = [
        {"cost_usd": 0.1 + 0.2},
        {"model": "claude-opus-4-1-20250805"},
        {"model": "no-such-model"},
        {"cost_usd": 1e9},
    ]
    rows, _ = made([Record(n, b"a", codec.encode(event | one)) for n, one in enumerate(several)], Topic.ACTIONS)
    assert rows[0]["cost_usd"] == 300_000_000
    assert rows[0]["priced"] == "given"
    price = load_prices().cost("claude-opus-4-1", (1200, 80, 100, 900))
    assert price is not None
    assert rows[1]["cost_usd"] == round(price * 1e9) > 0
    assert rows[1]["priced"].startswith("table 20")
    assert rows[2]["priced"] == "unpriced"
    assert "cost_usd" not in rows[2]
    assert rows[3]["cost_usd"] == 999_999_999 * 10**9
