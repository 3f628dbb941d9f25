"""What a mistyped word was probably meant to be."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def nearest(word: object, known: Iterable[str]) -> str:
    """`; did you mean push?`, or "" where nothing is near."""
    found = get_close_matches(str(word).lower(), {one.lower(): one for one in known}, n=1, cutoff=0.6)
    spelled = {one.lower(): one for one in known}
    return f"; did you mean {spelled[found[0]]}?" if found else ""
