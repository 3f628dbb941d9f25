"""The load of the HTTP benches: bursts on one core from wrk where it is installed, else from a generator of our own, which is
slower and takes more of the core that it shares with the broker.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

SERVER_CORE, OTHER_CORE = 0, 1


@dataclass
class Burst:
    """What one burst saw. `count`: answers; `cpu_us`: of the server, for each."""

    count: int
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


def pinned(argv: list[str], core: int, **more: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["taskset", "-c", str(core), *argv], **more)  # type: ignore[call-overload,no-any-return]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def generator() -> str:
    return "wrk" if shutil.which("wrk") else "our own generator"


def burst(url: str, headers: dict[str, str], body: bytes, connections: int, seconds: float, pid: int) -> Burst:
    before = cpu_seconds(pid)
    if shutil.which("wrk"):
        count, rate, p50, p99 = _wrk(url, headers, body, connections, seconds)
    else:
        free = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {OTHER_CORE})
        try:
            count, rate, p50, p99 = asyncio.run(_own(url, headers, body, connections, seconds))
        finally:
            os.sched_setaffinity(0, free)
    return Burst(count, rate, p50, p99, (cpu_seconds(pid) - before) / count * 1e6)


def _wrk(
    url: str, headers: dict[str, str], body: bytes, connections: int, seconds: float
) -> tuple[int, float, float, float]:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method = 'POST'\nwrk.body = {json.dumps(body.decode())}\n")
        script.writelines(f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}\n" for k, v in headers.items())
        script.write(
            "done = function(s, l) io.write(string.format('RESULT %d %d %d %d %d\\n', s.requests, s.duration,"
            " l:percentile(50), l:percentile(99), s.errors.status + s.errors.connect + s.errors.read + s.errors.timeout))"
            " end\n"
        )
        script.flush()
        argv = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", script.name, url]
        out = subprocess.run(
            ["taskset", "-c", str(OTHER_CORE), *argv], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+)", out)
    assert found, out
    count, duration, p50, p99, errors = map(int, found.groups())
    assert errors == 0, f"{errors} of {count} answers were errors: {out}"
    return count, count / (duration / 1e6), p50 / 1000, p99 / 1000


class _Asker(asyncio.Protocol):
    def __init__(self, request: bytes, took: list[float], until: float, done: asyncio.Future[None]) -> None:
        self._request, self._took, self._until, self._done = request, took, until, done
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found or len(rest) < int(re.search(rb"(?i)content-length: (\d+)", head)[1]):  # type: ignore[index]
            return
        assert head.startswith(b"HTTP/1.1 200"), self._buffer
        self._buffer = b""
        now = time.perf_counter()
        self._took.append(now - self._at)
        if now < self._until:
            self._ask()
        else:
            self._transport.close()
            self._done.set_result(None)


async def _own(
    url: str, headers: dict[str, str], body: bytes, connections: int, seconds: float
) -> tuple[int, float, float, float]:
    where = urlsplit(url)
    lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    head = f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    loop, took = asyncio.get_running_loop(), list[float]()
    began = time.perf_counter()
    ended = [loop.create_future() for _ in range(connections)]
    for done in ended:
        asker = functools.partial(_Asker, head.encode() + body, took, began + seconds, done)
        await loop.create_connection(asker, str(where.hostname), where.port or 80)
    await asyncio.gather(*ended)
    took.sort()
    return (
        len(took),
        len(took) / (time.perf_counter() - began),
        took[len(took) // 2] * 1e3,
        took[len(took) * 99 // 100] * 1e3,
    )


async def spread(
    urls: Sequence[str], headers: dict[str, str], body: bytes, connections: int, seconds: float
) -> tuple[int, float, float, float]:
    """The connections dealt out to several servers -> (answers, answers a second, p50 ms of the slowest, its p99 ms)."""
    several = [_own(url, headers, body, connections // len(urls), seconds) for url in urls]
    counts, rates, p50s, p99s = zip(*await asyncio.gather(*several), strict=True)
    return sum(counts), sum(rates), max(p50s), max(p99s)
