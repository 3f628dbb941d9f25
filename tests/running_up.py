"""A real `banksman up` for tests: the command itself as a process, on ports and folders of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from tests.servers import child_environment

from banksman.cli.client import Client
from banksman.local.kafka import free_port

BANKSMAN = [sys.executable, "-P", "-m", "banksman.cli.main"]
SERVICES = ("kafka", "clickhouse", "enforcer", "archiver", "processors", "notifier", "console")


def until(condition: Callable[[], object], seconds: float = 60, saying: Callable[[], str] = str) -> None:
    """Return when `condition` holds; fail with what `saying` says when it does not within some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so after {seconds} s: {saying()}"
        time.sleep(0.02)  # between two looks at the condition


class Up:
    """One data folder and the `up` that runs in it now, if any. `output`: all that it said since it was started."""

    def __init__(self, folder: Path, policies: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.data, self.policies = folder / "my data", policies or folder / "policies"
        ports: set[int] = set()
        while len(ports) < 4:  # the same may be drawn twice
            ports.add(free_port())
        self.ports = dict(zip(("kafka", "clickhouse", "enforcer", "console"), ports, strict=True))
        self._said = folder / "up.output"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def argv(self) -> list[str]:
        ports = [word for name, port in self.ports.items() for word in (f"--{name}-port", str(port))]
        return [*BANKSMAN, "up", "--data", str(self.data), "--policies", str(self.policies), *ports]

    @property
    def output(self) -> str:
        return self._said.read_text()

    def launch(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start it and do not wait."""
        assert self.process is None
        with open(self._said, "wb") as out:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=child_environment() | environment
            )
        return self.process

    def start(self, **environment: str) -> float:
        """Start it -> the seconds until everything answered."""
        began = time.monotonic()
        process = self.launch(**environment)
        until(lambda: "banksman is up" in self.output or process.poll() is not None, 120, lambda: self.output)
        assert process.poll() is None, self.output
        return time.monotonic() - began

    def said(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        """Return when a line of the output matches."""
        until(lambda: re.search(pattern, self.output, re.MULTILINE), seconds, lambda: self.output)
        found = re.search(pattern, self.output, re.MULTILINE)
        assert found
        return found

    def stop(self, number: int = signal.SIGTERM, *, times: int = 1, seconds: float = 60) -> int:
        """A signal, once or more -> its exit code."""
        assert self.process is not None
        process, self.process = self.process, None
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.1 * (times > 1))  # two at once would be one to the kernel
        return process.wait(seconds)

    def pids(self) -> dict[str, int]:
        """Name of each child -> its process id."""
        return {file.stem: json.loads(file.read_text())["pid"] for file in (self.data / "run").glob("*.json")}

    def family(self) -> list[psutil.Process]:
        """All processes below this `up`."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def settings(self) -> dict[str, str]:
        """What a command needs to reach it."""
        return {
            "BANKSMAN_URL": f"http://127.0.0.1:{self.ports['enforcer']}",
            "BANKSMAN_CONSOLE_URL": f"http://127.0.0.1:{self.ports['console']}",
            "BANKSMAN_OPERATOR_TOKEN_FILE": str(self.data / "admin.token"),
        }

    def banksman(self, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of ours against it."""
        env = child_environment() | self.settings() | environment
        return subprocess.run([*BANKSMAN, *shlex.split(command)], capture_output=True, text=True, env=env, timeout=60)

    def enforcer(self, token: str = "") -> Client:
        """The enforcer, as its admin or as whom a token names."""
        return Client(self.settings()["BANKSMAN_URL"], token or self.admin_token(), variable="BANKSMAN_URL")

    def admin_token(self) -> str:
        return (self.data / "admin.token").read_text().strip()

    def rows(self, where: str) -> list[dict[str, object]]:
        """Rows of the audit log, as a read-only analyst of ClickHouse itself sees them."""
        password = (self.data / "clickhouse-reader.password").read_text().strip()
        import urllib.request

        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports['clickhouse']}/",
            f"SELECT * FROM banksman.events WHERE {where} FORMAT JSONEachRow".encode(),
            {"X-ClickHouse-User": "analyst", "X-ClickHouse-Key": password},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]

    def end(self) -> None:
        """Whatever happened in a test: nothing is left."""
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)  # its children die with it
            self.process.wait()
        self.process = None


def gone(processes: list[psutil.Process], seconds: float = 10) -> None:
    """Return when none of them runs any more."""
    until(lambda: not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], seconds)
