"""An enforcer inside the test's own event loop, on the real broker: its clock, its named point and its parts in reach."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.enforcer.conftest import PUSH, Answer, Desk

from banksman import settings
from banksman.enforcer.app import build
from banksman.enforcer.decide import Decider
from banksman.enforcer.replica import Replica
from banksman.enforcer.short_way import ShortWay
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
    short: ShortWay
    ways: list[str] = field(default_factory=list)
    """By which way each question was answered that `decide` put."""
    prefer: str = "asgi"

    async def ask(
        self, method: str, path: str, body: Any = None, *, token: str = "", headers: dict[str, str] | None = None
    ) -> Answer:
        given = {"host": "localhost", "content-type": "application/json"}
        if token:
            given["authorization"] = f"Bearer {token}"
        given |= {name.lower(): value for name, value in (headers or {}).items()}
        raw = b"" if body is None else json.dumps(body).encode()
        path, _, query = path.partition("?")
        pieces: list[Any] = [{"type": "http.request", "body": raw, "more_body": False}]
        scope = {
            "type": "http", "method": method, "path": path, "query_string": query.encode(),
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
        if self.prefer == "short":
            exchange = Exchange(
                {
                    b"host": b"localhost",
                    b"content-type": b"application/json",
                    b"authorization": b"Bearer " + token.encode(),
                },
                json.dumps(asked).encode(),
            )
            if self.short(exchange):
                self.ways.append("short")
                return await exchange.answered
        self.ways.append("asgi")
        return await self.ask("POST", "/v1/decide", asked, token=token)


class Flow:
    """A reader who is there."""

    write_paused = False

    async def drain(self) -> None:
        raise AssertionError("nobody has to wait for it")


class Exchange:
    """A request by the short way, as a connection offers it."""

    def __init__(self, fields: dict[bytes, bytes], body: bytes, flow: Any = None) -> None:
        self.fields, self.body, self.flow = fields, body, flow or Flow()
        self.answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def answer(self, status: int, head: bytes, body: bytes) -> None:
        lines = [line.partition(": ") for line in head.decode().split("\r\n")[:-1]]
        self.answered.set_result(Answer(status, {name: value for name, _, value in lines}, body))


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
        yield Inside(replica, Guard(app, ["localhost"]), decider, ShortWay(decider))
    finally:
        stop.set()
        await running
