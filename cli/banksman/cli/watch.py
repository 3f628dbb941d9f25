"""`banksman watch [AGENT]`."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeAlias

from banksman.cli import client, now, show, words
from banksman.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

HELP = """What agents do, as it happens: every record of actions and decisions from now on, until Ctrl-C. When the console
goes away, watching goes on where it stopped as soon as it is back: nothing is missed and nothing is shown twice. Times UTC."""
EXAMPLES = """
  banksman watch                                   everybody
  banksman watch claude-invoice-01
  banksman watch --project billing-automation --json | jq -c 'select(.decision == "deny")'
  banksman watch claude-invoice-01 --limit 1       wait for the next record, then go on with a script
"""
PAUSE_S = (0.5, 5.0)  # between two tries to get back: the first, and what it grows to
KNOWN_CALLS = 1000

Calls: TypeAlias = "OrderedDict[tuple[str, str], str]"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("agent", nargs="?", help="only this agent")
    parser.add_argument("--project", help="only this project")
    parser.add_argument("--session", metavar="ID", help="only this session")
    parser.add_argument(
        "--replay", metavar="RUN", help="what is replayed in this run; '*': live records and all replays"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="end after so many records")
    show.json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Do it. Returns after --limit records; else Ctrl-C ends it."""
    if args.limit is not None and args.limit < 1:
        raise InvalidInput("must be 1 or more", field="--limit")
    console = client.console()
    if args.agent:
        _must_be_known(console, args.agent)
    query = {name: getattr(args, name) for name in ("agent", "project", "session", "replay")}
    calls: Calls = OrderedDict()
    for number, record in enumerate(records(console, query), 1):
        if args.json:
            show.emit(record)
        else:
            show.say(line(record, calls), show.STYLES.get(record["decision"] or record["status"] or "", ""))
        if number == args.limit:
            break
    return 0


def records(console: client.Client, query: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every record from now on, over outages of the console. Problem: it says no. Unavailable: it was never there."""
    last, begun, pause, told = "", False, PAUSE_S[0], ""
    while True:
        try:
            for message in console.stream("/v1/watch", query, last_id=last):
                if told and message.event != "problem":
                    show.note("it is back")
                    told = ""
                last, begun, pause = message.id, True, PAUSE_S[0]
                if message.event == "problem":
                    told = _tell_once(json.loads(message.data)["detail"], told)
                elif message.event == "action":
                    yield json.loads(message.data)
        except (Unavailable, client.Problem) as error:
            if not begun or (isinstance(error, client.Problem) and error.exit_code != 4):
                raise
            told = _tell_once(f"{error}; trying again", told)
        time.sleep(pause)
        pause = min(pause * 2, PAUSE_S[1])


def line(record: Mapping[str, Any], calls: Calls) -> str:
    """A record as a line. `calls` remembers what calls were about: a result only names its call."""
    about = words.what(record)
    key = (record["agent"], record["call"] or record["id"])
    if record["kind"] in ("tool.call", "api.request"):
        calls[key] = words.operation(record)
        if len(calls) > KNOWN_CALLS:
            calls.popitem(last=False)
    elif record["kind"] == "tool.result":
        about = " ".join(
            part for part in (about.removeprefix("result").lstrip(": "), f"({calls.get(key, 'a call before')})")
        )
    parts = [
        show.moment(record["time"])[11:],
        record["agent"],
        record["session"] or "-",
        f"{record['kind']:<16}",
        record["decision"] or record["status"],
        about,
        words.ruling(record),
        words.milliseconds(record["duration_ms"]),
        f"{record['tokens']:,} tokens" if record["tokens"] else "",
        words.money(record["cost_usd"]),
        *(f"[{mark}]" for mark in words.marks(record)),
    ]
    return "  ".join(part for part in parts if part)


def _tell_once(text: str, told: str) -> str:
    if text != told:
        show.note(text)
    return text


def _must_be_known(console: client.Client, agent: str) -> None:
    """InvalidInput: nobody has that name. Watching an agent that cannot be looked up now (ClickHouse is away) is fine."""
    try:
        now.ask(console, agent)
    except client.Problem as problem:
        if problem.exit_code != 4:
            raise
