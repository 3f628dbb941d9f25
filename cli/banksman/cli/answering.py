"""What `approve` and `deny` share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from banksman.cli import client, show
from banksman.cli.approvals import operation

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("approval", help="its id: `banksman approvals`")
    parser.add_argument("-m", "--comment", metavar="TEXT", help="for the agent's owner and the log")
    show.json_argument(parser)


def answer(args: argparse.Namespace, verdict: Literal["approve", "deny"]) -> int:
    """Say it, and say what came of it."""
    body = {"verdict": verdict} | ({"comment": args.comment} if args.comment else {})
    told = client.enforcer().post(f"/v1/approvals/{client.part(args.approval)}", body)
    if args.json:
        show.emit(told)
        return 0
    what = f"{told['agent']}, session {told['session']}: {operation(told)}"
    if told["status"] == "pending":
        have = sum(vote["verdict"] == "approve" for vote in told["votes"])
        show.say(f"your yes is counted, {have} so far; it takes more: {what}", "yellow")
    else:
        show.say(f"{told['status']}: {what}", "red" if verdict == "deny" else "green")
    return 0
