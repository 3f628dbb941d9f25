"""The demo's processes: five agents with credentials of their own, and `banksman replay` beside them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from banksman.cli.client import Problem
from banksman.cli.demo.count import Expected
from banksman.cli.demo.scripts import SCRIPTS
from banksman.cli.folder import write_secret
from banksman.errors import BadDeployment
from banksman.local import children

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from banksman.cli.client import Client
    from banksman.cli.folder import Folder


def enrol(enforcer: Client, folder: Folder) -> dict[str, Path]:
    """Name -> the file (0600) with an agent's credential. Who was enrolled by an earlier demo gets a new one."""
    credentials = folder.root / "credentials"
    credentials.mkdir(exist_ok=True, mode=0o700)
    files = {}
    for name, script in SCRIPTS.items():
        try:
            answer = enforcer.post("/v1/agents", {"agent": name, "project": script.project, "owner": script.owner})
        except Problem as problem:
            if problem.status != 409:
                raise
            answer = enforcer.post(f"/v1/agents/{name}/rotate")
        files[name] = credentials / name
        write_secret(files[name], answer["token"])
    return files


async def act(
    name: str, credential: Path, folder: Folder, waits: Callable[[str, str, str, str], Awaitable[None]]
) -> Expected:
    """Run one agent to its end -> what it left behind. `waits(agent, session, for, which)` is awaited while it waits: until the
    call that it holds open was seen (`held`), its approval answered (`asked`), its session killed (`killed`).

    BadDeployment: it did not end well, with what it said.
    """
    environment = {
        **os.environ,
        "BANKSMAN_TOKEN_FILE": str(credential),
        "BANKSMAN_SPOOL": str(folder.root / "spool"),
    }
    expected, session = Expected(), ""
    with _log(folder, name) as log:
        argv = [sys.executable, "-P", "-m", "banksman.cli.demo.agents", name]
        process = await children.spawn_piped(argv, env=environment, stderr=log, stdin=asyncio.subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            async for line in process.stdout:
                told: dict[str, str] = json.loads(line)
                if "session" in told:
                    session = told["session"]
                    expected.sessions.add(session)
                elif "record" in told:
                    expected.records.add(told["record"])
                else:
                    ((what, which),) = told.items()
                    await waits(name, session, what, which)
                    process.stdin.write(b"so it is\n")
            await _ended(process, name, folder)
        finally:
            await _end(process)
    return expected


async def replay(file: Path, speed: float, folder: Folder) -> dict[str, Any]:
    """`banksman replay FILE --json` -> its summary. BadDeployment: it did not end well."""
    argv = [sys.executable, "-P", "-m", "banksman.cli.main", "replay", str(file), "--speed", f"{speed:g}", "--json"]
    with _log(folder, "replay") as log:
        process = await children.spawn_piped(argv, env=dict(os.environ), stderr=log)
        try:
            assert process.stdout is not None
            said = await process.stdout.read()
            await _ended(process, "replay", folder)
        finally:
            await _end(process)
    summary: dict[str, Any] = json.loads(said)
    return summary


def _log(folder: Folder, name: str) -> Any:
    return open(os.open(_log_file(folder, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _log_file(folder: Folder, name: str) -> Path:
    return folder.logs / f"demo-{name}.log"


async def _ended(process: asyncio.subprocess.Process, name: str, folder: Folder) -> None:
    if code := await process.wait():
        log = _log_file(folder, name)
        raise BadDeployment(f"{name} ended with {code}; the end of {log}:\n{children.last_lines(log)}")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Whoever is cancelled leaves nobody behind."""
    if process.returncode is None:
        process.kill()
        await process.wait()
