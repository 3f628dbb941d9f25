"""HTTP itself, byte by byte: malformed, split, pipelined, upgraded, slow. Answers are ours, and nobody stops the others."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tests.enforcer.conftest import PUSH, Shop, raw_request
from tests.enforcer.inside import eventually

from banksman import http_connection, listener, settings
from banksman.http_body import read_body
from banksman.http_problem import Problem, routed
from banksman.topics import Topic

BODY = json.dumps(PUSH).encode()


def request(shop: Shop, body: bytes = BODY, *more: str, agent: str = "buyer", close: bool = False) -> bytes:
    lines = ["POST /v1/decide HTTP/1.1", "Host: localhost", f"Authorization: Bearer {shop.desk.agents[agent].token}",
             "Content-Type: application/json", f"Content-Length: {len(body)}", *more]  # fmt: skip
    lines += ["Connection: close"] if close else []
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@contextmanager
def connected(shop: Shop) -> Iterator[socket.socket]:
    host, port = shop.enforcer.base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        yield client


def answers(client: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """(status, body) of so many answers on one connection; fewer when it is closed before."""
    got: list[tuple[int, bytes]] = []
    buffer = b""
    while len(got) < count:
        head, found, rest = buffer.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        lengths = [int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:")]
        if found and len(rest) >= lengths[0]:
            got.append((int(head.split(b" ")[1]), rest[: lengths[0]]))
            buffer = rest[lengths[0] :]
            continue
        data = client.recv(65536)
        if not data:
            break
        buffer += data
    return got


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 100,  # a TLS client hello
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA\x00B: x\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1x\r\n\r\n",
        b"POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, identity\r\n\r\n",
    ],
)
def test_what_is_no_http_is_a_400_and_the_end(shop: Shop, sent: bytes) -> None:
    with connected(shop) as client:
        client.sendall(sent)
        data = b""
        while chunk := client.recv(65536):
            data += chunk
    assert data.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 ")), data
    assert b"content-type: application/problem+json" in data
    assert shop.decide().status == 200


def test_a_host_is_needed_also_by_the_old(shop: Shop) -> None:
    for sent in (b"GET /healthz HTTP/1.1\r\n\r\n", b"GET /healthz HTTP/1.0\r\n\r\n"):
        assert raw_request(shop.enforcer.base, sent).startswith(b"HTTP/1.1 400 ")
    assert raw_request(shop.enforcer.base, b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )


def test_a_target_that_names_another_host_gets_nothing_more_by_it(shop: Shop) -> None:
    answer = raw_request(shop.enforcer.base, b"GET http://evil.example/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400"))
    answer = raw_request(shop.enforcer.base, b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n")
    assert answer.split(b" ")[1] in (b"400", b"403", b"404")


def test_the_head_has_bounds(shop: Shop) -> None:
    many = [f"X-{number}: x" for number in range(101)]
    assert raw_request(shop.enforcer.base, request(shop, BODY, *many)).startswith(b"HTTP/1.1 431 ")
    assert raw_request(shop.enforcer.base, request(shop, BODY, *many[:90], close=True)).startswith(b"HTTP/1.1 200 ")
    for pieces in (1, 2, 40):
        sent = request(shop, BODY, "X-Large: " + "x" * 66_000)
        with connected(shop) as client:
            size = len(sent) // pieces + 1
            for at in range(0, len(sent), size):
                client.sendall(sent[at : at + size])
            assert answers(client, 1)[0][0] == 431
    assert raw_request(shop.enforcer.base, request(shop, BODY, "X-Large: " + "x" * 60_000)).startswith(b"HTTP/1.1 200 ")
    with connected(shop) as client:  # a header that never ends
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        try:
            for _ in range(40):
                client.sendall(b"x" * 65_536)
        except OSError:
            pass  # it was closed meanwhile
        data = b""
        with suppress(ConnectionResetError):
            data = client.recv(65536)
        assert data[:13] in (b"HTTP/1.1 431 ", b"")
    assert shop.decide().status == 200


def chunked(shop: Shop, *more: str, token: bool = True) -> bytes:
    lines = ["POST /v1/decide HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked", *more]
    lines += [f"Authorization: Bearer {shop.desk.agents['buyer'].token}"] if token else []
    return "\r\n".join(lines).encode() + b"\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(BODY), BODY)


def test_a_trailer_is_no_head(shop: Shop) -> None:
    """A proxy that decides by the head (whose token, which Host, no replay) does not look into what follows the body."""
    bearer = f"Authorization: Bearer {shop.desk.agents['buyer'].token}\r\n".encode()
    with connected(shop) as client:
        client.sendall(chunked(shop, "Host: localhost", token=False) + bearer + b"\r\n")
        assert answers(client, 1)[0][0] == 401
    with connected(shop) as client:
        client.sendall(chunked(shop) + b"Host: localhost\r\n\r\n")
        assert answers(client, 1)[0][0] == 400
    with connected(shop) as client:
        late = b"Banksman-Replay: r1\r\nHost: evil.example\r\n\r\n"
        client.sendall(chunked(shop, "Host: localhost") + late + request(shop))
        assert [status for status, _ in answers(client, 2)] == [200, 200]


@pytest.mark.parametrize("endless", [b"A: b\r\n" * 10_000, b"A" * 60_000, b"A: " + b"b" * 60_000])
def test_a_trailer_has_bounds(shop: Shop, endless: bytes) -> None:
    with connected(shop) as client:
        client.sendall(chunked(shop, "Host: localhost"))
        data = b""
        with suppress(OSError):  # it is closed meanwhile
            for _ in range(40):
                client.sendall(endless)
        with suppress(ConnectionResetError):
            data = client.recv(65536)
        assert data[:13] in (b"HTTP/1.1 431 ", b"")
        with suppress(ConnectionResetError):
            while client.recv(65536):
                pass  # a connection that stays open keeps this here until the client's own timeout
    assert shop.decide().status == 200


def test_many_small_chunks_are_no_trailer(shop: Shop) -> None:
    text = json.dumps(PUSH | {"args": {"text": "x" * 40_000}}).encode()
    head = chunked(shop, "Host: localhost").partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    with connected(shop) as client:
        client.sendall(head + b"".join(b"1\r\n%c\r\n" % byte for byte in text) + b"0\r\n\r\n")
        assert answers(client, 1)[0][0] == 200


def test_large_bodies_do_not_count_as_head(shop: Shop) -> None:
    """A body and the next request's head may come in the same piece."""
    large = json.dumps(PUSH | {"args": {"text": "x" * 200_000}}).encode()
    with connected(shop) as client:
        client.sendall(request(shop, large) + request(shop)[:40])
        assert answers(client, 1)[0][0] == 200
        client.sendall(request(shop)[40:])
        assert answers(client, 1)[0][0] == 200


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_request_in_pieces(shop: Shop, size: int) -> None:
    sent = request(shop)
    with connected(shop) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(sent), size):
            client.sendall(sent[at : at + size])
        assert answers(client, 1)[0][0] == 200


def test_pipelined_requests_are_answered_in_order(shop: Shop) -> None:
    """Also when one in the middle is refused before its body is read, and when it is too large."""
    bad = request(shop, b"{", agent="seller")
    unknown = request(shop).replace(b"Bearer ", b"Bearer x")
    with connected(shop) as client:
        client.sendall(
            request(shop) + bad + unknown + request(shop, BODY.replace(b"feature/a", b"main")) + request(shop)
        )
        got = answers(client, 5)
    assert [status for status, _ in got] == [200, 400, 401, 200, 200]
    assert json.loads(got[3][1])["decision"] == "approve"
    with connected(shop) as client:
        client.sendall(request(shop) * 300)
        assert {status for status, _ in answers(client, 300)} == {200}


def test_who_keeps_a_connection_is_answered_like_who_does_not(shop: Shop) -> None:
    """By then the head is known, and the usual question goes another way: nothing about its answer may tell."""
    bodies = [
        BODY,
        json.dumps(PUSH | {"service": "nowhere"}).encode(),
        json.dumps(PUSH | {"branch": "main"}).encode(),
        json.dumps(PUSH | {"args": {"password": "hunter22hunter22", "n": 1.5, "deep": [{"a": ["b"]}]}}).encode(),
        json.dumps(PUSH | {"colour": "red"}).encode(),
        json.dumps(PUSH | {"branch": None, "reason": '\u00e9\\ "'}).encode(),
        BODY.replace(b"{", b'{"session": "twice", ', 1),
        b"{",
        b"[]",
        b"",
    ]

    def told(status: int, raw: bytes) -> Any:
        answer = json.loads(raw)
        for name in ("id", "valid_until", "approval"):
            answer.pop(name, None)
        return status, answer

    expected = []
    for body in bodies:
        with connected(shop) as client:
            client.sendall(request(shop, body, close=True))
            expected.append(told(*answers(client, 1)[0]))
    assert [status for status, _ in expected] == [200] * 4 + [422, 200] + [400, 400, 422, 400]
    ids: list[str] = []
    with connected(shop) as client:
        for _ in range(4):
            for body, wanted in zip(bodies, expected, strict=True):
                client.sendall(request(shop, body))
                ((status, raw),) = answers(client, 1)
                assert told(status, raw) == wanted
                if status == 200:
                    ids.append(json.loads(raw)["id"])
    records = shop.tape.wait(Topic.DECISIONS, lambda one: one["id"] in ids, len(ids))
    assert sorted(record["id"] for record in records) == sorted(ids)
    assert "hunter22" not in str(records)
    named = {record["id"]: record for record in records}
    for place in range(5):  # each round left the same record
        rounds = [named[at] for at in ids[place::5]]
        assert len({json.dumps({k: v for k, v in one.items() if k in SAME}, sort_keys=True) for one in rounds}) == 1


SAME = ("agent", "args", "args_hash", "asked", "branch", "decision", "owner", "policy_version", "project", "reason",
        "redactions", "resource", "rule", "service", "session", "tier")  # fmt: skip


def test_a_connection_that_asks_to_be_upgraded_is_answered_as_it_is(shop: Shop) -> None:
    """As the HTTP clients of some languages do with every first request."""
    upgrade = (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    )
    with connected(shop) as client:
        for _ in range(3):
            client.sendall(request(shop, BODY, *upgrade))
            assert answers(client, 1)[0][0] == 200
        client.sendall(request(shop, BODY, *upgrade) + request(shop, BODY, *upgrade) + request(shop))
        assert [status for status, _ in answers(client, 3)] == [200, 200, 200]
        for byte in request(shop, BODY, *upgrade):
            client.sendall(bytes([byte]))
        assert answers(client, 1)[0][0] == 200
        client.sendall(request(shop, BODY, *upgrade, "Transfer-Encoding: chunked").replace(b"Content-Length", b"X"))
        assert answers(client, 1)[0][0] == 400
    socketed = request(shop, BODY, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                       "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")  # fmt: skip
    assert raw_request(shop.enforcer.base, socketed).startswith(b"HTTP/1.1 200 ")


def test_who_asks_before_it_sends_is_told_to_go_on(shop: Shop) -> None:
    sent = request(shop, BODY, "Expect: 100-continue")
    with connected(shop) as client:
        client.sendall(sent[: -len(BODY)])
        assert client.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(BODY)
        assert answers(client, 1)[0][0] == 200
    with connected(shop) as client:  # who may not, is not
        client.sendall(sent[: -len(BODY)].replace(b"Bearer ", b"Bearer x"))
        assert answers(client, 1)[0][0] == 401


def test_who_hangs_up_disturbs_nobody(shop: Shop) -> None:
    for cut in (10, 100, len(request(shop)) - 3, len(request(shop))):
        with connected(shop) as client:
            client.sendall(request(shop)[:cut])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    assert shop.decide().status == 200
    assert "Traceback" not in shop.enforcer.log.read_text()


# ── who is slow, with a clock that is not: the same listener in this process ──


async def test_who_dawdles_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Head or body: it has its time. Who has nothing to say has its own."""
    monkeypatch.setattr(http_connection, "READ_WITHIN_S", 0.3)
    monkeypatch.setattr(listener, "KEEP_ALIVE_S", 0.6)

    async def echo(asked: Any) -> PlainTextResponse:
        if asked.query_params.get("refuse"):
            raise Problem(403, "not you")
        return PlainTextResponse(await read_body(asked.scope, asked.receive, limit=1000))

    access = settings.Listener()
    opened = listener.open_socket("127.0.0.1", 0, access, setting="x")
    port = opened.getsockname()[1]
    stop = asyncio.Event()
    app = routed([Route("/", echo, methods=["POST"])])
    serving = asyncio.create_task(listener.serve(app, opened, host="127.0.0.1", listener=access, stop=stop))
    try:
        await eventually(lambda: opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n"
        for sent, status in (
            (b"", b""),
            (b"POST / HTTP/1.1\r\nHost: lo", b"HTTP/1.1 408 Request Timeout"),
            (head, b"HTTP/1.1 408 Request Timeout"),
            (head + b"12345", b"HTTP/1.1 408 Request Timeout"),
            (head + b"1234567890", b"HTTP/1.1 200 OK"),
            (head.replace(b"POST / ", b"POST /?refuse=1 ") + b"123", b"HTTP/1.1 408 Request Timeout"),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            async with asyncio.timeout(10):
                data = await reader.read()  # until it is closed
            assert data.partition(b"\r\n")[0] == status
            writer.close()
            await writer.wait_closed()
        # Who sends a byte now and then is let go all the same.
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def trickle() -> None:
            for byte in head * 9:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.03)

        trickling = asyncio.create_task(trickle())
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        trickling.cancel()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    finally:
        stop.set()
        await serving


async def test_connections_leave_the_process_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who opens connections and says nothing must not take the descriptors that Kafka and policies need."""
    assert http_connection.most_connections() < resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    monkeypatch.setattr(http_connection, "most_connections", lambda: 3)

    async def here(_asked: Any) -> PlainTextResponse:
        return PlainTextResponse("here")

    access = settings.Listener()
    opened = listener.open_socket("127.0.0.1", 0, access, setting="x")
    port, stop = opened.getsockname()[1], asyncio.Event()
    app = routed([Route("/", here)])
    serving = asyncio.create_task(listener.serve(app, opened, host="127.0.0.1", listener=access, stop=stop))
    asked = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    everybody: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    try:
        await eventually(lambda: opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        everybody += [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        async with asyncio.timeout(10):
            everybody.append(await asyncio.open_connection("127.0.0.1", port))
            reader, writer = everybody[-1]
            with suppress(ConnectionError):
                writer.write(asked)
                assert await reader.read() == b""
            reader, writer = everybody[0]  # who is in is answered
            writer.write(asked)
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            everybody.append(await asyncio.open_connection("127.0.0.1", port))  # and its place is free again
            reader, writer = everybody[-1]
            writer.write(asked)
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    finally:
        for _, writer in everybody:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        stop.set()
        await serving
