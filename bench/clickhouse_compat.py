"""How near the embedded ClickHouse comes to a server: the integration suite of clickhouse_connect, run against it.

    .venv/bin/python bench/clickhouse_compat.py [CHECKOUT [CLIENT]]

CHECKOUT: a checkout of ClickHouse/clickhouse-connect; without one it is cloned from GitHub at the version of our lock. The
suite gets an environment of its own with what it needs and the client of our lock (a minute), and a new server with a user
and a password. Printed: how many tests passed, and of every other one the group with the reason, or that there is none.

CLIENT: for a checkout of another version, the version of a client of its time. The suite runs with that one too, and what
passes then is no matter of the server.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

from banksman.local import children, kafka
from banksman.local.chdb.users import write_users

SOURCE = "https://github.com/ClickHouse/clickhouse-connect"
CLIENT = version("clickhouse-connect")
NOT_NEEDED = re.compile(r"^(pre-commit|ruff|mypy|cython|setuptools|numpy)\b")
TEST_SECONDS, SUITE_SECONDS = 120, 1800


class Group(NamedTuple):
    """Tests that do not pass for one reason. `pattern` is looked for in "name: message"."""

    what: str
    why: str
    pattern: str


GROUPS = (
    Group(
        "TLS, a proxy, JWT of a cloud", "the suite asks for them by settings of its own", r"TLS tests|Proxy addr|jwt"
    ),
    Group(
        "Native with client_protocol_version",
        "chDB writes Native in its oldest form only: no time zone of a DateTime column",
        r"test_protocol_version|test_local_timezones",
    ),
    Group(
        "CREATE ROLE, row policies, custom settings",
        "users and what they may do are in the server's own file; the engine stores none",
        r"ACCESS_STORAGE_FOR_INSERTION|writeable access storage|custom_settings_prefixes",
    ),
    Group("system.query_log", "chDB keeps no log of queries", r"system\.query_log"),
    Group("SHOW CREATE TABLE system.tables", "chDB has no metadata of system tables", r"no metadata of table"),
    Group("port 9000 says that it is the native protocol's", "there is no native protocol", r"test_wrong_port"),
    Group(
        "a test's own call of pandas",
        "pandas 3.1 takes no time zone at that place any more",
        r"tzinfo argument must be None or of a tzinfo subclass",
    ),
    Group(
        "an error in a stream, told sooner than the test waits for it",
        "a matter of timing: the client raises it when the stream is asked for, or when it is read",
        r"test_stream_failure_async.*StreamFailureError: Code: 153",
    ),
    Group("enable_analyzer = 0", "the engine has one analyzer only", r"enable_analyzer"),
)


class Outcome(NamedTuple):
    name: str
    result: str
    message: str


def checkout(folder: Path) -> Path:
    """The suite at the version of our client, from GitHub. CalledProcessError: no network, no such version."""
    made = folder / "clickhouse-connect"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", "--branch", f"v{CLIENT}", SOURCE, str(made)], check=True)
    return made


def described(source: Path) -> str:
    """Version and commit of a checkout."""
    said = re.search(r'"([^"]+)"', (source / "clickhouse_connect" / "_version.py").read_text())
    commit = subprocess.run(
        ["git", "-C", str(source), "log", "-1", "--format=%h, %cs"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return f"{said[1] if said else 'unknown'} (commit {commit})"


def environment(folder: Path, source: Path, client: str) -> Path:
    """A Python with that version of the client and what the suite needs -> its executable."""
    needs = (source / "tests" / "test_requirements.txt").read_text().splitlines()
    chosen = folder / "needs.txt"
    chosen.write_text("\n".join(line for line in needs if not NOT_NEEDED.match(line)) + "\n")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    more = [f"clickhouse-connect=={client}", "numpy>=2.1", "pytest-timeout", "tzlocal", "orjson"]
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "-r", str(chosen), *more], check=True)
    return python


def serve(folder: Path, password: str) -> tuple[subprocess.Popen[bytes], int]:
    """A new embedded ClickHouse with a user `admin` -> (process, port)."""
    write_users(folder / "users.json", {"admin": (password, False)})
    port, log = kafka.free_port(), folder / "server.log"
    argv = [sys.executable, "-m", "banksman.local.chdb", "--path", str(folder / "data"), "--port", str(port)]
    process = children.spawn([*argv, "--users", str(folder / "users.json")], log=log, env=dict(os.environ))
    until = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2):
                return process, port
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the server does not start: {children.last_lines(log)}") from None
        time.sleep(0.02)  # between two looks


def run_suite(folder: Path, source: Path, python: Path, port: int, password: str) -> list[Outcome]:
    """Every test's outcome. Only the tests are copied: beside them would stand the sources of the client."""
    place, report = folder / "suite", folder / "report.xml"
    place.mkdir()
    shutil.copytree(source / "tests", place / "tests")
    shutil.copy(source / "pyproject.toml", place)
    settings = {"HOST": "127.0.0.1", "PORT": str(port), "USER": "admin", "PASSWORD": password}
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BANKSMAN_"))}
    subprocess.run(
        [str(python), "-m", "pytest", "-q", "-n", "2", "-o", "addopts=", "-o", "log_cli=false", "--tb=short",
         f"--timeout={TEST_SECONDS}", f"--junitxml={report}", "tests/integration_tests"],
        cwd=place, env=env | {f"CLICKHOUSE_CONNECT_TEST_{name}": value for name, value in settings.items()},
        stdout=subprocess.DEVNULL, timeout=SUITE_SECONDS, check=False,  # tests that fail are the result
    )  # fmt: skip
    return [outcome(case) for case in ET.parse(report).getroot().iter("testcase")]


def outcome(case: ET.Element) -> Outcome:
    """One test of the report."""
    name = f"{case.get('classname', '')}::{case.get('name', '')}".replace("tests.integration_tests.", "")
    for result, kind in (("error", "error"), ("failed", "failure"), ("skipped", "skipped")):
        found = case.find(kind)
        if found is not None:
            return Outcome(name, result, f"{found.get('message') or ''} {found.text or ''}")
    return Outcome(name, "passed", "")


def measure(source: Path, client: str) -> list[Outcome]:
    """The whole suite with one version of the client, on a new server."""
    with tempfile.TemporaryDirectory(prefix="compat-") as made:
        folder, password = Path(made), secrets.token_urlsafe(16)
        python = environment(folder, source, client)
        server, port = serve(folder, password)
        try:
            return run_suite(folder, source, python, port, password)
        finally:
            server.terminate()
            server.wait(20)


def reason(one: Outcome, groups: tuple[Group, ...], otherwise: set[str]) -> Group | None:
    """Why a test did not pass; None: nobody knows yet. `otherwise`: what passes with the other client."""
    told = f"{one.name}: {one.message}"
    known = next((group for group in groups[:-1] if re.search(group.pattern, told, re.DOTALL)), None)
    return known or (groups[-1] if one.name in otherwise else None)


def table(outcomes: list[Outcome], otherwise: set[str], other: str) -> str:
    """Counts, then the groups with their tests, then what has no reason."""
    groups = (*GROUPS, Group("what the client does otherwise", f"passes with the client {other}", ""))
    rest = [(one, reason(one, groups, otherwise)) for one in outcomes if one.result != "passed"]
    lines = [counted(outcomes), ""]
    for group in groups:
        inside = [one for one, why in rest if why == group]
        if inside:
            lines.append(f"{len(inside):3}  {group.what}: {group.why}")
            lines += [
                f"       {result:7} {name}" for result, name in sorted({(o.result, bare(o.name)) for o in inside})
            ]
    unknown = [one for one, why in rest if why is None]
    lines.append(f"{len(unknown):3}  without a reason that is known")
    lines += [f"       {one.result:7} {one.name}: {' '.join(one.message.split())[:200]}" for one in unknown]
    return "\n".join(lines)


def counted(outcomes: list[Outcome]) -> str:
    """How many tests ended how."""
    counts = Counter(one.result for one in outcomes)
    return f"{len(outcomes)} tests: " + ", ".join(
        f"{counts[name]} {name}" for name in ("passed", "failed", "error", "skipped")
    )


def bare(name: str) -> str:
    """Without [sync] and [async]: the client has both, and the reason is one."""
    return re.sub(r"\[(a?sync)\]", "", name)


def main() -> int:
    """Exit code 0 when the suite ran; what did not pass is in the table."""
    with tempfile.TemporaryDirectory(prefix="compat-") as made:
        source = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else checkout(Path(made))
        print(f"the integration suite of clickhouse_connect {described(source)}")
        outcomes = measure(source, CLIENT)
        other = sys.argv[2] if len(sys.argv) > 2 else ""
        compared = measure(source, other) if other else []
    otherwise = {one.name for one in compared if one.result == "passed"}
    print(f"with the client {CLIENT}, against chDB {version('chdb-core')} behind our server, two tests at a time\n")
    print(table(outcomes, otherwise, other))
    if compared:
        print(f"\nthe same with the client {other}: {counted(compared)}")
    return 0 if outcomes else 1


if __name__ == "__main__":
    sys.exit(main())
