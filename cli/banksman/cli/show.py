"""What commands print: tables for people, JSON for programs, messages on stderr.

Text that an agent chose may hold escape sequences that repaint a terminal, or characters that reorder a line. `safe` makes
them visible; `table`, `say`, `note` and `emit` do it for you.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import unicodedata
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console

PIPE_WIDTH = 200  # a pipe has no width

STYLES = {
    "allow": "green", "ok": "green", "running": "green", "yes": "green",
    "approve": "yellow", "waiting": "yellow", "idle": "dim", "ended": "dim", "skipped": "dim",
    "deny": "red", "denied": "red", "error": "red", "killed": "red", "no": "red", "failed": "red",
}  # fmt: skip
"""Words that carry a colour wherever they stand alone in a cell; the word says it without the colour."""

_CODES = {"red": "31", "green": "32", "yellow": "33", "dim": "2", "bold": "1"}
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
_JSON_UNSAFE = re.compile("[\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]")


def json_argument(parser: argparse._ActionsContainer) -> None:
    """`--json`, the same everywhere: `args.json`."""
    parser.add_argument("--json", action="store_true", help="JSON on stdout, for programs")


def emit(value: Any) -> None:
    """A JSON value on stdout, as one line that never changes its keys' order."""
    print(dumps(value), flush=True)


def dumps(value: Any) -> str:
    r"""JSON on one line. What a terminal could obey (C1 controls, turned text) or refuse is written as `\u…`."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _JSON_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def note(text: str) -> None:
    """A message on stderr: never data."""
    print(safe(text, newlines=True), file=sys.stderr, flush=True)


def say(text: str, style: str = "") -> None:
    """A line of plain text on stdout, made safe; `style`: red, green, yellow, dim or bold, on a terminal."""
    print(paint(safe(text, newlines=True), style), flush=True)


def paint(text: str, style: str) -> str:
    """Text that is safe already, in a colour where stdout shows colours."""
    if style not in _CODES or not _colours():
        return text
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m"


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


def short(text: object, most: int = 160) -> str:
    """`text`, cut to `most` characters with a `…`: what is whole stands in `--json`."""
    given = str(text)
    return given if len(given) <= most else given[: most - 1] + "…"


class Cell(str):
    """A cell of a table in a colour of its own; without one, a word of STYLES has its colour."""

    __slots__ = ("style",)
    style: str

    def __new__(cls, text: object, style: str = "") -> Self:
        """The text is made safe."""
        made = super().__new__(cls, safe(text))
        made.style = style or STYLES.get(made, "")
        return made


def _cell(value: object) -> Cell:
    return value if isinstance(value, Cell) else Cell("" if value is None else value)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "nothing") -> None:
    """A table on stdout; `>` before a column's name aligns it right. No row: the sentence `empty` on stderr.

    On a terminal that is too narrow for the columns each row becomes a block of lines, as psql's expanded display does.
    """
    names = [safe(name.removeprefix(">")) for name in columns]
    cells = [[_cell(cell) for cell in row] for row in rows]
    if not cells:
        note(empty)
        return
    from banksman.cli import grid

    right = [name.startswith(">") for name in columns]
    natural = [max(map(grid.width, column)) for column in zip(names, *cells, strict=True)]
    widths = grid.fit(natural, right, columns_of_terminal()) if sys.stdout.isatty() else natural
    if widths is None:
        lines = _blocks(names, cells)
    else:
        rule = "─" if (sys.stdout.encoding or "").lower().startswith("utf") else "-"
        styles = [[cell.style for cell in row] for row in cells]
        lines = grid.rows(names, right, cells, widths, paint, styles, rule=rule)
    sys.stdout.writelines(line + "\n" for line in lines)
    sys.stdout.flush()


def _blocks(names: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Iterator[str]:
    side = max(map(len, names)) + 2
    for number, row in enumerate(rows):
        if number:
            yield ""
        for name, cell in zip(names, row, strict=True):
            if cell:
                yield paint(f"{name:<{side}}", "bold") + paint(cell, cell.style)


def columns_of_terminal() -> int:
    """How wide the terminal is; COLUMNS says it first."""
    return shutil.get_terminal_size((80, 24)).columns


def pairs(named: Iterable[tuple[str, object]]) -> None:
    """Names and values under each other; what is None or "" is left out."""
    listed = [(name, safe(value)) for name, value in named if value is not None and value != ""]
    side = max((len(name) for name, _ in listed), default=0) + 2
    for name, value in listed:
        print(paint(f"{name:<{side}}", "bold") + paint(value, STYLES.get(value, "")))


def stdout(file: IO[str] | None = None) -> Console:
    """A rich console, for what moves: colours only on a terminal and without NO_COLOR."""
    from rich.console import Console

    out = file or sys.stdout
    width = None if out.isatty() else PIPE_WIDTH
    return Console(file=out, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def is_terminal() -> bool:
    """Whether a person can be asked something: both ends are a terminal and nobody said that it is dumb."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def seconds(value: float) -> str:
    """A length of time as people say it: `850 ms`, `3.2 s`, `4 min 10 s`, `2 h 5 min`, `3 d 4 h`."""
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def age(seconds_ago: float) -> str:
    """`3.2 s ago`."""
    return f"{seconds(max(0.0, seconds_ago))} ago"


def moment(time: str | None) -> str:
    """RFC 3339 -> `2026-03-01 12:00:00.123` in UTC; "" for none, what is no time as it is."""
    if not time:
        return ""
    try:
        parsed = datetime.fromisoformat(time)
    except ValueError:
        return time
    parsed = parsed.astimezone(UTC) if parsed.tzinfo else parsed
    return parsed.strftime("%Y-%m-%d %H:%M:%S.") + f"{parsed.microsecond // 1000:03d}"


def count(number: int, noun: str) -> str:
    """`1 agent`, `1,200 agents`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
