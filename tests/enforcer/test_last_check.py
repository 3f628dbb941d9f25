"""What happens to a decision between its acknowledgement and its answer, forced at the named point between the two."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.enforcer.conftest import PUSH, Desk, Tape
from tests.enforcer.inside import Exchange, Flow, Inside, eventually, inside

from banksman.bus import nothing
from banksman.enforcer.limits import AgentLimits
from banksman.errors import BrokerAway
from banksman.events import (
    AgentRestored,
    AgentRevoked,
    AgentRotated,
    Control,
    ProjectPaused,
    ProjectResumed,
    SessionKilled,
)
from banksman.signing import new_credential
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic


@pytest.fixture(params=["asgi", "short"])
async def within(desk: Desk, request: pytest.FixtureRequest) -> Any:
    """Whichever way a question goes, the same happens to it."""
    with Tape(desk.kafka) as tape:
        async with inside(desk) as made:
            made.prefer = request.param
            assert (await made.decide(desk.agents["buyer"].token, session="first")).status == 200
            assert made.ways == [request.param]
            yield made, tape


def of(kind: str, parent: str) -> Any:
    return lambda record: record.get("kind") == kind and record.get("parent") == parent


async def test_a_lease_that_ends_while_the_record_is_under_way(desk: Desk, within: tuple[Inside, Tape]) -> None:
    made, tape = within
    lease = made.replica.lease
    recorded: list[str] = []

    async def freeze(decision: str) -> None:
        """As if the process had been stopped here for longer than its lease."""
        recorded.append(decision)
        lease.ends = lease.clock()

    made.decider.acknowledged = freeze
    question = uuid7()
    answer = await made.decide(desk.agents["buyer"].token, id=question)
    assert answer.status == 503
    assert "lease_ended" in answer.body["detail"]
    assert answer.headers["retry-after"] == "1"
    (void,) = await asyncio.to_thread(tape.wait, Topic.DECISIONS, of("decision.void", recorded[0]))
    assert (void["reason"], void["agent"], void["session"]) == ("lease_ended", "buyer", "s1")
    (decision,) = tape.records(Topic.DECISIONS, lambda one: one["id"] == recorded[0])
    assert decision["decision"] == "allow"
    assert void["_partition"] == decision["_partition"]
    assert void["_offset"] > decision["_offset"]

    made.decider.acknowledged = None
    await eventually(lambda: lease.valid)
    again = await made.decide(desk.agents["buyer"].token, id=question)
    assert again.status == 200
    assert again.body["id"] != recorded[0]  # the voided answer was never kept


async def test_a_token_that_is_rotated_out_while_the_record_is_under_way(
    desk: Desk, within: tuple[Inside, Tape]
) -> None:
    made, tape = within
    recorded: list[str] = []
    old = desk.agents["buyer"].token

    async def rotate(decision: str) -> None:
        recorded.append(decision)
        credential, hashed = new_credential(desk.secret, "shop", "buyer")
        event = AgentRotated(
            v=1, id=uuid7(), time=rfc3339(), source="test", project="shop", agent="buyer",
            token_id=credential.token_id, token_hash=hashed,
        )  # fmt: skip
        await made.replica.control.applied(await made.replica.records.control(event))

    made.decider.acknowledged = rotate
    answer = await made.decide(old)
    assert answer.status == 503
    assert "caller_refused" in answer.body["detail"]
    made.decider.acknowledged = None
    (void,) = await asyncio.to_thread(tape.wait, Topic.DECISIONS, of("decision.void", recorded[0]))
    assert void["reason"] == "caller_refused"
    assert (await made.decide(old)).status == 401


@pytest.mark.parametrize("act", ["revoke", "kill", "pause"])
async def test_a_control_that_lands_while_the_record_is_under_way(
    desk: Desk, within: tuple[Inside, Tape], act: str
) -> None:
    made, tape = within
    recorded: list[str] = []
    head: dict[str, Any] = {"v": 1, "time": rfc3339(), "source": "test", "project": "shop"}

    async def apply(event: Control) -> int:
        offset = await made.replica.records.control(event)
        await made.replica.control.applied(offset)
        return offset

    async def control(decision: str) -> None:
        recorded.append(decision)
        await apply(
            AgentRevoked(**head, id=uuid7(), agent="buyer")
            if act == "revoke"
            else SessionKilled(**head, id=uuid7(), agent="buyer", session="doomed")
            if act == "kill"
            else ProjectPaused(**head, id=uuid7())
        )

    made.decider.acknowledged = control
    try:
        answer = await made.decide(desk.agents["buyer"].token, session="doomed")
        assert answer.status == 503
        assert "controlled" in answer.body["detail"]
        (void,) = await asyncio.to_thread(tape.wait, Topic.DECISIONS, of("decision.void", recorded[0]))
        assert (void["reason"], void["session"]) == ("controlled", "doomed")
        denied = await made.decide(desk.agents["buyer"].token, session="doomed", action="force_push")
        assert denied.status == 200  # what is denied anyway is no news
        assert denied.body["decision"] == "deny"
    finally:
        made.decider.acknowledged = None
        lifts = made.replica.state.applied
        await apply(AgentRestored(**head, id=uuid7(), agent="buyer", lifts=lifts))
        await apply(ProjectResumed(**head, id=uuid7(), lifts=lifts))
    assert (await made.decide(desk.agents["buyer"].token, session="other")).body["decision"] == "allow"


async def test_the_last_check_and_the_answer_are_one_step_of_the_loop(desk: Desk, within: tuple[Inside, Tape]) -> None:
    """Between the last check and the bytes nothing else may run: who looks at every step sees either no answer, or an
    answer under a lease that was good in this very step."""
    made, _ = within
    loop = asyncio.get_running_loop()
    steps, done = 0, False

    def step() -> None:
        nonlocal steps
        steps += 1
        if not done:
            loop.call_soon(step)

    loop.call_soon(step)
    checked: list[int] = []
    sent: list[int] = []
    state = made.replica.state
    real = state.refuses

    def refuses(holder: Any) -> bool:
        checked.append(steps)
        return real(holder)

    class Slow:
        """A slow reader: the wait for it comes before the check."""

        write_paused = True
        drained: list[int] = []  # noqa: RUF012

        async def drain(self) -> None:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self.drained.append(steps)
            self.write_paused = False

    async def send(message: Any) -> None:
        sent.append(steps)

    class Told(Exchange):
        def answer(self, status: int, head: bytes, body: bytes) -> None:
            sent.append(steps)
            super().answer(status, head, body)

    state.refuses = refuses  # type: ignore[method-assign]
    try:
        caller = made.replica.callers.agent({b"authorization": b"Bearer " + desk.agents["buyer"].token.encode()})
        assert (await made.decide(desk.agents["buyer"].token)).status == 200
        kept = next(iter(made.replica.answers._asked.values()), None)
        assert kept is None  # it had no id
        question = uuid7()
        assert (await made.decide(desk.agents["buyer"].token, id=question)).status == 200
        known = made.replica.answers.find("buyer", question)
        assert known is not None
        assert known.answer is not None
        checked.clear()
        flow = Slow()
        await made.decider._send({"flow": flow}, send, caller, "s1", known.answer, None)
        assert flow.drained[0] <= checked[0] == sent[0] == sent[1]
        assert len(checked) == 1

        for reader in (Slow(), Flow()):  # the short way, with a slow reader and without
            checked.clear()
            sent.clear()
            Slow.drained.clear()
            fields = {
                b"content-type": b"application/json",
                b"authorization": b"Bearer " + desk.agents["buyer"].token.encode(),
            }
            exchange = Told(fields, json.dumps(PUSH).encode(), reader)
            assert made.short(exchange)
            assert (await exchange.answered).status == 200
            assert checked == sent
            assert len(checked) == 1
            assert Slow.drained == [] or Slow.drained[0] <= checked[0]
    finally:
        del state.refuses
        done = True


def failing_once(made: Inside, publisher: Any, kind: str) -> list[bytes]:
    """As if Kafka had been away for the next record of a kind -> what was not recorded."""
    real, failed = publisher.put, list[bytes]()

    def put(partition: int, key: bytes, value: bytes, headers: Any, landed: Any = nothing) -> asyncio.Future[int]:
        if dict(headers)["ce_type"] == f"banksman.{kind}".encode() and not failed:
            failed.append(value)
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            future.set_exception(BrokerAway("as if it had been away"))
            return future
        recorded: asyncio.Future[int] = real(partition, key, value, headers, landed)
        return recorded

    publisher.put = put
    return failed


async def test_an_approval_that_is_not_opened_is_never_told(desk: Desk, within: tuple[Inside, Tape]) -> None:
    made, tape = within
    failing_once(made, made.replica.records.controls, "approval.opened")
    token = desk.agents["buyer"].token
    answer = await made.decide(token, branch="main")
    assert answer.status == 503
    (void,) = await asyncio.to_thread(
        tape.wait, Topic.DECISIONS, lambda one: one.get("reason") == "approval_not_recorded"
    )
    (decision,) = tape.records(Topic.DECISIONS, lambda one: one["id"] == void["parent"])
    again = await made.decide(token, branch="main")
    assert again.status == 200
    assert again.body["approval"] != decision["approval"]  # nobody will ever be asked about the first one
    tape_again = await asyncio.to_thread(
        tape.wait, Topic.DECISIONS, lambda one: one.get("kind") == "approval.requested"
    )
    assert [one["approval"] for one in tape_again] == [again.body["approval"]]


async def test_an_approval_that_is_open_is_told_however_late(desk: Desk, within: tuple[Inside, Tape]) -> None:
    made, tape = within
    failed = failing_once(made, made.replica.records.decisions, "approval.requested")
    answer = await made.decide(desk.agents["buyer"].token, branch="main")
    assert (answer.status, answer.body["decision"]) == (200, "approve")
    assert failed
    (told,) = await asyncio.to_thread(tape.wait, Topic.DECISIONS, lambda one: one.get("kind") == "approval.requested")
    assert told["approval"] == answer.body["approval"]
    assert told["_raw"] == failed[0]


async def test_a_full_queue_leaves_nothing_behind(desk: Desk, within: tuple[Inside, Tape]) -> None:
    """Room for one record is no room for a decision and its request."""
    made, tape = within
    token, publisher = desk.agents["buyer"].token, made.replica.records.decisions
    publisher.pending += publisher.room - 1
    filled = publisher.pending
    try:
        answer = await made.decide(token, branch="main", session="full")
        assert answer.status == 503
        assert "full" in answer.body["detail"]
        publisher.pending += 1
        assert (await made.decide(token, session="full")).status == 503
        publisher.pending -= 1
    finally:
        publisher.pending -= filled
    assert (await made.decide(token, session="after")).status == 200
    await asyncio.to_thread(tape.wait, Topic.DECISIONS, lambda one: one.get("session") == "after")
    assert tape.records(Topic.DECISIONS, lambda one: one.get("session") == "full") == []
    assert made.replica.records.undelivered == 0


async def test_who_waits_for_the_same_question_is_decided_when_the_first_one_fails(
    desk: Desk, within: tuple[Inside, Tape]
) -> None:
    made, _ = within
    lease = made.replica.lease
    token, question = desk.agents["buyer"].token, uuid7()
    others: list[asyncio.Task[Any]] = []

    async def fail_once(_: str) -> None:
        made.decider.acknowledged = None
        others.extend(asyncio.create_task(made.decide(token, id=question)) for _ in range(3))
        kept = made.replica.answers.find("buyer", question)
        assert kept is not None
        await eventually(lambda: len(kept.waiting or ()) == 3)
        ends, lease.ends = lease.ends, 0.0
        asyncio.get_running_loop().call_later(0, setattr, lease, "ends", ends)

    made.decider.acknowledged = fail_once
    assert (await made.decide(token, id=question)).status == 503
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*others)
    assert {answer.status for answer in answers} <= {200, 503}
    good = [answer.body["id"] for answer in answers if answer.status == 200]
    assert len(set(good)) <= 1
    final = await made.decide(token, id=question)
    assert final.status == 200


async def test_a_client_that_is_gone_changes_nothing_about_the_record(desk: Desk, within: tuple[Inside, Tape]) -> None:
    """The bookkeeping of a question that nobody waits for any more is that of any other."""
    made, tape = within
    token = desk.agents["buyer"].token
    limits = made.replica.callers.agent({b"authorization": b"Bearer " + token.encode()}).limits
    fields = {b"content-type": b"application/json", b"authorization": b"Bearer " + token.encode()}
    exchange = Exchange(fields, json.dumps(PUSH | {"session": "gone"}).encode())
    assert made.short(exchange)
    assert limits.waiting == 1
    exchange.answer = lambda *_: None  # type: ignore[method-assign]
    await asyncio.to_thread(tape.wait, Topic.DECISIONS, lambda one: one.get("session") == "gone")
    await eventually(lambda: limits.waiting == 0)
    assert (await made.decide(token)).status == 200


async def test_what_is_not_usual_is_left_to_the_application_and_costs_nothing_twice(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AgentLimits, "charge", lambda *_: None)  # by the clock: not what is looked at here
    async with inside(desk) as made:
        made.prefer = "short"
        token = desk.agents["buyer"].token
        question = uuid7()
        await made.decide(token, id=question)
        limits = made.replica.callers.agent({b"authorization": b"Bearer " + token.encode()}).limits
        limits._rate = 0.0  # nothing comes back by itself
        made.ways.clear()
        unusual: list[tuple[dict[str, Any], int]] = [
            ({"id": question}, 200),  # asked before
            ({"branch": "main"}, 200),  # waits for an approval
            ({"colour": "red"}, 422),
            ({"session": ""}, 422),
        ]
        for changes, status in unusual:
            limits._allowance = 100.0
            assert (await made.decide(token, **changes)).status == status
            assert limits._allowance == 99.0
        limits.waiting, limits._allowance = limits._share, 100.0
        assert (await made.decide(token)).status == 429
        assert limits._allowance == 99.0
        limits.waiting = 0
        assert (await made.decide("nobody")).status == 401
        assert made.ways == ["asgi"] * (len(unusual) + 2)
        assert (await made.decide(token)).status == 200
        assert (made.ways[-1], limits._allowance, limits.waiting) == ("short", 98.0, 0)
