"""Up to when a partition is counted, on a real broker."""

from __future__ import annotations

import asyncio
import time
from unittest import mock

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from tests.servers import PARTITIONS

from banksman import bus
from banksman.processors.worker import watermarks
from banksman.processors.worker.watermarks import Watermarks
from banksman.settings import Kafka
from banksman.topics import Topic


async def fill(kafka: Kafka, count: int) -> TopicPartition:
    """So many records into a partition of `actions`."""
    producer = bus.producer(kafka)
    await producer.start()
    try:
        to = bus.Publisher(producer, kafka.topic(Topic.ACTIONS))
        await asyncio.gather(*(to.put(0, b"a", b"{}", []) for _ in range(count)))
    finally:
        await producer.stop()
    return TopicPartition(kafka.topic(Topic.ACTIONS), 0)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next look need not wait."""
    monkeypatch.setattr(watermarks, "EVERY_S", 0.0)


async def test_a_partition_is_counted_up_to_the_look_whose_end_was_worked_through(kafka_settings: Kafka) -> None:
    where = await fill(kafka_settings, 3)
    marks = Watermarks(kafka_settings, "nobody", [where.topic, kafka_settings.topic(Topic.DECISIONS)])
    marks.assigned(range(PARTITIONS), {})
    before = time.time_ns() // 1_000_000
    await marks.look()
    assert set(marks.reached()) == {1}, "in the other one is nothing"
    for offset in (0, 1):
        marks.worked(where.topic, 0, offset)
    await fill(kafka_settings, 1)  # it came after the look: nobody waits for it
    assert marks.reached().keys() <= {1}
    marks.worked(where.topic, 0, 2)
    (until_ms, lag_ms) = marks.reached()[0]
    assert before <= until_ms <= time.time_ns() // 1_000_000
    assert 0 <= lag_ms <= time.time_ns() // 1_000_000 - before + 1
    await marks.close()


async def test_nobody_waits_for_what_kafka_has_removed(kafka_settings: Kafka) -> None:
    where = await fill(kafka_settings, 3)
    admin = AIOKafkaAdminClient(**kafka_settings.client())
    await admin.start()
    try:
        await admin.delete_records({where: RecordsToDelete(before_offset=3)})
    finally:
        await admin.close()
    marks = Watermarks(kafka_settings, "nobody", [where.topic])
    marks.assigned([0], {where: 1})
    await marks.look()
    assert set(marks.reached()) == {0}
    await marks.close()


async def test_one_that_stands_is_seen_beside_one_that_is_quiet(
    kafka_settings: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, now = await fill(kafka_settings, 3), time.monotonic()
    clock = mock.Mock(monotonic=lambda: now, time_ns=time.time_ns)
    monkeypatch.setattr(watermarks, "time", clock)
    marks = Watermarks(kafka_settings, "nobody", [where.topic])
    marks.assigned(range(PARTITIONS), {})
    await marks.look()
    assert set(marks.reached()) == {1}, "the quiet one is counted, again and again"
    now += 100
    assert marks.stands_s() == pytest.approx(100)
    marks.worked(where.topic, 0, 0)
    now += 5
    assert marks.stands_s() == pytest.approx(5)  # it is slow, and moves
    for offset in (1, 2):
        marks.worked(where.topic, 0, offset)
    now += 100
    assert marks.stands_s() == 0
    await marks.close()
