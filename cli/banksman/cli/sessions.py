"""`banksman sessions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from banksman.cli import client, now, show, words
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

HELP = """The runs of agents, the one that acted last first. Numbers are of the whole session, also where it began before
--since. What `banksman replay` sent is history and only listed with --replay."""
EXAMPLES = """
  banksman sessions                                         the last 24 hours
  banksman sessions claude-invoice-01 --since 7d
  banksman sessions --project billing-automation --since 2026-03-01T00:00:00Z --limit 500 --json
  banksman sessions --replay march-incident
"""
PAGE = 1000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("agent", nargs="?", help="only sessions of this agent")
    parser.add_argument("--project", help="only sessions of this project")
    parser.add_argument("--since", metavar="TIME", help="RFC 3339, or a length before now: 90s, 15m, 2h, 7d (24h)")
    parser.add_argument("--until", metavar="TIME", help="likewise (now)")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many (50)")
    parser.add_argument("--replay", metavar="RUN", help="of this replay; '*': live ones and all replays")
    show.json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    if args.limit < 1:
        raise InvalidInput("must be 1 or more", field="--limit")
    console = client.console()
    query = {name: getattr(args, name) for name in ("agent", "project", "since", "until", "replay")}
    found: list[Mapping[str, Any]] = []
    cursor = None
    while len(found) < args.limit:
        page = console.get("/v1/sessions", query | {"limit": min(PAGE, args.limit - len(found)), "cursor": cursor})
        found += page["sessions"]
        cursor = page["next"]
        if cursor is None:
            break
    if args.json:
        show.emit({"sessions": found, "more": cursor is not None})
        return 0
    if not found and args.agent:
        now.ask(console, args.agent, None if args.replay == "*" else args.replay)  # says so when there is no such agent
    replays = any(one["replay"] for one in found)
    show.table(
        (
            "session", "agent", "project", "state", "last seen (UTC)", ">took", ">actions", ">allow", ">deny", ">approve",
            ">tokens", ">cost", *(["replay"] if replays else []),
        ),
        [_row(one, replays=replays) for one in found],
        empty=f"no session since {args.since or '24h'}: --since asks further back",
    )  # fmt: skip
    if cursor is not None:
        show.note(f"there are more: --limit (now {args.limit})")
    return 0


def _row(one: Mapping[str, Any], *, replays: bool) -> tuple[object, ...]:
    state = one["state"] + (" (error)" if one["status"] == "error" and one["state"] in ("ended", "killed") else "")
    cost = words.money(one["cost_usd"]) + (f" +{one['unpriced_calls']} unpriced" if one["unpriced_calls"] else "")
    return (
        one["session"], one["agent"], one["project"], state, show.moment(one["last_seen"])[:19],
        show.seconds(one["duration_s"] or 0), words.number(one["actions"]), words.number(one["allowed"]),
        words.number(one["denied"]), words.number(one["sent_to_approval"]), words.number(one["tokens"]), cost,
        *([one["replay"]] if replays else []),
    )  # fmt: skip
