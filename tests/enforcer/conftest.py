"""A real enforcer process on a real broker, and people and agents that may speak to it."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.servers import child_environment

from banksman import bus, codec, settings
from banksman.events import AgentEnrolled, Control, Event, OperatorEnrolled, rfc3339, uuid7
from banksman.local import children
from banksman.signing import Credential, Secret, Signer, new_credential, new_token, service_signer
from banksman.topics import Topic

POLICY = """\
project: shop
version: 3
owner: payments-team
guardrails:
  never: [{service: aws, actions: ["iam:*"]}]
agents:
  buyer:
    owner: ann@acme.example
    allow:
      - {service: git, actions: [push, pull], resources: ["acme/billing"], branches: ["feature/*"]}
      - {service: stripe, actions: ["invoices:read"]}
    require_approval:
      - {service: git, actions: [push], branches: ["main"]}
      - {service: stripe, actions: ["refunds:create"]}
    never:
      - {service: git, actions: [force_push]}
  seller:
    allow:
      - {service: git, actions: [pull]}
"""
PUSH = {"session": "s1", "service": "git", "action": "push", "resource": "acme/billing", "branch": "feature/a"}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


def ask(
    base: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    token: str | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = 10,
) -> Answer:
    """One request over a connection of its own. `body`: bytes as they are, anything else as JSON."""
    sent = {"Content-Type": "application/json"} if body is not None else {}
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(base + path, data, sent | (headers or {}), method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return Answer(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


def until(condition: Callable[[], Any], seconds: float = 10, every: float = 0.02) -> Any:
    """The first true value of `condition`; fails when there is none in time."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(every)  # between two looks


def environment_of(kafka: settings.Kafka) -> dict[str, str]:
    return {
        "BANKSMAN_KAFKA": kafka.kafka,
        "BANKSMAN_KAFKA_SECURITY": kafka.kafka_security,
        "BANKSMAN_KAFKA_USERNAME": kafka.kafka_username,
        "BANKSMAN_KAFKA_PASSWORD": kafka.kafka_password,
        "BANKSMAN_TOPIC_PREFIX": kafka.topic_prefix,
    }


@dataclass
class Enforcer:
    """One `python -m banksman.enforcer`."""

    folder: Path
    environment: dict[str, str]
    name: str = "enforcer"
    process: subprocess.Popen[bytes] | None = None
    base: str = ""

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self, *, ready: bool = True) -> None:
        self.process = children.spawn(
            [sys.executable, "-m", "banksman.enforcer"], log=self.log, env=child_environment() | self.environment
        )
        self.base = until(self._address, 20)
        if ready:
            until(self.is_ready, 30)

    def _address(self) -> str:
        assert self.process is not None
        assert self.process.poll() is None, children.last_lines(self.log)
        for line in self.log.read_text().splitlines():
            if line.startswith("listening http"):
                return line.split()[1]
        return ""

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, children.last_lines(self.log)
        return self("GET", "/readyz").status == 200

    def __call__(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        return ask(self.base, method, path, body, **more)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        return self.process.wait(15)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@dataclass
class Desk:
    """Everything that a test of the enforcer needs around it: topics, the secret, who is enrolled."""

    kafka: settings.Kafka
    secret: Secret
    policies: Path
    admin: str = ""
    viewer: str = ""
    agents: dict[str, Credential] = field(default_factory=dict)

    def write(
        self, *events: Event, signer: Signer | None = None, topic: Topic = Topic.CONTROL, headers: bool = True
    ) -> None:
        """Straight into Kafka, signed by the service `up` unless told otherwise."""
        asyncio.run(self._write(events, signer or service_signer(self.secret, "up"), topic, headers))

    async def _write(self, events: tuple[Event, ...], signer: Signer, topic: Topic, headers: bool) -> None:
        sender = bus.producer(self.kafka)
        await sender.start()
        try:
            for event in events:
                value, kind = codec.encode(event), str(type(event).__struct_config__.tag)
                key = f"{kind}/{event.id}".encode() if isinstance(event, Control) else event.agent.encode()  # type: ignore[attr-defined]
                name = self.kafka.topic(topic)
                made = signer.headers(name, key, value, id=event.id, kind=kind, time=event.time, source=event.source)
                await sender.send_and_wait(name, value, key=key, partition=0, headers=made if headers else [])
        finally:
            await sender.stop()

    def operator(self, name: str, *roles: str) -> tuple[str, Event]:
        token, token_id, hashed = new_token("bmo")
        return token, OperatorEnrolled(
            v=1, id=uuid7(), time=rfc3339(), source="test", operator=name, roles=list(roles),  # type: ignore[arg-type]
            token_id=token_id, token_hash=hashed,
        )  # fmt: skip

    def agent(self, name: str, project: str = "shop") -> tuple[Credential, Event]:
        credential, hashed = new_credential(self.secret, project, name)
        return credential, AgentEnrolled(
            v=1, id=uuid7(), time=rfc3339(), source="test", project=project, agent=name, owner="ann",
            token_id=credential.token_id, token_hash=hashed,
        )  # fmt: skip

    def enrol(self) -> None:
        """The people and agents of most tests."""
        self.admin, admin = self.operator("root", "admin")
        self.viewer, viewer = self.operator("vera", "viewer")
        events = [admin, viewer]
        for name in ("buyer", "seller", "stranger"):
            self.agents[name], event = self.agent(name)
            events.append(event)
        self.write(*events)

    def records(self, topic: Topic, *, at_least: int = 0, seconds: float = 10) -> list[dict[str, Any]]:
        """Every record of a topic so far, as dicts with `_headers`, `_partition`, `_offset`, `_key`."""
        return asyncio.run(self._records(topic, at_least, seconds))

    async def _records(self, topic: Topic, at_least: int, seconds: float) -> list[dict[str, Any]]:
        from aiokafka import AIOKafkaConsumer, TopicPartition

        name = self.kafka.topic(topic)
        consumer = AIOKafkaConsumer(**self.kafka.client(), enable_auto_commit=False, auto_offset_reset="earliest")
        await consumer.start()
        found: list[dict[str, Any]] = []
        end = time.monotonic() + seconds
        try:
            # A metadata refresh may not have met a topic that is seconds old.
            while not (parts := consumer.partitions_for_topic(name)):
                await consumer._client.force_metadata_update()
            where = [TopicPartition(name, part) for part in parts]
            consumer.assign(where)
            await consumer.seek_to_beginning(*where)
            while True:
                ends = await consumer.end_offsets(where)
                if all([await consumer.position(part) >= ends[part] for part in where]) and len(found) >= at_least:
                    return found
                assert time.monotonic() < end, f"{len(found)} records in {name}, wanted {at_least}"
                for batch in (await consumer.getmany(timeout_ms=100)).values():
                    for record in batch:
                        made = json.loads(record.value) if record.value else {}
                        made |= {"_headers": dict(record.headers), "_partition": record.partition}
                        found.append(made | {"_offset": record.offset, "_key": (record.key or b"").decode()})
        finally:
            await consumer.stop()


@pytest.fixture
def desk(kafka_settings: settings.Kafka, secret: Secret, tmp_path: Path) -> Desk:
    folder = tmp_path / "policies"
    folder.mkdir()
    (folder / "shop.yaml").write_text(POLICY)
    made = Desk(kafka_settings, secret, folder)
    made.enrol()
    return made


@pytest.fixture
def make_enforcer(desk: Desk, secret_file: Path, tmp_path: Path) -> Iterator[Callable[..., Enforcer]]:
    """Starts replicas; whatever is left of them ends with the test."""
    made: list[Enforcer] = []

    def make(*, ready: bool = True, start: bool = True, policies: Path | None = None, **more: str) -> Enforcer:
        environment = environment_of(desk.kafka) | {
            "BANKSMAN_SECRET_FILE": str(secret_file),
            "BANKSMAN_POLICIES": str(policies or desk.policies),
            "BANKSMAN_ENFORCER_PORT": "0",
            **more,
        }
        one = Enforcer(tmp_path, environment, f"enforcer-{len(made)}")
        made.append(one)
        if start:
            one.start(ready=ready)
        return one

    yield make
    for one in made:
        if one.process is not None and one.process.poll() is None:
            one.process.send_signal(signal.SIGCONT)
            one.kill()


@pytest.fixture
def enforcer(make_enforcer: Callable[..., Enforcer]) -> Enforcer:
    return make_enforcer()


def raw_request(base: str, data: bytes, *, seconds: float = 5) -> bytes:
    """Bytes to the socket -> the first bytes that come back."""
    host, port = base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(data)
        return connection.recv(65536)
