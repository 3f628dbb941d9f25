"""`banksman replay FILE`: recorded actions through the real emitter and enforcer. docs/reference/replay.md"""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from banksman.cli import client, show

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from banksman.cli.recording import Names, Survey
    from banksman.cli.rerun import Rerun
    from banksman.producers.recorded import RecordedEmitter
    from banksman.settings import Client

HELP = """Send a file of recorded actions (JSON lines, plain or .gz, one action a line) through the real emitter and enforcer:
for each a tool.call, the decision that today's policies give, and the result that the recording holds. Times are kept. The
records are marked as a replay: they open no approvals, count for no budget and alert nobody. Ids come from the file's content
and the line, so that whatever is sent again is still there once. Needs an admin's token."""
EXAMPLES = """
  banksman replay recorded.jsonl
  banksman replay recorded.jsonl.gz --speed 60      a recorded minute a second
  banksman replay recorded.jsonl --json             the summary for programs
  banksman replay recorded.jsonl --dry-run          read and check the file, show how names are mapped, send nothing
"""
SHOWN_NAMES = 60


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("file", type=Path, help="JSON lines, one action a line; .gz is unpacked")
    parser.add_argument(
        "--speed", type=float, metavar="N", help="N times as fast as it was recorded; default: as fast as it goes"
    )
    parser.add_argument("--dry-run", action="store_true", help="check the file and show the names, send nothing")
    show.json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    from banksman.cli import recording
    from banksman.errors import InvalidInput

    if args.speed is not None and not args.speed > 0:
        raise InvalidInput("must be greater than 0", field="--speed")
    found = recording.survey(args.file)
    names = recording.Names.of(found)
    counted = f"{found.actions:,} actions of {len(found.agents)} agents in {len(found.begins):,} sessions"
    show.note(f"{args.file}: {counted}, as {found.run}")
    _show_names(names, every=False)
    if args.dry_run:
        if args.json:
            show.emit(_summary(found, names, {}, sent=0, already=0, complete=False, took=0.0))
        return 0
    began = time.monotonic()
    with opened(args.file, found, speed=args.speed) as rerun, _progress(found.actions) as progress, _term(rerun):
        complete = rerun.run(progress)
    took = time.monotonic() - began
    if args.json:
        show.emit(
            _summary(found, names, rerun.counts, sent=rerun.sent, already=rerun.skipped, complete=complete, took=took)
        )
    else:
        _table(rerun)
    rate = f", {rerun.sent / took:,.0f} a second" if rerun.sent else ""
    before = f", {rerun.skipped:,} were sent before" if rerun.skipped else ""
    show.note(f"{rerun.sent:,} actions sent in {show.seconds(took)}{rate}{before}")
    if not complete:
        left = found.actions - rerun.sent - rerun.skipped
        show.note(f"interrupted, {left:,} are left: the same command goes on from here, nothing is there twice")
        return 130
    return 0


@contextlib.contextmanager
def opened(file: Path, found: Survey, *, speed: float | None) -> Iterator[Rerun]:
    """A rerun with its emitter, its journal and its way to the enforcer."""
    from banksman import settings
    from banksman.cli.folder import Folder
    from banksman.cli.journal import Journal
    from banksman.cli.rerun import Rerun

    known = settings.load(settings.Client)
    token = client.operator_token(known)
    folder = Folder(Path(settings.load(settings.Local).data))
    journal = Journal(folder.replays, found.run, f"{known.url} {token.split('_')[1] if token.count('_') > 1 else ''}")
    try:
        with _emitter(found.run, known, token, journal.path.with_suffix(".spool")) as sender:
            yield Rerun(file, found, journal, sender, lambda: client.enforcer(keep=True), speed=speed)
    finally:
        journal.close()


@contextlib.contextmanager
def _emitter(run: str, known: Client, token: str, home: Path) -> Iterator[RecordedEmitter]:
    """The emitter, with a spool of its own beside the journal: what a killed run had not sent is sent by the next one."""
    from banksman.producers.recorded import RecordedEmitter

    emitter = RecordedEmitter(run, known.url, token, spool=home, ca_file=known.ca_file)
    try:
        yield emitter
    finally:
        if emitter.close():
            shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def _term(rerun: Rerun) -> Iterator[None]:
    """SIGTERM ends it as gently as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, lambda *_: rerun.stop())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; elsewhere a line every five seconds."""
    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        with Progress(
            TextColumn("replaying"), BarColumn(40), MofNCompleteColumn(), TimeRemainingColumn(),
            console=show.stdout(sys.stderr), transient=True,
        ) as bar:  # fmt: skip
            task = bar.add_task("replay", total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    said = time.monotonic()

    def tell(done: int) -> None:
        nonlocal said
        if time.monotonic() - said >= 5:
            said = time.monotonic()
            show.note(f"{done:,} of {total:,}")

    yield tell


def _rows(names: Names) -> list[tuple[str, str, str]]:
    """(what, name in the file, name that is used) for every name that is not allowed."""
    rows = [("project", old, new) for old, new in names.projects.items()]
    rows += [("agent", old, new) for old, new in names.agents.items()]
    return rows + [("session", f"{old} of {agent}", new) for (agent, old), new in names.sessions.items()]


def _show_names(names: Names, *, every: bool) -> None:
    rows = _rows(names)
    if not rows:
        return
    show.note("names that are not allowed are mapped:")
    for what, old, new in rows if every else rows[:SHOWN_NAMES]:
        show.note(f"  {what} {old} -> {new}")
    if len(rows) > SHOWN_NAMES and not every:
        show.note(f"  … and {len(rows) - SHOWN_NAMES:,} more (--json has all)")


def _summary(
    found: Survey,
    names: Names,
    counts: dict[str, dict[str, int]],
    *,
    sent: int,
    already: int,
    complete: bool,
    took: float,
) -> dict[str, Any]:
    total = {key: sum(row[key] for row in counts.values()) for key in ("actions", "allow", "deny", "approve")}
    return {
        "run": found.run, "sha256": found.sha256, "lines": found.lines, "actions": found.actions, "complete": complete,
        "sent": sent, "sent_before": already, "seconds": round(took, 3), "decisions": total,
        "agents": dict(sorted(counts.items())),
        "names": [{"what": what, "recorded": old, "replayed": new} for what, old, new in _rows(names)],
    }  # fmt: skip


def _table(rerun: Rerun) -> None:
    keys = ("actions", "allow", "deny", "approve")
    rows: list[tuple[object, ...]] = [
        (agent, *(f"{row[key]:,}" for key in keys)) for agent, row in sorted(rerun.counts.items())
    ]
    total = [sum(row[key] for row in rerun.counts.values()) for key in keys]
    rows.append(("all", *(f"{number:,}" for number in total)))
    show.table(("agent", *(f">{key}" for key in keys)), rows)
