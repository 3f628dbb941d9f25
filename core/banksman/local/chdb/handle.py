"""One connection to the engine, with errors as a ClickHouse server words them."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from banksman.local.chdb.faults import Fault, from_engine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from banksman.local.chdb.statements import Insert


class Result(NamedTuple):
    """A whole answer and what it took. `read_…`: from tables; `result_rows`: of the answer."""

    data: bytes
    result_rows: int
    read_rows: int
    read_bytes: int
    written_rows: int
    written_bytes: int


class Handle:
    """Wraps a chDB connection. What the engine says against a query is a Fault. `spoiled`: not fit for another request."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.spoiled = False

    def close(self) -> None:
        """Let the connection go."""
        self._connection.close()

    def run(self, sql: str) -> bytes:
        """A statement of our own."""
        return self.query(sql, "TabSeparated", {}).data

    def query(self, sql: str | bytes, form: str, params: dict[str, str]) -> Result:
        """The whole result at once."""
        with _faults():
            got = self._connection.query(sql, form, params=params)
            return Result(
                got.bytes() or b"",
                got.rows_read(),  # what chDB calls read is what it handed out
                got.storage_rows_read(),
                got.storage_bytes_read(),
                got.rows_written(),
                got.bytes_written(),
            )

    @contextmanager
    def stream(self, sql: str | bytes, form: str, params: dict[str, str]) -> Iterator[Iterator[bytes]]:
        """The result in pieces. Leaving early cancels the query."""
        with _faults():
            result = self._connection.send_query(sql, form, params=params)
        try:
            yield _pieces(result)
        finally:
            result.close()

    def insert(self, into: Insert, pieces: Iterable[bytes], params: dict[str, str]) -> Result:
        """Give data to an INSERT, all or nothing for one block. What `pieces` raises goes through, and nothing is stored.

        The data go into a file in memory, from which the engine takes them. Its own way for data in pieces (`send_insert`)
        calls an INSERT a success that failed after parsing: no space, a constraint, a materialized view, too many partitions.
        So it does with `FROM input(…)`.
        """
        with open(os.memfd_create("insert"), "wb") as file:
            file.writelines(pieces)
            file.flush()
            if file.tell() == 0:  # formats with a head would call that one that ends too early
                into = into._replace(format="TSV")
            return self.query(readable(into.from_file(f"/proc/self/fd/{file.fileno()}")), "TabSeparated", params)

    @contextmanager
    def as_it_was(self, names: Iterable[str]) -> Iterator[None]:
        """Afterwards the database and these settings (checked names) are what they were: what a request brings along holds
        for its own query, also in a session.
        """
        listed = ", ".join(f"'{name}'" for name in names) or "''"
        before = self.query(
            "SELECT '', currentDatabase(), true UNION ALL "  # noqa: S608 - the names were checked
            f"SELECT name, value, changed = 1 FROM system.settings WHERE name IN ({listed})",
            "JSONCompactEachRow",
            {},
        )
        rows = [json.loads(line) for line in before.data.splitlines()]
        database = next(value for name, value, _ in rows if not name)
        values = [f"{name} = {text(value) if changed else 'DEFAULT'}" for name, value, changed in rows if name]
        try:
            yield
        finally:
            try:
                self.run(f"USE {identifier(database)}")
                if values:
                    self.run("SET " + ", ".join(values))
            except Fault:  # the session made itself read-only, or dropped its database: there is no way back
                self.spoiled = True


def readable(sql: bytes) -> str | bytes:
    """Text where it is text; a statement with binary data in it goes on as it came."""
    try:
        return sql.decode()
    except UnicodeDecodeError:
        return sql


def text(value: str) -> str:
    """A string literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def identifier(name: str) -> str:
    """An identifier for a statement of our own; Fault 36 when it could end its quotes."""
    if "`" in name or "\\" in name or not name:
        raise Fault(36, f"Bad name {name!r}. (BAD_ARGUMENTS)")
    return f"`{name}`"


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001 - chDB raises plain RuntimeErrors and worse
        raise from_engine(error) from None


def _pieces(result: Any) -> Iterator[bytes]:
    iterator = iter(result)
    while True:
        with _faults():
            piece = next(iterator, None)
            data = None if piece is None else piece.bytes()
        if data is None:
            return
        yield data
