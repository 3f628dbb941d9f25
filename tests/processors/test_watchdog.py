"""A service that does not do its work is told to people, and that it does again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata
from tests.processors.fake_slack import FakeSlack
from tests.processors.notifying import Notifying
from tests.servers import PARTITIONS

from banksman import bus, events, stamps
from banksman.processors.notifier import slack as slack_module
from banksman.processors.notifier import watchdog as watchdog_module
from banksman.processors.notifier.incidents import Incidents
from banksman.processors.notifier.watchdog import ENFORCERS, Enforcers, Watchdog
from banksman.progress import ARCHIVER, PROCESSORS, Progress
from banksman.settings import Kafka
from banksman.topics import SPECS, Topic

LATE_S = 1.5


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slack_module, "POST_S", 0.01)
    monkeypatch.setattr(watchdog_module, "LOOK_S", 0.2)


def heartbeat(**changes: Any) -> events.Replica:
    fields: dict[str, Any] = {
        "v": 1, "id": stamps.uuid7(), "time": stamps.rfc3339(), "source": "enforcer#r1", "replica": "r1",
        "address": "http://127.0.0.1:7700", "applied": 0,
    }  # fmt: skip
    return events.Replica(**(fields | changes))


@asynccontextmanager
async def again_and_again(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Do it for as long as the body runs, each time to its end: a client that is cancelled while it starts stays open."""
    over = asyncio.Event()

    async def loop() -> None:
        while not over.is_set():
            await work()
            await asyncio.sleep(0.1)  # between two

    going = asyncio.create_task(loop())
    try:
        yield
    finally:
        over.set()
        await going


async def commit(kafka: Kafka, group: str, *topics: Topic) -> None:
    """All that these topics hold is done, as the group's own service would say."""
    consumer = bus.consumer(kafka, group_id=kafka.topic_prefix + group)
    await consumer.start()
    try:
        places = [
            TopicPartition(kafka.topic(topic), number)
            for topic in topics
            for number in range(SPECS[topic].partitions or PARTITIONS)
        ]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        await consumer.commit({place: OffsetAndMetadata(end, "") for place, end in ends.items()})
    finally:
        await consumer.stop()


async def test_services_that_stand_still_and_go_on(notifying: Notifying, slack: FakeSlack, hurried: None) -> None:
    async with notifying.here(late_s=LATE_S):
        await notifying.publish(
            events.Note(
                v=1, id=stamps.uuid7(), time=stamps.rfc3339(), source="test#1", project="p", agent="a", session="s", text="t"
            )
        )  # fmt: skip

        def about(words: str) -> Any:
            return next((one for one in slack.parents() if words in one.words), None)

        archiver = await notifying.until(lambda: about("the audit log is not kept up to date"))
        processors = await notifying.until(lambda: about("nobody counts what agents do"))
        assert "🔴 PAGE" in archiver.text
        assert "banksman doctor" in archiver.words
        assert about("no enforcer") is None, "there never was one"
        await commit(notifying.kafka, PROCESSORS, Topic.ACTIONS, Topic.DECISIONS)
        await notifying.until(lambda: slack.replies(processors))
        assert "the processors have caught up" in slack.replies(processors)[0].text
        assert not slack.replies(archiver)

        # what it archives are the alerts about itself, too
        async with again_and_again(lambda: commit(notifying.kafka, ARCHIVER, *Topic.__members__.values())):
            await notifying.until(lambda: slack.replies(archiver))
        assert "the archiver has caught up" in slack.replies(archiver)[0].text
    assert len(slack.parents()) == 2, "each is told once"


async def test_no_enforcer_is_alive(notifying: Notifying, slack: FakeSlack, hurried: None) -> None:
    def beat() -> Awaitable[None]:
        return notifying.publish(heartbeat(), service="enforcer")

    def told() -> Any:
        return next((one for one in slack.parents() if "no enforcer has been alive" in one.words), None)

    async with notifying.here(late_s=LATE_S):
        async with again_and_again(beat):
            await notifying.until(lambda: any("audit log" in one.words for one in slack.parents()))
            assert told() is None, "it lives"
        page = await notifying.until(told)
        async with again_and_again(beat):
            await notifying.until(lambda: slack.replies(page))
        assert "an enforcer is alive" in slack.replies(page)[0].text


async def test_what_another_notifier_told_is_not_told_again(
    notifying: Notifying, slack: FakeSlack, hurried: None
) -> None:
    await notifying.publish(heartbeat(time=stamps.rfc3339()), service="enforcer")
    for _ in range(2):
        async with notifying.here(late_s=0.3):
            await notifying.until(lambda: any("no enforcer" in one.words for one in slack.parents()))
            await asyncio.sleep(1.5)  # time in which it could be told twice
    assert sum("no enforcer" in one.words for one in slack.parents()) == 1


class Seen:
    """What is seen of the services, as the test says."""

    def __init__(self) -> None:
        self.ends = {("control", 0): 0}
        self.late = {ARCHIVER: 0.0, PROCESSORS: 0.0}
        self.away = False

    async def look(self) -> None:
        if self.away:
            raise KafkaError("away")

    def seconds(self, service: str) -> float:
        return self.late[service]

    def lag(self, _service: str) -> int:
        return 7


class Pen:
    source = "notifier#1"


def test_one_that_is_always_a_little_late_is_one_incident(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks are passed one after the other: between two it looks for a while as if nothing were late."""
    clock = [1000.0]
    monkeypatch.setattr(watchdog_module, "boottime", lambda: clock[0])
    seen, incidents = Seen(), Incidents()
    dog = Watchdog(
        cast("Progress", seen), cast("Any", Pen()), Enforcers(), 60.0, may=lambda: incidents,
        now_ms=lambda: int(clock[0] * 1000), applied=lambda: 0,
    )  # fmt: skip
    told: list[events.Finding] = []

    def look() -> None:
        for finding in dog.found(incidents):
            told.append(finding)
            incidents.apply(finding, int(clock[0] * 1000), len(told))

    since = clock[0]
    for _ in range(400):  # a lag of 62 s, for 400 s
        clock[0] += 1
        if clock[0] - since > 62:
            since = clock[0]
        seen.late[ARCHIVER] = clock[0] - since
        look()
    assert [finding.over for finding in told if not finding.over] == [False] * (1 + 400 // 300)
    assert not [finding for finding in told if finding.over]
    assert told[0].evidence == {"service": ARCHIVER, "seconds": 61.0, "waiting": 7}
    seen.late[ARCHIVER] = 0.0
    for _ in range(70):
        clock[0] += 1
        look()
    assert [finding.over for finding in told][-1:] == [True]
    assert sum(finding.over for finding in told) == 1


def test_heartbeats_that_are_not_read_yet_are_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, incidents, enforcers = Seen(), Incidents(), Enforcers()
    seen.ends = {("control", 0): 900}
    applied, clock = [10], [1000.0]
    monkeypatch.setattr(watchdog_module, "boottime", lambda: clock[0])
    dog = Watchdog(
        cast("Progress", seen), cast("Any", Pen()), enforcers, 60.0, may=lambda: incidents, now_ms=lambda: 900_000,
        applied=lambda: applied[0],
    )  # fmt: skip
    enforcers.seen(heartbeat())
    clock[0] += 899
    assert not list(dog.found(incidents))
    applied[0] = 899
    (finding,) = dog.found(incidents)
    assert finding.evidence == {"service": ENFORCERS, "seconds": 899.0}
    enforcers.seen(heartbeat(ended=True))
    assert len(list(dog.found(incidents))) == 1, "a goodbye is no sign of life"


def test_of_enforcers_that_are_gone_a_goodbye_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction leaves nothing but that. Who starts with the notifier has its time; who never was is not missed."""
    clock = [1000.0]
    monkeypatch.setattr(watchdog_module, "boottime", lambda: clock[0])
    enforcers = Enforcers()
    assert enforcers.away_s() is None
    enforcers.seen(heartbeat(ended=True))
    assert enforcers.away_s() == 0.0
    clock[0] += 61
    enforcers.seen(heartbeat(ended=True, replica="r2"))
    assert enforcers.away_s() == 61.0
    enforcers.seen(heartbeat(replica="r3"))
    assert enforcers.away_s() == 0.0


async def test_what_was_well_before_it_looked_away_is_not_well_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks begin anew when nobody looked: that is no sign that all is well."""
    clock, told = [1000.0], list[events.Finding]()
    monkeypatch.setattr(watchdog_module, "boottime", lambda: clock[0])
    seen, incidents = Seen(), Incidents()

    class Writing(Pen):
        async def found(self, finding: events.Finding) -> None:
            told.append(finding)
            incidents.apply(finding, int(clock[0] * 1000), len(told))

    dog = Watchdog(
        cast("Progress", seen), cast("Any", Writing()), Enforcers(), 60.0, may=lambda: incidents,
        now_ms=lambda: int(clock[0] * 1000), applied=lambda: 0,
    )  # fmt: skip
    seen.late[ARCHIVER] = 61.0
    await dog.look()
    seen.late[ARCHIVER] = 0.0  # Kafka was away for longer than a mark lives
    await dog.look()
    seen.away = True
    for _ in range(70):
        clock[0] += 1
        await dog.look()
    seen.away = False
    await dog.look()
    assert [finding.over for finding in told] == [False]
