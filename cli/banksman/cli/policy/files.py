"""The policy files, and the test files, that a command is about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from banksman import settings
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

TESTS = "_test.yaml"


def argument(parser: argparse.ArgumentParser, what: str) -> None:
    """`PATH …`."""
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help=f"{what}, or folders of them (default: BANKSMAN_POLICIES)"
    )


def found(paths: Sequence[str], *, tests: bool = False) -> list[Path]:
    """Files as they are given; of folders, the top level as the enforcer reads it. InvalidInput: there is none."""
    several: list[Path] = []
    for path in map(Path, paths or [settings.load(settings.Enforcer).policies]):
        if path.is_dir():
            several += sorted(
                one for one in path.glob("*.yaml") if one.name.endswith(TESTS) is tests and not one.name.startswith(".")
            )
        elif path.exists():
            several.append(path)
        else:
            raise InvalidInput(f"{path} is not there", field="PATH")
    if not several:
        kind = f"*{TESTS}" if tests else "*.yaml"
        raise InvalidInput(
            f"no {kind} in {', '.join(paths) or settings.load(settings.Enforcer).policies}", field="PATH"
        )
    return several
