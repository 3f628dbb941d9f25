"""What takes the spool's place where no folder can be written: events in memory alone, lost when the agent dies."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from typing import TYPE_CHECKING

from banksman.producers.spool import Event, Place

if TYPE_CHECKING:
    from collections.abc import Sequence


class Unspooled:
    """The same calls as `Spool`. `full` at `memory` bytes."""

    def __init__(self, why: str, *, memory: int) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._events: deque[tuple[int, bytes]] = deque()
        self.waiting = self.last_seq = self.acknowledged = 0
        self.dropped = self.damaged = self.refused = 0
        self.disk_errors, self.last_disk_error = 1, why

    def append(self, events: Sequence[tuple[int, bytes]]) -> bool:
        """As `Spool.append`; there is no disk that could take them."""
        with self._lock:
            self._events.extend(events)
            self.waiting += sum(len(payload) for _, payload in events)
            if events:
                self.last_seq = events[-1][0]
        return True

    def retry(self) -> bool:
        """Nothing is ever left to be written."""
        return True

    def read(self, most: int, most_bytes: int) -> list[Event]:
        """As `Spool.read`."""
        taken: list[Event] = []
        size = 0
        with self._lock:
            for seq, payload in itertools.islice(self._events, most):
                size += len(payload)
                if taken and size > most_bytes:
                    break
                taken.append(Event(payload, Place(0, 0, seq)))
        return taken

    def acknowledge(self, events: Sequence[Event]) -> None:
        """As `Spool.acknowledge`."""
        with self._lock:
            for _ in events:
                self.waiting -= len(self._events.popleft()[1])
            self.acknowledged = events[-1].place.seq

    def set_aside(self, line: bytes) -> None:  # noqa: ARG002 - there is nowhere to keep it
        """It is only counted."""
        self.refused += 1

    @property
    def written(self) -> bool:
        """There is nothing that a later try could write."""
        return True

    @property
    def stuck(self) -> bool:
        """Nothing more fits."""
        return self.waiting >= self._memory

    @property
    def full(self) -> bool:
        """The same."""
        return self.stuck

    @property
    def in_memory(self) -> int:
        """Bytes; after `close` they are lost."""
        return self.waiting

    @property
    def empty(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self._events

    def close(self) -> None:
        """What was not sent is lost."""
        self.dropped += len(self._events)
        self._events.clear()
