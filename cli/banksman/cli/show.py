"""What commands print: tables for people, JSON for programs, messages on stderr.

Text that an agent chose may hold escape sequences that repaint a terminal, or characters that reorder a line. `safe` makes
them visible; `table` and `say` do it for you, JSON does it by its own rules.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from rich.console import Console

PIPE_WIDTH = 200  # a pipe has no width; a table for it is cut at no sensible column

STYLES = {
    "allow": "green", "ok": "green", "running": "green",
    "approve": "yellow", "waiting": "yellow", "idle": "dim", "ended": "dim",
    "deny": "red", "denied": "red", "error": "red", "killed": "red", "no": "red",
}  # fmt: skip
"""Words that carry a colour wherever they stand alone in a cell; the word says it without the colour."""


def json_argument(parser: argparse.ArgumentParser) -> None:
    """`--json`, the same everywhere: `args.json`."""
    parser.add_argument("--json", action="store_true", help="JSON on stdout, for programs")


def emit(value: Any) -> None:
    """A JSON value on stdout, as one line that never changes its keys' order."""
    print(json.dumps(value, ensure_ascii=False, separators=(",", ":")), flush=True)


def note(text: str) -> None:
    """A message on stderr: never data."""
    print(safe(text, newlines=True), file=sys.stderr, flush=True)


def say(text: str) -> None:
    """A line of plain text on stdout, made safe."""
    print(safe(text, newlines=True), flush=True)


def safe(text: object, *, newlines: bool = False) -> str:
    r"""`text` with control and direction-changing characters made visible (`\x1b`, `\u202e`)."""
    given = str(text)
    if given.isascii() and given.isprintable():
        return given
    return "".join(
        char
        if (newlines and char == "\n") or (char.isprintable() and unicodedata.category(char) not in _HIDDEN)
        else char.encode("unicode_escape").decode("ascii")
        for char in given
    )  # fmt: skip


_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", empty: str = "nothing") -> None:
    """A table on stdout; `>` before a column's name aligns it right. No row: the sentence `empty` on stderr."""
    listed = list(rows)
    if not listed:
        note(empty)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False, show_edge=False)
    for name in columns:
        made.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    for row in listed:
        cells = ["" if cell is None else safe(cell) for cell in row]
        made.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in cells))
    stdout().print(made)


def stdout(file: IO[str] | None = None) -> Console:
    """A rich console: colours only on a terminal and without NO_COLOR, no wrapping of what goes into a pipe."""
    from rich.console import Console

    out = file or sys.stdout
    width = None if out.isatty() else PIPE_WIDTH
    return Console(file=out, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def is_terminal() -> bool:
    """Whether a person can be asked something: both ends are a terminal and nobody said that it is dumb."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def seconds(value: float) -> str:
    """A length of time as people say it: `850 ms`, `3.2 s`, `4 min 10 s`, `2 h 5 min`."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    if value < 3600:
        return f"{int(value // 60)} min {int(value % 60)} s"
    return f"{int(value // 3600)} h {int(value % 3600 // 60)} min"


def age(seconds_ago: float) -> str:
    """`3.2 s ago`."""
    return f"{seconds(max(0.0, seconds_ago))} ago"
