"""A real read side on a real broker and engine: records go through Kafka and the archiver, questions over HTTP."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.enforcer.conftest import Answer, Desk, ask, environment_of, until
from tests.processors.conftest import Archive
from tests.servers import PARTITIONS, Broker, ClickHouseServer, child_environment

from banksman import codec, events, provision, settings, signing, stamps
from banksman.cli import main
from banksman.local import children
from banksman.signing import create_secret
from banksman.store.migrate import migrate
from banksman.topics import Topic


@dataclass
class Stand:
    """The read side, an archiver, and everything to put into them."""

    desk: Desk
    archive: Archive
    folder: Path
    secret_file: Path
    base: str = ""
    process: subprocess.Popen[bytes] | None = None
    written: int = 0
    numbers: dict[str, int] = field(default_factory=dict)

    # ── the process ──

    def start(self) -> None:
        clickhouse = self.archive.clickhouse
        environment = child_environment() | environment_of(self.desk.kafka) | {
            "BANKSMAN_CLICKHOUSE": clickhouse.clickhouse,
            "BANKSMAN_CLICKHOUSE_DATABASE": clickhouse.clickhouse_database,
            "BANKSMAN_CLICKHOUSE_READER_PASSWORD": clickhouse.clickhouse_reader_password,
            "BANKSMAN_SECRET_FILE": str(self.secret_file),
            "BANKSMAN_CONSOLE_PORT": "0",
            "BANKSMAN_SQL_SECONDS": "2",
            "BANKSMAN_SQL_ROWS": "1000",
        }  # fmt: skip
        log = self.folder / "console.log"
        log.unlink(missing_ok=True)
        self.process = children.spawn([sys.executable, "-m", "banksman.console"], log=log, env=environment)
        self.base = until(lambda: self._address(log), 20)
        until(lambda: self("GET", "/readyz").status == 200, 30)

    def _address(self, log: Path) -> str:
        assert self.process is not None
        assert self.process.poll() is None, children.last_lines(log)
        lines = [line for line in log.read_text().splitlines() if line.startswith("listening http")]
        return lines[0].split()[1] if lines else ""

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            assert self.process.wait(20) == 0

    def __call__(self, method: str, path: str, body: Any = None, **more: Any) -> Answer:
        return ask(self.base, method, path, body, **more)

    def get(self, path: str, status: int = 200, **more: Any) -> Any:
        answer = self("GET", path, token=self.desk.viewer, **more)
        assert answer.status == status, answer.raw
        return answer.body

    # ── what happened ──

    def action(self, kind: str, agent: str, session: str, **fields: Any) -> dict[str, Any]:
        """A record of `actions`, numbered by its agent's source; `signer=None`: unsigned."""
        source = fields.pop("source", f"test#{agent}")
        self.numbers[source] = self.numbers.get(source, 0) + 1
        made = {
            "v": 1, "id": stamps.uuid7(), "time": stamps.rfc3339(), "kind": kind, "project": "shop", "agent": agent,
            "session": session, "source": source, "seq": self.numbers[source],
        } | fields  # fmt: skip
        if kind == "tool.call":
            made.setdefault("call", made["id"])
        return made

    def decision(self, of: dict[str, Any], decision: str = "allow", **fields: Any) -> dict[str, Any]:
        """The enforcer's answer to a `tool.call`."""
        tier = {"allow": 2, "deny": 4, "approve": 3}[decision]
        named: dict[str, Any] = {
            name: of[name] for name in ("project", "agent", "session", "service", "action", "resource") if name in of
        }
        made: dict[str, Any] = {
            "v": 1, "id": stamps.uuid7(), "time": stamps.rfc3339(), "kind": "decision", "source": "enforcer#1",
            "call": of["id"], "parent": stamps.uuid7(), "decision": decision, "tier": tier, "reason": "allowed",
            "rule": f"{of['agent']}/{decision}/0", "policy": "shop", "policy_version": "shop@v3+sha256:0123456789ab",
            "owner": "ann@acme.example", **named,
        }  # fmt: skip
        return made | fields

    def publish(self, *made: dict[str, Any], signed: bool = True, replay: str = "") -> None:
        """Into Kafka, and wait until all of it is stored."""
        records = []
        for event in made:
            topic = Topic.ACTIONS if event["kind"] in events.ACTION_KINDS else Topic.DECISIONS
            if topic is Topic.ACTIONS and not replay:  # those the enforcer signs
                author = signing.Author(project=event["project"], agent=event["agent"], token_id="t1")
                signer = signing.Signer(author, signing.key_of(self.archive.secret, 1, author), 1)
            else:
                signer = signing.service_signer(self.archive.secret, "enforcer")
            key, value = event["agent"].encode(), codec.encode(event)
            about = {name: event[name] for name in ("id", "kind", "time", "source")}
            headers = signer.headers(self.desk.kafka.topic(topic), key, value, replay=replay, **about) if signed else []
            records.append((topic, key, value, headers))
        self.archive.publish(*records)
        self.written += len(records)
        sql = "SELECT count() AS n FROM @events WHERE topic IN ('actions', 'decisions')"
        self.archive.until(lambda: self.archive.ask(sql)[0]["n"] >= self.written)


@pytest.fixture(scope="module")
def stand(
    broker: Broker, clickhouse_server: ClickHouseServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    import uuid

    folder = tmp_path_factory.mktemp("stand")
    secret_file = folder / "secret.json"
    secret = create_secret(secret_file)
    kafka = broker.node.settings(topic_prefix=f"t{uuid.uuid4().hex[:8]}.", partitions=PARTITIONS)
    asyncio.run(provision.create_topics(kafka))
    clickhouse = settings.ClickHouse(
        clickhouse=f"http://127.0.0.1:{clickhouse_server.port}",
        clickhouse_database=f"t{uuid.uuid4().hex[:8]}",
        clickhouse_password=clickhouse_server.passwords["admin"],
        clickhouse_reader_password=clickhouse_server.passwords["analyst"],
    )
    migrate(clickhouse)
    desk = Desk(kafka, secret, folder)
    desk.enrol()
    archive = Archive(kafka, clickhouse, secret, secret_file, folder)
    archive.start()
    made = Stand(desk, archive, folder, secret_file)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        archive.stop()


Policy = Callable[..., tuple[int, str, str]]


@pytest.fixture
def policy(stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Policy:
    """`banksman policy …` in a folder of its own -> its exit code, what it prints, what it says."""
    monkeypatch.setenv("BANKSMAN_CONSOLE_URL", stand.base)
    monkeypatch.setenv("BANKSMAN_OPERATOR_TOKEN", stand.desk.viewer)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return main.main(["policy", *words]), *capsys.readouterr()

    return run
