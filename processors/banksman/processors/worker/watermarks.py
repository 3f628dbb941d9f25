"""Up to when every partition is counted, told in `limits`: whoever goes by budgets must know when nobody counts any more.

A look: when does it begin, where do the partitions of one number end then? When both are worked through up to there, all that
was received before the look began is counted. So the mark is right whatever else comes meanwhile, and the lag is what it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from banksman import bus, provision

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from banksman.settings import Kafka

EVERY_S = 1.0


@dataclass
class _Look:
    began_ms: int
    began: float
    ends: Mapping[TopicPartition, int]


class Watermarks:
    """For the partitions of one worker. `done`: where each goes on that something of was worked through."""

    def __init__(self, kafka: Kafka, group: str, topics: Iterable[str]) -> None:
        self._kafka, self._group, self._topics = kafka, group, tuple(topics)
        self._consumer: AIOKafkaConsumer | None = None
        self._done: dict[TopicPartition, int] = {}
        self._looks: dict[int, _Look] = {}
        self._partitions: list[int] = []
        self._next = 0.0
        self._moved: dict[int, float] = {}
        """When something of a partition was worked through last."""

    def assigned(self, partitions: Iterable[int], committed: Mapping[TopicPartition, int]) -> None:
        """Begin anew with these. `committed`: where the group goes on, where it has been."""
        self._done = dict(committed)
        self._looks = {}
        self._partitions = sorted(partitions)

    def worked(self, topic: str, partition: int, offset: int) -> None:
        """A record was worked through, and all that comes of it is written."""
        self._moved[partition] = time.monotonic()
        where = TopicPartition(topic, partition)
        self._done[where] = max(self._done.get(where, 0), offset + 1)

    async def look(self) -> None:
        """Begin a look at every partition that has none. KafkaError, OSError: not now."""
        places = [
            TopicPartition(topic, number)
            for number in self._partitions if number not in self._looks
            for topic in self._topics
        ]  # fmt: skip
        if not places or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY_S
        began_ms, began = time.time_ns() // 1_000_000, time.monotonic()
        consumer = await self._connected()
        ends = await asyncio.wait_for(consumer.end_offsets(places), 5)
        firsts = await asyncio.wait_for(consumer.beginning_offsets(places), 5)
        for place, first in firsts.items():  # what it has lost nobody waits for
            self._done[place] = max(self._done.get(place, 0), first)
        for number in {place.partition for place in places}:
            of = {place: end for place, end in ends.items() if place.partition == number}
            self._looks.setdefault(number, _Look(began_ms, began, of))

    def reached(self) -> dict[int, tuple[int, float]]:
        """Partition -> (up to when it is counted, ms since 1970; how long ago that is, in ms), of the looks that are over."""
        over = {
            number: look
            for number, look in self._looks.items()
            if all(self._done.get(place, 0) >= end for place, end in look.ends.items())
        }
        for number in over:
            del self._looks[number]
        now = time.monotonic()
        return {number: (look.began_ms, (now - look.began) * 1000) for number, look in over.items()}

    def lag(self) -> int:
        """Records that were there when a look began and are not worked through."""
        return sum(
            max(0, end - self._done.get(place, 0)) for look in self._looks.values() for place, end in look.ends.items()
        )

    def waiting_s(self) -> float:
        """For how long at least the oldest of them has been waiting."""
        now = time.monotonic()
        late = [
            now - look.began
            for look in self._looks.values()
            if any(self._done.get(place, 0) < end for place, end in look.ends.items())
        ]
        return max(late, default=0.0)

    def stands_s(self) -> float:
        """For how long nothing was worked through of a partition in which something waits."""
        now = time.monotonic()
        standing = [
            now - max(look.began, self._moved.get(number, 0.0))
            for number, look in self._looks.items()
            if any(self._done.get(place, 0) < end for place, end in look.ends.items())
        ]
        return max(standing, default=0.0)

    async def committed(self) -> dict[TopicPartition, int]:
        """Where the group goes on. KafkaError, OSError, BrokerAway."""
        commits = await provision.committed(self._kafka, self._group, patience=0)
        return {where: int(commit.offset) for where, commit in commits.items()}

    async def close(self) -> None:
        """Let the connection go."""
        if self._consumer is not None:
            with contextlib.suppress(KafkaError, OSError):
                await self._consumer.stop()
            self._consumer = None

    async def _connected(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            consumer = bus.consumer(self._kafka)
            try:
                await consumer.start()
            except BaseException:
                await consumer.stop()
                raise
            self._consumer = consumer
        return self._consumer
