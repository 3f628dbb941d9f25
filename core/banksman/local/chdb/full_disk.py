"""Parts that were written when there was no room: found, and got rid of by a new start.

ClickHouse 26.9, measured: a merge that runs out of disk may put a part in force whose files are all empty. Whatever reads it
fails from then on (codes 33, 246), and the parts that it was made of are removed eight minutes later. A server that starts
before that finds it broken, lays it aside (`detached/broken-on-start_…`), and takes what it was made of: nothing is lost. So
this process ends as soon as it has such a part, and whoever runs it starts it again.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LOOK_S = 1.0
AFTER_S = 60.0
"""So long after the last thing that found no room a merge may still put its part in force."""
STARTS_AGAIN = 3
"""The exit code."""

log = logging.getLogger(__name__)


def empty(parts: Iterable[str]) -> list[str]:
    """Those that hold nothing, by the file that is written last. One that is not there any more was merged meanwhile."""
    found = []
    for part in parts:
        try:
            if not (Path(part) / "checksums.txt").stat().st_size:
                found.append(part)
        except FileNotFoundError:
            continue
    return found


def leave(parts: list[str]) -> NoReturn:
    """End, as if killed: what is committed is on disk, and what is under way is sent again."""
    print(
        f"the disk was full, and a merge left {', '.join(parts)} empty: starting again, with what it was made of",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(STARTS_AGAIN)


class FullDisk:
    """Looks once a second, in a thread of its own, until `close`.

    `refused()`: how often anything has found no room. `parts()`: folders of the parts that are in force. `found(parts)`: what
    is done about empty ones.
    """

    def __init__(
        self, refused: Callable[[], int], parts: Callable[[], list[str]], found: Callable[[list[str]], object] = leave
    ) -> None:
        self._refused, self._parts, self._found = refused, parts, found
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="full-disk", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        before, until = 0, 0.0
        while not self._stop.wait(LOOK_S):
            try:
                now = self._refused()
                if now != before:
                    before, until = now, time.monotonic() + AFTER_S
                if time.monotonic() < until and (gone := empty(self._parts())):
                    self._found(gone)
            except Exception as error:  # noqa: BLE001 - no memory left, say: whatever it is, the next look has to come
                log.warning("what a full disk has done cannot be looked at: %s: %s", type(error).__name__, error)
