"""What an emitter meets at the other end, scripted: answers that a real enforcer gives seldom, late, or never twice alike.

Real enforcers are in test_real.py; this one is for outages, odd answers and counting what arrives, in order.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROBLEM = "application/problem+json"


@dataclass
class Request:
    """One that came in. `lines`: the events of a batch as they are."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def lines(self) -> list[bytes]:
        return self.body.split(b"\n")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """What is answered. `delay` seconds later; `status` 0: the connection is closed without a word."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


def problem(status: int, detail: str, field: str = "", **headers: str) -> Reply:
    told = {"type": "about:blank", "title": "x", "status": status, "detail": detail} | (
        {"field": field} if field else {}
    )
    return Reply(status, told, {"Content-Type": PROBLEM, **{k.replace("_", "-"): v for k, v in headers.items()}})


def decision(decision: object = "allow", *, valid_s: float = 5.0, **more: Any) -> Reply:
    until = datetime.now(UTC) + timedelta(seconds=valid_s)
    return Reply(
        body={
            "id": "01a11111-1111-7111-8111-111111111111", "decision": decision, "tier": 1, "rule": "allow[0]",
            "policy": "shop", "policy_version": "shop@v3+sha256:abc", "reason": "because",
            "valid_until": until.isoformat().replace("+00:00", "Z"), **more,
        }
    )  # fmt: skip


class FakeEnforcer:
    """Listens on one port, also after `stop` and `start`. `events` holds what was answered with 200, in order."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.taken: list[bytes] = []
        self.on_events: Callable[[Request], Reply] = lambda _: Reply()
        self.on_decide: Callable[[Request], Reply] = lambda _: decision()
        self.on_approval: Callable[[Request], Reply] = lambda _: problem(404, "there is no such approval")
        self._changed = threading.Condition()
        self._server: ThreadingHTTPServer | None = None
        self._sockets: set[socket.socket] = set()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in list(self.taken)]

    def start(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                outer._sockets.add(self.connection)

            def do_POST(self) -> None:
                outer._answer(self)

            do_GET = do_POST  # noqa: N815 - the library's name

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that went away

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Away: nobody listens, open connections are cut."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        self.cut()

    def cut(self) -> None:
        """Cut every open connection, and go on listening."""
        for one in list(self._sockets):
            self._sockets.discard(one)
            with contextlib.suppress(OSError):  # it was closed already
                one.shutdown(socket.SHUT_RDWR)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        request = Request(handler.path, {k.lower(): v for k, v in handler.headers.items()}, body)
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        if request.path.endswith("/decide"):
            reply = self.on_decide(request)
        elif "/approvals/" in request.path:
            reply = self.on_approval(request)
        else:
            reply = self.on_events(request)
        if reply.delay:
            time.sleep(reply.delay)  # the delay is what is tested
        if request.path.endswith("/events") and reply.status == 200:
            with self._changed:
                self.taken += request.lines
                self._changed.notify_all()
        if reply.status == 0:
            handler.close_connection = True
            return
        raw = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        handler.send_response(reply.status)
        for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)

    def until(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        """Return when a condition about what came in is true; fails when it is not in time."""
        with self._changed:
            assert self._changed.wait_for(condition, seconds), f"not in time: {len(self.taken)} taken"
