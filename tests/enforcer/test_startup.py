"""Starting and stopping: what an enforcer refuses to start on, what it waits for, how it ends."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import NewTopic
from tests.enforcer.conftest import Desk, Enforcer, Tape, make_desk, make_replica, until
from tests.enforcer.inside import eventually, inside
from tests.servers import Broker, child_environment

from banksman import provision, settings
from banksman.local import children
from banksman.signing import create_secret
from banksman.topics import SPECS, Topic


@pytest.fixture(scope="module")
def crooked(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """-> a function: some topics made wrongly, the rest as they should be -> a desk's environment."""
    folder = tmp_path_factory.mktemp("crooked")

    async def make(number: int, wrong: dict[Topic, tuple[int, dict[str, str]]]) -> Any:
        kafka = broker.node.settings(topic_prefix=f"crooked{os.getpid()}-{number}.", partitions=2)
        admin = await provision.connect_admin(kafka)
        try:
            await admin.create_topics(
                [
                    NewTopic(
                        kafka.topic(topic), partitions, 1, topic_configs=SPECS[topic].configs(replication=1) | config
                    )
                    for topic, (partitions, config) in wrong.items()
                ]
            )
        finally:
            await admin.close()
        await provision.create_topics(kafka)
        return kafka

    def start(number: int, wrong: dict[Topic, tuple[int, dict[str, str]]]) -> Enforcer:
        kafka = asyncio.run(make(number, wrong))
        (folder / "policies").mkdir(exist_ok=True)
        desk = Desk(kafka, None, folder)  # type: ignore[arg-type]
        return make_replica(desk, f"enforcer-{number}")

    create_secret(folder / "secret.json")
    return start


@pytest.mark.parametrize(
    ("number", "wrong", "said"),
    [
        (0, {Topic.CONTROL: (3, {})}, "control has 3 partitions, must have 1"),
        (1, {Topic.CONTROL: (1, {"cleanup.policy": "delete"})}, "control: cleanup.policy is delete, must be compact"),
        (
            2,
            {Topic.CONTROL: (1, {"cleanup.policy": "compact,delete"})},
            "control: cleanup.policy is compact,delete, must be compact",
        ),
        (
            3,
            {Topic.DECISIONS: (2, {"message.timestamp.type": "CreateTime"})},
            "decisions: message.timestamp.type is CreateTime, must be LogAppendTime",
        ),
        (
            4,
            {Topic.CONTROL: (1, {"unclean.leader.election.enable": "true"})},
            "control: unclean.leader.election.enable is true, must be false",
        ),
        (5, {Topic.DECISIONS: (5, {})}, "actions and decisions must have the same number of partitions"),
        (
            6,
            {Topic.CONTROL: (1, {"max.message.bytes": "1000000"})},
            "control: max.message.bytes is 1000000, must be 8388608",
        ),
    ],
)
def test_topics_that_the_promises_cannot_rest_on(
    crooked: Any, number: int, wrong: dict[Topic, tuple[int, dict[str, str]]], said: str
) -> None:
    replica = crooked(number, wrong)
    replica.start(ready=False)
    try:
        assert replica.process.wait(30) == 4
    finally:
        replica.end()
    log = replica.log.read_text()
    assert said in log
    assert "Kafka is not configured as banksman needs it" in log
    assert "Traceback" not in log


def ended(replica: Enforcer) -> tuple[int, str]:
    """Start one that must end by itself -> (its exit code, what it said)."""
    replica.process = children.spawn(
        [sys.executable, "-m", "banksman.enforcer"],
        log=replica.log,
        env=child_environment() | replica.environment,
    )
    try:
        return replica.process.wait(30), replica.log.read_text()
    finally:
        replica.end()


def test_settings_that_cannot_be_used(broker: Broker, tmp_path: Path) -> None:
    desk = Desk(broker.node.settings(topic_prefix="unused."), None, tmp_path)  # type: ignore[arg-type]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        wrong: list[tuple[dict[str, str], int, str]] = [
            ({"BANKSMAN_SECRET_FILE": str(tmp_path / "none")}, 2, "BANKSMAN_SECRET_FILE: cannot read"),
            ({"BANKSMAN_LEASE_S": "0"}, 2, "BANKSMAN_LEASE_S"),
            ({"BANKSMAN_QUEUE": "many"}, 2, "BANKSMAN_QUEUE"),
            ({"BANKSMAN_ENFORCER_HOST": "0.0.0.0"}, 2, "BANKSMAN_ENFORCER_HOST: 0.0.0.0 is beyond loopback"),
            ({"BANKSMAN_ENFORCER_HOST": "nowhere.invalid"}, 2, "BANKSMAN_ENFORCER_HOST"),
            ({"BANKSMAN_TLS_CERT_FILE": "x"}, 2, "certificate and key go together"),
            ({"BANKSMAN_ENFORCER_PORT": port}, 4, f"cannot listen on 127.0.0.1:{port}"),
        ]
        create_secret(tmp_path / "secret.json")
        for number, (changes, code, said) in enumerate(wrong):
            got, log = ended(make_replica(desk, f"enforcer-{number}", policies=None, **changes))
            assert (got, said in log, "Traceback" in log) == (code, True, False), log


def test_topics_that_are_not_there_yet(broker: Broker, tmp_path: Path) -> None:
    """Clear words and exit 4: `migrate` makes them, whoever supervises this process starts it again."""
    create_secret(tmp_path / "secret.json")
    desk = Desk(broker.node.settings(topic_prefix=f"none{os.getpid()}."), None, tmp_path)  # type: ignore[arg-type]
    code, log = ended(make_replica(desk))
    assert code == 4
    assert "control is not there (`banksman migrate` makes it)" in log


def test_kafka_that_is_not_there_yet(tmp_path: Path) -> None:
    """It waits, says so once, answers what can be answered, and can be stopped."""
    create_secret(tmp_path / "secret.json")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and nobody listens
        kafka = settings.Kafka(kafka=f"127.0.0.1:{nobody.getsockname()[1]}")
        replica = make_replica(Desk(kafka, None, tmp_path))  # type: ignore[arg-type]
        replica.start(ready=False)
        try:
            assert replica("GET", "/healthz").status == 200
            ready = replica("GET", "/readyz")
            assert (ready.status, ready.body["detail"]) == (503, "Kafka has not been reached yet")
            for path in ("/v1/decide", "/v1/events", "/v1/explain", "/v1/agents"):
                answer = replica("POST", path, {}, token="bma_0000000000000000_" + "x" * 43)
                assert answer.status == 503, answer.raw
            assert replica("POST", "/v1/decide", {}).status == 401
            assert b"banksman_enforcer_lease_seconds 0.0" in replica("GET", "/metrics").raw
            until(lambda: "waiting for Kafka" in replica.log.read_text())
            assert replica.stop() == 0
        finally:
            replica.end()
    log = replica.log.read_text()
    assert log.count("waiting for Kafka") == 1
    assert "Traceback" not in log


def test_stopping_ends_open_requests_first_and_says_goodbye(broker: Broker, tmp_path: Path) -> None:
    desk = make_desk(broker, tmp_path)
    replica = make_replica(desk)
    with Tape(desk.kafka) as tape:
        replica.start()
        try:
            token = desk.agents["buyer"].token
            host, port = replica.base.removeprefix("http://").split(":")
            body = b'{"session":"s","service":"git","action":"pull"}'
            with socket.create_connection((host, int(port)), timeout=20) as client:
                head = (
                    f"POST /v1/decide HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                )
                client.sendall(head.encode() + body[:10])
                until(lambda: replica("GET", "/healthz").status == 200)  # what was sent before was met before
                replica.process.terminate()  # type: ignore[union-attr]
                until(lambda: not listening(host, int(port)))
                client.sendall(body[10:])
                answer = client.recv(65536)
                assert answer.startswith(b"HTTP/1.1 200"), answer
                assert b"connection: close" in answer
            assert replica.process.wait(15) == 0  # type: ignore[union-attr]
            (last,) = tape.wait(Topic.CONTROL, lambda one: bool(one.get("kind") == "replica" and one.get("ended")))
            assert last["_key"] == f"replica/{last['replica']}"
        finally:
            replica.end()
    assert "Traceback" not in replica.log.read_text()


def listening(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_reader_or_producer_that_dies_ends_the_process(broker: Broker, tmp_path: Path) -> None:
    """Nobody answers from what it once knew: with the log gone, the process ends and a fresh one must read it anew."""
    desk = make_desk(broker, tmp_path)
    replica = make_replica(desk, policies=None, BANKSMAN_RECORD_DEADLINE_S="2", BANKSMAN_LEASE_S="1.5")
    replica.start()
    try:

        async def remove() -> None:
            admin = await provision.connect_admin(desk.kafka)
            await admin.delete_topics([desk.kafka.topic(Topic.CONTROL)])
            await admin.close()

        asyncio.run(remove())
        until(lambda: replica("GET", "/readyz").status == 503 if replica.process.poll() is None else True, 30)  # type: ignore[union-attr]
        asyncio.run(provision.create_topics(desk.kafka))
        assert replica.process.wait(60) == 1  # type: ignore[union-attr]
    finally:
        replica.end()


async def test_a_producer_that_is_dead_ends_the_replica(desk: Desk) -> None:
    """aiokafka gives a producer up for good on some errors; nothing but a new process can record again."""

    async def lose_it() -> None:
        async with inside(desk) as made:
            made.replica.records._producers[0]._sender.sender_task.cancel()
            await eventually(lambda: not made.replica.lease.valid)

    with pytest.raises(RuntimeError, match="Kafka producer ended"):
        await lose_it()
