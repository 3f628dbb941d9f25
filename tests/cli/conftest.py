"""Commands as a user runs them, and a server that answers what a test tells it to and remembers what it was asked."""

from __future__ import annotations

import http.server
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.servers import child_environment

from banksman.cli import main

BANKSMAN = Path(sys.executable).with_name("banksman")
TOKEN = "bmo_0123_abcdef"


@dataclass
class Reply:
    """An answer in full; `body`: bytes as they are, anything else as JSON."""

    body: Any = None
    status: int = 200
    kind: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def raw(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def problem(status: int, detail: str, **more: Any) -> Reply:
    headers = {"Retry-After": str(more.pop("retry_after"))} if "retry_after" in more else {}
    told = {"type": "about:blank", "title": http.HTTPStatus(status).phrase, "status": status, "detail": detail, **more}
    return Reply(told, status, "application/problem+json", headers)


@dataclass
class Asked:
    """A request that came in."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: Any


Handler = http.server.BaseHTTPRequestHandler
Scripted = Reply | Callable[[Handler], Reply | None]


class Scribe:
    """The server. `on["GET /v1/status"] = Reply(…)`, a list of them (the last one stays), or a function of the handler."""

    def __init__(self) -> None:
        self.on: dict[str, Scripted | list[Scripted]] = {}
        self.asked: list[Asked] = []
        scribe = self

        class Answering(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                scribe._answer(self)

            do_POST = do_GET  # noqa: N815 - the library's name

            def log_message(self, *_: Any) -> None:
                """Tests read `asked`."""

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                if not isinstance(sys.exception(), ConnectionError):  # a command that ended before it read everything
                    super().handle_error(request, client_address)

        self.server = Server(("127.0.0.1", 0), Answering)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def _answer(self, handler: Handler) -> None:
        path, _, query = handler.path.partition("?")
        raw = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.asked.append(Asked(handler.command, path, query, headers, json.loads(raw) if raw else None))
        scripted = self.on.get(f"{handler.command} {path}", problem(404, "there is nothing here"))
        if isinstance(scripted, list):
            scripted = scripted.pop(0) if len(scripted) > 1 else scripted[0]
        reply = scripted if isinstance(scripted, Reply) else scripted(handler)
        if reply is None:  # the script did it all by itself
            handler.close_connection = True
            return
        handler.send_response(reply.status)
        for name, value in {"Content-Type": reply.kind, "Content-Length": str(len(reply.raw)), **reply.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(reply.raw)

    def paths(self) -> list[str]:
        return [f"{one.method} {one.path}" for one in self.asked]

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


@pytest.fixture
def scribe() -> Iterator[Scribe]:
    made = Scribe()
    yield made
    made.close()


@dataclass
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


@dataclass
class Shell:
    """Somewhere to type commands: a folder and an environment of its own.

    Called, it runs the command within this process, which takes milliseconds; `process` and `start` make a real one.
    """

    folder: Path
    environment: dict[str, str]
    capsys: pytest.CaptureFixture[str] | None = None

    def __call__(self, *words: str, given: str = "", **env: str) -> Ran:
        assert self.capsys is not None
        with pytest.MonkeyPatch.context() as here:
            here.chdir(self.folder)
            here.setattr("sys.stdin", io.StringIO(given))
            for name, value in {**self.environment, **env}.items():
                here.setenv(name, value)
            self.capsys.readouterr()
            try:
                code = main.main(words)
            except SystemExit as end:  # how argparse ends
                code = int(str(end.code or 0))
        return Ran(code, *self.capsys.readouterr())

    def process(self, *words: str, given: str = "", **env: str) -> Ran:
        with self.start(*words, env=env) as process:
            try:
                out, err = process.communicate(given, timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert "Traceback" not in err, err
        return Ran(process.returncode, out, err)

    def start(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        environment = child_environment() | self.environment | more.pop("env", {})
        return subprocess.Popen(
            [BANKSMAN, *words], cwd=self.folder, env=environment, text=True, encoding="utf-8",
            stdin=more.pop("stdin", subprocess.PIPE), stdout=more.pop("stdout", subprocess.PIPE), stderr=subprocess.PIPE,
            **more,
        )  # fmt: skip

    def on_terminal(self, *words: str, columns: int = 80, **env: str) -> Ran:
        """The same with stdout on a terminal of so many columns."""
        leader, follower = os.openpty()
        size = {"COLUMNS": str(columns), "LINES": "50", "TERM": "xterm"}
        try:
            process = self.start(*words, env=size | env, stdout=follower)
        finally:
            os.close(follower)
        written = b""
        with process, os.fdopen(leader, "rb", buffering=0) as terminal:
            while True:
                try:
                    part = terminal.read(65536)
                except OSError:  # how a terminal says that nobody has it open any more
                    break
                if not part:
                    break
                written += part
            _, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return Ran(process.returncode, written.decode().replace("\r\n", "\n"), err)


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """Without a token, and with nobody at the usual addresses."""
    nobody = f"http://127.0.0.1:{free_port()}"
    return Shell(tmp_path, {"BANKSMAN_URL": nobody, "BANKSMAN_CONSOLE_URL": nobody}, capsys)


@pytest.fixture
def operator(shell: Shell, scribe: Scribe) -> Shell:
    """A shell whose enforcer and console are the scribe."""
    shell.environment |= {
        "BANKSMAN_URL": scribe.url, "BANKSMAN_CONSOLE_URL": scribe.url, "BANKSMAN_OPERATOR_TOKEN": TOKEN,
    }  # fmt: skip
    return shell


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
