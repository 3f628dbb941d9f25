"""All of it over locked wires: a Kafka user a service, SCRAM over TLS, an ACL for everything, HTTPS. Each may do its work, and
nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.e2e.outside import until
from tests.secured import Secured, a_secured_broker
from tests.servers import ClickHouseServer, child_environment

from banksman import settings
from banksman.local import children, kafka
from banksman.store.client import Store

BANKSMAN = str(Path(sys.executable).with_name("banksman"))
SERVICES = ("enforcer", "archiver", "processors", "notifier", "console")
POLICY = """\
project: shop
version: 1
owner: payments-team
agents:
  buyer:
    allow: [{service: git, actions: [pull]}]
    budget: {daily_tokens: 1000}
"""
AGENT = """\
from banksman.producers import Emitter

with Emitter.from_settings() as emitter, emitter.session("s1") as session:
    print(emitter.decide(session, service="git", action="pull").decision) if hasattr(emitter, "decide") else None
"""


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
            until(lambda one=one: f"{one} ready" in made.said(one), f"{one} is ready")
        until(lambda: "is connected to" in made.said("enforcer"), "the enforcer is connected")
        yield made
    finally:
        for process in made.running.values():
            process.terminate()
        for process in made.running.values():
            process.wait(20)


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
