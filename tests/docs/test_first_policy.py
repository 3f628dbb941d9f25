"""docs/first-policy.md as a reader follows it: its files are written, its commands run, their output is what it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from banksman.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "first-policy.md"
BLOCK = re.compile(r"(?:`(?P<file>[\w./]+)`\n\n)?```(?P<kind>yaml|console)\n(?P<text>.*?)```\n", re.DOTALL)


def test_what_a_reader_does_and_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("policies").mkdir()
    page = PAGE.read_text()
    ran = 0
    for block in BLOCK.finditer(page):
        if block["kind"] == "yaml":
            assert block["file"], "every file of the page has a name"
            Path(block["file"]).write_text(block["text"])
            continue
        command, _, shown = block["text"].removeprefix("$ ").partition("\n")
        capsys.readouterr()
        main.main(shlex.split(command)[1:])
        out = "".join(f"{line.rstrip()}\n" for line in capsys.readouterr().out.splitlines())
        ran += 1
        if request.config.getoption("--golden-write"):
            page = page.replace(block["text"], f"$ {command}\n{out}")
        else:
            assert out == shown, command
    assert ran == 7
    if page != PAGE.read_text():
        PAGE.write_text(page)
