"""Topics are made once and judged at every start: what the promises rest on is there, or is named."""

from __future__ import annotations

import pytest
from tests.servers import Broker

from banksman import provision
from banksman.errors import BadDeployment
from banksman.settings import Kafka
from banksman.topics import Topic


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
