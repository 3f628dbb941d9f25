"""How an archiver gets on, in numbers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from banksman.metrics import Measure
from banksman.stamps import boottime
from banksman.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aiokafka import AIOKafkaConsumer, TopicPartition

LOOK_S = 1.0


class Gauges:
    """What is added up on the way, and how far Kafka is beyond it. `names`: full topic name -> ours."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self.records = self.letters = self.inserts = 0
        self.away_s: Callable[[], float] = lambda: 0.0
        """For how long ClickHouse has been awaited."""
        self._done: dict[TopicPartition, int] = {}
        self._waits: dict[TopicPartition, Waiting] = {}

    def begin(self, following: Mapping[TopicPartition, int]) -> None:
        """These partitions are ours, and go on there."""
        self._done = dict(following)
        self._waits = {place: Waiting() for place in following}

    def stored(self, following: Mapping[TopicPartition, int], records: int, letters: int, inserts: int) -> None:
        """A round is stored; partitions go on there."""
        self.records += records
        self.letters += letters
        self.inserts += inserts
        self._done.update({place: offset for place, offset in following.items() if place in self._done})

    async def watch(self, consumer: AIOKafkaConsumer) -> None:
        """Look how far Kafka is. Never returns."""
        while True:
            await asyncio.sleep(LOOK_S)
            for place in consumer.assignment() & self._done.keys():
                end = consumer.highwater(place)
                if end is not None:
                    self._waits[place].look(end, self._done[place], boottime())

    def measures(self) -> Iterable[Measure]:
        """For `/metrics`."""
        yield Measure("records", "Records that were stored.", lambda: self.records, counter=True)
        yield Measure("dead_letters", "Records that can never be stored.", lambda: self.letters, counter=True)
        yield Measure("inserts", "Blocks that ClickHouse took.", lambda: self.inserts, counter=True)
        yield Measure("lag", "Records that wait to be stored.", self._lag, labels=("topic", "partition"))
        yield Measure(
            "waiting_seconds", "For how long at least the oldest of them has been waiting.",
            lambda: max((one.seconds for one in self._waits.values()), default=0.0),
        )  # fmt: skip
        yield Measure(
            "clickhouse_away_seconds", "For how long ClickHouse has been awaited; 0: it takes what comes.", self._away
        )

    def _away(self) -> float:
        return self.away_s()

    def _lag(self) -> dict[tuple[str, ...], float]:
        return {
            (self._names[place.topic], str(place.partition)): one.records for place, one in list(self._waits.items())
        }
