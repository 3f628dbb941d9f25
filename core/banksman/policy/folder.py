"""The folder of policies: what is in force, what was rejected, and how one becomes the other without a restart.

A policy that does not load never replaces one that did. A file that went away means default deny. Two files for one
project are both rejected, and what was in force stays. Whatever changes, it changes by swapping one reference.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from typing import TYPE_CHECKING

import msgspec

from banksman.policy.compile import Bundle, CompiledPolicy
from banksman.policy.reader import Bad, FolderReader, Found, Gone, Good, Item, Unreadable
from banksman.stamps import rfc3339

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

_MOST_BACKOFF_S = 5.0


class InForce(msgspec.Struct, frozen=True):
    """A policy that was put in force; `text` is the whole normalised policy."""

    project: str
    policy_version: str
    file: str
    text: str


class Removed(msgspec.Struct, frozen=True):
    """A policy whose file went away: default deny for its project."""

    project: str
    policy_version: str


class Rejection(msgspec.Struct, frozen=True):
    """A file that does not load, or the folder itself. `line` 0 and `key` "": the file as a whole.

    `attempted`: the version that it would have been, or `sha256:12HEX` of its bytes. `at`: when it was seen (RFC 3339).
    """

    file: str
    message: str
    at: str
    line: int = 0
    key: str = ""
    project: str | None = None
    attempted: str | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


class Change(msgspec.Struct, frozen=True):
    """What one look at the folder changed. `rejections` are all that stand, `rejected` those that are new."""

    bundle: Bundle
    loaded: tuple[InForce, ...]
    removed: tuple[Removed, ...]
    rejected: tuple[Rejection, ...]
    rejections: tuple[Rejection, ...]


class Shelf:
    """The files as they were last read, and what follows from them. `apply` is the whole of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Good | Bad] = {}
        self._source: dict[str, str] = {}  # project -> the file that put its policy in force
        self._unreadable: str | None = None
        self.bundle = Bundle()
        self.rejections: tuple[Rejection, ...] = ()

    def apply(self, items: Sequence[Item], *, complete: bool = False) -> Change:
        """Takes what a scan found. `complete`: it is a reader's first, and names all there is; what it does not, is not."""
        if complete:
            self._unreadable = None
        if complete and not any(isinstance(item, Unreadable) and item.error and not item.missing for item in items):
            self._files.clear()
        for item in items:
            match item:
                case Good() | Bad():
                    self._files[item.file] = item
                case Gone():
                    self._files.pop(item.file, None)
                case Unreadable():
                    self._unreadable = item.error
        return self._settle()

    def fail(self, error: str) -> Change:
        """Nobody reads the folder at the moment; what is in force stays."""
        self._unreadable = error
        return self._settle()

    def _settle(self) -> Change:
        before = self.bundle.policies
        claims: dict[str, list[Good]] = {}
        for item in self._files.values():
            if isinstance(item, Good):
                claims.setdefault(item.policy.project, []).append(item)
        policies: dict[str, CompiledPolicy] = {}
        loaded: list[InForce] = []
        wrong = [self._rejection(item) for item in self._files.values() if isinstance(item, Bad)]
        for project, source in self._source.items():
            # Broken now, but it is still this project's file.
            if isinstance(self._files.get(source), Bad):
                policies[project] = before[project]
        for project, files in claims.items():
            others = {file.file for file in files} | ({self._source[project]} if project in policies else set())
            if len(others) > 1:
                wrong += [_duplicate(file, others) for file in files]
                if project in before:
                    policies[project] = before[project]
                continue
            (file,) = files
            self._source[project] = file.file
            current = before.get(project)
            if current is not None and current.policy.version == file.policy.version:
                policies[project] = current
            else:
                policies[project] = CompiledPolicy(file.policy)
                loaded.append(InForce(project, file.policy.version, file.file, file.text))
        removed = [Removed(name, old.policy.version) for name, old in before.items() if name not in policies]
        self._source = {project: file for project, file in self._source.items() if project in policies}
        if self._unreadable is not None:
            wrong.append(Rejection(str(self._folder), self._unreadable, rfc3339()))
        self.bundle = Bundle(policies)
        return self._change(loaded, removed, wrong)

    def _change(self, loaded: list[InForce], removed: list[Removed], wrong: list[Rejection]) -> Change:
        known = {msgspec.structs.replace(old, at=""): old for old in self.rejections}
        standing, new = [], []
        for rejection in sorted(wrong, key=lambda one: one.file):
            old = known.get(msgspec.structs.replace(rejection, at=""))
            standing.append(old or rejection)
            if old is None:
                new.append(rejection)
        self.rejections = tuple(standing)
        return Change(
            self.bundle,
            tuple(sorted(loaded, key=lambda one: one.project)),
            tuple(sorted(removed, key=lambda one: one.project)),
            tuple(new),
            self.rejections,
        )

    @staticmethod
    def _rejection(bad: Bad) -> Rejection:
        attempted = f"sha256:{bad.attempt}" if bad.attempt else None
        return Rejection(bad.file, bad.error, rfc3339(), bad.line, bad.key, bad.project, attempted)


def _duplicate(file: Good, files: set[str]) -> Rejection:
    others = ", ".join(sorted(files - {file.file}))
    return Rejection(
        file.file,
        f"project {file.policy.project} is also in {others}: none of them is put in force",
        rfc3339(),
        key="project",
        project=file.policy.project,
        attempted=file.policy.version,
    )


def load_folder(folder: Path) -> tuple[Bundle, tuple[Rejection, ...]]:
    """Reads a folder once, in this process. Never raises for what stands in it: that is in the rejections."""
    change = Shelf(folder).apply(FolderReader(folder).scan(), complete=True)
    return change.bundle, change.rejections


class PolicyFolder:
    """A watched folder. `bundle` is what is in force; read it anew for every decision."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shelf = Shelf(folder)

    @property
    def bundle(self) -> Bundle:
        return self._shelf.bundle

    @property
    def rejections(self) -> tuple[Rejection, ...]:
        """Every file that does not load at the moment."""
        return self._shelf.rejections

    async def watch(self, on_change: Callable[[Change], Awaitable[None]]) -> None:
        """Watches until cancelled. `on_change` is called after the first look, whatever it found, and then after every
        change, when it is already in force; the next change waits for it. What it raises ends the watching.

        The files are read in a child process. When that dies it is started again, and everything stays in force.
        """
        backoff = 0.1
        while True:
            async with _child(self.folder) as output:
                first = True
                async for items in _scans(output):
                    change = self._shelf.apply(items, complete=first)
                    first, backoff = False, 0.1
                    await on_change(change)
            await on_change(self._shelf.fail("the process that reads policies ended; it is started again"))
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, _MOST_BACKOFF_S)


class _child:  # noqa: N801 - used as a function: `async with _child(folder) as output`
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def __aenter__(self) -> asyncio.StreamReader:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "banksman.policy.reader", str(self._folder),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 20,
        )  # fmt: skip
        assert self._process.stdout is not None
        return self._process.stdout

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.kill()  # it keeps nothing
        await self._process.wait()


async def _scans(output: asyncio.StreamReader) -> AsyncIterator[list[Item]]:
    """Whole scans, until the child's output ends. Other tasks get their turn between two frames."""
    decode = msgspec.msgpack.Decoder(Found).decode
    items: list[Item] = []
    while True:
        try:
            (length,) = struct.unpack(">I", await output.readexactly(4))
            found = decode(await output.readexactly(length))
        except asyncio.IncompleteReadError:
            return
        items += found.items
        if found.last:
            yield items
            items = []
        await asyncio.sleep(0)
