"""Group commit on the real broker."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from tests.servers import Broker

from banksman import bus, provision
from banksman.errors import BadDeployment, BrokerAway, Unavailable
from banksman.settings import Kafka
from banksman.topics import Topic


async def read_all(settings: Kafka, topic: str, partition: int, end: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(**settings.client(), auto_offset_reset="earliest")
    await consumer.start()
    where = TopicPartition(topic, partition)
    consumer.assign([where])
    values: list[bytes] = []
    async with asyncio.timeout(20):
        while len(values) < end:
            values += [r.value for r in (await consumer.getmany(timeout_ms=500)).get(where, [])]
    await consumer.stop()
    return values


async def test_every_record_once_in_order_with_its_offset(kafka_settings: Kafka) -> None:
    producer = bus.producer(kafka_settings)
    await producer.start()
    topic = kafka_settings.topic(Topic.ACTIONS)
    publisher = bus.Publisher(producer, topic)
    futures = [publisher.put(n % 2, b"k", b"%d" % n, [("h", b"v")]) for n in range(2000)]
    offsets = await asyncio.gather(*futures)
    assert publisher.pending == 0
    for partition in (0, 1):
        assert offsets[partition::2] == list(range(1000))
        assert await read_all(kafka_settings, topic, partition, 1000) == [b"%d" % n for n in range(partition, 2000, 2)]
    await producer.stop()


async def test_beyond_the_bound_it_refuses_at_once(kafka_settings: Kafka) -> None:
    producer = bus.producer(kafka_settings)
    await producer.start()
    publisher = bus.Publisher(producer, kafka_settings.topic(Topic.ACTIONS), bound=3)
    futures = [publisher.put(0, b"k", b"x", []) for _ in range(3)]
    with pytest.raises(Unavailable):
        publisher.put(0, b"k", b"x", [])
    assert await asyncio.gather(*futures) == [0, 1, 2]
    assert await publisher.put(0, b"k", b"x", []) == 3
    await producer.stop()


@pytest.mark.slow
async def test_a_broker_that_is_away(broker: Broker, kafka_settings: Kafka) -> None:
    """Futures fail at their deadline; what was not sent by then never is; what landed late is told to its author."""
    producer = bus.producer(kafka_settings)
    await producer.start()
    topic = kafka_settings.topic(Topic.ACTIONS)
    publisher = bus.Publisher(producer, topic, deadline=1.0)
    landed: list[int] = []
    assert await publisher.put(0, b"k", b"before", []) == 0
    broker.process.send_signal(19)  # SIGSTOP: connections stay open, nothing is answered
    try:
        first = publisher.put(0, b"k", b"in flight", [], landed.append)
        await asyncio.sleep(0)  # lets the flight begin
        async with asyncio.timeout(5):
            while not first.done():
                await asyncio.sleep(0.05)
                if publisher.pending == 1:
                    late = publisher.put(0, b"k", b"never sent", [], landed.append)
            with pytest.raises(BrokerAway):
                await first
            with pytest.raises(BrokerAway):
                await late
    finally:
        broker.process.send_signal(18)
    assert await publisher.put(0, b"k", b"after", []) == 2
    assert landed == [1]
    assert await read_all(kafka_settings, topic, 0, 3) == [b"before", b"in flight", b"after"]
    await producer.stop()


async def test_reading_from_the_start(kafka_settings: Kafka) -> None:
    producer = bus.producer(kafka_settings)
    await producer.start()
    topic = kafka_settings.topic(Topic.CONTROL)
    publisher = bus.Publisher(producer, topic)
    await asyncio.gather(*[publisher.put(0, b"k%d" % n, b"%d" % n, []) for n in range(10)])
    seen: list[bytes] = []
    async with asyncio.timeout(20):
        async for batch in bus.read_from_start(kafka_settings, topic):
            seen += [record.value for record in batch]
            if len(seen) == 10:
                await publisher.put(0, b"k", b"more", [])
            if len(seen) == 11:
                break
    assert seen == [b"%d" % n for n in range(10)] + [b"more"]
    await producer.stop()


async def test_topics_are_checked(kafka_settings: Kafka, broker: Broker) -> None:
    assert await provision.create_topics(kafka_settings) == []
    assert (await provision.check_topics(kafka_settings))[Topic.CONTROL] == 1
    other = broker.node.settings(topic_prefix="nobody.made.these.")
    with pytest.raises(BadDeployment, match=r"nobody\.made\.these\.control is not there"):
        await provision.check_topics(other)


async def test_wrong_topics_are_named(broker: Broker) -> None:
    from aiokafka.admin import NewTopic

    settings = broker.node.settings(topic_prefix="wrong.", partitions=2)
    admin = await provision.connect_admin(settings)
    await admin.create_topics([NewTopic("wrong.control", 3, 1, topic_configs={"cleanup.policy": "delete"})])
    await admin.close()
    await provision.create_topics(settings)
    with pytest.raises(BadDeployment) as caught:
        await provision.check_topics(settings)
    for part in ("wrong.control has 3 partitions, must have 1", "cleanup.policy is delete", "LogAppendTime"):
        assert part in str(caught.value)
