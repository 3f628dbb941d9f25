"""A session as lines: NDJSON, exact, or CSV for spreadsheets. Into a file all of it or nothing."""

from __future__ import annotations

import csv
import os
import shutil
import sys
import tempfile
from typing import IO, TYPE_CHECKING, Any

from banksman.cli import show, story
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from banksman.cli.client import Client

OF_HEADER = ("project", "agent", "session", "owner", "replay")
COLUMNS = (
    "n", "time", "received", "kind", "id", "call", "parent", "source", "seq",
    "service", "action", "resource", "branch", "subject", "args", "text",
    "decision", "tier", "rule", "policy_version", "reason", "asked", "shadow", "latency_us",
    "approval", "approver", "expires_at",
    "status", "error", "result", "result_size", "duration_ms",
    "model", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "priced",
    "tokens", "cost_usd", "tokens_total", "cost_usd_total",
    "verified", "author", "late", "id_reused", "voided", "gap", "topic", "partition", "offset",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def run(console: Client, asked: story.Asked, form: str, out: Path | None) -> int:
    """Write every step of the session in the form `ndjson` or `csv` to `out`, or to stdout, once all of it is here."""
    if out is None:
        with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as whole:
            _collect(console, asked, form, whole)
            whole.seek(0)
            shutil.copyfileobj(whole, sys.stdout)
        return 0
    if out.exists() and not out.is_file():
        raise InvalidInput(f"{out} is no file", field="--out")
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8", newline="") as file:
            steps = _collect(console, asked, form, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(out)
    except OSError as error:
        raise InvalidInput(f"{out} cannot be written: {error.strerror}", field="--out") from None
    finally:
        beside.unlink(missing_ok=True)
    show.note(f"{show.count(steps, 'step')} in {out}")
    return 0


def _collect(console: Client, asked: story.Asked, form: str, out: IO[str]) -> int:
    """-> the number of steps."""
    for _ in range(story.TRIES):
        out.seek(0)
        out.truncate()
        steps = 0
        try:
            for page in story.pages(console, asked):
                if form == "csv":
                    _csv(page, out, raw=asked.raw, first=not steps)
                else:
                    own = {name: page["header"][name] for name in OF_HEADER}
                    out.writelines(show.dumps(own | step) + "\n" for step in page["steps"])
                steps += len(page["steps"])
        except story.Changed:
            continue
        return steps
    raise story.still_changing(asked)


def _csv(page: Mapping[str, Any], out: IO[str], *, raw: bool, first: bool) -> None:
    names = (*COLUMNS, "raw") if raw else COLUMNS
    writer = csv.writer(out, lineterminator="\n")
    if first:
        writer.writerow((*OF_HEADER, *names))
    own = [_cell(page["header"][name]) for name in OF_HEADER]
    writer.writerows([*own, *(_cell(step[name]) for name in names)] for step in page["steps"])


def _cell(value: Any) -> str:
    """Text that neither a terminal nor a spreadsheet obeys; numbers as they are, JSON where it is no plain value."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    text = value if isinstance(value, str) else show.dumps(value)
    text = show.safe(text, newlines=True)
    return f"'{text}" if text.startswith(_FORMULA) else text
