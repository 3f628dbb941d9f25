"""Files that a child must not keep after a fork: a lock is held by whoever has the file open, be it without knowing.

Opening and knowing are one step here, so that a fork from another thread cannot fall between them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_lock = threading.RLock()
_known: set[int] = set()


def opened(path: Path, flags: int) -> int:
    """`os.open` for this user alone; not inherited. OSError."""
    with _lock:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        _known.add(fd)
    return fd


def close(fd: int) -> None:
    """`os.close`. OSError."""
    with _lock:
        _known.discard(fd)
        os.close(fd)


def _forked() -> None:
    for fd in _known:
        with contextlib.suppress(OSError):
            os.close(fd)
    _known.clear()
    _lock.release()  # by the thread that took it before the fork: the only one that is here


os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_forked)
