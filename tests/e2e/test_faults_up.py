"""The same through `banksman up`: its children killed one by one, and `up` itself, under load. kill -9 each time.

`up` starts again what died. When `up` dies, nothing of it goes on running; started again, everything is as before: nobody is
enrolled anew, and the load's agents just go on.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.e2e import checker
from tests.e2e.load import PROJECT, Load, policy_of, read_journal
from tests.e2e.outside import all_stored, ask, until
from tests.e2e.test_faults import ROUNDS, SEED
from tests.running_up import Up, gone

from banksman import settings

AGENTS = ("ann", "bob")
FAULTS = ("enforcer", "archiver", "processors", "notifier", "kafka", "clickhouse", "up")


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    made = Up(tmp_path)
    made.policies.mkdir()
    (made.policies / "faults.yaml").write_text(policy_of(AGENTS))
    try:
        made.start()
        yield made
    finally:
        made.end()


def traces(up: Up) -> list[psutil.Process]:
    """Every process on this machine that has to do with this `up`: by its command line or its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:  # gone, or not ours to look at
            continue
        if process.pid != os.getpid() and any(str(up.data) in word for word in words):
            found.append(process)
    return found


def kill_up(up: Up) -> None:
    """Nobody else may be left then, and nobody is waited for by name: the whole family, and whoever has its data in hand."""
    assert up.process is not None
    family = up.family()
    assert len(family) >= 7, "seven children"
    assert {up.process.pid, *up.pids().values()} <= {process.pid for process in traces(up)}
    up.process.kill()
    up.process.wait()
    up.process = None
    gone(family)
    assert traces(up) == []


def kafka_of(up: Up) -> settings.Kafka:
    return settings.Kafka(
        kafka=f"127.0.0.1:{up.ports['kafka']}", kafka_security="SASL_PLAINTEXT", kafka_username="service",
        kafka_password_file=str(up.data / "kafka.password"),
    )  # fmt: skip


def reading(up: Up) -> checker.ClickHouse:
    password = (up.data / "clickhouse-reader.password").read_text().strip()
    return checker.ClickHouse(f"http://127.0.0.1:{up.ports['clickhouse']}", "analyst", password)


@pytest.mark.slow
@pytest.mark.timeout(300 * ROUNDS)
def test_whatever_is_killed_up_included_all_that_was_answered_is_there_once(up: Up, tmp_path: Path) -> None:
    enforcer = f"http://127.0.0.1:{up.ports['enforcer']}"

    def post(path: str, body: dict[str, Any]) -> Any:
        return ask(enforcer + path, up.admin_token(), body)

    print(f"FAULTS_SEED={SEED}")
    journal, chance = tmp_path / "journal.jsonl", random.Random(SEED)
    made = {
        agent: post("/v1/agents", {"agent": agent, "project": PROJECT, "owner": "ann@acme.example"}) for agent in AGENTS
    }
    tokens = {agent: answer["token"].partition(".")[0] for agent, answer in made.items()}
    with Load({"enforcer": ("127.0.0.1", up.ports["enforcer"])}, tokens, journal, seed=SEED, pause=0.03) as load:
        for victim in [name for _ in range(ROUNDS) for name in chance.sample(FAULTS, len(FAULTS))]:
            load.tally.wait(chance.randrange(20, 120))
            print(f"{time.strftime('%H:%M:%S')} kill {victim}", flush=True)
            if victim == "up":
                kill_up(up)
                up.start()
            else:
                pid = up.pids()[victim]
                os.kill(pid, signal.SIGKILL)
                until(lambda: up.pids()[victim] != pid, f"up starts {victim} again: {up.output}")  # noqa: B023
            load.tally.wait(20)
    until(lambda: ask(f"{enforcer}/v1/status", up.admin_token())["undelivered"] == 0, "voids are delivered")
    verdict = checker.judge(read_journal(journal), checker.read(reading(up), all_stored(kafka_of(up), reading(up))))
    print(verdict.text())
    assert not verdict.faults, verdict.text()
    assert verdict.counts["decisions answered"] > 200, "too little load to show anything"
    assert up.stop() == 0
    assert traces(up) == []
