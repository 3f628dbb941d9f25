"""A partition goes to another worker while a batch of it is worked through."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from banksman.processors.worker import worker
from banksman.topics import Topic


@dataclass
class Message:
    partition: int
    offset: int
    topic: str = "t.actions"
    timestamp: float = 0.0
    key: bytes = b"a"
    value: bytes = b"x" * 60
    headers: tuple[Any, ...] = ()


@dataclass
class Event:
    message: Message


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

    def _look_alive(self) -> None:
        pass

    async def _know_states(self) -> None:
        self._looked_at = self.ours

    async def _write(self) -> None:
        self.ours = {1: None}


async def test_nothing_is_taken_of_a_partition_that_another_worker_has_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its states are gone here: made anew, they would say that nothing was ever spent."""
    monkeypatch.setattr(worker, "AT_ONCE", 100)  # two records are a piece
    between = Between()
    await between._work([Event(Message(number % 2, number)) for number in range(6)])
    assert between.taken.places == [(0, 0), (1, 1), (1, 3), (1, 5)]
    assert between.marked.places == between.taken.places
