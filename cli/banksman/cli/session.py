"""`banksman session ID`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from banksman.cli import client, show, story
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    import argparse

HELP = """What exactly happened in one run of an agent: who and under which policy, then every step in order, with its
decision, the rule behind it, tokens, cost and duration. Missing records and whatever is not as it should be are marked:
unverified (nobody of ours signed it), late, clock skew, id reused, voided (decided, but never answered). Times are UTC.

A call, its first decision and its result are one line; everything else has a line of its own. --json and --export give
every record as a step of its own. CSV is for spreadsheets: text that one would run as a formula gets a ' in front; NDJSON
is as it is."""
EXAMPLES = """
  banksman session d97e2169
  banksman session s1 --agent claude-invoice-01        two agents have a session s1: say whose
  banksman session d97e2169 --json | jq '.steps[] | select(.decision == "deny")'
  banksman session d97e2169 --export csv --out d97e2169.csv
  banksman session d97e2169 --export ndjson --raw      every record as it was written, too
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("session", help="its id; `banksman sessions` lists them")
    parser.add_argument("--agent", help="whose; needed when two agents have a session of this id")
    parser.add_argument("--project", help="of which project")
    parser.add_argument("--replay", metavar="RUN", help="the session as this replay sent it")
    shape = parser.add_mutually_exclusive_group()
    show.json_argument(shape)
    shape.add_argument("--export", choices=("ndjson", "csv"), help="every step as a line, on stdout or into --out")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="where --export goes; a file that is there is replaced"
    )
    parser.add_argument("--raw", action="store_true", help="with each step the record as it was written")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    if args.out and not args.export:
        raise InvalidInput("goes with --export only", field="--out")
    if args.raw and not (args.export or args.json):
        raise InvalidInput("goes with --json or --export only", field="--raw")
    asked = story.Asked(args.session, agent=args.agent, project=args.project, replay=args.replay, raw=args.raw)
    if args.export:
        from banksman.cli import export

        return export.run(client.console(), asked, args.export, args.out)
    told = story.whole(client.console(), asked)
    if args.json:
        show.emit(told)
        return 0
    from banksman.cli import transcript

    transcript.tell(told)
    return 0
