"""Access requests and their approvals: what another replica writes between two steps of this one, and answers that are lost."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import pytest
from tests.enforcer.access_desk import EVALUATION, EVALUATIONS, REQUESTS, access_request, again, refused
from tests.enforcer.conftest import Answer, Desk
from tests.enforcer.inside import Inside, eventually, inside

from banksman.approvals import Approval
from banksman.events import AccessRequested
from banksman.http_problem import problem
from banksman.stamps import rfc3339, uuid7

ASKED: dict[str, Any] = {
    "subject": {"type": "user", "id": "u"}, "action": {"name": "push"},
    "resource": {"type": "git", "id": "a/b", "properties": {"branch": "main"}},
}  # fmt: skip


@dataclass
class Room:
    """A replica, an agent that asks, and somebody who may say yes."""

    made: Inside
    token: str
    ann: str

    async def ask(self, path: str = EVALUATION, body: Any = None, **more: Any) -> Answer:
        return await self.made.ask("POST", path, body or ASKED, token=self.token, **more)

    async def denied(self, document: str = "a/b") -> dict[str, Any]:
        asked = ASKED | {"resource": ASKED["resource"] | {"id": document}}
        context: dict[str, Any] = (await self.ask(body=asked)).body["context"]
        await eventually(lambda: self.made.replica.state.approvals.knows(context["approval"]["id"]))
        return context

    async def given(self) -> str:
        approval: str = (await self.denied())["approval"]["id"]
        yes = await self.made.ask("POST", f"/v1/approvals/{approval}", {"verdict": "approve"}, token=self.ann)
        assert yes.status == 200, yes.raw
        return approval

    def known(self, approval: str) -> Approval:
        found = self.made.replica.state.approvals.get(approval)
        assert found is not None
        return found

    def request(self, approval: str, body_hash: str, key_hash: str | None = None) -> AccessRequested:
        """As another replica writes it."""
        return AccessRequested(
            v=1, id=uuid7(), time=rfc3339(), source="enforcer#other", project="shop", agent="buyer", session="authzen",
            approval=approval, body_hash=body_hash, key_hash=key_hash,
        )  # fmt: skip


@pytest.fixture
async def room(desk: Desk) -> AsyncIterator[Room]:
    ann, enrolled = desk.operator("ann", "approver")
    async with inside(desk, lease_s=10.0) as made:
        await made.replica.control.applied(await made.replica.records.control(enrolled))
        yield Room(made, desk.agents["buyer"].token, ann)


async def test_of_two_requests_under_one_key_the_first_on_the_log_counts(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another replica takes another request under the key while this one is under way."""
    context = await room.denied()
    body, approval = access_request(ASKED, context), context["approval"]["id"]
    records, key_hash = room.made.replica.records, room.made.replica.binding.key("buyer", b"k")
    real = records.control

    async def overtaken(event: Any, **more: Any) -> int:
        await real(room.request(approval, "hmac-sha256:other", key_hash))
        return await real(event, **more)

    monkeypatch.setattr(records, "control", overtaken)
    answer = await room.ask(REQUESTS, body, headers={"Idempotency-Key": "k"})
    refused(answer, 409, "duplicate_request", "Idempotency-Key")
    assert [one.body_hash for one in room.known(approval).requests] == ["hmac-sha256:other"]


async def test_nothing_that_takes_long_is_done_in_the_loop(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte of numbers would keep everybody from their answers for a fifth of a second, and heartbeats with them."""
    asked = ASKED | {"action": {"name": "push", "properties": {f"n{number}": number + 0.5 for number in range(4000)}}}
    context = (await room.ask(body=asked)).body["context"]
    binding, where = room.made.replica.binding, list[threading.Thread]()

    def noted(real: Callable[[Any], str], value: Any) -> str:
        where.append(threading.current_thread())
        return real(value)

    monkeypatch.setattr(binding, "request", partial(noted, binding.request))
    monkeypatch.setattr(binding, "body", partial(noted, binding.body))
    assert (await room.ask(REQUESTS, access_request(asked, context))).status == 202
    assert len(where) == 2
    assert threading.main_thread() not in where


async def test_the_log_says_whether_a_request_came_in_time(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    context = await room.denied()
    approval, records = context["approval"]["id"], room.made.replica.records
    real = records.control

    async def held_up(event: Any, **more: Any) -> int:
        room.known(approval).expires_ms = 0  # as if it had waited for Kafka until the end
        return await real(event, **more)

    monkeypatch.setattr(records, "control", held_up)
    refused(await room.ask(REQUESTS, access_request(ASKED, context)), 410, "expired_denial")
    assert not room.known(approval).requests


async def test_a_request_that_is_not_on_record_is_not_taken(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    context = await room.denied()
    records = room.made.replica.records
    real, answers = records.control, [-1]

    async def lost(event: Any, **more: Any) -> int:
        return answers.pop() if answers else await real(event, **more)  # it is there, and nobody can say where

    monkeypatch.setattr(records, "control", lost)
    body = access_request(ASKED, context)
    answer = await room.ask(REQUESTS, body, headers={"Idempotency-Key": "k"})
    assert (answer.status, "retry-after" in answer.headers) == (503, True)
    assert (await room.ask(REQUESTS, body, headers={"Idempotency-Key": "k"})).status == 202
    assert room.made.replica.callers.limits["buyer"].waiting == 0


async def test_a_task_is_known_where_its_request_was_not_read_yet(room: Room) -> None:
    """Another replica has taken it a moment ago: its caller, who polls here, is not told that there is no such task."""
    for n in range(5):
        approval = (await room.denied(f"a/{n}"))["approval"]["id"]
        await room.made.replica.records.control(room.request(approval, "hmac-sha256:other"))
        answer = await room.made.ask("GET", f"{REQUESTS}/{approval}", token=room.token)
        assert (answer.status, answer.body["task"]["status"]) == (200, "pending")


async def test_a_task_that_ended_long_ago_is_over(room: Room) -> None:
    approval = await room.given()
    await room.made.replica.control.applied(
        await room.made.replica.records.control(room.request(approval, "hmac-sha256:x"))
    )
    room.known(approval).expires_ms -= 86_400_000 - 60_000
    assert (await room.made.ask("GET", f"{REQUESTS}/{approval}", token=room.token)).body["task"]["status"] == "approved"
    room.known(approval).expires_ms -= 16 * 60_000
    refused(await room.made.ask("GET", f"{REQUESTS}/{approval}", token=room.token), 410, "task_expired")


@pytest.mark.parametrize("path", [EVALUATION, EVALUATIONS])
async def test_an_answer_that_is_overtaken_gives_the_approval_back(room: Room, path: str) -> None:
    """The lease ends between the acknowledgement and the answer: nobody was allowed, so the yes is still good."""
    approval, lease = await room.given(), room.made.replica.lease

    async def freeze(_: str) -> None:
        lease.ends = lease.clock()

    room.made.decider.acknowledged = freeze
    assert (await room.ask(path, again(ASKED, approval))).status == 503
    room.made.decider.acknowledged = None
    await eventually(lambda: room.known(approval).use is None)
    await eventually(lambda: lease.valid)
    assert (await room.ask(path, again(ASKED, approval))).body["decision"] is True


async def test_a_batch_that_is_not_answered_gives_the_approval_back(room: Room) -> None:
    """One item has used it; another cannot be recorded."""
    approval = await room.given()
    items = [again(ASKED, approval), {"action": {"name": "pull"}}]

    recorded: list[str] = []

    async def then(decision: str) -> None:
        recorded.append(decision)
        if len(recorded) == 2:
            assert room.known(approval).use is not None
            raise problem(503, "as if its record was lost")

    room.made.decider.acknowledged = then
    one_by_one = {"evaluations_semantic": "deny_on_first_deny"}
    answer = await room.ask(EVALUATIONS, ASKED | {"evaluations": items, "options": one_by_one})
    room.made.decider.acknowledged = None
    assert answer.status == 503, answer.raw
    await eventually(lambda: room.known(approval).use is None)
    assert (await room.ask(body=again(ASKED, approval))).body["decision"] is True


async def test_what_changes_while_it_is_taken_gives_it_back(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    approval, decider = await room.given(), room.made.decider
    real, judged = decider._judged, []

    def changes(*asked: Any) -> Any:
        verdict = real(*asked)
        judged.append(verdict)
        if len(judged) == 1:
            return verdict
        return msgspec.structs.replace(verdict, ruling=msgspec.structs.replace(verdict.ruling, rule="another"))

    monkeypatch.setattr(decider, "_judged", changes)
    assert (await room.ask(body=again(ASKED, approval))).status == 503
    monkeypatch.undo()
    await eventually(lambda: room.known(approval).use is None)
    assert (await room.ask(body=again(ASKED, approval))).body["decision"] is True
