"""`banksman replay` against a running `banksman up`: everything once in ClickHouse, however often it was interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.running_up import BANKSMAN, Up, until
from tests.servers import child_environment

POLICY = """\
project: office
version: 1
owner: ann
agents:
  office:reader:
    allow: [{service: files, actions: [read]}]
    require_approval: [{service: mail, actions: [send], resources: ["outside/*"]}]
"""
KINDS = ("session.started", "tool.call", "decision", "tool.result", "session.ended")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("replay")
    made = Up(folder)
    made.policies.mkdir()
    (made.policies / "office.yaml").write_text(POLICY)
    made.start()
    yield made
    made.end()


def lines(count: int, mark: str) -> list[dict[str, Any]]:
    """A recording of eight agents; `mark` makes it one of its own."""
    made = []
    for n in range(count):
        agent = n % 8
        operation = [("files", "read", "a.txt"), ("mail", "send", "outside/bob"), ("mail", "delete", "7")][n % 3]
        made.append(
            {
                "time": f"2026-02-{1 + n // 1440:02d}T{n // 60 % 24:02d}:{n % 60:02d}:00Z", "project": "office",
                "agent": "office/reader" if agent == 0 else f"office/a{agent}", "session": f"{mark} {n % 40}",
                "service": operation[0], "action": operation[1], "resource": operation[2],
                "args": {"n": n, "password": "hunter2"}, "status": "ok", "duration_ms": 5, "input_tokens": 10,
            }
        )  # fmt: skip
    return made


def write(path: Path, recorded: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in recorded))
    return path


def start(up: Up, file: Path, data: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*BANKSMAN, "replay", str(file), *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=child_environment() | up.settings() | {"BANKSMAN_DATA": str(data)},
    )  # fmt: skip


def replay(up: Up, file: Path, data: Path, *more: str) -> Any:
    """A whole run -> its summary."""
    process = start(up, file, data, "--json", *more)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return json.loads(out)


def stored(up: Up, run: str, wanted: int) -> list[dict[str, Any]]:
    """Every row of a run, once there are so many different ids and nothing more comes."""
    where = f"replay = '{run}'"
    until(lambda: len({row["id"] for row in up.rows(where)}) >= wanted, 60)
    return up.rows(where)


def journal(data: Path) -> str:
    return "".join(path.read_text() for path in data.glob("replay/*.journal"))


def grown(data: Path, before: int, process: subprocess.Popen[str]) -> None:
    """Return when more is finished than before, or the process has ended."""
    until(lambda: len(journal(data)) > before or process.poll() is not None, 60)


def each_once(rows: list[dict[str, Any]], recorded: list[dict[str, Any]]) -> None:
    """Each action's call, decision and result is there, under one id with one text, and in its order."""
    texts = {(row["id"], row["raw"]) for row in rows}
    assert len(texts) == len({row["id"] for row in rows}), "an id has two texts"
    kinds = Counter(json.loads(raw)["kind"] for _, raw in texts)
    sessions = len({(line["agent"], line["session"]) for line in recorded})
    assert kinds == dict(zip(KINDS, (sessions, *[len(recorded)] * 3, sessions), strict=True))
    by_agent: dict[str, list[int]] = {}
    first = {row["id"]: row for row in sorted(rows, key=lambda row: int(row["offset"]), reverse=True)}
    for row in sorted(first.values(), key=lambda row: int(row["offset"])):
        if row["kind"] == "tool.call":
            by_agent.setdefault(str(row["agent"]), []).append(json.loads(row["raw"])["args"]["n"])
    assert all(numbers == sorted(numbers) for numbers in by_agent.values())


def test_a_replay(up: Up, tmp_path: Path) -> None:
    recorded = lines(120, "whole")
    file = write(tmp_path / "r.jsonl", recorded)
    told = replay(up, file, tmp_path / "data")
    assert (told["complete"], told["sent"], told["sent_before"]) == (True, 120, 0)
    assert told["decisions"] == {"actions": 120, "allow": 5, "deny": 110, "approve": 5}
    assert told["agents"]["office:reader"] == {"actions": 15, "allow": 5, "deny": 5, "approve": 5}
    assert {"what": "agent", "recorded": "office/reader", "replayed": "office:reader"} in told["names"]
    rows = stored(up, told["run"], 120 * 3 + 2 * 40)
    each_once(rows, recorded)
    assert {row["replay"] for row in rows} == {told["run"]}
    assert all(row["verified"] for row in rows)
    assert not any("hunter2" in str(row["raw"]) for row in rows)
    call = next(row for row in rows if row["kind"] == "tool.call" and json.loads(row["raw"])["args"]["n"] == 61)
    assert str(call["time"]).startswith("2026-02-01 01:01:00")
    assert not up.rows("kind = 'approval.requested'"), "a replay opened an approval"
    listed = json.loads(up.banksman(f"sessions --replay {told['run']} --json").stdout)["sessions"]
    assert {one["session"] for one in listed} == {f"whole_{n}" for n in range(40)}
    assert json.loads(up.banksman("sessions --json").stdout)["sessions"] == [], "history stands among the live ones"
    again = replay(up, file, tmp_path / "data")
    assert (again["sent"], again["sent_before"], again["decisions"]) == (0, 120, told["decisions"])
    assert not list((tmp_path / "data" / "replay").glob("*.spool")), "nothing is left of a spool that was sent"


def test_without_a_journal_everything_is_sent_again_and_is_there_once(up: Up, tmp_path: Path) -> None:
    recorded = lines(60, "again")
    file = write(tmp_path / "r.jsonl", recorded)
    one, two = replay(up, file, tmp_path / "one"), replay(up, file, tmp_path / "two")
    assert one["sent"] == two["sent"] == 60
    rows = stored(up, one["run"], 60 * 3 + 2 * 40)
    until(lambda: len(up.rows(f"replay = '{one['run']}'")) == 2 * len({row["id"] for row in rows}), 60)
    each_once(up.rows(f"replay = '{one['run']}'"), recorded)
    shown = up.banksman("session 'again_0' --agent office:reader --json".replace("'", ""))
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)], ids=["INT", "TERM", "KILL"]
)
def test_interrupted_and_run_again(up: Up, tmp_path: Path, number: int, code: int) -> None:
    """Twice in the middle, then to the end."""
    recorded = lines(1200, f"cut {number}")
    file, data = write(tmp_path / "r.jsonl", recorded), tmp_path / "data"
    for _ in range(2):
        before = len(journal(data))
        process = start(up, file, data)
        grown(data, before, process)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        if code == 130:
            assert "the same command goes on from here" in said
    told = replay(up, file, data)
    assert told["complete"]
    assert told["sent_before"] > 0
    assert told["sent"] + told["sent_before"] == 1200
    each_once(stored(up, told["run"], 1200 * 3 + 2 * 40), recorded)


def test_an_enforcer_that_is_killed_meanwhile(up: Up, tmp_path: Path) -> None:
    recorded = lines(600, "killed")
    file, data = write(tmp_path / "r.jsonl", recorded), tmp_path / "data"
    process = start(up, file, data, "--json")
    until(lambda: len(journal(data)) > 0, 60)
    os.kill(up.pids()["enforcer"], signal.SIGKILL)  # `up` starts it again
    out, said = process.communicate(timeout=150)
    assert process.returncode == 0, said
    told = json.loads(out)
    assert told["complete"]
    each_once(stored(up, told["run"], 600 * 3 + 2 * 40), recorded)


def test_its_own_pace(up: Up, tmp_path: Path) -> None:
    """One action a recorded minute, sixty times as fast: a second each; what was sent before is not waited for again."""
    file, data = write(tmp_path / "r.jsonl", lines(4, "pace")), tmp_path / "data"
    began = time.monotonic()
    assert replay(up, file, data, "--speed", "60")["sent"] == 4
    assert time.monotonic() - began > 3
    began = time.monotonic()
    assert replay(up, file, data, "--speed", "0.01")["sent_before"] == 4
    assert time.monotonic() - began < 60


def test_one_process_at_a_time_replays_a_run(up: Up, tmp_path: Path) -> None:
    recorded = lines(600, "two at once")
    file, data = write(tmp_path / "r.jsonl", recorded), tmp_path / "data"
    first = start(up, file, data, "--json", "--speed", "120")
    until(lambda: list(data.glob("replay/*.journal")) or first.poll() is not None, 60)
    second = up.banksman(f"replay {file}", BANKSMAN_DATA=str(data))
    assert second.returncode == 2
    assert "is being replayed by another process already" in second.stderr
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130, said
    told = replay(up, file, data)
    assert told["complete"]
    each_once(stored(up, told["run"], 600 * 3 + 2 * 40), recorded)


def test_without_the_right_it_is_refused(up: Up, tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", lines(3, "refused"))
    added = up.banksman("operators add vera --role viewer --json")
    token = json.loads(added.stdout)["token"] if added.returncode == 0 else pytest.fail(added.stderr)
    for given, says in ((token, "403"), ("bmo_0123456789abcdef_unknown", "401")):
        ended = up.banksman(f"replay {file}", BANKSMAN_OPERATOR_TOKEN=given, BANKSMAN_DATA=str(tmp_path / given[:8]))
        assert ended.returncode == 3
        assert says in ended.stderr, ended.stderr
        assert "Traceback" not in ended.stderr
        assert given not in ended.stderr + ended.stdout
    ended = up.banksman(
        f"replay {file}", BANKSMAN_OPERATOR_TOKEN="", BANKSMAN_OPERATOR_TOKEN_FILE=str(tmp_path / "none")
    )
    assert ended.returncode in (2, 3)
    assert "BANKSMAN_OPERATOR_TOKEN" in ended.stderr, ended.stderr
    assert not up.rows("session LIKE 'refused_%'")


def test_a_dry_run_sends_nothing(up: Up, tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", lines(3, "dry"))
    ended = up.banksman(f"replay {file} --dry-run --json", BANKSMAN_DATA=str(tmp_path / "data"))
    told = json.loads(ended.stdout)
    assert (told["actions"], told["sent"], told["complete"]) == (3, 0, False)
    assert {one["recorded"]: one["replayed"] for one in told["names"] if one["what"] == "agent"} == {
        "office/reader": "office:reader", "office/a1": "office:a1", "office/a2": "office:a2",
    }  # fmt: skip
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ('{"time": "2026-01-01"}', "line 61: project: is missing"),
        ("{not json", "line 61"),
        ("[]", "line 61: is not a JSON object"),
        (json.dumps(lines(1, "x")[0] | {"time": "yesterday"}), "line 61: time: 'yesterday' is not an ISO 8601 time"),
        (json.dumps(lines(1, "x")[0] | {"status": "maybe"}), "line 61: status: must be ok, error or denied"),
        (json.dumps(lines(1, "x")[0] | {"project": "lab"}), "line 61: project: office/reader is in office and in lab"),
        (json.dumps(lines(1, "x")[0] | {"input_tokens": -1}), "line 61: input_tokens"),
    ],
    ids=["missing", "no-json", "no-object", "time", "status", "two-projects", "tokens"],
)
def test_a_bad_line_is_named_and_nothing_before_it_is_sent(up: Up, tmp_path: Path, bad: str, says: str) -> None:
    file = write(tmp_path / "r.jsonl", lines(60, "bad"))
    file.write_text(file.read_text() + bad + "\n")
    ended = up.banksman(f"replay {file}", BANKSMAN_DATA=str(tmp_path / "data"))
    assert ended.returncode == 2
    assert says in ended.stderr, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()
    assert not up.rows("session LIKE 'bad_%'")
