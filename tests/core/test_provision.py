"""Topics are made once and judged at every start: what the promises rest on is there, or is named."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.cluster import ClusterMetadata
from tests.servers import Broker

from banksman import provision
from banksman.errors import BadDeployment
from banksman.settings import Kafka
from banksman.topics import SPECS, Topic


async def test_topics_are_checked(kafka_settings: Kafka, broker: Broker) -> None:
    assert await provision.create_topics(kafka_settings) == []
    assert (await provision.check_topics(kafka_settings))[Topic.CONTROL] == 1
    other = broker.node.settings(topic_prefix="nobody.made.these.")
    with pytest.raises(BadDeployment, match=r"nobody\.made\.these\.control is not there"):
        await provision.check_topics(other)


async def test_topics_are_kept_as_long_as_the_settings_say(broker: Broker) -> None:
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    settings = broker.node.settings(topic_prefix="kept.", actions_days=2, dead_days=400)
    await provision.create_topics(settings)
    admin = await provision.connect_admin(settings)
    try:
        resources = [ConfigResource(ConfigResourceType.TOPIC, settings.topic(topic)) for topic in Topic]
        told: list[Any] = []
        async with asyncio.timeout(20):
            while not all(resource[4] for resource in told) or len(told) < len(
                Topic
            ):  # the broker learns of them a moment later
                told = [one for answer in await admin.describe_configs(resources) for one in answer.resources]
    finally:
        await admin.close()
    kept = {
        resource[3].removeprefix("kept."): next(int(entry[1]) for entry in resource[4] if entry[0] == "retention.ms")
        for resource in told
    }
    day = 86_400_000
    assert kept == {
        "actions": 2 * day, "decisions": 30 * day, "control": -1, "limits": -1, "alerts": 90 * day, "dead": 400 * day,
    }  # fmt: skip


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


async def test_three_copies_want_two_that_are_in_sync(kafka_settings: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one broker alone acknowledges, and what it had is gone with it. As if each topic had been made with three copies."""
    real = provision.asked

    async def asked(*given: Any) -> Any:
        topics, answers = await real(*given)
        for topic in topics:
            for partition in topic["partitions"]:
                partition["replicas"] = [1, 2, 3]
        return topics, answers

    monkeypatch.setattr(provision, "asked", asked)
    with pytest.raises(BadDeployment) as caught:
        await provision.check_topics(kafka_settings)
    for topic in Topic:
        said = f"{kafka_settings.topic(topic)}: min.insync.replicas must be 2 or more with 3 copies"
        assert said in str(caught.value)


async def test_a_broker_that_does_not_know_its_controller_yet_is_asked_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that has just come back: its answers name no controller for a moment."""
    update, left = ClusterMetadata.update_metadata, 6

    def without(self: Any, metadata: Any) -> None:
        nonlocal left
        update(self, metadata)
        if left:
            left -= 1
            self.controller = None

    monkeypatch.setattr(ClusterMetadata, "update_metadata", without)
    made = await provision.create_topics(broker.node.settings(topic_prefix="early.", partitions=2))
    assert len(made) == len(SPECS)
    assert left == 0
