"""`banksman approvals`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from banksman.cli import client, show, words

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

HELP = """The inbox: what agents may do only if a human says yes. `banksman approve ID` and `banksman deny ID` answer; who says
nothing in time has said no. With an ID everything about one: first what the enforcer knows by itself, last what the
agent says about it, which is the agent's word and no more."""
EXAMPLES = """
  banksman approvals
  banksman approvals 0190a3c2-7d1e-7b60-8a55-0f0c2f9e1d11
  banksman approvals --status all --json | jq '.approvals[] | select(.agent == "claude-invoice-01")'
"""
STATUSES = ("pending", "approved", "denied", "expired", "used", "all")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("approval", nargs="?", help="one of them, in full")
    parser.add_argument(
        "--status", choices=STATUSES, default="pending", help="those that are so; pending where not given"
    )
    show.json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    if args.approval:
        told = client.enforcer().get(f"/v1/approvals/{client.part(args.approval)}")
        if args.json:
            show.emit(told)
        else:
            show.pairs(about(told))
        return 0
    found = client.enforcer().get("/v1/approvals", {"status": args.status})["approvals"]
    if args.json:
        show.emit({"approvals": found})
        return 0
    nothing = "nothing waits for an answer" if args.status == "pending" else f"no approval is {args.status}"
    show.table(
        ("approval", "status", "agent", "session", "wants to", "rule", ">ends", "agent says"),
        map(_row, found),
        empty="there are no approvals" if args.status == "all" else nothing,
    )
    return 0


def about(told: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Everything about one, for people."""
    yield "approval", told["approval"]
    yield "status", told["status"]
    yield "agent", f"{told['agent']}, project {told['project']}, owner {told['owner'] or 'not known'}"
    yield "session", told["session"]
    for part in ("service", "action", "resource", "branch"):
        if told[part] is not None:
            yield part, told[part]
    if told.get("subject"):
        yield "for", told["subject"]
    if told["args"]:
        yield "with", json.dumps(told["args"], ensure_ascii=False)
    yield "rule", f"{told['rule']} of {told['policy_version']}"
    yield "asked", show.moment(told["requested_at"])[:19]
    yield "ends", f"{show.moment(told['expires_at'])[:19]} ({_left(told)})"
    for wanted in told["wanted"]:
        whom = f"of {words.listed(wanted['any'], 'or')}" if wanted["any"] else "of anybody who may approve"
        yield "takes", f"{wanted['min']} yes {whom}"
    for vote in told["votes"]:
        said = f": {vote['comment']}" if vote["comment"] else ""
        yield "answer", f"{vote['verdict']} by {vote['by']}, {show.moment(vote['at'])[:19]}{said}"
    yield "agent says", told["agent_says"] or "nothing"


def _row(told: Mapping[str, Any]) -> tuple[object, ...]:
    args = f" {show.short(json.dumps(told['args'], ensure_ascii=False), words.MOST_ARGS)}" if told["args"] else ""
    says = "(at length)" if told["brief"] else ""
    return (
        told["approval"], told["status"], told["agent"], told["session"], operation(told) + args, told["rule"],
        _left(told), show.short(told["agent_says"] or says, words.MOST_TEXT),
    )  # fmt: skip


def operation(told: Mapping[str, Any]) -> str:
    """What it is for, whole. What could be taken for two parts stands in quotes: who approves must see what, and for whom. That
    stands first, where else the service is: a policy names it, so no agent can make it look like that.
    """
    whole = " ".join(map(_quoted, filter(None, (told[name] for name in ("service", "action", "resource", "branch")))))
    return f"for {_quoted(told['subject'])}: {whole}" if told.get("subject") else whole


def _quoted(part: str) -> str:
    return part if part.isprintable() and " " not in part else json.dumps(part)


def _left(told: Mapping[str, Any]) -> str:
    left = (datetime.fromisoformat(told["expires_at"]) - datetime.now(UTC)).total_seconds()
    return f"in {show.seconds(left)}" if left > 0 else "over"
