"""`banksman watch`: a live tail that outlives the console."""

from __future__ import annotations

import json
import signal
import threading
from typing import Any

import pytest
from tests.cli import canned
from tests.cli.conftest import Handler, Reply, Scribe, Shell, problem

from banksman.cli import watch

WATCH = "GET /v1/watch"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scribe is back at once."""
    monkeypatch.setattr(watch, "PAUSE_S", (0.01, 0.05))


def record(n: int, kind: str = "note", **changes: Any) -> dict[str, Any]:
    """A step without what a stream cannot know."""
    made = canned.step(n, kind, **changes)
    for name in ("n", "gap", "voided", "id_reused", "tokens_total", "cost_usd_total", "raw"):
        del made[name]
    return made | {"agent": "buyer", "session": "s1", "project": "shop", "replay": None}


def event(value: dict[str, Any], id_: str = "", name: str = "action") -> bytes:
    head = f"id: {id_}\n" if id_ else ""
    return f"{head}event: {name}\ndata: {json.dumps(value)}\n\n".encode()


def streams(*each: bytes) -> list[Any]:
    """A connection each; it ends when its bytes are sent, the last one when the reader goes away."""

    def script(raw: bytes, *, stay: bool) -> Any:
        def answer(handler: Handler) -> None:
            handler.wfile.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n: watching\n\n"
            )
            handler.wfile.write(raw)
            handler.wfile.flush()
            if stay:
                handler.rfile.read(1)

        return answer

    return [script(raw, stay=number == len(each)) for number, raw in enumerate(each, 1)]


def test_lines(operator: Shell, scribe: Scribe) -> None:
    scribe.on["GET /v1/agents/buyer/now"] = Reply(canned.now())
    scribe.on[WATCH] = streams(
        event(record(1, "tool.call", **canned.PUSH))
        + event(
            record(2, "decision", **canned.PUSH, call="id-1", decision="deny", rule="buyer/never/0", reason="never")
        )
        + event(record(3, "tool.result", call="id-1", status="error", error="no\x1b[2J", duration_ms=12.0))
        + event(record(4, "tool.result", call="unknown", status="ok"))
        + event(record(5, "model.call", model="m", tokens=1200, cost_usd=0.5, verified=False, late="late"))
    )
    ran = operator("watch", "buyer", "--project", "shop", "--session", "s1", "--limit", "5")
    assert (ran.code, ran.err) == (0, "")
    assert scribe.asked[-1].query == "agent=buyer&project=shop&session=s1"
    assert [" ".join(line.split()) for line in ran.out.splitlines()] == [
        "12:00:01.500 buyer s1 tool.call git push acme/billing feature/a",
        "12:00:02.500 buyer s1 decision deny git push acme/billing feature/a buyer/never/0",
        "12:00:03.500 buyer s1 tool.result error no\\x1b[2J (git push acme/billing feature/a) 12 ms",
        "12:00:04.500 buyer s1 tool.result ok (a call before)",
        "12:00:05.500 buyer s1 model.call model m 1,200 tokens $0.50 [unverified] [late]",
    ]


def test_json_lines(operator: Shell, scribe: Scribe) -> None:
    scribe.on[WATCH] = streams(event(record(1)) + event(record(2)))
    ran = operator("watch", "--json", "--limit", "2", "--replay", "*")
    assert [json.loads(line) for line in ran.out.splitlines()] == [record(1), record(2)]
    assert scribe.asked[0].query == "replay=%2A"


def test_it_comes_back_where_it_was(operator: Shell, scribe: Scribe) -> None:
    scribe.on[WATCH] = [
        streams(b"id: 10\n\n", b"")[0],
        problem(503, "too many watchers", retry_after=1),
        lambda _handler: None,
        *streams(event(record(1), "11"), b"", event(record(2), "12")),
    ]
    ran = operator("watch", "--json", "--limit", "2")
    assert ran.code == 0
    assert [json.loads(line)["id"] for line in ran.out.splitlines()] == ["id-1", "id-2"]
    assert [asked.headers.get("last-event-id") for asked in scribe.asked] == [None, "10", "10", "10", "11", "11"]
    assert ran.err.count("trying again\n") == ran.err.count("\n") - ran.err.count("it is back\n")
    assert ran.err.count("it is back\n") == 3
    assert "too many watchers" in ran.err


def test_what_the_stream_says_about_itself(operator: Shell, scribe: Scribe) -> None:
    away = event({"detail": "ClickHouse is away"}, name="problem")
    scribe.on[WATCH] = streams(away + away + event(record(1)))
    ran = operator("watch", "--limit", "1")
    assert ran.err == "ClickHouse is away\nit is back\n"
    assert "note" in ran.out


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (problem(401, "not known"), 3),
        (problem(403, "for operators"), 3),
        (problem(422, "is no id", field="last_event_id"), 2),
        (problem(503, "who is known cannot be said"), 4),
        (Reply({"no": "stream"}), 4),
        (lambda _handler: None, 4),
    ],
)
def test_nothing_to_come_back_to(operator: Shell, scribe: Scribe, reply: Any, code: int) -> None:
    scribe.on[WATCH] = reply
    ran = operator("watch")
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("banksman watch: ")


def test_a_token_that_is_refused_later_ends_it(operator: Shell, scribe: Scribe) -> None:
    scribe.on[WATCH] = [*streams(b"", b"")[:1], problem(401, "rotated out")]
    assert operator("watch").code == 3


def test_an_agent_that_cannot_be_looked_up_now_is_watched_all_the_same(operator: Shell, scribe: Scribe) -> None:
    scribe.on["GET /v1/agents/buyer/now"] = problem(503, "ClickHouse is away", retry_after=1)
    scribe.on[WATCH] = streams(event(record(1)))
    assert operator("watch", "buyer", "--limit", "1").code == 0
    assert operator("watch", "--limit", "0").code == 2


def test_ctrl_c_ends_it_quietly(operator: Shell, scribe: Scribe) -> None:
    gone = threading.Event()

    def stay(handler: Handler) -> None:
        streams(event(record(1)), b"")[0](handler)
        handler.rfile.read(1)
        gone.set()

    scribe.on[WATCH] = stay
    with operator.start("watch") as process:
        assert process.stdout is not None
        assert "note" in process.stdout.readline()  # every line is there at once, also in a pipe
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")
    assert gone.wait(10)
