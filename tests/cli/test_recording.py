"""A recording: what a line may hold, what it becomes, and that all of it is a function of the file alone."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banksman import codec
from banksman.cli import recording
from banksman.cli.journal import Journal
from banksman.errors import InvalidInput
from banksman.events import is_name
from banksman.topics import Topic

LINE: dict[str, Any] = {
    "time": "2026-01-01T09:26:23.941Z", "project": "banking", "agent": "a1", "session": "s1", "service": "files",
    "action": "read_file", "resource": "bill.txt", "args": {"path": "bill.txt"}, "status": "ok", "duration_ms": 12.5,
    "input_tokens": 137, "output_tokens": 14,
}  # fmt: skip

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def made(*lines: dict[str, Any] | str, name: str = "r.jsonl") -> Path:
        path = tmp_path / name
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
        return path

    return made


def scripts(path: Path) -> list[recording.Script]:
    found = recording.survey(path)
    names = recording.Names.of(found)
    return [recording.script(action, found, names) for action in recording.read(path)]


def test_a_line_becomes_a_call_a_question_and_a_result(write: Write) -> None:
    (script,) = scripts(write(LINE))
    started, call = script.before
    result, ended = script.after
    assert [event["kind"] for event in (started, call, result, ended)] == [
        "session.started", "tool.call", "tool.result", "session.ended",
    ]  # fmt: skip
    assert call["time"] == script.question["time"] == "2026-01-01T09:26:23.941000Z"
    assert started["time"] == "2026-01-01T09:26:23.940999Z"
    assert result["time"] == "2026-01-01T09:26:23.953500Z"
    assert call["id"] == call["call"] == script.question["call"] == result["call"] == result["parent"]
    assert (call["args"], result["input_tokens"], result["status"]) == ({"path": "bill.txt"}, 137, "ok")
    assert script.question["args"] == {"path": "bill.txt"}
    for event in (*script.before, *script.after):
        codec.validate(event, Topic.ACTIONS)


def test_a_session_is_opened_and_closed_once(write: Write) -> None:
    path = write(*({**LINE, "session": name} for name in ("one", "two", "one", "two", "one")))
    kinds = [[event["kind"] for event in (*script.before, *script.after)] for script in scripts(path)]
    assert [("session.started" in line, "session.ended" in line) for line in kinds] == [
        (True, False), (True, False), (False, False), (False, True), (False, True),
    ]  # fmt: skip


def test_other_names_of_fields_and_fields_that_are_nobodys(write: Write) -> None:
    odd = {
        "ts": LINE["time"], "project": "p", "agent_id": "a", "session_id": "s", "service": "x", "tool": "y", "seq": 7,
        "args_digest": "abc", "result_digest": "def", "result_norm_digest": "ghi", "batch_index": 2, "resource": "",
        "label": {"injected": True}, "id": "dropped", "own": {"kept": 1}, "when": "kept too", "parent": None,
    }  # fmt: skip
    (script,) = scripts(write(odd))
    call, result = script.before[1], script.after[0]
    assert (call["recorded_seq"], call["recorded_args_digest"], call["batch"]) == (7, "abc", 2)
    assert (call["own"], call["when"]) == ({"kept": 1}, "kept too")
    assert (result["result_hash"], result["outcome_hash"]) == ("def", "ghi")
    assert not {"label", "resource", "seq"} & (set(call) | set(result))
    assert call["id"] != "dropped"


def test_the_same_content_is_the_same_replay_packed_or_not(write: Write) -> None:
    lines = [{**LINE, "agent": f"a/{n % 3}", "session": f"s {n % 5}"} for n in range(20)]
    plain, packed = write(*lines), write(*lines, name="r.jsonl.gz")
    assert scripts(plain) == scripts(packed) == scripts(plain)
    assert recording.survey(plain).run == recording.survey(packed).run
    ids = [event["id"] for script in scripts(plain) for event in (*script.before, *script.after)]
    ids += [script.question["id"] for script in scripts(plain)]
    assert len(set(ids)) == len(ids)
    other = write(*lines, {**LINE, "agent": "more"}, name="other.jsonl")
    assert not set(ids) & {event["id"] for script in scripts(other) for event in script.before}


def test_ids_sort_as_the_lines_do(write: Write) -> None:
    path = write(*(LINE for _ in range(300)))
    ids = [script.question["call"] for script in scripts(path)]
    assert ids == sorted(ids)


BAD: list[tuple[dict[str, Any] | str, str]] = [
    ("no json", "line 2: not JSON"),
    ("[]", "line 2: is not a JSON object"),
    ('{"time": 1, "time": 2}', "line 2: time: is there twice"),
    ({**LINE, "agent": None}, "line 2: agent: is missing"),
    ({**LINE, "agent": ""}, "line 2: agent: must be a text"),
    ({**LINE, "service": 7}, "line 2: service: must be a text"),
    ({**LINE, "time": "yesterday"}, "line 2: time: 'yesterday' is not an ISO 8601 time"),
    ({**LINE, "ts": "2026-01-01"}, "line 2: time: is there as ts and under another name"),
    ({**LINE, "status": "fine"}, "line 2: status: must be ok, error or denied"),
    ({**LINE, "args": [1]}, "line 2: args: Expected"),
    ({**LINE, "input_tokens": -1}, "line 2: input_tokens: Expected"),
    ({**LINE, "duration_ms": "long"}, "line 2: duration_ms: Expected"),
    ({**LINE, "batch": 1.5}, "line 2: batch: Expected"),
    ({**LINE, "args": {"n": 2**60}}, "line 2: args.n: integers beyond"),
    ({**LINE, "project": "other"}, "line 2: project: a1 is in banking and in other"),
    ({**LINE, "resource": "x" * 1_000_000}, "line 2: is longer than 1,000,000 bytes"),
]


@pytest.mark.parametrize(("line", "said"), BAD, ids=[said for _, said in BAD])
def test_what_is_wrong_is_said_with_line_and_field_before_anything_is_sent(
    write: Write, line: dict[str, Any] | str, said: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        recording.survey(write(LINE, line))
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x1f\x8bbroken", gzip.compress(b"{}" * 100, mtime=0)[:-9]])
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r").write_bytes(content)
    with pytest.raises(InvalidInput):
        recording.survey(tmp_path / "r")
    with pytest.raises(InvalidInput, match="cannot be read"):
        recording.survey(tmp_path / "absent")


@given(st.sets(st.text(min_size=1, max_size=200) | st.sampled_from(["a/b", "a:b", "a_b", "a b", "x", "/", "_"])))
def test_mapped_names_are_allowed_and_stay_apart(names: set[str]) -> None:
    mapped = recording.map_names(names)
    used = [mapped.get(name, name) for name in names]
    assert all(is_name(name) for name in used)
    assert len(set(used)) == len(used)
    assert recording.map_names(set(names)) == mapped
    assert not any(is_name(name) for name in mapped)


def test_a_journal_that_was_torn_goes_on(tmp_path: Path) -> None:
    one = Journal(tmp_path, "replay-1", "here")
    one.add([(1, "allow"), (2, "deny")])
    with pytest.raises(InvalidInput, match="being replayed by another process"):
        Journal(tmp_path, "replay-1", "here")
    one.close()
    with one.path.open("a") as file:
        file.write("17 app")
    two = Journal(tmp_path, "replay-1", "here")
    assert two.done == {1: "allow", 2: "deny"}
    two.add([(17, "approve")])
    two.close()
    three, elsewhere = Journal(tmp_path, "replay-1", "here"), Journal(tmp_path, "replay-1", "there")
    assert three.done == {1: "allow", 2: "deny", 17: "approve"}
    assert elsewhere.done == {}, "another enforcer knows nothing of it"
    three.close()
    elsewhere.close()
