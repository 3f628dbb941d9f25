"""The archiver through its two surfaces: topics in, SQL out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata
from tests.processors.conftest import Archive
from tests.servers import PARTITIONS, ClickHouseServer, freeze

from banksman import bus, provision, signing, stamps
from banksman.topics import Topic


def alerts(archive: Archive) -> dict[str, dict[str, Any]]:
    found = archive.ask("SELECT * FROM @events WHERE topic = 'alerts' AND verified")
    return {row["detector"]: row for row in found}


def test_what_is_published_is_there(archive: Archive) -> None:
    archive.start()
    archive.publish(*[archive.action(text=str(n), seq=n + 1) for n in range(500)])
    archive.until(lambda: archive.count() == 500)
    rows = archive.ask("SELECT * FROM @session_steps(agent = 'a', session = 's')")
    assert [row["seq"] for row in rows] == list(range(1, 501))
    assert {(row["verified"], row["late"], row["replay"], row["kind"]) for row in rows} == {(True, "", "", "note")}
    assert rows[0]["author"] == "agent:p/a/t1"
    assert json.loads(rows[7]["raw"])["text"] == "7"


def test_nothing_forged_counts_and_nothing_real_is_hidden(archive: Archive) -> None:
    """Straight into Kafka: no signature, somebody else's, a reused id, dates in 2020 and 2099, an agent in `control`."""
    real = archive.action(text="real")
    event = json.loads(real[2])
    old = archive.action(text="old", time="2020-01-01T00:00:00.000000Z")
    far = archive.action(text="far", time="2099-01-01T00:00:00.000000Z")
    again = archive.action(id=event["id"], text="other content")
    unsigned = archive.action(text="unsigned")
    borrowed = archive.action(agent="b", signer=archive.agent("a"), text="in b's name")
    enrol = {
        "v": 1, "id": stamps.uuid7(), "time": stamps.rfc3339(), "kind": "agent.enrolled", "source": "test#1",
        "project": "p", "agent": "evil", "owner": "me", "token_id": "x", "token_hash": "y",
    }  # fmt: skip
    forged = archive.signed(Topic.CONTROL, b"agent.enrolled/1", enrol, archive.agent("a"))
    resend = real
    archive.publish(real, old, far, again, (*unsigned[:3], []), borrowed, forged, resend)
    archive.start()
    archive.until(lambda: len(alerts(archive)) == 3)
    assert set(alerts(archive)) == {"forged", "clock_skew", "id_reuse"}
    rows = archive.ask("SELECT * FROM @session_steps(agent = 'a', session = 's')")
    shown = {json.loads(row["raw"])["text"]: row for row in rows}
    assert set(shown) == {"real", "old", "far", "other content", "unsigned"}
    assert len(rows) == 5, "the resend shows once"
    assert shown["real"]["verified"]
    assert shown["real"]["id_reused"]
    assert shown["other content"]["id_reused"]
    assert not shown["unsigned"]["verified"]
    assert (shown["old"]["late"], shown["far"]["late"], shown["real"]["late"]) == ("skew", "skew", "")
    assert shown["old"]["received"].year == shown["real"]["received"].year, "retention goes by the broker's time"
    assert not archive.ask("SELECT * FROM @events WHERE agent = 'b' AND topic = 'actions'")[0]["verified"]
    control = archive.ask("SELECT * FROM @events WHERE topic = 'control'")
    assert [(row["verified"], row["author"]) for row in control] == [(False, "agent:p/a/t1")]


def test_what_can_never_be_stored_goes_to_dead_and_the_rest_is_stored(archive: Archive) -> None:
    good = archive.action(text="good")
    bad = [b"", b"{", b'{"kind":"note"}', b"\xff", good[2].replace(b'"note"', b'"decision"')]
    archive.publish(good, *[(Topic.ACTIONS, b"a", value, []) for value in bad], archive.action(text="also good"))
    archive.start()
    archive.until(lambda: archive.count() == 2 and "dead_letters" in alerts(archive))

    async def read() -> list[dict[str, Any]]:
        letters: list[dict[str, Any]] = []
        async with contextlib.aclosing(bus.read_from_start(archive.kafka, archive.kafka.topic(Topic.DEAD))) as batches:
            async for batch in batches:
                letters.extend(json.loads(record.value) for record in batch)
                if len(letters) >= len(bad):
                    return letters
        raise AssertionError

    letters = asyncio.run(asyncio.wait_for(read(), 20))
    assert len(letters) == len(bad)
    assert all(letter["topic"] == archive.kafka.topic(Topic.ACTIONS) and letter["error"] for letter in letters)


def test_kinds_of_a_later_version_are_kept(archive: Archive) -> None:
    later = archive.action(kind="tool.thought", text="x")
    archive.publish(later)
    archive.start()
    archive.until(lambda: archive.count() == 1)
    row = archive.ask("SELECT * FROM @events WHERE topic = 'actions'")[0]
    assert (row["kind"], row["agent"], row["session"]) == ("tool.thought", "a", "s")
    assert row["raw"].encode() == later[2]


@pytest.mark.slow
def test_killed_again_and_again_every_record_is_shown_once(archive: Archive) -> None:
    texts = 0
    for _ in range(4):
        process = archive.start()
        for _ in range(5):
            archive.publish(*[archive.action(text=str(texts + n), agent=f"a{n % 3}") for n in range(400)])
            texts += 400
        process.kill()
        process.wait()
    archive.start()
    archive.until(lambda: archive.count() >= texts)
    counted = archive.ask(
        "SELECT count() AS rows, uniqExact(partition, offset) AS places FROM @events WHERE topic = 'actions'"
    )
    assert counted == [{"rows": texts, "places": texts}]


@pytest.mark.slow
def test_two_archivers_one_frozen(archive: Archive) -> None:
    frozen = archive.start()
    archive.publish(*[archive.action(text=str(n)) for n in range(200)])
    archive.until(lambda: archive.count() == 200)
    freeze(frozen.pid)
    archive.publish(*[archive.action(text=str(n)) for n in range(200, 1200)])
    archive.start()
    archive.until(lambda: archive.count() >= 1200)
    frozen.send_signal(signal.SIGCONT)
    archive.publish(*[archive.action(text=str(n)) for n in range(1200, 1400)])
    archive.until(lambda: len(archive.ask("SELECT n FROM @session_steps(agent = 'a', session = 's')")) >= 1400)
    shown = archive.ask("SELECT raw FROM @session_steps(agent = 'a', session = 's')")
    assert sorted(int(json.loads(row["raw"])["text"]) for row in shown) == list(range(1400))


@pytest.mark.slow
def test_clickhouse_away_loses_nothing(archive: Archive, clickhouse_server: ClickHouseServer) -> None:
    archive.start()
    archive.publish(archive.action(text="before"))
    archive.until(lambda: archive.count() == 1)
    clickhouse_server.kill()
    try:
        archive.publish(*[archive.action(text=str(n)) for n in range(300)])
        archive.until(lambda: "waiting" in (archive.folder / "archiver0.log").read_text())
    finally:
        clickhouse_server.start()
    archive.until(lambda: archive.count() == 301)


def test_a_hundred_and_fifty_dates_are_one_day(archive: Archive) -> None:
    """Of an author with a lying clock: by its dates, one insert would make more partitions than ClickHouse takes in one, and
    retention would take the old ones at once.
    """
    days = [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=17 * n) for n in range(150)]
    archive.publish(*[archive.action(text=str(n), time=stamps.rfc3339(day)) for n, day in enumerate(days)])
    archive.start()
    archive.until(lambda: archive.count() == 150)
    found = archive.ask(
        "SELECT uniqExact(toDate(time)) AS dates, uniqExact(_partition_id) AS days FROM @events WHERE topic = 'actions'"
    )
    assert (found[0]["dates"], found[0]["days"] <= 2) == (150, True)  # two, if it is midnight
    assert archive.ends(Topic.DEAD) == 0


def test_late_is_not_skew(archive: Archive) -> None:
    """A spool that was emptied after an outage: it happened long ago, and was sent now."""
    topic, key, value, headers = archive.action(time="2026-01-01T00:00:00.000000Z")
    sent = ("banksman-sent", stamps.rfc3339().encode())
    archive.publish((topic, key, value, [*headers, sent]))
    archive.start()
    archive.until(lambda: archive.count() == 1)
    assert archive.ask("SELECT late, verified FROM @events WHERE topic = 'actions'") == [
        {"late": "late", "verified": True}
    ]


def test_a_finding_of_what_was_long_ago_says_nothing_of_a_clock(archive: Archive) -> None:
    """A worker that catches up tells of what happened then; its own clock is right, and so is the agent's."""
    finding = {
        "v": 1, "id": stamps.uuid7(), "time": "2026-01-01T00:00:00.000000Z", "kind": "finding", "source": "processors#1",
        "project": "p", "agent": "a", "detector": "loops", "severity": "warn", "title": "t", "fingerprint": "loops/a",
    }  # fmt: skip
    told = archive.signed(Topic.ALERTS, b"loops/a", finding, signing.service_signer(archive.secret, "processors"))
    archive.publish(told, (*archive.action(text="unsigned")[:3], []))
    archive.start()
    archive.until(lambda: len(alerts(archive)) == 2)
    assert set(alerts(archive)) == {"loops", "forged"}
    assert archive.ask("SELECT late, verified FROM @events WHERE detector = 'loops'") == [
        {"late": "late", "verified": True}
    ]


def test_replayed_history_is_marked_and_not_live(archive: Archive) -> None:
    event = json.loads(archive.action(agent="r", time="2026-01-01T00:00:00.000000Z")[2])
    value = json.dumps(event).encode()
    marks = {name: event[name] for name in ("id", "kind", "time", "source")}
    signer = signing.service_signer(archive.secret, "enforcer")
    headers = signer.headers(archive.kafka.topic(Topic.ACTIONS), b"r", value, replay="replay-1", **marks)
    archive.publish((Topic.ACTIONS, b"r", value, headers), archive.action(agent="live"))
    archive.start()
    archive.until(lambda: archive.count() == 2)
    assert archive.ask("SELECT replay, late, verified FROM @events WHERE agent = 'r'") == [
        {"replay": "replay-1", "late": "", "verified": True}
    ]
    assert [row["agent"] for row in archive.ask("SELECT agent FROM @agents_now")] == ["live"]


def test_a_commit_that_was_lost_is_made_up_for(archive: Archive) -> None:
    """Whoever looks at the group from outside would take a quiet partition for one that waits, for ever."""
    kafka = archive.kafka
    group, topic = kafka.topic_prefix + "archiver", kafka.topic(Topic.ACTIONS)
    where = TopicPartition(topic, bus.partition_of(b"a", PARTITIONS))

    def committed() -> int:
        found = asyncio.run(provision.committed(kafka, group))
        return found[where].offset if where in found else -1

    async def lose() -> None:
        consumer = bus.consumer(kafka, group_id=group)
        await consumer.start()
        try:
            consumer.assign([where])
            await consumer.commit({where: OffsetAndMetadata(0, "")})
        finally:
            await consumer.stop()

    archive.publish(*(archive.action(seq=n) for n in range(1, 4)))
    archive.start()
    archive.until(lambda: committed() == 3)
    archive.stop()
    asyncio.run(lose())
    assert committed() == 0
    archive.start()
    archive.until(lambda: committed() == 3)
    assert archive.count() == 3
