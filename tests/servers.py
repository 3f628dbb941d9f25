"""Real servers for tests: one embedded Kafka and one embedded ClickHouse a session, own topics and databases a test."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from banksman import provision, settings
from banksman.local import children, jars, java, kafka
from banksman.local.chdb.users import write_users
from banksman.signing import Secret, create_secret

PARTITIONS = 2


def child_environment() -> dict[str, str]:
    """What a child process of a test sees: nothing of BANKSMAN_*."""
    return {name: value for name, value in os.environ.items() if not name.startswith("BANKSMAN_")}


def freeze(pid: int) -> None:
    """SIGSTOP, and return when every thread stands still: until then one may go on answering."""
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + 10
    while not all(_stands(task) for task in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < end, f"{pid} goes on"
        time.sleep(0.005)  # between two looks


def fill_up(ballast: Path) -> None:
    """Write a file until its file system is full; whatever else goes wrong is raised."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def _stands(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
        return True


@dataclass
class Broker:
    """The session's broker; a test that kills it starts it again before it ends."""

    node: kafka.Node
    process: subprocess.Popen[bytes]

    def start(self) -> None:
        self.process = children.spawn(self.node.argv(), log=self.node.log, env=child_environment())
        asyncio.run(self.node.ready())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def start_broker(folder: Path) -> Broker:
    node = kafka.Node(
        folder,
        java=java.find_java(),
        jars=jars.fetch(jars.cache_folder()),
        port=kafka.free_port(),
        users={"service": secrets.token_hex(8), "agent": secrets.token_hex(8)},
    )
    node.prepare()
    process = children.spawn(node.argv(), log=node.log, env=child_environment())
    try:
        asyncio.run(node.ready())
    except BaseException:
        process.kill()
        raise
    return Broker(node, process)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    made = start_broker(tmp_path_factory.mktemp("kafka"))
    yield made
    made.process.terminate()
    made.process.wait(20)


@pytest.fixture
def kafka_settings(broker: Broker) -> settings.Kafka:
    """Settings of the service user with topics of the test's own."""
    made = broker.node.settings(topic_prefix=f"t{uuid.uuid4().hex[:8]}.", partitions=PARTITIONS)
    asyncio.run(provision.create_topics(made))
    return made


@dataclass
class ClickHouseServer:
    """The session's embedded ClickHouse; a test that kills it starts it again, on the same port, before it ends."""

    folder: Path
    port: int
    passwords: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [
            sys.executable,
            "-m",
            "banksman.local.chdb",
            "--path",
            str(self.folder / "data"),
            "--port",
            str(self.port),
        ]
        log = self.folder / "chdb.log"
        argv += ["--users", str(self.folder / "users.json")]
        self.process = children.spawn(argv, log=log, env=child_environment())
        wait_for_http(f"http://127.0.0.1:{self.port}/ping", self.process, log)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


def wait_for_http(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 30) -> None:
    """Return when `url` answers 200; fail when the process died or the time is over."""
    import time

    until = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError as error:
            last = error
            if isinstance(error, urllib.error.HTTPError):
                error.close()
        assert process.poll() is None, f"ended with {process.returncode}: {children.last_lines(log)}"
        assert time.monotonic() < until, f"{url} does not answer: {last}; {children.last_lines(log)}"
        time.sleep(0.02)  # between two looks at the condition


@pytest.fixture(scope="session")
def clickhouse_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseServer]:
    folder = tmp_path_factory.mktemp("clickhouse")
    passwords = {"admin": secrets.token_urlsafe(16), "analyst": secrets.token_urlsafe(16)}
    write_users(folder / "users.json", {"admin": (passwords["admin"], False), "analyst": (passwords["analyst"], True)})
    made = ClickHouseServer(folder, kafka.free_port(), passwords)
    made.start()
    yield made
    assert made.process is not None
    made.process.terminate()
    made.process.wait(20)


@pytest.fixture
def clickhouse_settings(clickhouse_server: ClickHouseServer) -> settings.ClickHouse:
    """Settings of a database of the test's own (not made yet: `migrate` does)."""
    return settings.ClickHouse(
        clickhouse=f"http://127.0.0.1:{clickhouse_server.port}",
        clickhouse_database=f"t{uuid.uuid4().hex[:8]}",
        clickhouse_password=clickhouse_server.passwords["admin"],
        clickhouse_reader_password=clickhouse_server.passwords["analyst"],
    )


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret.json"
    create_secret(path)
    return path


@pytest.fixture
def secret(secret_file: Path) -> Secret:
    return create_secret(secret_file)
