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
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psutil

from banksman.errors import BadDeployment, BanksmanError
from banksman.local import child as launcher

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

READY_WITHIN = 60.0
STOP_WITHIN = 10.0
FIRST_BACKOFF, LAST_BACKOFF, STEADY = 0.2, 10.0, 30.0
LOG_BYTES, LOOK_AT_LOGS = 16 << 20, 30.0


@dataclass(frozen=True)
class Child:
    """What to run. Secrets go into `env` or files, never into `argv`: everybody on the machine can read that.

    `ready` returns when the child answers; it is tried as long as the process lives, for at most `READY_WITHIN` seconds.
    `more`: where else it says what it does; named in the error when `log` holds nothing.
    """

    name: str
    argv: list[str]
    log: Path
    ready: Callable[[], Awaitable[None]]
    env: dict[str, str] = field(default_factory=dict, repr=False)
    more: Path | None = None


def spawn(argv: list[str], *, log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a program that dies with this process, in a session of its own, output appended to `log`.

    The log and every file that the program makes are for this user alone (umask 077).

    Only from the main thread: the children of another thread would be killed when that thread ends (child.py).
    """
    command = _launched(argv)
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
        return subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=env,
            umask=0o077,
            start_new_session=True,  # Ctrl-C is for the parent, which then stops the children in order
        )


async def spawn_piped(
    argv: list[str], *, env: dict[str, str], stderr: int | IO[bytes], stdin: int = asyncio.subprocess.DEVNULL
) -> asyncio.subprocess.Process:
    """The same for a program that reports on stdout, line by line, and ends by itself. From the main thread only."""
    return await asyncio.create_subprocess_exec(
        *_launched(argv), env=env, umask=0o077, start_new_session=True,
        stdin=stdin, stdout=asyncio.subprocess.PIPE, stderr=stderr,
    )  # fmt: skip


def _launched(argv: list[str]) -> list[str]:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children are started from the main thread: they die with the thread that starts them")
    return [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), *argv]


def last_lines(log: Path, count: int = 5, *, since: int = 0) -> str:
    """The end of a log, for an error message: at most 8 KiB of what was written after its first `since` bytes."""
    with contextlib.suppress(FileNotFoundError), open(log, "rb") as file:
        size = log.stat().st_size
        file.seek(max(since if since <= size else 0, size - 8192))  # it may have been cut to nothing meanwhile
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-count:])
    return ""


def bound_log(log: Path, limit: int = LOG_BYTES) -> bool:
    """Copy a log beyond `limit` bytes to `log`.1 and cut it to nothing -> whether it was so large.

    The child goes on writing: its file is open for appending, so that the next line is the first. What it writes between the
    copy and the cut, some microseconds, is lost: this is a log, the record is in Kafka.
    """
    if not log.exists() or log.stat().st_size <= limit:
        return False
    older = log.with_name(log.name + ".1")
    with open(log, "r+b") as now, open(os.open(older, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as before:
        shutil.copyfileobj(now, before)
        now.truncate(0)
    return True


def claim_folder(data: Path) -> IO[str]:
    """Make `data` (0700) and hold it for this process; the returned file keeps the claim. BadDeployment: another has it."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    data.chmod(0o700)
    # it is kept open for as long as the claim holds
    file = os.fdopen(os.open(data / "up.lock", os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "a+")
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


def started(pid: int) -> str:
    """When a process started, as something that no other process with this pid ever has: boot id and clock ticks since.

    Not the time of day, which a correction of the clock moves for processes that are already running. "" when it is gone:
    also one that nobody reaps, as in a container whose first process does not, has ended.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    if after_name[0] in ("Z", "X"):
        return ""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{after_name[19]}"


def reclaim(run: Path, *, within: float = STOP_WITHIN) -> list[str]:
    """End what an earlier `up` left running, by pid and start time -> the names of those that were.

    SIGTERM, `within` seconds, SIGKILL. BadDeployment: one would not even go then.
    """
    left: list[tuple[str, psutil.Process]] = []
    for file in sorted(run.glob("*.json")):
        try:
            noted = json.loads(file.read_text())
            process = psutil.Process(noted["pid"])
            if noted["started"] and started(process.pid) == noted["started"]:  # else the pid is somebody else's by now
                left.append((file.stem, process))
        except (psutil.NoSuchProcess, ValueError, KeyError):
            continue
    processes = [process for _, process in left]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
            process.resume()  # one that was frozen would never see the signal
    psutil.wait_procs(processes, timeout=within)
    for process in processes:
        _end_group(process.pid)
    _, alive = psutil.wait_procs(processes, timeout=within)
    if alive:
        raise BadDeployment(f"left by an earlier `banksman up`, and cannot be ended: pid {alive[0].pid}")
    for file in run.glob("*.json"):
        file.unlink()
    return [name for name, _ in left]


def port_holder(port: int) -> str:
    """Who listens on a port of this machine, as far as we may know: "pid 12 (java)", or ""."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                return _called(psutil.Process(connection.pid)) if connection.pid else ""
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return ""
    return ""


def _called(process: psutil.Process) -> str:
    """A process by its name, one of ours by its module; never by its arguments, which may hold a stranger's secret."""
    with contextlib.suppress(psutil.AccessDenied):
        ours = [word for word in process.cmdline() if re.fullmatch(r"banksman\.[a-z.]+", word) or word == "kafka.Kafka"]
        if ours:
            return f"pid {process.pid} ({ours[0]}, of another `banksman up`?)"
    return f"pid {process.pid} ({process.name()})"


class Supervisor:
    """Keeps children running. `report(name, text)` is told when one ends, is back, or cannot be started again.

    One that ended is started again after 0.2 s, then after twice as long each time, at most 10 s; 30 s of life make that
    0.2 s again. Lives in the main thread's event loop.
    """

    def __init__(
        self,
        run: Path,
        report: Callable[[str, str], None],
        *,
        ready_within: float = READY_WITHIN,
        stop_within: float = STOP_WITHIN,
    ) -> None:
        self._run, self._report = run, report
        self._ready_within, self._stop_within = ready_within, stop_within
        self._log_before: dict[str, int] = {}
        self._logs: set[Path] = set()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._hurry = asyncio.Event()
        self._bounding: asyncio.Task[None] | None = None
        run.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def start(self, child: Child) -> None:
        """Start `child` and return when it is ready. BadDeployment, with the end of its log, when it does not get there."""
        self._spawn(child)
        await self._until_ready(child)
        self._watchers[child.name] = asyncio.create_task(self._watch(child), name=f"watch {child.name}")
        self._logs.add(child.log)
        if self._bounding is None:
            self._bounding = asyncio.create_task(self._bound_logs(), name="bound logs")

    async def stop(self) -> None:
        """Stop all in reverse order: SIGTERM, then SIGKILL for who does not go. May be called again."""
        tasks = [*self._watchers.values(), *([self._bounding] if self._bounding else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._watchers.clear()
        self._bounding = None
        for name in reversed(list(self._processes)):
            process = self._processes.pop(name)
            process.terminate()
            if not await self._stopped(process) and not self._hurry.is_set():
                self._report(name, f"did not stop within {self._stop_within:g} s, killed")
            _end_group(process.pid)
            await _gone(process, self._stop_within)
            (self._run / f"{name}.json").unlink(missing_ok=True)

    def hurry(self) -> None:
        """Do not wait for anybody any more: who has not stopped yet is killed."""
        self._hurry.set()

    async def _stopped(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether it went by itself, in time and before `hurry`."""
        going = asyncio.ensure_future(_gone(process, self._stop_within))
        hurry = asyncio.ensure_future(self._hurry.wait())
        try:
            await asyncio.wait({going, hurry}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            going.cancel()
            hurry.cancel()
            await asyncio.gather(going, hurry, return_exceptions=True)
        return process.poll() is not None

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(LOOK_AT_LOGS)
            for log in self._logs:
                try:
                    bound_log(log)
                except OSError as error:  # a full disk: the child's own log is what is left of it
                    self._report(log.stem, f"{log} cannot be kept short: {error}")

    def pid(self, name: str) -> int:
        """The process id of a child that was started."""
        return self._processes[name].pid

    def _spawn(self, child: Child) -> None:
        self._log_before[child.name] = child.log.stat().st_size if child.log.exists() else 0
        process = self._processes[child.name] = spawn(child.argv, log=child.log, env=child.env)
        note = self._run / f"{child.name}.json"
        whole = note.with_suffix(".new")
        with open(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"pid": process.pid, "started": started(process.pid)}, file)
        whole.replace(note)

    async def _until_ready(self, child: Child) -> None:
        process = self._processes[child.name]
        ready = asyncio.ensure_future(child.ready())
        died = asyncio.ensure_future(_gone(process, self._ready_within))
        try:
            await asyncio.wait({ready, died}, return_when=asyncio.FIRST_COMPLETED)
            how = f"is not ready after {self._ready_within:g} s"
            if ready.done():
                try:
                    ready.result()
                except (BanksmanError, OSError) as error:
                    how = f"is not ready: {error}"
                else:
                    return
            if process.poll() is not None:
                how = _ending(process.returncode)
            end = last_lines(child.log, since=self._log_before[child.name])
            said = f"the end of {child.log}:\n{end}" if end else f"see {child.more or child.log}"
            raise BadDeployment(f"{child.name} {how}; {said}")
        finally:
            ready.cancel()
            died.cancel()
            await asyncio.gather(ready, died, return_exceptions=True)

    async def _watch(self, child: Child) -> None:
        backoff = FIRST_BACKOFF
        while True:
            since = time.monotonic()
            process = self._processes[child.name]
            await _gone(process)
            _end_group(process.pid)  # what it started must not hold its ports
            if time.monotonic() - since > STEADY:
                backoff = FIRST_BACKOFF
            died = time.monotonic()
            self._report(child.name, f"{_ending(process.returncode)}; started again in {backoff:g} s")
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, LAST_BACKOFF)
            try:
                self._spawn(child)
                await self._until_ready(child)
            except Exception as error:  # noqa: BLE001 - whatever it is (no memory to fork, a full disk), it is told and tried again
                self._report(child.name, str(error) or type(error).__name__)
            else:
                self._report(child.name, f"is back after {time.monotonic() - died:.1f} s")


def _ending(code: int) -> str:
    return f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with {code}"


def _end_group(leader: int) -> None:
    """SIGKILL for a child and whatever it started; nothing when all are gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


async def _gone(process: subprocess.Popen[bytes], within: float | None = None) -> bool:
    """Whether a process ended, within some seconds. The kernel tells (pidfd, Linux 5.3): idle children cost nothing."""
    if process.poll() is None:
        loop, watched = asyncio.get_running_loop(), os.pidfd_open(process.pid)
        ended = asyncio.Event()
        loop.add_reader(watched, ended.set)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), within)
        finally:
            loop.remove_reader(watched)
            os.close(watched)
    return process.poll() is not None
