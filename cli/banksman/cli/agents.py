"""`banksman agents`, `agents add`, `agents rotate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from banksman.cli import client, show
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    import argparse

HELP = "The agents that are enrolled; `add` enrols one, `rotate` gives one a new credential and ends the old one."
EXAMPLES = """
  banksman agents
  banksman agents --json
  banksman agents add claude-invoice-01 --project billing-automation --owner ann@acme.example
  banksman agents add ci-bot --project ci --owner ops --out ci-bot.credential
  banksman agents rotate ci-bot --out ci-bot.credential
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    show.json_argument(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="add | rotate")
    add = verbs.add_parser("add", help="enrol an agent; its credential is shown once", allow_abbrev=False)
    add.add_argument("agent", help="its name")
    add.add_argument("--project", required=True, help="the project whose policy it works under")
    add.add_argument("--owner", required=True, help="the person or team that answers for it")
    rotate = verbs.add_parser("rotate", help="a new credential; the old one ends at once", allow_abbrev=False)
    rotate.add_argument("agent", help="its name")
    for verb in (add, rotate):
        verb.add_argument(
            "--out", metavar="FILE", type=Path, help="write the credential there (0600) instead of showing it"
        )
        verb.add_argument("--json", action="store_true", help="JSON on stdout, for programs")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    enforcer = client.enforcer()
    if args.verb == "add":
        reserve(args.out)
        answer = enforcer.post("/v1/agents", {"agent": args.agent, "project": args.project, "owner": args.owner})
        return hand_over(answer, args, f"{args.agent} is enrolled in {args.project}")
    if args.verb == "rotate":
        reserve(args.out)
        answer = enforcer.post(f"/v1/agents/{client.part(args.agent)}/rotate")
        return hand_over(answer, args, f"{args.agent} has a new credential, the old one is refused from now on")
    answer = enforcer.get("/v1/agents")
    if args.json:
        show.emit(answer)
        return 0
    show.table(
        ("agent", "project", "owner", "enrolled", "rotated"),
        [
            (one["agent"], one["project"], one["owner"], one.get("enrolled_at"), one.get("rotated_at"))
            for one in answer["agents"]
        ],
        empty="no agent is enrolled yet: banksman agents add NAME --project P --owner O",
    )
    return 0


def reserve(out: Path | None) -> None:
    """Refuse before anything is enrolled what could not be written afterwards: the credential is shown once."""
    if out is None:
        return
    folder = out.parent
    if out.is_dir() or not folder.is_dir() or not os.access(out if out.exists() else folder, os.W_OK):
        raise InvalidInput(f"{out} cannot be written", field="--out")


def hand_over(answer: dict[str, str], args: argparse.Namespace, sentence: str) -> int:
    """Give a new credential to whoever asked: into the file, or on stdout with a word on stderr."""
    if args.out is not None:
        from banksman.cli.folder import write_secret

        write_secret(args.out, answer["token"])
        show.note(f"{sentence}; the credential is in {args.out}")
        if args.json:
            show.emit({key: value for key, value in answer.items() if key != "token"} | {"out": str(args.out)})
        return 0
    if args.json:
        show.emit(answer)
        return 0
    show.note(f"{sentence}. Its credential, shown this once:")
    print(answer["token"])
    return 0
