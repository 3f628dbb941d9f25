"""The process that reads the folder: everything about a policy file that costs CPU happens here.

Parsing YAML holds the interpreter for milliseconds a file; a thousand files in a thread of the enforcer would be felt
by every decision. So the enforcer starts this as a child (`python -m banksman.policy.reader FOLDER`), which watches,
reads and checks, and writes what it found to its standard output as frames: a 4-byte length (big-endian) and a
`Found` in MessagePack. It ends when its standard input does: with its parent, however that ended.

`FolderReader` is the part without a process: one `scan` tells what changed since the last.
"""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import struct
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from banksman.errors import InvalidPolicy
from banksman.events import is_name
from banksman.policy.document import MAX_BYTES
from banksman.policy.load import load
from banksman.policy.rules import Policy  # noqa: TC001 - msgspec resolves it when it decodes

if TYPE_CHECKING:
    from collections.abc import Iterator

RESCAN_S = 0.3
"""Without a sign from the kernel (network mounts have none), the folder is looked at this often."""

QUIET_S = 0.1
"""A file that changed is read once it has been quiet for so long: half a file can be a policy with half its rules."""

_STEP_S = 0.02
_SETTLE_S = 2.0  # what is still changing after that is left for the next scan
_LONG_AGO_S = 1.0

FRAME_BYTES = 256 * 1024


class Good(msgspec.Struct, frozen=True, array_like=True, tag="good"):
    """A file that loads: its policy and its normalised text."""

    file: str
    policy: Policy
    text: str


class Bad(msgspec.Struct, frozen=True, array_like=True, tag="bad"):
    """A file that does not. `project` as far as the file could be read; `attempt`: SHA-256 of its bytes, 12 digits."""

    file: str
    error: str
    line: int = 0
    key: str = ""
    project: str | None = None
    attempt: str | None = None


class Gone(msgspec.Struct, frozen=True, array_like=True, tag="gone"):
    """A file that was there and is not."""

    file: str


class Unreadable(msgspec.Struct, frozen=True, array_like=True, tag="unreadable"):
    """The folder itself cannot be listed; `error` None: it can again. `missing`: it is not there, so no file is."""

    error: str | None
    missing: bool = False


Item = Good | Bad | Gone | Unreadable


class Found(msgspec.Struct, frozen=True, array_like=True):
    """Part of what one scan found; the scan is complete with the part that is `last`."""

    items: list[Item]
    last: bool


_Signature = tuple[int, ...]
"""Device, inode, mtime and ctime in ns, size; or only an errno."""


class _Seen(msgspec.Struct):
    signature: _Signature
    digest: str
    settled: bool


class FolderReader:
    """Reads a folder again and again and says what changed. One file's edit costs one file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[str, _Seen] = {}
        self._unreadable = Unreadable(None)

    def scan(self) -> list[Item]:
        """What changed since the last scan, in the order of names. A change that is still going on (a swapped
        ConfigMap, an editor that truncates and writes) is waited for: 0.1 s of quiet, 2 s at most.
        """
        waiting: dict[str, tuple[_Signature | None, float]] = {}
        deadline = time.monotonic() + _SETTLE_S
        while True:
            names, unreadable = self._list()
            now = time.monotonic()
            changed = {name: (names or {}).get(name) for name in self._changed(names)}
            waiting = {
                name: waiting[name] if name in waiting and waiting[name][0] == signature else (signature, now)
                for name, signature in changed.items()
                if not _long_ago(signature)
            }
            moving = {name for name, (_, since) in waiting.items() if now - since < QUIET_S}
            if not moving or now > deadline:
                return self._look(names, unreadable, moving)
            time.sleep(_STEP_S)

    def _list(self) -> tuple[dict[str, _Signature] | None, Unreadable]:
        """Policy files and their signatures; None when the folder is there but cannot be listed."""
        found: dict[str, _Signature] = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if is_policy_file(entry.name):
                        try:
                            found[entry.name] = _signature(entry.stat())
                        except FileNotFoundError:
                            continue  # deleted since it was listed, or a link that leads nowhere: not there
                        except OSError as error:
                            found[entry.name] = (error.errno or 0,)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            text = f"the folder of policies cannot be read: {error.strerror}"
            return ({} if missing else None), Unreadable(text, missing)
        return found, Unreadable(None)

    def _changed(self, names: dict[str, _Signature] | None) -> set[str]:
        if names is None:
            return set()
        gone = self._seen.keys() - names.keys()
        return gone | {name for name, signature in names.items() if self._is_news(name, signature)}

    def _is_news(self, name: str, signature: _Signature) -> bool:
        seen = self._seen.get(name)
        return seen is None or not seen.settled or seen.signature != signature

    def _look(self, names: dict[str, _Signature] | None, unreadable: Unreadable, moving: set[str]) -> list[Item]:
        items: list[Item] = []
        if unreadable != self._unreadable:
            items.append(unreadable)
            self._unreadable = unreadable
        if names is None:
            return items
        for name in sorted(self._seen.keys() - names.keys() - moving):
            del self._seen[name]
            items.append(Gone(name))
        for name in sorted(names.keys() - moving):
            if self._is_news(name, names[name]):
                item = self._read(name, self._seen.get(name))
                if item is not None:
                    items.append(item)
        return items

    def _read(self, name: str, seen: _Seen | None) -> Item | None:
        """The file's new state; None when its bytes are what they were."""
        try:
            raw, signature = _bytes_of(self._folder / name)
        except FileNotFoundError:
            if seen is None:
                return None
            del self._seen[name]
            return Gone(name)
        except OSError as error:
            message = f"cannot be read: {error.strerror or error}"
            if seen is not None and seen.digest == message:
                return None
            self._seen[name] = _Seen((error.errno or 0,), message, settled=False)
            return Bad(name, message)
        digest = hashlib.sha256(raw).hexdigest()
        newest = max(signature[2], signature[3]) / 1e9
        self._seen[name] = _Seen(signature, digest, settled=time.time() - newest > QUIET_S)
        if seen is not None and seen.digest == digest:
            return None
        return read_policy(name, raw, digest)


def read_policy(name: str, raw: bytes, digest: str) -> Good | Bad:
    """One file's bytes as a policy, or what is wrong with them."""
    try:
        loaded = load(raw, name)
    except InvalidPolicy as error:
        return Bad(name, error.message, error.line, error.key, _project_in(raw), digest[:12])
    except Exception as error:  # noqa: BLE001 - one file must not keep all others from being read
        return Bad(name, f"an error of ours: {type(error).__name__}: {error}", 0, "", _project_in(raw), digest[:12])
    return Good(name, loaded.policy, loaded.text)


def is_policy_file(name: str) -> bool:
    """Top-level `*.yaml`, but no tests of policies and nothing hidden (editors' and Kubernetes' own files)."""
    return name.endswith(".yaml") and not name.endswith("_test.yaml") and not name.startswith(".")


def _project_in(raw: bytes) -> str | None:
    """The project that a broken file means to be, where one plain line says so: for people only."""
    for line in raw[:65536].split(b"\n"):
        if line.startswith(b"project:"):
            name = line.partition(b":")[2].split(b"#")[0].strip().strip(b"\"'").decode("ascii", "ignore")
            return name if name and is_name(name) else None
    return None


def _signature(status: os.stat_result) -> _Signature:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _long_ago(signature: _Signature | None) -> bool:
    """Last changed long enough ago by the file's own clock that nobody can be in the middle of it."""
    return signature is not None and len(signature) == 5 and time.time() - max(signature[2:4]) / 1e9 > _LONG_AGO_S


def _bytes_of(path: Path) -> tuple[bytes, _Signature]:
    """The file's bytes and the signature they had all along. OSError, also for what is no plain file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not stop the reader
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise OSError(0, "it is not a file")
        with open(descriptor, "rb", closefd=False) as file:
            raw = file.read(MAX_BYTES + 1)
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    # Changed while it was read: a signature that no file has makes the next scan read it again.
    return raw, _signature(after) if _signature(before) == _signature(after) else (0, 0, 0, 0, -1)


# ── the process ──


def frames(items: list[Item]) -> Iterator[bytes]:
    """One scan as frames of moderate size, so that whoever decodes them can do something else in between."""
    part: list[Item] = []
    size = 0
    for item in items:
        if size > FRAME_BYTES:
            yield _frame(Found(part, last=False))
            part, size = [], 0
        part.append(item)
        size += 2 * len(item.text) if isinstance(item, Good) else 200
    yield _frame(Found(part, last=True))


def _frame(found: Found) -> bytes:
    body = msgspec.msgpack.encode(found)
    return struct.pack(">I", len(body)) + body


def serve(folder: Path) -> None:
    """Writes frames to standard output until standard input ends. The first scan is always written, the rest if new."""
    out = os.dup(1)
    os.dup2(2, 1)  # whatever prints must not end up between frames
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it closes our input
    threading.Thread(target=_end_with_parent, daemon=True).start()
    reader = FolderReader(folder)
    first = True
    for _ in _signs(folder):
        items = reader.scan()
        if items or first:
            for frame in frames(items):
                _write(out, frame)
        first = False


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def _write(out: int, frame: bytes) -> None:
    rest = memoryview(frame)
    while rest:
        rest = rest[os.write(out, rest) :]


def _signs(folder: Path) -> Iterator[None]:
    """Yields at once, whenever something in the folder changes, and every RESCAN_S in any case."""
    from watchfiles import watch

    yield
    while True:
        watched = _inode(folder)
        try:
            for _ in watch(
                folder,
                watch_filter=None,
                debounce=50,
                step=10,
                rust_timeout=int(RESCAN_S * 1000),
                yield_on_timeout=True,
                recursive=False,
                raise_interrupt=False,
            ):
                yield
                if _inode(folder) != watched:
                    break  # another folder stands there now (a link was turned round): the kernel watches the old one
        except OSError:
            # Not there, or no watches left: then it is only looked at in turns.
            time.sleep(RESCAN_S)
            yield


def _inode(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
