"""The chDB engine: one process owns a path, every request gets a handle of its own. The only file that imports chdb.

Handles are what keeps requests apart: SET, USE and temporary tables never leak from one to the next. A named session keeps
its handle between requests.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import chdb

from banksman.local.chdb.faults import Fault, from_engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUEUE_SECONDS = 10.0


@dataclass
class _Session:
    handle: Any
    expires: float
    busy: bool = False
    sealed: bool = False


class Engine:
    """Owns a data path. `slots`: queries at once; who waits longer than 10 s for one gets code 202."""

    def __init__(self, path: Path, *, memory: int, slots: int = 16) -> None:
        try:
            self._keep = chdb.connect(str(path))  # type: ignore[no-untyped-call]
        except Exception as error:
            raise from_engine(error) from error
        self._path, self._memory = str(path), memory
        self._slots = threading.BoundedSemaphore(slots)
        self._lock = threading.Lock()
        self._sessions: dict[tuple[str, str], _Session] = {}
        row = self._keep.query("SELECT version(), timezone()", "TabSeparated").bytes().decode()
        self.version, self.timezone = row.strip().split("\t")
        names = self._keep.query("SELECT name FROM system.table_functions", "TabSeparated").bytes().decode()
        self.table_functions = frozenset(names.lower().split())

    def close(self) -> None:
        """Let go of the path; what is committed is on disk."""
        with self._lock:
            for session in self._sessions.values():
                session.handle.close()
            self._sessions.clear()
        self._keep.close()

    @contextmanager
    def handle(self) -> Iterator[Handle]:
        """A handle for one request."""
        with self._slot():
            handle = self._connect()
            try:
                yield Handle(handle, sealed=False)
            finally:
                handle.close()

    @contextmanager
    def session(self, user: str, name: str, *, seconds: float, must_exist: bool) -> Iterator[Handle]:
        """The handle of a user's named session, made when it is not there. Sessions of two users never meet.

        Fault 372: it has to exist and does not. Fault 373: another request is using it.
        """
        with self._slot():
            with self._lock:
                now = time.monotonic()
                for key in [key for key, kept in self._sessions.items() if kept.expires < now and not kept.busy]:
                    self._sessions.pop(key).handle.close()
                session = self._sessions.get((user, name))
                if session is None:
                    if must_exist:
                        raise Fault(372, "Session not found. (SESSION_NOT_FOUND)")
                    session = self._sessions[user, name] = _Session(self._connect(), now)
                if session.busy:
                    raise Fault(373, f"Session {name} is locked by a concurrent client. (SESSION_IS_LOCKED)")
                session.busy = True
            made = Handle(session.handle, sealed=session.sealed)
            try:
                yield made
            finally:
                with self._lock:
                    session.sealed = made.sealed
                    session.busy = False
                    session.expires = time.monotonic() + seconds

    def _connect(self) -> Any:
        handle = chdb.connect(self._path)  # type: ignore[no-untyped-call]
        handle.query(f"SET max_memory_usage = {self._memory}")
        return handle

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._slots.acquire(timeout=QUEUE_SECONDS):
            raise Fault(202, "Too many simultaneous queries. (TOO_MANY_SIMULTANEOUS_QUERIES)")
        try:
            yield
        finally:
            self._slots.release()


class Handle:
    """One connection to the engine. Everything it raises is a Fault. `sealed`: readonly is set, for good."""

    def __init__(self, handle: Any, *, sealed: bool) -> None:
        self._handle = handle
        self.sealed = sealed

    def run(self, sql: str) -> bytes:
        """A statement of our own."""
        return bytes(self.query(sql, "TabSeparated", {}).bytes() or b"")

    def seal(self, level: int) -> None:
        """Set `readonly`; it cannot be taken back on this handle."""
        if not self.sealed:
            self.run(f"SET readonly = {level}")
            self.sealed = True

    def query(self, sql: str | bytes, form: str, params: dict[str, str]) -> Any:
        """The whole result at once (`.bytes()`, `.rows_read()`, `.bytes_read()`)."""
        try:
            return self._handle.query(sql, form, params=params)
        except Exception as error:  # noqa: BLE001 - chDB raises plain RuntimeErrors and worse
            raise from_engine(error) from None

    @contextmanager
    def stream(self, sql: str | bytes, form: str, params: dict[str, str]) -> Iterator[Iterator[bytes]]:
        """The result in pieces. Leaving early cancels the query."""
        try:
            result = self._handle.send_query(sql, form, params=params)
        except Exception as error:  # noqa: BLE001 - chDB raises plain RuntimeErrors and worse
            raise from_engine(error) from None
        try:
            yield _pieces(result)
        finally:
            result.close()

    def insert(self, statement: str, form: str, pieces: Iterator[bytes]) -> tuple[int, int]:
        """Feed data to an INSERT -> (rows, bytes) written. All or nothing for one block."""
        try:
            target = self._handle.send_insert(statement, form)
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
