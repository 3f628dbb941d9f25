"""Whose spool is whose: every process has a folder of its own, held by a lock that dies with it.

    SPOOL/PROJECT/AGENT/INSTANCE/   lock, host, cursor, *.log, refused

INSTANCE is the part of `source` behind the `#`. A process that starts goes on in a folder whose process is gone, so that
`seq` goes on too; where all are taken it makes a new one. A folder from before a reboot, or from another host (a copied
disk), might have lost numbers that were sent already: it is only emptied, never gone on with.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from banksman.producers import descriptors

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Claim:
    """A folder that this process holds."""

    folder: Path
    lock: int

    @property
    def instance(self) -> str:
        """Its name."""
        return self.folder.name

    @property
    def goes_on(self) -> bool:
        """Whether its numbers may be gone on with: it was last used on this host, since it was started."""
        try:
            return (self.folder / "host").read_text() == _host()
        except (OSError, UnicodeDecodeError):
            return False

    def release(self) -> None:
        """Let another process have it."""
        lock, self.lock = self.lock, -1
        if lock >= 0:
            descriptors.close(lock)

    def remove(self) -> None:
        """Delete the folder, which is not needed any more, but for what was refused."""
        if not (self.folder / "refused").exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        self.release()


def own(home: Path) -> Iterator[Claim]:
    """Folders under `home` for this process to write in: those that it can go on with, then a new one.

    The first that can be used is kept, the caller releases the others. OSError: there cannot be one.
    """
    _private(home)
    home.chmod(0o700)
    for claim in _free(home):
        if claim.goes_on:
            yield claim
        else:
            claim.release()
    yield _new(home)


def abandoned(home: Path) -> Iterator[Claim]:
    """The folders whose processes are gone, held by us from now on; the caller releases each."""
    yield from _free(home)


def _private(folder: Path) -> None:
    """Make a folder, and those above it that are not there, for this user alone."""
    if not folder.is_dir():
        _private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _free(home: Path) -> Iterator[Claim]:
    for folder in sorted(path for path in home.iterdir() if path.is_dir()):
        try:
            claim = _take(folder)
        except OSError:  # another user's, or a damaged one: it must not stand before those that can be had
            continue
        if claim is not None:
            yield claim


def _new(home: Path) -> Claim:
    while True:
        folder = home / secrets.token_hex(4)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            made = _take(folder)
            if made is not None:  # else one who looked for abandoned folders was quicker
                with contextlib.suppress(
                    OSError
                ):  # a disk that is full: the next process empties it and goes on with another
                    (folder / "host").touch(0o600)
                    (folder / "host").write_text(_host())
                return made


def _take(folder: Path) -> Claim | None:
    """The folder's lock, or None: somebody has it, or took the folder away. OSError: it cannot be used."""
    path = folder / "lock"
    try:
        fd = descriptors.opened(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    held = False
    try:
        with contextlib.suppress(
            BlockingIOError, FileNotFoundError
        ):  # its process lives, or removed the folder meanwhile
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = path.lstat().st_ino == os.fstat(fd).st_ino
    finally:
        if not held:
            descriptors.close(fd)
    return Claim(folder, fd) if held else None


def _host() -> str:
    """What tells this machine, since it was started, from every other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{boot} {os.uname().nodename}\n"
