"""What detectors find is a function of the log: in memory, and through Kafka with workers that are killed, it is the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from tests.processors.working import Floor, a_floor
from tests.servers import PARTITIONS, Broker

from banksman.policy.load import load
from banksman.processors.detector import Sighting
from banksman.processors.worker.engine import Engine, Record
from banksman.processors.worker.main import found
from banksman.processors.worker.outbox import _id
from banksman.signing import Verifier
from banksman.stamps import uuid7
from banksman.store.prices import load_prices
from banksman.topics import Topic

POLICY = """\
project: shop
version: 1
agents:
  looping: {allow: [{service: ci, actions: [run]}]}
  spending: {budget: {daily_tokens: 1000}}
  straying: {allow: [{service: tickets, actions: [read, comment]}]}
  unasked: {allow: [{service: git, actions: [pull]}]}
"""
AN_HOUR_MS = 3_600_000


@pytest.fixture
def floor(broker: Broker, tmp_path: Path) -> Iterator[Floor]:
    with a_floor(broker, tmp_path) as made:
        yield made


def call(floor: Floor, agent: str, session: str, status: str, **about: Any) -> Iterator[tuple[Any, ...]]:
    name = uuid7()
    head = {"agent": agent, "session": session}
    yield floor.action(kind="tool.call", id=name, **head, **about)
    yield floor.action(kind="tool.result", call=name, parent=name, status=status, **head)


def story(floor: Floor) -> Iterator[tuple[Any, ...]]:
    for number in range(12):
        session = f"s{number}"
        for agent in ("looping", "straying", "unasked"):
            yield floor.action(agent, "session.started", session=session)
        for _ in range(6 if number % 4 == 3 else 1):
            yield from call(floor, "looping", session, "error", service="ci", action="run", resource="acme/api")
        yield floor.action("spending", input_tokens=150, session=session)
        yield from call(floor, "straying", session, "ok", service="tickets", action="read", resource="ticket/1")
        yield from call(floor, "straying", session, "ok", service="tickets", action="comment", resource="ticket/1")
        if number > 8:
            yield from call(floor, "straying", session, "ok", service="http", action="post", resource=f"paste/{number}")
            yield from call(floor, "straying", session, "ok", service="db", action="drop", resource=f"table/{number}")
        if number % 5 == 4:
            yield from call(floor, "unasked", session, "ok", service="git", action="push", resource="acme/api")
        for agent in ("looping", "straying", "unasked"):
            yield floor.action(agent, "session.ended", session=session)


async def read_back(floor: Floor) -> list[Record]:
    consumer = AIOKafkaConsumer(**floor.kafka.client(), enable_auto_commit=False)
    await consumer.start()
    records = []
    try:
        for topic in (Topic.ACTIONS, Topic.DECISIONS):
            name = floor.kafka.topic(topic)
            places = [TopicPartition(name, number) for number in range(PARTITIONS)]
            consumer.assign(places)
            await consumer.seek_to_beginning(*places)
            ends = await consumer.end_offsets(places)
            while any([await consumer.position(place) < ends[place] for place in places]):
                for place, several in (await consumer.getmany(timeout_ms=200)).items():
                    records += [
                        Record(topic, name, place.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers))
                        for r in several
                    ]
    finally:
        await consumer.stop()
    return records


def in_memory(floor: Floor) -> dict[str, str]:
    """Id -> title of what is found without Kafka."""
    records = asyncio.run(read_back(floor))
    policy = load(POLICY.encode()).policy
    tables: dict[str, dict[bytes, bytes]] = {name: {} for name in ["sources", *(one.name for one in found())]}
    engine = Engine(
        Verifier(floor.secret), load_prices(), lambda _p, agent: policy.agents.get(agent), found(), tables, PARTITIONS
    )
    engine.take(records)
    for partition in range(PARTITIONS):
        list(engine.lapse(max(record.received_ms for record in records) + 20_000, partition))
    return {_id(one): one.what.title for one in engine.outputs if isinstance(one.what, Sighting)}


def test_the_same_is_found_when_workers_are_killed(floor: Floor) -> None:
    floor.policy(POLICY)
    records = list(story(floor))
    worker = floor.start()
    floor.ready(worker)
    step = len(records) // 4
    for number in range(4):
        floor.put(*records[number * step : (number + 1) * step if number < 3 else None])
        if number < 3:
            worker.kill()
            worker.wait()
            worker = floor.start()
    wanted = in_memory(floor)
    detectors = {title.split(":")[0] for title in wanted.values()}
    assert len(wanted) >= 12, detectors

    def told() -> dict[str, str]:
        return {one["id"]: one["title"] for one in floor.records(Topic.ALERTS, kind="finding")}

    floor.until(lambda: len(told()) >= len(wanted), 40)
    assert told() == wanted
    found_by = {one["detector"] for one in floor.records(Topic.ALERTS, kind="finding")}
    assert found_by == {"loops", "budgets", "anomalies", "calls"}
