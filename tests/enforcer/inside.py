"""An enforcer inside the test's own event loop, on the real broker: its clock, its named point and its parts in reach."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.enforcer.conftest import PUSH, Answer, Desk

from banksman import settings
from banksman.enforcer.app import build
from banksman.enforcer.decide import Decider
from banksman.enforcer.replica import Replica
from banksman.listener import Guard

if TYPE_CHECKING:
    from banksman.http_problem import Application


async def eventually(condition: Callable[[], Any], seconds: float = 10) -> None:
    """Return when `condition` is true; TimeoutError when it never was."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.005)


@dataclass
class Inside:
    """One replica. Called like a client calls it, without a socket in between."""

    replica: Replica
    app: Application
    decider: Decider

    async def ask(
        self, method: str, path: str, body: Any = None, *, token: str = "", headers: dict[str, str] | None = None
    ) -> Answer:
        given = {"host": "localhost", "content-type": "application/json"}
        if token:
            given["authorization"] = f"Bearer {token}"
        given |= {name.lower(): value for name, value in (headers or {}).items()}
        raw = b"" if body is None else json.dumps(body).encode()
        pieces: list[Any] = [{"type": "http.request", "body": raw, "more_body": False}]
        scope = {
            "type": "http", "method": method, "path": path, "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }  # fmt: skip
        told: dict[str, Any] = {"body": b""}

        async def receive() -> Any:
            return pieces.pop() if pieces else await asyncio.Future()

        async def send(message: Any) -> None:
            told.update({name: value for name, value in message.items() if name != "body"})
            told["body"] += message.get("body", b"")

        await self.app(scope, receive, send)
        return Answer(told["status"], {k.decode(): v.decode() for k, v in told["headers"]}, told["body"])

    async def decide(self, token: str, **changes: Any) -> Answer:
        asked = {name: value for name, value in (PUSH | changes).items() if value is not None}
        return await self.ask("POST", "/v1/decide", asked, token=token)


@asynccontextmanager
async def inside(desk: Desk, **own: Any) -> AsyncIterator[Inside]:
    """A replica that is ready, until the block ends."""
    replica = Replica(desk.kafka, desk.secret, settings.Enforcer(policies=str(desk.policies), **own), "http://inside")
    app, decider = build(replica)
    stop = asyncio.Event()
    running = asyncio.create_task(replica.run(stop))
    try:
        await eventually(lambda: replica.lease.valid or running.done(), 30)
        assert not running.done(), running
        yield Inside(replica, Guard(app, ["localhost"]), decider)
    finally:
        stop.set()
        await running
