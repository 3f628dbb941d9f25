"""Ends reads that nobody waits for any more: of clients that went away, and all of them when the server stops."""

from __future__ import annotations

import logging
import select
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from banksman.local.chdb.faults import Fault

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

LOOK_SECONDS = 0.2
_GONE = select.POLLHUP | select.POLLERR | select.POLLRDHUP
log = logging.getLogger(__name__)


class Watch:
    """Looks at the sockets of running reads. `kill(tag)` is called in its thread, again and again until the read has ended:
    the first time it may not even have begun.
    """

    def __init__(self, kill: Callable[[str], None]) -> None:
        self._kill = kill
        self._lock = threading.Lock()
        self._reads: dict[str, socket.socket] = {}
        self._all, self._stop = False, threading.Event()
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

    def end_all(self) -> None:
        """From now on every read there is, or still to come, is ended."""
        self._all = True

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            for tag in self._unwanted():
                try:
                    self._kill(tag)
                except Fault as fault:  # no memory left, say; the next look comes soon
                    log.warning("a query that nobody waits for could not be ended: %s", fault.text)

    def _unwanted(self) -> list[str]:
        poll = select.poll()
        with self._lock:  # who leaves `over` may close its socket, and its number be another's: so under the lock
            tags = {client.fileno(): tag for tag, client in self._reads.items()}
            if self._all:
                return list(tags.values())
            for number in tags:
                poll.register(number, select.POLLRDHUP)
            return [tags[number] for number, event in poll.poll(0) if event & _GONE]
