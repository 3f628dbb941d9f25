"""What the benches of the archive share: a broker, a ClickHouse and an archiver of their own, in a folder that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from banksman import bus, codec, provision, settings, signing, stamps
from banksman.local import children, jars, java, kafka
from banksman.local.chdb.users import write_users
from banksman.store.client import Store
from banksman.store.migrate import migrate
from banksman.topics import Topic

PARTITIONS = 4


@dataclass
class Stack:
    kafka: settings.Kafka
    clickhouse: settings.ClickHouse
    secret: signing.Secret
    folder: Path
    running: dict[str, subprocess.Popen[bytes]]
    engine_argv: list[str]

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self.running.items()}

    def start_engine(self) -> None:
        """ClickHouse, again if it was ended."""
        log = self.folder / "chdb.log"
        self.running["clickhouse"] = children.spawn(self.engine_argv, log=log, env=dict(os.environ))
        _answers(f"{self.clickhouse.clickhouse}/ping")

    def archiver(self) -> subprocess.Popen[bytes]:
        return self.service("banksman.processors.archiver")

    def service(self, module: str, **more: str) -> subprocess.Popen[bytes]:
        """One of the services; its log is named as it."""
        environment = dict(os.environ) | {
            "BANKSMAN_KAFKA": self.kafka.kafka,
            "BANKSMAN_KAFKA_SECURITY": self.kafka.kafka_security,
            "BANKSMAN_KAFKA_USERNAME": self.kafka.kafka_username,
            "BANKSMAN_KAFKA_PASSWORD": self.kafka.kafka_password,
            "BANKSMAN_TOPIC_PREFIX": self.kafka.topic_prefix,
            "BANKSMAN_CLICKHOUSE": self.clickhouse.clickhouse,
            "BANKSMAN_CLICKHOUSE_PASSWORD": self.clickhouse.clickhouse_password,
            "BANKSMAN_CLICKHOUSE_READER_PASSWORD": self.clickhouse.clickhouse_reader_password,
            "BANKSMAN_SECRET_FILE": str(self.folder / "secret.json"),
            **more,
        }
        log = self.folder / f"{module.rpartition('.')[2]}.log"
        return children.spawn([sys.executable, "-m", module], log=log, env=environment)

    def reader(self) -> Store:
        return Store(self.clickhouse, reader=True)

    def record(self, agent: str, seq: int, signer: signing.Signer) -> tuple[bytes, bytes, signing.Headers]:
        """A signed tool.call of about 600 bytes."""
        event = {
            "v": 1, "id": stamps.uuid7(), "time": stamps.rfc3339(), "kind": "tool.call",
            "source": f"emitter-python/1.0#{agent}", "seq": seq, "project": "bench", "agent": agent,
            "session": f"s{seq // 100}", "call": stamps.uuid7(),
            "service": "git", "action": "push", "resource": "acme/billing", "branch": "feature/x",
            "args": {
                "path": f"/srv/data/{seq}", "flags": ["-l", "-a"], "query": "select * from t where id = 3", "note": "n" * 100,
            },
            "args_hash": "hmac-sha256:" + "a" * 64,
        }  # fmt: skip
        key, value = agent.encode(), codec.encode(event)
        marks = {name: str(event[name]) for name in ("id", "kind", "time", "source")}
        return key, value, signer.headers(self.kafka.topic(Topic.ACTIONS), key, value, **marks)

    def signer(self, agent: str) -> signing.Signer:
        author = signing.Author(project="bench", agent=agent, token_id="t1")
        return signing.Signer(author, signing.key_of(self.secret, 1, author), 1)

    async def fill(self, rows: int, agents: int = 200) -> None:
        producer = bus.producer(self.kafka)
        await producer.start()
        publisher = bus.Publisher(producer, self.kafka.topic(Topic.ACTIONS), bound=10**7, deadline=600)
        signers = {f"agent-{n:03d}": self.signer(f"agent-{n:03d}") for n in range(agents)}
        names = list(signers)
        for first in range(0, rows, 10_000):
            waiting = []
            for n in range(first, min(rows, first + 10_000)):
                name = names[n % agents]
                key, value, headers = self.record(name, n // agents + 1, signers[name])
                waiting.append(publisher.put(bus.partition_of(key, PARTITIONS), key, value, headers))
            await asyncio.gather(*waiting)
        await producer.stop()


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[tuple[kafka.Node, subprocess.Popen[bytes]]]:
    """A broker that answers, with its data under `folder`."""
    node = kafka.Node(
        folder / "kafka", java=java.find_java(), jars=jars.fetch(jars.cache_folder()), port=kafka.free_port(),
        users={"service": secrets.token_hex(8), "agent": secrets.token_hex(8)},
    )  # fmt: skip
    (folder / "kafka").mkdir()
    node.prepare()
    process = children.spawn(node.argv(), log=node.log, env=dict(os.environ))
    try:
        asyncio.run(node.ready())
        yield node, process
    finally:
        end(process)


@contextlib.contextmanager
def stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as running:
        folder = Path(made)
        node, process = running.enter_context(broker(folder))
        password, port = secrets.token_urlsafe(16), kafka.free_port()
        write_users(folder / "users.json", {"admin": (password, False), "analyst": (password, True)})
        argv = [sys.executable, "-m", "banksman.local.chdb", "--path", str(folder / "chdb"), "--port", str(port)]
        argv += ["--users", str(folder / "users.json")]
        clickhouse = settings.ClickHouse(
            clickhouse=f"http://127.0.0.1:{port}", clickhouse_password=password, clickhouse_reader_password=password
        )
        kafka_settings = node.settings(topic_prefix="bench.", partitions=PARTITIONS)
        asyncio.run(provision.create_topics(kafka_settings))
        secret = signing.create_secret(folder / "secret.json")
        made_here = Stack(kafka_settings, clickhouse, secret, folder, {"kafka": process}, argv)
        made_here.start_engine()
        running.callback(lambda: end(made_here.running["clickhouse"]))
        migrate(clickhouse)
        yield made_here


def machine() -> str:
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ": unknown")
    return f"{os.cpu_count()} cores ({model.split(':')[1].strip()}), Python {platform.python_version()}"


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of the children of `children.spawn` under it."""
    import psutil

    process = psutil.Process(pid)
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def resident_mb(pid: int) -> float:
    """Of a process and of the children of `children.spawn` under it."""
    import psutil

    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 1e6


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop, and wait until it has."""
    process.terminate()
    process.wait(30)


def _answers(url: str) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)  # between two looks
