"""The page of schedules is held to the tests: each case says what it is, and names tests that there are."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "schedules.md"
COLUMNS = ["case", "what happens", "what must not come of it", "test"]
_NAMED = re.compile(r"`([\w/.]+\.py)::(\w+)`")


def rows(text: str) -> list[list[str]]:
    """The cells of every table, without the lines under the headings."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@cache
def collected(path: str) -> set[str]:
    """The names of the tests in a file that pytest collects."""
    file = ROOT / path
    if not file.is_file() or not path.startswith("tests/") or not file.name.startswith("test_"):
        return set()
    found = ast.parse(file.read_text()).body
    return {
        one.name
        for one in found
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) and one.name.startswith("test_")
    }


def not_there(text: str) -> list[str]:
    """What is named in a text and is no test."""
    return [f"{path}::{name}" for path, name in _NAMED.findall(text) if name not in collected(path)]


@pytest.mark.parametrize("page", ["schedules.md", "promises.md"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    assert not_there((ROOT / "docs" / page).read_text()) == []


def test_a_name_that_is_no_test_is_found() -> None:
    own = Path(__file__).relative_to(ROOT).as_posix()
    for wrong in (f"`{own}::test_that_was_renamed`", f"`{own}::rows`", "`tests/docs/gone.py::test_x`"):
        assert not_there(wrong) == [wrong.strip("`")]


def test_every_case_is_whole_and_said_once() -> None:
    text = PAGE.read_text()
    headings, cases = [row for row in rows(text) if row == COLUMNS], [row for row in rows(text) if row != COLUMNS]
    assert len(headings) == len(re.findall(r"^## ", text, re.MULTILINE))
    for row in cases:
        assert len(row) == len(COLUMNS), row
        assert all(row), row
        assert _NAMED.findall(row[3]), f"{row[0]}: no test"
        assert not _NAMED.sub("", row[3]).strip(), f"{row[0]}: more than tests"
    told = [what for _, what, _, _ in cases]
    assert len(set(told)) == len(told)
