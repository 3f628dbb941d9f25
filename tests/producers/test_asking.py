"""Asking: whatever is not a 200 with `allow`, in time, is a no that says why."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.producers.conftest import Agent
from tests.producers.fake_enforcer import FakeEnforcer, Reply, Request, decision, problem

from banksman.producers import Decision, Emitter
from banksman.producers import asking as asking_module
from banksman.signing import Credential


def questions(fake: FakeEnforcer) -> list[dict[str, Any]]:
    return [request.json for request in fake.requests if request.path.endswith("/decide")]


def test_an_allow(fake: FakeEnforcer, emitter: Emitter, credential: Credential) -> None:
    session = emitter.session("s1")
    call = session.tool_call("git", "push")
    answer = session.decide(
        "git", "push", resource="acme/billing", branch="main", args={"force": False}, call=call, reason="because I must"
    )
    assert answer
    assert answer.allowed
    assert (answer.decision, answer.rule, answer.tier, answer.policy) == ("allow", "allow[0]", 1, "shop")
    asked = questions(fake)[0]
    assert asked | {"id": ""} == {
        "id": "", "session": "s1", "service": "git", "action": "push", "resource": "acme/billing", "branch": "main",
        "args": {"force": False}, "call": call, "reason": "because I must",
    }  # fmt: skip
    request = next(request for request in fake.requests if request.path.endswith("/decide"))
    assert request.headers["authorization"] == f"Bearer {credential.token}"


async def test_the_same_for_asyncio_and_many_at_once(fake: FakeEnforcer, emitter: Emitter) -> None:
    fake.on_decide = lambda _: decision("allow") if len(fake.requests) < 60 else decision("deny")
    session = emitter.session("s1")
    answers = await asyncio.gather(*(session.adecide("git", "push", resource=str(n)) for n in range(50)))
    assert all(answers)
    assert sorted(int(asked["resource"]) for asked in questions(fake)) == list(range(50))
    assert len({asked["id"] for asked in questions(fake)}) == 50


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (decision("deny"), "because"),
        (decision("approve", approval="01a"), "because"),
        (problem(401, "this token is not known"), "refused: 401 this token is not known"),
        (problem(403, "not for you"), "refused: 403 not for you"),
        (problem(409, "another question", "id"), "refused: 409 id: another question"),
        (problem(422, "is missing", "service"), "refused: 422 service: is missing"),
        (Reply(500, {}), "refused: 500 Internal Server Error"),
        (Reply(302, {}, {"Location": "/"}), "refused: 302 Found"),
        (Reply(204, b""), "refused: 204"),
        (Reply(201, decision().body), "refused: 201"),
        (Reply(200, b"<html>ok</html>"), "no_answer: a 200 that is not JSON"),
        (Reply(200, []), "no_answer: a 200 that is not a decision"),
        (Reply(200, {}), "no_answer: a 200 that is not a decision"),
        (Reply(200, {"decision": "allow"}), "no_answer: a 200 that is not a decision"),
        (decision("Allow"), "no_answer: a 200 that is not a decision"),
        (decision("maybe"), "no_answer: a 200 that is not a decision"),
        (decision(id=None), "no_answer: a 200 that is not a decision"),
        (decision(["allow"]), "no_answer: a 200 that is not a decision"),
        (decision(valid_s=-1), "no_answer: the answer was valid until"),
        (decision(valid_until=None), "no_answer: the answer was valid until"),
        (decision(valid_until="tomorrow"), "no_answer: the answer was valid until"),
        (decision(valid_until="2099-01-01T00:00:00"), "no_answer: the answer was valid until"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_everything_else_is_a_no(fake: FakeEnforcer, emitter: Emitter, reply: Reply, said: str) -> None:
    fake.on_decide = lambda _: reply
    answer = emitter.session("s1").decide("git", "push")
    assert not answer
    assert not answer.allowed
    assert answer.reason.startswith(said)
    assert answer.decision in ("deny", "approve")
    assert (answer.id is None) == (answer.reason != "because")


def test_nobody_is_there(fake: FakeEnforcer, emitter: Emitter) -> None:
    fake.stop()
    began = time.monotonic()
    answer = emitter.session("s1").decide("git", "push", timeout=0.5)
    assert 0.2 < time.monotonic() - began < 10
    assert (answer.decision, answer.id) == ("deny", None)
    assert answer.reason.startswith("no_answer: http://127.0.0.1:")


def test_it_is_asked_again_with_the_same_id_and_bytes(fake: FakeEnforcer, emitter: Emitter) -> None:
    replies = [Reply(0), problem(503, "busy"), problem(429, "slow down"), decision()]
    fake.on_decide = lambda _: replies[len(questions(fake)) - 1]
    assert emitter.session("s1").decide("git", "push", args={"n": 1})
    assert len(questions(fake)) == 4
    assert len({request.body for request in fake.requests}) == 1
    assert emitter.session("s1").decide("git", "push", args={"n": 1}, timeout=0.01) is not None


def test_retry_after_is_obeyed_or_given_up_on(fake: FakeEnforcer, emitter: Emitter) -> None:
    times: list[float] = []

    def busy(_: Request) -> Reply:
        times.append(time.monotonic())
        return problem(503, "busy", Retry_After="1") if len(times) == 1 else decision()

    fake.on_decide = busy
    assert emitter.session("s1").decide("git", "push", timeout=10)
    assert times[1] - times[0] >= 1
    fake.on_decide = lambda _: problem(503, "busy", Retry_After="60")
    began = time.monotonic()
    answer = emitter.session("s1").decide("git", "push", timeout=10)
    assert time.monotonic() - began < 9, "waiting for a try that can never be made"
    assert answer.reason == "no_answer: 503 busy"


@pytest.mark.parametrize("how", ["silent", "trickling"])
def test_it_ends_with_its_time_out(fake: FakeEnforcer, emitter: Emitter, how: str) -> None:
    """Also when the other side says a byte now and then, which begins every socket's own time-out anew."""
    import socket

    listening = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nX: ")
            while not over.wait(0.05):
                if how == "trickling":
                    connection.sendall(b"x")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    asker = asking_module.Asker(f"http://127.0.0.1:{listening.getsockname()[1]}", "t")
    began = time.monotonic()
    answer = asker.ask({"id": "1"}, 0.5).now()
    took = time.monotonic() - began
    over.set()
    thread.join()
    listening.close()
    assert not answer
    assert answer.reason.endswith("timed out")
    assert 0.4 < took < 5
    assert fake.requests == emitter.stats().spooled_bytes * []


def test_an_answer_that_was_late_to_be_looked_at_is_thrown_away(fake: FakeEnforcer, emitter: Emitter) -> None:
    heard = asking_module.Heard(Decision("allow", "because", id="1", valid_until="2099-01-01T00:00:00Z"), 0.0)
    assert heard.now().reason == "no_answer: the answer came after the time-out"
    assert fake.requests == []
    assert emitter.stats().dropped == 0


ASKING = """
import sys
from banksman.producers import Emitter
emitter = Emitter.from_settings()
print("ready", flush=True)
for line in sys.stdin:
    answer = emitter.session("s1").decide("git", "push", timeout=float(line))
    print(answer.decision, answer.reason, flush=True)
"""


def test_an_agent_that_was_frozen_does_not_use_an_old_answer(
    fake: FakeEnforcer, make_agent: Callable[..., Agent]
) -> None:
    """Frozen between question and answer until both its time-out and the lease are over."""
    agent = make_agent(ASKING)
    assert agent.hear() == "ready"

    def freeze(_: Request) -> Reply:
        os.kill(agent.process.pid, signal.SIGSTOP)
        return decision(valid_s=0.3)

    fake.on_decide = freeze
    agent.say("0.8")
    fake.until(lambda: bool(questions(fake)))
    time.sleep(1.0)  # this is the absence that is tested
    agent.process.send_signal(signal.SIGCONT)
    said = agent.hear()
    assert said.startswith("deny no_answer:")
    assert len(questions(fake)) == 1


async def test_an_event_loop_that_was_busy_does_not_use_an_old_answer(fake: FakeEnforcer, emitter: Emitter) -> None:
    busy = threading.Event()

    def late(_: Request) -> Reply:
        busy.wait(20)
        return decision(valid_s=0.3)

    fake.on_decide = late
    asking = asyncio.create_task(emitter.session("s1").adecide("git", "push"))
    while not questions(fake):  # noqa: ASYNC110 - it comes true in another thread
        await asyncio.sleep(0.005)
    busy.set()
    time.sleep(0.6)  # noqa: ASYNC251 - a loop that is kept busy is what is tested
    answer = await asking
    assert answer.reason.startswith("no_answer: the answer was valid until")


def test_an_idle_connection_that_the_other_side_let_go_of_costs_nothing(fake: FakeEnforcer, emitter: Emitter) -> None:
    session = emitter.session("s1")
    assert session.decide("git", "push")
    fake.cut()
    assert session.decide("git", "push", timeout=5)
    assert len(questions(fake)) == 2


def test_odd_arguments_are_asked_about_as_they_are_reported(fake: FakeEnforcer, emitter: Emitter) -> None:
    session = emitter.session("s1")
    args = {"nan": float("nan"), "big": 2**60, "set": {1}, "bytes": b"\xff", 1: "one"}
    session.tool_call("x", "y", args=args)  # type: ignore[arg-type]
    session.decide("x", "y", args=args)  # type: ignore[arg-type]
    assert emitter.flush(10)
    assert questions(fake)[0]["args"] == fake.events[0]["args"]
    assert json.dumps(questions(fake)[0]["args"], allow_nan=False)
