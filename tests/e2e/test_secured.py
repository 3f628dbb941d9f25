"""All of it over locked wires: a Kafka user a service, SCRAM over TLS, an ACL for everything, HTTPS. Each may do its work, and
nothing else.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupAuthorizationFailedError, TopicAlreadyExistsError, TopicAuthorizationFailedError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from tests.e2e.outside import until
from tests.processors.working import POLICY
from tests.secured import AGENT, Secured, a_secured_broker, papers
from tests.servers import ClickHouseServer, child_environment

from banksman import acls, bus, provision, settings
from banksman.errors import BadDeployment, BrokerAway, InvalidSetting
from banksman.local import children, kafka
from banksman.producers import Emitter, KafkaTransport, NotAllowed, govern
from banksman.producers.transport import NotLetIn
from banksman.signing import create_secret, new_credential
from banksman.store.client import Store

BANKSMAN = str(Path(sys.executable).with_name("banksman"))
SERVICES = ("enforcer", "archiver", "processors", "notifier", "console")


@dataclass
class Plant:
    """The services, each with a Kafka user of its own."""

    secured: Secured
    clickhouse: settings.ClickHouse
    folder: Path
    ports: dict[str, int]
    running: dict[str, subprocess.Popen[bytes]]

    def environment(self, user: str) -> dict[str, str]:
        """Everything that a process of ours may want to know, with the Kafka user of one."""
        known: list[Any] = [self.secured.settings(user), self.clickhouse]
        more = {
            "secret_file": self.folder / "secret.json", "policies": self.folder / "policies",
            "tls_cert_file": self.folder / "server.crt", "tls_key_file": self.folder / "server.key",
            "ca_file": self.secured.papers.ca, "operator_token_file": self.folder / "admin.token",
            "url": f"https://127.0.0.1:{self.ports['enforcer']}", "enforcer_port": self.ports["enforcer"],
            "console_url": f"https://127.0.0.1:{self.ports['console']}", "console_port": self.ports["console"],
            "worker_session_s": 2, "lease_s": 10, "record_deadline_s": 10, "spool": self.folder / "spool",
        }  # fmt: skip
        values = {name: value for one in known for name, value in msgspec.structs.asdict(one).items()} | more
        return child_environment() | {f"BANKSMAN_{name.upper()}": str(value) for name, value in values.items()}

    def run(self, user: str, *words: str, **more: str) -> str:
        """A command of ours, which must succeed -> what it printed."""
        environment = self.environment(user) | more
        ran = subprocess.run(
            [BANKSMAN, *words],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, f"{words}: {ran.stdout}{ran.stderr}"
        return ran.stdout

    def start(self, *services: str) -> None:
        for one in services:
            log = self.folder / f"{one}.log"
            environment = self.environment(one) | {"PYTHONUNBUFFERED": "1"}
            self.running[one] = children.spawn([BANKSMAN, "serve", one], log=log, env=environment)

    def said(self, service: str) -> str:
        assert self.running[service].poll() is None, children.last_lines(self.folder / f"{service}.log", 30)
        return (self.folder / f"{service}.log").read_text()

    def has_said(self, service: str, what: str) -> bool:
        return what in self.said(service)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with a_secured_broker(tmp_path_factory.mktemp("secured")) as made:
        yield made


@pytest.fixture(scope="module")
def plant(
    secured: Secured, clickhouse_server: ClickHouseServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Plant]:
    """Made as docs/security.md says: the ACLs by whoever may make them, all else by the users that they are for."""
    folder = tmp_path_factory.mktemp("plant")
    clickhouse = settings.ClickHouse(
        clickhouse=f"http://127.0.0.1:{clickhouse_server.port}", clickhouse_database="secured",
        clickhouse_password=clickhouse_server.passwords["admin"],
        clickhouse_reader_password=clickhouse_server.passwords["analyst"],
    )  # fmt: skip
    made = Plant(secured, clickhouse, folder, {name: kafka.free_port() for name in ("enforcer", "console")}, {})
    (folder / "policies").mkdir()
    (folder / "policies" / "shop.yaml").write_text(POLICY)
    for one, target in zip(
        secured.papers.issue("127.0.0.1", called="server"), ("server.crt", "server.key"), strict=True
    ):
        (folder / target).write_bytes(Path(one).read_bytes())
    root = secured.broker.node.settings(topic_prefix=secured.prefix)
    as_root = {f"BANKSMAN_{name.upper()}": str(value) for name, value in msgspec.structs.asdict(root).items()}
    users = [word for kind in (*SERVICES, "agents", "migrate", "bootstrap") for word in ("--user", f"{kind}={kind}")]
    try:
        made.run("migrate", "migrate", "acls", *users, "--apply", **as_root)
        made.run("migrate", "migrate")
        made.run(
            "bootstrap",
            "operators",
            "add",
            "root",
            "--role",
            "admin",
            "--bootstrap",
            "--new-secret",
            "--out",
            "admin.token",
        )
        made.start(*SERVICES)
        for one in ("archiver", "processors", "notifier"):
            until(partial(made.has_said, one, f"{one} ready"), f"{one} is ready")
        until(lambda: "is connected to" in made.said("enforcer"), "the enforcer is connected")
        yield made
    finally:
        for process in made.running.values():
            process.kill()
        for process in made.running.values():
            process.wait()


def test_the_whole_path_is_open(plant: Plant) -> None:
    """Settings, enforcer, Kafka, archiver, ClickHouse, console, processors, notifier: a probe goes all the way."""
    until(lambda: "listening https://" in plant.said("console"), "the console listens")
    steps: list[dict[str, Any]] = []

    def open_() -> bool:
        ran = subprocess.run(
            [BANKSMAN, "doctor", "--json"], env=plant.environment("nobody"), cwd=plant.folder, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        steps[:] = json.loads(ran.stdout)["steps"]
        return ran.returncode == 0

    try:
        until(open_, "the path is open", 40)
    except AssertionError:
        raise AssertionError([one for one in steps if one["state"] != "ok"]) from None
    assert {one["name"] for one in steps} >= {"probe", "archived", "counted", "told"}


# ── an agent that writes straight into Kafka, and everybody behind it ──


@govern(service="git", action="pull")
def pull() -> str:
    return "pulled"


def test_what_an_agent_does_is_decided_counted_told_and_stopped(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant.run("nobody", "agents", "add", "buyer", "--project", "shop", "--owner", "ann", "--out", "buyer.credential")
    for name, value in plant.environment("agents").items():
        if name.startswith("BANKSMAN_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("BANKSMAN_TRANSPORT", "kafka")
    monkeypatch.setenv("BANKSMAN_TOKEN_FILE", str(plant.folder / "buyer.credential"))
    with Emitter.from_settings() as emitter, emitter.session("s1") as session:
        until(lambda: _pulls() == "pulled", "who spends is counted")
        session.model_call("m", input_tokens=5000)
        assert emitter.flush(30)
        until(lambda: "exhausted" in _pulls(), "the budget is spent, and that is known")
        plant.run("nobody", "kill", "s1", "-m", "enough")
        assert "killed" in _pulls()
        assert emitter.flush(30)
        assert emitter.stats().state == "sending"
    store = Store(plant.clickhouse, reader=True)
    try:
        wanted = {
            ("actions", "model.call"), ("decisions", "decision"), ("control", "session.killed"), ("limits", "budget"),
            ("alerts", "finding"), ("alerts", "alert"),
        }  # fmt: skip

        def stored() -> bool:
            rows = store.query(
                "SELECT DISTINCT topic, kind FROM events WHERE verified AND (agent = 'buyer' OR kind = 'alert')"
            )
            return wanted <= {(row["topic"], row["kind"]) for row in rows}

        until(stored, "all of it is in ClickHouse")
        assert store.query("SELECT count() AS n FROM events WHERE NOT verified") == [{"n": 0}]
    finally:
        store.close()


def _pulls() -> str:
    try:
        return pull()
    except NotAllowed as no:
        return str(no)


# ── what each may, and may not: a table of its own, which the code's must agree with ──

TOPICS = ("actions", "decisions", "control", "limits", "alerts", "dead")
MAY = {  # w: write, r: read
    "agents":     "w  -  -  -  -  -",
    "enforcer":   "w  w  rw r  w  -",
    "archiver":   "r  r  r  r  rw w",
    "processors": "r  r  rw w  w  -",
    "notifier":   "-  -  r  -  rw -",
    "console":    "-  -  r  -  -  -",
    "migrate":    "-  -  -  -  -  -",
    "bootstrap":  "-  -  rw -  -  -",
}  # fmt: skip
PREFIX = "table."


@pytest.fixture(scope="module")
def table(secured: Secured) -> Secured:
    """Topics that nobody works on, each with a record in it, and the ACLs for them."""
    root = secured.broker.node.settings(topic_prefix=PREFIX, partitions=1)

    async def make() -> None:
        await provision.create_topics(root)
        await acls.make(root, acls.principals_of((kind, kind) for kind in acls.KINDS))
        producer = bus.producer(root)
        await producer.start()
        for topic in TOPICS:
            await producer.send_and_wait(PREFIX + topic, b"x", key=b"k", partition=0)
        await producer.stop()

    asyncio.run(make())
    return secured


async def one_answer(admin: AIOKafkaAdminClient, request: Any) -> Any:
    return await admin._client.send(admin._client.get_random_node(), request)


async def written(admin: AIOKafkaAdminClient, topic: str) -> int:
    """-> the broker's error code."""
    batch = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1000)
    batch.append(0, timestamp=None, key=b"k", value=b"x", headers=[])
    request = ProduceRequest(None, -1, 5000, [(topic, [(0, bytes(batch.build()))])])
    return int((await one_answer(admin, request)).topics[0][1][0][1])


async def read(admin: AIOKafkaAdminClient, topic: str) -> int:
    answer = await one_answer(admin, FetchRequest(10, 1, 1000, 0, [(topic, [(0, 0, 1000)])]))
    return int(answer.topics[0][1][0][1])


async def committed(admin: AIOKafkaAdminClient, group: str) -> int:
    """Taking part in a group."""
    answer = await one_answer(admin, OffsetCommitRequest(group, -1, "", -1, [(PREFIX + "alerts", [(0, 0, "")])]))
    return int(answer.topics[0][1][0][1])


async def made(admin: AIOKafkaAdminClient, topic: str) -> int:
    answer = await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)], validate_only=True)
    return int(answer.topic_errors[0][1])


@pytest.mark.parametrize("kind", MAY)
async def test_each_may_do_its_work_and_nothing_else(table: Secured, kind: str) -> None:
    assert set(MAY) == set(acls.KINDS)
    admin = await provision.connect_admin(table.settings(kind, topic_prefix=PREFIX))
    denied = {TopicAuthorizationFailedError.errno: False, 0: True}
    try:
        found = []
        for topic in TOPICS:
            may_read, may_write = (
                denied[await read(admin, PREFIX + topic)],
                denied[await written(admin, PREFIX + topic)],
            )
            found.append(("r" * may_read + "w" * may_write) or "-")
        assert dict(zip(TOPICS, found, strict=True)) == dict(zip(TOPICS, MAY[kind].split(), strict=True))

        own = kind if kind in acls.GROUPS else None
        for group in acls.GROUPS:
            code = await committed(admin, PREFIX + group)
            assert (code != GroupAuthorizationFailedError.errno) == (group == own), (group, code)

        refused = TopicAuthorizationFailedError.errno
        assert await made(admin, PREFIX + "actions") == (
            TopicAlreadyExistsError.errno if kind == "migrate" else refused
        )
        assert await made(admin, PREFIX + "another") == refused
        own_table = await made(admin, PREFIX + "processors-budgets-changelog")
        assert own_table == (0 if kind == "processors" else refused)
        assert (await admin.delete_topics([PREFIX + "actions"])).topic_error_codes[0][1] == refused
        with pytest.raises(BadDeployment, match="may not make ACLs"):
            await acls.make(table.settings(kind, topic_prefix=PREFIX), {"console": ["User:agents"]})
    finally:
        await admin.close()


async def test_an_agent_without_an_acl_is_told_what_is_missing(table: Secured) -> None:
    credential, _ = new_credential(create_secret(table.papers.folder / "secret.json"), "shop", "buyer")
    transport = KafkaTransport(table.settings(AGENT, topic_prefix=PREFIX), credential)
    event = b'{"id": "1", "kind": "note", "time": "t", "source": "s"}'
    try:
        with pytest.raises(NotLetIn, match=r"Kafka: agent may not write to table\.actions: .*AuthorizationFailed"):
            await asyncio.to_thread(transport.send, [event], lambda _: None)
    finally:
        await asyncio.to_thread(transport.close)


def test_the_commands_make_the_same_acls(table: Secured) -> None:
    """What is printed for kafka-acls.sh, taken apart as that does: every operation on every resource of a line."""
    kafka_settings = table.settings("migrate", topic_prefix=PREFIX)
    said = set()
    for line in acls.commands(kafka_settings, {kind: [f"User:{kind}"] for kind in acls.KINDS}):
        words = shlex.split(line)
        given: dict[str, list[str]] = {}
        for option, value in itertools.pairwise(words):
            given.setdefault(option, []).append(value)
        [principal] = given["--allow-principal"]
        prefixed = given.get("--resource-pattern-type") == ["prefixed"]
        said |= {
            (principal, resource, name, operation, prefixed)
            for resource in ("topic", "group") for name in given.get(f"--{resource}", []) for operation in given["--operation"]
        }  # fmt: skip
    assert said == {
        (f"User:{kind}", acl.resource, acl.name, acl.operation, acl.prefixed)
        for kind in acls.KINDS for acl in acls.needed(kind, kafka_settings)
    }  # fmt: skip


# ── what is wrong is said, with the name of the setting ──


def test_who_is_not_let_in_is_told_which_setting_is_wrong(secured: Secured, tmp_path: Path) -> None:
    good, mutual, other = secured.settings("enforcer"), secured.mutual("enforcer"), papers(tmp_path / "other")
    foreign = dict(zip(("kafka_cert_file", "kafka_key_file"), other.issue("x.example", called="x"), strict=True))
    locked = secured.broker.node.settings()
    cases: list[tuple[settings.Kafka, dict[str, Any], type[Exception], str]] = [
        (good, {"kafka_password": "x"}, InvalidSetting, "BANKSMAN_KAFKA_USERNAME or BANKSMAN_KAFKA_PASSWORD: .*'enforcer'"),
        (good, {"kafka_username": "x"}, InvalidSetting, "BANKSMAN_KAFKA_USERNAME or BANKSMAN_KAFKA_PASSWORD: .*'x'"),
        (good, {"kafka_sasl_mechanism": "PLAIN"}, InvalidSetting, "BANKSMAN_KAFKA_SASL_MECHANISM: .*PLAIN is not offered"),
        (good, {"kafka_ca_file": other.ca}, InvalidSetting, "BANKSMAN_KAFKA_CA_FILE: .*not signed by .*other/ca.pem"),
        (good, {"kafka_ca_file": ""}, InvalidSetting, "BANKSMAN_KAFKA_CA_FILE: .*authorities of this system"),
        (good, {"kafka": good.kafka.replace("127.0.0.1", "localhost")}, InvalidSetting, "BANKSMAN_KAFKA: .*for another host"),
        (good, {"kafka_security": "PLAINTEXT"}, InvalidSetting, "BANKSMAN_KAFKA_SECURITY: .*it speaks TLS"),
        (good, {"kafka_security": "SASL_PLAINTEXT"}, InvalidSetting, "BANKSMAN_KAFKA_SECURITY: .*it speaks TLS"),
        (good, {"kafka_security": "SSL"}, BrokerAway, "another BANKSMAN_KAFKA_SECURITY than SSL"),
        (good, {"kafka": locked.kafka}, BrokerAway, "another BANKSMAN_KAFKA_SECURITY than SASL_SSL"),
        (locked, {"kafka_security": "PLAINTEXT"}, BrokerAway, "another BANKSMAN_KAFKA_SECURITY than PLAINTEXT"),
        (mutual, {"kafka_cert_file": ""}, InvalidSetting, "BANKSMAN_KAFKA_CERT_FILE: .*wants a certificate of ours"),
        (mutual, foreign, InvalidSetting, "BANKSMAN_KAFKA_CERT_FILE: .*refuses our certificate"),
        (mutual, {"kafka_security": "SASL_SSL"}, InvalidSetting, "BANKSMAN_KAFKA_SECURITY: .*wants no SASL"),
        (good, {"kafka": "127.0.0.1:1"}, BrokerAway, "no broker at 127.0.0.1:1: .*ConnectionRefused"),
    ]  # fmt: skip
    for base, changes, error, said in cases:
        with pytest.raises(error, match=said):
            asyncio.run(provision.missing_topics(msgspec.structs.replace(base, **changes), patience=0))


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_with_a_wrong_password_says_so(plant: Plant, service: str) -> None:
    """It ends with 2 and one line; the console, which answers what it can without Kafka, says it and goes on."""
    wrong = {"BANKSMAN_KAFKA_PASSWORD": "x", "BANKSMAN_ENFORCER_PORT": "0", "BANKSMAN_CONSOLE_PORT": "0"}
    environment = plant.environment(service) | wrong | {"PYTHONUNBUFFERED": "1"}
    log = plant.folder / f"wrong-{service}.log"
    process = children.spawn([BANKSMAN, "serve", service], log=log, env=environment)
    named = "BANKSMAN_KAFKA_USERNAME or BANKSMAN_KAFKA_PASSWORD"
    try:
        until(lambda: named in log.read_text(), f"{service} names the setting", 30)
        if service != "console":
            assert process.wait(20) == 2, children.last_lines(log)
    finally:
        process.kill()
        process.wait()


async def test_a_client_certificate_is_a_user_too(secured: Secured) -> None:
    """Mutual TLS: the broker knows who it is by the certificate's name, and what it may by its ACLs."""
    kafka_settings = msgspec.structs.replace(secured.mutual("certified"), topic_prefix="mutual.")
    root = secured.broker.node.settings(topic_prefix="mutual.", partitions=1)
    await provision.create_topics(root)
    credential, _ = new_credential(create_secret(secured.papers.folder / "secret.json"), "shop", "buyer")
    transport = KafkaTransport(kafka_settings, credential)
    event = b'{"id": "1", "kind": "note", "time": "t", "source": "s"}'
    try:
        with pytest.raises(NotLetIn, match=r"may not write to mutual\.actions"):
            await asyncio.to_thread(transport.send, [event], lambda _: None)
        await acls.make(root, {"agents": ["User:certified"]})
        await asyncio.to_thread(transport.send, [event], lambda _: None)
    finally:
        await asyncio.to_thread(transport.close)
    assert await bus.end_of(root, "mutual.actions") == 1


def test_a_worker_comes_with_a_client_certificate(plant: Plant) -> None:
    """Faust's own clients, too: its tables are topics, which it makes, reads and writes by itself."""
    kafka_settings = msgspec.structs.replace(plant.secured.mutual("worker"), topic_prefix="worker.")
    root = plant.secured.broker.node.settings(topic_prefix="worker.", partitions=1)
    asyncio.run(provision.create_topics(root))
    asyncio.run(acls.make(root, {"processors": ["User:worker"]}))
    own = {f"BANKSMAN_{name.upper()}": str(value) for name, value in msgspec.structs.asdict(kafka_settings).items()}
    log = plant.folder / "worker.log"
    environment = plant.environment("processors") | own | {"PYTHONUNBUFFERED": "1"}
    process = children.spawn([BANKSMAN, "serve", "processors"], log=log, env=environment)
    try:
        until(lambda: process.poll() is not None or "processors ready" in log.read_text(), "it is ready")
        assert process.poll() is None, children.last_lines(log)
    finally:
        process.kill()
        process.wait()
