"""The embedded broker: who gets in, what it says when it cannot start, what survives. Real ones, all of them."""

from __future__ import annotations

import asyncio
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import AuthenticationFailedError, KafkaConnectionError, TopicAuthorizationFailedError
from tests.local.conftest import MakeNode
from tests.servers import Broker

from banksman import provision, settings
from banksman.errors import BadDeployment
from banksman.local import kafka

RunNode = Callable[[kafka.Node], Broker]


def controller_port(node: kafka.Node) -> int:
    listeners = next(
        line for line in (node.folder / "server.properties").read_text().splitlines() if line.startswith("listeners=")
    )
    return int(listeners.rpartition(":")[2])


async def write(where: settings.Kafka, topic: str, value: bytes) -> None:
    producer = AIOKafkaProducer(**where.client(), acks="all")
    await producer.start()
    try:
        await producer.send_and_wait(topic, value, partition=0)
    finally:
        await producer.stop()


async def read(where: settings.Kafka, topic: str, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(topic, **where.client(), auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


async def make_topic(where: settings.Kafka, name: str) -> None:
    admin = await provision.connect_admin(where)
    try:
        await admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()


# --- who gets in


async def test_only_those_with_a_password_get_in(broker: Broker) -> None:
    port, good = broker.node.port, broker.node.settings()
    wrong = settings.Kafka(
        kafka=good.kafka, kafka_security="SASL_PLAINTEXT", kafka_username="service", kafka_password="wrong"
    )
    with pytest.raises((AuthenticationFailedError, KafkaConnectionError)):
        await AIOKafkaAdminClient(**wrong.client()).start()
    nobody = AIOKafkaAdminClient(**settings.Kafka(kafka=f"127.0.0.1:{port}").client() | {"request_timeout_ms": 1000})
    with pytest.raises(KafkaConnectionError):
        await nobody.start()
    await nobody.close()


async def test_the_controller_asks_for_a_password_too(broker: Broker) -> None:
    """It would take a broker of anybody's into its cluster otherwise. A request without SASL ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", controller_port(broker.node))
    describe_quorum = bytes.fromhex("0037 0000 00000001 0001 61 00".replace(" ", ""))
    writer.write(len(describe_quorum).to_bytes(4, "big") + describe_quorum)
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()


async def test_another_user_may_do_nothing_without_an_acl(broker: Broker) -> None:
    topic = "locked"
    await make_topic(broker.node.settings(), topic)
    with pytest.raises(TopicAuthorizationFailedError):
        await write(broker.node.settings("agent"), topic, b"x")
    await write(broker.node.settings(), topic, b"x")
    assert await read(broker.node.settings(), topic, 1) == [b"x"]


def test_passwords_are_in_files_of_its_user_alone(broker: Broker) -> None:
    node = broker.node
    assert not [word for word in node.argv() for password in node.users.values() if password in word]
    assert not [password for password in node.users.values() if password in repr(node)]
    holding = [
        file
        for file in node.folder.iterdir()
        if file.is_file() and any(password in file.read_text("latin-1") for password in node.users.values())
    ]
    assert [file.name for file in holding] == ["server.properties"]
    assert stat.S_IMODE(holding[0].stat().st_mode) == 0o600


# --- what survives


async def test_another_port_and_an_odd_path_and_kill_9_lose_nothing(make_node: MakeNode, tmp_path: Path) -> None:
    """A port may change from start to start; a path may have spaces, `=`, `:` and an umlaut."""
    folder = tmp_path / "ä folder: with = all #of that"
    brokers: list[Broker] = []

    async def run(node: kafka.Node) -> Broker:
        from tests.servers import child_environment

        from banksman.local import children

        node.prepare()
        environment = child_environment() | {"LC_ALL": "C"}
        brokers.append(Broker(node, children.spawn(node.argv(), log=node.log, env=environment)))
        await asyncio.wait_for(node.ready(), 60)
        return brokers[-1]

    try:
        first = await run(make_node(folder=folder))
        await make_topic(first.node.settings(), "kept")
        await write(first.node.settings(), "kept", b"before the kill")
        first.kill()
        second = await run(make_node(folder=folder))
        assert second.node.port != first.node.port
        await write(second.node.settings(), "kept", b"after it")
        assert await read(second.node.settings(), "kept", 2) == [b"before the kill", b"after it"]
        with pytest.raises(BadDeployment, match="another Kafka broker works in"):
            make_node(folder=folder).prepare()
    finally:
        for broker in brokers:
            broker.kill()


# --- what it says when it cannot start


def test_a_taken_port_is_named_with_who_has_it(make_node: MakeNode) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadDeployment, match=rf"port {port} is taken by pid \d+ \("):
            make_node(port=port).prepare()


def test_a_path_that_kafka_cannot_keep_data_under_is_refused(make_node: MakeNode, tmp_path: Path) -> None:
    with pytest.raises(BadDeployment, match="a path with a comma"):
        make_node(folder=tmp_path / "a,b").prepare()


@pytest.mark.parametrize("password", ['quo"te', "back\\slash", "new\nline", "", "ümlaut"])
def test_a_password_that_jaas_cannot_hold_is_refused(make_node: MakeNode, password: str) -> None:
    with pytest.raises(BadDeployment, match="'agent'"):
        make_node(users={"service": "fine", "agent": password}).prepare()


def test_a_folder_that_is_not_kafkas_is_left_alone(make_node: MakeNode, tmp_path: Path) -> None:
    somebodys = tmp_path / "kafka" / "data" / "thesis.tex"
    somebodys.parent.mkdir(parents=True)
    somebodys.touch()
    with pytest.raises(BadDeployment, match="is not empty, but no Kafka formatted it"):
        make_node().prepare()
    assert somebodys.exists()


def test_a_damaged_folder_is_called_that(make_node: MakeNode) -> None:
    node = make_node()
    node.prepare()
    assert stat.S_IMODE((node.folder / "data").stat().st_mode) == 0o700
    shutil.rmtree(node.folder / "data" / "__cluster_metadata-0")
    with pytest.raises(BadDeployment, match=r"is damaged: Kafka's own records \(__cluster_metadata-0\) are gone"):
        node.prepare()


def test_a_format_that_was_cut_off_is_begun_again(make_node: MakeNode) -> None:
    node = make_node()
    (node.folder / "data.new").mkdir(parents=True)
    (node.folder / "data.new" / "meta.properties").write_text("half of")
    node.prepare()
    assert "cluster.id" in (node.folder / "data" / "meta.properties").read_text()
    assert not (node.folder / "data.new").exists()
    assert not (node.folder / "format.properties").exists()  # it holds the passwords
