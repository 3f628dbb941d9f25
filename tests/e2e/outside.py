"""The system seen from outside: who answers, what Kafka holds, whether ClickHouse has all of it."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from tests.e2e import checker

from banksman import settings
from banksman.topics import Topic


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """The first true value of `condition`; fails when there is none in time."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.03)  # between two looks


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


def ask(url: str, token: str, body: dict[str, Any] | None = None) -> Any:
    """A request with a bearer token -> the JSON of its answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=20) as answer:
        return json.loads(answer.read())


async def ends(kafka_settings: settings.Kafka) -> dict[tuple[str, int], int]:
    """(topic without prefix, partition) -> Kafka's end offset, of what is archived and not compacted."""
    consumer = AIOKafkaConsumer(**kafka_settings.client(), enable_auto_commit=False)
    await consumer.start()
    try:
        found = {}
        for topic in (Topic.ACTIONS, Topic.DECISIONS, Topic.ALERTS):
            name = kafka_settings.topic(topic)
            while not (partitions := consumer.partitions_for_topic(name)):
                await consumer._client.force_metadata_update()
            where = [TopicPartition(name, partition) for partition in partitions]
            for partition, end in (await consumer.end_offsets(where)).items():
                found[topic.value, partition.partition] = end
        return found
    finally:
        await consumer.stop()


async def decided_since(kafka_settings: settings.Kafka, source: str, moment: float, seconds: float = 1.0) -> bool:
    """Whether a decision of this source was appended after the moment, or is within so many seconds from now."""
    consumer = AIOKafkaConsumer(**kafka_settings.client(), enable_auto_commit=False)
    await consumer.start()
    try:
        name = kafka_settings.topic(Topic.DECISIONS)
        while not (partitions := consumer.partitions_for_topic(name)):
            await consumer._client.force_metadata_update()
        where = [TopicPartition(name, partition) for partition in partitions]
        consumer.assign(where)
        for place, end in (await consumer.end_offsets(where)).items():
            consumer.seek(place, max(0, end - 200))  # far more than one second's
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for records in (await consumer.getmany(timeout_ms=100)).values():
                for record in records:
                    event = json.loads(record.value)
                    if record.timestamp >= moment * 1000 and (event["kind"], event["source"]) == ("decision", source):
                        return True
        return False
    finally:
        await consumer.stop()


def stored(reading: checker.ClickHouse, wanted: dict[tuple[str, int], int]) -> bool:
    """Whether ClickHouse has the last record of every partition."""
    try:
        rows = reading.ask("SELECT topic, partition, max(offset) + 1 AS end FROM @events GROUP BY topic, partition")
    except OSError:
        return False
    have = {(row["topic"], row["partition"]): row["end"] for row in rows}
    return all(have.get(partition, 0) >= end for partition, end in wanted.items())


def all_stored(kafka_settings: settings.Kafka, reading: checker.ClickHouse) -> dict[tuple[str, int], int]:
    """Return when the archiver has caught up -> the end offsets it has caught up with.

    Twice: what it finds wrong on the way is in `alerts` by the time its rows are stored, and wants to be stored too.
    """

    def once() -> dict[tuple[str, int], int]:
        wanted = asyncio.run(ends(kafka_settings))
        until(lambda: stored(reading, wanted), f"everything up to {wanted} in ClickHouse")
        return wanted

    once()
    return once()
