"""A notifier, in this process or in its own, between the session's Kafka and a Slack of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from tests.enforcer.conftest import environment_of
from tests.processors.fake_slack import TOKEN, FakeSlack
from tests.servers import child_environment

from banksman import bus, codec, events, signing, stamps
from banksman.local import children
from banksman.processors.notifier.notifier import Notifier
from banksman.settings import Kafka, Slack
from banksman.topics import Topic


def finding(fingerprint: str = "loops/a/s", **changes: Any) -> events.Finding:
    fields: dict[str, Any] = {
        "v": 1, "id": stamps.uuid7(), "time": stamps.rfc3339(), "source": "test#1", "detector": fingerprint.partition("/")[0],
        "severity": "warn", "title": f"{fingerprint} is wrong", "fingerprint": fingerprint, "project": "p", "agent": "a",
        "session": "s",
    }  # fmt: skip
    return events.Finding(**(fields | changes))


@dataclass
class Notifying:
    kafka: Kafka
    secret: signing.Secret
    secret_file: Path
    folder: Path
    slack: FakeSlack
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    # ── what comes in ──

    async def publish(self, *several: events.Event, service: str = "processors", replay: str = "") -> None:
        """Signed by a service of ours, in this order, acknowledged."""
        signer = signing.service_signer(self.secret, service)
        producer = bus.producer(self.kafka)
        await producer.start()
        try:
            for event in several:
                topic, value, kind = self.kafka.topic(event.topic), codec.encode(event), events.kind_of(event)
                key = event.id.encode()
                headers = signer.headers(
                    topic, key, value, id=event.id, kind=kind, time=event.time, source=event.source, replay=replay
                )
                await bus.Publisher(producer, topic).put(0, key, value, headers)
        finally:
            await producer.stop()

    async def policy(self, project: str, channel: str) -> None:
        text = f'{{"agents":{{}},"notify":{{"channel":"{channel}"}},"project":"{project}"}}'
        await self.publish(
            events.PolicyLoaded(
                v=1, id=stamps.uuid7(), time=stamps.rfc3339(), source="enforcer#1", project=project, text=text,
                policy_version=f"{project}@v1+sha256:0", replica="r",
            ),
            service="enforcer",
        )  # fmt: skip

    # ── notifiers ──

    @contextlib.asynccontextmanager
    async def here(self, *, worker: str = "w", late_s: float = 3600, **of_slack: Any) -> AsyncIterator[Notifier]:
        """In this process, reading when this returns."""
        ready, stop = asyncio.Event(), asyncio.Event()
        given: dict[str, Any] = {"slack_token": TOKEN, "slack_url": self.slack.url, "slack_timeout_s": 1.0}
        settings = Slack(**(given | of_slack))
        made = Notifier(
            self.kafka, self.secret, settings, instance="test", worker=worker, late_s=late_s, ready=ready.set
        )
        running = asyncio.create_task(made.run(stop))
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED, timeout=30)
        assert ready.is_set(), "the notifier is not ready"
        try:
            yield made
        finally:
            stop.set()
            waiting.cancel()
            await running

    def process(
        self, *, worker: str = "w", token: str = TOKEN, timeout_s: float = 1.0, **more: str
    ) -> subprocess.Popen[bytes]:
        environment = (
            child_environment()
            | environment_of(self.kafka)
            | {
                "BANKSMAN_SECRET_FILE": str(self.secret_file),
                "BANKSMAN_SLACK_TOKEN": token,
                "BANKSMAN_SLACK_URL": self.slack.url,
                "BANKSMAN_SLACK_TIMEOUT_S": str(timeout_s),
                "BANKSMAN_WORKER": worker,
                "BANKSMAN_WORKER_SESSION_S": "2",
                "BANKSMAN_LATE_S": "3600",
            }
            | more
        )
        argv = [sys.executable, "-m", "banksman.processors.notifier"]
        made = children.spawn(argv, log=self.log(len(self.running)), env=environment)
        self.running.append(made)
        return made

    def log(self, number: int) -> Path:
        return self.folder / f"notifier{number}.log"

    def end(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.running:
            process.wait(20)

    # ── what comes out ──

    async def until(self, condition: Callable[[], Any], seconds: float = 20) -> Any:
        """The first truthy answer; fails with what everybody said when there is none in time."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            if time.monotonic() > end:
                logs = "\n".join(children.last_lines(log, 20) for log in sorted(self.folder.glob("*.log")))
                raise AssertionError(f"not within {seconds} s; seen: {self.slack.seen}\n{logs}")
            await asyncio.sleep(0.02)  # between two looks at the condition
        return found

    async def records(self) -> list[events.Finding]:
        """What notifiers wrote, in order."""
        where = TopicPartition(self.kafka.topic(Topic.ALERTS), 0)
        consumer = AIOKafkaConsumer(**self.kafka.client(), enable_auto_commit=False)
        await consumer.start()
        found: list[events.Finding] = []
        try:
            consumer.assign([where])
            await consumer.seek_to_beginning(where)
            end = (await consumer.end_offsets([where]))[where]
            while await consumer.position(where) < end:
                for record in (await consumer.getmany(timeout_ms=200)).get(where, []):
                    event = codec.decode(record.value, Topic.ALERTS)
                    if isinstance(event, (events.Alert, events.AlertResolved)):
                        found.append(event)
        finally:
            await consumer.stop()
        return found

    async def recorded(self, *kinds: str, seconds: float = 20, ordered: bool = True) -> list[events.Finding]:
        """The records, once there are such of these kinds, in this order or, not `ordered`, in any."""
        end = time.monotonic() + seconds
        while True:
            found = await self.records()
            there = [events.kind_of(each) for each in found]
            if there == list(kinds) or (not ordered and sorted(there) == sorted(kinds)):
                return found
            assert time.monotonic() < end, f"{found}\nseen: {self.slack.seen}"
            await asyncio.sleep(0.05)  # between two looks
