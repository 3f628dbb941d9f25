"""The short way on a real connection: when it is taken, in which order it answers, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from banksman import http_connection, listener, settings
from banksman.http_body import read_body
from banksman.http_problem import routed
from banksman.http_shortcuts import Exchange

HEAD = b"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


async def eventually(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.005)  # between two looks


@dataclass
class Place:
    """A listener whose direct requests are answered when the test says so."""

    port: int
    stop: asyncio.Event
    taken: list[Exchange] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    """What connections received, as it came."""
    wants: bool = True
    raises: bool = False
    at_once: bool = True

    def direct(self, exchange: Exchange) -> bool:
        if self.raises:
            raise RuntimeError("a bug")
        if not self.wants:
            return False
        self.bodies.append(exchange.body)
        self.taken.append(exchange)
        if self.at_once:
            self.answer()
        return True

    def answer(self) -> None:
        exchange = self.taken.pop(0)
        exchange.answer(200, b"x-way: short\r\n", b"short:" + exchange.body)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()


@dataclass
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, body: bytes) -> None:
        self.writer.write(HEAD % len(body) + body)

    async def answer(self) -> tuple[int, bytes]:
        """(status, body); EOF is an IncompleteReadError."""
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            assert b"date" in fields
            return int(head.split(b" ")[1]), await self.reader.readexactly(int(fields[b"content-length"]))

    async def known(self) -> None:
        """Its head is known after this. The first time the guard learns the host, the second time the listener the head."""
        for _ in range(2):
            self.send(b"known")
            assert await self.answer() == (200, b"long:known")


@asynccontextmanager
async def listening() -> AsyncIterator[Place]:
    access = settings.Listener()
    opened = listener.open_socket("127.0.0.1", 0, access, setting="x")
    place = Place(opened.getsockname()[1], asyncio.Event())

    async def ask(asked: Any) -> PlainTextResponse:
        return PlainTextResponse(b"long:" + await read_body(asked.scope, asked.receive, limit=1 << 20))

    async def unread(_asked: Any) -> PlainTextResponse:
        return PlainTextResponse("unread")

    received = http_connection.Connection.data_received

    def data_received(connection: http_connection.Connection, data: bytes) -> None:
        place.chunks.append(data)
        received(connection, data)

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(http_connection.Connection, "data_received", data_received)
    app = routed([Route("/ask", ask, methods=["POST"]), Route("/unread", unread, methods=["POST"])])
    serving = asyncio.create_task(
        listener.serve(app, opened, host="127.0.0.1", listener=access, stop=place.stop, direct={b"/ask": place.direct})
    )
    try:
        await eventually(lambda: opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        yield place
    finally:
        place.stop.set()
        await serving
        monkeypatch.undo()


async def test_a_head_that_is_known_goes_the_short_way() -> None:
    async with listening() as place, place.client() as client:
        await client.known()
        for body in (b"", b"a", b"b" * 10_000):
            client.send(body)
            assert await client.answer() == (200, b"short:" + body)
        async with place.client() as other:  # the head is known, whoever sends it
            other.send(b"c")
            assert await other.answer() == (200, b"short:c")


async def test_what_comes_in_pieces_or_with_another_goes_the_long_way() -> None:
    async with listening() as place, place.client() as client:
        await client.known()
        sent = HEAD % 3 + b"abc"
        for cut in (1, len(HEAD), len(sent) - 1):
            client.writer.write(sent[:cut])
            await eventually(lambda: place.chunks[-1] == sent[:cut])  # noqa: B023 - looked at in this round
            client.writer.write(sent[cut:])
            assert await client.answer() == (200, b"long:abc")
        client.writer.write(sent + sent)
        assert await client.answer() == (200, b"long:abc")
        assert await client.answer() == (200, b"long:abc")
        client.send(b"abc")
        assert await client.answer() == (200, b"short:abc")


async def test_answers_come_in_the_order_of_the_questions() -> None:
    async with listening() as place, place.client() as client:
        await client.known()
        place.at_once = False
        client.send(b"one")
        await eventually(lambda: place.taken)
        client.send(b"two")  # waits, whichever way it would go
        await eventually(lambda: place.chunks[-1].endswith(b"two"))
        client.writer.write((HEAD % 5).replace(b"/ask", b"/ask?x") + b"three" + HEAD % 4 + b"four")
        assert len(place.taken) == 1
        place.at_once = True
        place.answer()
        got = [(await client.answer())[1] for _ in range(4)]
        assert [body.partition(b":")[2] for body in got] == [b"one", b"two", b"three", b"four"]
        assert got[0] == b"short:one"
        client.send(b"five")
        assert await client.answer() == (200, b"short:five")


async def test_who_is_not_wanted_goes_the_long_way() -> None:
    async with listening() as place, place.client() as client:
        await client.known()
        place.wants = False
        client.send(b"x")
        assert await client.answer() == (200, b"long:x")
        place.wants = True
        client.send(b"x")
        assert await client.answer() == (200, b"short:x")


async def test_a_bug_is_a_500_and_not_the_end(caplog: pytest.LogCaptureFixture) -> None:
    async with listening() as place, place.client() as client:
        await client.known()
        place.raises = True
        client.send(b"x")
        with caplog.at_level(logging.ERROR):
            assert (await client.answer())[0] == 500
        assert "a bug" in caplog.text
        place.raises = False
        client.send(b"x")
        assert await client.answer() == (200, b"short:x")


async def test_a_second_answer_changes_nothing() -> None:
    async with listening() as place, place.client() as client:
        await client.known()
        place.at_once = False
        client.send(b"x")
        await eventually(lambda: place.taken)
        exchange = place.taken[0]
        place.answer()
        exchange.answer(503, b"", b"again")
        assert await client.answer() == (200, b"short:x")
        place.at_once = True
        client.send(b"y")
        assert await client.answer() == (200, b"short:y")


async def test_who_hangs_up_before_the_answer() -> None:
    async with listening() as place, place.client() as client:
        await client.known()
        place.at_once = False
        client.send(b"x")
        await eventually(lambda: place.taken)
        client.writer.transport.abort()
        connection: Any = place.taken[0]
        await eventually(connection.transport.is_closing)
        place.answer()  # nobody is there, and nothing happens


async def test_the_rest_of_a_body_is_never_taken_for_a_request() -> None:
    """A request that was answered before its body was read: what still comes of it may look like anything."""
    async with listening() as place, place.client() as client:
        await client.known()
        inside = HEAD % 4 + b"evil"
        client.writer.write(b"POST /unread HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(inside))
        assert await client.answer() == (200, b"unread")
        client.writer.write(inside)
        await eventually(lambda: place.chunks[-1] == inside)
        client.send(b"after")
        assert await client.answer() == (200, b"short:after")
        assert place.bodies == [b"after"]


async def test_the_process_ends_after_the_answer() -> None:
    async with listening() as place, place.client() as client, place.client() as idle:
        await client.known()
        place.at_once = False
        client.send(b"x")
        await eventually(lambda: place.taken)
        place.stop.set()
        async with asyncio.timeout(10):
            assert await idle.reader.read() == b""  # who waits for nothing is let go at once
        place.answer()
        assert await client.answer() == (200, b"short:x")
        async with asyncio.timeout(10):
            assert await client.reader.read() == b""


async def test_who_says_nothing_is_let_go_and_who_speaks_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "KEEP_ALIVE_S", 0.5)
    async with listening() as place, place.client() as client:
        await client.known()
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() - began < 1.5:
            client.send(b"x")
            assert await client.answer() == (200, b"short:x")
            await asyncio.sleep(0.05)
        place.at_once = False
        client.send(b"y")
        await eventually(lambda: place.taken)
        await asyncio.sleep(1.2)  # longer than anybody may be silent; but it is we who are
        place.answer()
        assert await client.answer() == (200, b"short:y")
        last = loop.time()
        async with asyncio.timeout(10):
            assert await client.reader.read() == b""
        assert loop.time() - last > 0.4


def test_nothing_may_stand_between_a_connection_and_its_guard() -> None:
    with pytest.raises(TypeError):
        http_connection.Connection()
