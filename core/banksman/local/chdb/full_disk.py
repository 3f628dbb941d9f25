"""Parts that were written when there was no room: found before anybody hears of them, and got rid of by a new start.

chDB 26.9, measured: what the disk refuses (ENOSPC) it calls written. An insert or a merge that meets a full disk puts a part in
force of whose files some, or all, are empty. The insert is a success; whatever reads the part fails (codes 33, 246); and the
parts that a merge has replaced are removed eight minutes later. A start before that finds the part broken, lays it aside
(`detached/broken-on-start_…`), and takes what a merge had put together. So every part is looked at once: those of an insert
before it is answered, those of merges within a second. Where one lacks something this process ends, and whoever runs it starts
it again: of an insert nobody was told, and who sent it sends it again.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_S = 1.0
STARTS_AGAIN = 3
"""The exit code."""
UNCOUNTED = frozenset(
    ("checksums.txt", "columns.txt", "columns_substreams.txt", "default_compression_codec.txt", "metadata_version.txt")
)
"""Files of a part that its size does not count: of them it is only seen whether they are empty."""

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """A part that is in force, and the bytes that its files should have (`system.parts.bytes_on_disk`)."""

    path: str
    size: int


def lacks(part: Part) -> bool:
    """Whether its files have less in them, or are not there."""
    counted = 0
    try:
        for folder, _, names in os.walk(part.path, onerror=_raise):
            for name in names:
                size = (Path(folder) / name).stat().st_size
                if name not in UNCOUNTED:
                    counted += size
                elif not size:
                    return True
    except FileNotFoundError:  # dropped, or is it?
        return True
    return counted < part.size


def leave(parts: list[str]) -> NoReturn:
    """End, as if killed: what is whole is on disk, and what is under way is sent again."""
    print(
        f"the disk was full, and {', '.join(parts)} lacks what could not be written: starting again without it",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(STARTS_AGAIN)


class FullDisk:
    """Looks at new parts when asked to, and once a second in a thread of its own, until `close`. What was there before was
    looked at by ClickHouse when it started.

    `parts()`: those in force. `found(paths)`: what is done about those that lack something.
    """

    def __init__(self, parts: Callable[[], list[Part]], found: Callable[[list[str]], object] = leave) -> None:
        self._parts, self._found = parts, found
        self._seen = set(parts())
        self._one_at_a_time, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="full-disk", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """At every part that was not seen whole before."""
        with self._one_at_a_time:
            parts = set(self._parts())
            lacking = {part for part in parts - self._seen if lacks(part)}
            self._seen = parts - lacking
            if lacking:  # it may have been dropped, file by file, while it was looked at
                lacking = {part for part in lacking & set(self._parts()) if lacks(part)} & set(self._parts())
            if lacking:
                self._found(sorted(part.path for part in lacking))

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - no memory left, say: whatever it is, the next look has to come
                log.warning("parts cannot be looked at: %s: %s", type(error).__name__, error)


def _raise(error: OSError) -> NoReturn:
    raise error
