"""`POST /v1/events` through a real process: durable before accepted, stamped from the token, all or nothing, bounded."""

from __future__ import annotations

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.enforcer.conftest import Answer, Shop

from banksman import codec
from banksman.canonical import canonical
from banksman.enforcer import entrance
from banksman.signing import Verifier, digest
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic

NDJSON = {"Content-Type": "application/x-ndjson"}


def note(session: str = "s1", **more: Any) -> dict[str, Any]:
    return {"kind": "note", "session": session, "text": "hello"} | more


def send(shop: Shop, body: Any, *, agent: str = "buyer", **more: Any) -> Answer:
    return shop("POST", "/v1/events", body, token=shop.desk.agents[agent].token, **more)


def of(session: str) -> Any:
    return lambda record: record.get("session") == session


def test_one_event_is_stamped_and_signed_before_it_is_accepted(shop: Shop) -> None:
    answer = send(shop, note("one"))
    assert (answer.status, answer.body) == (200, {"accepted": 1})
    (record,) = shop.tape.wait(Topic.ACTIONS, of("one"))
    assert {name: record[name] for name in ("v", "kind", "project", "agent", "session", "text", "source")} == {
        "v": 1, "kind": "note", "project": "shop", "agent": "buyer", "session": "one", "text": "hello",
        "source": "http/1.0",
    }  # fmt: skip
    codec.decode(record["_raw"], Topic.ACTIONS)
    assert record["_key"] == "buyer"
    author = Verifier(shop.desk.secret).author(
        shop.desk.kafka.topic(Topic.ACTIONS), b"buyer", list(record["_headers"].items()), record["_raw"]
    )
    assert str(author) == "service:enforcer"
    assert record["_headers"]["ce_id"].decode() == record["id"]


@pytest.mark.parametrize("shape", ["array", "ndjson", "gzip"])
def test_batches_keep_their_order(shop: Shop, shape: str) -> None:
    events = [note(f"batch-{shape}", text=str(n), seq=n + 1, source="emitter-python/1.0#x") for n in range(1200)]
    if shape == "array":
        answer = send(shop, events)
    else:
        raw = b"\n".join(json.dumps(event).encode() for event in events) + b"\n\n"
        more = {"Content-Encoding": "gzip"} if shape == "gzip" else {}
        answer = send(shop, gzip.compress(raw) if more else raw, headers=NDJSON | more)
    assert (answer.status, answer.body) == (200, {"accepted": 1200})
    records = shop.tape.wait(Topic.ACTIONS, of(f"batch-{shape}"), 1200)
    assert [record["seq"] for record in records] == list(range(1, 1201))


def test_what_the_sender_wrote_stays(shop: Shop) -> None:
    name, call = uuid7(), uuid7()
    event = {
        "v": 1, "id": name, "time": "2026-01-02T03:04:05+02:00", "kind": "tool.call", "source": "mine#1", "seq": 7,
        "agent": "buyer", "project": "shop", "session": "mine", "call": call, "service": "git", "action": "push",
        "args": {"n": 1.0}, "unknown": {"field": [1]}, "batch": 0,
    }  # fmt: skip
    assert send(shop, event).status == 200
    (record,) = shop.tape.wait(Topic.ACTIONS, of("mine"))
    assert {k: v for k, v in record.items() if not k.startswith("_")} == event | {
        "time": "2026-01-02T01:04:05.000000Z",
        "args_hash": digest(shop.desk.agents["buyer"].event_key, canonical({"n": 1.0})),
    }


def test_a_resend_has_the_same_id_and_bytes(shop: Shop) -> None:
    event = note("again", id=uuid7(), time=rfc3339(), text="ghp_" + "a1B2" * 9)
    assert [send(shop, event).status for _ in range(2)] == [200, 200]
    first, second = shop.tape.wait(Topic.ACTIONS, of("again"), 2)
    assert first["_raw"] == second["_raw"]
    assert first["_headers"] == second["_headers"]


def test_when_it_was_sent_goes_along(shop: Shop) -> None:
    assert send(shop, note("late"), headers={"Banksman-Sent": "2026-11-24T15:30:00Z"}).status == 200
    (record,) = shop.tape.wait(Topic.ACTIONS, of("late"))
    assert record["_headers"]["banksman-sent"] == b"2026-11-24T15:30:00.000000Z"
    wrong = send(shop, note("late"), headers={"Banksman-Sent": "yesterday"})
    assert (wrong.status, wrong.body["field"]) == (422, "Banksman-Sent")


def test_secrets_are_redacted_at_the_entrance(shop: Shop) -> None:
    secret = "ghp_" + "a1B2" * 9
    event = {"kind": "tool.result", "session": "leak", "status": "ok", "result": {"out": secret}, "extra": secret}
    assert send(shop, event).status == 200
    (record,) = shop.tape.wait(Topic.ACTIONS, of("leak"))
    assert secret.encode() not in record["_raw"]
    assert record["redactions"] == ["/extra github-token", "/result/out github-token"]


def test_what_is_too_large_is_cut(shop: Shop) -> None:
    texts = {str(n): "x" * 2000 for n in range(1500)}
    answer = send(shop, {"kind": "tool.result", "session": "wide", "status": "ok", "result": texts})
    assert answer.status == 200, answer.raw
    (record,) = shop.tape.wait(Topic.ACTIONS, of("wide"))
    assert codec.MAX_EVENT_BYTES * 0.8 < len(record["_raw"]) <= codec.MAX_EVENT_BYTES
    assert "…[cut: 2000 characters, hmac-sha256:" in record["result"]["7"]
    short = send(shop, note("wide2") | {f"field{n}": n for n in range(80_000)})
    assert short.status == 413
    assert "nothing in it can be cut" in short.body["detail"]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, ""),
        (b"[", 400, ""),
        (b"[1]", 422, "[0]"),
        (b'"note"', 422, ""),
        (b"[[[[", 422, "[0]"),
        (b"[" * 100_000, 422, "[0]"),
        ({"kind": "note", "text": "x"}, 422, "session"),
        (note(kind="decision"), 422, "kind"),
        (note(kind="agent.enrolled"), 422, "kind"),
        (note(kind="finding"), 422, "kind"),
        (note(kind=["note"]), 422, "kind"),
        (note(kind=None), 422, "kind"),
        (note(agent="seller"), 403, "agent"),
        (note(agent=1), 403, "agent"),
        (note(project="lab"), 403, "project"),
        (note(session="a b"), 422, "session"),
        (note(id="7"), 422, "id"),
        (note(v=2), 422, "v"),
        (note(time="yesterday"), 422, "time"),
        (note(time="2026-02-30T00:00:00Z"), 422, "time"),
        (note(time="9999-12-31T23:59:60Z"), 422, "time"),
        (note(time=1), 422, "time"),
        (note(seq=0), 422, "seq"),
        (note(text=1), 422, "text"),
        ({"kind": "model.call", "session": "s", "model": "m", "input_tokens": -1}, 422, "input_tokens"),
        ({"kind": "model.call", "session": "s", "model": "m", "cost_usd": -0.5}, 422, "cost_usd"),
        (b'{"kind": "note", "session": "s", "text": "a", "text": "b"}', 400, "text"),
        (b'{"kind": "note", "session": "s", "text": "a", "n": 9007199254740993}', 400, "n"),
        (b'{"kind": "note", "session": "s", "text": "\\udfff"}', 400, ""),
        (b'{"kind": "note", "session": "s", "text": "a", "deep": ' + b"[" * 40 + b"]" * 40 + b"}", 400, "deep" + "[]" * 31),
        ([note(), note(kind="vote")], 422, "[1].kind"),
        ([note(), note(agent="seller")], 403, "[1].agent"),
        (b'[{"kind":"note","session":"s","text":"a"},{"kind":"note","session":"s","text":"a","text":"b"}]', 400, "[1].text"),
        ([note()] * 10_001, 413, ""),
        (b'{"kind":"","session":""},' * 200_000, 400, ""),
        (b"[" + b'{"kind":"","session":""},' * 20_000 + b'{"kind":"","session":""}]', 413, ""),
    ],
)  # fmt: skip
def test_one_bad_event_refuses_the_batch_and_says_which(shop: Shop, body: Any, status: int, field: str) -> None:
    before = marked(shop)
    answer = send(shop, body)
    assert answer.status == status, answer.raw
    assert answer.body.get("field", "") == field
    assert answer.headers["content-type"] == "application/problem+json"
    assert marked(shop) == before + 1


def marked(shop: Shop) -> int:
    """How many records of the agent there are, one more than before: they are in one partition, in order."""
    session = uuid7()
    assert send(shop, note(session)).status == 200
    shop.tape.wait(Topic.ACTIONS, of(session))
    return len(shop.tape.records(Topic.ACTIONS, lambda record: record["_key"] == "buyer"))


@pytest.mark.parametrize(
    ("raw", "status", "field"),
    [
        (b'{"kind":"note","session":"s","text":"a"}\n{"kind":', 400, "[1]"),
        (b'{"kind":"note","session":"s","text":"a"}\nnull\n', 422, "[1]"),
        (b"\n" * 10_001, 413, ""),
        (b"\n" * 5_000, 200, ""),
    ],
)
def test_lines(shop: Shop, raw: bytes, status: int, field: str) -> None:
    answer = send(shop, raw, headers=NDJSON)
    assert answer.status == status, answer.raw
    assert answer.body.get("field", "") == field


def test_nothing_is_accepted_of_nothing(shop: Shop) -> None:
    assert send(shop, []).body == {"accepted": 0}


def test_an_array_of_a_million_numbers_takes_no_memory(shop: Shop) -> None:
    assert shop.enforcer.process is not None
    pid = shop.enforcer.process.pid

    def resident() -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096

    before = resident()
    answer = send(shop, b"[" + b"1," * 4_000_000 + b"1]")
    assert (answer.status, answer.body["field"]) == (422, "[0]")
    assert resident() - before < 100_000_000


def test_a_batch_of_a_thousand_sessions_counts_them(shop: Shop) -> None:
    """And a body that is larger than what an agent may have under way is never taken."""
    assert entrance.MAX_EVENTS == 10_000
    assert send(shop, [note(f"many-{n}") for n in range(1000)]).status == 200
    assert (
        len(shop.tape.wait(Topic.ACTIONS, lambda record: record.get("session", "").startswith("many-"), 1000)) == 1000
    )


def test_batches_of_one_agent_at_the_same_time_all_arrive(shop: Shop) -> None:
    batches = [[note("wide-open", text=f"{b}/{n}") for n in range(700)] for b in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert {answer.status for answer in pool.map(lambda batch: send(shop, batch), batches)} == {200}
    records = shop.tape.wait(Topic.ACTIONS, of("wide-open"), 5600)
    assert len(records) == 5600
    order = [record["text"].partition("/")[0] for record in records]
    assert [order[n] for n in range(0, 5600, 700)] == list(dict.fromkeys(order))  # batch after batch, none in another
