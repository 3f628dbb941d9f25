"""A Slack over real sockets: what it accepted is what a human sees, and what it does wrong is chosen by the test."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

TOKEN = "xoxb-test"
BOT = "B0BANKSMAN"
ON_ITS_WAY_S = 0.1
"""What comes so soon behind a 429 was sent before it was known."""


@dataclass
class Message:
    channel: str
    ts: str
    body: dict[str, Any]
    bot: str
    edits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def thread(self) -> str:
        return str(self.body.get("thread_ts", ""))

    @property
    def text(self) -> str:
        """As it reads now."""
        return str((self.edits or [self.body])[-1].get("text", ""))

    @property
    def words(self) -> str:
        """All that it shows now."""
        return json.dumps((self.edits or [self.body])[-1].get("blocks", []), ensure_ascii=False)

    @property
    def payload(self) -> dict[str, Any]:
        return dict(self.body.get("metadata", {}).get("event_payload", {}))


@dataclass
class Call:
    """One request: what a fault does with it."""

    handler: Any
    slack: FakeSlack
    method: str
    body: dict[str, Any]

    def accept(self) -> dict[str, Any]:
        """Do what is asked, as Slack would; -> the answer."""
        return self.slack._answer(self.method, self.body)

    def answer(self, status: int, body: dict[str, Any] | str, headers: dict[str, str] | None = None) -> None:
        data = (json.dumps(body) if isinstance(body, dict) else body).encode()
        self.handler.send_response_only(status)
        kind = "application/json" if isinstance(body, dict) else "text/html"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()
        self.handler.wfile.write(data)

    def hang_up(self) -> None:
        self.handler.close_connection = True
        with contextlib.suppress(OSError):
            self.handler.connection.shutdown(socket.SHUT_RDWR)

    def wait_for_the_caller(self) -> None:
        """Answer nothing until the caller has gone, or the test is over."""
        self.handler.connection.settimeout(0.05)
        while not self.slack.over.is_set():
            try:
                if not self.handler.connection.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        self.hang_up()


Fault = Callable[[Call], None]


def limited(seconds: float) -> Fault:
    def fault(call: Call) -> None:
        call.slack._leave_alone(call, seconds)
        call.answer(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": f"{seconds:g}"})

    return fault


def fails(status: int = 500, body: dict[str, Any] | str = "upstream error", *, accepted: bool = False) -> Fault:
    def fault(call: Call) -> None:
        if accepted:
            call.accept()
        call.answer(status, body)

    return fault


def refuses(error: str) -> Fault:
    return lambda call: call.answer(200, {"ok": False, "error": error})


def hangs(*, accepted: bool) -> Fault:
    def fault(call: Call) -> None:
        if accepted:
            call.accept()
        call.wait_for_the_caller()

    return fault


def drops(*, accepted: bool) -> Fault:
    def fault(call: Call) -> None:
        if accepted:
            call.accept()
        call.hang_up()

    return fault


class FakeSlack:
    """`channels`: names that exist; None: any. `apart`: least seconds between two posts to one channel, else 429."""

    def __init__(self, channels: list[str] | None = None, *, apart: float = 0.0, page: int = 100) -> None:
        self.messages: list[Message] = []
        self.seen: list[str] = []
        """What a human would see happen, in order: `#channel post TEXT`, `reply`, `edit`."""
        self.calls: list[tuple[float, str, dict[str, Any]]] = []
        self.disobeyed: list[str] = []
        """Calls that came before a Retry-After was over."""
        self.of_a_person = False
        """Whether the token is: then `auth.test` names no bot."""
        self.over = threading.Event()
        self._channels = {name: f"C{number:04d}" for number, name in enumerate(channels or [])}
        self._any, self._apart, self._page = channels is None, apart, page
        self._faults: list[tuple[str, Callable[[dict[str, Any]], bool], Fault]] = []
        self._last_post: dict[str, float] = {}
        self._left_alone: dict[str, tuple[float, float]] = {}
        self._ts = itertools.count(1)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    # ── what a test does ──

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/api/"

    def spoil(
        self, method: str, *faults: Fault, where: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> None:  # fmt: skip
        """The next calls of a method (whose body is like that), one fault each."""
        with self._lock:
            self._faults += [(method, where, fault) for fault in faults]

    @property
    def left(self) -> int:
        return len(self._faults)

    def parents(self, channel: str | None = None) -> list[Message]:
        """The messages that are no replies, in order."""
        with self._lock:
            return [m for m in self.messages if not m.thread and channel in (None, self.name(m.channel))]

    def replies(self, to: Message) -> list[Message]:
        with self._lock:
            return [m for m in self.messages if m.thread == to.ts and m.channel == to.channel]

    def name(self, channel: str) -> str:
        return next(name for name, there in self._channels.items() if there == channel)

    def put(self, channel: str, body: dict[str, Any], bot: str) -> None:
        """A message of somebody else."""
        with self._lock:
            self.messages.append(Message(self._id(channel) or "", self._stamp(), body, bot))

    def __enter__(self) -> Self:
        self.back()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.away()

    def away(self) -> None:
        """Nobody listens any more."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            for connection in list(server.open):  # type: ignore[attr-defined]
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def back(self) -> None:
        self._server = _server(self, self._port)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    # ── what Slack does ──

    def _serve(self, call: Call) -> None:
        with self._lock:
            self.calls.append((time.monotonic(), call.method, call.body))
            lane = self._lane(call)
            told, until = self._left_alone.get(lane, (0.0, 0.0))
            if told + ON_ITS_WAY_S < time.monotonic() < until - 0.01:
                self.disobeyed.append(lane)
            fault = next((f for f in self._faults if f[0] == call.method and f[1](call.body)), None)
            if fault is not None:
                self._faults.remove(fault)
        if fault is not None:
            fault[2](call)
        elif call.method == "chat.postMessage" and self._too_soon(call):
            limited(1)(call)
        else:
            call.answer(200, call.accept())

    def _lane(self, call: Call) -> str:
        posts = call.method == "chat.postMessage"
        return f"{call.method} {self._id(call.body.get('channel', ''))}" if posts else call.method

    def _leave_alone(self, call: Call, seconds: float) -> None:
        with self._lock:
            now = time.monotonic()
            self._left_alone[self._lane(call)] = now, now + seconds

    def _too_soon(self, call: Call) -> bool:
        last = self._last_post.get(self._id(call.body.get("channel", "")) or "", -1e9)
        return time.monotonic() - last < self._apart

    def _id(self, channel: str) -> str | None:
        if channel in self._channels.values():
            return channel
        name = channel if channel.startswith("#") else f"#{channel}"
        if self._any and name not in self._channels:
            self._channels[name] = f"C{len(self._channels):04d}"
        return self._channels.get(name)

    def _stamp(self) -> str:
        return f"{int(time.time())}.{next(self._ts):06d}"

    def _answer(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        with self._changed:
            made: dict[str, Any] = getattr(self, "_" + method.replace(".", "_"), _unknown)(body)
            self._changed.notify_all()
            return made

    def _auth_test(self, _body: dict[str, Any]) -> dict[str, Any]:
        whose = {"user_id": f"U-{BOT}"} | ({} if self.of_a_person else {"bot_id": BOT})
        return {"ok": True, "user": "banksman", "team": "acme", **whose}

    def _chat_postMessage(self, body: dict[str, Any]) -> dict[str, Any]:  # noqa: N802 - Slack's name
        channel = self._id(body["channel"])
        if channel is None:
            return {"ok": False, "error": "channel_not_found"}
        if len(body.get("blocks") or []) > 50:
            return {"ok": False, "error": "invalid_blocks"}
        made = Message(channel, self._stamp(), body, BOT)
        self.messages.append(made)
        self._last_post[channel] = time.monotonic()
        self.seen.append(f"{self.name(channel)} {'reply' if made.thread else 'post'} {made.text}")
        return {"ok": True, "channel": channel, "ts": made.ts}

    def _chat_update(self, body: dict[str, Any]) -> dict[str, Any]:
        found = next((m for m in self.messages if (m.channel, m.ts) == (body["channel"], body["ts"])), None)
        if found is None:
            return {"ok": False, "error": "message_not_found"}
        found.edits.append(body)
        self.seen.append(f"{self.name(found.channel)} edit {found.text}")
        return {"ok": True, "channel": found.channel, "ts": found.ts}

    def _conversations_list(self, _body: dict[str, Any]) -> dict[str, Any]:
        return {"ok": True, "channels": [{"id": id_, "name": name[1:]} for name, id_ in self._channels.items()]}

    def _conversations_history(self, body: dict[str, Any]) -> dict[str, Any]:
        oldest = float(body.get("oldest") or 0)
        found = [m for m in self.messages if m.channel == body["channel"] and float(m.ts) > oldest]
        return self._listed(body, [m for m in reversed(found) if not m.thread or m.body.get("reply_broadcast")])

    def _conversations_replies(self, body: dict[str, Any]) -> dict[str, Any]:
        there = [m for m in self.messages if m.channel == body["channel"] and body["ts"] in (m.ts, m.thread)]
        return self._listed(body, there)

    def _listed(self, body: dict[str, Any], several: list[Message]) -> dict[str, Any]:
        start, size = int(body.get("cursor") or 0), min(self._page, int(body.get("limit") or 100))
        shown = [
            {"ts": m.ts, "text": m.text, "bot_id": m.bot, "user": f"U-{m.bot}"}
            | ({"metadata": m.body["metadata"]} if body.get("include_all_metadata") and "metadata" in m.body else {})
            for m in several[start : start + size]
        ]
        following = str(start + size) if start + size < len(several) else ""
        return {"ok": True, "messages": shown, "response_metadata": {"next_cursor": following}}


def _unknown(_body: dict[str, Any]) -> dict[str, Any]:
    return {"ok": False, "error": "unknown_method"}


def _server(slack: FakeSlack, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            made.open.add(self.connection)  # type: ignore[attr-defined]

        def finish(self) -> None:
            made.open.discard(self.connection)  # type: ignore[attr-defined]
            with contextlib.suppress(OSError):
                super().finish()

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            path, _, query = self.path.partition("?")
            body = dict(urllib.parse.parse_qsl(query))
            json_ = "json" in (self.headers.get("Content-Type") or "")
            body |= json.loads(raw) if json_ else dict(urllib.parse.parse_qsl(raw))
            call = Call(self, slack, path.removeprefix("/api/"), body)
            with contextlib.suppress(OSError):  # the caller is gone, perhaps on purpose
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    call.answer(200, {"ok": False, "error": "invalid_auth"})
                else:
                    slack._serve(call)
                return
            self.close_connection = True

        do_GET = do_POST  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A caller that was killed: quiet."""

    made = Server(("127.0.0.1", port), Handler)
    made.daemon_threads = True
    made.open = set()  # type: ignore[attr-defined]
    return made
