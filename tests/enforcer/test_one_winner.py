"""Approvals: what another replica writes to the log between two steps of this one, forced there, and answers that are lost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from tests.enforcer.conftest import Answer, Desk, Tape
from tests.enforcer.inside import Inside, eventually, inside
from tests.enforcer.test_last_check import failing_once, of

from banksman.approvals import Approval
from banksman.bus import nothing
from banksman.errors import BrokerAway
from banksman.events import ApprovalOpened, Claim, Control, Vote
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic

OTHER = "enforcer#other"
DEADLINE_S = 3.0


@dataclass
class Room:
    """A replica, the log, an agent that asks and somebody who may say yes; and what another replica writes."""

    made: Inside
    tape: Tape
    token: str
    ann: str

    async def ask(self, approval: str | None = None, **more: Any) -> Answer:
        return await self.made.decide(self.token, branch="main", session="asks", approval=approval, **more)

    async def opened(self) -> str:
        approval: str = (await self.ask()).body["approval"]
        await eventually(lambda: self.made.replica.state.approvals.knows(approval))
        return approval

    async def given(self) -> str:
        """One that is approved."""
        approval = await self.opened()
        assert (await self.say_yes(approval)).status == 200
        return approval

    async def say_yes(self, approval: str) -> Answer:
        return await self.made.ask("POST", f"/v1/approvals/{approval}", {"verdict": "approve"}, token=self.ann)

    def known(self, approval: str) -> Approval:
        found = self.made.replica.state.approvals.get(approval)
        assert found is not None
        return found

    async def write(self, event: Control) -> int:
        """As another replica, and applied here -> its offset."""
        offset = await self.made.replica.records.control(event)
        await self.made.replica.control.applied(offset)
        return offset

    def claim(self, approval: str, request: str, **more: Any) -> Claim:
        args_hash = self.known(approval).facts.args_hash
        return Claim(
            v=1, id=uuid7(), time=rfc3339(), source=OTHER, approval=approval, request=request, args_hash=args_hash, **more
        )  # fmt: skip

    def vote(self, approval: str, verdict: Any, *, at: datetime | None = None) -> Vote:
        return Vote(
            v=1, id=uuid7(), time=rfc3339(at), source=OTHER, by="bob", approval=approval, verdict=verdict, comment="late"
        )  # fmt: skip

    def reason(self, answer: Answer) -> tuple[str, str]:
        assert answer.status == 200, answer.raw
        return answer.body["decision"], answer.body["reason"]


@pytest.fixture
async def room(desk: Desk) -> AsyncIterator[Room]:
    ann, enrolled = desk.operator("ann", "approver")
    _, bob = desk.operator("bob", "approver")
    with Tape(desk.kafka) as tape:
        async with inside(desk, lease_s=10.0, record_deadline_s=DEADLINE_S) as made:
            for one in (enrolled, bob):
                await made.replica.control.applied(await made.replica.records.control(one))
            yield Room(made, tape, desk.agents["buyer"].token, ann)


# ── votes ──


async def test_a_vote_that_lands_first_wins_over_one_that_was_under_way(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both saw it pending; bob's lies one offset before ann's."""
    approval, records = await room.opened(), room.made.replica.records
    real = records.control

    async def overtaken(event: Any, **more: Any) -> int:
        if isinstance(event, Vote) and event.by == "ann":
            await real(room.vote(approval, "deny"))
        return await real(event, **more)

    monkeypatch.setattr(records, "control", overtaken)
    answer = await room.say_yes(approval)
    assert (answer.status, answer.body["detail"]) == (409, "bob has denied it already")
    assert [(one.by, one.verdict) for one in room.known(approval).votes.values()] == [("bob", "deny")]


async def test_the_log_says_when_a_vote_and_a_use_came_not_who_wrote_them(room: Room) -> None:
    """One waited for Kafka until after the end, another was stamped by a clock that is minutes fast."""

    async def until(seconds: float) -> str:
        approval = uuid7()
        ends = datetime.now(UTC) + timedelta(seconds=seconds)
        await room.write(
            ApprovalOpened(
                v=1, id=uuid7(), time=rfc3339(), source=OTHER, project="shop", agent="buyer", session="asks",
                approval=approval, service="git", action="push", branch="main", resource="acme/billing",
                expires_at=rfc3339(ends),
            )
        )  # fmt: skip
        return approval

    voted, used, fast = await until(1.5), await until(1.5), await until(60)
    await room.write(room.vote(used, "approve"))
    before_the_end = datetime.now(UTC)
    ends = room.known(used).expires_ms
    assert room.known(used).status(time.time() * 1000) == "approved"
    await eventually(lambda: time.time() * 1000 > ends + 5)
    await room.write(room.vote(voted, "approve", at=before_the_end))
    offset = await room.write(msgspec.structs.replace(room.claim(used, "r1"), time=rfc3339(before_the_end)))
    assert (room.known(voted).votes, room.known(voted).verdict) == ({}, None)
    assert room.known(used).use is None
    assert not room.made.replica.state.approvals.outcome(offset)
    await room.write(room.vote(fast, "approve", at=datetime.now(UTC) + timedelta(minutes=5)))
    assert room.known(fast).verdict == "approve"


# ── uses ──


def before_own_claim(room: Room, monkeypatch: pytest.MonkeyPatch, first: Callable[[], Control]) -> None:
    """Another replica's record lies right before the claim of this one."""
    records = room.made.replica.records
    real = records.control_soon

    def soon(event: Any, **more: Any) -> asyncio.Future[int]:
        if isinstance(event, Claim) and event.undoes is None and event.source != OTHER:
            real(first())
        return real(event, **more)

    monkeypatch.setattr(records, "control_soon", soon)


async def test_what_a_use_came_to_is_said_where_it_lies_and_not_when_somebody_looks(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came second. Before anybody looks, the first one is undone: who looked at the approval now would find it free, and
    one that was told no would act upon it, or two would.
    """
    approval, control = await room.given(), room.made.replica.control
    question, real = uuid7(), control.applied
    before_own_claim(room, monkeypatch, lambda: room.claim(approval, "another request"))
    undone: list[int] = []

    async def late(offset: int) -> None:
        await real(offset)
        held = room.known(approval).use
        if held is not None and held.request == "another request" and not undone:
            undone.append(held.offset)
            undo = room.claim(approval, "another request", undoes=held.offset)
            await real(await room.made.replica.records.control(undo))
            assert room.known(approval).use is None

    monkeypatch.setattr(control, "applied", late)
    assert room.reason(await room.ask(approval, id=question)) == ("deny", "approval_used")
    assert undone
    monkeypatch.undo()
    assert room.reason(await room.ask(approval)) == ("allow", "approved")
    assert room.reason(await room.ask(approval, id=question)) == ("deny", "approval_used")


async def test_the_request_of_a_replica_that_died_is_allowed_elsewhere_and_no_other_is(room: Room) -> None:
    """It had claimed, and was killed before the decision was on record."""
    approval, question = await room.given(), uuid7()
    await room.write(room.claim(approval, question))
    assert room.reason(await room.ask(approval)) == ("deny", "approval_used")
    answer = await room.ask(approval, id=question)
    assert room.reason(answer) == ("allow", "approved")
    (decision,) = await asyncio.to_thread(room.tape.wait, Topic.DECISIONS, lambda one: one["id"] == answer.body["id"])
    assert decision["parent"] == question
    await asyncio.to_thread(room.tape.wait, Topic.DECISIONS, of("approval.used", answer.body["id"]))


@pytest.mark.parametrize("kind", ["decision", "approval.used"])
async def test_a_use_that_is_not_on_record_gives_the_approval_back(room: Room, kind: str) -> None:
    """It had won. What was recorded of it all the same is voided."""
    approval, question = await room.given(), uuid7()
    failed = failing_once(room.made, room.made.replica.records.decisions, kind)
    answer = await room.ask(approval, id=question)
    assert (answer.status, len(failed)) == (503, 1)
    await eventually(lambda: room.known(approval).use is None)
    if kind == "approval.used":
        (recorded,) = await asyncio.to_thread(
            room.tape.wait,
            Topic.DECISIONS,
            lambda one: one.get("parent") == question and one["kind"] == "decision",
        )
        await asyncio.to_thread(room.tape.wait, Topic.DECISIONS, of("decision.void", recorded["id"]))
    assert room.reason(await room.ask(approval)) == ("allow", "approved")
    assert room.reason(await room.ask(approval, id=question)) == ("deny", "approval_used")


def answer_lost(room: Room, *, offset_known: bool) -> list[int]:
    """Of the next claim: it lands, and whoever wrote it is told that it is too late, and then that it landed."""
    publisher = room.made.replica.records.controls
    real, landed_at = publisher.put, list[int]()

    def put(partition: int, key: bytes, value: bytes, headers: Any, landed: Any = nothing) -> asyncio.Future[int]:
        if dict(headers)["ce_type"] != b"banksman.claim" or landed_at or "undoes" in json.loads(value):
            return real(partition, key, value, headers, landed)
        lost: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def tell(done: asyncio.Future[int]) -> None:
            landed_at.append(done.result())
            lost.set_exception(BrokerAway("as if it had not been acknowledged in time"))
            landed(done.result() if offset_known else -1)

        real(partition, key, value, headers).add_done_callback(tell)
        return lost

    publisher.put = put  # type: ignore[method-assign]
    return landed_at


async def test_a_use_that_lands_late_is_undone(room: Room) -> None:
    approval = await room.given()
    landed = answer_lost(room, offset_known=True)
    assert (await room.ask(approval)).status == 503
    (undo,) = await asyncio.to_thread(room.tape.wait, Topic.CONTROL, lambda one: one.get("undoes") == landed[0])
    await room.made.replica.control.applied(undo["_offset"])
    assert room.known(approval).use is None
    assert room.reason(await room.ask(approval)) == ("allow", "approved")


async def test_a_use_of_which_nobody_can_say_where_it_lies_stays_its_requests_own(room: Room) -> None:
    """A broker that took over knows the batch and not its place. What cannot be named cannot be undone: the request that has
    it gets its answer when it asks again.
    """
    approval, question = await room.given(), uuid7()
    landed = answer_lost(room, offset_known=False)
    assert (await room.ask(approval, id=question)).status == 503
    await room.made.replica.control.applied(landed[0])
    assert room.reason(await room.ask(approval)) == ("deny", "approval_used")
    assert room.reason(await room.ask(approval, id=question)) == ("allow", "approved")
    assert room.tape.records(Topic.CONTROL, lambda one: one.get("undoes") is not None) == []
    assert room.tape.records(Topic.ALERTS, lambda one: one.get("detector") == "forged") == []


async def test_a_use_that_is_not_read_back_is_undone(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has it, and this replica's reader does not get there in time: what it came to cannot be said here."""
    approval, control = await room.given(), room.made.replica.control
    real, claims = control.applied, list[int]()

    async def hangs(offset: int) -> None:
        if not claims:
            claims.append(offset)
            await asyncio.Future()
        await real(offset)

    monkeypatch.setattr(control, "applied", hangs)
    answer = await room.ask(approval)
    assert (answer.status, "may or may not be taken" in answer.body["detail"]) == (503, True)
    await asyncio.to_thread(room.tape.wait, Topic.CONTROL, lambda one: one.get("undoes") == claims[0])
    await eventually(lambda: room.known(approval).use is None)
    assert room.reason(await room.ask(approval)) == ("allow", "approved")
