"""What happens to a decision between its acknowledgement and its answer, forced at the named point between the two."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.enforcer.conftest import Desk, Tape
from tests.enforcer.inside import Inside, eventually, inside

from banksman.errors import BrokerAway
from banksman.events import AgentRotated
from banksman.signing import new_credential
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic


@pytest.fixture
async def within(desk: Desk) -> Any:
    with Tape(desk.kafka) as tape:
        async with inside(desk) as made:
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

    class Flow:
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

    state.refuses = refuses  # type: ignore[method-assign]
    try:
        caller = made.replica.callers.agent(
            {"fields": {b"authorization": b"Bearer " + desk.agents["buyer"].token.encode()}}
        )
        assert (await made.decide(desk.agents["buyer"].token)).status == 200
        kept = next(iter(made.replica.answers._asked.values()), None)
        assert kept is None  # it had no id
        question = uuid7()
        assert (await made.decide(desk.agents["buyer"].token, id=question)).status == 200
        known = made.replica.answers.find("buyer", question)
        assert known is not None
        assert known.answer is not None
        checked.clear()
        flow = Flow()
        await made.decider._send({"flow": flow}, send, caller, known.answer, None)
        assert flow.drained[0] <= checked[0] == sent[0] == sent[1]
        assert len(checked) == 1
    finally:
        del state.refuses
        done = True


async def test_an_approval_whose_request_is_not_recorded_is_never_told(desk: Desk, within: tuple[Inside, Tape]) -> None:
    made, tape = within
    publisher = made.replica.records.decisions
    real = publisher.put
    failed: list[bytes] = []

    def put(partition: int, key: bytes, value: bytes, headers: Any, landed: Any = None) -> asyncio.Future[int]:
        if dict(headers)["ce_type"] == b"banksman.approval.requested" and not failed:
            failed.append(value)
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            future.set_exception(BrokerAway("as if it had been away"))
            return future
        return real(partition, key, value, headers, landed)

    publisher.put = put  # type: ignore[method-assign]
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
