"""Records that somebody with a Kafka password made by hand: the archiver goes on, and says what it met."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from typing import Any

from aiokafka import TopicPartition
from tests import raw_batches
from tests.processors.conftest import Archive

from banksman import bus, provision, signing
from banksman.store.client import Store
from banksman.topics import Topic


def letters(archive: Archive, count: int) -> list[dict[str, Any]]:
    async def read() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        async with contextlib.aclosing(bus.read_from_start(archive.kafka, archive.kafka.topic(Topic.DEAD))) as batches:
            async for batch in batches:
                found.extend(json.loads(record.value) for record in batch)
                if len(found) >= count:
                    return found
        raise AssertionError

    return asyncio.run(asyncio.wait_for(read(), 20))


def send_bytes(archive: Archive, partition: int, records: list[tuple[bytes, bytes | None, list[Any]]]) -> None:
    raw_batches.send(archive.kafka, archive.kafka.topic(Topic.ACTIONS), partition, records)


def test_headers_without_values_and_names_that_are_no_text(archive: Archive) -> None:
    good = [archive.action(text=str(n)) for n in range(6)]
    partition = bus.partition_of(b"a", 2)
    archive.publish(good[0])
    send_bytes(
        archive, partition, [(b"a", good[1][2], [("banksman-auth", None)]), (b"a", good[1][2], [("ce_id", None)])]
    )
    before = good[2]
    send_bytes(
        archive, partition,
        [(b"a", before[2], before[3]), (b"a", b"x", [("a[[b", b"")]), (b"a", b"y", []), (b"a", b"z", [])],
    )  # fmt: skip
    archive.publish(*good[3:])
    archive.start()
    archive.until(lambda: archive.count() == 7)
    rows = archive.ask("SELECT verified, raw FROM @events WHERE topic = 'actions' ORDER BY offset")
    texts = [(row["verified"], json.loads(row["raw"])["text"]) for row in rows]
    assert texts == [(True, "0"), (False, "1"), (False, "1"), (True, "2"), (True, "3"), (True, "4"), (True, "5")]
    letter = letters(archive, 1)[0]
    assert letter["offset"] == 6
    assert letter["error"].startswith("offsets 4 to 6: a header's name is not UTF-8")


def test_no_value_no_utf8_and_far_too_large(archive: Archive) -> None:
    good = archive.action(text="good")
    not_utf8 = good[2][:-1] + b',"more":"\xff"}'
    large = b"[" + b"1," * 900_000 + b"1]"
    archive.publish(good)
    send_bytes(archive, bus.partition_of(b"a", 2), [(b"a", None, [])])
    archive.publish((Topic.ACTIONS, b"a", not_utf8, []), (Topic.ACTIONS, b"a", large, []), archive.action(text="on"))
    archive.start()
    archive.until(lambda: archive.count() == 2)
    errors = {base64.b64decode(letter["value"]): letter["error"] for letter in letters(archive, 3)}
    assert errors[b""] == "has no value"
    assert errors[not_utf8].startswith("not UTF-8")
    assert large in errors


def test_dead_letters_are_not_buried_again_at_each_start(archive: Archive) -> None:
    """The end of a partition is all dead letters: ClickHouse has nothing of them to go on behind."""
    archive.publish(archive.action(text="good"), *[(Topic.ACTIONS, b"a", b"bad", [])] * 5)
    for more in range(1, 4):
        archive.publish((Topic.ACTIONS, b"a", b"bad", []))
        process = archive.start()
        archive.until(lambda: committed(archive) == 6 + more)  # noqa: B023 - asked before the next round
        process.terminate()
        assert process.wait(20) == 0
    offsets = [letter["offset"] for letter in letters(archive, 8)]
    assert offsets == list(range(1, 9))
    assert archive.count() == 1


def test_a_new_database_is_filled_from_the_beginning(archive: Archive) -> None:
    archive.publish(*[archive.action(text=str(n)) for n in range(20)])
    process = archive.start()
    archive.until(lambda: archive.count() == 20 and committed(archive) == 20)
    process.terminate()
    process.wait(20)
    store = Store(archive.clickhouse, reader=False)
    store.command(f"TRUNCATE TABLE `{archive.clickhouse.clickhouse_database}`.events")
    store.close()
    archive.publish(archive.action(text="20"))
    archive.start()
    archive.until(lambda: archive.count() == 21)


def test_an_id_used_again_after_a_restart_is_noticed(archive: Archive) -> None:
    first = archive.action(text="first")
    process = archive.start()
    archive.publish(first)
    archive.until(lambda: archive.count() == 1)
    process.kill()
    process.wait()
    archive.publish(archive.action(id=json.loads(first[2])["id"], text="second"))
    archive.start()
    found = archive.until(lambda: archive.ask("SELECT title FROM @events WHERE detector = 'id_reuse' AND verified"))
    assert json.loads(first[2])["id"] in found[0]["title"]
    assert len(archive.ask("SELECT n FROM @session_steps(agent = 'a', session = 's') WHERE id_reused")) == 2


def test_a_flood_of_forgeries_is_not_a_flood_of_alerts(archive: Archive) -> None:
    forged: list[tuple[Topic, bytes, bytes, signing.Headers]] = [
        (*archive.action(agent=f"made-up-{n}")[:3], []) for n in range(500)
    ]
    archive.publish(*forged)
    archive.start()
    archive.until(lambda: archive.count() == 500)
    archive.until(
        lambda: archive.ask("SELECT 1 FROM @events WHERE topic = 'alerts' AND fingerprint = 'forged/more/warn'")
    )
    assert archive.ask("SELECT count() AS n FROM @events WHERE topic = 'alerts'")[0]["n"] <= 31


def committed(archive: Archive) -> int:
    """The group's offset in the partition of agent `a`."""
    where = TopicPartition(archive.kafka.topic(Topic.ACTIONS), bus.partition_of(b"a", 2))
    commits = asyncio.run(provision.committed(archive.kafka, archive.kafka.topic_prefix + "archiver"))
    return int(commits[where].offset) if where in commits else -1
