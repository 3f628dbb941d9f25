"""All of it as separate processes on servers of their own: each can be killed, frozen and started again, one by one."""

from __future__ import annotations

import asyncio
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from tests.e2e import checker, load
from tests.e2e.outside import all_stored, answers, ask, decided_since, until
from tests.proxy import Proxy
from tests.servers import child_environment, freeze

from banksman import provision, settings
from banksman.cli.bootstrap import ensure_admin
from banksman.local import children, jars, java, kafka
from banksman.local.chdb.users import write_users
from banksman.signing import create_secret, new_token
from banksman.store.migrate import migrate

AGENTS = ("ann", "bob")
REPLICAS = ("enforcer-1", "enforcer-2")
POLICY = {"faults.yaml": load.policy_of(AGENTS)}


@dataclass(frozen=True)
class Shape:
    """How many there are of each. Three brokers keep three copies of everything.

    `gates`: clients reach enforcers, everybody Kafka, ClickHouse and Slack through proxies, which can be cut and slowed.
    `slack`: a port where a Slack is spoken.
    """

    brokers: int = 1
    enforcers: int = 2
    archivers: int = 1
    workers: int = 0
    slack: int = 0
    partitions: int = 2
    gates: bool = False

    def names(self, what: str) -> tuple[str, ...]:
        """`what`: a field in the plural. One alone has no number."""
        many, one = getattr(self, what), what.removesuffix("s").replace("broker", "kafka")
        return (one,) if (many, one != "enforcer") == (1, True) else tuple(f"{one}-{n}" for n in range(1, many + 1))


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
    """All of it. `begin` before anything else, `end` at last."""

    folder: Path
    shape: Shape
    kafka: settings.Kafka
    clickhouse: settings.ClickHouse
    ports: dict[str, int]
    env: dict[str, str] = field(repr=False)
    """Settings of every service."""
    programs: dict[str, Program]
    gates: dict[str, Proxy]
    """Whose clients come through one: brokers, enforcers, clickhouse, slack."""
    admin: str = field(default="", repr=False)
    tokens: dict[str, str] = field(default_factory=dict, repr=False)
    """Agent -> token, of the load's agents."""
    credentials: dict[str, str] = field(default_factory=dict, repr=False)
    """Agent -> the whole credential, of whoever was enrolled."""

    def begin(self) -> None:
        """Everything runs, the agents of the load are enrolled."""
        for gate in self.gates.values():
            gate.__enter__()
        self.start(*self.shape.names("brokers"), "clickhouse")
        migrate(self.clickhouse)
        asyncio.run(provision.create_topics(self.kafka))
        self.admin, _, _ = new_token("bmo")
        secret = create_secret(self.folder / "secret.json")
        asyncio.run(ensure_admin(self.kafka, secret, self.admin, source="test"))
        self.start(*self.services())
        self.tokens = {agent: self.enrol(agent, load.PROJECT) for agent in AGENTS}

    def services(self) -> tuple[str, ...]:
        """The names of what is ours."""
        return tuple(name for name in self.programs if name not in (*self.shape.names("brokers"), "clickhouse"))

    def enrol(self, agent: str, project: str) -> str:
        """A new agent -> its token, the part of its credential that goes over the wire."""
        answer = until(partial(self._enrolled, agent, project), f"{agent} is enrolled")
        self.credentials[agent] = answer["token"]
        return str(answer["token"]).partition(".")[0]

    def _enrolled(self, agent: str, project: str) -> Any:
        """The answer; None where it is to be asked again (a 503 in the first second of a replica's life)."""
        try:
            return self._post("/v1/agents", {"agent": agent, "project": project, "owner": "ann@acme.example"})
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 503:
                raise
            return None

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
        gone = [self.process(name) for name in names]
        for process in gone:
            process.kill()
        for process in gone:
            process.wait()

    def freeze(self, name: str) -> float:
        """SIGSTOP -> the moment at which it stood still, seconds since 1970."""
        freeze(self.process(name).pid)
        return time.time()

    def thaw(self, name: str) -> float:
        """SIGCONT -> the moment just before it."""
        moment = time.time()
        self.process(name).send_signal(signal.SIGCONT)
        return moment

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """What runs."""
        process = self.programs[name].process
        assert process is not None
        return process

    def replicas(self) -> dict[str, tuple[str, int]]:
        """What a load wants to know."""
        names = self.shape.names("enforcers")
        return {n: ("127.0.0.1", self.gates[n].port if n in self.gates else self.ports[n]) for n in names}

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return ask(f"http://127.0.0.1:{self.ports[REPLICAS[0]]}{path}", self.admin, body)

    def reading(self) -> checker.ClickHouse:
        """As the analyst."""
        user, password = self.clickhouse.reader()
        return checker.ClickHouse(self.clickhouse.clickhouse, user, password, self.clickhouse.clickhouse_database)

    def settled(self) -> dict[tuple[str, int], int]:
        """Return when no replica has anything left to write and the archiver has stored all of it -> the end offsets."""
        for name in self.shape.names("enforcers"):
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
        for gate in self.gates.values():
            gate.__exit__()


def make(folder: Path, shape: Shape | None = None, policies: Mapping[str, str] = POLICY, **more: str) -> Stack:
    """Nothing runs yet. `policies`: files in the folder that all enforcers read. `more`: settings of every service."""
    shape = shape or Shape()
    brokers, replicas = shape.names("brokers"), shape.names("enforcers")
    ports = {name: kafka.free_port() for name in (*brokers, "clickhouse", *replicas)} | {"slack": shape.slack}
    gated = [name for name in ports if name != "slack" or shape.slack] if shape.gates else []
    gates = {name: Proxy(ports[name], kafka.free_port()) for name in gated}
    doors = {name: gates[name].port if name in gates else port for name, port in ports.items()}
    nodes = _nodes(folder / "kafka", [(ports[name], doors[name]) for name in brokers])
    passwords = {"admin": secrets.token_urlsafe(16), "analyst": secrets.token_urlsafe(16)}
    write_users(folder / "users.json", {"admin": (passwords["admin"], False), "analyst": (passwords["analyst"], True)})
    clickhouse = settings.ClickHouse(
        clickhouse=f"http://127.0.0.1:{ports['clickhouse']}", clickhouse_password=passwords["admin"],
        clickhouse_reader_password=passwords["analyst"],
    )  # fmt: skip
    kafka_settings = msgspec.structs.replace(
        nodes[0].settings(topic_prefix="faults.", partitions=shape.partitions, replication=len(nodes)),
        kafka=",".join(f"127.0.0.1:{doors[name]}" for name in brokers),
    )
    (folder / "policies").mkdir()
    for name, text in policies.items():
        (folder / "policies" / name).write_text(text)
    env = {
        "BANKSMAN_KAFKA": kafka_settings.kafka, "BANKSMAN_KAFKA_SECURITY": kafka_settings.kafka_security,
        "BANKSMAN_KAFKA_USERNAME": kafka_settings.kafka_username, "BANKSMAN_KAFKA_PASSWORD": kafka_settings.kafka_password,
        "BANKSMAN_TOPIC_PREFIX": kafka_settings.topic_prefix, "BANKSMAN_CLICKHOUSE": f"http://127.0.0.1:{doors['clickhouse']}",
        "BANKSMAN_CLICKHOUSE_PASSWORD": clickhouse.clickhouse_password, "BANKSMAN_SECRET_FILE": str(folder / "secret.json"),
        "BANKSMAN_POLICIES": str(folder / "policies"),
    } | more  # fmt: skip
    programs = {
        name: Program(node.argv(), {}, node.log, partial(_takes_clients, node))
        for name, node in zip(brokers, nodes, strict=True)
    }
    chdb = ["--path", str(folder / "chdb"), "--port", str(ports["clickhouse"]), "--users", str(folder / "users.json")]
    ping = partial(answers, f"{clickhouse.clickhouse}/ping")
    programs["clickhouse"] = Program(
        [sys.executable, "-m", "banksman.local.chdb", *chdb], {}, folder / "chdb.log", ping
    )

    def service(name: str, module: str, **own: str) -> None:
        port = ports.get(name) or kafka.free_port()
        path = "readyz" if name in replicas else "healthz"
        programs[name] = Program(
            [sys.executable, "-m", f"banksman.{module}"],
            env | {"BANKSMAN_ENFORCER_PORT" if name in replicas else "BANKSMAN_HEALTH_PORT": str(port)} | own,
            folder / f"{name}.log",
            partial(answers, f"http://127.0.0.1:{port}/{path}"),
        )

    for name in shape.names("archivers"):
        service(name, "processors.archiver")
    for name in replicas:
        # The first would wait long for an acknowledgement: what stops its late answers is the lease alone.
        service(name, "enforcer", **({"BANKSMAN_RECORD_DEADLINE_S": "30"} if name == replicas[0] else {}))
    for name in shape.names("workers"):
        service(name, "processors.worker", BANKSMAN_WORKER=name, BANKSMAN_WORKER_SESSION_S="2")
    if shape.slack:
        service("notifier", "processors.notifier", BANKSMAN_SLACK_URL=f"http://127.0.0.1:{doors['slack']}/api/")
    return Stack(folder, shape, kafka_settings, clickhouse, ports, env, programs, gates)


def _nodes(folder: Path, ports: list[tuple[int, int]]) -> list[kafka.Node]:
    """Prepared brokers. `ports`: where each listens, and where it says that it does."""
    common: dict[str, Any] = {
        "java": java.find_java(), "jars": jars.fetch(jars.cache_folder()), "heap": "256m",
        "users": {kafka.SUPER_USER: secrets.token_hex(8)},
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    nodes = []
    for (_, door), node in zip(ports, kafka.cluster(folder, [port for port, _ in ports], **common), strict=True):
        said = f"CLIENT://127.0.0.1:{door},CONTROLLER://127.0.0.1:{dict(node.voters)[node.node_id]}"
        nodes.append(replace(node, extra={"advertised.listeners": said}))
        nodes[-1].prepare()
    return nodes


def _takes_clients(node: kafka.Node) -> bool:
    asyncio.run(node.ready())
    return True
