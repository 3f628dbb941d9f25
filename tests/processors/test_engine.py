"""The engine in memory: what counts, what does not, and that delivering records again changes nothing."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banksman import codec
from banksman.bus import partition_of
from banksman.errors import BadDeployment
from banksman.events import ModelCall, Note, ToolCall, ToolResult
from banksman.policy.rules import AgentPolicy, Budget
from banksman.processors.detector import Detector, Sighting, Spent
from banksman.processors.detectors import budgets, loops
from banksman.processors.worker import states
from banksman.processors.worker.engine import FAILURES, SOURCES, Engine, Output, Record
from banksman.processors.worker.outbox import _id
from banksman.processors.worker.states import SESSIONS, Encoded, session_key
from banksman.signing import REPLAY, SENT, Author, Secret, Signer, Verifier, key_of, service_signer
from banksman.stamps import rfc3339_ms, uuid7
from banksman.store.prices import load_prices
from banksman.topics import Topic

SECRET = Secret({1: b"k" * 32}, 1)
NOW = 1_795_600_800_000
PARTITIONS = 2
HOME = partition_of(b"a", PARTITIONS)
RULES = AgentPolicy(None, (), Budget(1000, None, 0.8, "deny", "UTC"), "alert", "alert")


class Count(msgspec.Struct, array_like=True):
    seen: list[str] = []
    number: int = 0


def step_count(state: Count, seen: Any, _policy: Any) -> Any:
    if seen.event.text == "poison":
        state.seen.append("half done")
        raise ValueError("poison")
    state.seen.append(seen.event.text)
    if seen.event.text == "huge":
        state.number = 2**80
    return state, [Sighting("info", f"{len(state.seen)}. {seen.event.text}", f"count/{seen.event.text}")]


def count(**changes: Any) -> Detector[Count]:
    """A detector that counts notes, with changes."""
    base: dict[str, Any] = {
        "name": "count", "scope": "session", "state": Count, "kinds": frozenset({Note}), "step": step_count,
    }  # fmt: skip
    return Detector(**(base | changes))


COUNT = count()


@dataclass
class World:
    """The log, tables that were written, what was told."""

    detectors: Iterable[Detector[Any]] = (budgets.DETECTOR, COUNT)
    tables: dict[str, dict[bytes, bytes]] = field(default_factory=lambda: {SOURCES: {}, "budgets": {}, "count": {}})
    told: dict[str, Output] = field(default_factory=dict)
    offset: int = 0
    rules: AgentPolicy = RULES

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A worker that knows only what was written."""
        self.engine = Engine(
            Verifier(SECRET), load_prices(), lambda _p, _a: self.rules, self.detectors, self.tables, PARTITIONS
        )
        list(self.engine.begin())

    def record(self, kind: type[Any] = Note, *, signer: Signer | None = None, **changes: Any) -> Record:
        more: list[tuple[str, bytes]] = [(name, changes.pop(name)) for name in (SENT, REPLAY) if name in changes]
        partition, received = changes.pop("partition", None), changes.pop("received_ms", NOW)
        author = Author(project="p", agent=changes.get("agent", "a"), token_id="t")
        by = signer or Signer(author, key_of(SECRET, 1, author), 1)
        base: dict[str, Any] = {
            "v": 1, "id": uuid7(), "time": rfc3339_ms(received), "source": "x", "project": "p", "agent": "a", "session": "s",
        } | ({"text": "hello"} if kind is Note else {"model": "m"} if kind is ModelCall else {})  # fmt: skip
        event = kind(**(base | changes))
        value, key = codec.encode(event), event.agent.encode()
        partition = partition_of(key, PARTITIONS) if partition is None else partition
        replay = dict(more).get(REPLAY, b"").decode()
        headers = by.headers(
            "t.actions", key, value, id=event.id, kind=str(kind.__struct_config__.tag), time=event.time,
            source=event.source, replay=replay,
        )  # fmt: skip
        headers += [one for one in more if one[0] == SENT]
        self.offset += 1
        return Record(Topic.ACTIONS, "t.actions", partition, self.offset, received, key, value, tuple(headers))

    def take(self, *records: Record, until: int = 3) -> None:
        """Work through records and write what comes of it. `until`: how much of that before the worker is ended; 3 is all."""
        self.engine.take(records)
        encoded = self.engine.encoded()
        if until > 0:
            self.told |= {_id(output): output for output in self.engine.outputs}
        for last in (False, True):
            if until > 1 + last:
                for one in encoded:
                    if (one.name == SOURCES) is last:
                        self.put(one)
        if until < 3:
            self.start()
        else:
            self.engine.written()

    def put(self, one: Encoded) -> None:
        if one.value is None:
            self.tables[one.name].pop(one.key, None)
        else:
            self.tables[one.name][one.key] = one.value

    def spent(self, agent: bytes = b"a") -> int:
        raw = self.tables["budgets"].get(agent)
        state = (
            msgspec.msgpack.decode(raw, type=tuple[dict[str, int], int, Any, Any, budgets.Spending])[4] if raw else None
        )
        return sum(held[0] for held in state.quarters.values()) if state else 0

    def titles(self) -> list[str]:
        return [one.what.title for one in self.told.values() if isinstance(one.what, Sighting)]


def test_what_counts_and_what_does_not() -> None:
    world = World()
    right = world.record(ModelCall, input_tokens=10)
    other = Author(project="p", agent="b", token_id="t")
    forged = world.record(ModelCall, input_tokens=1, signer=Signer(other, key_of(SECRET, 1, other), 1))
    unsigned = world.record(ModelCall, input_tokens=1)._replace(headers=())
    torn = world.record(ModelCall, input_tokens=1)
    torn = torn._replace(value=(torn.value or b"")[:-1])
    negative = world.record(ModelCall, input_tokens=-5)
    moved = world.record(ModelCall, input_tokens=1)._replace(key=b"b")
    tombstone = world.record(ModelCall)._replace(value=None)
    twice = world.record(ModelCall, input_tokens=1)
    twice = twice._replace(headers=(*twice.headers, twice.headers[-1]))
    world.take(right, forged, unsigned, torn, negative, moved, tombstone, twice)
    assert world.spent() == 10
    assert (world.engine.counted, world.engine.skipped) == (1, 7)


def test_a_wrong_clock_gains_nothing_and_what_is_late_is_marked() -> None:
    seen: list[bool] = []

    def look(state: Count, one: Any, _policy: Any) -> Any:
        seen.append(one.late)
        return state, ()

    world = World((budgets.DETECTOR, count(step=look)))
    world.take(world.record(ModelCall, input_tokens=7, time="2019-01-01T00:00:00.000000Z"))
    assert world.spent() == 7
    sent: dict[str, Any] = {SENT: rfc3339_ms(NOW).encode()}
    world.take(
        world.record(Note),
        world.record(Note, time=rfc3339_ms(NOW - 3_600_000)),
        world.record(Note, time=rfc3339_ms(NOW - 3_600_000), **sent),
        world.record(Note, time=rfc3339_ms(NOW + 3_600_000)),
    )
    assert seen == [False, False, True, False]  # a wrong clock excuses nothing


def test_a_spool_that_is_emptied_after_an_outage_is_spent_and_ends_no_session() -> None:
    """Six failures of the same within a second of the broker's time, an hour old: what they cost is spent, and they are no
    loop of now. As they happen, they are one.
    """
    rules = msgspec.structs.replace(RULES, on_loop="kill")

    def seen(**late: Any) -> tuple[int, list[str]]:
        tables: dict[str, dict[bytes, bytes]] = {name: {} for name in (SOURCES, "budgets", "loops")}
        world = World((budgets.DETECTOR, loops.DETECTOR), tables, rules=rules)
        records = []
        for _ in range(6):
            call = uuid7()
            about: dict[str, Any] = {"id": call, "service": "ci", "action": "run", "args_hash": "h"}
            records.append(world.record(ToolCall, call=call, **about, **late))
            records.append(world.record(ToolResult, parent=call, call=call, status="error", error="no", **late))
            records.append(world.record(ModelCall, input_tokens=10, **late))
        world.take(*records)
        acts = [str(one.what.act) for one in world.told.values() if isinstance(one.what, Sighting)]
        return world.spent(), acts

    hour_ago: dict[str, Any] = {"time": rfc3339_ms(NOW - 3_600_000), SENT: rfc3339_ms(NOW).encode()}
    assert seen(**hour_ago) == (60, [])
    spent, acts = seen()
    assert (spent, "kill" in acts) == (60, True)


def test_history_has_states_of_its_own() -> None:
    world = World()
    service = service_signer(SECRET, "enforcer")
    run: dict[str, Any] = {REPLAY: b"run1"}
    world.take(
        world.record(ModelCall, input_tokens=10),
        world.record(ModelCall, input_tokens=900, signer=service, **run),
    )
    assert world.spent() == 10
    assert world.spent(b"a\nrun1") == 900
    assert {one.run for one in world.told.values() if isinstance(one.what, Sighting)} == {"run1"}


def test_a_record_that_a_detector_cannot_bear_is_passed_over() -> None:
    world = World()
    first = [world.record(text="one"), world.record(text="two")]
    poison, after = world.record(text="poison"), world.record(text="three")
    world.take(first[0])
    world.take(first[1], poison, after)
    assert [title for title in world.titles() if "failed" not in title] == ["1. one", "2. two", "3. three"]
    failed = [one for one in world.told.values() if isinstance(one.what, Sighting) and one.what.severity == "page"]
    assert len(failed) == 1
    assert failed[0].cause == f"actions/{HOME}/{poison.offset}"


def test_what_fails_in_one_batch_leaves_nothing_of_it_behind() -> None:
    world = World()
    world.take(*(world.record(text=text) for text in ("one", "poison", "poison", "two")))
    assert [title for title in world.titles() if "failed" not in title] == ["1. one", "2. two"]
    world.take(*(world.record(text="poison") for _ in range(50)), world.record(text="lost"))
    world.take(world.record(text="three"))
    assert [title for title in world.titles() if "failed" not in title][-1] == "3. three"
    assert sum("failed" in title for title in world.titles()) == 2 + FAILURES


def test_states_that_are_due_are_read_one_by_one_and_not_kept() -> None:
    world = World((budgets.DETECTOR, count(scope="session", due=lambda _: NOW, lapse=lambda state, *_: (state, []))))
    world.take(*(world.record(text="x", session=f"s{number}") for number in range(20)))
    world.start()
    look = world.engine.lapse(NOW, HOME)
    for _ in range(10):
        next(look)
    assert len(world.engine.states._kept) <= 2
    assert len(list(look)) == 10
    list(world.engine.lapse(NOW, 1 - HOME))
    assert len(list(world.engine.lapse(NOW, HOME))) == 20


def test_partitions_that_came_later_are_no_copies() -> None:
    world = World()
    with pytest.raises(BadDeployment, match="more partitions"):
        world.engine.take([world.record(partition=PARTITIONS)])


def test_another_number_of_partitions_is_refused() -> None:
    world = World()
    world.take(world.record())
    moved = Engine(Verifier(SECRET), load_prices(), lambda _p, _a: RULES, world.detectors, world.tables, 7)
    assert partition_of(b"a", 7) != partition_of(b"a", PARTITIONS)
    with pytest.raises(BadDeployment, match="another number of partitions"):
        moved.take([world.record(partition=partition_of(b"a", 7))])


def test_a_record_in_a_partition_that_is_not_its_key_s_counts_for_nothing() -> None:
    world = World()
    world.take(
        world.record(ModelCall, input_tokens=5),
        world.record(ModelCall, input_tokens=7, partition=PARTITIONS - 1 - HOME),
    )
    assert (world.spent(), world.engine.misplaced) == (5, 1)


def test_sums_have_an_end_and_a_state_that_cannot_be_written_stays_as_it_was() -> None:
    world = World()
    world.take(*(world.record(ModelCall, input_tokens=2**53 - 1, cost_usd=1e9) for _ in range(1100)))
    assert world.spent() == 2**62
    world.take(world.record(text="one"))
    huge, after = world.record(text="huge"), world.record(text="two")
    world.take(huge, after)
    world.take(world.record(text="three"))
    titles = [title for title in world.titles() if title[0].isdigit()]
    assert titles == ["1. one", "2. huge", "3. two", "2. three"]  # its batch is told, and not counted
    assert sum("failed" in title for title in world.titles()) == 1


def test_what_fails_when_time_passes_is_left_alone_for_an_hour() -> None:
    asked: list[int] = []

    def lapse(state: Count, now_ms: int, _policy: Any) -> Any:
        asked.append(now_ms)
        raise ValueError("no")

    world = World((budgets.DETECTOR, count(due=lambda _: NOW, lapse=lapse)))
    world.take(world.record(text="one"))
    for later in (0, 1000, 3_600_000):
        list(world.engine.lapse(NOW + later, HOME))
        world.take()
    assert asked == [NOW, NOW + 3_600_000]
    assert {
        one.what.severity
        for one in world.told.values()
        if isinstance(one.what, Sighting) and "failed" in one.what.title
    } == {"page"}


def test_an_agent_has_so_many_sessions_and_no_more() -> None:
    world = World((budgets.DETECTOR, count(scope="session")))
    names = [f"s{number}" for number in range(SESSIONS + 50)]
    world.take(*(world.record(text="x", session=name) for name in names))
    world.take(world.record(text="x", session="other", agent="b"))
    assert len(world.tables["count"]) == SESSIONS + 1
    world.start()  # and so after a restart
    world.take(world.record(text="x", session="one-more"))
    assert len(world.tables["count"]) == SESSIONS + 1
    assert session_key(b"b", "other") in world.tables["count"]


def test_the_session_that_goes_is_the_one_that_was_silent_longest_also_after_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(states, "SESSIONS", 3)
    world = World((budgets.DETECTOR, count(scope="session")))
    for name in ("s1", "s2", "s3", "s1"):
        world.take(world.record(text="x", session=name))
    world.start()
    world.take(world.record(text="x", session="s4"))
    assert set(world.tables["count"]) == {session_key(b"a", name) for name in ("s1", "s3", "s4")}


def test_what_is_wanted_ever_earlier_is_looked_at_once_and_fills_no_memory() -> None:
    held, place, most = states.States({}, (), {}), ("count", b"a"), 0
    for sooner in range(10_000):
        held.queue(place, NOW - sooner, 0)
        most = max(most, len(held._due[0]))
    assert most < 3 * states.A_FEW
    looked_at = states.States({"count": {b"a": b""}}, [count(due=lambda _state: NOW)], {})
    looked_at.changed(place, looked_at.new(place, 0, ("p", "a", "")))
    for moment in (NOW - 5, NOW - 7):
        looked_at.queue(place, moment, 0)
    assert [found and found[2] for found in looked_at.over(NOW - 6, 0)] == [None]  # not due after all
    assert [found and found[2] for found in looked_at.over(NOW, 0)] == [NOW]
    assert list(looked_at.over(NOW, 0)) == []


def test_a_state_of_another_version_begins_anew() -> None:
    world = World()
    world.take(world.record(text="one"))
    (key,) = world.tables["count"]
    offsets, partition, whose, due, _state = msgspec.msgpack.decode(world.tables["count"][key])
    world.tables["count"][key] = msgspec.msgpack.encode((offsets, partition, whose, due, 7))
    world.start()
    world.take(world.record(text="two"))
    assert world.titles()[-1] == "1. two"


def test_what_was_spent_names_what_it_counts() -> None:
    world = World()
    record = world.record(ModelCall, input_tokens=10)
    world.take(record)
    (output,) = [one for one in world.told.values() if isinstance(one.what, Spent)]
    assert output.offsets == {f"actions/{HOME}": record.offset}


def test_whom_nothing_satisfies_is_asked_once_a_look_and_what_does_not_change_is_not_written() -> None:
    asked: list[int] = []

    def lapse(state: Count, now_ms: int, _policy: Any) -> Any:
        asked.append(now_ms)
        return state, ()

    world = World((budgets.DETECTOR, count(scope="agent", due=lambda _: NOW - 1, lapse=lapse)))
    world.take(world.record(text="one"))
    list(world.engine.lapse(NOW, HOME + 1))  # of another partition
    assert asked == []
    for number in range(3):
        list(world.engine.lapse(NOW + number, HOME))
    assert asked == [NOW, NOW + 1, NOW + 2]
    assert not world.engine.states.dirty


def test_a_new_policy_looks_at_the_agents_of_its_project_and_none_at_all() -> None:
    asked: list[int] = []

    def lapse(state: Count, now_ms: int, _policy: Any) -> Any:
        asked.append(now_ms)
        state.seen.append("lapsed")
        return state, ()

    world = World((budgets.DETECTOR, count(scope="agent", lapse=lapse)))
    world.take(world.record(text="one"))
    world.start()  # it has to be read back
    list(world.engine.lapse(NOW, HOME, {"another"}))
    assert asked == []
    list(world.engine.lapse(NOW, HOME, {"p"}))
    list(world.engine.lapse(NOW + 1, HOME, None))
    list(world.engine.lapse(NOW + 2, HOME + 1, None))
    assert asked == [NOW, NOW + 1]
    assert set(world.engine.states.dirty) == {("count", b"a")}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_ends_a_worker_the_log_counts_once(seed: int) -> None:
    """Batches of any size, a crash at any point of each, what the client sent again included: the same as in one go."""
    draw = random.Random(seed)
    drawn = World()
    log: list[Record] = []
    sent: list[Record] = []
    for number in range(1, draw.randint(2, 25)):
        if sent and draw.random() < 0.2:  # sent again: the same bytes at another place
            drawn.offset += 1
            log.append(draw.choice(sent)._replace(offset=drawn.offset))
            continue
        kind: type[Any] = draw.choice([Note, ModelCall])
        what = {"text": str(number)} if kind is Note else {"input_tokens": draw.randint(0, 400)}
        sent.append(drawn.record(kind, agent=draw.choice("ab"), seq=draw.choice([number, None]), **what))
        log.append(sent[-1])
    smooth, rough = World(), World()
    smooth.take(*log)
    at = 0
    while at < len(log):
        batch = log[at : at + draw.randint(1, 10)]
        until = draw.choice([0, 1, 2, 3, 3])
        rough.take(*batch, until=until)
        if until == 3:
            at += draw.randint(0, 1) * len(batch)  # its offsets were committed, or not
            if draw.random() < 0.5:
                rough.start()
    for agent in (b"a", b"b"):
        assert rough.spent(agent) == smooth.spent(agent)
    assert {key: one.what for key, one in rough.told.items()} == {key: one.what for key, one in smooth.told.items()}
