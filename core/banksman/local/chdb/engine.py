"""The chDB engine: one process owns a path, every request gets a handle of its own. The only file that imports chdb.

Handles are what keeps requests apart: SET, USE and temporary tables never leak from one to the next. A named session keeps
its handle between requests.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import chdb

from banksman.local.chdb.faults import Fault, from_engine
from banksman.local.chdb.full_disk import FullDisk, Part
from banksman.local.chdb.handle import Handle
from banksman.local.chdb.roles import READER, write_configuration
from banksman.local.chdb.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUEUE_SECONDS = 10.0
LOCKED_SECONDS = 0.5
SESSION_SECONDS = 3600.0
SESSIONS = 1000


@dataclass
class _Session:
    handle: Handle
    expires: float
    busy: bool = False


class Engine:
    """Owns a data path. `memory`: bytes that all queries and caches together may take; one query may take three quarters.
    `threads`: a query's threads, 0 = one a core. `slots`: queries at once; who waits longer than 10 s for one gets code 202.

    Read-only users get three quarters of the slots at most: no crowd of them keeps the writers out.
    Fault: the path cannot be opened, for example because another process has it.
    """

    def __init__(self, path: Path, *, memory: int, threads: int = 0, slots: int = 16) -> None:
        if "?" in str(path):
            raise Fault(36, f"{path}: the engine takes what follows a question mark for options. (BAD_ARGUMENTS)")
        # The caches' own defaults are gigabytes each, made for a server with a machine of its own.
        configuration = write_configuration(
            path / "config",
            {
                "max_server_memory_usage": memory,
                "mark_cache_size": memory // 8,
                "index_mark_cache_size": memory // 16,
                "primary_index_cache_size": memory // 16,
                "query_condition_cache_size": memory // 32,
            },
        )
        try:
            self._keep = chdb.connect(f"{path}?config-file={quote(str(configuration))}")  # type: ignore[no-untyped-call]
        except Exception as error:
            raise from_engine(error) from error
        self._path, self._memory, self._threads = str(path), memory, threads
        self._slots = threading.BoundedSemaphore(slots)
        self._reader_slots = threading.BoundedSemaphore(max(1, slots * 3 // 4))
        self._changed = threading.Condition()
        self._sessions: dict[tuple[str, str], _Session] = {}
        self._running, self._closing = 0, False
        first = Handle(self._keep)
        self.version, self.timezone = first.run("SELECT version(), timezone()").decode().strip().split("\t")
        self.table_functions = frozenset(first.run("SELECT name FROM system.table_functions").decode().lower().split())
        self.watch = Watch(self._kill)
        self._full_disk = FullDisk(self._parts)

    def close(self, within: float) -> bool:
        """Let no query begin, end the reads, wait for the writes, let go of the path. False: some did not end in time, and
        the path is still held; what is committed is on disk all the same.
        """
        with self._changed:
            self._closing = True
        self.watch.end_all()
        with self._changed:
            if not self._changed.wait_for(lambda: self._running == 0, within):
                return False
            for session in self._sessions.values():
                session.handle.close()
            self._sessions.clear()
        self.watch.close()
        self._full_disk.close()
        self._keep.close()
        return True

    @contextmanager
    def handle(self, *, reader: bool) -> Iterator[Handle]:
        """A handle for one request; `reader`: in the role that can only read."""
        with self._slot(reader=reader):
            handle = self._connect()
            try:
                if reader:
                    handle.run(f"SET ROLE {READER}")
                yield handle
            finally:
                handle.close()

    @contextmanager
    def session(self, user: str, name: str, *, seconds: float, must_exist: bool) -> Iterator[Handle]:
        """The handle of a user's named session, made when it is not there. Sessions of two users never meet.

        Fault 372: it has to exist and does not. Fault 373: another request is using it.
        """
        with self._slot(reader=False):
            session = self._take(user, name, must_exist=must_exist)
            try:
                yield session.handle
            finally:
                with self._changed:
                    session.busy = False
                    session.expires = time.monotonic() + min(seconds, SESSION_SECONDS)
                    if session.handle.spoiled:
                        self._sessions.pop((user, name)).handle.close()
                    self._changed.notify_all()

    def _take(self, user: str, name: str, *, must_exist: bool) -> _Session:
        with self._changed:
            now = time.monotonic()
            for key in [key for key, kept in self._sessions.items() if kept.expires < now and not kept.busy]:
                self._sessions.pop(key).handle.close()
            # A client that has its answer asks the next thing before the thread that answered it has let go.
            self._changed.wait_for(lambda: not self._busy(user, name), LOCKED_SECONDS)
            if self._busy(user, name):
                raise Fault(373, f"Session {name} is locked by a concurrent client. (SESSION_IS_LOCKED)")
            session = self._sessions.get((user, name))
            if session is None:
                if must_exist:
                    raise Fault(372, f"Session {name} not found. (SESSION_NOT_FOUND)")
                if len(self._sessions) >= SESSIONS:
                    raise Fault(202, "Too many open sessions. (TOO_MANY_SIMULTANEOUS_QUERIES)")
                session = self._sessions[user, name] = _Session(self._connect(), now)
            session.busy = True
            return session

    def _busy(self, user: str, name: str) -> bool:
        session = self._sessions.get((user, name))
        return session is not None and session.busy

    def _connect(self) -> Handle:
        handle = Handle(chdb.connect(self._path))  # type: ignore[no-untyped-call]
        threads = f", max_threads = {self._threads}" if self._threads else ""
        try:
            # chDB is more generous than a server: it takes `1 + 1` for a query and lets everybody look into the process.
            handle.run(
                f"SET max_memory_usage = {self._memory * 3 // 4}, implicit_select = 0, "
                f"allow_introspection_functions = 0{threads}"
            )
        except Fault:
            handle.close()
            raise
        return handle

    def _kill(self, tag: str) -> None:
        handle = self._connect()
        try:
            handle.run(f"KILL QUERY WHERE Settings['log_comment'] = '{tag}' ASYNC")
        finally:
            handle.close()

    def check_written(self) -> None:
        """Before an insert is answered: whether all of it is on disk. Ends the process where it is not."""
        self._full_disk.look()

    def _parts(self) -> list[Part]:
        handle = self._connect()
        try:
            found = handle.run(
                "SELECT hex(path), bytes_on_disk FROM system.parts WHERE active AND database != 'system'"
            )
        finally:
            handle.close()
        rows = (row.split("\t") for row in found.decode().splitlines())
        return [Part(bytes.fromhex(path).decode(), int(size)) for path, size in rows]

    @contextmanager
    def _slot(self, *, reader: bool) -> Iterator[None]:
        until = time.monotonic() + QUEUE_SECONDS
        with ExitStack() as held:
            for gate in (self._reader_slots, self._slots) if reader else (self._slots,):
                if not gate.acquire(timeout=max(0.0, until - time.monotonic())):
                    raise Fault(202, "Too many simultaneous queries. (TOO_MANY_SIMULTANEOUS_QUERIES)")
                held.callback(gate.release)
            with self._changed:
                if self._closing:
                    raise Fault(236, "The server is shutting down. (ABORTED)")
                self._running += 1
            try:
                yield
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()
