"""A real enforcer process on a real broker, and people and agents that may speak to it."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from aiokafka import TopicPartition
from tests.servers import PARTITIONS, Broker, child_environment

from banksman import bus, codec, provision, settings
from banksman.events import AgentEnrolled, Control, Event, OperatorEnrolled, kind_of
from banksman.local import children
from banksman.signing import Credential, Secret, Signer, create_secret, new_credential, new_token, service_signer
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic

if TYPE_CHECKING:
    from tests.enforcer.access_desk import Office

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
SHADOW_POLICY = """\
project: lab
version: 1
mode: shadow
guardrails:
  never: [{service: aws, actions: ["iam:*"]}]
agents:
  tester:
    allow: [{service: git, actions: [pull]}]
"""
AGENTS = {"buyer": "shop", "seller": "shop", "stranger": "shop", "tester": "lab", "homeless": "nowhere"}
"""Name -> project. No policy names `stranger`, and `nowhere` has none."""
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
    since: int = 0
    """Where in the log this start of it begins."""

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self, *, ready: bool = True) -> None:
        self.since = self.log.stat().st_size if self.log.exists() else 0
        self.process = children.spawn(
            [sys.executable, "-m", "banksman.enforcer"], log=self.log, env=child_environment() | self.environment
        )
        self.base = until(self._address, 20)
        if ready:
            until(self.is_ready, 30)

    def _address(self) -> str:
        assert self.process is not None
        assert self.process.poll() is None, children.last_lines(self.log)
        for line in self.log.read_text()[self.since :].splitlines():
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

    def end(self) -> None:
        """Whatever state it is in."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()


class Clock:
    """A test's own: it stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@dataclass
class Desk:
    """Everything that a test of the enforcer needs around it: topics, the secret, who is enrolled."""

    kafka: settings.Kafka
    secret: Secret
    folder: Path
    admin: str = ""
    viewer: str = ""
    agents: dict[str, Credential] = field(default_factory=dict)

    @property
    def policies(self) -> Path:
        return self.folder / "policies"

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
                value, kind = codec.encode(event), kind_of(event)
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
        for name, project in AGENTS.items():
            self.agents[name], event = self.agent(name, project)
            events.append(event)
        self.write(*events)


class Tape:
    """Everything that is written to the topics of a desk, read along in a thread of its own."""

    def __init__(self, kafka: settings.Kafka) -> None:
        self._kafka = kafka
        self._news = threading.Condition()
        self._records: dict[Topic, list[dict[str, Any]]] = {topic: [] for topic in Topic}
        self._failed: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tape")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def records(self, topic: Topic, which: Callable[[dict[str, Any]], bool] = lambda _: True) -> list[dict[str, Any]]:
        """What is there so far: the records as dicts, with `_headers`, `_raw`, `_key`, `_partition`, `_offset`."""
        with self._news:
            assert self._failed is None, self._failed
            return [record for record in self._records[topic] if which(record)]

    def wait(
        self, topic: Topic, which: Callable[[dict[str, Any]], bool], count: int = 1, seconds: float = 20
    ) -> list[dict[str, Any]]:
        """The records that `which` is true of, once there are `count` of them; fails when they do not come in time."""
        end = time.monotonic() + seconds
        with self._news:
            while True:
                found = self.records(topic, which)
                if len(found) >= count:
                    return found
                left = end - time.monotonic()
                assert left > 0, f"{len(found)} of {count} came; the last: {self._records[topic][-3:]}"
                self._news.wait(left)

    def _run(self) -> None:
        try:
            asyncio.run(self._read())
        except BaseException as error:  # noqa: BLE001 - told to the test
            with self._news:
                self._failed = error
                self._news.notify_all()

    async def _read(self) -> None:
        topics = {self._kafka.topic(topic): topic for topic in Topic}
        consumer = bus.consumer(self._kafka, auto_offset_reset="earliest")
        await consumer.start()
        try:
            where: list[TopicPartition] = []
            while not where:  # a metadata refresh may not have met a topic that is seconds old
                found = {name: consumer.partitions_for_topic(name) for name in topics}
                if all(found.values()):
                    where = [TopicPartition(name, part) for name, parts in found.items() for part in parts]
                else:
                    await consumer._client.force_metadata_update()
            consumer.assign(where)
            await consumer.seek_to_beginning(*where)
            while not self._stop.is_set():
                batches = await consumer.getmany(timeout_ms=50)
                with self._news:
                    for part, records in batches.items():
                        self._records[topics[part.topic]] += [_plain(record) for record in records]
                    self._news.notify_all()
        finally:
            await consumer.stop()


def _plain(record: Any) -> dict[str, Any]:
    """A record as a dict; what is no JSON object has only the fields with an underscore."""
    try:
        made = json.loads(record.value or b"{}")
    except (ValueError, RecursionError):
        made = {}
    return (made if isinstance(made, dict) else {}) | {
        "_headers": dict(record.headers), "_raw": record.value, "_key": (record.key or b"").decode(errors="replace"),
        "_partition": record.partition, "_offset": record.offset,
    }  # fmt: skip


def make_desk(broker: Broker, folder: Path) -> Desk:
    """Topics, a secret and a policy of its own, and the people and agents of most tests."""
    kafka = broker.node.settings(topic_prefix=f"t{uuid.uuid4().hex[:8]}.", partitions=PARTITIONS)
    asyncio.run(provision.create_topics(kafka))
    (folder / "policies").mkdir()
    (folder / "policies" / "shop.yaml").write_text(POLICY)
    (folder / "policies" / "lab.yaml").write_text(SHADOW_POLICY)
    made = Desk(kafka, create_secret(folder / "secret.json"), folder)
    made.enrol()
    return made


def make_replica(desk: Desk, name: str = "enforcer", *, policies: Path | None = None, **more: str) -> Enforcer:
    """A replica that is not started yet."""
    environment = environment_of(desk.kafka) | {
        "BANKSMAN_SECRET_FILE": str(desk.folder / "secret.json"),
        "BANKSMAN_POLICIES": str(policies or desk.policies),
        "BANKSMAN_ENFORCER_PORT": "0",
        # So that a loaded machine loses no lease and no record; tests of leases and deadlines have their own.
        "BANKSMAN_LEASE_S": "10",
        "BANKSMAN_RECORD_DEADLINE_S": "10",
        **more,
    }
    return Enforcer(desk.folder, environment, name)


@pytest.fixture
def desk(broker: Broker, tmp_path: Path) -> Desk:
    return make_desk(broker, tmp_path)


@pytest.fixture
def make_enforcer(desk: Desk) -> Iterator[Callable[..., Enforcer]]:
    """Starts replicas; whatever is left of them ends with the test."""
    made: list[Enforcer] = []

    def make(*, ready: bool = True, start: bool = True, policies: Path | None = None, **more: str) -> Enforcer:
        one = make_replica(desk, f"enforcer-{len(made)}", policies=policies, **more)
        made.append(one)
        if start:
            one.start(ready=ready)
        return one

    yield make
    for one in made:
        one.end()


@pytest.fixture
def enforcer(make_enforcer: Callable[..., Enforcer]) -> Enforcer:
    return make_enforcer()


@dataclass
class Shop:
    """What the tests of a module share when they do not disturb each other: a desk, one replica, all that is recorded."""

    desk: Desk
    enforcer: Enforcer
    tape: Tape

    def __call__(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        return self.enforcer(method, path, body, **more)

    def decide(self, body: Any = None, *, agent: str = "buyer", **changes: Any) -> Answer:
        """A question of `agent`; `changes` to PUSH, None takes a field out."""
        asked = PUSH | changes if body is None else body
        if isinstance(asked, dict):
            asked = {name: value for name, value in asked.items() if value is not None}
        return self("POST", "/v1/decide", asked, token=self.desk.agents[agent].token)

    def record(self, answer: Answer) -> dict[str, Any]:
        """The record of a decision, which is there when its answer is."""
        assert answer.status == 200, answer.raw
        (found,) = self.tape.wait(Topic.DECISIONS, lambda record: record["id"] == answer.body["id"])
        return found


def open_shop(desk: Desk, **more: str) -> Iterator[Shop]:
    """For module-scoped fixtures: `yield from open_shop(make_desk(…), BANKSMAN_…="…")`.

    The agents may ask as much as they like, unless told otherwise: a test does not pay for the heavy question before it.
    """
    replica = make_replica(desk, "enforcer", policies=None, **({"BANKSMAN_AGENT_RATE": "1000000"} | more))
    with Tape(desk.kafka) as tape:
        try:
            replica.start()
            yield Shop(desk, replica, tape)
        finally:
            replica.end()


@pytest.fixture(scope="module")
def shop(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    yield from open_shop(make_desk(broker, tmp_path_factory.mktemp("shop")))


def raw_request(base: str, data: bytes, *, seconds: float = 5) -> bytes:
    """Bytes to the socket -> the first answer that comes back, whole; less when the connection is closed before."""
    host, port = base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(data)
        got = b""
        while chunk := connection.recv(65536):
            got += chunk
            head, ended, body = got.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            if ended and (length is None or len(body) >= int(length[1])):
                break
        return got


@contextmanager
def two_replicas(broker: Broker, folder: Path, **more: str) -> Iterator[tuple[Desk, Tape, Enforcer, Enforcer]]:
    """Of one desk, both ready, all that is recorded read along."""
    desk = make_desk(broker, folder)
    one, two = (make_replica(desk, name, policies=None, **more) for name in ("one", "two"))
    with Tape(desk.kafka) as tape:
        try:
            one.start()
            two.start()
            yield desk, tape, one, two
        finally:
            one.end()
            two.end()


@pytest.fixture(scope="module")
def office(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """Two replicas that a gateway asks by AuthZEN, and people who approve."""
    from tests.enforcer.access_desk import open_office

    with open_office(broker, tmp_path_factory.mktemp("office")) as made:
        yield made


@pytest.fixture
def document() -> str:
    """One that no other test asks about."""
    return f"d-{uuid7()[-12:]}"
