from __future__ import annotations

import hashlib
import os
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banksman.codec import MAX_EVENT_BYTES, cut, decode, encode, validate
from banksman.errors import InvalidEvent
from banksman.events import ToolCall, is_name
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic


def call(**changes: Any) -> dict[str, Any]:
    event = {
        "v": 1, "id": uuid7(), "time": rfc3339(), "kind": "tool.call", "source": "s", "project": "p", "agent": "a",
        "session": "s1", "service": "git", "action": "push",
    }  # fmt: skip
    event.update(changes)
    return {key: value for key, value in event.items() if value is not ...}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"id": ...}, "id"), ({"id": "7"}, "id"), ({"id": "019a0000-0000-4000-8000-000000000001"}, "id"),
        ({"v": 2}, "v"), ({"kind": ...}, "kind"), ({"kind": "decision"}, "kind"), ({"kind": "x"}, "kind"),
        ({"time": "2026-11-24T15:30:00Z"}, "time"), ({"time": "2026-13-45T15:30:00.000001Z"}, ""),
        ({"agent": "../x"}, "agent"), ({"agent": "a\n"}, "agent"), ({"id": uuid7() + "\n"}, "id"),
        ({"call": uuid7() + "\n"}, "call"), ({"time": "2026-11-24T15:30:00.000001Z\n"}, "time"),
        ({"time": "\uff12026-11-24T15:30:00.000001Z"}, "time"),
        ({"session": "x" * 129}, "session"), ({"seq": 0}, "seq"), ({"args": [1]}, "args"),
        ({"service": 1}, "service"), ({"kind": "model.call", "model": "m", "input_tokens": -1}, "input_tokens"),
        ({"kind": "model.call", "model": "m", "cost_usd": -0.1}, "cost_usd"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(changes: dict[str, Any], field: str) -> None:
    event = call(**changes)
    with pytest.raises(InvalidEvent) as decoded:
        decode(encode(event), Topic.ACTIONS)
    with pytest.raises(InvalidEvent) as validated:
        validate(event, Topic.ACTIONS)
    assert decoded.value.field == validated.value.field == field


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"session": "two words"}, "must be a name"),
        ({"call": "7"}, "must be a UUID in"),
        ({"id": "7"}, "must be a UUIDv7 in"),
        ({"time": "yesterday"}, "must be a time in UTC"),
    ],
)
def test_what_is_wrong_is_said_for_people(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidEvent, match=says) as caught:
        validate(call(**changes), Topic.ACTIONS)
    assert "regex" not in caught.value.message


def test_a_forked_child_makes_ids_of_its_own() -> None:
    uuid7()  # the next ones are prepared
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, "".join(uuid7(0) for _ in range(40)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    ours, theirs = {uuid7(0) for _ in range(600)}, os.read(reading, 4096).decode()
    os.close(reading)
    os.close(writing)
    assert len(theirs) == 40 * 36
    assert ours.isdisjoint(theirs[at : at + 36] for at in range(0, len(theirs), 36))


def test_uuid7_is_sortable_by_time_and_unique() -> None:
    assert uuid7(1000)[14] == "7"
    assert uuid7(1000) < uuid7(1001)
    assert len({uuid7() for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize("name", ["a", "claude-invoice-01", "a@b:c._-", "A" * 128])
def test_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "A" * 129, "a\n", "é"])
def test_not_names(name: str) -> None:
    assert not is_name(name)


payloads = st.recursive(
    st.text(max_size=50) | st.integers(0, 9),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
)


@given(
    st.dictionaries(st.text(max_size=5), payloads, max_size=4),
    st.integers(2, 300),
    st.characters(exclude_categories=["Cs"]),
)
def test_cut_always_fits_and_keeps_who_and_what(args: dict[str, Any], repeats: int, letter: str) -> None:
    event = call(args={**args, "big": letter * repeats * 40, "more": [letter * repeats * 40]}, text="x" * repeats)
    event["args"]["many"] = {str(n): n for n in range(repeats * 20)}
    before = {key: event[key] for key in ("id", "kind", "agent", "session", "service", "action")}
    made = cut(event, lambda raw: f"hmac-sha256:{len(raw)}", limit=4096)
    assert len(encode(made)) <= 4096
    assert {key: made[key] for key in before} == before
    assert isinstance(decode(encode(made), Topic.ACTIONS), ToolCall)


@pytest.mark.parametrize(
    "args",
    [
        {str(n): "x" * 1024 for n in range(8000)},  # took a minute when each round cut one text
        {"a": ['"' * 900] * 3000},  # their JSON takes twice the room once more inside a JSON text
        {'"\\' * 400 + str(n): n for n in range(3000)},
        {"k" * 3_000_000: 1},
        {"deep": {"deeper": [["\x01" * 2000] * 500]}},
    ],
    ids=["many long texts", "many short texts of quotes", "keys of quotes", "one long key", "control characters"],
)
def test_cut_fits_whatever_is_long_and_costs_what_its_size_costs(args: dict[str, Any]) -> None:
    event = call(args=args)
    began = time.process_time()
    made = cut(event, lambda raw: f"hmac-sha256:{hashlib.sha256(raw).hexdigest()}")
    assert time.process_time() - began < 2
    assert MAX_EVENT_BYTES // 3 < len(encode(made)) <= MAX_EVENT_BYTES
    assert isinstance(decode(encode(made), Topic.ACTIONS), ToolCall)


def test_what_is_all_short_fields_cannot_be_cut() -> None:
    with pytest.raises(InvalidEvent, match="nothing in it can be cut"):
        cut(call(**{f"field{n}": n for n in range(100_000)}), lambda _: "hmac-sha256:ab")


def test_cut_leaves_a_marker_with_size_and_digest() -> None:
    made = cut(call(args={"text": "é" * 2_000_000}), lambda _: "hmac-sha256:ab")
    assert len(encode(made)) <= MAX_EVENT_BYTES
    assert made["args"]["text"].endswith("…[cut: 2000000 characters, hmac-sha256:ab]")


def test_small_events_are_not_touched() -> None:
    event = call(args={"a": "x"})
    assert cut(event, lambda _: "") is event
