"""`make bench`: every script of this folder, one after the other; what each prints goes to results/NAME.txt as well.

    .venv/bin/python bench/run.py [NAME …]        all of them, or these (without .py)

Each result begins with when and where it was measured. One at a time: they would measure each other. A script that fails
leaves the result of its last good run as it was, and makes the exit code 1.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def scripts() -> dict[str, Path]:
    """Name -> file of everything that can be run. What scripts share has no main and is none of them."""
    return {
        path.stem: path
        for path in sorted(HERE.glob("*.py"))
        if path != Path(__file__) and 'if __name__ == "__main__":' in path.read_text()
    }


def heading(name: str, took: float) -> str:
    """When and where."""
    cpu = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ":unknown CPU"
    )
    return (
        f"{name}: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, took {took:.0f} s; {os.cpu_count()} cores "
        f"({cpu.partition(':')[2].strip()}), Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}\n"
    )


def run(name: str, path: Path) -> bool:
    """Run one, show what it prints as it comes, keep it -> whether it ended well."""
    print(f"── {name}", flush=True)
    began, lines = time.monotonic(), []
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True, cwd=HERE.parent) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        print(f"{name} ended with {process.returncode}", file=sys.stderr)
        return False
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.txt").write_text(heading(name, time.monotonic() - began) + "\n" + "".join(lines))
    return True


def main() -> int:
    known = scripts()
    chosen = sys.argv[1:] or list(known)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        print(f"{unknown[0]!r} is none of {', '.join(known)}", file=sys.stderr)
        return 2
    good = [run(name, known[name]) for name in chosen]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
