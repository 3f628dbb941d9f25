"""The states of detectors: read from tables, changed, encoded to be written, and looked at when they are due.

A state is kept as [offsets, partition, whose, due, state]: what is needed to know which one counts more, and when it is wanted,
stands before what only its detector understands.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from banksman.processors.detector import Detector

_log = logging.getLogger("banksman")

MOST_KEPT, MOST_BYTES = 100_000, 32 << 20
"""States that are held decoded beside their bytes, and how many bytes these may be: decoded they take five times as much."""
SESSIONS = 1000
"""Sessions of one agent that a detector remembers: the one that did something longest ago goes."""
A_FEW = 500
"""States that are read before the event loop turns."""

Place = tuple[str, bytes]
"""A detector's name, and the key of one of its states."""

Whose = tuple[str, str, str]
"""Project, agent, replay (or "")."""

_encode = msgspec.msgpack.Encoder().encode
decode_head = msgspec.msgpack.Decoder(tuple[dict[str, int], int, Whose, int | None, msgspec.Raw]).decode
"""All of a state's bytes but what its detector keeps. msgspec.DecodeError: it is none."""


@dataclass(slots=True)
class Kept:
    """A state, and which records are in it. `state` None: forgotten."""

    state: Any
    partition: int
    offsets: dict[str, int]
    whose: Whose
    size: int = 0
    """Its bytes when it was last read or written."""


class Encoded(NamedTuple):
    """To be written. `value` None: a tombstone."""

    name: str
    key: bytes
    partition: int
    value: bytes | None


def session_key(agent_key: bytes, session: str) -> bytes:
    """Of a session's state. No name has a line feed in it."""
    return agent_key + b"\n\n" + session.encode()


class States:
    """`tables`: by name, key -> bytes of a state that was written; only read here. `plain`: tables that no detector has, and
    their states.
    """

    def __init__(
        self, tables: Mapping[str, Mapping[bytes, bytes]], detectors: Iterable[Detector[Any]], plain: Mapping[str, type[Any]]
    ) -> None:  # fmt: skip
        self._tables = tables
        self._detectors = {detector.name: detector for detector in detectors}
        self._made = {**plain, **{detector.name: detector.state for detector in self._detectors.values()}}
        self._decoders = {
            name: msgspec.msgpack.Decoder(tuple[dict[str, int], int, Whose, int | None, state])  # type: ignore[valid-type]
            for name, state in self._made.items()
        }
        self._kept: dict[Place, Kept] = {}
        self._bytes = 0
        """Of those."""
        self._due: dict[int, list[tuple[int, Place]]] = {}
        """By partition, a heap."""
        self._queued: dict[Place, int] = {}
        """When each state is looked at, in `_due`: not later than it is due."""
        self._sessions: dict[Place, dict[bytes, None]] = {}
        """By detector and agent, the keys of its sessions' states; the one that did something last stands last."""
        self.dirty: dict[Place, Kept] = {}
        """States that changed since they were written."""
        self._unasked: dict[Place, Kept] = {}
        """Those that were not asked yet when they are due: it is asked once for all records of a batch."""

    def load(self, place: Place) -> Kept | None:
        """What is kept there. What cannot be read, because it is of another version, is begun anew, and said."""
        kept = self._kept.get(place)
        if kept is not None:
            return kept
        raw = self._tables[place[0]].get(place[1])
        if raw is None:
            return None
        try:
            offsets, partition, whose, _due, state = self._decoders[place[0]].decode(raw)
        except msgspec.DecodeError as error:
            _log.error("a state of %s cannot be read, and begins anew: %s", place[0], error)
            return None
        kept = self._kept[place] = Kept(state, partition, offsets, whose, len(raw))
        self._bytes += kept.size
        return kept

    def new(self, place: Place, partition: int, whose: Whose) -> Kept:
        """One that nothing is known of."""
        kept = self._kept[place] = Kept(self._made[place[0]](), partition, {}, whose)
        return kept

    def changed(self, place: Place, kept: Kept) -> None:
        """To be called when a state was changed, or forgotten."""
        self.dirty[place] = kept
        detector = self._detectors.get(place[0])
        if detector is None:
            return
        self._unasked[place] = kept
        if detector.scope == "session":
            self._remember(place, kept)

    def due(self, place: Place, kept: Kept) -> int | None:
        """When it wants to be looked at."""
        return self._detectors[place[0]].due(kept.state) if kept.state is not None else None

    def drop(self, place: Place) -> None:
        """Forget what was not written of it."""
        self._let_go(place)
        self.dirty.pop(place, None)
        self._unasked.pop(place, None)

    def encoded(self, place: Place, kept: Kept) -> Encoded:
        """To be written, and looked at when it is due. Raises what msgpack cannot say."""
        due = self.due(place, kept) if place[0] in self._detectors else None
        made = Encoded(*place, kept.partition, self._bytes_of(place, kept, due))
        self.queue(place, due, kept.partition)
        self._unasked.pop(place, None)
        return made

    def bytes_of(self, place: Place, kept: Kept) -> bytes | None:
        """As it is written; None: a tombstone. Raises what msgpack cannot say."""
        return self._bytes_of(place, kept, self.due(place, kept) if place[0] in self._detectors else None)

    def _bytes_of(self, place: Place, kept: Kept, due: int | None) -> bytes | None:
        if kept.state is None:
            return None
        made = _encode((kept.offsets, kept.partition, kept.whose, due, kept.state))
        if self._kept.get(place) is kept:
            self._bytes += len(made) - kept.size
        kept.size = len(made)
        return made

    def written(self) -> None:
        """What is in `dirty` is on the log, and in the tables. Of what is forgotten nothing stays, as after a start."""
        for place, kept in self.dirty.items():
            if kept.state is None:
                self._let_go(place)
        self.dirty.clear()
        if len(self._kept) > MOST_KEPT or self._bytes > MOST_BYTES:
            self._kept.clear()
            self._bytes = 0

    def _let_go(self, place: Place) -> None:
        kept = self._kept.pop(place, None)
        if kept is not None:
            self._bytes -= kept.size

    def of_agents(self, name: str) -> Iterator[bytes]:
        """The keys of a table's states, also those that were not written yet."""
        yield from set(self._tables[name]) | {key for held, key in self._kept if held == name}

    # ── when they are due ──

    def over(self, now_ms: int, partition: int) -> Iterator[tuple[Place, Kept, int] | None]:
        """The states of a partition that are due, each once, with when they were; they are not queued any more. None in
        place of one that is not due after all. They are read one by one, as they are asked for: they may be many, and large.
        """
        for place, changed in self._unasked.items():
            self.queue(place, self.due(place, changed), changed.partition)
        self._unasked.clear()
        waiting = self._due.get(partition, [])
        places: dict[Place, None] = {}
        while waiting and waiting[0][0] <= now_ms:
            at_ms, place = heapq.heappop(waiting)
            if self._queued.get(place) == at_ms:
                places[place] = None
        for place in places:
            self._queued.pop(place, None)
            with self.looking(place) as kept:
                due = self.due(place, kept) if kept is not None else None
                if kept is not None and due is not None and due <= now_ms:
                    yield place, kept, due
                else:
                    self.queue(place, due, partition)
                    yield None

    def queue(self, place: Place, due: int | None, partition: int) -> None:
        """See to it that a state is looked at when it is due. One that is looked at before that is put back."""
        queued = self._queued.get(place)
        if due is None or (queued is not None and due >= queued):
            return
        self._queued[place] = due
        waiting = self._due.setdefault(partition, [])
        heapq.heappush(waiting, (due, place))
        if len(waiting) > 2 * len(self._queued) + A_FEW:  # most were moved to an earlier time since
            waiting[:] = {entry for entry in waiting if self._queued.get(entry[1]) == entry[0]}
            heapq.heapify(waiting)

    @contextlib.contextmanager
    def looking(self, place: Place) -> Iterator[Kept | None]:
        """What is kept there, for a look: afterwards it is held no longer than before, unless it was changed."""
        held = place in self._kept
        yield self.load(place)
        if not held and place not in self.dirty:
            self._let_go(place)

    def begin(self) -> Iterator[None]:
        """Other partitions are ours now: forget what is not written, and find out when the states of the tables are due. Gives
        way after every few.
        """
        self._kept.clear()
        self._bytes = 0
        self.dirty.clear()
        self._unasked.clear()
        self._due.clear()
        self._queued.clear()
        self._sessions.clear()
        for name, detector in self._detectors.items():
            moved: list[tuple[int, bytes]] = []
            for number, (key, raw) in enumerate(list(self._tables[name].items()), 1):
                with contextlib.suppress(msgspec.DecodeError):  # `load` says so, when it is wanted
                    offsets, partition, _whose, due, _state = decode_head(raw)
                    moved.append((offsets.get("actions", -1), key))
                    self.queue((name, key), due, partition)
                if number % A_FEW == 0:
                    yield
            if detector.scope == "session":
                for _offset, key in sorted(moved):
                    self._sessions.setdefault((name, key.rpartition(b"\n\n")[0]), {})[key] = None

    def _remember(self, place: Place, kept: Kept) -> None:
        """Of an agent's sessions so many: whoever opens new ones without end forgets its own."""
        name, key = place
        index = name, key.rpartition(b"\n\n")[0]
        sessions = self._sessions.setdefault(index, {})
        sessions.pop(key, None)
        if kept.state is not None:
            sessions[key] = None
        elif not sessions:
            del self._sessions[index]
        while len(sessions) > SESSIONS:
            oldest = next(iter(sessions))
            del sessions[oldest]
            gone = self.load((name, oldest))
            if gone is not None:
                gone.state = None
                self.dirty[name, oldest] = gone
