"""What the tests of the embedded ClickHouse share: requests as any HTTP client makes them, ClickHouse's own client, and
servers that a test may kill.
"""

from __future__ import annotations

import http.client
import json
import secrets
import subprocess
import sys
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import clickhouse_connect
import pytest
from tests.servers import ClickHouseServer, child_environment, wait_for_http

from banksman.local import children, kafka
from banksman.local.chdb.users import write_users

Client = Any  # clickhouse_connect publishes no types of its own


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def code(self) -> int | None:
        """ClickHouse's error code; None: no error."""
        code = self.headers["X-ClickHouse-Exception-Code"]
        return None if code is None else int(code)

    @property
    def summary(self) -> dict[str, int]:
        return {name: int(value) for name, value in json.loads(self.headers["X-ClickHouse-Summary"]).items()}


@dataclass
class Caller:
    """One user, who asks a server over HTTP; every call is a connection of its own."""

    port: int
    user: str
    password: str = field(repr=False)
    database: str | None = None

    def __call__(
        self,
        sql: str | bytes,
        *,
        method: str = "POST",
        body: Any = None,
        headers: dict[str, str] | None = None,
        chunked: bool = False,
        **parameters: object,
    ) -> Answer:
        """`sql` as the body; or, when there is a body, as the parameter `query`. A GET sends it as the parameter."""
        given = {name: str(value) for name, value in parameters.items()}
        if self.database:
            given.setdefault("database", self.database)
        if body is not None or method in ("GET", "HEAD"):
            given["query"] = sql.decode() if isinstance(sql, bytes) else sql
        else:
            body = sql.encode() if isinstance(sql, str) else sql
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(
                method,
                f"/?{urlencode(given, quote_via=quote)}",
                body,
                {"Authorization": self.authorization, **(headers or {})},
                encode_chunked=chunked,
            )
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    @property
    def authorization(self) -> str:
        return "Basic " + b64encode(f"{self.user}:{self.password}".encode()).decode()

    def client(self, **more: Any) -> Client:
        """ClickHouse's own Python client for this user."""
        return clickhouse_connect.get_client(
            host="127.0.0.1",
            port=self.port,
            username=self.user,
            password=self.password,
            **{"database": self.database or "default", **more},
        )


@pytest.fixture
def admin(clickhouse_server: ClickHouseServer) -> Iterator[Caller]:
    """Who may do everything, in a database of the test's own."""
    caller = Caller(clickhouse_server.port, "admin", clickhouse_server.passwords["admin"])
    database = f"c{uuid.uuid4().hex[:8]}"
    made = caller(f"CREATE DATABASE {database}")
    assert made.status == 200, made.text
    caller.database = database
    yield caller
    caller.database = None
    caller(f"DROP DATABASE {database}")


@pytest.fixture
def analyst(clickhouse_server: ClickHouseServer, admin: Caller) -> Caller:
    """Who only reads, in the same database."""
    return Caller(clickhouse_server.port, "analyst", clickhouse_server.passwords["analyst"], admin.database)


@pytest.fixture
def client(admin: Caller) -> Iterator[Client]:
    made = admin.client()
    yield made
    made.close()


@dataclass
class Own:
    """A server of one test."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    admin: Caller
    analyst: Caller

    @property
    def log(self) -> str:
        return (self.folder / "chdb.log").read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(20)


Start = Callable[..., Own]


def argv(folder: Path, port: int, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "banksman.local.chdb", "--path", str(folder / "data"), "--port", str(port),
        "--users", str(folder / "users.json"), *more,
    ]  # fmt: skip


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server in the test's folder, with more flags; again after it has ended, with the same users."""
    running: list[subprocess.Popen[bytes]] = []
    passwords = {"admin": secrets.token_urlsafe(16), "analyst": secrets.token_urlsafe(16)}
    write_users(
        tmp_path / "users.json", {"admin": (passwords["admin"], False), "analyst": (passwords["analyst"], True)}
    )

    def begin(*more: str) -> Own:
        port, log = kafka.free_port(), tmp_path / "chdb.log"
        process = children.spawn(argv(tmp_path, port, *more), log=log, env=child_environment())
        running.append(process)
        wait_for_http(f"http://127.0.0.1:{port}/ping", process, log)
        callers = {name: Caller(port, name, password) for name, password in passwords.items()}
        return Own(tmp_path, port, process, callers["admin"], callers["analyst"])

    yield begin
    for process in running:
        process.kill()
        process.wait()
