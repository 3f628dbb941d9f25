"""What is done about a finding, besides telling of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.processors.working import Floor, a_floor
from tests.servers import Broker

from banksman import bus
from banksman.processors.detector import Sighting
from banksman.processors.worker.engine import Output
from banksman.processors.worker.known import Known
from banksman.processors.worker.outbox import TOO_LATE_MS, Outbox
from banksman.topics import Topic


@pytest.fixture
def floor(broker: Broker, tmp_path: Path) -> Iterator[Floor]:
    with a_floor(broker, tmp_path) as made:
        yield made


def tell(floor: Floor, *outputs: Output, away: bool = False) -> None:
    """`away`: `control` takes nothing."""

    async def told() -> None:
        producer = bus.producer(floor.kafka)
        await producer.start()
        outbox = Outbox(producer, floor.kafka, floor.secret, "one", Known(floor.kafka, floor.secret))
        if away:
            outbox._publishers[Topic.CONTROL] = bus.Publisher(producer, "control", bound=0)
        try:
            await outbox.tell(outputs)
        finally:
            await producer.stop()

    asyncio.run(told())


def loop(seen_ms: int, session: str, **changes: Any) -> Output:
    sighting = Sighting("page", "a loop", f"loops/buyer/{session}", session=session, act="kill", **changes)
    return Output("loops", sighting, f"actions/0/{session[1:]}", seen_ms, "shop", "buyer", session, None, "", {})


def test_it_acts_at_once_or_not_at_all(floor: Floor) -> None:
    """A worker that comes back from an outage works through the past, and does nothing about it."""
    now = time.time_ns() // 1_000_000
    tell(floor, loop(now - 600_000, "s1"), loop(now - 1000, "s2"), loop(now - 1000, "s3", over=True))
    findings = floor.until(lambda: len(found := floor.records(Topic.ALERTS)) == 3 and found)
    done = {one["session"]: one["evidence"].get("done") for one in findings}
    assert done == {
        "s1": "nothing: the policy wants a kill, and it was seen too late",
        "s2": "the session is killed",
        "s3": None,
    }
    floor.until(lambda: floor.records(Topic.CONTROL, kind="session.killed"))
    assert [one["session"] for one in floor.records(Topic.CONTROL, kind="session.killed")] == ["s2"]


def test_nobody_is_told_that_it_is_done_before_it_is(floor: Floor) -> None:
    """`control` takes nothing until it is too late for the kill."""
    tell(floor, loop(time.time_ns() // 1_000_000 - TOO_LATE_MS + 1500, "s1"), away=True)
    (finding,) = floor.until(lambda: floor.records(Topic.ALERTS))
    assert finding["evidence"]["done"] == "nothing: the policy wants a kill, and it was seen too late"
    assert not floor.records(Topic.CONTROL)


def test_nothing_is_done_about_history(floor: Floor) -> None:
    """A loop in a recording that is replayed: it is told, marked as the run's, and no session of today is killed for it."""
    now = time.time_ns() // 1_000_000
    tell(floor, replace(loop(now - 1000, "s1"), run="run-1"), loop(now - 1000, "s2"))
    findings = floor.until(lambda: len(found := floor.records(Topic.ALERTS)) == 2 and found)
    told = {one["session"]: (one["_headers"].get("banksman-replay"), one["evidence"].get("done")) for one in findings}
    assert told == {"s1": (b"run-1", None), "s2": (None, "the session is killed")}
    floor.until(lambda: floor.records(Topic.CONTROL, kind="session.killed"))
    assert [one["session"] for one in floor.records(Topic.CONTROL, kind="session.killed")] == ["s2"]
