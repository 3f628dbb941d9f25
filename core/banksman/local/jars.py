"""Kafka's jars: every line of kafka.lock, fetched from Maven by jgo and checked against its SHA-256.

kafka.lock is `mvn dependency:copy-dependencies -DincludeScope=runtime` on kafka-pom.xml, a line (coordinate, SHA-256) a jar.
Not jgo's own resolver: given the top coordinate it chose kafka-clients 3.9.1 beside the 4.3.1 server.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from banksman.errors import BadDeployment
from banksman.local import children

if TYPE_CHECKING:
    from collections.abc import Callable

KAFKA = "4.3.1"
SCRATCH = ".fetch-"
LEFT_BEHIND_S = 24 * 3600


def locked() -> dict[str, tuple[str, str]]:
    """-> {jar file name: (coordinate, SHA-256 in hex)}."""
    lines = resources.files(__package__).joinpath("kafka.lock").read_text().splitlines()
    jars = {}
    for line in lines:
        coordinate, digest = line.split()
        _, artifact, version = coordinate.split(":")
        jars[f"{artifact}-{version}.jar"] = (coordinate, digest.removeprefix("sha256:"))
    return jars


def cache_folder(chosen: str = "") -> Path:
    """Where the jars are kept, for all data folders of this user: the setting, else XDG's cache."""
    root = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "banksman"
    return root.expanduser() / f"kafka-{KAFKA}"


def fetch(
    folder: Path, *, mirror: str = "", progress: Callable[[int, int], None] | None = None, threads: int = 8
) -> Path:
    """Put all locked jars into `folder` (what is there is checked) -> `folder`.

    A jar appears under its name only when it is whole and its digest is right, so a fetch that was cut off, or two at once,
    hurt nobody. BadDeployment: a download failed, a digest is wrong, the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        jars = locked()
        missing = {name: lock for name, lock in jars.items() if not _is_right(folder / name, lock[1])}
        done = len(jars) - len(missing)
        if progress:
            progress(done, len(jars))
        if missing:
            _sweep(folder)
            with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
                pool = concurrent.futures.ThreadPoolExecutor(threads)
                with pool:
                    for future in concurrent.futures.as_completed(
                        [
                            pool.submit(_fetch, name, lock, folder, Path(scratch), mirror)
                            for name, lock in missing.items()
                        ]
                    ):
                        try:
                            future.result()
                        except BaseException:
                            pool.shutdown(cancel_futures=True)
                            raise
                        done += 1
                        if progress:
                            progress(done, len(jars))
    except OSError as error:
        why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        raise BadDeployment(f"Kafka's jars cannot be kept in {folder}: {why}") from None
    return folder


async def fetch_apart(folder: Path, *, mirror: str = "", progress: Callable[[int, int], None] | None = None) -> Path:
    """`fetch` in a process of its own: whoever is cancelled must not wait for a network that does not answer."""
    process = await children.spawn_piped(
        [sys.executable, "-P", "-m", "banksman.local.jars", str(folder)],
        env={**os.environ, "BANKSMAN_MAVEN_MIRROR": mirror},  # it may hold a password, so it is no argument
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.ensure_future(process.stderr.read())
    try:
        async for line in process.stdout:
            done, total = map(int, line.split())
            if progress:
                progress(done, total)
        said = (await errors).decode("utf-8", "replace").strip()
        if await process.wait():
            raise BadDeployment(said.splitlines()[-1] if said else "Kafka's jars could not be fetched")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        errors.cancel()
        await asyncio.gather(errors, return_exceptions=True)
    return folder


def main() -> int:
    """`python -m banksman.local.jars FOLDER`: fetch; a line `done total` a jar."""
    try:
        mirror = os.environ.get("BANKSMAN_MAVEN_MIRROR", "")
        fetch(Path(sys.argv[1]), mirror=mirror, progress=lambda done, total: print(done, total, flush=True))
    except BadDeployment as error:
        print(error, file=sys.stderr)
        return 4
    return 0


def class_path(folder: Path) -> str:
    """What the JVM gets: the locked files by name, so that nothing else in the folder is ever loaded."""
    if os.pathsep in str(folder):
        raise BadDeployment(f"{folder}: Java cannot load files under a path with {os.pathsep!r}; set BANKSMAN_CACHE")
    return os.pathsep.join(str(folder / name) for name in locked())


def _sweep(folder: Path) -> None:
    """Remove what fetches that were killed left behind; a day later nobody can still be at it."""
    for left in folder.glob(f"{SCRATCH}*"):
        if time.time() - left.stat().st_mtime > LEFT_BEHIND_S:
            shutil.rmtree(left, ignore_errors=True)


def _is_right(jar: Path, digest: str) -> bool:
    try:
        return hashlib.sha256(jar.read_bytes()).hexdigest() == digest
    except FileNotFoundError:
        return False


def _fetch(name: str, lock: tuple[str, str], folder: Path, scratch: Path, mirror: str) -> None:
    try:
        from jgo import MavenContext  # type: ignore[attr-defined]  # it is, by a lazy __getattr__
    except ImportError:
        raise BadDeployment("Kafka's jars are fetched by jgo: pip install 'banksman[local]'") from None
    coordinate, digest = lock
    group, artifact, version = coordinate.split(":")
    remotes = {"mirror": mirror} if mirror else None
    maven = MavenContext(repo_cache=scratch / artifact, remote_repos=remotes, timeout=30)
    try:
        got = Path(maven.project(group, artifact).at_version(version).artifact(packaging="jar").resolve())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _not_fetched(coordinate, error) from None
    except Exception as error:  # noqa: BLE001 - jgo has no error tree of its own; whatever it is, the jar is not here
        raise _not_fetched(coordinate, error) from None
    found = hashlib.sha256(got.read_bytes()).hexdigest()
    if found != digest:
        raise BadDeployment(f"{coordinate} is not the file that was locked: SHA-256 {found}, not {digest}")
    whole = scratch / name
    shutil.move(got, whole)
    whole.replace(folder / name)


def _not_fetched(coordinate: str, error: Exception) -> BadDeployment:
    text = re.sub(r"://[^/@\s]*@", "://…@", str(error))  # the address of a mirror may hold a password
    return BadDeployment(
        f"{coordinate} could not be fetched: {type(error).__name__}: {text} "
        "(BANKSMAN_MAVEN_MIRROR names another place to fetch from, BANKSMAN_CACHE a folder that has them)"
    )


if __name__ == "__main__":
    sys.exit(main())
