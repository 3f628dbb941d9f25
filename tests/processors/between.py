"""Something between an archiver and ClickHouse that spoils inserts: cuts them, swallows answers, answers in its place."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


@dataclass
class Inserting:
    """One insert on its way: what a fault does with it."""

    handler: BaseHTTPRequestHandler
    port: int
    body: bytes

    def pass_on(self, body: bytes | None = None, *, length: int | None = None) -> http.client.HTTPConnection:
        """Send the request to ClickHouse, with other bytes or a length that is a lie; the answer is not read yet."""
        body = self.body if body is None else body
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.putrequest(self.handler.command, self.handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.handler.headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body) if length is None else length))
        connection.endheaders(body)
        return connection

    def answered(self, connection: http.client.HTTPConnection) -> None:
        """Hand ClickHouse's answer back."""
        answer = connection.getresponse()
        data = answer.read()
        kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in ("transfer-encoding", "content-length")]
        self.answer(answer.status, data, kept)
        connection.close()

    def answer(self, status: int, data: bytes, headers: list[tuple[str, str]]) -> None:
        self.handler.send_response_only(status)
        for name, value in [*headers, ("Content-Length", str(len(data)))]:
            self.handler.send_header(name, value)
        self.handler.end_headers()
        self.handler.wfile.write(data)

    def hang_up(self) -> None:
        """Cut the archiver's connection."""
        self.handler.close_connection = True
        with contextlib.suppress(OSError):
            self.handler.connection.shutdown(socket.SHUT_RDWR)


Fault = Callable[[Inserting], None]


def cut_in_the_middle(insert: Inserting) -> None:
    """Half of it arrives, then both sides are cut."""
    insert.pass_on(insert.body[: len(insert.body) // 2], length=len(insert.body)).close()
    insert.hang_up()


def torn(insert: Inserting) -> None:
    """Half of it arrives as if it were all, and the archiver is told what ClickHouse says to that."""
    insert.answered(insert.pass_on(insert.body[: len(insert.body) * 3 // 4]))


def answer_lost(insert: Inserting) -> None:
    """It is stored, and the archiver is never told."""
    connection = insert.pass_on()
    assert connection.getresponse().status == 200
    connection.close()
    insert.hang_up()


def refuses(code: int, name: str, status: int = 500) -> Fault:
    """ClickHouse's own words for an error."""
    said = f"Code: {code}. DB::Exception: not now. ({name}) (version 25.8.2.1 (official build))\n".encode()
    return lambda insert: insert.answer(status, said, [("X-ClickHouse-Exception-Code", str(code))])


def says(status: int, data: bytes) -> Fault:
    """The words of something that is not ClickHouse."""
    return lambda insert: insert.answer(status, data, [("Content-Type", "text/html")])


class Between:
    """Listens on a port of its own and passes on to ClickHouse at `port`; `spoil` says what becomes of the next inserts."""

    def __init__(self, port: int) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.spoilt = 0
        between = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self._body()
                request = Inserting(self, port, body)
                fault = between._next() if b"INSERT INTO" in body[:4096] else None
                with contextlib.suppress(OSError):  # either side is gone, perhaps on purpose
                    if fault is not None:
                        fault(request)
                    else:
                        request.answered(request.pass_on())
                    return
                self.close_connection = True

            do_GET = do_POST  # noqa: N815 - http.server's names

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                got = b""
                while size := int(self.rfile.readline(), 16):
                    got += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return got

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def spoil(self, fault: Fault, times: int) -> None:
        """The next `times` inserts."""
        with self._lock:
            self._faults += [fault] * times

    @property
    def left(self) -> int:
        """How many inserts are still to be spoilt."""
        return len(self._faults)

    def _next(self) -> Fault | None:
        with self._lock:
            self.spoilt += bool(self._faults)
            return self._faults.pop(0) if self._faults else None

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
