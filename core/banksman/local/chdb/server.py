"""The HTTP side: ClickHouse's interface on GET and POST /, /ping and /replicas_status.

Threads, because the engine's calls block; the standard library's server, because it gives the request's body as a stream.
"""

from __future__ import annotations

import base64
import email.parser
import email.policy
import json
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

from banksman.local.chdb import statements
from banksman.local.chdb.bodies import Body, decoded
from banksman.local.chdb.faults import Fault
from banksman.local.chdb.settings import RESERVED, apply_settings
from banksman.local.chdb.users import User, authenticate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from banksman.local.chdb.engine import Engine, Handle

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]", ""})
TEXT = "text/plain; charset=UTF-8"
CONTENT_TYPES = {
    **dict.fromkeys(["json", "jsoncompact"], "application/json; charset=UTF-8"),
    "jsoneachrow": "application/x-ndjson; charset=UTF-8",
    **dict.fromkeys(["csv", "csvwithnames"], "text/csv; charset=UTF-8"),
    **dict.fromkeys(["tabseparated", "tsv"], "text/tab-separated-values; charset=UTF-8"),
    **dict.fromkeys(["native", "rowbinary"], "application/octet-stream"),
}
STREAMED = frozenset(
    [
        "native",
        "tabseparated",
        "tsv",
        "csv",
        "rowbinary",
        "jsoneachrow",
        "tabseparatedraw",
        "tsvraw",
        "jsoncompacteachrow",
    ]
)
"""Formats whose pieces, one after the other, are one valid document; the rest is built whole."""
FIRST_PIECE = 1 << 16


class Server(ThreadingHTTPServer):
    """Serves one engine. `hosts`: names that a Host header may carry besides loopback's."""

    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True

    def __init__(
        self, address: tuple[str, int], engine: Engine, users: dict[str, User], *, max_body: int, hosts: frozenset[str]
    ) -> None:
        self.engine, self.users, self.max_body, self.hosts = engine, users, max_body, hosts | LOOPBACK
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle is no error of ours; everything else was answered already."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "ClickHouse"
    sys_version = ""
    wbufsize = 1 << 16  # head and body in one write: Nagle and delayed acknowledgements cost 40 ms otherwise
    disable_nagle_algorithm = True
    timeout = 120
    server: Server
    body: Body
    _common: ClassVar[list[tuple[str, str]]] = []

    def log_message(self, *_: Any) -> None:
        """Queries may hold what must not be in a log."""

    def do_GET(self) -> None:
        self._answer(changes=False)

    def do_HEAD(self) -> None:
        self._answer(changes=False)

    def do_POST(self) -> None:
        self._answer(changes=True)

    def do_PUT(self) -> None:
        self._answer(changes=True)

    def _answer(self, *, changes: bool) -> None:
        self.body = Body(self.rfile, self.headers, self.server.max_body)
        url = urlsplit(self.path)
        query_id = ""
        try:
            self._check_origin()
            parameters = dict(parse_qsl(url.query, keep_blank_values=True, errors="surrogateescape"))
            if url.path in ("/ping", "/replicas_status") or (url.path == "/" and not parameters and not changes):
                self._reply(200, b"Ok.\n", [])
                return
            if url.path != "/":
                raise Fault(1002, f"There is no handle {url.path}. (UNKNOWN_EXCEPTION)", status=404)
            query_id = parameters.get("query_id") or str(uuid.uuid4())
            _Request(self, parameters, query_id, changes=changes).run()
        except Fault as fault:
            self._fail(fault, query_id)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True
        except ValueError as error:  # a header or a body that is not what it says it is
            self._fail(Fault(36, f"{type(error).__name__}: {error}. (BAD_ARGUMENTS)"), query_id)

    def _check_origin(self) -> None:
        """DNS rebinding and other people's web pages: only our own names, and no request that a page of another site made."""
        host = self.headers.get("Host", "").rsplit(":", 1)[0] if "Host" in self.headers else ""
        if host.lower() not in self.server.hosts:
            raise Fault(516, f"Host {host!r} is not served here. (AUTHENTICATION_FAILED)", status=403)
        origin = self.headers.get("Origin")
        if origin is not None and (urlsplit(origin).hostname or "") not in self.server.hosts:
            raise Fault(516, "Requests of other sites' pages are refused. (AUTHENTICATION_FAILED)", status=403)

    def _fail(self, fault: Fault, query_id: str) -> None:
        if not self.body.drain():
            self.close_connection = True
        message = fault.message(self.server.engine.version) + "\n"
        headers = [*self.common(query_id), ("X-ClickHouse-Exception-Code", str(fault.code))]
        if fault.code == 516 and fault.status == 401:
            headers.append(("WWW-Authenticate", 'Basic realm="ClickHouse"'))
        self._reply(fault.status, message.encode("utf-8", "replace"), headers)

    def common(self, query_id: str) -> list[tuple[str, str]]:
        """Headers of every answer to a query."""
        return [
            ("X-ClickHouse-Server-Display-Name", "chdb"),
            (
                "X-ClickHouse-Query-Id",
                query_id.encode("ascii", "replace").decode().replace("\n", "?").replace("\r", "?"),
            ),
            ("X-ClickHouse-Timezone", self.server.engine.timezone),
        ]

    def _reply(self, status: int, data: bytes, headers: list[tuple[str, str]], kind: str = TEXT) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()

    def reply(self, data: bytes, headers: list[tuple[str, str]], kind: str = TEXT) -> None:
        """A whole answer."""
        self._reply(200, data, headers, kind)

    def user(self, parameters: dict[str, str]) -> User:
        """Who asks: headers, basic authentication or parameters, in ClickHouse's own order. Fault 516 otherwise."""
        name = self.headers.get("X-ClickHouse-User") or parameters.get("user") or "default"
        password = self.headers.get("X-ClickHouse-Key") or parameters.get("password") or ""
        basic = self.headers.get("Authorization", "")
        if basic.startswith("Basic "):
            name, _, password = base64.b64decode(basic[6:]).decode("utf-8", "replace").partition(":")
        user = authenticate(self.server.users, name, password)
        if user is None:
            raise Fault(
                516,
                f"{name}: Authentication failed: password is incorrect, or there is no user with such name. "
                "(AUTHENTICATION_FAILED)",
                status=401
                if not basic and "X-ClickHouse-User" not in self.headers and "user" not in parameters
                else 403,
            )
        return user


class _Request:
    """One query of one user."""

    def __init__(self, http: Handler, parameters: dict[str, str], query_id: str, *, changes: bool) -> None:
        self.http, self.parameters, self.query_id, self.changes = http, parameters, query_id, changes
        self.engine = http.server.engine
        self.began = time.perf_counter_ns()

    def run(self) -> None:
        self.user = self.http.user(self.parameters)
        for name in ("compress", "decompress"):
            if self.parameters.get(name) == "1":
                raise Fault(
                    48, f"{name}=1 (native compression) is not spoken here; use Content-Encoding. (NOT_IMPLEMENTED)"
                )
        pieces, externals = self._read_form()
        session = self.parameters.get("session_id")
        if session:
            seconds = float(self.parameters.get("session_timeout") or 60)
            kept = self.parameters.get("session_check") == "1"
            with self.engine.session(self.user.name, session, seconds=min(seconds, 3600), must_exist=kept) as handle:
                self._run_on(handle, pieces, externals, session=True)
        else:
            with self.engine.handle() as handle:
                self._run_on(handle, pieces, externals, session=False)

    def _read_form(self) -> tuple[Iterator[bytes], list[tuple[str, bytes]]]:
        """A multipart form holds the query, parameters and external tables; anything else is the body itself."""
        kind = self.http.headers.get("Content-Type", "")
        if not kind.startswith("multipart/form-data"):
            return decoded(
                self.http.body, self.http.headers.get("Content-Encoding") or "", self.http.server.max_body
            ), []
        head = b"Content-Type: " + kind.encode() + b"\r\n\r\n"
        form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + b"".join(self.http.body))
        externals = []
        for part in form.iter_parts() if form.is_multipart() else ():
            name = str(part.get_param("name", header="content-disposition"))
            data = part.get_payload(decode=True) or b""
            assert isinstance(data, bytes)
            table = any(f"{name}_{what}" in self.parameters for what in ("structure", "types"))
            if part.get_filename() is None and (name == "query" or name.startswith("param_") or not table):
                self.parameters[name] = data.decode("utf-8", "surrogateescape")
            else:
                externals.append((name, data))
        return iter(()), externals

    def _run_on(
        self, handle: Handle, pieces: Iterator[bytes], externals: list[tuple[str, bytes]], *, session: bool
    ) -> None:
        database = self.parameters.get("database") or self.http.headers.get("X-ClickHouse-Database")
        if database:
            handle.run(f"USE {statements.quoted(database)}")
        if not handle.sealed:
            tables = {f"{name}_{what}" for name, _ in externals for what in ("structure", "types", "format")}
            given = {
                k: v for k, v in self.parameters.items() if k not in RESERVED | tables and not k.startswith("param_")
            }
            apply_settings(handle, self.user, given)
        if externals and self.user.readonly:  # a structure is SQL of the client's own, run before `readonly` is set
            raise Fault(164, "External data is not for read-only users. (READONLY)")
        try:
            for name, data in externals:
                self._load(handle, name, data)
            if self.user.readonly:
                handle.seal(1)
            elif not self.changes and not session:
                handle.seal(2)  # a GET never writes
            self._execute(handle, pieces, session=session)
        finally:
            for name, _ in externals:
                handle.run(f"DROP TEMPORARY TABLE IF EXISTS {statements.quoted(name)}")

    def _load(self, handle: Handle, name: str, data: bytes) -> None:
        structure = self.parameters.get(f"{name}_structure")
        if not structure:
            types = self.parameters[f"{name}_types"].split(",")
            structure = ", ".join(f"_{number} {kind}" for number, kind in enumerate(types, 1))
        table = statements.quoted(name)
        handle.run(f"CREATE TEMPORARY TABLE {table} ({structure}) ENGINE=Memory")
        handle.insert(f"INSERT INTO {table}", self.parameters.get(f"{name}_format", "TabSeparated"), iter([data]))

    def _execute(self, handle: Handle, pieces: Iterator[bytes], *, session: bool) -> None:
        sql = self.parameters.get("query", "").encode("utf-8", "surrogateescape")
        if not sql.strip():  # the query is the body; only the data of an INSERT are read further piece by piece
            sql = next(pieces, b"")
            if statements.first_word(sql) != "INSERT":
                sql += b"".join(pieces)
        elif statements.first_word(sql) != "INSERT":
            rest = b"".join(pieces)
            sql += b"\n" + rest if rest else b""
        word = statements.first_word(sql)
        if not sql.strip():
            raise Fault(62, "Syntax error: Empty query. (SYNTAX_ERROR)")
        if not self.changes and session and word not in statements.READS | {"SET", "USE"}:
            raise Fault(164, "Cannot execute query in readonly mode: use POST. (READONLY)")
        params = {name[6:]: value for name, value in self.parameters.items() if name.startswith("param_")}
        if word == "INSERT" and not self.user.readonly:
            insert = statements.split_insert(sql)
            if insert is not None and not params:
                self._insert(handle, insert, pieces)
                return
            sql += b"".join(pieces)
        if self.user.readonly:
            sql = statements.read_only(sql, self.engine.table_functions).encode()
        self._select(handle, sql, word, params)

    def _insert(self, handle: Handle, insert: statements.Insert, pieces: Iterator[bytes]) -> None:
        def data() -> Iterator[bytes]:
            yield insert.data
            yield from pieces

        rows, size = handle.insert(insert.statement.decode(), insert.format, data())
        numbers = {
            "read_rows": rows,
            "read_bytes": size,
            "written_rows": rows,
            "written_bytes": size,
            "result_rows": rows,
        }
        self.http.reply(b"", [*self.http.common(self.query_id), self._summary(numbers)])

    def _select(self, handle: Handle, sql: bytes, word: str, params: dict[str, str]) -> None:
        default = (
            self.parameters.get("default_format") or self.http.headers.get("X-ClickHouse-Format") or "TabSeparated"
        )
        rows_come = word in statements.READS | {"CHECK"}
        form = (statements.trailing_format(sql) if rows_come else None) or default
        try:
            text: str | bytes = sql.decode()
        except UnicodeDecodeError:
            text = sql
        headers = self.http.common(self.query_id) + ([("X-ClickHouse-Format", form)] if rows_come else [])
        kind = CONTENT_TYPES.get(form.lower(), TEXT)
        whole = self.parameters.get("wait_end_of_query") == "1" or form.lower() not in STREAMED
        if whole or word not in ("SELECT", "WITH", "FROM"):
            result = handle.query(text, default, params)
            data = bytes(result.bytes() or b"")
            numbers = {"read_rows": result.rows_read(), "read_bytes": result.bytes_read(), "result_bytes": len(data)}
            self.http.reply(data, [*headers, self._summary(numbers)], kind)
            return
        with handle.stream(text, default, params) as pieces:
            first = b""
            for piece in pieces:  # errors that come early still get a status of their own
                first += piece
                if len(first) >= FIRST_PIECE:
                    break
            else:
                self.http.reply(first, [*headers, self._summary({"result_bytes": len(first)})], kind)
                return
            self._stream(first, pieces, headers, kind)

    def _stream(self, first: bytes, pieces: Iterator[bytes], headers: list[tuple[str, str]], kind: str) -> None:
        """Chunks; an error in the middle is marked as ClickHouse marks it, with a tag that the head announced."""
        http, tag = self.http, uuid.uuid4().hex[:16]
        http.send_response(200)
        chunked = [
            ("Content-Type", kind),
            *headers,
            ("X-ClickHouse-Exception-Tag", tag),
            ("Transfer-Encoding", "chunked"),
        ]
        for name, value in chunked:
            http.send_header(name, value)
        http.end_headers()

        def put(data: bytes) -> None:
            if data and http.command != "HEAD":
                http.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

        try:
            put(first)
            for piece in pieces:
                put(piece)
        except Fault as fault:
            line = (fault.message(self.engine.version) + "\n").encode("utf-8", "replace")
            mark = b"\r\n__exception__\r\n"
            put(mark + tag.encode() + b"\r\n" + line + b"%d " % len(line) + tag.encode() + mark)
            http.close_connection = True
        http.wfile.write(b"0\r\n\r\n")
        http.wfile.flush()

    def _summary(self, numbers: dict[str, int]) -> tuple[str, str]:
        names = [
            "read_rows",
            "read_bytes",
            "written_rows",
            "written_bytes",
            "total_rows_to_read",
            "result_rows",
            "result_bytes",
        ]
        every = {name: str(numbers.get(name, 0)) for name in names}
        every["elapsed_ns"] = str(time.perf_counter_ns() - self.began)
        return "X-ClickHouse-Summary", json.dumps(every, separators=(",", ":"))
