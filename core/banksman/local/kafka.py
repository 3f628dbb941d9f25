"""A real Apache Kafka broker in KRaft mode as a child process: its files, its format, its command line.

Both listeners ask for SASL/PLAIN, the controller's as much as the broker's; everybody but the super user `service` needs
an ACL for everything. One node acknowledges to the page cache: it survives kill -9 of everything, not a power cut.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import random
import re
import shutil
import socket
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from banksman.errors import BadDeployment
from banksman.local import children, jars
from banksman.provision import connect_admin
from banksman.settings import Kafka

SUPER_USER = "service"

LOG4J = """\
rootLogger.level = WARN
rootLogger.appenderRef.file.ref = file
rootLogger.appenderRef.out.ref = out
rootLogger.appenderRef.out.level = ERROR
logger.kafka.name = org.apache.kafka
logger.kafka.level = INFO
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = {folder}/server.log
appender.file.filePattern = {folder}/server.log.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{{ISO8601}} %-5p %c{{1}} %m%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 16MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{{ISO8601}} %-5p %m %throwable{{short.message}}%n
"""


@dataclass(frozen=True)
class Node:
    """One node of an embedded cluster. `users`: name -> password; `service` is the super user.

    `voters`: (node id, controller port) of all nodes of a cluster of several; empty for one node alone.
    `listeners`: more of them for clients, name -> (port, protocol); what each asks for (certificates, mechanisms) is `extra`.
    `scram`: users with SCRAM-SHA-512, made when the folder is formatted; the process list shows their passwords meanwhile.
    """

    folder: Path
    java: Path
    jars: Path
    port: int
    users: dict[str, str] = field(repr=False)
    heap: str = "512m"
    node_id: int = 1
    voters: tuple[tuple[int, int], ...] = ()
    listeners: dict[str, tuple[int, str]] = field(default_factory=dict)
    scram: dict[str, str] = field(default_factory=dict, repr=False)
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """What the process prints: its errors, in one line each. The whole log is `server.log` beside it (4 x 16 MB)."""
        return self.folder / "kafka.out"

    def argv(self) -> list[str]:
        """The command line of the broker. It holds no secret: these are in the properties file (0600)."""
        return self._java(
            f"-Xmx{self.heap}", "-XX:+UseSerialGC",
            "-XX:+ExitOnOutOfMemoryError",  # a broker that lost a thread to it would go on half dead; its restart takes 3 s
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            "kafka.Kafka", str(self.folder / "server.properties"),
        )  # fmt: skip

    def settings(self, user: str = SUPER_USER, **more: object) -> Kafka:
        """Our own Kafka settings for a client of this node."""
        return Kafka(
            kafka=f"127.0.0.1:{self.port}",
            kafka_security="SASL_PLAINTEXT",
            kafka_username=user,
            kafka_password=self.users[user],
            **more,  # type: ignore[arg-type]  # checked by the struct itself
        )

    async def ready(self) -> None:
        """Return when the broker takes a client of ours in."""
        admin = await connect_admin(self.settings(), patience=children.READY_WITHIN)
        await admin.close()

    def prepare(self) -> None:
        """Everything before the process: folders, configuration, the format of a new data folder (about 1 s).

        The clients' port may differ from last time. The controller's, of a node alone, is any free one: its quorum is
        itself, and it writes the new address into its log (measured, after a stop and after a kill).

        BadDeployment: the port is taken (by whom), another broker works in the folder, the format failed.
        """
        if "," in str(self.folder):
            raise BadDeployment(f"{self.folder}: Kafka cannot keep its data under a path with a comma")
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        data = self.folder / "data"
        _refuse_locked(data)
        controller = dict(self.voters).get(self.node_id) or free_port()
        for port in (self.port, controller, *(port for port, _ in self.listeners.values())):
            _refuse_taken(port)
        self._write("log4j2.properties", [line.format(folder=_escaped(self.folder)) for line in LOG4J.splitlines()])
        if not (data / "meta.properties").exists():
            self._format(controller, data)
        if not (data / "__cluster_metadata-0").is_dir():  # the broker would wait for it for ever, at full speed
            raise BadDeployment(f"{data} is damaged: Kafka's own records (__cluster_metadata-0) are gone")
        self._write_properties("server.properties", controller, data)

    def _java(self, *arguments: str) -> list[str]:
        command = [str(self.java), "-cp", jars.class_path(self.jars), *arguments]
        if all(argument.isascii() for argument in command):
            return command
        return ["env", "LC_ALL=C.UTF-8", *command]  # in the C locale Java cannot open a file named with an umlaut

    def _properties(self, controller: int, data: Path) -> dict[str, object]:
        voters = self.voters or ((self.node_id, controller),)
        copies, in_sync = (3, 2) if len(voters) >= 3 else (1, 1)
        login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        for name, password in self.users.items():
            if not re.fullmatch(r"[\w.-]+", name, re.ASCII) or not re.fullmatch(r"[!#-\[\]-~]+", password):
                raise BadDeployment(f"user {name!r}: its name or password has characters that Kafka's JAAS cannot hold")
        known = " ".join(f'user_{name}="{password}"' for name, password in self.users.items())
        jaas = f'{login} username="{SUPER_USER}" password="{self.users[SUPER_USER]}" {known};'
        # A broker that was killed may register again only when its old session has run out, after 9 s by default: that is
        # the price of every restart after a crash. With several nodes it is also what a short pause must not exceed.
        session, beat = (1000, 200) if copies == 1 else (2000, 500)
        listeners = {
            "CLIENT": (self.port, "SASL_PLAINTEXT"), "CONTROLLER": (controller, "SASL_PLAINTEXT"), **self.listeners,
        }  # fmt: skip
        addresses = ",".join(f"{name}://127.0.0.1:{port}" for name, (port, _) in listeners.items())
        return {
            "process.roles": "broker,controller",
            "node.id": self.node_id,
            "controller.quorum.bootstrap.servers": ",".join(f"127.0.0.1:{port}" for _, port in voters),
            "listeners": addresses,
            "advertised.listeners": addresses,
            "listener.security.protocol.map": ",".join(f"{name}:{how}" for name, (_, how) in listeners.items()),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "CLIENT",
            "sasl.enabled.mechanisms": "PLAIN",
            "sasl.mechanism.inter.broker.protocol": "PLAIN",
            "sasl.mechanism.controller.protocol": "PLAIN",
            "listener.name.client.plain.sasl.jaas.config": jaas,
            "listener.name.controller.plain.sasl.jaas.config": jaas,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:{SUPER_USER}",
            "log.dirs": _escaped(data),
            "default.replication.factor": copies,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": copies,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": in_sync,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": in_sync,
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": 0,  # 3 s otherwise
            "group.min.session.timeout.ms": 1000,  # 6 s otherwise
            "broker.session.timeout.ms": session,
            "broker.heartbeat.interval.ms": beat,
            "log.cleaner.backoff.ms": 1000,
            **(
                {"controller.quorum.election.timeout.ms": 1000, "controller.quorum.fetch.timeout.ms": 2000}
                if copies > 1
                else {}
            ),
            **self.extra,
        }

    def _write_properties(self, name: str, controller: int, data: Path) -> None:
        self._write(name, [f"{key}={value}" for key, value in self._properties(controller, data).items()])

    def _write(self, name: str, lines: list[str]) -> None:
        descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write("\n".join(lines) + "\n")

    def _format(self, controller: int, data: Path) -> None:
        """Format beside the data folder, then rename: a format that was cut off leaves nothing half done."""
        made = data.with_name("data.new")
        shutil.rmtree(made, ignore_errors=True)
        if data.exists() and any(data.iterdir()):
            raise BadDeployment(f"{data} is not empty, but no Kafka formatted it: move it away")
        self._write_properties("format.properties", controller, made)
        command = self._java(
            "-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool", "format", "-c", f"{self.folder}/format.properties"
        )
        if self.voters:
            known = json.loads((self.folder / "cluster.json").read_text())
            command += ["--initial-controllers", known["voters"], "-t", known["id"]]
        else:
            command += ["--standalone", "-t", kafka_uuid()]
        for name, password in self.scram.items():
            command += ["--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, umask=0o077)  # noqa: S603
        if ran.returncode:
            raise BadDeployment(f"Kafka cannot format {data}: {_cause(ran.stdout + ran.stderr)}")
        (self.folder / "format.properties").unlink()
        made.replace(data)


def cluster(folder: Path, ports: list[int], **common: object) -> list[Node]:
    """The nodes of a cluster of three or more on this machine, their identities written down once."""
    file = folder / "cluster.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        voters = [(number, free_port()) for number in range(1, len(ports) + 1)]
        text = ",".join(f"{number}@127.0.0.1:{port}:{kafka_uuid()}" for number, port in voters)
        file.write_text(json.dumps({"id": kafka_uuid(), "voters": text, "ports": voters}))
    known = json.loads(file.read_text())
    nodes = []
    for number, port in enumerate(ports, 1):
        own = folder / f"node{number}"
        own.mkdir(exist_ok=True)
        (own / "cluster.json").write_text(file.read_text())
        chosen = tuple((int(n), int(p)) for n, p in known["ports"])
        nodes.append(Node(own, port=port, node_id=number, voters=chosen, **common))  # type: ignore[arg-type]
    return nodes


def kafka_uuid() -> str:
    """A random UUID as Kafka writes them. One that begins with "-" would look like an option to its tools."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text


def free_port() -> int:
    """A port of loopback that nobody listened on a moment ago.

    Below the range that the system takes for outgoing connections: a client that tries again and again to reach a broker
    that is being restarted could otherwise be given that very port as its own.
    """
    range_of_system = Path("/proc/sys/net/ipv4/ip_local_port_range")
    below = int(range_of_system.read_text().split()[0]) if range_of_system.exists() else 32768
    for _ in range(100):
        port = random.randrange(15000, below) if below > 16000 else 0
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise BadDeployment(f"no free port between 15000 and {below}")


def _escaped(path: Path) -> str:
    r"""A path as Java's properties files want it: ISO 8859-1, everything else as \uXXXX, backslashes twice."""
    text = str(path).replace("\\", "\\\\").encode("utf-16-be", "surrogatepass")
    units = [int.from_bytes(text[at : at + 2], "big") for at in range(0, len(text), 2)]
    return "".join(chr(unit) if 32 <= unit < 127 else f"\\u{unit:04x}" for unit in units)


def _refuse_locked(data: Path) -> None:
    lock = data / ".lock"
    if not lock.exists():
        return
    with open(lock, "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # Java's FileLock is a POSIX one
            fcntl.lockf(file, fcntl.LOCK_UN)
        except BlockingIOError:
            raise BadDeployment(f"another Kafka broker works in {data}") from None


def _refuse_taken(port: int) -> None:
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            holder = children.port_holder(port)
            raise BadDeployment(f"port {port} is taken{f' by {holder}' if holder else ''}") from None


def _cause(text: str) -> str:
    """The sentence that matters in the output of a Java tool."""
    if "No space left on device" in text:
        return "the disk is full"
    found = re.search(r"(?:Exception(?: in thread[^:]*)?|Error): (.+)", text)
    return found[1] if found else " ".join(text.split())[-400:]
