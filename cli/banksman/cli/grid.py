"""Text in columns. Ten thousand rows are drawn in the time that a reader needs to blink, so it is done here and by hand.

A wide character takes two places on a terminal, a combining one none: `width` knows. Columns that do not fit are made
narrower, the widest first, and their text goes on in the next line; numbers never break.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

BETWEEN = "  "
NARROWEST = 12
"""A column that would have to be narrower than this is not worth being a column."""


def width(text: str) -> int:
    """How many places `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def fit(widths: Sequence[int], rigid: Sequence[bool], room: int) -> list[int] | None:
    """Widths that fit into `room` places; None when they cannot without a column below NARROWEST."""
    room -= len(BETWEEN) * (len(widths) - 1)
    if sum(widths) <= room:
        return list(widths)
    room -= sum(one for one, stiff in zip(widths, rigid, strict=True) if stiff)
    soft = sorted(one for one, stiff in zip(widths, rigid, strict=True) if not stiff)
    for number, one in enumerate(soft):  # the narrow ones keep what they have, the wide ones share the rest
        cap = room // (len(soft) - number)
        if one > cap:
            if cap < NARROWEST:
                return None
            return [one if stiff else min(one, cap) for one, stiff in zip(widths, rigid, strict=True)]
        room -= one
    return None


def fold(text: str, places: int) -> list[str]:
    """`text` in lines of at most `places`, broken behind spaces and slashes where there are some."""
    if width(text) <= places:
        return [text]
    lines, line, taken = [], "", 0
    for char in text:
        wide = width(char)
        if taken + wide > places:
            end = 0 if char == " " else max(line.rfind(" "), line.rfind("/")) + 1
            head, tail = (line[:end], line[end:]) if line[:end].strip() else (line, "")
            lines.append(head.rstrip(" "))
            line, taken = tail, width(tail)
            if char == " ":
                continue
        line += char
        taken += wide
    return [*lines, line] if line else lines


def rows(
    names: Sequence[str],
    right: Sequence[bool],
    cells: Sequence[Sequence[str]],
    widths: Sequence[int],
    paint: Callable[[str, str], str],
    styles: Sequence[Sequence[str]],
    *,
    rule: str,
) -> Iterator[str]:
    """The lines of a table: names, a rule, a line or more a row. `paint(text, style)` colours what is padded already."""
    yield _line(names, right, widths, paint, ["bold"] * len(names))
    yield rule * (sum(widths) + len(BETWEEN) * (len(widths) - 1))
    for row, row_styles in zip(cells, styles, strict=True):
        folded = [fold(cell, places) for cell, places in zip(row, widths, strict=True)]
        for number in range(max(map(len, folded))):
            parts = [lines[number] if number < len(lines) else "" for lines in folded]
            yield _line(parts, right, widths, paint, row_styles)


def _line(
    parts: Sequence[str],
    right: Sequence[bool],
    widths: Sequence[int],
    paint: Callable[[str, str], str],
    styles: Sequence[str],
) -> str:
    shown = []
    last = max((n for n, part in enumerate(parts) if part), default=-1)
    for number in range(last + 1):
        part = parts[number]
        pad = " " * (widths[number] - width(part))
        painted = paint(part, styles[number]) if part else ""
        shown.append(pad + painted if right[number] else painted if number == last else painted + pad)
    return BETWEEN.join(shown)
