"""What must be in the audit log after the demo, and what is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from banksman.cli import recording

if TYPE_CHECKING:
    from pathlib import Path

    from banksman.cli.client import Client

SQL = """
SELECT toString(if(kind = 'decision' AND replay != '', parent, id)) AS record, uniqExact(id, body_hash) AS times
FROM events
WHERE session IN {sessions:Array(String)} AND verified
    AND (topic = 'actions' OR kind = 'decision')
    AND id NOT IN (SELECT parent FROM events WHERE session IN {sessions:Array(String)} AND kind = 'decision.void')
GROUP BY record
"""
"""A replayed decision goes by its question, which the recording names. One that was voided was never answered: whoever asked
has asked again."""


@dataclass
class Expected:
    """Ids of the records that must be there, and every session that they are in."""

    records: set[str] = field(default_factory=set)
    sessions: set[str] = field(default_factory=set)

    def add(self, other: Expected) -> None:
        """Take in another's."""
        self.records |= other.records
        self.sessions |= other.sessions


@dataclass(frozen=True)
class Count:
    """Of what is there: ids that are missing, that stand for more than one record, that nobody sent."""

    sent: int
    found: int
    missing: set[str]
    several: set[str]
    strange: set[str]

    @property
    def exact(self) -> bool:
        """Each exactly once and nothing else."""
        return not any(self.faults().values())

    def faults(self) -> dict[str, set[str]]:
        """What is wrong, in words -> the ids that it is about."""
        return {"are missing": self.missing, "are there more than once": self.several, "were never sent": self.strange}


def of_recording(file: Path) -> Expected:
    """What a replay of `file` leaves behind: a function of the file."""
    found = recording.survey(file)
    names = recording.Names.of(found)
    expected = Expected()
    for action in recording.read(file):
        script = recording.script(action, found, names)
        expected.sessions.add(script.question["session"])
        expected.records |= {part["id"] for part in (*script.before, script.question, *script.after)}
    return expected


def count(console: Client, expected: Expected) -> Count:
    """Look now. A record that a client had to send again is stored at two places and shown once: same id, same content."""
    answer = console.post(
        "/v1/sql", {"query": SQL, "parameters": {"sessions": sorted(expected.sessions)}, "format": "json"}
    )
    times = {row[0]: int(row[1]) for row in answer["rows"]}
    return Count(
        sent=len(expected.records),
        found=len(expected.records & times.keys()),
        missing=expected.records - times.keys(),
        several={record for record, number in times.items() if number > 1},
        strange=times.keys() - expected.records,
    )
