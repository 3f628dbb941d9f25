"""Records -> what detectors see in them, and the states that this leaves. Pure but for its memory: no Kafka, no clock.

Every state holds the last offset of each topic that is in it, so a record that is delivered again is in it already. The
worker makes sure of the order: what was seen is acknowledged first, then the states, then (`Sources`) what was sent already.
Whatever it dies between, the same records make the rest, under the same ids.

    record -> who wrote it? -> an event? -> sent again? -> every detector that wants its kind -> states, outputs
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from banksman import codec
from banksman.bus import partition_of
from banksman.errors import BadDeployment, InvalidEvent
from banksman.events import ModelCall, ToolResult, kind_of
from banksman.processors.authorship import TOLERANCE_S, is_right, lateness
from banksman.processors.detector import Detector, Seen, Sighting, Spent
from banksman.processors.worker.resends import Sources, is_resend
from banksman.processors.worker.states import Encoded, Kept, Place, States, Whose, session_key
from banksman.signing import REPLAY, SENT, Verifier
from banksman.stamps import moment_ms
from banksman.topics import Topic

if TYPE_CHECKING:
    from banksman.events import Event
    from banksman.policy.rules import AgentPolicy
    from banksman.store.prices import PriceTable

_log = logging.getLogger("banksman")
NANO = 1_000_000_000
MOST_USD = 999_999_999.0
SOURCES = "sources"
AN_HOUR_MS = 3_600_000
FAILURES = 5
"""On so many records of a batch a detector may fail for one state; the rest of the batch goes by it."""

PolicyOf = Callable[[str, str], "AgentPolicy | None"]
"""(project, agent) -> what its policy says of it."""


class Record(NamedTuple):
    """One record as it came from Kafka. `topic`: which of ours; `full_topic`: its name there, which is signed."""

    topic: Topic
    full_topic: str
    partition: int
    offset: int
    received_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class Output:
    """Something a detector saw, and what gave rise to it: the same `cause` on every replay, and `at_ms` with it."""

    detector: str
    what: Sighting | Spent
    cause: str
    at_ms: int
    project: str
    agent: str
    session: str | None
    parent: str | None
    run: str
    """The replay that it belongs to; "": it is live."""
    offsets: dict[str, int]
    """The last record of each partition that is counted in."""


class Engine:
    """`partitions`: of `actions` and of `decisions`. `tables`: by detector (and `sources`), key -> the bytes of a state that
    was written. Only read here.
    """

    def __init__(
        self, verifier: Verifier, prices: PriceTable, policy_of: PolicyOf, detectors: Iterable[Detector[Any]],
        tables: Mapping[str, Mapping[bytes, bytes]], partitions: int,
    ) -> None:  # fmt: skip
        self._verifier, self._prices, self._policy_of, self._partitions = verifier, prices, policy_of, partitions
        self._detectors = {detector.name: detector for detector in detectors}
        self._wanted: dict[type[Event], list[Detector[Any]]] = {}
        for detector in self._detectors.values():
            for kind in detector.kinds:
                self._wanted.setdefault(kind, []).append(detector)
        self.states = States(tables, self._detectors.values(), {SOURCES: Sources})
        self.outputs: list[Output] = []
        """What was seen since it was told."""
        self._batch: list[tuple[Seen, bytes, Whose]] = []
        """What was taken since then."""
        self._unbearable: dict[Place, set[str]] = {}
        """The causes of it that a state's detector failed on."""
        self.counted = 0
        self.skipped = 0
        """Records that count for nothing: forged, no event, sent again."""
        self.misplaced = 0
        """Those that lay in a partition that their key does not belong in."""

    # ── what comes, and what is over ──

    def take(self, records: Iterable[Record]) -> None:
        """Work through records; what comes of it is in `outputs` and `states.dirty`."""
        for record in records:
            found = self._seen(record)
            if found is None:
                self.skipped += 1
                continue
            self.counted += 1
            self._batch.append(found)
            seen, agent_key, whose = found
            for detector in self._wanted.get(type(seen.event), ()):
                place = detector.name, _key(detector, agent_key, seen.event)
                if len(self._unbearable.get(place, ())) >= FAILURES:
                    continue  # each costs a batch
                try:
                    self._step(detector, place, seen, whose)
                except Exception:  # noqa: BLE001 - one record that a detector cannot bear must not stop what counts for all
                    self._pass_over(detector, place, seen, whose)

    def lapse(self, now_ms: int, partition: int, projects: Iterable[str] | None = ()) -> Iterator[None]:
        """Let time pass in a partition of which everything up to `now_ms` was taken: call whom is due, once each. `projects`:
        those whose policy has changed; every state of their agents is looked at. None: of all of them. Gives way after each.
        """
        for over in self.states.over(now_ms, partition):
            if over is not None:
                self._lapse(*over, now_ms)
            yield
        changed = None if projects is None else set(projects)
        if changed is not None and not changed:
            return
        for name, detector in self._detectors.items():
            for key in self.states.of_agents(name) if detector.scope == "agent" else ():
                with self.states.looking((name, key)) as kept:
                    if (
                        kept is not None
                        and kept.partition == partition
                        and (changed is None or kept.whose[0] in changed)
                    ):
                        self._lapse((name, key), kept, now_ms, now_ms)
                yield

    def begin(self) -> Iterator[None]:
        """Other partitions are ours now. Gives way after every few states."""
        self.outputs.clear()
        self._batch.clear()
        self._unbearable.clear()
        yield from self.states.begin()

    def encoded(self) -> list[Encoded]:
        """The states to be written. Call it before `outputs` is told: that one cannot be written, and stays as it was, is told
        too.
        """
        made: list[Encoded] = []
        for place, kept in list(self.states.dirty.items()):
            try:
                made.append(self.states.encoded(place, kept))
            except Exception:  # noqa: BLE001 - one state that cannot be written must not stop all others
                _log.exception("a state of %s cannot be written; it stays as it was", place[0])
                at_ms = max((seen.received_ms for seen, *_ in self._batch), default=0)
                self.states.drop(place)
                self._failed(place, kept, f"{place[1].decode()}/{kept.offsets}", at_ms, None)
        return made

    def written(self) -> None:
        """What was encoded and told is on the log."""
        self.states.written()
        self.outputs.clear()
        self._batch.clear()
        self._unbearable.clear()

    # ── one record ──

    def _seen(self, record: Record) -> tuple[Seen, bytes, Whose] | None:
        """The record as detectors see it, None when it counts for nothing."""
        headers = dict(record.headers)
        if record.value is None or record.key is None or len(headers) != len(record.headers):
            return None
        author = self._verifier.whose(record.full_topic.encode(), record.key, headers, record.value)
        if author is None:
            return None
        try:
            event: Any = codec.decode(record.value, record.topic)
        except InvalidEvent:
            return None
        run = headers.get(REPLAY) or b""
        kind = kind_of(event)
        right = is_right(
            author, record.topic, kind, headers.get("ce_type"), record.key, bool(run), event.project, event.agent
        )
        if not right or headers.get("ce_id") != event.id.encode():
            return None
        if record.partition >= self._partitions:
            raise BadDeployment(
                f"{record.full_topic} has more partitions than when this worker began; start the workers anew"
            )
        if _home(record.key, self._partitions) != record.partition:
            self.misplaced += 1  # its signature does not say where it belongs; its key does
            return None
        whose = event.project, event.agent, run.decode("utf-8", "replace")
        agent_key = record.key + (b"\n" + run if run else b"")
        if record.topic is Topic.ACTIONS and self._is_counted(record, event, agent_key, whose):
            return None
        late = (
            not run
            and abs(moment_ms(event.time) - record.received_ms) > TOLERANCE_S * 1000
            and lateness(record.received_ms, headers.get(SENT)) == "late"  # a clock that is wrong excuses nothing
        )
        cost, unpriced = self._cost(event)
        seen = Seen(event, record.topic, record.partition, record.offset, record.received_ms, late, cost, unpriced)
        return seen, agent_key, whose

    def _is_counted(self, record: Record, event: Event, key: bytes, whose: Whose) -> bool:
        """Whether it was delivered, or sent, before. `Sources` are written last: of a record that is in there, every state has
        all that it changes.
        """
        place = SOURCES, key
        kept = self.states.load(place) or self.states.new(place, record.partition, whose)
        if kept.partition != record.partition:
            raise BadDeployment(
                f"{record.full_topic} has another number of partitions than before: what is known of {whose[1]} stands in "
                f"{kept.partition}, its records come in {record.partition}"
            )
        if record.offset <= kept.offsets.get(record.topic, -1):
            return True
        kept.offsets[record.topic] = record.offset
        self.states.changed(place, kept)
        return is_resend(kept.state, event, record.received_ms)

    def _cost(self, event: Event) -> tuple[int | None, bool]:
        if isinstance(event, ToolResult):
            return (None if event.cost_usd is None else round(min(event.cost_usd, MOST_USD) * NANO)), False
        if not isinstance(event, ModelCall):
            return None, False
        cost = event.cost_usd
        if cost is None:
            cost = self._prices.cost(
                event.model,
                (event.input_tokens, event.output_tokens, event.cache_write_tokens, event.cache_read_tokens),
            )
        return (None if cost is None else round(min(cost, MOST_USD) * NANO)), cost is None

    # ── one state ──

    def _step(self, detector: Detector[Any], place: Place, seen: Seen, whose: Whose) -> None:
        kept = self.states.load(place) or self.states.new(place, seen.partition, whose)
        if seen.offset <= kept.offsets.get(seen.topic, -1):
            return
        kept.whose = whose
        before = detector.state() if kept.state is None else kept.state
        kept.state, found = detector.step(before, seen, self._policy_of(whose[0], whose[1]))
        kept.offsets[seen.topic] = seen.offset
        self.states.changed(place, kept)
        event: Any = seen.event
        for what in found:
            self._tell(detector.name, what, _cause(seen), seen.received_ms, kept, event.session, event.id)

    def _pass_over(self, detector: Detector[Any], place: Place, seen: Seen, whose: Whose) -> None:
        """A detector failed on a record: go back to its state as it was written, and on without this record."""
        _log.exception("%s cannot bear the record %s, and goes on without it", detector.name, _cause(seen))
        unbearable = self._unbearable.setdefault(place, set())
        unbearable.add(_cause(seen))
        self.states.drop(place)
        told = len(self.outputs)
        for before, agent_key, whose_then in self._batch[:-1]:
            if (
                type(before.event) in detector.kinds
                and (detector.name, _key(detector, agent_key, before.event)) == place
                and _cause(before) not in unbearable
            ):
                self._step(detector, place, before, whose_then)
        del self.outputs[told:]  # the same again
        kept = self.states.load(place) or self.states.new(place, seen.partition, whose)
        kept.offsets[seen.topic] = seen.offset
        self.states.changed(place, kept)
        self._failed(place, kept, _cause(seen), seen.received_ms, seen)

    def _lapse(self, place: Place, kept: Kept, cause_ms: int, now_ms: int) -> None:
        detector = self._detectors[place[0]]
        if kept.state is None:
            return
        cause = f"{place[1].decode()}/{cause_ms}"
        try:
            before = None if place in self.states.dirty else self.states.bytes_of(place, kept)
            kept.state, found = detector.lapse(kept.state, now_ms, self._policy_of(kept.whose[0], kept.whose[1]))
            same = not found and self.states.bytes_of(place, kept) == before
        except Exception:  # noqa: BLE001 - as in `take`
            _log.exception("%s cannot let time pass for a state; it is asked again in an hour", detector.name)
            self.states.drop(place)
            self.states.queue(place, now_ms + AN_HOUR_MS, kept.partition)
            self._failed(place, kept, cause, cause_ms, None)
            return
        if same:
            self.states.queue(place, self.states.due(place, kept), kept.partition)
        else:
            self.states.changed(place, kept)
        for what in found:
            self._tell(detector.name, what, cause, cause_ms, kept, None, None)

    def _failed(self, place: Place, kept: Kept, cause: str, at_ms: int, seen: Seen | None) -> None:
        event: Any = seen.event if seen is not None else None
        failed = Sighting(
            "page", f"the detector {place[0]} failed and went on without what it failed on", f"failed/{place[0]}",
            {"on": cause}, "report this as a bug, with the worker's log",
        )  # fmt: skip
        session, parent = (event.session, event.id) if event is not None else (None, None)
        self._tell("failed", failed, cause, at_ms, kept, session, parent)

    def _tell(
        self, detector: str, what: Sighting | Spent, cause: str, at_ms: int, kept: Kept, session: str | None,
        parent: str | None,
    ) -> None:  # fmt: skip
        project, agent, run = kept.whose
        if isinstance(what, Sighting) and what.session:
            session = what.session
        counted = {f"{topic}/{kept.partition}": offset for topic, offset in kept.offsets.items()}
        self.outputs.append(Output(detector, what, cause, at_ms, project, agent, session, parent, run, counted))


_home = lru_cache(4096)(partition_of)
"""Keys are agents, few and often; in plain Python each costs as much as a detector."""


def _key(detector: Detector[Any], agent_key: bytes, event: Any) -> bytes:
    return agent_key if detector.scope == "agent" else session_key(agent_key, event.session)


def _cause(seen: Seen) -> str:
    return f"{seen.topic}/{seen.partition}/{seen.offset}"
