"""Policies as newcomers get them wrong: none loads silently, and each is told what they need to know, with the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from banksman.policy.lint import lint

FILES = sorted((Path(__file__).parent / "wrong").glob("*.yaml"))


def test_there_are_forty() -> None:
    assert len(FILES) >= 40


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_wrong(file: Path) -> None:
    says = file.read_text().partition("\n")[0].removeprefix("# says: ")
    errors = [one for one in lint(file.read_bytes(), file.name) if one.level == "error"]
    assert errors
    assert all(one.line > 1 for one in errors), errors
    told = [f"{one.line}: {one.message} -> {one.mend}" for one in errors]
    assert any(says in one for one in told), told
