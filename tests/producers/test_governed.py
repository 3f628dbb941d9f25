"""Governed functions: asked before they run, not run without a yes, and what came of it reported."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from tests.producers.fake_enforcer import FakeEnforcer, Reply, decision, problem

from banksman.canonical import canonical
from banksman.producers import Emitter, NotAllowed, Session, govern
from banksman.signing import Credential, digest


@pytest.fixture
def session(emitter: Emitter) -> Session:
    return emitter.session("s1")


@pytest.fixture
def story(fake: FakeEnforcer, emitter: Emitter) -> Callable[[], list[dict[str, Any]]]:
    def read() -> list[dict[str, Any]]:
        assert emitter.flush(10)
        return [event for event in fake.events if event["kind"].startswith("tool.")]

    return read


Story = Callable[[], list[dict[str, Any]]]


def test_ask_run_report(fake: FakeEnforcer, session: Session, story: Story, credential: Credential) -> None:
    ran: list[str] = []

    @session.govern(service="git", action="push", resource=lambda repo, **_: repo, branch=lambda *_, branch: branch)
    def push(repo: str, branch: str = "main") -> dict[str, int]:
        """Push."""
        assert len(fake.requests) >= 1, "it ran before it was asked about"
        ran.append(repo)
        return {"pushed": 3}

    assert push("acme/billing", branch="dev") == {"pushed": 3}
    assert (push.__name__, push.__doc__, ran) == ("push", "Push.", ["acme/billing"])
    call, result = story()
    for name, value in {"service": "git", "action": "push", "resource": "acme/billing", "branch": "dev"}.items():
        assert call[name] == value
    assert call["args"] == {"repo": "acme/billing", "branch": "dev"}
    asked = next(request.json for request in fake.requests if request.path.endswith("/decide"))
    assert asked["call"] == call["id"] == result["call"] == result["parent"]
    assert asked["args"] == call["args"]
    assert result["status"] == "ok"
    assert result["duration_ms"] >= 0
    assert result["result_hash"] == result["outcome_hash"] == digest(credential.event_key, canonical({"pushed": 3}))
    assert result["result_size"] == 12
    assert "result" not in result


def test_the_result_itself_only_when_asked_for(session: Session, story: Story) -> None:
    assert session.govern(service="x", action="a", record_result=True)(lambda: {"n": 1})() == {"n": 1}
    assert session.govern(service="x", action="b", record_result=True)(lambda: None)() is None
    assert session.govern(service="x", action="c")(lambda: "text")() == "text"
    one, two, three = (event for event in story() if event["kind"] == "tool.result")
    assert one["result"] == {"n": 1}
    assert "result" not in two
    assert two["result_size"] == 4
    assert "result_hash" in two
    assert (three["result_size"], "result" in three) == (4, False)


@pytest.mark.parametrize(
    "reply", [decision("deny"), decision("approve", approval="7"), problem(401, "who?"), Reply(500)]
)
def test_without_a_yes_it_does_not_run(fake: FakeEnforcer, session: Session, story: Story, reply: Reply) -> None:
    fake.on_decide = lambda _: reply

    @session.govern(service="git")
    def push() -> None:
        pytest.fail("it ran")

    with pytest.raises(NotAllowed) as caught:
        push()
    assert not caught.value.decision
    _, result = story()
    assert (result["status"], "duration_ms" in result) == ("denied", False)
    assert result["error"].startswith(f"{caught.value.decision.decision}: ")


def test_what_it_raises_goes_on_and_the_same_failure_looks_the_same(session: Session, story: Story) -> None:
    @session.govern(service="x", action="y", args=lambda line: {"line": line})
    def parse(line: int) -> None:
        raise ValueError(f"line {line}: no such id 0xdeadbeef{line}, f47ac10b-58cc-4372-a567-0e02b2c3d4{line:02d}")

    for line in (12, 99):
        with pytest.raises(ValueError, match=f"line {line}"):
            parse(line)
    one, two = (event for event in story() if event["kind"] == "tool.result")
    assert one["status"] == two["status"] == "error"
    assert one["error"].startswith("ValueError: line 12")
    assert one["outcome_hash"] == two["outcome_hash"]
    assert "result_hash" not in one


async def test_async_functions(fake: FakeEnforcer, session: Session, story: Story) -> None:
    @session.govern(service="x")
    async def work(n: int) -> int:
        await asyncio.sleep(0)
        return n

    assert await work(7) == 7
    fake.on_decide = lambda _: decision("deny")
    with pytest.raises(NotAllowed):
        await work(8)
    assert [event.get("status") for event in story()] == [None, "ok", None, "denied"]


async def test_a_cancelled_call_is_reported(session: Session, story: Story) -> None:
    begun = asyncio.Event()

    @session.govern(service="x")
    async def work() -> None:
        begun.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    result = story()[-1]
    assert (result["status"], result["error"]) == ("error", "CancelledError: ")


async def test_callables_of_every_kind(session: Session, story: Story) -> None:
    class Tool:
        def __call__(self, n: int) -> int:
            return n

        @session.govern(service="x", action="method")
        def method(self, n: int) -> int:
            return n

    class Async:
        async def __call__(self, n: int) -> int:
            return n

    async def add(a: int, b: int) -> int:
        return a + b

    def hands_back(n: int) -> Awaitable[int]:
        return add(n, 0)

    govern_ = session.govern(service="x")
    assert govern_(Tool())(1) == 1
    assert Tool().method(2) == 2
    assert await govern_(Async())(3) == 3
    assert await govern_(functools.partial(add, 1))(3) == 4
    assert await govern_(hands_back)(5) == 5
    assert govern_(functools.partial(max, 1))(6) == 6
    calls = [event for event in story() if event["kind"] == "tool.call"]
    assert [call["action"] for call in calls] == ["Tool", "method", "Async", "add", "hands_back", "max"]
    assert calls[1]["args"] == {"n": 2}, "without self"
    results = [event for event in story() if event["kind"] == "tool.result"]
    assert [result["status"] for result in results] == ["ok"] * 6


def test_generators_are_refused_when_they_are_wrapped(session: Session) -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def asynchronous() -> Any:
        yield 1

    for function in (generator, asynchronous):
        with pytest.raises(TypeError, match="generator"):
            session.govern(service="x")(function)


def test_a_part_that_fails_runs_nothing(fake: FakeEnforcer, session: Session, story: Story) -> None:
    @session.govern(service="x", resource=lambda: str(1 / 0))
    def work() -> None:
        pytest.fail("it ran")

    with pytest.raises(ZeroDivisionError):
        work()
    assert story() == []
    assert fake.requests == []


@govern(service="git", action="pull", resource="acme/billing")
def pull() -> str:
    return "pulled"


@govern(service="git", action="fetch")
async def fetch() -> str:
    await asyncio.sleep(0)
    return "fetched"


def test_outside_of_a_session_it_does_not_run(emitter: Emitter) -> None:
    with pytest.raises(NotAllowed, match="no session is open"):
        pull()
    with emitter.session("s1"):
        assert pull() == "pulled"
    with pytest.raises(NotAllowed, match="no session is open"):
        pull()


async def test_each_task_is_in_its_own_session(emitter: Emitter, story: Story) -> None:
    async def work(name: str) -> None:
        async with emitter.session(name):
            assert await fetch() == "fetched"
            with emitter.session(f"{name}-inner"):
                assert pull() == "pulled"
            assert await fetch() == "fetched"

    await asyncio.gather(*(work(f"t{n}") for n in range(5)))
    calls = [(event["session"], event["action"]) for event in story() if event["kind"] == "tool.call"]
    for n in range(5):
        assert [action for session, action in calls if session == f"t{n}"] == ["fetch", "fetch"]
        assert [action for session, action in calls if session == f"t{n}-inner"] == ["pull"]
