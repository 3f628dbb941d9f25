"""Waiting for a human's yes: as long as one is told to, over everything that may happen meanwhile, and then asked again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.producers.fake_enforcer import FakeEnforcer, Reply, Request, decision, problem

from banksman.producers import Emitter, NotAllowed


def asked(fake: FakeEnforcer) -> list[dict[str, Any]]:
    return [request.json for request in fake.requests if request.path.endswith("/decide")]


def polls(fake: FakeEnforcer) -> list[str]:
    return [request.path for request in fake.requests if "/approvals/" in request.path]


@pytest.fixture
def human(fake: FakeEnforcer) -> Callable[..., None]:
    """The enforcer asks a human, who says in turn what is given; a question that names the approval gets `then`."""

    def says(*replies: Reply, then: Reply) -> None:
        script = list(replies)
        fake.on_decide = lambda request: then if "approval" in request.json else decision("approve", approval="a/1")
        fake.on_approval = lambda _: script.pop(0) if len(script) > 1 else script[0]

    return says


PENDING, SETTLED = Reply(body={"status": "pending"}), Reply(body={"status": "approved"})


def test_it_waits_and_asks_again_with_the_approval(
    fake: FakeEnforcer, emitter: Emitter, human: Callable[..., None]
) -> None:
    human(
        PENDING, problem(503, "no lease"), Reply(status=0), PENDING, SETTLED, then=decision("allow", reason="approved")
    )
    answer = emitter.session("s1").decide("git", "push", args={"n": 1}, wait=20)
    assert (answer.decision, answer.reason) == ("allow", "approved")
    first, second = asked(fake)
    assert second == first | {"id": second["id"], "approval": "a/1"}
    assert second["id"] != first["id"]
    assert all(path.startswith("/v1/approvals/a%2F1?wait=") for path in polls(fake))
    assert len(polls(fake)) == 5


def test_without_waiting_it_is_told_at_once(fake: FakeEnforcer, emitter: Emitter, human: Callable[..., None]) -> None:
    human(PENDING, then=decision("allow"))
    answer = emitter.session("s1").decide("git", "push")
    assert (answer.decision, answer.approval) == ("approve", "a/1")
    assert polls(fake) == []


def test_it_waits_no_longer_than_it_was_told(fake: FakeEnforcer, emitter: Emitter, human: Callable[..., None]) -> None:
    human(Reply(body={"status": "pending"}, delay=0.05), then=decision("allow"))
    began = time.monotonic()
    answer = emitter.session("s1").decide("git", "push", wait=0.5)
    assert (answer.decision, answer.approval) == ("approve", "a/1")
    assert 0.4 < time.monotonic() - began < 5
    assert len(asked(fake)) == 1


@pytest.mark.parametrize("no", [problem(404, "there is no such approval"), problem(401, "who?")])
def test_an_approval_that_cannot_be_seen_is_not_waited_for(
    fake: FakeEnforcer, emitter: Emitter, human: Callable[..., None], no: Reply
) -> None:
    human(no, then=decision("allow"))
    assert emitter.session("s1").decide("git", "push", wait=60).decision == "approve"
    assert len(polls(fake)) == 1


def test_a_no_of_a_human_is_the_enforcers_to_tell(
    fake: FakeEnforcer, emitter: Emitter, human: Callable[..., None]
) -> None:
    human(Reply(body={"status": "denied"}), then=decision("deny", reason="approval_denied"))
    session = emitter.session("s1")

    @session.govern(service="git", wait=20)
    def push() -> None:
        pytest.fail("it ran")

    with pytest.raises(NotAllowed) as caught:
        push()
    assert caught.value.decision.reason == "approval_denied"
    assert len(asked(fake)) == 2


async def test_who_waits_keeps_nobody_else_from_asking(fake: FakeEnforcer, emitter: Emitter) -> None:
    release = threading.Event()

    def approval(_: Request) -> Reply:
        release.wait(20)
        return SETTLED

    fake.on_decide = lambda request: decision(
        "allow" if "approval" in request.json or request.json["action"] == "pull" else "approve", approval="a1"
    )
    fake.on_approval = approval
    session = emitter.session("s1")
    waiting = [asyncio.create_task(session.adecide("git", "push", wait=30)) for _ in range(40)]
    async with asyncio.timeout(15):
        while len(polls(fake)) < 40:  # noqa: ASYNC110 - a thread counts them
            await asyncio.sleep(0.01)
        assert (await session.adecide("git", "pull")).allowed
        release.set()
        assert all(answer.allowed for answer in await asyncio.gather(*waiting))
