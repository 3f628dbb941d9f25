"""Commands and those who have to obey them: who comes, goes or is not heard of between two steps of a command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.enforcer.conftest import PUSH, Desk, Tape
from tests.enforcer.inside import Inside, eventually, inside

from banksman.events import Replica, SessionKilled
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic

LEASE_S = 4.0


@pytest.fixture
async def made(desk: Desk) -> AsyncIterator[Inside]:
    async with inside(desk, lease_s=LEASE_S) as one:
        yield one


def ghost(**changes: Any) -> Replica:
    """A heartbeat of another replica."""
    fields: dict[str, Any] = {
        "v": 1, "id": uuid7(), "time": rfc3339(), "source": "enforcer#ghost", "replica": "ghost", "address": "http://ghost",
        "applied": 0, "lease_s": LEASE_S,
    }  # fmt: skip
    return Replica(**(fields | changes))


async def beat(made: Inside, heartbeat: Replica) -> int:
    return await made.replica.records.control(heartbeat, key="replica/ghost")


async def kill(made: Inside, desk: Desk, session: str = "doomed") -> Any:
    path = f"/v1/sessions/{session}/kill?agent=buyer"
    return await made.ask("POST", path, {"reason": "now"}, token=desk.admin)


async def test_a_replica_that_comes_while_a_command_is_on_its_way_is_waited_for(
    desk: Desk, made: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heartbeat lies right before the command, and the reader meets it on the way there: nobody knew of it when the command
    was written or acknowledged, and it may have a lease that does not know of the command.
    """
    records, control, state = made.replica.records, made.replica.control, made.replica.state
    really, read, apply = records.control, control.applied, state.apply
    held: list[tuple[Any, ...]] = []
    passed = False

    async def overtaken(event: Any, **more: Any) -> int:
        if isinstance(event, SessionKilled):
            await really(ghost(), key="replica/ghost")
            await eventually(lambda: held)  # the reader has met it, and is made not to know of it yet
        return await really(event, **more)

    def hold(event: Any, *where: Any) -> bool:
        if isinstance(event, Replica) and event.replica == "ghost" and not passed:
            held.append((event, *where))
            return False
        return apply(event, *where)

    async def meet(offset: int) -> None:
        nonlocal passed
        passed = True
        assert [one.replica for one in made.replica.live()] == [made.replica.id]
        await read(offset)
        for one in held:
            apply(*one)

    monkeypatch.setattr(records, "control", overtaken)
    monkeypatch.setattr(state, "apply", hold)
    monkeypatch.setattr(control, "applied", meet)
    told = (await kill(made, desk)).body
    assert held
    assert (told["replicas"], told["in_force"], told["fenced"]) == (2, 1, ["ghost"])
    assert told["took_ms"] >= LEASE_S * 1000


async def test_a_replica_that_says_goodbye_is_not_waited_for(
    desk: Desk, made: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers nothing any more; without its word its lease would be waited for, here a minute."""
    await made.replica.control.applied(await beat(made, ghost(lease_s=60.0)))
    real = made.replica.control.moved
    asked: list[float] = []

    async def moved(seconds: float) -> None:
        if not asked:
            await beat(made, ghost(lease_s=60.0, ended=True))
        asked.append(seconds)
        await real(seconds)

    monkeypatch.setattr(made.replica.control, "moved", moved)
    async with asyncio.timeout(20):
        told = (await kill(made, desk)).body
    assert (told["replicas"], told["in_force"], told["fenced"]) == (2, 2, [])
    assert asked[0] > 20


async def test_a_command_whose_own_replica_does_not_read_it_back_is_not_called_in_force(
    desk: Desk, made: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on the log, and holds wherever it is read; who asked for it is told that nobody here can say so."""
    stopped = asyncio.Event()

    async def hangs(_offset: int) -> None:
        stopped.set()
        await asyncio.Future()

    monkeypatch.setattr(made.replica.control, "applied", hangs)
    answer = await kill(made, desk)
    assert stopped.is_set()
    assert (answer.status, "may or may not be in force" in answer.body["detail"]) == (503, True)
    monkeypatch.undo()
    again = await kill(made, desk)
    assert again.body["state"] == "killed"


async def test_one_that_has_obeyed_an_older_command_is_still_waited_for(desk: Desk, made: Inside) -> None:
    """What counts is the command's own offset."""
    first = (await kill(made, desk, "one")).body
    assert first["fenced"] == []
    with Tape(desk.kafka) as tape:
        (record,) = await asyncio.to_thread(tape.wait, Topic.CONTROL, lambda one: one.get("session") == "one")
    await made.replica.control.applied(await beat(made, ghost(applied=record["_offset"])))
    told = (await kill(made, desk, "two")).body
    assert told["fenced"] == ["ghost"]
    for session in ("one", "two"):
        answer = await made.decide(desk.agents["buyer"].token, session=session)
        assert (answer.body["decision"], answer.body["reason"]) == ("deny", "killed")
    assert (await made.ask("POST", "/v1/decide", PUSH, token=desk.agents["buyer"].token)).body["decision"] == "allow"
