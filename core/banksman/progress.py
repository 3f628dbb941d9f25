"""How far those are that read the log: the groups of archiver, processors and notifier, beside where the topics end.

Kafka is asked, not the services: so one that is gone, or hangs, is seen as well as one that is slow.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from banksman import bus
from banksman.failover import ready_for_failover
from banksman.stamps import boottime
from banksman.topics import ARCHIVED, Topic
from banksman.waiting import Waiting

if TYPE_CHECKING:
    from banksman.settings import Kafka

ARCHIVER, PROCESSORS, NOTIFIER = "archiver", "processors", "notifier"
"""The groups, after the topics' prefix: each commits up to where all that it reads is archived, counted, told."""
READS: dict[str, tuple[Topic, ...]] = {
    ARCHIVER: tuple(ARCHIVED),
    PROCESSORS: (Topic.ACTIONS, Topic.DECISIONS),
    NOTIFIER: (Topic.ALERTS,),
}
ANSWER_S = 5.0

Place = tuple[str, int]
"""(topic, without its prefix; partition)"""


class Progress:
    """What was seen in the last look."""

    def __init__(self, kafka: Kafka) -> None:
        self.ends: dict[Place, int] | None = None
        """The next offset that Kafka would give; None: Kafka is away."""
        self.commits: dict[str, dict[Place, int]] = {group: {} for group in READS}
        """Group -> where it goes on."""
        self._waits: dict[str, dict[Place, Waiting]] = {group: {} for group in READS}
        self._kafka = kafka
        self._consumer: AIOKafkaConsumer | None = None
        self._admin: AIOKafkaAdminClient | None = None

    async def look(self) -> None:
        """Look once. KafkaError, OSError (a time-out is one): Kafka is away, which `ends` says then."""
        try:
            ends, firsts, commits = await self._asked()
        except BaseException:
            self.ends = None
            await self.close()
            raise
        now = boottime()
        for group, topics in READS.items():
            for place, end in ends.items():
                if place[0] in topics:
                    done = max(firsts[place], commits[group].get(place, 0))
                    self._waits[group].setdefault(place, Waiting()).look(end, done, now)
        self.ends, self.commits = ends, commits

    def lag(self, group: str) -> int:
        """Records that wait for a group."""
        return sum(one.records for one in self._waits[group].values())

    def behind(self, group: str) -> set[Place]:
        """The partitions that held more than was done when Kafka was last looked at."""
        return {place for place, one in self._waits[group].items() if one.records}

    def seconds(self, group: str) -> float:
        """For how long at least the oldest of them has been waiting; 0: none does."""
        return max((one.seconds for one in self._waits[group].values()), default=0.0)

    async def close(self) -> None:
        """Let the connections go."""
        consumer, admin, self._consumer, self._admin = self._consumer, self._admin, None, None
        if consumer is not None:
            await consumer.stop()
        if admin is not None:
            await admin.close()

    async def _asked(self) -> tuple[dict[Place, int], dict[Place, int], dict[str, dict[Place, int]]]:
        """-> (ends, firsts, commits by group)."""
        if self._consumer is None:
            self._consumer = await _started(bus.consumer(self._kafka))
        if self._admin is None:
            admin = AIOKafkaAdminClient(**self._kafka.client())
            ready_for_failover(admin._client)  # noqa: SLF001 - there is no public way to it
            self._admin = await _started(admin)
        full = {self._kafka.topic(topic): topic.value for topic in (*ARCHIVED, Topic.DEAD)}
        places = [
            TopicPartition(described["topic"], part["partition"])
            for described in await self._admin.describe_topics(list(full))
            for part in described["partitions"]
        ]
        ends = _short(full, await asyncio.wait_for(self._consumer.end_offsets(places), ANSWER_S))
        if not {(Topic.CONTROL.value, 0), (Topic.ALERTS.value, 0)} <= ends.keys():
            raise KafkaError("the topics are not there yet")
        firsts = _short(full, await asyncio.wait_for(self._consumer.beginning_offsets(places), ANSWER_S))
        commits = {}
        for group in READS:
            found = await self._admin.list_consumer_group_offsets(self._kafka.topic_prefix + group)
            commits[group] = _short(
                full, {place: commit.offset for place, commit in found.items() if commit.offset >= 0}
            )
            if (
                self.commits[group] and not commits[group]
            ):  # aiokafka hides the error of a coordinator that is not ready
                raise KafkaError(f"the group {group} is not known for the moment")
        return ends, firsts, commits


def _short(full: dict[str, str], found: dict[TopicPartition, int]) -> dict[Place, int]:
    return {(full[place.topic], place.partition): int(offset) for place, offset in found.items() if place.topic in full}


async def _started(client: Any) -> Any:
    """The client, started; nothing is left open when it cannot be."""
    try:
        await client.start()
    except BaseException:
        await (client.stop() if hasattr(client, "stop") else client.close())
        raise
    return client
