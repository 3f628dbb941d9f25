"""How `up` knows that a child is ready: it answers over HTTP, or it says so in its log."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

POLL_S = 0.05


def answering(host: str, port: int, path: str, *, tls: bool = False) -> Callable[[], Awaitable[None]]:
    """A `ready` that returns when a GET of `path` is answered with 200; with TLS, when the port takes a connection."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - who listens everywhere is asked here

    async def ready() -> None:
        while not await _ok(host, port, "" if tls else path):  # noqa: ASYNC110 - another process cannot set an event
            await asyncio.sleep(POLL_S)

    return ready


def saying(log: Path, line: bytes) -> Callable[[], Awaitable[None]]:
    """A `ready` for a child that listens nowhere: it returns when `line` has been added to its log."""
    read = log.stat().st_size if log.exists() else 0

    def said() -> bool:
        nonlocal read
        if not log.exists():
            return False
        with open(log, "rb") as file:
            size = file.seek(0, 2)
            file.seek(min(read, size))  # the log may have been cut to nothing
            found = line + b"\n" in file.read()
            read = file.tell() if found else min(read, size)
        return found

    async def ready() -> None:
        while not said():  # noqa: ASYNC110 - another process cannot set an event of ours
            await asyncio.sleep(POLL_S)

    return ready


async def _ok(host: str, port: int, path: str) -> bool:
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    try:
        if path:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n".encode())
            return b" 200 " in await asyncio.wait_for(reader.readline(), 5)
    except (OSError, TimeoutError):
        return False
    else:
        return True
    finally:
        writer.close()
