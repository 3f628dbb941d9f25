"""An archiver as its own process, on the session's servers, with topics and a database of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from tests.enforcer.conftest import environment_of
from tests.processors.fake_slack import FakeSlack
from tests.processors.notifying import Notifying
from tests.publishing import publish
from tests.servers import child_environment

from banksman import codec, signing, stamps
from banksman.local import children
from banksman.settings import ClickHouse, Kafka
from banksman.store.client import Store
from banksman.store.migrate import migrate
from banksman.topics import Topic


@dataclass
class Archive:
    """What a test does with an archive: publish, run archivers, ask."""

    kafka: Kafka
    clickhouse: ClickHouse
    secret: signing.Secret
    secret_file: Path
    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *, clickhouse: str = "", **more: str) -> subprocess.Popen[bytes]:
        """An archiver; `clickhouse`: an address between it and ClickHouse."""
        environment = (
            child_environment()
            | environment_of(self.kafka)
            | {
                "BANKSMAN_CLICKHOUSE": clickhouse or self.clickhouse.clickhouse,
                "BANKSMAN_CLICKHOUSE_DATABASE": self.clickhouse.clickhouse_database,
                "BANKSMAN_CLICKHOUSE_PASSWORD": self.clickhouse.clickhouse_password,
                "BANKSMAN_SECRET_FILE": str(self.secret_file),
            }
            | more
        )
        log = self.folder / f"archiver{len(self.running)}.log"
        process = children.spawn([sys.executable, "-m", "banksman.processors.archiver"], log=log, env=environment)
        self.running.append(process)
        return process

    def stop(self) -> None:
        for process in self.running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.running:
            process.wait(20)

    def publish(self, *records: tuple[Topic, bytes, bytes, signing.Headers]) -> None:
        """(topic, key, value, headers), all acknowledged when this returns."""
        publish(self.kafka, *records)

    def action(self, **changes: Any) -> tuple[Topic, bytes, bytes, signing.Headers]:
        """A note signed by its agent, with changes."""
        by = changes.pop("signer", None)
        event: dict[str, Any] = {
            "v": 1, "id": stamps.uuid7(), "time": stamps.rfc3339(), "kind": "note", "source": "test#1", "project": "p",
            "agent": "a", "session": "s", "text": "hello",
        }  # fmt: skip
        event.update(changes)
        return self.signed(Topic.ACTIONS, event["agent"].encode(), event, by or self.agent(event["agent"]))

    def agent(self, name: str) -> signing.Signer:
        author = signing.Author(project="p", agent=name, token_id="t1")
        return signing.Signer(author, signing.key_of(self.secret, 1, author), 1)

    def signed(
        self, topic: Topic, key: bytes, event: dict[str, Any], signer: signing.Signer | None
    ) -> tuple[Topic, bytes, bytes, signing.Headers]:
        value = codec.encode(event)
        marks = {name: event[name] for name in ("id", "kind", "time", "source")}
        headers = signer.headers(self.kafka.topic(topic), key, value, **marks) if signer else []
        return topic, key, value, headers

    def ask(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        store = Store(self.clickhouse, reader=True)
        try:
            return store.query(sql.replace("@", f"`{self.clickhouse.clickhouse_database}`."), parameters)
        finally:
            store.close()

    def until(self, condition: Callable[[], Any], seconds: float = 40) -> Any:
        """The first truthy answer of `condition`; fails with the archivers' logs when there is none in time."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(Exception):  # ClickHouse may be away on purpose
                if found := condition():
                    return found
            if time.monotonic() > end:
                logs = "\n".join(children.last_lines(log, 20) for log in self.folder.glob("*.log"))
                raise AssertionError(f"not within {seconds} s: {condition()!r}\n{logs}")
            time.sleep(0.05)  # between two looks at the condition

    def count(self) -> int:
        return int(self.ask("SELECT count() AS n FROM @events WHERE topic = 'actions'")[0]["n"])

    def ends(self, topic: Topic) -> int:
        """How many records a topic has had, in all of its partitions."""

        async def ask() -> int:
            name = self.kafka.topic(topic)
            consumer = AIOKafkaConsumer(name, **self.kafka.client(), enable_auto_commit=False)
            await consumer.start()
            try:
                there = [TopicPartition(name, number) for number in consumer.partitions_for_topic(name) or ()]
                return sum((await consumer.end_offsets(there)).values())
            finally:
                await consumer.stop()

        return asyncio.run(ask())


@pytest.fixture
def archive(
    kafka_settings: Kafka, clickhouse_settings: ClickHouse, secret_file: Path, secret: signing.Secret, tmp_path: Path
) -> Iterator[Archive]:
    migrate(clickhouse_settings)
    made = Archive(kafka_settings, clickhouse_settings, secret, secret_file, tmp_path)
    yield made
    made.stop()
    assert not [p for p in made.running if p.returncode not in (0, -signal.SIGKILL)], "an archiver ended with an error"


@pytest.fixture
def slack() -> Iterator[FakeSlack]:
    with FakeSlack() as made:
        yield made


@pytest.fixture
def notifying(
    kafka_settings: Kafka, secret: signing.Secret, secret_file: Path, tmp_path: Path, slack: FakeSlack
) -> Iterator[Notifying]:
    made = Notifying(kafka_settings, secret, secret_file, tmp_path, slack)
    yield made
    made.end()
    assert not [p for p in made.running if p.returncode not in (0, -signal.SIGKILL)], "a notifier ended with an error"


assert os.name == "posix"
