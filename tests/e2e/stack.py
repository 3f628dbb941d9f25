"""All of it as separate processes on servers of their own: each can be killed, frozen and started again, one by one."""

from __future__ import annotations

import asyncio
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from tests.e2e import checker, load
from tests.e2e.outside import all_stored, answers, ask, decided_since, until
from tests.servers import child_environment, freeze

from banksman import provision, settings
from banksman.cli.bootstrap import ensure_admin
from banksman.local import children, jars, java, kafka
from banksman.local.chdb.users import write_users
from banksman.signing import create_secret, new_token
from banksman.store.migrate import migrate

AGENTS = ("ann", "bob")
REPLICAS = ("enforcer-1", "enforcer-2")


@dataclass
class Program:
    """One process of the stack: what runs, and how one sees that it is ready."""

    argv: list[str]
    env: dict[str, str]
    log: Path
    ready: Callable[[], bool]
    process: subprocess.Popen[bytes] | None = None


@dataclass
class Stack:
    """Brokers, ClickHouse, two enforcers, an archiver."""

    folder: Path
    kafka: settings.Kafka
    clickhouse: settings.ClickHouse
    ports: dict[str, int]
    programs: dict[str, Program]
    brokers: tuple[str, ...]
    admin: str = field(default="", repr=False)
    tokens: dict[str, str] = field(default_factory=dict, repr=False)

    def begin(self) -> None:
        """Everything runs, the agents of the load are enrolled."""
        self.start(*self.brokers, "clickhouse")
        migrate(self.clickhouse)
        asyncio.run(provision.create_topics(self.kafka))
        self.admin, _, _ = new_token("bmo")
        secret = create_secret(self.folder / "secret.json")
        asyncio.run(ensure_admin(self.kafka, secret, self.admin, source="test"))
        self.start(*REPLICAS, "archiver")
        self.tokens = load.enrol(self._post, AGENTS)

    def start(self, *names: str) -> None:
        """Start them and return when all are ready."""
        for name in names:
            program = self.programs[name]
            program.process = children.spawn(program.argv, log=program.log, env=child_environment() | program.env)
        for name in names:
            until(
                partial(self._is_ready, name),
                f"{name} is ready: {children.last_lines(self.programs[name].log)}",
            )

    def _is_ready(self, name: str) -> bool:
        program = self.programs[name]
        assert program.process is not None
        ended = program.process.poll()
        assert ended is None, f"{name} ended with {ended}: {children.last_lines(program.log)}"
        return program.ready()

    def kill(self, *names: str) -> None:
        """SIGKILL, all at the same moment."""
        gone = [self._process(name) for name in names]
        for process in gone:
            process.kill()
        for process in gone:
            process.wait()

    def freeze(self, name: str) -> float:
        """SIGSTOP -> the moment at which it stood still, seconds since 1970."""
        freeze(self._process(name).pid)
        return time.time()

    def thaw(self, name: str) -> float:
        """SIGCONT -> the moment just before it."""
        moment = time.time()
        self._process(name).send_signal(signal.SIGCONT)
        return moment

    def _process(self, name: str) -> subprocess.Popen[bytes]:
        process = self.programs[name].process
        assert process is not None
        return process

    def replicas(self) -> dict[str, tuple[str, int]]:
        """What a load wants to know."""
        return {name: ("127.0.0.1", self.ports[name]) for name in REPLICAS}

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return ask(f"http://127.0.0.1:{self.ports[REPLICAS[0]]}{path}", self.admin, body)

    def reading(self) -> checker.ClickHouse:
        """As the analyst."""
        user, password = self.clickhouse.reader()
        return checker.ClickHouse(self.clickhouse.clickhouse, user, password, self.clickhouse.clickhouse_database)

    def settled(self) -> dict[tuple[str, int], int]:
        """Return when no replica has anything left to write and the archiver has stored all of it -> the end offsets."""
        for name in REPLICAS:
            until(partial(self._delivered, name), f"{name} has delivered its voids")
        return all_stored(self.kafka, self.reading())

    def strand(self, name: str) -> float:
        """Freeze a replica between a decision's record and its answer -> the moment at which it stood still.

        The broker stands still first, so that the record waits for it; then the replica, so that the acknowledgement of the
        broker, which goes on, finds nobody. Again, where what was under way was no decision: one behind it was not sent yet.
        """
        source = f"enforcer#{self._status(name)['replica']}"
        for _ in range(20):
            self.freeze("kafka")
            until(lambda: self._status(name)["queue"]["waiting"], f"a decision waits in {name}")
            moment = self.freeze(name)
            if asyncio.run(decided_since(self.kafka, source, self.thaw("kafka"))):
                return moment
            self.thaw(name)
            until(self.programs[name].ready, f"{name} is ready again")
        raise AssertionError(f"no decision of {name} was under way in twenty attempts")

    def _status(self, name: str) -> Any:
        return ask(f"http://127.0.0.1:{self.ports[name]}/v1/status", self.admin)

    def _delivered(self, name: str) -> bool:
        return bool(self._status(name)["undelivered"] == 0)

    def end(self) -> None:
        """Whatever is left ends with the test."""
        for program in self.programs.values():
            if program.process is not None and program.process.poll() is None:
                program.process.kill()
                program.process.wait()


def make(folder: Path, brokers: tuple[str, ...] = ("kafka",)) -> Stack:
    """`brokers`: one, or three, which keep three copies of everything."""
    ports = {name: kafka.free_port() for name in (*brokers, "clickhouse", *REPLICAS)}
    common: dict[str, Any] = {
        "java": java.find_java(), "jars": jars.fetch(jars.cache_folder()), "heap": "256m",
        "users": {kafka.SUPER_USER: secrets.token_hex(8)},
    }  # fmt: skip
    if len(brokers) == 1:
        nodes = [kafka.Node(folder / "kafka", port=ports[brokers[0]], **common)]
    else:
        nodes = kafka.cluster(folder / "kafka", [ports[name] for name in brokers], **common)
    for node in nodes:
        node.prepare()
    passwords = {"admin": secrets.token_urlsafe(16), "analyst": secrets.token_urlsafe(16)}
    write_users(folder / "users.json", {"admin": (passwords["admin"], False), "analyst": (passwords["analyst"], True)})
    clickhouse = settings.ClickHouse(
        clickhouse=f"http://127.0.0.1:{ports['clickhouse']}", clickhouse_password=passwords["admin"],
        clickhouse_reader_password=passwords["analyst"],
    )  # fmt: skip
    kafka_settings = msgspec.structs.replace(
        nodes[0].settings(topic_prefix="faults.", partitions=2, replication=len(nodes)),
        kafka=",".join(f"127.0.0.1:{ports[name]}" for name in brokers),
    )
    (folder / "policies").mkdir()
    (folder / "policies" / "faults.yaml").write_text(load.policy_of(AGENTS))
    env = {
        "BANKSMAN_KAFKA": kafka_settings.kafka, "BANKSMAN_KAFKA_SECURITY": kafka_settings.kafka_security,
        "BANKSMAN_KAFKA_USERNAME": kafka_settings.kafka_username, "BANKSMAN_KAFKA_PASSWORD": kafka_settings.kafka_password,
        "BANKSMAN_TOPIC_PREFIX": kafka_settings.topic_prefix, "BANKSMAN_CLICKHOUSE": clickhouse.clickhouse,
        "BANKSMAN_CLICKHOUSE_PASSWORD": clickhouse.clickhouse_password, "BANKSMAN_SECRET_FILE": str(folder / "secret.json"),
        "BANKSMAN_POLICIES": str(folder / "policies"),
    }  # fmt: skip
    chdb = ["--path", str(folder / "chdb"), "--port", str(ports["clickhouse"]), "--users", str(folder / "users.json")]
    ours = [sys.executable, "-m"]
    programs = {
        **{
            name: Program(node.argv(), {}, node.log, partial(_takes_clients, node))
            for name, node in zip(brokers, nodes, strict=True)
        },
        "clickhouse": Program(
            [*ours, "banksman.local.chdb", *chdb],
            {},
            folder / "chdb.log",
            lambda: answers(f"{clickhouse.clickhouse}/ping"),
        ),
        "archiver": Program([*ours, "banksman.processors.archiver"], env, folder / "archiver.log", lambda: True),
    }
    for name in REPLICAS:
        # The first would wait long for an acknowledgement: what stops its late answers is the lease alone.
        patience = {"BANKSMAN_RECORD_DEADLINE_S": "30"} if name == REPLICAS[0] else {}
        own = env | {"BANKSMAN_ENFORCER_PORT": str(ports[name])} | patience
        ready = partial(answers, f"http://127.0.0.1:{ports[name]}/readyz")
        programs[name] = Program([*ours, "banksman.enforcer"], own, folder / f"{name}.log", ready)
    return Stack(folder, kafka_settings, clickhouse, ports, programs, brokers)


def _takes_clients(node: kafka.Node) -> bool:
    asyncio.run(node.ready())
    return True
