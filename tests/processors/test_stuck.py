"""A worker that does not move any more, or cannot begin, ends, to begin anew; never because Kafka is away."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tests.processors.working import RUN, Floor, a_floor
from tests.servers import Broker, freeze

from banksman import provision
from banksman.processors.worker import worker
from banksman.processors.worker.frame import Laid, app, table
from banksman.settings import Kafka
from banksman.settings import Worker as Settings
from banksman.topics import Topic

SOON = "from banksman.processors.worker import worker; worker.STUCK_S = 6.0\n"
NEVER = (
    SOON
    + """
import asyncio
async def never(self, batch):
    await asyncio.Event().wait()
worker.Worker._work = never
"""
    + RUN
)
BROKEN = NEVER.replace("await asyncio.Event().wait()", "raise KeyError('x')")
HELD = (
    NEVER.replace("never(self, batch)", "never(self)")
    .replace("_work = never", "_write = never")
    .replace("    await", "    print('held', flush=True)\n    await")
)
NO_START = (
    """
from aiokafka.errors import NodeNotReadyError
from faust.tables.manager import TableManager
async def refused(self):
    raise NodeNotReadyError("it went away")
TableManager.on_start = refused
"""
    + RUN
)
NO_PRODUCER = (
    """
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError
start, tries = AIOKafkaProducer.start, []
async def refused(self):
    tries.append(1)
    if len(tries) < 3:
        raise KafkaConnectionError("it went away")
    await start(self)
AIOKafkaProducer.start = refused
"""
    + RUN
)


@pytest.fixture
def floor(broker: Broker, tmp_path: Path) -> Iterator[Floor]:
    with a_floor(broker, tmp_path) as made:
        yield made


def test_one_that_does_not_move_ends_and_the_next_one_counts(floor: Floor) -> None:
    floor.policy()
    stuck = floor.start(program=NEVER)
    floor.ready(stuck)
    floor.put(floor.action(input_tokens=600))
    assert stuck.wait(30) == worker.REPLACED
    assert b"nothing moves, though Kafka answers" in floor.log().read_bytes()
    floor.start()
    floor.until(lambda: floor.spent() == 600)


def test_one_that_waits_for_kafka_goes_on_waiting(floor: Floor, broker: Broker) -> None:
    floor.policy()
    waiting = floor.start(program=SOON + RUN, BANKSMAN_WORKER_SESSION_S="3")
    floor.ready(waiting)
    freeze(broker.process.pid)
    try:
        floor.until(lambda: b"nothing moves, and Kafka does not answer" in floor.log().read_bytes(), 40)
    finally:
        broker.process.send_signal(signal.SIGCONT)
    floor.put(floor.action(input_tokens=600))
    floor.until(lambda: floor.spent() == 600, 40)
    assert waiting.poll() is None


def test_one_that_is_told_to_end_in_the_middle_of_a_batch_commits_nothing_of_it(floor: Floor) -> None:
    floor.policy()
    held = floor.start(program=HELD.replace("STUCK_S = 6.0", "STUCK_S = 600.0"))
    floor.until(lambda: b"are ours" in floor.log().read_bytes())
    floor.put(floor.action(input_tokens=600))
    floor.until(lambda: b"held" in floor.log().read_bytes())
    held.terminate()
    assert held.wait(30) == 0
    floor.ready(floor.start("two"), "two")
    floor.until(lambda: floor.spent() == 600)


def test_kafka_that_goes_away_while_faust_begins(floor: Floor) -> None:
    assert floor.start(program=NO_START).wait(30) == worker.REPLACED
    assert b"a worker cannot go on: NodeNotReadyError: NodeNotReadyError: it went away" in floor.log().read_bytes()


def test_kafka_that_goes_away_before_is_waited_for(floor: Floor) -> None:
    one = floor.start(program=NO_PRODUCER)
    floor.ready(one)
    assert floor.log().read_bytes().count(b"waiting for Kafka") == 2


class Still(worker.Worker):
    """A worker of which nothing is known but what a test says."""

    def __init__(self, *, has: bool, looked_at: dict[int, Any], rebalancing: bool = False, new: bool = False) -> None:
        self._has_partitions, self._looked_at, self._new_partitions = has, looked_at, new
        self.app: Any = mock.Mock(rebalancing=rebalancing)


def test_whoever_has_no_partitions_has_nothing_to_do() -> None:
    assert Still(has=True, looked_at={})._is_idle()
    assert not Still(has=True, looked_at={0: None})._is_idle()
    assert not Still(has=True, looked_at={}, new=True)._is_idle()
    assert not Still(has=True, looked_at={}, rebalancing=True)._is_idle()
    assert not Still(has=False, looked_at={})._is_idle()  # a rebalance that never ends


async def test_kafka_has_to_answer_twice_and_is_not_asked_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right after an outage nothing has moved either; and during one nobody needs a storm of questions."""
    now, asked, answers = 0.0, list[float](), [False, True, False, True, True]

    def later() -> float:
        nonlocal now
        now += 0.5
        return now

    class Ended(Exception):
        pass

    class Asking(Still):
        async def _kafka_answers(self) -> bool:
            asked.append(now)
            return answers[len(asked) - 1]

        def _moved(self) -> tuple[float, ...]:
            return (0.0,)

    still = Asking(has=True, looked_at={0: None})
    still._session_s, still._marks = 0.0, mock.Mock(stands_s=lambda: 1000.0)
    monkeypatch.setattr(worker, "TICK_S", 0)
    monkeypatch.setattr(worker, "boottime", later)
    monkeypatch.setattr(worker, "os", mock.Mock(_exit=mock.Mock(side_effect=Ended)))
    with pytest.raises(Ended):
        await still._see_to_it_that_it_moves()
    assert len(asked) == len(answers)
    assert all(later - sooner >= worker.STUCK_S / 2 for sooner, later in itertools.pairwise(asked))


def test_what_is_read_back_is_counted_from_the_first_record_on() -> None:
    still = Still(has=True, looked_at={})
    still._marked, still.engine = 0.0, mock.Mock(counted=5, skipped=2)
    still.app.tables.recovery.active_offsets = {1: None, 2: 8}  # Faust's, before anything was read of the first
    assert still._moved() == (0.0, 7, 8)


def test_an_error_of_ours_has_a_code_of_its_own(floor: Floor) -> None:
    floor.policy()
    broken = floor.start(program=BROKEN)
    floor.ready(broken)
    floor.put(floor.action(input_tokens=600))
    assert broken.wait(30) == worker.BROKEN
    assert b"a batch failed, and the next worker gets it again\nTraceback" in floor.log().read_bytes()


async def test_changelogs_have_as_many_copies_as_what_they_count(floor: Floor) -> None:
    assert await provision.copies_of(floor.kafka, Topic.ACTIONS) == 1
    made = app(Kafka(kafka="127.0.0.1:9"), Settings(), "one", Laid(4, 3))
    changelog = table(made, "budgets", Laid(4, 3)).changelog_topic
    assert (changelog.partitions, changelog.replicas, changelog.config["min.insync.replicas"]) == (4, None, "2")
    assert made.conf.topic_replication_factor == 3  # what None stands for
