"""Ends the reads of clients that went away: their answer has no reader, and their query would hold a slot until it is done."""

from __future__ import annotations

import select
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

LOOK_SECONDS = 0.2
_GONE = select.POLLHUP | select.POLLERR | select.POLLRDHUP


class Watch:
    """Looks at the sockets of running reads. `kill(tag)` is called in its thread, at most once for each read."""

    def __init__(self, kill: Callable[[str], None]) -> None:
        self._kill = kill
        self._lock = threading.Lock()
        self._reads: dict[str, socket.socket | None] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    @contextmanager
    def over(self, client: socket.socket, tag: str) -> Iterator[None]:
        """While this lasts, a client that hangs up ends the query that carries `tag`."""
        with self._lock:
            self._reads[tag] = client
        try:
            yield
        finally:
            with self._lock:
                del self._reads[tag]

    def kill_all(self) -> None:
        """End every read there is."""
        with self._lock:
            tags = list(self._reads)
        for tag in tags:
            self._kill(tag)

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            for tag in self._gone():
                self._kill(tag)

    def _gone(self) -> list[str]:
        poll = select.poll()
        with self._lock:  # who leaves `over` may close its socket, and its number be another's: so under the lock
            tags = {client.fileno(): tag for tag, client in self._reads.items() if client is not None}
            for number in tags:
                poll.register(number, select.POLLRDHUP)
            gone = [tags[number] for number, event in poll.poll(0) if event & _GONE]
            for tag in gone:
                self._reads[tag] = None
        return gone
