"""How `up` knows that a child is ready: it answers over HTTP, or it says so in its log."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from banksman.errors import Unavailable
from banksman.local.children import READY_WITHIN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

POLL_S = 0.05


def answering(host: str, port: int, path: str, *, tls: bool = False) -> Callable[[], Awaitable[None]]:
    """A `ready` that returns when a GET of `path` is answered with 200; with TLS, when the port takes a connection.

    Unavailable shortly before a child's time is over: what it answered last.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - who listens everywhere is asked here

    async def ready() -> None:
        until, said = time.monotonic() + READY_WITHIN - 1, "nobody listens"
        while time.monotonic() < until:
            said = await _ask(host, port, "" if tls else path)
            if not said:
                return
            await asyncio.sleep(POLL_S)
        raise Unavailable(f"http://{host}:{port}{path}: {said}")

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


async def _ask(host: str, port: int, path: str) -> str:
    """Why it is not ready; nothing when it is."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        return error.strerror or str(error)
    try:
        if not path:
            return ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).decode("utf-8", "replace").partition("\r\n\r\n")
        status = head.partition("\r\n")[0]
        return "" if " 200 " in status else f"{status} {body}".strip() or "no answer"
    except (OSError, TimeoutError) as error:
        return str(error) or "no answer"
    finally:
        writer.close()
