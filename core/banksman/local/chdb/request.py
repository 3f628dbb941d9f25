"""One query of one user: from the request's parameters and body to the engine, and its answer."""

from __future__ import annotations

import email.parser
import email.policy
import json
import re
import time
import uuid
from contextlib import ExitStack
from itertools import chain
from typing import TYPE_CHECKING

from banksman.local.chdb import answers, statements
from banksman.local.chdb.bodies import decoded
from banksman.local.chdb.compress import encoder
from banksman.local.chdb.faults import Fault
from banksman.local.chdb.handle import identifier, readable, text
from banksman.local.chdb.read_only import read_only
from banksman.local.chdb.settings import RESERVED, chosen

if TYPE_CHECKING:
    from banksman.local.chdb.bodies import Body
    from banksman.local.chdb.compress import Encoder
    from banksman.local.chdb.handle import Handle
    from banksman.local.chdb.server import Handler
    from banksman.local.chdb.users import User

CONTENT_TYPES = {
    **dict.fromkeys(["json", "jsoncompact"], "application/json; charset=UTF-8"),
    "jsoneachrow": "application/x-ndjson; charset=UTF-8",
    **dict.fromkeys(["csv", "csvwithnames"], "text/csv; charset=UTF-8"),
    **dict.fromkeys(["tabseparated", "tsv"], "text/tab-separated-values; charset=UTF-8"),
    **dict.fromkeys(["native", "rowbinary"], "application/octet-stream"),
}
STREAMED = frozenset(
    "native tabseparated tsv csv rowbinary jsoneachrow tabseparatedraw tsvraw jsoncompacteachrow".split()  # noqa: SIM905 - words
)
"""Formats whose pieces, one after the other, are one valid document; the rest is built whole."""

SUMMARY = (
    "read_rows",
    "read_bytes",
    "written_rows",
    "written_bytes",
    "total_rows_to_read",
    "result_rows",
    "result_bytes",
)
FIRST_BYTES, FIRST_SECONDS = 1 << 16, 0.5  # how much of an answer is held back, so that an early error has a status
HEAD_BYTES = 1 << 16  # how much of a body is looked at for the beginning of an INSERT's data
STATEMENT_BYTES = 64 << 20
READER_STATEMENT_BYTES = 1 << 20
SESSION_SECONDS = 60.0
_FORMAT = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}")
_OBJECTS = frozenset({"dataframe", "arrowtable", "datastore"})  # chDB's own: Python objects, not bytes


class Request:
    """One query. `run` answers it; Fault, OSError (client gone) and ValueError are the caller's."""

    def __init__(
        self, http: Handler, user: User, parameters: dict[str, str], body: Body, query_id: str, *, changes: bool
    ) -> None:
        self.http, self.user, self.parameters, self.changes = http, user, parameters, changes
        self.engine = http.server.engine
        self.common = http.common(query_id)
        self._pieces = decoded(iter(body), http.headers.get("Content-Encoding") or "", http.server.max_body)
        self._limit = READER_STATEMENT_BYTES if user.readonly else STATEMENT_BYTES
        self._externals: list[tuple[str, bytes]] = []
        self._tag = uuid.uuid4().hex
        self._began = time.perf_counter_ns()

    def run(self) -> None:
        """Read what is to be done, wait for a handle, do it."""
        for name in ("compress", "decompress"):
            if self.parameters.get(name) == "1":
                raise Fault(
                    48, f"{name}=1 (native compression) is not spoken here; use Content-Encoding. (NOT_IMPLEMENTED)"
                )
        self._read_form()
        if role := self.parameters.get("role"):  # who asks for a narrower one must not be given everything
            raise Fault(511, f"There is no role {role!r}; users are what there is. (UNKNOWN_ROLE)")
        session = self.parameters.get("session_id")
        sql, word = self._read_statement()
        if not self.changes and session and not self._harmless(sql, word):
            raise Fault(164, "Cannot execute query in readonly mode: use POST. (READONLY)")
        settings = chosen(self.user, self._settings())
        with ExitStack() as held:
            # A reader's session has nothing to keep: no SET, no temporary table. So each of its requests gets a fresh handle.
            if session and not self.user.readonly:
                kept = self.parameters.get("session_check") == "1"
                handle = held.enter_context(
                    self.engine.session(self.user.name, session, seconds=self._session_seconds(), must_exist=kept)
                )
                held.enter_context(handle.as_it_was(settings))
            else:
                handle = held.enter_context(self.engine.handle(reader=self.user.readonly))
            self._prepare(handle, settings, session=bool(session), held=held)
            if word in statements.READS:
                held.enter_context(self.engine.watch.over(self.http.connection, self._tag))
            self._execute(handle, sql, word)

    # ── what is asked ──

    def _settings(self) -> dict[str, str]:
        tables = {f"{name}_{what}" for name, _ in self._externals for what in ("structure", "types", "format")}
        return {k: v for k, v in self.parameters.items() if k not in RESERVED | tables and not k.startswith("param_")}

    def _session_seconds(self) -> float:
        seconds = float(self.parameters.get("session_timeout") or SESSION_SECONDS)
        if not 0 <= seconds <= 3600:
            raise Fault(374, "session_timeout is between 0 and 3600. (INVALID_SESSION_TIMEOUT)")
        return seconds

    def _read_form(self) -> None:
        """A multipart form holds the query, parameters and external tables; anything else is the body itself."""
        kind = self.http.headers.get("Content-Type", "")
        if not kind.startswith("multipart/form-data"):
            return
        head = b"Content-Type: " + kind.encode("latin-1") + b"\r\n\r\n"
        form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + self._rest())
        for part in form.iter_parts() if form.is_multipart() else ():
            name = str(part.get_param("name", header="content-disposition"))
            data = part.get_payload(decode=True) or b""
            assert isinstance(data, bytes)
            table = any(f"{name}_{what}" in self.parameters for what in ("structure", "types"))
            if part.get_filename() is None and (name == "query" or name.startswith("param_") or not table):
                self.parameters[name] = data.decode("utf-8", "surrogateescape")
            else:
                self._externals.append((name, data))
        if (
            self._externals and self.user.readonly
        ):  # a structure is SQL of the client's own, run before `readonly` is set
            raise Fault(164, "External data is not for read-only users. (READONLY)")

    def _rest(self) -> bytes:
        got = bytearray()
        for piece in self._pieces:
            got += piece
            if len(got) > self._limit:
                raise Fault(
                    307, f"A statement may have {self._limit} bytes, without an INSERT's data. (TOO_MANY_BYTES)"
                )
        return bytes(got)

    def _read_statement(self) -> tuple[bytes, str]:
        """(statement, its first word). The query is a parameter, the body, or both one after the other. Of an INSERT only
        the beginning is read here; its data follow piece by piece.
        """
        sql = self.parameters.get("query", "").encode("utf-8", "surrogateescape")
        if not sql.strip():
            sql = self._head()
        elif statements.first_word(sql) != "INSERT":
            sql += b"\n"
        word = statements.first_word(sql)
        if word != "INSERT":
            sql += self._rest()
            if not sql.strip():
                raise Fault(62, "Syntax error: Empty query. (SYNTAX_ERROR)")
            if not statements.is_one(sql):
                raise Fault(62, "Syntax error: Multi-statements are not allowed. (SYNTAX_ERROR)")
        if self.user.readonly:
            sql = read_only(sql, self.engine.table_functions, self._params()).encode()
        return sql, word

    def _head(self) -> bytes:
        got = bytearray()
        for piece in self._pieces:
            got += piece
            if len(got) >= HEAD_BYTES:
                break
        return bytes(got)

    def _params(self) -> dict[str, str]:
        return {name[6:]: value for name, value in self.parameters.items() if name.startswith("param_")}

    @staticmethod
    def _harmless(sql: bytes, word: str) -> bool:
        """Whether a GET may do this in a session, where `readonly` would stay."""
        return word in statements.READS - {"WITH"} | {"SET", "USE"} or statements.is_query(sql, word)

    # ── what is done ──

    def _prepare(self, handle: Handle, settings: dict[str, str], *, session: bool, held: ExitStack) -> None:
        """Database, settings, external tables; `readonly` last, because it closes the door behind itself."""
        database = self.parameters.get("database") or self.http.headers.get("X-ClickHouse-Database")
        if database:
            if self.user.readonly and database.lower() == "system":
                raise Fault(164, "The database system is not for read-only users; name its tables. (READONLY)")
            handle.run(f"USE {identifier(database)}")
        values = {**settings, "log_comment": self._tag}  # by which a query is found again, to end it
        handle.run("SET " + ", ".join(f"{name} = {text(value)}" for name, value in values.items()))
        for name, data in self._externals:
            held.callback(self._drop, handle, name)  # temporary tables outlive their handle
            self._load(handle, name, data)
        if self.user.readonly:
            handle.run("SET readonly = 1")
        elif not self.changes and not session:
            handle.run("SET readonly = 2")  # a GET never writes

    def _load(self, handle: Handle, name: str, data: bytes) -> None:
        structure = self.parameters.get(f"{name}_structure")
        if not structure:
            types = self.parameters[f"{name}_types"].split(",")
            structure = ", ".join(f"_{number} {kind}" for number, kind in enumerate(types, 1))
        table = identifier(name)
        handle.run(f"CREATE TEMPORARY TABLE {table} ({structure}) ENGINE=Memory")
        into = statements.Insert(f"INSERT INTO {table}".encode(), self._format(f"{name}_format"), b"")
        handle.insert(into, [data], {})

    def _drop(self, handle: Handle, name: str) -> None:
        try:
            handle.run(f"DROP TEMPORARY TABLE IF EXISTS {identifier(name)}")
        except Fault:  # a session that made itself read-only
            handle.spoiled = True

    def _format(self, parameter: str) -> str:
        """A format's name that the request chose. Fault 73: no format of a server's."""
        name = self.parameters.get(parameter) or ""
        if parameter == "default_format":
            name = name or self.http.headers.get("X-ClickHouse-Format") or ""
        name = name or "TabSeparated"
        if not _FORMAT.fullmatch(name) or name.lower() in _OBJECTS:
            raise Fault(73, f"Unknown format {name!r}. (UNKNOWN_FORMAT)")
        return name

    def _execute(self, handle: Handle, sql: bytes, word: str) -> None:
        params = self._params()
        if word != "INSERT":
            self._select(handle, sql, word, params)
            return
        insert = statements.split_insert(sql)
        if insert is None:
            between = b"\n" if self.parameters.get("query", "").strip() else b""  # else both are one body
            self._whole(handle, sql + between + self._rest(), params)
        elif params and insert.format == "Values":  # which may hold them
            self._whole(handle, insert.statement + b" VALUES " + insert.data + self._rest(), params)
        else:
            written = handle.insert(insert, chain([insert.data], self._pieces), params)
            self._inserted(written.written_rows, written.written_bytes)

    def _whole(self, handle: Handle, sql: bytes, params: dict[str, str]) -> None:
        done = handle.query(readable(sql), "TabSeparated", params)
        self._inserted(done.written_rows, done.written_bytes)

    def _inserted(self, rows: int, size: int) -> None:
        self.engine.check_written()
        numbers = {"read_rows": rows, "read_bytes": size, "written_rows": rows, "written_bytes": size}
        answers.whole(self.http, 200, b"", [*self.common, self._summary({**numbers, "result_rows": rows})])

    def _select(self, handle: Handle, sql: bytes, word: str, params: dict[str, str]) -> None:
        default = self._format("default_format")
        rows_come = word in statements.READS | {"CHECK"}
        form = (statements.trailing_format(sql) if rows_come else None) or default
        query = readable(sql)
        headers = self.common + ([("X-ClickHouse-Format", form)] if rows_come else [])
        kind = CONTENT_TYPES.get(form.lower(), answers.TEXT)
        whole = self.parameters.get("wait_end_of_query") == "1" or not answers.may_stream(self.http)
        is_query = statements.is_query(sql, word)
        if whole or form.lower() not in STREAMED or not is_query:
            result = handle.query(query, default, params)
            if word not in statements.READS or (word == "WITH" and not is_query):
                self.engine.check_written()
            numbers = {**result._asdict(), "result_bytes": len(result.data)}
            headers.append(self._summary(numbers))
            answers.whole(self.http, 200, result.data, headers, kind=kind, encoder=self._encoder())
            return
        with handle.stream(query, default, params) as pieces:
            first, began = bytearray(), time.monotonic()
            for piece in pieces:
                first += piece
                if len(first) >= FIRST_BYTES or time.monotonic() - began > FIRST_SECONDS:
                    break
            else:
                headers.append(self._summary({"result_bytes": len(first)}))
                answers.whole(self.http, 200, bytes(first), headers, kind=kind, encoder=self._encoder())
                return
            headers.append(self._summary({}))
            answers.stream(
                self.http,
                bytes(first),
                pieces,
                headers,
                kind=kind,
                encoder=self._encoder(),
                version=self.engine.version,
            )

    def _encoder(self) -> Encoder | None:
        if self.parameters.get("enable_http_compression", "1") == "0":
            return None
        level = self.parameters.get("http_zlib_compression_level", "3")
        accepted = self.http.headers.get("Accept-Encoding", "")
        return encoder(accepted, level=min(9, max(1, int(level)))) if accepted else None

    def _summary(self, numbers: dict[str, int]) -> tuple[str, str]:
        every = {name: str(numbers.get(name, 0)) for name in SUMMARY}
        every["elapsed_ns"] = str(time.perf_counter_ns() - self._began)
        return "X-ClickHouse-Summary", json.dumps(every, separators=(",", ":"))
