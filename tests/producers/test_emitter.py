"""Reporting: nothing waits, nothing raises, and what was taken arrives once it can, in order, as the same bytes."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.enforcer.conftest import until
from tests.producers.fake_enforcer import FakeEnforcer, Reply, Request, problem

from banksman.canonical import canonical
from banksman.errors import InvalidInput, InvalidSetting
from banksman.producers import Emitter, SpoolFull
from banksman.producers import emitter as emitting
from banksman.producers.spool import Spool
from banksman.signing import Credential, digest
from banksman.stamps import uuid7


def texts(fake: FakeEnforcer) -> list[str]:
    return [event["text"] for event in fake.events if event["kind"] == "note"]


def spool_of(spool: Path, emitter: Emitter) -> Path:
    return spool / "shop" / "buyer" / emitter.stats().source.partition("#")[2]


# ── what an event looks like ──


def test_a_session_tells_its_story_in_order(fake: FakeEnforcer, emitter: Emitter, credential: Credential) -> None:
    with emitter.session("s1", purpose="test") as session:
        session.prompt("pay the open invoices")
        session.model_call("claude-x", input_tokens=10, output_tokens=2, cost_usd=0.01)
        call = session.tool_call("git", "push", resource="acme/billing", branch="main", args={"force": False}, batch=0)
        session.tool_result(call, "ok", result={"pushed": 3}, duration_ms=12.5)
        session.api_request("stripe", "charges:read", status="ok")
        session.note("done")
    assert emitter.flush(10)
    events = fake.events
    assert [event["kind"] for event in events] == [
        "session.started", "prompt", "model.call", "tool.call", "tool.result", "api.request", "note", "session.ended",
    ]  # fmt: skip
    assert [event["seq"] for event in events] == list(range(1, 9))
    assert {(event["project"], event["agent"], event["session"], event["v"]) for event in events} == {
        ("shop", "buyer", "s1", 1)
    }
    assert {event["source"] for event in events} == {emitter.stats().source}
    assert emitter.stats().source.startswith("emitter-python/1.0#")
    started, _, _, intent, result, *_ = events
    assert started["purpose"] == "test"
    assert intent["id"] == intent["call"] == call == result["call"] == result["parent"]
    assert intent["args_hash"] == digest(credential.event_key, canonical({"force": False}))
    assert result["result_hash"] == result["outcome_hash"] == digest(credential.event_key, canonical({"pushed": 3}))
    assert result["result_size"] == len('{"pushed":3}')
    assert events[-1]["status"] == "ok"
    request = fake.requests[0]
    assert request.headers["authorization"] == f"Bearer {credential.token}"
    assert "banksman-sent" in request.headers


def test_a_session_that_breaks_is_closed_with_its_error(fake: FakeEnforcer, emitter: Emitter) -> None:
    with pytest.raises(ZeroDivisionError), emitter.session() as session:
        _ = 1 / 0
    assert emitter.flush(10)
    ended = fake.events[-1]
    assert (ended["kind"], ended["status"], ended["seq"]) == ("session.ended", "error", 2)
    assert ended["error"] == "ZeroDivisionError: division by zero"
    assert fake.events[0]["session"] == session.id


async def test_the_same_for_asyncio(fake: FakeEnforcer, emitter: Emitter) -> None:
    async with emitter.session("s1") as session:
        session.note("in a task")
    assert await emitter.aflush(10)
    assert [event["kind"] for event in fake.events] == ["session.started", "note", "session.ended"]


def test_secrets_do_not_leave_the_agent(fake: FakeEnforcer, emitter: Emitter, spool: Path) -> None:
    key = "AKIA" + "Q" * 16
    fake.on_events = lambda _: problem(503, "no")
    emitter.session("s1").tool_call("aws", "s3:GetObject", args={"key": key, "password": "hunter2!"})
    until(lambda: len(fake.requests) >= 1)
    on_disk = b"".join(path.read_bytes() for path in spool.rglob("*") if path.is_file())
    assert b"tool.call" in on_disk
    for gone in (key.encode(), b"hunter2!"):
        assert gone not in on_disk
        assert gone not in fake.requests[0].body
    assert b"[aws-access-key:" in on_disk


def test_arguments_may_be_changed_right_after_the_call(fake: FakeEnforcer, emitter: Emitter) -> None:
    args: dict[str, Any] = {"files": ["a"], "deep": {"n": 1}}
    session = emitter.session("s1")
    for n in range(50):
        args["files"][0] = f"f{n}"
        args["deep"]["n"] = n
        session.tool_call("files", "read", args=args)
        args["files"].append("later")
        args["files"].pop()
        args["deep"]["n"] = -1
    assert emitter.flush(10)
    assert [event["args"] for event in fake.events] == [{"files": [f"f{n}"], "deep": {"n": n}} for n in range(50)]


def test_a_field_that_is_too_large_is_cut_and_says_so(fake: FakeEnforcer, emitter: Emitter) -> None:
    emitter.session("s1").tool_call("files", "write", args={f"part{n}": "é" * 60_000 for n in range(20)})
    emitter.session("s1").note("after")
    assert emitter.flush(20)
    assert max(map(len, fake.taken)) <= 1 << 20
    assert "…[cut: 60000 characters, hmac-sha256:" in json.dumps(fake.events[0], ensure_ascii=False)
    assert [event["seq"] for event in fake.events] == [1, 2]


def test_an_event_larger_than_all_of_memory_is_cut_not_dropped(fake: FakeEnforcer, emitter: Emitter) -> None:
    session = emitter.session("s1")
    session.note("before")
    session.note("x" * (70 << 20))
    assert emitter.flush(60)
    session.note("after")
    assert emitter.flush(10)
    assert [text[:6] for text in texts(fake)] == ["before", "xxxxxx", "after"]
    assert len(fake.taken[1]) <= 1 << 20
    assert emitter.stats().dropped == 0


def test_bad_names_are_said_at_once(emitter: Emitter) -> None:
    with pytest.raises(InvalidInput, match="session"):
        emitter.session("not/a name")


@pytest.mark.parametrize("url", ["ftp://x", "http://", "127.0.0.1:7700", "http://h:99999", "http://u:p@h"])
def test_bad_addresses_are_said_at_once(credential: Credential, spool: Path, url: str) -> None:
    with pytest.raises(InvalidSetting, match="BANKSMAN_URL"):
        Emitter(credential, url=url, spool=spool)


def test_a_bad_credential_is_said_without_showing_it(spool: Path) -> None:
    with pytest.raises(InvalidSetting) as caught:
        Emitter("bma_secret-text", spool=spool)
    assert "secret-text" not in str(caught.value)


# ── nothing that an agent hands over can hurt it ──


class Explosive:
    def __repr__(self) -> str:
        raise RuntimeError("do not look at me")

    def __str__(self) -> str:
        raise RuntimeError("do not print me")


def test_odd_values_are_recorded_as_well_as_they_can_be(fake: FakeEnforcer, emitter: Emitter) -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: Any = 0
    for _ in range(500):
        deep = [deep]
    odd: dict[Any, Any] = {
        "nan": float("nan"), "inf": float("-inf"), "big": 2**53, "huge": 10**30, "enormous": 1 << 100_000, "set": {1},
        "bytes": b"\xff\x00", "text bytes": b"abc", "path": Path("/etc/passwd"), "error": ValueError("no"),
        "surrogate": "a\ud800b", "loop": loop, "deep": deep, "explosive": Explosive(), 7: "seven", None: "none",
        "tuple": (1, 2), "class": Explosive, "bool": True, "nul": "a\0b", "type": {"a": {Explosive: 1}},
    }  # fmt: skip
    session = emitter.session("s1")
    session.tool_call("x", "y", args=odd)
    session.tool_call("x", "y", args=[1, 2])  # type: ignore[arg-type]
    session.tool_result(session.tool_call("x", "y"), "ok", result=odd)
    session.note("after")
    assert emitter.flush(10)
    stats = emitter.stats()
    assert (stats.refused, stats.dropped) == (0, 0)
    first, second, *_ = fake.events
    args = first["args"]
    assert args["nan"] == "nan"
    assert args["inf"] == "-inf"
    assert args["big"] == str(2**53)
    assert args["huge"] == str(10**30)
    assert args["bytes"] == "base64:/wA="
    assert args["text bytes"] == "abc"
    assert args["path"] == "/etc/passwd"
    assert args["error"] == "ValueError: no"
    assert args["surrogate"] == "a\\ud800b"
    assert args["7"] == "seven"
    assert "Explosive" in args["explosive"]
    assert args["bool"] is True
    assert second["args"] == {"value": [1, 2]}


def test_what_can_never_be_stored_is_set_aside(fake: FakeEnforcer, emitter: Emitter, spool: Path) -> None:
    session = emitter.session("s1")
    session.note("before")
    session.model_call("m", input_tokens=-1, text="AKIA" + "Q" * 16)
    session.report("no.such.kind")
    session.tool_result("no-uuid", "ok")
    emitter.emit({"kind": "note", "text": "no session"})
    emitter.emit("no event")  # type: ignore[arg-type]
    session.note("after")
    assert emitter.flush(10)
    assert texts(fake) == ["before", "after"]
    assert [event["seq"] for event in fake.events] == [1, 7], "what is missing shows as a gap where it is missing"
    stats = emitter.stats()
    assert (stats.reported, stats.refused, stats.dropped, stats.sent) == (6, 4, 1, 2)
    lines = [json.loads(line) for line in (spool_of(spool, emitter) / "refused").read_text().splitlines()]
    assert [line["refused"].partition(":")[0] for line in lines] == ["input_tokens", "kind", "call", "session"]
    assert lines[0]["event"]["text"].startswith("[aws-access-key:"), "set aside without redaction"


def test_reports_from_many_threads_are_all_there_once(fake: FakeEnforcer, emitter: Emitter) -> None:
    def work(name: str) -> None:
        session = emitter.session(name)
        for n in range(200):
            session.note(f"{n}")

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert emitter.flush(20)
    for n in range(8):
        assert [event["text"] for event in fake.events if event["session"] == f"t{n}"] == [str(n) for n in range(200)]
    assert [event["seq"] for event in fake.events] == list(range(1, 1601))


def test_a_signal_handler_may_report_in_the_middle_of_a_report(fake: FakeEnforcer, emitter: Emitter) -> None:
    session = emitter.session("s1")
    before = signal.signal(signal.SIGALRM, lambda *_: session.note("signal"))
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        for _ in range(3000):
            session.note("main")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert emitter.flush(20)
    assert texts(fake).count("main") == 3000
    assert len(fake.events) == emitter.stats().reported > 3000


# ── the other side is away ──


def test_nobody_is_there_for_a_while(fake: FakeEnforcer, emitter: Emitter) -> None:
    session = emitter.session("s1")
    session.note("0")
    assert emitter.flush(10)
    fake.stop()
    for n in range(1, 100):
        session.note(str(n))
    assert not emitter.flush(0.3)
    assert emitter.stats().state == "away"
    assert "nobody answers" in emitter.stats().why
    fake.start()
    assert emitter.flush(20)
    assert texts(fake) == [str(n) for n in range(100)]
    assert emitter.stats().state == "sending"


def test_a_lost_answer_is_asked_for_again_with_the_same_bytes(fake: FakeEnforcer, emitter: Emitter) -> None:
    fake.on_events = lambda _: Reply(0 if len(fake.requests) == 1 else 200)
    emitter.session("s1").note("x")
    assert emitter.flush(10)
    assert len(fake.requests) == 2
    assert fake.requests[0].body == fake.requests[1].body


def test_retry_after_is_obeyed(fake: FakeEnforcer, emitter: Emitter) -> None:
    times: list[float] = []

    def answer(_: Request) -> Reply:
        times.append(time.monotonic())
        return problem(503, "busy", Retry_After="1") if len(times) == 1 else Reply()

    fake.on_events = answer
    emitter.session("s1").note("x")
    assert emitter.flush(10)
    assert times[1] - times[0] >= 1


def test_a_token_that_is_not_known_waits_and_says_so(
    fake: FakeEnforcer, emitter: Emitter, caplog: pytest.LogCaptureFixture, credential: Credential
) -> None:
    fake.on_events = lambda _: problem(401, "this token is not known")
    with caplog.at_level(logging.INFO, "banksman.emitter"):
        emitter.session("s1").note("x")
        until(lambda: emitter.stats().state == "not_let_in")
        fake.on_events = lambda _: Reply()
        assert emitter.flush(20)
    assert "this token is not known" in caplog.text
    assert "events are being sent again" in caplog.text
    assert credential.token not in caplog.text
    assert texts(fake) == ["x"]
    assert emitter.stats().refused == 0


@pytest.mark.parametrize(
    "reply",
    [
        Reply(403, b"<html>blocked by the proxy</html>", {"Content-Type": "text/html"}),
        Reply(400, b"<html>bad request</html>", {"Content-Type": "text/html"}),
        Reply(413, b"too large", {"Content-Type": "text/plain"}),
        Reply(422, {"detail": "another service"}),
        Reply(404, b"", {}),
        Reply(302, b"", {"Location": "/elsewhere"}),
        problem(400, "a request needs a Host header"),
        problem(403, "this Host is not one of this listener's names"),
        problem(422, "must be a time as RFC 3339 writes it", "Banksman-Sent"),
        problem(415, "Content-Type must be"),
    ],
    ids=lambda reply: f"{reply.status}-{str(reply.body)[:20]}",
)
def test_no_other_refusal_costs_an_event(fake: FakeEnforcer, emitter: Emitter, reply: Reply) -> None:
    """A proxy's page, a wrong address, a setting over there: nothing of that is about an event."""
    fake.on_events = lambda _: reply if len(fake.requests) == 1 else Reply()
    emitter.session("s1").note("x")
    assert emitter.flush(10)
    assert texts(fake) == ["x"]
    assert emitter.stats().refused == 0


def refusing(*bad: str, hint: bool) -> Callable[[Request], Reply]:
    def answer(request: Request) -> Reply:
        for index, line in enumerate(request.lines):
            if json.loads(line)["text"] in bad:
                if hint:
                    return problem(422, "is wrong", f"[{index}].text")
                return problem(413, "the body is too large") if len(request.lines) > 1 else problem(413, "too large")
        return Reply()

    return answer


@pytest.mark.parametrize("hint", [True, False], ids=["named", "unnamed"])
def test_an_event_that_is_refused_does_not_hold_up_the_rest(
    fake: FakeEnforcer, emitter: Emitter, spool: Path, hint: bool
) -> None:
    fake.stop()
    session = emitter.session("s1")
    for n in range(100):
        session.note(str(n))
    bad = ("0", "17", "18", "99")
    fake.on_events = refusing(*bad, hint=hint)
    fake.start()
    assert emitter.flush(30)
    assert texts(fake) == [str(n) for n in range(100) if str(n) not in bad]
    assert len(fake.taken) == 96, "sent twice"
    stats = emitter.stats()
    assert (stats.refused, stats.sent) == (4, 96)
    lines = [json.loads(line) for line in (spool_of(spool, emitter) / "refused").read_text().splitlines()]
    assert [line["event"]["text"] for line in lines] == list(bad)
    if hint:
        assert len(fake.requests) < 20


def test_everything_is_refused(fake: FakeEnforcer, emitter: Emitter) -> None:
    fake.on_events = lambda request: problem(422, "no", f"[{len(request.lines) - 1}]")
    session = emitter.session("s1")
    for n in range(50):
        session.note(str(n))
    assert emitter.flush(20)
    assert emitter.stats().refused == 50
    fake.on_events = lambda _: Reply()
    session.note("fine")
    assert emitter.flush(20)
    assert texts(fake) == ["fine"]


# ── bounds ──


def test_memory_is_bounded_and_what_does_not_fit_is_counted_and_shows_as_a_gap(
    fake: FakeEnforcer, make_emitter: Callable[..., Emitter], monkeypatch: pytest.MonkeyPatch
) -> None:
    from banksman.producers import intake

    emitter = make_emitter()
    outbox = emitter._outbox
    until(lambda: outbox._spool)
    gate = threading.Event()
    real = outbox._record

    def slow(_self: Any, taken: bytes, _record: Any, source: str, seq: int, _spool: Any) -> bytes:
        gate.wait(20)
        return real(taken, source, seq)

    monkeypatch.setattr(intake.Intake, "_made", slow)
    monkeypatch.setattr(outbox._intake, "_most", 5000)
    session = emitter.session("s1")
    for n in range(5050):
        session.note(str(n))
    assert emitter.stats().dropped >= 50
    gate.set()
    assert emitter.flush(60)
    session.note("after")
    assert emitter.flush(10)
    events = fake.events
    assert len(events) == emitter.stats().sent == emitter.stats().reported
    seqs = [event["seq"] for event in events]
    assert seqs == sorted(set(seqs))
    assert seqs[-1] == len(seqs) + emitter.stats().dropped, "what was dropped must be missing in the count"


def test_large_events_fill_memory_too(make_emitter: Callable[..., Emitter], monkeypatch: pytest.MonkeyPatch) -> None:
    from banksman.producers import intake

    emitter = make_emitter()
    gate = threading.Event()
    monkeypatch.setattr(intake.Intake, "_made", lambda *_: gate.wait(20) and None)
    session = emitter.session("s1")
    for _ in range(90):
        session.note("x" * (1 << 20))
    assert emitter._outbox._intake.waiting_bytes <= 65 << 20, "more than the bound and the one that reached it"
    assert emitter.stats().dropped >= 25
    gate.set()


def test_a_full_spool_drops_the_oldest(fake: FakeEnforcer, make_emitter: Callable[..., Emitter], spool: Path) -> None:
    fake.stop()
    emitter = make_emitter(spool_bytes=1 << 20)
    session = emitter.session("s1")
    for n in range(3000):
        session.note(f"{n} " + "x" * 800)
    until(lambda: emitter.stats().waiting == 0)
    assert emitter.stats().dropped > 0
    assert sum(path.stat().st_size for path in spool.rglob("*.log")) < (1 << 20) + 100_000
    fake.start()
    assert emitter.flush(30)
    arrived = [int(text.split()[0]) for text in texts(fake)]
    assert arrived == list(range(3000 - len(arrived), 3000))
    assert emitter.stats().dropped == 3000 - len(arrived)
    assert fake.events[0]["seq"] == arrived[0] + 1, "the gap is visible"


def test_a_full_spool_refuses_when_it_is_told_to(fake: FakeEnforcer, make_emitter: Callable[..., Emitter]) -> None:
    fake.stop()
    emitter = make_emitter(spool_bytes=1 << 20, when_full="refuse")
    session = emitter.session("s1")
    taken = 0
    with pytest.raises(SpoolFull):  # noqa: PT012 - which report is refused is what comes out
        for taken in range(20_000):
            session.note(f"{taken} " + "x" * 800)
            if (
                taken % 100 == 99
            ):  # a report takes microseconds: the spool would never be full before all of them were made
                until(lambda: emitter.stats().waiting == 0 or emitter._outbox.full)
    decision = session.decide("git", "push")
    assert not decision
    assert decision.reason.startswith("not_asked: the spool is at its cap")
    fake.start()
    assert emitter.flush(30)
    assert [int(text.split()[0]) for text in texts(fake)] == list(range(taken))
    session.note("again")
    assert session.decide("git", "push").allowed


@pytest.mark.parametrize("where", ["disk", "other side"])
def test_who_waits_in_flush_is_let_go_by_close(
    fake: FakeEnforcer, make_emitter: Callable[..., Emitter], where: str
) -> None:
    """In another thread, without a time-out: it hears that not all was sent, whatever it waits for."""
    fake.stop()
    emitter = make_emitter()
    until(lambda: emitter._outbox._spool)
    heard: list[bool] = []
    if where == "disk":  # the mark stands behind the end
        emitter._outbox._intake.stop()
    emitter.session("s1").note("x")
    waiting = threading.Thread(target=lambda: heard.append(emitter.flush()))
    waiting.start()
    if where == "other side":
        until(lambda: emitter._outbox._delivery and emitter._outbox._delivery._hurried)
    emitter.close(0)
    waiting.join(20)
    assert not waiting.is_alive()
    assert heard == [where == "disk"]  # nothing was taken any more there


@pytest.mark.parametrize("when_full", ["drop", "refuse"])
def test_a_report_never_waits_for_the_disk(make_emitter: Callable[..., Emitter], when_full: str) -> None:
    """A disk that hangs for a while: its lock is what the threads wait for, not the agent."""
    emitter = make_emitter(when_full=when_full)
    session = emitter.session("s1")
    session.note("first")
    assert emitter.flush(10)
    spool = emitter._outbox._spool
    assert isinstance(spool, Spool)
    with spool._lock:
        reporting = threading.Thread(target=lambda: [session.note(str(n)) for n in range(100)])
        reporting.start()
        reporting.join(20)
        assert not reporting.is_alive()
        assert emitter.stats().reported == 101
    assert emitter.flush(10)


def test_full_memory_refuses_too_when_it_is_told_to(
    fake: FakeEnforcer, make_emitter: Callable[..., Emitter], monkeypatch: pytest.MonkeyPatch
) -> None:
    emitter = make_emitter(when_full="refuse")
    session = emitter.session("s1")
    session.note("x" * 1000)
    assert emitter.flush(10)
    monkeypatch.setattr(emitter._outbox._intake, "_most_bytes", 100_000)
    spool = emitter._outbox._spool
    assert isinstance(spool, Spool)
    taken = 0
    with spool._lock, pytest.raises(SpoolFull):  # noqa: PT012 - which report is refused is what comes out
        for taken in range(1000):
            session.note(f"{taken} " + "x" * 1000)
    assert emitter.flush(10)
    assert [text.split()[0] for text in texts(fake)[1:]] == [str(n) for n in range(taken)]


def test_no_folder_for_a_spool(fake: FakeEnforcer, make_emitter: Callable[..., Emitter], tmp_path: Path) -> None:
    """A file where the folder should be: events live in memory, and arrive."""
    (tmp_path / "file").write_text("")
    emitter = make_emitter(spool=tmp_path / "file")
    session = emitter.session("s1")
    fake.stop()
    for n in range(100):
        session.note(str(n))
    until(lambda: emitter.stats().state == "away")
    assert emitter.stats().disk_errors > 0
    fake.start()
    assert emitter.flush(20)
    assert texts(fake) == [str(n) for n in range(100)]


# ── a call does little ──


def test_a_call_takes_the_time_and_the_rest_comes_later(
    fake: FakeEnforcer, make_emitter: Callable[..., Emitter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times and ids are those of the calls, in their order, however late the record is made."""
    from banksman.producers import intake

    emitter = make_emitter()
    gate = threading.Event()
    real = intake.Intake._made

    def late(*args: Any) -> bytes | None:
        gate.wait(20)
        return real(*args)

    monkeypatch.setattr(intake.Intake, "_made", late)
    session = emitter.session("s1")
    before = datetime.now(UTC)
    ids = [session.note(str(n)) for n in range(200)]
    after = datetime.now(UTC)
    gate.set()
    assert emitter.flush(20)
    events = fake.events
    assert [event["id"] for event in events] == ids
    times = [event["time"] for event in events]
    assert times == sorted(times)
    assert before.isoformat(timespec="microseconds")[:26] <= times[0] < times[-1] <= after.isoformat()[:26]
    of_ids = [int(event["id"][:8] + event["id"][9:13], 16) for event in events]
    made_before = [datetime.fromisoformat(time).timestamp() * 1000 - ms for time, ms in zip(times, of_ids, strict=True)]
    assert all(-0.01 < ms < 51 for ms in made_before)  # some are made in advance


def test_a_clock_that_is_set_back_does_not_turn_the_order_around(
    fake: FakeEnforcer, emitter: Emitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """People see a session by its times. A clock that was hours wrong and is put right is believed."""
    session = emitter.session("s1")
    start = time.time_ns() // 1000 * 1000
    for n, seconds in enumerate((0, 1, -4, 1.5, -7200, -7199)):
        monkeypatch.setattr(emitting, "time_ns", lambda seconds=seconds: start + int(seconds * 1e9))
        session.note(str(n))
    monkeypatch.undo()
    assert emitter.flush(10)
    times = [datetime.fromisoformat(event["time"]).timestamp() - start / 1e9 for event in fake.events]
    assert times == pytest.approx([0, 1, 1, 1.5, -7200, -7199], abs=1e-5)
    assert [event["seq"] for event in fake.events] == [1, 2, 3, 4, 5, 6]


def test_a_signal_handler_may_flush_in_the_middle_of_a_flush(emitter: Emitter) -> None:
    session = emitter.session("s1")

    def handler(*_: Any) -> None:
        session.note("signal")
        emitter.flush(5)
        signal.setitimer(signal.ITIMER_REAL, 0.003)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.003)
    try:
        for _ in range(100):
            session.note("main")
            emitter.flush(5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert emitter.flush(20)


def test_an_id_of_the_agents_own_is_kept(fake: FakeEnforcer, emitter: Emitter) -> None:
    mine = uuid7()
    assert emitter.emit({"id": mine, "kind": "tool.call", "session": "s1", "service": "x", "action": "y"}) == mine
    made = emitter.emit({"id": None, "kind": "note", "session": "s1", "text": "x", "more": None})
    assert emitter.emit("no event") != made  # type: ignore[arg-type]
    assert emitter.flush(10)
    assert [(event["id"], event.get("call")) for event in fake.events] == [(mine, mine), (made, None)]
    assert "more" not in fake.events[1]


def test_a_busy_agent_does_not_have_to_wake_anybody(emitter: Emitter, monkeypatch: pytest.MonkeyPatch) -> None:
    """While events come the thread looks by itself; after a while of quiet it sleeps until one wakes it."""
    intake = emitter._outbox._intake
    real, blocked, quiet = intake._gathered, [0], threading.Event()

    def gathered(*, block: bool, timeout: float | None) -> Any:
        blocked[0] += block
        if block:
            quiet.set()
        return real(block=block, timeout=timeout)

    monkeypatch.setattr(intake, "_gathered", gathered)
    session = emitter.session("s1")
    session.note("first")
    assert quiet.wait(20), "it never sleeps"
    assert emitter.flush(10), "nothing wakes it"
    before, began = blocked[0], time.monotonic()
    while time.monotonic() - began < 0.5:
        session.note("busy")
        time.sleep(0.001)  # the pace of a busy agent
    slept = blocked[0] - before
    assert slept < 10, f"slept {slept} times"
    assert emitter.flush(20)


def test_requests_are_not_more_than_they_have_to_be(fake: FakeEnforcer, emitter: Emitter) -> None:
    """A steady agent's events go together, a few a request, but for `flush`, which waits for nothing."""
    session = emitter.session("s1")
    began = time.monotonic()
    for n in range(200):
        session.note(str(n))
        time.sleep(0.002)  # the pace of a steady agent
    assert emitter.flush(20)
    took = time.monotonic() - began
    assert texts(fake) == [str(n) for n in range(200)]
    assert len(fake.requests) <= took / 0.02 + 5
    before = len(fake.requests)
    for _ in range(5):
        session.note("at once")
        assert emitter.flush(10)
    assert len(fake.requests) - before == 5
