"""Creating the topics, and the checks at start-up that everything else rests on."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, TypeVar

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, NodeNotReadyError, TopicAlreadyExistsError, for_code

from banksman.errors import BadDeployment, BrokerAway, InvalidSetting
from banksman.failover import ready_for_failover
from banksman.knocking import why_not
from banksman.topics import SPECS, Topic

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiokafka import TopicPartition
    from aiokafka.structs import OffsetAndMetadata

    from banksman.settings import Kafka


PATIENCE_S = 30.0
_log = logging.getLogger("banksman")
T = TypeVar("T")


async def connect_admin(settings: Kafka, *, patience: float = PATIENCE_S) -> AIOKafkaAdminClient:
    """A started admin client; tries until `patience` seconds are over, then BrokerAway. InvalidSetting: it is not let in."""
    until = time.monotonic() + patience
    while True:
        admin = AIOKafkaAdminClient(**settings.client())
        ready_for_failover(admin._client)  # noqa: SLF001 - there is no public way to it
        try:
            await admin.start()
        except (KafkaError, OSError):
            await admin.close()
            why = await why_not(settings)
            if isinstance(why, InvalidSetting) or time.monotonic() >= until:
                raise why from None
            await asyncio.sleep(0.1)
        else:
            return admin


async def committed(
    settings: Kafka, group: str, *, patience: float = PATIENCE_S
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Where a consumer group goes on, in partitions that it has committed. BrokerAway, KafkaError."""
    admin = await connect_admin(settings, patience=patience)
    try:
        found: dict[TopicPartition, OffsetAndMetadata] = await admin.list_consumer_group_offsets(group)
    finally:
        await admin.close()
    return {where: commit for where, commit in found.items() if commit.offset >= 0}


async def asked(
    settings: Kafka, question: Callable[[AIOKafkaAdminClient], Awaitable[T]], patience: float = PATIENCE_S
) -> T:
    """What an admin client is answered. A broker that has just come back knows nobody yet: that is asked again.

    Raises BrokerAway when `patience` seconds are over, BadDeployment or InvalidSetting when asking again would not help.
    """
    until = time.monotonic() + patience
    while True:
        admin = await connect_admin(settings, patience=max(0.0, until - time.monotonic()))
        try:
            return await question(admin)
        except (KafkaError, OSError) as error:
            if isinstance(error, KafkaError) and not error.retriable:
                raise BadDeployment(f"Kafka at {settings.kafka} refuses: {error}") from None
            if time.monotonic() >= until:
                raise BrokerAway(f"the broker at {settings.kafka} does not answer: {error}") from None
            await asyncio.sleep(0.1)
        finally:
            await admin.close()


async def missing_topics(settings: Kafka, *, patience: float = PATIENCE_S) -> list[str]:
    """Names of the topics that are not there."""

    async def listed(admin: AIOKafkaAdminClient) -> set[str]:
        return set(await admin.list_topics())

    there = await asked(settings, listed, patience)
    return [name for name in map(settings.topic, SPECS) if name not in there]


async def create_topics(settings: Kafka, *, patience: float = PATIENCE_S) -> list[str]:
    """Make the topics that are not there -> their names. What is there is left as it is; `check_topics` judges it."""
    missing = await missing_topics(settings, patience=patience)
    wanted = [
        NewTopic(
            settings.topic(spec.topic),
            num_partitions=spec.partitions or settings.partitions,
            replication_factor=settings.replication,
            topic_configs=spec.configs(replication=settings.replication, days=settings.days(spec.topic)),
        )
        for spec in SPECS.values()
        if settings.topic(spec.topic) in missing
    ]

    async def created(admin: AIOKafkaAdminClient) -> None:
        await admin._client.force_metadata_update()  # noqa: SLF001 - no public way to ask who the controller is
        if admin._client.cluster.controller is None:  # noqa: SLF001 - aiokafka would fall over it
            raise NodeNotReadyError("it does not know its controller yet")
        for name, code, message in (await admin.create_topics(wanted)).topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:  # somebody else was faster: as good
                if error.retriable or "fenced" in (
                    message or ""
                ):  # brokers that have just come back are not let in yet
                    raise NodeNotReadyError(f"{error.__name__}: {message}")
                raise BadDeployment(f"topic {name} cannot be created: {message or error.__name__}")

    async def listed(admin: AIOKafkaAdminClient) -> None:
        if not {topic.name for topic in wanted} <= set(await admin.list_topics()):
            raise NodeNotReadyError("it does not know of the new topics yet")

    if wanted:
        await asked(settings, created, patience)
        await asked(settings, listed, patience)  # who is told that they are there must find them there
    return missing


async def check_topics(settings: Kafka, *, patience: float = PATIENCE_S) -> dict[Topic, int]:
    """-> partitions per topic. BadDeployment names everything that is not as the promises need it; BrokerAway.

    `control` must be one compacted partition (its order is the truth and nothing may age out of it), every topic
    stamped by the broker (LogAppendTime), no unclean leader election, min.insync.replicas >= 2 with 3 copies, and
    `actions` and `decisions` must have the same number of partitions.
    """
    names = {settings.topic(topic): topic for topic in SPECS}

    async def described_all(admin: AIOKafkaAdminClient) -> tuple[list[dict[str, Any]], list[Any]]:
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        return await admin.describe_topics(list(names)), await admin.describe_configs(resources)

    topics, answers = await asked(settings, described_all, patience)
    described = {topic["topic"]: topic for topic in topics}
    wrong: list[str] = []
    partitions: dict[Topic, int] = {}
    configs = {
        resource[3]: {entry[0]: entry[1] for entry in resource[4]}
        for answer in answers
        for resource in answer.resources
    }
    for name, topic in names.items():
        found = described.get(name)
        if found is None or found["error_code"]:
            wrong.append(f"{name} is not there (`banksman migrate` makes it)")
            continue
        spec, config = SPECS[topic], configs.get(name, {})
        count = partitions[topic] = len(found["partitions"])
        copies = min((len(p["replicas"]) for p in found["partitions"]), default=0)
        if spec.partitions is not None and count != spec.partitions:
            wrong.append(f"{name} has {count} partitions, must have {spec.partitions}")
        must = {
            "message.timestamp.type": "LogAppendTime",
            "unclean.leader.election.enable": "false",
            "cleanup.policy": "compact" if spec.compact else "delete",
        }
        wrong.extend(
            f"{name}: {key} is {config.get(key)}, must be {value}"
            for key, value in must.items()
            if config.get(key) != value
        )
        if copies >= 3 and int(config.get("min.insync.replicas") or 0) < 2:
            wrong.append(f"{name}: min.insync.replicas must be 2 or more with {copies} copies")
        if int(config.get("max.message.bytes") or 0) < spec.max_message_bytes:
            wrong.append(
                f"{name}: max.message.bytes is {config.get('max.message.bytes')}, must be {spec.max_message_bytes}"
            )
    if partitions.get(Topic.ACTIONS) != partitions.get(Topic.DECISIONS):
        wrong.append("actions and decisions must have the same number of partitions")
    if wrong:
        raise BadDeployment("Kafka is not configured as banksman needs it: " + "; ".join(wrong))
    return partitions


async def copies_of(settings: Kafka, topic: Topic) -> int:
    """How many copies there are of a topic; of the partition that has the fewest. BrokerAway, BadDeployment."""
    (found,) = await asked(settings, lambda admin: admin.describe_topics([settings.topic(topic)]))
    return min((len(partition["replicas"]) for partition in found["partitions"]), default=1)


async def await_topics(settings: Kafka) -> dict[Topic, int]:
    """As `check_topics`, for as long as there is no broker to ask."""
    return await awaited(lambda: check_topics(settings))


async def awaited(question: Callable[[], Awaitable[T]]) -> T:
    """What is answered as soon as there is a broker to ask."""
    while True:
        try:
            return await question()
        except BrokerAway as error:
            _log.warning("waiting for Kafka: %s", error)
