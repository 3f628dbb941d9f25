"""`banksman up --demo`, whole: interrupted and run again in the same folder; and what makes it fail."""

from __future__ import annotations

import importlib.resources
import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.running_up import BANKSMAN, Up, gone, until
from tests.servers import child_environment

from banksman.cli.demo import count, story
from banksman.cli.demo.scripts import SCRIPTS, Act

RECORDED = Path(str(importlib.resources.files("banksman.cli.demo"))) / "recorded.jsonl"


def demo(folder: Path) -> subprocess.Popen[bytes]:
    """Started in `folder`, in an environment whose settings it must not obey."""
    environment = child_environment() | {
        "BANKSMAN_URL": "http://127.0.0.1:9",
        "BANKSMAN_TOKEN": "nobody's",
        "NO_COLOR": "1",
    }
    environment |= {"BANKSMAN_KAFKA": "k1.example:9092", "BANKSMAN_OPERATOR_TOKEN": "nobody's"}
    with open(folder / "said", "wb") as out:
        argv = [*BANKSMAN, "up", "--demo", "--data", "my demo"]
        return subprocess.Popen(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)


@pytest.mark.slow
def test_the_demo_interrupted_and_run_again_finds_every_record_once(tmp_path: Path) -> None:
    said = tmp_path / "said"
    first = demo(tmp_path)
    try:
        until(lambda: "  allow " in said.read_text() or first.poll() is not None, 120, said.read_text)
        family = psutil.Process(first.pid).children(recursive=True)
        assert len(family) >= 12  # two servers, five services, five agents, a replay that may be over
        first.send_signal(signal.SIGINT)
        assert first.wait(60) == 130
        gone(family)
    finally:
        first.kill()
        first.wait()

    second = demo(tmp_path)
    try:
        code = second.wait(170)
        text = said.read_text()
        assert code == 0, text
    finally:
        second.kill()
        second.wait()
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]

    for name in SCRIPTS:
        assert re.search(rf"^\d\d:\d\d:\d\d  {name} +allow ", text, re.MULTILINE), name
    for word in ("deny", "approve", "error", "model", "begins", "ends"):
        assert re.search(rf"^\d\d:\d\d:\d\d  \S+ +{word} ", text, re.MULTILINE), word
    held = next(
        step
        for run in SCRIPTS["claude-invoice-01"].runs
        for step in run.steps
        if isinstance(step, Act) and step.until_seen
    )
    now = text[text.index("? what is claude-invoice-01 doing right now?") :]
    assert re.search(rf"open call +aws s3:putobject {re.escape(str(held.resource))}", now, re.IGNORECASE)
    session = re.search(r"\? what exactly happened in session (\S+)\?", text)
    assert session
    assert re.search(rf"claude-invoice-01 +begins +session {session[1]}", text)
    recorded = count.of_recording(RECORDED)
    number = f"{len(recorded.records):,}"
    assert f"replayed   {number} of {number} records are in the audit log, each exactly once" in text
    assert re.search(r"live +(\d+) of \1 records are in the audit log, each exactly once", text)
    assert "approvals  1 given, 1 used, each once" in text
    assert re.search(r"operator  approves  claude-invoice-01: git push acme/billing main ", text)
    killed = re.search(r"operator  kills     session (\S+) of deploy-bot-04: in force on 1/1 enforcers in \d+ ms", text)
    assert killed
    assert re.search(r"kills      1; afterwards 3 questions denied, 0 allowed", text)
    assert "alerts     3 of 3 are in Slack and in the audit log" in text
    for word in ("claude-report-02 has spent its budget", "test-runner-05, session", "claude-refunds-03, session"):
        assert re.search(rf"^slack .*{word}", text, re.MULTILINE), word
    assert re.search(r"detectors  killed 1 session, afterwards [1-9]\d* questions denied; [1-9]", text)
    assert "Traceback" not in text
    assert "WRONG" not in text
    go_round(tmp_path)


def go_round(folder: Path) -> None:
    """What the agents of a demo did, as policies: each has no error for lint, and none would deny anything of it."""
    up = Up(folder / "again", folder / "my demo" / "policies")
    up.data = folder / "my demo"

    def policy(words: str) -> str:
        done = up.banksman(f"policy {words}")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        up.start()
        for name in SCRIPTS:
            file = shlex.quote(str(folder / f"{name}.yaml"))
            policy(f"suggest --agent {name} --since 1d --out {file}")
            policy(f"lint {file}")  # not 0: it has errors
            told = json.loads(policy(f"backtest {file} --since 1d --agent {name} --json"))
            assert told["decisions"] > 4
            assert told["moved"] == []
        assert up.stop() == 0
    finally:
        up.end()


def test_the_bundled_recording_is_what_the_example_writes() -> None:
    made = subprocess.run([sys.executable, "examples/make_recording.py"], capture_output=True, text=True, check=True)
    assert made.stdout == RECORDED.read_text()


# --- it can fail


class Answering:
    """A console that answers a count with rows."""

    def __init__(self, rows: list[list[str]]) -> None:
        self.rows = rows

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert path == "/v1/sql"
        assert body["parameters"] == {"sessions": ["s"]}
        return {"rows": self.rows}


GOOD = [["a", "1"], ["b", "1"]]


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (GOOD, None),
        (GOOD[:1], "1 live records are missing"),
        ([["a", "1"], ["b", "2"]], "1 live records are there more than once"),
        ([*GOOD, ["c", "1"]], "1 live records were never sent"),
    ],
)
def test_a_record_too_few_or_too_many_fails_the_demo(
    rows: list[list[str]], fault: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = count.Expected({"a", "b"}, {"s"})
    good = count.count(Answering(GOOD), expected)  # type: ignore[arg-type]
    live = count.count(Answering(rows), expected)  # type: ignore[arg-type]
    replayed = {"decisions": {"allow": 1, "deny": 0, "approve": 0}, "actions": 1, "agents": {"a": {}}}
    assert story._verdict(story.Answers(0.1, 0.1), [good, live], replayed) == (fault is not None)
    said = capsys.readouterr().out
    assert (f"WRONG: {fault}" in said) == (fault is not None)


def test_an_answer_that_is_late_fails_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    good = count.count(Answering(GOOD), count.Expected({"a", "b"}, {"s"}))  # type: ignore[arg-type]
    replayed = {"decisions": {"allow": 1, "deny": 0, "approve": 0}, "actions": 1, "agents": {"a": {}}}
    assert story._verdict(story.Answers(1.2, 0.1), [good, good], replayed) == 1
    assert "WRONG: the question took 1.2 s, more than 1 s" in capsys.readouterr().out


def test_what_a_replay_leaves_is_known_beforehand() -> None:
    expected = count.of_recording(RECORDED)
    lines = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    sessions = {(line["agent"], line["session"]) for line in lines}
    assert len(expected.records) == 3 * len(lines) + 2 * len(sessions)
    assert expected.sessions == {session for _, session in sessions}
