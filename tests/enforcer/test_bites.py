"""Large batches of many clients at once: the event loop has its turns for what keeps the lease."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.enforcer.conftest import Desk
from tests.enforcer.inside import inside

from banksman.enforcer import entrance as preparing


async def test_one_bite_in_a_turn_of_the_loop(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve clients with a batch of some hundred kilobytes each: in no turn is more than one piece of them read."""
    turns, done = 0, False
    bites: list[int] = []
    loop = asyncio.get_running_loop()

    def turn() -> None:
        nonlocal turns
        turns += 1
        if not done:
            loop.call_soon(turn)

    real = preparing.prepare

    def prepare(*given: Any) -> Any:
        bites.append(turns)
        return real(*given)

    monkeypatch.setattr("banksman.enforcer.events_in.prepare", prepare)
    batch = [{"kind": "note", "session": "s1", "text": f"{number} " + "x" * 400} for number in range(300)]
    async with inside(desk, agent_share=1.0) as made:
        loop.call_soon(turn)
        answers = await asyncio.gather(
            *[made.ask("POST", "/v1/events", batch, token=desk.agents["buyer"].token) for _ in range(12)]
        )
        done = True
    assert [answer.status for answer in answers] == [200] * 12, answers[0].raw
    assert len(bites) > 12 * 3
    assert len(set(bites)) == len(bites)
