"""The demo's Slack: a small part of its Web API on a port of this machine. What is posted is kept in a file, as Slack would
keep it, and printed as people would read it.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BOT = {"ok": True, "user": "banksman", "team": "demo", "bot_id": "B1", "user_id": "U1"}
TOKEN = "xoxb-demo"  # noqa: S105 - of a Slack that is none


@dataclass
class Message:
    """One message. `thread`: the message that it answers, by its ts."""

    channel: str
    ts: str
    text: str
    thread: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


class Slack:
    """Listens until `close`. `told(what, message)`: something was posted (`post`), answered (`reply`) or changed (`edit`)."""

    def __init__(self, file: Path, told: Callable[[str, Message], None]) -> None:
        self._file, self._told, self._lock = file, told, threading.Lock()
        self.messages = [Message(**one) for one in json.loads(file.read_text())] if file.exists() else []
        slack = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

            def do_GET(self) -> None:
                self._answer(self.path.partition("?")[2].encode())

            def _answer(self, body: bytes) -> None:
                method = self.path.partition("?")[0].rpartition("/")[2]
                given = json.loads(body) if body.startswith(b"{") else _form(body)
                answer = json.dumps(slack.answer(method, given)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="slack", daemon=True).start()

    @property
    def url(self) -> str:
        """For BANKSMAN_SLACK_URL."""
        return f"http://127.0.0.1:{self._server.server_port}/api/"

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, given: dict[str, Any]) -> dict[str, Any]:
        """One call."""
        with self._lock:
            if method == "auth.test":
                return BOT
            if method == "chat.postMessage":
                return self._post(given)
            if method == "chat.update":
                return self._update(given)
            if method in ("conversations.history", "conversations.replies"):
                return {"ok": True, "messages": [_shown(one) for one in self._found(method, given)], "has_more": False}
            return {"ok": False, "error": "unknown_method"}

    def _post(self, given: dict[str, Any]) -> dict[str, Any]:
        metadata = given.get("metadata") or {}
        metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
        message = Message(
            given["channel"], f"{time.time():.6f}", given.get("text", ""), given.get("thread_ts", ""), metadata
        )
        self.messages.append(message)
        self._keep("reply" if message.thread else "post", message)
        return {"ok": True, "channel": message.channel, "ts": message.ts}

    def _update(self, given: dict[str, Any]) -> dict[str, Any]:
        for message in self.messages:
            if (message.channel, message.ts) == (given["channel"], given["ts"]):
                message.text = given.get("text", "")
                self._keep("edit", message)
                return {"ok": True, "channel": message.channel, "ts": message.ts}
        return {"ok": False, "error": "message_not_found"}

    def _found(self, method: str, given: dict[str, Any]) -> list[Message]:
        if method == "conversations.replies":
            return [one for one in self.messages if given["ts"] in (one.ts, one.thread)]
        oldest = float(given.get("oldest") or 0)
        return [one for one in self.messages if one.channel == given["channel"] and float(one.ts) >= oldest]

    def _keep(self, what: str, message: Message) -> None:
        self._file.write_text(json.dumps([asdict(one) for one in self.messages]))
        self._told(what, message)


def _form(body: bytes) -> dict[str, Any]:
    return {name: values[-1] for name, values in parse_qs(body.decode()).items()}


def _shown(message: Message) -> dict[str, Any]:
    return {
        "type": "message", "bot_id": "B1", "ts": message.ts, "text": message.text, "metadata": message.metadata,
        "thread_ts": message.thread or message.ts,
    }  # fmt: skip
