"""The child processes of `banksman up`: started in order, watched, restarted, stopped in reverse, and never left behind.

Each child dies with its parent (child.py), also when that is killed with -9. Should one outlive it all the same, its pid
and start time stand in a run file, and the next `up` ends it before it starts its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import psutil

from banksman.errors import BadDeployment
from banksman.local import child as launcher

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

READY_WITHIN = 60.0
STOP_WITHIN = 10.0
FIRST_BACKOFF, LAST_BACKOFF, STEADY = 0.2, 10.0, 30.0


@dataclass(frozen=True)
class Child:
    """What to run. Secrets go into `env` or files, never into `argv`: everybody on the machine can read that.

    `ready` returns when the child answers; it is tried as long as the process lives, for at most `READY_WITHIN` seconds.
    """

    name: str
    argv: list[str]
    log: Path
    ready: Callable[[], Awaitable[None]]
    env: dict[str, str] = field(default_factory=dict, repr=False)


def spawn(argv: list[str], *, log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a program that dies with this process, in a session of its own, output appended to `log` (0600)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), *argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=env,
            start_new_session=True,  # Ctrl-C is for the parent, which then stops the children in order
        )


def last_lines(log: Path, count: int = 5) -> str:
    """The end of a log, for an error message."""
    with contextlib.suppress(FileNotFoundError), open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-count:])
    return ""


def claim_folder(data: Path) -> IO[str]:
    """Make `data` (0700) and hold it for this process; the returned file keeps the claim. BadDeployment: another has it."""
    data.mkdir(parents=True, exist_ok=True)
    data.chmod(0o700)
    file = open(data / "up.lock", "a+")  # noqa: SIM115 - it is kept open for as long as the claim holds
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise BadDeployment(f"{data} is in use by another `banksman up` (pid {holder})") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def reclaim(run: Path) -> list[str]:
    """End what an earlier `up` left running, by pid and start time -> the names of those that were."""
    left: list[tuple[str, psutil.Process]] = []
    for file in sorted(run.glob("*.json")):
        try:
            noted = json.loads(file.read_text())
            process = psutil.Process(noted["pid"])
            if process.create_time() == noted["started"]:  # else the pid is somebody else's by now
                left.append((file.stem, process))
        except (psutil.NoSuchProcess, ValueError, KeyError):
            pass
        file.unlink(missing_ok=True)
    processes = [process for _, process in left]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
            process.resume()  # one that was frozen would never see the signal
    _, alive = psutil.wait_procs(processes, timeout=STOP_WITHIN)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_WITHIN)
    return [name for name, _ in left]


def port_holder(port: int) -> str:
    """Who listens on a port of this machine, as far as we may know: "pid 12 (java)", or ""."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                return f"pid {connection.pid} ({psutil.Process(connection.pid).name()})" if connection.pid else ""
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return ""
    return ""


class Supervisor:
    """Keeps children running. `report(name, text)` is told when one comes, goes or is started again."""

    def __init__(self, run: Path, report: Callable[[str, str], None]) -> None:
        self._run, self._report = run, report
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        run.mkdir(parents=True, exist_ok=True)

    async def start(self, child: Child) -> None:
        """Start `child` and return when it is ready. BadDeployment, with the end of its log, when it does not get there."""
        self._spawn(child)
        await self._until_ready(child)
        self._watchers[child.name] = asyncio.create_task(self._watch(child), name=f"watch {child.name}")

    async def stop(self) -> None:
        """Stop all in reverse order: SIGTERM, then SIGKILL for who does not go."""
        for task in self._watchers.values():
            task.cancel()
        await asyncio.gather(*self._watchers.values(), return_exceptions=True)
        self._watchers.clear()
        for name in reversed(list(self._processes)):
            process = self._processes.pop(name)
            process.terminate()
            if not await _gone(process, STOP_WITHIN):
                self._report(name, f"did not stop within {STOP_WITHIN:g} s, killed")
                process.kill()
                await _gone(process, STOP_WITHIN)
            (self._run / f"{name}.json").unlink(missing_ok=True)

    def pid(self, name: str) -> int:
        """The process id of a child that was started."""
        return self._processes[name].pid

    def _spawn(self, child: Child) -> None:
        process = self._processes[child.name] = spawn(child.argv, log=child.log, env=child.env)
        note = self._run / f"{child.name}.json"
        note.write_text(json.dumps({"pid": process.pid, "started": psutil.Process(process.pid).create_time()}))

    async def _until_ready(self, child: Child) -> None:
        process = self._processes[child.name]
        ready = asyncio.ensure_future(child.ready())
        died = asyncio.ensure_future(_gone(process, READY_WITHIN))
        try:
            await asyncio.wait({ready, died}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
                return
            end = last_lines(child.log)
            code = process.poll()
            how = "is not ready" if code is None else f"ended with {code}"
            raise BadDeployment(f"{child.name} {how}; the end of {child.log}:\n{end}")
        finally:
            ready.cancel()
            died.cancel()
            await asyncio.gather(ready, died, return_exceptions=True)

    async def _watch(self, child: Child) -> None:
        backoff = FIRST_BACKOFF
        while True:
            since = time.monotonic()
            process = self._processes[child.name]
            while not await _gone(process, 3600):
                pass
            if time.monotonic() - since > STEADY:
                backoff = FIRST_BACKOFF
            died = time.monotonic()
            code = process.returncode
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            self._report(child.name, f"{how}; started again in {backoff:g} s")
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LAST_BACKOFF)
            self._spawn(child)
            try:
                await self._until_ready(child)
            except BadDeployment as error:
                self._report(child.name, str(error))
            else:
                self._report(child.name, f"is back after {time.monotonic() - died:.1f} s")


async def _gone(process: subprocess.Popen[bytes], within: float) -> bool:
    """Whether a process ended within some seconds. Polls: there is no other way without a thread or a signal handler."""
    until = time.monotonic() + within
    while process.poll() is None:
        if time.monotonic() >= until:
            return False
        await asyncio.sleep(0.02)
    return True
