"""A partition goes to another worker while a batch of it is worked through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from aiokafka.structs import ConsumerRecord
from faust.types import TP

from banksman.processors.worker import worker
from banksman.processors.worker.transport import Fetch
from banksman.topics import Topic


def fetch(partition: int, *offsets: int, generation: int = 1) -> Fetch:
    place = TP("t.actions", partition)
    return Fetch(
        place, [ConsumerRecord(*place, one, 0, 0, b"a", b"x" * 60, None, 1, 60, ()) for one in offsets], generation
    )


@dataclass
class Seen:
    """In the place of the engine, and of the marks."""

    places: list[tuple[int, int]] = field(default_factory=list)

    def take(self, records: Any) -> None:
        self.places += [(record.partition, record.offset) for record in records]

    def worked(self, _topic: str, partition: int, offset: int) -> None:
        self.places.append((partition, offset))


class Between(worker.Worker):
    """A worker to which a rebalance comes while it writes the first piece."""

    def __init__(self) -> None:
        self._topics = {"t.actions": Topic.ACTIONS}
        self.taken, self.marked = Seen(), Seen()
        self.engine, self._marks = self.taken, self.marked  # type: ignore[assignment]
        self.ours: dict[int, set[str] | None] = {0: None, 1: None}
        self.app: Any = mock.Mock(consumer_generation_id=1)
        self.then: list[tuple[dict[int, set[str] | None], int]] = [({1: None}, 1)]
        """After each write: whose partitions are ours, and the generation."""

    def _look_alive(self) -> None:
        pass

    async def _know_states(self) -> None:
        self._looked_at = self.ours

    async def _write(self) -> None:
        if self.then:
            self.ours, self.app.consumer_generation_id = self.then.pop(0)


async def test_nothing_is_taken_of_a_partition_that_another_worker_has_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its states are gone here: made anew, they would say that nothing was ever spent."""
    monkeypatch.setattr(worker, "AT_ONCE", 180)  # three records are a piece
    between = Between()
    await between._work([fetch(0, 0, 1), fetch(1, 5, 6), fetch(0, 2), fetch(1, 7)])
    assert between.taken.places == [(0, 0), (0, 1), (1, 5), (1, 6), (1, 7)]
    assert between.marked.places == [(0, 1), (1, 7)]


async def test_so_many_records_are_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "AT_MOST", 2)
    pieces = worker._pieces([fetch(0, 0, 1, 2), fetch(1, 5, 6)])
    assert [[record.offset for record in piece] for _, piece in pieces] == [[0, 1], [2, 5], [6]]


async def test_nothing_is_taken_of_a_partition_that_was_away_and_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was passed over comes again; it would count as known if what comes behind it was taken now."""
    monkeypatch.setattr(worker, "AT_MOST", 2)
    between = Between()
    between.then = [({1: None}, 2), ({0: None, 1: None}, 3)]
    await between._work([fetch(0, 0, 1), fetch(0, 2, 3), fetch(0, 4, 5), fetch(0, 2, 3, generation=3)])
    assert between.taken.places == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert between.marked.places == [(0, 3)]
