"""`banksman policy backtest`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from banksman.cli import show
from banksman.cli.policy import history
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    import argparse

    from banksman.policy.backtest import Kind, Moved, Report

HELP = """What a candidate policy would have answered to what agents really asked: every recorded decision since then, and
which of them would be another one, by agent, operation and rule, with sessions to look at. What controls and budgets decided
is left out, as is replayed history. Exit code 1: some answer would be another one."""
EXAMPLES = """
  banksman policy backtest policies/billing.yaml --since 30d
  banksman policy backtest candidate.yaml --since 2026-11-01T00:00:00Z --json
  banksman policy backtest candidate.yaml --agent claude-invoice-01
"""
SHOWN = 40


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("file", help="the candidate")
    parser.add_argument("--since", default="30d", metavar="TIME", help="RFC 3339, or a length before now: 2h, 7d (30d)")
    parser.add_argument("--agent", help="only what this agent asked")
    show.json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    from banksman.policy.backtest import Backtest, needs
    from banksman.policy.load import load

    now = datetime.now(UTC)
    begins = history.since(args.since, now)
    try:
        policy = load(Path(args.file).read_bytes(), args.file).policy
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}", field=args.file) from None
    backtest, wanted = Backtest(policy), needs(policy)
    if wanted.claims:
        show.note("claims are on no record: what is decided by them is left open, so that such rules do not allow")
    with history.bar(f"decisions of {policy.project}") as progress:
        for several in history.recorded(policy.project, begins, now, wanted, agent=args.agent, progress=progress):
            backtest.take(several)
    report = backtest.done()
    if args.json:
        show.emit(told_of(report) | {"policy_version": policy.version, "since": begins.isoformat()})
    else:
        say(report, policy.version, args.since)
    return 1 if report.moved else 0


def told_of(report: Report) -> dict[str, Any]:
    """For programs."""
    return {
        "decisions": report.decisions, "agents": len(report.agents), "totals": dict(report.totals()),
        "moved": [
            kind._asdict()
            | {
                "times": moved.times, "operations": moved.operations,
                "examples": [dict(zip(("resource", "branch", "session"), one, strict=True)) for one in moved.examples],
            }
            for kind, moved in report.moved.items()
        ],
    }  # fmt: skip


def say(report: Report, what: str, since: str) -> None:
    """For people: how many, and which."""
    other = sum(report.totals().values())
    decisions, agents = show.count(report.decisions, "decision"), show.count(len(report.agents), "agent")
    ago = "" if "T" in since else " ago"
    show.say(f"{what}: {decisions} of {agents} since {since}{ago}, {other:,} would be other ones")
    for change, times in sorted(report.totals().items()):
        before, _, after = change.partition("->")
        show.say(f"  {times:>9,} {before} -> {after}", _style(before, after))
    rows = [_row(kind, moved) for kind, moved in list(report.moved.items())[:SHOWN]]
    if rows:
        show.table((">times", "agent", "operation", "was", "would be", "by", "for instance", "session"), rows)
    if len(report.moved) > SHOWN:
        show.note(f"{len(report.moved) - SHOWN} more kinds: --json has them all")


def _row(kind: Kind, moved: Moved) -> tuple[object, ...]:
    resource, branch, session = moved.examples[0]
    return (
        f"{moved.times:,}", kind.agent, f"{kind.service} {kind.action}", kind.before, kind.after, kind.rule or kind.reason,
        " ".join(part for part in (resource, branch) if part), session,
    )  # fmt: skip


def _style(before: str, after: str) -> str:
    strict = ("allow", "approve", "deny")
    return "yellow" if strict.index(after) > strict.index(before) else "red"
