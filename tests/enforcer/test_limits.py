"""What one agent may take: rate, time, sessions, approvals; alone with a clock of its own, and through a real process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.enforcer.conftest import Clock, Desk, Shop, make_desk, open_shop
from tests.enforcer.inside import eventually, inside
from tests.servers import Broker

from banksman import settings
from banksman.enforcer.limits import REQUEST_NS, SESSION_OPEN_S, AgentLimits, Pending
from banksman.http_problem import Problem


def limits(clock: Clock, **own: Any) -> AgentLimits:
    return AgentLimits(settings.Enforcer(**own), clock)


def refused(call: Any, *args: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        call(*args)
    assert caught.value.status == 429
    assert caught.value.retry_after is not None
    return caught.value


def test_a_second_of_requests_may_be_saved_and_no_more(clock: Clock) -> None:
    account = limits(clock, agent_rate=10.0)
    clock.now += 3600
    for _ in range(10):
        account.take()
    assert refused(account.take).retry_after == pytest.approx(0.1)
    clock.now += 0.25
    account.take()
    account.take()
    refused(account.take)


def test_less_than_one_request_a_second(clock: Clock) -> None:
    account = limits(clock, agent_rate=0.5)
    account.take()
    assert refused(account.take).retry_after == pytest.approx(2)
    clock.now += 1.9
    refused(account.take)
    clock.now += 0.2
    account.take()


def test_what_takes_long_counts_as_several(clock: Clock) -> None:
    account = limits(clock, agent_rate=10.0)
    account.take()
    account.charge(REQUEST_NS)  # as long as a request may take: nothing more
    account.take()
    account.charge(28 * REQUEST_NS)  # may overdraw: 8 were left, so 20 are owed
    assert refused(account.take).retry_after == pytest.approx(2.1)
    clock.now += 2.05
    refused(account.take)
    clock.now += 0.1
    account.take()


def test_a_share_of_the_queue_and_of_the_bytes(clock: Clock) -> None:
    account = limits(clock, queue=8, agent_share=0.25)
    account.waiting = 2
    refused(account.take)
    account.waiting = 1
    account.take()
    with account.carrying(16 * 1024 * 1024):
        refused(account.carrying(1).__enter__)
    with account.carrying(16 * 1024 * 1024):
        assert account.waiting == 2
    assert account.waiting == 1


def test_sessions_count_until_they_end_or_are_silent_for_an_hour(clock: Clock) -> None:
    account = limits(clock, agent_sessions=2)
    account.session("a", clock.now)
    account.session("b", clock.now)
    account.session("a", clock.now)
    assert refused(account.session, "c", clock.now).field == "session"
    account.session_ended("b")
    account.session("c", clock.now)
    clock.now += SESSION_OPEN_S - 1
    account.session("c", clock.now)
    clock.now += 2  # `a` was silent for more than an hour, `c` was not
    account.session("d", clock.now)
    refused(account.session, "e", clock.now)
    assert account.sessions == 2


async def test_approvals_that_are_being_opened_hold_their_place(clock: Clock) -> None:
    approvals = limits(clock, agent_approvals=2).approvals
    loop, log = asyncio.get_running_loop(), set[str]()

    def room() -> None:
        approvals.room(clock.now, len(log), log.__contains__)

    def opened(name: str, ends: float) -> asyncio.Future[int]:
        room()
        future: asyncio.Future[int] = loop.create_future()
        approvals.open(Pending((name,), ends, {"approval": f"approval-{name}"}, {}), future)
        return future

    opened("a", clock.now + 10).set_result(1)
    failing = opened("b", clock.now + 20)
    refused(room)
    log.add("approval-a")  # counted once, wherever it is
    refused(room)
    log.clear()  # and answered
    room()
    opened("c", clock.now + 10)
    refused(room)
    failing.set_exception(RuntimeError("its request was not recorded"))
    await asyncio.sleep(0)  # lets the future's callbacks run
    assert approvals.find(("b",), clock.now) is None
    room()
    assert approvals.find(("c",), clock.now) is not None
    clock.now += 11
    assert approvals.find(("c",), clock.now) is None


async def test_who_was_slow_is_timed_for_a_while_and_pays_for_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the short way, where nobody reads the thread's own clock for an agent that is never slow."""
    monkeypatch.setattr("banksman.enforcer.limits.WATCHED", 3)
    monkeypatch.setattr("banksman.enforcer.short_way.WATCHED", 3)
    async with inside(desk) as made:
        made.prefer = "short"
        token = desk.agents["buyer"].token
        account = made.replica.callers.agent({b"authorization": b"Bearer " + token.encode()}).limits
        account._rate = 0.0  # nothing comes back by itself
        account._allowance = account._most = 1000.0

        async def cost(**changes: Any) -> float:
            had = account._allowance
            assert (await made.decide(token, **changes)).status == 200
            return had - account._allowance

        slow = {"args": {"to": [f"a{number}@example.org" for number in range(400)]}}  # each is a secret to be replaced
        assert await cost(**slow) == 1
        assert account.watched == 3
        assert await cost(**slow) > 5
        while account.watched:
            left = account.watched
            assert await cost() <= 2
            assert account.watched == left - 1 or account.watched == 3  # the machine may be busy with others
        assert made.ways == ["short"] * len(made.ways)


@pytest.mark.parametrize("way", ["asgi", "short"])
async def test_who_is_refused_an_approval_pays_for_the_time_that_it_took(desk: Desk, way: str) -> None:
    """Else whoever has all its approvals pending could keep the replica busy by asking for more of them."""
    async with inside(desk) as made:
        made.prefer = way
        token = desk.agents["buyer"].token
        account = made.replica.callers.agent({b"authorization": b"Bearer " + token.encode()}).limits
        account._rate, account.approvals._most = 0.0, 0
        account._allowance = account._most = 1000.0
        slow = {"branch": "main", "args": {"to": [f"a{number}@example.org" for number in range(400)]}}
        for _ in range(2):
            had = account._allowance
            answer = await made.decide(token, **slow)
            assert (answer.status, "approvals of this agent are pending" in answer.body["detail"]) == (429, True)
            assert had - account._allowance > 5


async def test_who_waits_for_an_approval_does_not_pay_for_what_others_do_meanwhile(desk: Desk) -> None:
    async with inside(desk, lease_s=10.0) as made:
        token = desk.agents["buyer"].token
        account = made.replica.callers.agent({b"authorization": b"Bearer " + token.encode()}).limits
        name = (await made.decide(token, branch="main")).body["approval"]
        await eventually(lambda: made.replica.state.approvals.knows(name))
        account._rate = 0.0
        account._allowance = account._most = 1000.0

        async def others() -> None:
            while True:
                busy = time.thread_time() + 0.005
                while time.thread_time() < busy:
                    pass
                await asyncio.sleep(0.001)

        busy = asyncio.create_task(others())
        try:
            for _ in range(5):
                assert (await made.decide(token, branch="main", approval=name)).body["decision"] == "approve"
        finally:
            busy.cancel()
        assert account._allowance > 1000 - 5 * 10, "each waits for the next heartbeat"


# ── through a real process ──


@pytest.fixture(scope="module")
def strict(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    yield from open_shop(
        make_desk(broker, tmp_path_factory.mktemp("strict")),
        BANKSMAN_AGENT_RATE="10000", BANKSMAN_AGENT_SESSIONS="3", BANKSMAN_AGENT_APPROVALS="2",
    )  # fmt: skip


def test_sessions_and_approvals(strict: Shop) -> None:
    for number in range(3):
        assert strict.decide(session=f"s{number}").status == 200
    fourth = strict.decide(session="s3")
    assert (fourth.status, fourth.body["field"]) == (429, "session")
    assert int(fourth.headers["retry-after"]) == 60
    token = strict.desk.agents["buyer"].token
    event = strict("POST", "/v1/events", {"kind": "note", "session": "s3", "text": "x"}, token=token)
    assert (event.status, event.body["field"]) == (429, "session")
    assert strict.decide(session="s0").status == 200
    assert strict("POST", "/v1/events", {"kind": "session.ended", "session": "s0"}, token=token).status == 200
    assert strict.decide(session="s3").status == 200

    for resource in ("acme/a", "acme/b"):
        assert strict.decide(session="s3", branch="main", resource=resource).body["decision"] == "approve"
    third = strict.decide(session="s3", branch="main", resource="acme/c")
    assert third.status == 429
    assert "2 approvals of this agent are pending" in third.body["detail"]
    assert strict.decide(session="s3", branch="main", resource="acme/a").status == 200  # it is pending already


def test_rate(broker: Broker, tmp_path: Path) -> None:
    """Of its own: on a machine that is busy with others, one slow request counts as many."""
    with contextmanager(open_shop)(make_desk(broker, tmp_path), BANKSMAN_AGENT_RATE="2") as shop:
        answers = [shop.decide() for _ in range(40)]
        over = [answer for answer in answers if answer.status == 429]
        assert over
        assert {answer.status for answer in answers} == {200, 429}
        assert "more than 2 requests a second" in over[0].body["detail"]
        assert int(over[0].headers["retry-after"]) >= 1
        assert shop.decide(agent="seller").status == 200  # an agent's limits are its own


def test_an_agent_cannot_fill_the_memory_with_spellings_of_its_token(strict: Shop) -> None:
    token = strict.desk.agents["stranger"].token
    for text in (f"Bearer {token}.{'x' * 3000}", f"bearer   {token}", f"BEARER {token}"):
        body = {"session": "s", "service": "a", "action": "b"}
        assert strict("POST", "/v1/decide", body, headers={"Authorization": text}).status == 200
