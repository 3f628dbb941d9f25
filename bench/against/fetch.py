"""What banksman is measured against: pinned, fetched by its own client into a folder outside of the project.

Nothing of it is a dependency of banksman: a peer that cannot be had is a Missing, and its row says why it is not there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PYPI = {
    "agent-governance-toolkit": ("agent-governance-toolkit-core[server]", "5.0.0"),
    "cedarpy": ("cedarpy", "4.12.2"),
    "pycasbin": ("pycasbin", "2.8.0"),
    "quixstreams": ("quixstreams", "3.28.1"),
}
OPA = ("github.com/open-policy-agent/opa", "v1.4.2")
FETCH_S = 900
"""OPA is compiled: minutes on two cores."""


class Missing(Exception):
    """A peer cannot be had here. The text says why."""


def folder() -> Path:
    """Where peers are kept between runs: BANKSMAN_BENCH_PEERS, else the user's cache."""
    chosen = os.environ.get("BANKSMAN_BENCH_PEERS")
    return Path(chosen) if chosen else Path.home() / ".cache" / "banksman-bench"


def named(peer: str) -> str:
    """The peer with its version, as a row shows it."""
    return f"OPA {OPA[1]}" if peer == "opa" else f"{peer} {PYPI[peer][1]}"


def packages(peer: str) -> Path:
    """The folder that holds a peer of PyPI and what it needs, for the path of a process of its own."""
    requirement, version = PYPI[peer]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--root-user-action=ignore"]
    there = folder() / f"{peer}-{version}-py{sys.version_info.major}.{sys.version_info.minor}"
    return _made(peer, there, lambda new: ([*pip, "--target", str(new), f"{requirement}=={version}"], {}))


def opa() -> Path:
    """The program, built by Go."""
    module, version = OPA
    go, there = shutil.which("go"), folder() / f"opa-{version}"
    if go is None and not there.exists():
        raise Missing("OPA is built with Go, which is not installed")
    return _made("OPA", there, lambda new: ([str(go), "install", f"{module}@{version}"], {"GOBIN": str(new)})) / "opa"


def _made(peer: str, there: Path, made_by: Callable[[Path], tuple[list[str], dict[str, str]]]) -> Path:
    """The folder, fetched when it is not there yet; it is there whole or not at all."""
    if there.exists():
        return there
    print(f"fetching {peer} into {there.parent}, once", file=sys.stderr, flush=True)
    new = there.with_name(f"{there.name}.{os.getpid()}")
    new.mkdir(parents=True)
    command, more = made_by(new)
    try:
        done = subprocess.run(command, env=dict(os.environ) | more, capture_output=True, text=True, timeout=FETCH_S)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise Missing(f"{peer} cannot be fetched: {said[-1] if said else done.returncode}")
        new.rename(there)
    except subprocess.TimeoutExpired:
        raise Missing(f"{peer} was not there after {FETCH_S} s") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return there
