"""The tutorial as a reader follows it: its files are written, its commands run in order, its output is what they see.

Ports are others than in the text, and times, lengths of time and ids differ from run to run: they are masked on both sides. A
line `…` in the text stands for any lines.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.running_up import until
from tests.servers import child_environment

from banksman.local.kafka import free_port

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
QUESTIONS = ("banksman now", "banksman session", "banksman sql")


@dataclass(frozen=True)
class Block:
    """A fenced block; `file`: what the line above it says that it is."""

    line: int
    language: str
    text: str
    file: str | None


def blocks(text: str) -> Iterator[Block]:
    lines = text.splitlines()
    above, number = "", 0
    while number < len(lines):
        line = lines[number]
        if not line.startswith("```"):
            above = line or above
            number += 1
            continue
        begins = number + 1
        number = lines.index("```", begins)
        named = re.search(r"`([\w./-]+\.(?:py|yaml))`[^`]*:$", above)
        yield Block(begins, line[3:].strip(), "\n".join(lines[begins:number]) + "\n", named[1] if named else None)
        above = ""
        number += 1


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """(command, what is printed) of a console block."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line == "^C":
            found.append((line, []))
        elif found[-1][0].endswith("\\"):
            found[-1] = (f"{found[-1][0]}\n{line}", [])
        else:
            found[-1][1].append(line)
    yield from found


def masked(text: str) -> list[str]:
    """Lines without what differs from run to run."""
    for pattern, word in (
        (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?", "TIME"),
        (r"\b\d\d:\d\d:\d\d(\.\d+)?", "TIME"),
        (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}\b", "ID"),
        (r"\b(?=[a-f]*\d)[0-9a-f]{8,}\b", "ID"),
        (r"(\d+ min )?\d[\d,.]*( min)? (ms|s)\b", "LONG"),
        (r"(?m)^\d[\d,]* of \d[\d,]*$", ""),  # how far it is, said where it takes long
        (r"(127\.0\.0\.1):\d+", r"\1:PORT"),
        (r"#[0-9a-f]{8}\b", "#ID"),
        (r"[\d,]+ a second", "RATE"),
        (r"─+", "─"),
        (r"[ \t]+", " "),
    ):
        text = re.sub(pattern, word, text)
    return [line.strip() for line in text.splitlines() if line.strip()]


def agrees(wanted: list[str], seen: list[str]) -> bool:
    """Whether the lines are the same; `…` stands for any."""
    if not wanted or not seen:
        return all(line == "…" for line in wanted) and not (seen and not wanted)
    if wanted[0] == "…":
        return any(agrees(wanted[1:], seen[at:]) for at in range(len(seen) + 1))
    return wanted[0] == seen[0] and agrees(wanted[1:], seen[1:])


def rewrite(command: str, printed: list[str], seen: str) -> None:
    """What a command prints now, into the tutorial (`make golden`; the diff is read in review)."""
    before, after = ("\n".join([f"$ {command}", *lines, ""]) for lines in (printed, seen.rstrip().splitlines()))
    text = TUTORIAL.read_text()
    assert text.count(before) == 1
    TUTORIAL.write_text(text.replace(before, after))


class Reader:
    """Somebody in a folder of their own, with two terminals."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = {name: free_port() for name in ("kafka", "clickhouse", "enforcer", "console")}
        self.environment = child_environment() | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "BANKSMAN_KAFKA": f"127.0.0.1:{ports['kafka']}",
            "BANKSMAN_CLICKHOUSE": f"http://127.0.0.1:{ports['clickhouse']}",
            "BANKSMAN_ENFORCER_PORT": str(ports["enforcer"]),
            "BANKSMAN_CONSOLE_PORT": str(ports["console"]),
            "BANKSMAN_URL": f"http://127.0.0.1:{ports['enforcer']}",
            "BANKSMAN_CONSOLE_URL": f"http://127.0.0.1:{ports['console']}",
            "BANKSMAN_SPOOL": str(folder / "spool"),
            "NO_COLOR": "1",
        }
        self.up: subprocess.Popen[bytes] | None = None
        for name in ("examples", "policies"):
            shutil.copytree(ROOT / name, folder / name)

    def run(self, command: str) -> str:
        """A command in the second terminal, or the beginning and the end of the first -> all that was printed."""
        if command == "banksman up":
            return self._start()
        if command == "^C":
            return self._stop()
        ran = subprocess.run(
            ["bash", "-ec", command], cwd=self.folder, env=self.environment, timeout=90,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        return ran.stdout

    def _start(self) -> str:
        said = self.folder / "up.said"
        with open(said, "wb") as out:
            self.up = subprocess.Popen(
                ["banksman", "up"], cwd=self.folder, env=self.environment, stdout=out, stderr=out
            )
        process = self.up
        until(lambda: "Ctrl-C stops" in said.read_text() or process.poll() is not None, 120, said.read_text)
        return said.read_text()

    def _stop(self) -> str:
        assert self.up is not None
        process, self.up = self.up, None
        before = len((self.folder / "up.said").read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        return (self.folder / "up.said").read_text()[before:]

    def until_in_force(self, policy: str) -> None:
        """Return when the enforcer obeys a policy that was just saved: a person takes longer to type the next command."""
        version = "@v".join(re.findall(r"^(?:project|version): (\S+)", policy, re.MULTILINE))
        until(lambda: f'"{version}+sha256' in self.run("banksman status --json"), 30)

    def end(self) -> None:
        if self.up is not None:
            self.up.kill()
            self.up.wait()


@pytest.mark.slow
def test_what_a_reader_of_the_tutorial_does_and_sees(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    reader, ran, writes = Reader(tmp_path), 0, request.config.getoption("--golden-write")
    try:
        for block in blocks(TUTORIAL.read_text()):
            if block.file:
                given = tmp_path / block.file
                if given.exists() and block.file.startswith("examples/"):
                    assert block.text == given.read_text(), f"line {block.line}: {block.file} is another"
                given.parent.mkdir(exist_ok=True)
                given.write_text(block.text)
                if reader.up is not None and block.language == "yaml":
                    reader.until_in_force(block.text)
            if block.language != "console":
                continue
            for command, printed in commands(block):
                seen, ran = reader.run(command), ran + 1
                wanted, end = masked("\n".join(printed)), time.monotonic() + 20
                while not agrees(wanted, masked(seen)) and command.startswith(QUESTIONS) and time.monotonic() < end:
                    seen = reader.run(command)  # a person is slower than the archiver; this is not always
                if writes and not agrees(wanted, masked(seen)):
                    rewrite(command, printed, seen)
                    continue
                assert agrees(wanted, masked(seen)), f"{TUTORIAL.name}, line {block.line}: $ {command}\n{seen}"
    finally:
        reader.end()
    assert ran > 10
    assert reader.up is None, "the tutorial ends with everything stopped"


def test_every_example_is_run_by_it() -> None:
    run = [
        command
        for block in blocks(TUTORIAL.read_text())
        if block.language == "console"
        for command, _ in commands(block)
    ]
    examples = sorted((ROOT / "examples").glob("*.py"))
    assert len(examples) >= 4
    for example in examples:
        assert any(f"python examples/{example.name}" in command for command in run), example
        assert "def main(" in example.read_text()


# --- the reading of it


def test_a_block_knows_its_file_and_a_command_its_output() -> None:
    text = "Save this as `policies/a.yaml`:\n\n```yaml\nproject: a\n```\n\n```console\n$ one \\\n  two\nsaid\n$ three\n```\n"
    policy, console = blocks(text)
    assert (policy.file, policy.text, console.file) == ("policies/a.yaml", "project: a\n", None)
    assert list(commands(console)) == [("one \\\n  two", ["said"]), ("three", [])]


@pytest.mark.parametrize(
    ("wanted", "seen", "same"),
    [
        ("took 1.2 s, 14 rows at 12:00:01.5", "took 850 ms,   14 rows at 09:10:11", True),
        ("14 rows", "15 rows", False),
        ("session 8c1f00aa", "session deadbee5", True),
        ("one\n…\nthree", "one\n2\n2b\nthree", True),
        ("one\n…\nthree", "one\nthree", True),
        ("one\n…", "one", True),
        ("one", "one\ntwo", False),
        ("one\ntwo", "one", False),
        ("", "something", False),
        ("allow", "deny", False),
        ("one\n…\nthree", "one\ntwo", False),
    ],
)
def test_output_is_compared_loosely_but_compared(wanted: str, seen: str, *, same: bool) -> None:
    assert agrees(masked(wanted), masked(seen)) is same
