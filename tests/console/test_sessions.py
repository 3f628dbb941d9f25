"""`/v1/sessions` and `/v1/sessions/{session}`: the whole story in order, and what is not as it should be marked."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.console.conftest import Stand

from banksman.console import session, steps, story

PUSH = {"service": "git", "action": "push", "resource": "acme/billing", "branch": "feature/a", "args": {"force": False}}
READ = {"service": "stripe", "action": "charges:read"}


def test_a_session_is_told_in_order(stand: Stand) -> None:
    started = stand.action("session.started", "teller", "t1")
    prompt = stand.action("prompt", "teller", "t1", text="Push it.")
    model = stand.action("model.call", "teller", "t1", model="m", input_tokens=10, output_tokens=5, cost_usd=0.25)
    push, read = stand.action("tool.call", "teller", "t1", **PUSH), stand.action("tool.call", "teller", "t1", **READ)
    said, no = stand.decision(push), stand.decision(read, "deny", reason="default_deny", rule=None)
    result = stand.action("tool.result", "teller", "t1", call=push["id"], parent=push["id"], status="ok", duration_ms=5)
    denied = stand.action("tool.result", "teller", "t1", call=read["id"], parent=read["id"], status="denied")
    ended = stand.action("session.ended", "teller", "t1", status="error", error="ValueError: no")
    del no["rule"]
    stand.publish(started, prompt, model, push, read, said, no, result, denied, ended)
    told = stand.get("/v1/sessions/t1")
    kinds = [step["kind"] for step in told["steps"]]
    assert kinds == [
        "session.started", "prompt", "model.call", "tool.call", "decision", "tool.result", "tool.call", "decision",
        "tool.result", "session.ended",
    ]  # fmt: skip
    assert [step["n"] for step in told["steps"]] == list(range(1, 11))
    call = told["steps"][3]
    assert (call["decision"], call["args"], call["branch"]) == ("allow", {"force": False}, "feature/a")
    assert told["steps"][9]["tokens_total"] == 15
    assert told["steps"][9]["cost_usd_total"] == 0.25
    header = told["header"]
    assert (header["agent"], header["project"], header["owner"]) == ("teller", "shop", "ann@acme.example")
    assert header["policy_versions"] == ["shop@v3+sha256:0123456789ab"]
    assert (header["state"], header["status"], header["error"]) == ("ended", "error", "ValueError: no")
    assert (header["actions"], header["allowed"], header["denied"], header["tokens"]) == (3, 1, 1, 15)
    assert (told["gaps"], told["repeats"], told["next"], header["missing"]) == ([], [], None, 0)


def test_one_wrong_clock_does_not_make_a_session_a_century_long(stand: Stand) -> None:
    stand.publish(
        stand.action("session.started", "old", "century"),
        stand.action("note", "old", "century", text="x") | {"time": "1900-01-01T00:00:00.000000Z"},
        stand.action("note", "old", "century", text="y"),
    )
    told = stand.get("/v1/sessions/century")
    assert [step["late"] for step in told["steps"]].count("skew") == 1
    assert told["header"]["late"] == 1
    assert told["header"]["duration_s"] < 60


def test_the_list_has_the_same_numbers(stand: Stand) -> None:
    stand.publish(*(stand.action("note", "lister", f"l{n}", text="x") for n in range(5)))
    page = stand.get("/v1/sessions?agent=lister&limit=2")
    assert [one["session"] for one in page["sessions"]] == ["l4", "l3"]
    rest = stand.get(f"/v1/sessions?agent=lister&limit=10&cursor={page['next']}")
    assert [one["session"] for one in rest["sessions"]] == ["l2", "l1", "l0"]
    assert rest["next"] is None
    assert stand.get("/v1/sessions?agent=lister&since=1h&until=30m")["sessions"] == []


def test_gaps_resends_reused_ids_and_strangers_are_marked(stand: Stand) -> None:
    first = stand.action("note", "marked", "m1", text="one")
    elsewhere = stand.action("note", "marked", "other", text="not missing: another session has this number")
    lost = stand.action("note", "marked", "m1", text="never arrives")
    last = stand.action("note", "marked", "m1", text="four")
    reused = {**first, "text": "another text under the same id", "seq": 9}
    stand.publish(first, elsewhere, last, first, reused)
    stand.publish(stand.action("note", "marked", "m1", text="forged", source="liar"), signed=False)
    told = stand.get("/v1/sessions/m1?raw=1")
    texts = [step["text"] for step in told["steps"]]
    assert sorted(texts) == sorted(["one", "four", "another text under the same id", "forged"])
    assert {step["text"] for step in told["steps"] if step["id_reused"]} == {"one", "another text under the same id"}
    assert [step["text"] for step in told["steps"] if not step["verified"]] == ["forged"]
    assert {
        "source": "test#marked",
        "after": 1,
        "before": lost["seq"] + 1,
        "missing": 1,
        "n": texts.index("four") + 1,
    } in told["gaps"]
    assert told["steps"][texts.index("four")]["gap"] == 1
    assert (told["header"]["unverified"], told["header"]["id_reused"]) == (1, 2)
    assert '"never arrives"' not in str(told)
    assert told["steps"][0]["raw"].startswith("{")


def test_two_agents_may_use_the_same_id(stand: Stand) -> None:
    stand.publish(stand.action("note", "ann-1", "same", text="a"), stand.action("note", "bob-1", "same", text="b"))
    told = stand.get("/v1/sessions/same", 409)
    assert {one["agent"] for one in told["candidates"]} == {"ann-1", "bob-1"}
    assert stand.get("/v1/sessions/same?agent=bob-1")["steps"][0]["text"] == "b"
    stand.get("/v1/sessions/no-such-session", 404)


def test_a_replay_of_a_session_is_apart(stand: Stand) -> None:
    stand.publish(stand.action("note", "twice", "x1", text="live"))
    stand.publish(stand.action("note", "twice", "x1", text="replayed"), replay="run-7")
    assert [step["text"] for step in stand.get("/v1/sessions/x1")["steps"]] == ["live"]
    assert [step["text"] for step in stand.get("/v1/sessions/x1?replay=run-7")["steps"]] == ["replayed"]


def test_pages_belong_together(stand: Stand) -> None:
    stand.publish(*(stand.action("note", "pager", "p1", text=str(n)) for n in range(7)))
    page = stand.get("/v1/sessions/p1?limit=3")
    texts = [step["text"] for step in page["steps"]]
    while page["next"]:
        page = stand.get(f"/v1/sessions/p1?limit=3&cursor={page['next']}")
        texts += [step["text"] for step in page["steps"]]
    assert texts == [str(n) for n in range(7)]
    for cursor in ("x", "1.2", "1.2.3", "²³.1.0123456789ab"):
        stand.get(f"/v1/sessions/p1?cursor={cursor.encode().hex() if not cursor.isascii() else cursor}", 422)


@pytest.mark.parametrize("count", [3, session.WHOLE + 20])
def test_a_long_session_is_told_as_a_short_one(stand: Stand, count: int) -> None:
    name = f"long-{count}"
    calls = [stand.action("model.call", "pager", name, model="m", input_tokens=10) for _ in range(count)]
    ended = stand.action("session.ended", "pager", name, status="error", error="no more")
    stand.publish(*calls, ended)
    told = stand.get(f"/v1/sessions/{name}?limit=2")
    header = told["header"]
    assert (header["steps"], header["tokens"], header["error"]) == (count + 1, 10 * count, "no more")
    assert [step["tokens_total"] for step in told["steps"]] == [10, 20]
    rest = stand.get(f"/v1/sessions/{name}?cursor={told['next']}")
    assert (len(rest["steps"]), rest["next"]) == (count - 1, None)
    assert [step["error"] for step in rest["steps"][-1:]] == ["no more"]
    raw = stand.get(f"/v1/sessions/{name}?raw=1&limit=1")["steps"][0]["raw"]
    assert json.loads(raw)["id"] == calls[0]["id"]


def test_parameters_are_strict(stand: Stand) -> None:
    for query, field in (
        ("limit=0", "limit"), ("limit=5001", "limit"), ("limit=1&limit=2", "limit"), ("colour=red", "colour"),
        ("agent=", "agent"),
        ("agent=a%20b", "agent"), ("raw=2", "raw"),
    ):  # fmt: skip
        assert stand.get(f"/v1/sessions/p1?{query}", 422)["field"] == field
    for since in ("yesterday", "2026-11-24", "10", "99999999999d"):
        assert stand.get(f"/v1/sessions?since={since}", 422)["field"] == "since"


# ── the order and the gaps by themselves ──


@given(st.sets(st.integers(1, 60), min_size=1), st.sets(st.integers(1, 60)))
def test_gaps_are_what_nobody_carries(here: set[int], others: set[int]) -> None:
    found = story.gaps_of({"s": here}, {"s": others})
    missing = {n for n in range(min(here), max(here)) if n not in here and n not in others}
    assert sum(count for *_, count in found) == len(missing)
    for _, after, before, count in found:
        assert {after, before} <= here
        assert count == len([n for n in missing if after < n < before])


def row(**changes: Any) -> dict[str, Any]:
    made = {
        "id_": "i",
        "call_": steps.NIL,
        "kind": "note",
        "time_us": 0,
        "received_ms": 0,
        "seq": 0,
        "topic": "actions",
    }
    return made | {"partition": 0, "offset": 0, "body_hash": 0, "verified": True} | changes


@given(st.permutations(range(8)))
def test_the_order_of_rows_means_nothing(order: list[int]) -> None:
    rows = [
        row(id_=f"i{n}", call_=f"c{n % 3}", time_us=n * 7 % 5, offset=n, kind=("tool.call", "decision")[n % 2])
        for n in range(8)
    ]
    told = [one["id_"] for one in story.ordered([rows[n] for n in order])]
    assert told == [one["id_"] for one in story.ordered(rows)]


def test_the_verified_one_of_a_resend_is_shown() -> None:
    rows = [row(offset=1, verified=False), row(offset=2), row(offset=3)]
    assert [one["offset"] for one in story.shown(rows)] == [2]


@given(st.lists(st.tuples(st.sampled_from(["tool.call", "decision", "tool.result"]), st.integers(-9, 99)), max_size=9))
def test_what_nobody_signed_moves_nothing(forged: list[tuple[str, int]]) -> None:
    """The signed rows stand in the order in which they stand alone, whatever is written between them."""
    signed = [
        row(id_="a", call_="a", kind="tool.call", time_us=10, offset=1),
        row(id_="b", call_="b", kind="tool.call", time_us=20, offset=2),
        row(id_="d", call_="b", kind="decision", time_us=21, offset=0, topic="decisions"),
        row(id_="r", call_="a", kind="tool.result", time_us=30, offset=3),
    ]
    for n, (kind, time_us) in enumerate(forged):
        signed.append(row(id_=f"f{n}", call_="b", kind=kind, time_us=time_us, offset=9 + n, verified=False))
    told = story.ordered(signed)
    assert [one["id_"] for one in told if one["verified"]] == ["a", "r", "b", "d"]


def test_a_crowd_of_made_up_agents_does_not_push_the_real_one_out(stand: Stand) -> None:
    stand.publish(stand.action("note", "alone", "crowded", text="real"))
    stand.publish(*(stand.action("note", f"crowd-{n}", "crowded", text="x") for n in range(120)), signed=False)
    assert stand.get("/v1/sessions/crowded")["header"]["agent"] == "alone"


def test_a_flood_of_forgeries_is_what_is_cut_from_a_long_session(stand: Stand) -> None:
    stand.publish(*(stand.action("note", "flooded", "f1", text="x") for _ in range(5)), signed=False)
    stand.publish(*(stand.action("note", "flooded", "f1", text="real") for _ in range(2)))
    sql = session.LIGHT_SQL.replace(str(session.MOST_RECORDS + 1), "3")
    rows = stand.archive.ask(sql, session="f1", agent="flooded", replay="", first=0, as_of=2**46)
    assert [row["verified"] for row in rows] == [True, True, False]


def test_forged_decisions_name_no_owner(stand: Stand) -> None:
    call = stand.action("tool.call", "owned", "o1", **PUSH)
    stand.publish(call, stand.decision(call))
    stand.publish(stand.decision(call, owner="zz-mallory", project="zz"), signed=False)
    (told,) = stand.get("/v1/sessions?agent=owned")["sessions"]
    assert (told["owner"], told["project"]) == ("ann@acme.example", "shop")
