"""What the detectors must have seen in the demo: told in Slack, on record, and acted upon as the policies want it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from banksman.cli import show
from banksman.cli.demo.scripts import REFUNDS, REPORT, TESTS

if TYPE_CHECKING:
    from banksman.cli.client import Client
    from banksman.cli.demo.live import Live
    from banksman.cli.demo.slack import Message, Slack

WITHIN_S = 30.0
WANTED = {
    ("loops", TESTS, "page"): "is stuck; its policy wants its session killed",
    ("budgets", REPORT, "page"): "has spent its budget",
    ("anomalies", REFUNDS, "warn"): "does what it never did",
}
"""(detector, agent, severity) -> what it is about."""

SQL = """
SELECT detector, agent, severity, JSONExtractString(raw, 'evidence', 'channel'), JSONExtractString(raw, 'evidence', 'ts')
FROM events WHERE topic = 'alerts' AND kind = 'alert' AND verified AND received >= {since:DateTime64(3)}
"""
SQL_ACTS = """
SELECT countIf(kind = 'session.killed' AND agent = {looping:String} AND operator = ''),
    countIf(kind = 'decision' AND agent = {looping:String} AND reason = 'killed'),
    countIf(kind = 'decision' AND agent = {spending:String} AND reason = 'exhausted')
FROM events WHERE verified AND replay = '' AND received >= {since:DateTime64(3)}
"""


def tell(live: Live, what: str, message: Message) -> None:
    """A message as people see it come."""
    if what == "edit":
        return
    mark = "slack  " if what == "post" else "slack ↳"
    with live.printing:
        show.say(f"{mark}   {message.channel:<18} {show.safe(message.text.splitlines()[0])}", "bold")


@dataclass(frozen=True)
class Seen:
    """Which of WANTED are in Slack, which are on record; what was done about them."""

    told: set[tuple[str, str, str]]
    recorded: set[tuple[str, str, str]]
    kills: int
    killed: int
    exhausted: int

    @property
    def all(self) -> bool:
        """Nothing is missing."""
        return self.told == set(WANTED) and min(self.kills, self.killed, self.exhausted) > 0


def look(console: Client, slack: Slack, since: str) -> Seen:
    """Look now."""
    there = {(one.channel, one.ts) for one in slack.messages}
    asked = {"query": SQL, "parameters": {"since": since}, "format": "json"}
    rows = [tuple(map(str, row)) for row in console.post("/v1/sql", asked)["rows"]]
    recorded = {row[:3] for row in rows if row[:3] in WANTED}
    told = {row[:3] for row in rows if row[:3] in WANTED and row[3:] in there}
    parameters = {"since": since, "looping": TESTS, "spending": REPORT}
    acts = console.post("/v1/sql", {"query": SQL_ACTS, "parameters": parameters, "format": "json"})
    return Seen(told, recorded, *map(int, acts["rows"][0]))  # type: ignore[arg-type]  # three words each


def verdict(console: Client, slack: Slack, since: str) -> int:
    """Look until all is there, or the time is over; say what came of it -> the exit code."""
    until = time.monotonic() + WITHIN_S
    while not (seen := look(console, slack, since)).all and time.monotonic() < until:
        time.sleep(0.2)  # between two looks
    show.say(f"  alerts     {len(seen.told)} of {len(WANTED)} are in Slack and in the audit log")
    for wanted, about in WANTED.items():
        if wanted not in seen.told:
            where = "on record, but not in Slack" if wanted in seen.recorded else "nowhere"
            show.say(f"  WRONG: that {wanted[1]} {about} ({wanted[0]}) is {where}", "red")
    show.say(
        f"  detectors  killed {seen.kills} session, afterwards {seen.killed} questions denied; "
        f"{seen.exhausted} denied for a spent budget"
    )
    if not seen.all:
        show.say("  WRONG: not every alert was told, or not acted upon as the policy wants", "red")
    return 0 if seen.all else 1
