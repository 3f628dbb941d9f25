"""Everything that `banksman up` runs, started in order and stopped in reverse.

The two servers first (together), then topics, tables and the first admin, then the services. A service gets addresses and
the paths of password files by its environment, the same settings as in production: none knows that its servers are
embedded. No secret stands in an argument, an environment or a log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from banksman import provision, settings
from banksman.cli import bootstrap, continuity, folder
from banksman.cli.readiness import answering, saying
from banksman.errors import BadDeployment
from banksman.local import children, jars, java
from banksman.local.chdb.users import write_users
from banksman.local.children import Child, Supervisor
from banksman.local.kafka import SUPER_USER, Node
from banksman.signing import create_secret

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from typing import IO

    from banksman.cli.folder import Folder
    from banksman.cli.steps import Steps

NEVER_INHERITED = (
    "BANKSMAN_TOKEN", "BANKSMAN_TOKEN_FILE", "BANKSMAN_OPERATOR_TOKEN", "BANKSMAN_OPERATOR_TOKEN_FILE",
)  # fmt: skip


@dataclass(frozen=True)
class Ports:
    """Where everything listens on loopback."""

    kafka: int = 9092
    clickhouse: int = 8123
    enforcer: int = 7700
    console: int = 7701

    def named(self) -> dict[str, int]:
        """Name of the flag and setting -> port."""
        return {"kafka": self.kafka, "clickhouse": self.clickhouse, "enforcer": self.enforcer, "console": self.console}


class Stack:
    """One `up`. `start`, then `stop`; whatever happens in between, `stop` leaves nothing running."""

    def __init__(
        self, where: Folder, ports: Ports, policies: Path, steps: Steps, report: Callable[[str, str], None]
    ) -> None:
        self.folder, self.ports, self.policies = where, ports, policies.absolute()
        self._steps, self._report = steps, report
        self._local = settings.load(settings.Local)
        self._claim: IO[str] | None = None
        self._supervisor: Supervisor | None = None
        self.kafka = settings.Kafka()
        self.clickhouse = settings.ClickHouse()
        self.enrolled: str | None = None

    def claim(self) -> None:
        """Take the folder, and end what a killed `up` may have left. BadDeployment: in use, or a port is taken."""
        with folder.disk_errors(self.folder.root):
            self._claim = children.claim_folder(self.folder.root)
            self.folder.logs.mkdir(exist_ok=True, mode=0o700)
            self._supervisor = Supervisor(self.folder.run, self._report)
        for name in children.reclaim(self.folder.run):
            self._report(name, "was left running by an `up` that was killed; ended")
        refuse_taken(self.ports)

    async def start(self) -> None:
        """Return when everything answers. BadDeployment: one clear line about what does not, and the end of its log."""
        with folder.disk_errors(self.folder.root):
            try:
                await self._start()
            except KafkaError as error:
                raise BadDeployment(
                    f"Kafka does not do what it is asked for: {error}; see {self.folder.kafka / 'server.log'}"
                ) from None

    async def _start(self) -> None:
        self._secrets()
        await all_of(self._start_kafka(), self._start_clickhouse())
        await all_of(self._topics(), self._tables())
        await continuity.check(self.kafka, self.clickhouse, self.folder.root)
        await self._admin()
        with self._steps.step("services"):
            await all_of(*(self.supervisor.start(child) for child in self._services()))

    async def stop(self) -> None:
        """Stop all in reverse order and let go of the folder."""
        if self._supervisor is not None:
            await self._supervisor.stop()
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def hurry(self) -> None:
        """Make `stop` wait for nobody."""
        self.supervisor.hurry()

    @property
    def supervisor(self) -> Supervisor:
        """Who holds the children. Only after `claim`."""
        assert self._supervisor is not None
        return self._supervisor

    def addresses(self) -> dict[str, str]:
        """Name of a setting -> what a command needs to reach this `up`."""
        return {
            "BANKSMAN_URL": f"http://127.0.0.1:{self.ports.enforcer}",
            "BANKSMAN_CONSOLE_URL": f"http://127.0.0.1:{self.ports.console}",
            "BANKSMAN_OPERATOR_TOKEN_FILE": str(self.folder.admin_token),
        }

    def _secrets(self) -> None:
        here = self.folder
        self._secret = create_secret(here.secret)
        self._admin_token = folder.operator_token(here.admin_token)
        self.kafka = settings.Kafka(
            kafka=f"127.0.0.1:{self.ports.kafka}",
            kafka_security="SASL_PLAINTEXT",
            kafka_username=SUPER_USER,
            kafka_password=folder.password(here.kafka_password),
            topic_prefix=settings.load(settings.Kafka).topic_prefix,
            partitions=settings.load(settings.Kafka).partitions,
        )
        given = settings.load(settings.ClickHouse)
        self.clickhouse = settings.ClickHouse(
            clickhouse=f"http://127.0.0.1:{self.ports.clickhouse}",
            clickhouse_database=given.clickhouse_database,
            clickhouse_user=given.clickhouse_user,
            clickhouse_password=folder.password(here.clickhouse_password),
            clickhouse_reader=given.clickhouse_reader,
            clickhouse_reader_password=folder.password(here.reader_password),
            retention_days=given.retention_days,
        )
        writer, reader = self.clickhouse.writer(), self.clickhouse.reader()
        users = {writer[0]: (writer[1], False), reader[0]: (reader[1], True)}
        write_users(here.root / "clickhouse-users.json", users)

    async def _start_kafka(self) -> None:
        with self._steps.step("Kafka's jars") as tell:
            cache = jars.cache_folder(self._local.cache)
            found, machine = await asyncio.gather(
                jars.fetch_apart(
                    cache,
                    mirror=self._local.maven_mirror,
                    progress=lambda count, total: tell(done=count, total=total, result=f"{total} files in {cache}"),
                ),
                asyncio.to_thread(java.find_java, self._local.java),
            )
        with self._steps.step("Kafka") as tell:
            node = Node(
                self.folder.kafka,
                java=machine,
                jars=found,
                port=self.ports.kafka,
                users={SUPER_USER: self.kafka.kafka_password},
            )
            await asyncio.to_thread(node.prepare)
            broker = Child("kafka", node.argv(), node.log, node.ready, self._environment(), node.folder / "server.log")
            await self.supervisor.start(broker)
            tell(result=f"{jars.KAFKA} on 127.0.0.1:{self.ports.kafka}, {machine}")

    async def _start_clickhouse(self) -> None:
        with self._steps.step("ClickHouse") as tell:
            port = self.ports.clickhouse
            argv = [
                *_python("banksman.local.chdb"), "--path", str(self.folder.clickhouse), "--port", str(port),
                "--users", str(self.folder.root / "clickhouse-users.json"),
            ]  # fmt: skip
            ready = answering("127.0.0.1", port, "/ping")
            await self.supervisor.start(
                Child("clickhouse", argv, self.folder.logs / "clickhouse.log", ready, self._environment())
            )
            tell(result=f"chDB on 127.0.0.1:{port}")

    async def _topics(self) -> None:
        with self._steps.step("topics") as tell:
            made = await provision.create_topics(self.kafka)
            tell(result=f"{len(made)} made" if made else "as they were")

    async def _tables(self) -> None:
        from banksman.store.migrate import migrate  # imports a ClickHouse client: 0.5 s that Kafka's start hides

        with self._steps.step("tables") as tell:
            ran = await asyncio.to_thread(migrate, self.clickhouse)
            tell(result=", ".join(one.name for one in ran) or "as they were")

    async def _admin(self) -> None:
        with self._steps.step("admin") as tell:
            self.enrolled = await bootstrap.ensure_admin(
                self.kafka, self._secret, self._admin_token, source=f"up#{os.getpid()}"
            )
            tell(result=f"{self.enrolled} enrolled" if self.enrolled else "as before")

    def _services(self) -> list[Child]:
        env, logs, tls = self._environment(), self.folder.logs, bool(settings.load(settings.Listener).tls_cert_file)
        enforcer = settings.load(settings.Enforcer).enforcer_host, self.ports.enforcer
        console = settings.load(settings.Console).console_host, self.ports.console

        def listens(name: str, module: str, where: tuple[str, int]) -> Child:
            return Child(name, _python(module), logs / f"{name}.log", answering(*where, "/readyz", tls=tls), env)

        def works(name: str, module: str, **more: str) -> Child:
            log = logs / f"{name}.log"
            return Child(name, _python(module), log, saying(log, f"{name} ready".encode()), env | more)

        return [
            listens("enforcer", "banksman.enforcer", enforcer),
            works("archiver", "banksman.processors.archiver"),
            works("processors", "banksman.processors.worker", BANKSMAN_WORKER="up", BANKSMAN_WORKER_SESSION_S="2"),
            works("notifier", "banksman.processors.notifier"),
            listens("console", "banksman.console", console),
        ]

    def _environment(self) -> dict[str, str]:
        """What every child gets: our own environment without anybody's token, then addresses and paths."""
        here = self.folder
        inherited = {name: value for name, value in os.environ.items() if name not in NEVER_INHERITED}
        return inherited | {
            "BANKSMAN_KAFKA": self.kafka.kafka,
            "BANKSMAN_KAFKA_SECURITY": self.kafka.kafka_security,
            "BANKSMAN_KAFKA_SASL_MECHANISM": self.kafka.kafka_sasl_mechanism,
            "BANKSMAN_KAFKA_USERNAME": self.kafka.kafka_username,
            "BANKSMAN_KAFKA_PASSWORD": "",  # so that neither the environment nor banksman.yaml has a say
            "BANKSMAN_KAFKA_PASSWORD_FILE": str(here.kafka_password),
            "BANKSMAN_TOPIC_PREFIX": self.kafka.topic_prefix,
            "BANKSMAN_REPLICATION": "1",
            "BANKSMAN_CLICKHOUSE": self.clickhouse.clickhouse,
            "BANKSMAN_CLICKHOUSE_PASSWORD": "",
            "BANKSMAN_CLICKHOUSE_PASSWORD_FILE": str(here.clickhouse_password),
            "BANKSMAN_CLICKHOUSE_READER_PASSWORD": "",
            "BANKSMAN_CLICKHOUSE_READER_PASSWORD_FILE": str(here.reader_password),
            "BANKSMAN_SECRET_FILE": str(here.secret),
            "BANKSMAN_POLICIES": str(self.policies),
            "BANKSMAN_ENFORCER_PORT": str(self.ports.enforcer),
            "BANKSMAN_CONSOLE_PORT": str(self.ports.console),
            "BANKSMAN_HEALTH_PORT": "-1"
            if settings.load(settings.Health).health_port < 0
            else "0",  # three cannot share one
            "PYTHONUNBUFFERED": "1",
        }


def refuse_taken(ports: Ports) -> None:
    """BadDeployment names every port that is taken, by whom, and how to choose another."""
    taken = []
    for name, port in ports.named().items():
        if not is_free(port):
            holder = children.port_holder(port)
            taken.append(f"port {port} is taken{f' by {holder}' if holder else ''}: --{name}-port chooses another")
    if taken:
        raise BadDeployment("; ".join(taken))


def is_free(port: int) -> bool:
    """Whether we could listen on a port of loopback now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


async def all_of(*work: Awaitable[object]) -> None:
    """All of it at once; the first error ends the rest and is raised as it is."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _python(module: str) -> list[str]:
    """Run a module of ours. -P: a file in the current folder must not stand in for one of the library."""
    return [sys.executable, "-P", "-m", module]
