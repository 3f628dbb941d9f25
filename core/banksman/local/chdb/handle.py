"""One connection to the engine, with errors as a ClickHouse server words them."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from banksman.local.chdb.faults import Fault, from_engine

if TYPE_CHECKING:
    from collections.abc import Iterator


class Handle:
    """Wraps a chDB connection. Everything it raises is a Fault. `spoiled`: it is not as the next request may expect it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.spoiled = False

    def close(self) -> None:
        """Let the connection go."""
        self._connection.close()

    def run(self, sql: str) -> bytes:
        """A statement of our own."""
        return bytes(self.query(sql, "TabSeparated", {}).bytes() or b"")

    def query(self, sql: str | bytes, form: str, params: dict[str, str]) -> Any:
        """The whole result at once (`.bytes()`, `.rows_read()`, `.bytes_read()`)."""
        try:
            return self._connection.query(sql, form, params=params)
        except Exception as error:  # noqa: BLE001 - chDB raises plain RuntimeErrors and worse
            raise from_engine(error) from None

    @contextmanager
    def stream(self, sql: str | bytes, form: str, params: dict[str, str]) -> Iterator[Iterator[bytes]]:
        """The result in pieces. Leaving early cancels the query."""
        try:
            result = self._connection.send_query(sql, form, params=params)
        except Exception as error:  # noqa: BLE001 - chDB raises plain RuntimeErrors and worse
            raise from_engine(error) from None
        try:
            yield _pieces(result)
        finally:
            result.close()

    def insert(self, statement: str, form: str, pieces: Iterator[bytes]) -> tuple[int, int]:
        """Feed data to an INSERT -> (rows, bytes) written. All or nothing for one block."""
        try:
            target = self._connection.send_insert(statement, form)
        except Exception as error:  # noqa: BLE001 - chDB raises plain RuntimeErrors and worse
            raise from_engine(error) from None
        fed = False
        try:
            for piece in pieces:
                if piece:
                    target.append(piece)
                    fed = True
            if not fed:
                target.cancel()
                return 0, 0
            done = target.finish()
        except (Fault, OSError):
            target.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - chDB raises plain RuntimeErrors and worse
            target.cancel()
            raise from_engine(error) from None
        return int(done.rows_written), int(done.bytes_written)

    @contextmanager
    def as_it_was(self, names: list[str]) -> Iterator[None]:
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
        rows = [json.loads(line) for line in bytes(before.bytes()).splitlines()]
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


def text(value: str) -> str:
    """A string literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def identifier(name: str) -> str:
    """An identifier for a statement of our own; Fault 36 when it could end its quotes."""
    if "`" in name or "\\" in name or not name:
        raise Fault(36, f"Bad name {name!r}. (BAD_ARGUMENTS)")
    return f"`{name}`"


def _pieces(result: Any) -> Iterator[bytes]:
    iterator = iter(result)
    while True:
        try:
            piece = next(iterator, None)
        except Exception as error:  # noqa: BLE001 - chDB raises plain RuntimeErrors and worse
            raise from_engine(error) from None
        if piece is None:
            return
        yield bytes(piece.bytes())
