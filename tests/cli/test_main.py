"""The command itself: verbs, help, exit codes, what it imports, and how it ends when nobody reads any more."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import BANKSMAN, Handler, Reply, Scribe, Shell, problem
from tests.servers import child_environment

from banksman.cli import main

VERBS = [verb for group in main.VERBS.values() for verb in group]
HEAVY = (
    "aiokafka", "anyio", "asyncio", "chdb", "clickhouse_connect", "httptools", "pydantic", "re2", "rich", "starlette",
    "urllib3", "uvicorn", "uvloop", "watchfiles", "yaml", "banksman.events", "banksman.signing",
)  # fmt: skip
"""None of this is needed to ask a question over HTTP and to say that nobody answered."""


@pytest.mark.parametrize(
    "words",
    [
        ("--help",), ("status",), ("doctor",), ("now", "a"), ("watch",), ("sessions",), ("session", "s"), ("sql", "SELECT 1"),
        ("kill", "s"), ("revoke", "a"), ("resume", "p"), ("approvals",), ("approve", "x"),
        ("agents",), ("agents", "add", "a", "--project", "p", "--owner", "o"), ("operators", "add", "o", "--role", "viewer"),
        ("now", "--help"), ("session", "--help"), ("serve", "--help"), ("migrate", "--help"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_commands_that_only_speak_http_import_nothing_heavy(shell: Shell, words: tuple[str, ...]) -> None:
    told = subprocess.run(
        [sys.executable, "-X", "importtime", BANKSMAN, *words],
        capture_output=True, text=True, timeout=60, cwd=shell.folder, check=False,
        env=child_environment() | shell.environment | {"BANKSMAN_OPERATOR_TOKEN": "bmo_1_x"},
    )  # fmt: skip
    assert told.returncode == (0 if "--help" in words else 4), told.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines() if line.startswith("import time:")}
    assert "banksman.cli.main" in imported
    assert sorted(name for name in HEAVY if name in imported) == []
    assert "banksman.cli.now" not in imported or words[0] in ("now", "doctor", "watch", "sessions")


def test_the_overview_names_every_command(shell: Shell) -> None:
    ran = shell("--help")
    assert ran.code == 0
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", ran.out, re.MULTILINE), verb
    assert shell().code == 2
    assert shell("help").out == ran.out
    assert shell("help", "now").out == shell("now", "--help").out
    assert re.fullmatch(r"banksman \d+\.\d+\.\d+\n", shell("--version").out)


def test_an_unknown_command_and_unknown_arguments(shell: Shell) -> None:
    ran = shell("statsu")
    assert (ran.code, ran.out) == (2, "")
    assert "did you mean 'status'?" in ran.err
    for words in (
        ("status", "--jsn"),
        ("now",),
        ("session", "s", "--export", "xml"),
        ("serve", "nobody"),
        ("now", "a", "--js"),
    ):
        assert shell(*words).code == 2


def parser_of(verb: str) -> argparse.ArgumentParser:
    return main.parser_of(verb, importlib.import_module(f"banksman.cli.{main._MODULES[verb]}"))


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_has_examples_and_they_parse(verb: str) -> None:
    module = importlib.import_module(f"banksman.cli.{main._MODULES[verb]}")
    joined = module.EXAMPLES.replace("\\\n", " ")
    commands = re.findall(rf"(?:^|\s)banksman ({verb}\b[^|<>\n]*?)(?=\s{{3,}}|[|<>\n]|$)", joined, re.MULTILINE)
    assert len(commands) == len([line for line in joined.strip().splitlines() if line.strip()])
    for command in commands:
        words = shlex.split(command, comments=True)
        parser_of(verb).parse_args(words[1:])


def test_help_fits_a_page_of_text() -> None:
    for verb in VERBS:
        module = importlib.import_module(f"banksman.cli.{main._MODULES[verb]}")
        assert max(map(len, f"{module.HELP}\n{module.EXAMPLES}".splitlines())) <= 128, verb


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (problem(401, "unknown"), 3),
        (problem(403, "no"), 3),
        (problem(422, "no"), 2),
        (problem(429, "slow"), 4),
        (problem(503, "x"), 4),
    ],
)
def test_exit_codes_and_one_line(operator: Shell, scribe: Scribe, reply: Reply, code: int) -> None:
    scribe.on["GET /v1/sessions"] = reply
    ran = operator("sessions")
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("banksman sessions: ")
    assert ran.err.count("\n") == 1


def test_an_error_cannot_repaint_the_terminal(operator: Shell, scribe: Scribe) -> None:
    scribe.on["GET /v1/sessions"] = problem(422, "\x1b[2J\u202eevil\x9b")
    assert "\\x1b[2J\\u202eevil\\x9b" in operator("sessions").err


def test_a_setting_that_is_wrong(shell: Shell) -> None:
    ran = shell("now", "a", BANKSMAN_URL="nowhere", BANKSMAN_OPERATOR_TOKEN="bmo_1_x", BANKSMAN_CONSOLE_URL="nowhere")
    assert ran.code == 2
    assert "BANKSMAN_CONSOLE_URL" in ran.err
    assert shell("now", "a", BANKSMAN_CONFIG="/nowhere.yaml").code == 2
    (shell.folder / "banksman.yaml").write_text("nonsense: 1\n")
    ran = shell("now", "a")
    assert ran.code == 2
    assert "nonsense" in ran.err


def test_the_file_of_settings_is_read(operator: Shell, scribe: Scribe) -> None:
    del operator.environment["BANKSMAN_CONSOLE_URL"]
    (operator.folder / "banksman.yaml").write_text(f"console_url: {scribe.url}\n")
    scribe.on["GET /v1/sessions"] = Reply({"sessions": [], "next": None})
    assert operator("sessions").code == 0


MANY = Reply({"columns": [{"name": "x", "type": "String"}], "rows": [["y" * 100]] * 5000, "took_ms": 1})


def test_a_reader_that_has_seen_enough(operator: Shell, scribe: Scribe) -> None:
    scribe.on["POST /v1/sql"] = MANY
    with operator.start("sql", "SELECT 1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_disk_that_is_full(operator: Shell, scribe: Scribe) -> None:
    scribe.on["POST /v1/sql"] = MANY
    for words in (("--json",), ()):
        with Path("/dev/full").open("w") as full, operator.start("sql", "SELECT 1", *words, stdout=full) as process:
            _, err = process.communicate(timeout=60)
            assert (process.returncode, err) == (4, "banksman sql: cannot write: No space left on device\n")


def test_ctrl_c_is_quiet(operator: Shell, scribe: Scribe) -> None:
    def hang(handler: Handler) -> None:
        process.send_signal(signal.SIGINT)
        handler.rfile.read(1)

    scribe.on["GET /v1/sessions"] = hang
    with operator.start("sessions") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


def test_a_terminal_that_cannot_show_a_letter(operator: Shell, scribe: Scribe) -> None:
    row = ["ü数\ud800", "b"]
    scribe.on["POST /v1/sql"] = Reply({"columns": [{"name": "x", "type": "String"}] * 2, "rows": [row], "took_ms": 1})
    ran = operator.process("sql", "SELECT 1", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ran.code == 0
    assert "\\xfc\\u6570\\ud800" in ran.out
    assert "---" in ran.out
