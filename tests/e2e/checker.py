"""Compares what a load was answered with what the audit log has. Shares no code with the product: plain SQL over HTTP.

    python tests/e2e/checker.py JOURNAL --clickhouse http://127.0.0.1:8123 --user analyst --password-file FILE

prints what it counted and every fault, and exits 1 when there is one. What `judge` takes as given: Kafka's coordinates name a
record, and rows of the same coordinates are one record (the archiver may store one twice, the views show it once).
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import sys
import urllib.parse
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
Key = tuple[str, str]  # (agent, id)

NONE = "00000000-0000-0000-0000-000000000000"
COLUMNS = (
    "topic", "partition", "offset", "kind", "agent", "id", "project", "session", "seq", "call", "parent", "service", "action",
    "resource", "branch", "decision", "tier", "rule", "policy", "policy_version", "reason", "approval", "verified", "detector",
    "title", "raw",
)  # fmt: skip
ANSWERED = ("decision", "tier", "rule", "policy", "policy_version", "reason", "approval")
OPERATION = ("session", "call", "service", "action", "resource", "branch")
BAD_FINDINGS = ("id_reuse", "forged", "gap", "dead_letters", "clock_skew", "policy_disagreement")


class Kind(StrEnum):
    """What can be wrong."""

    LOST = "decision answered and lost"
    TWICE = "decision shown or recorded twice"
    HIDDEN = "decision stored and not shown"
    DIFFERS = "decision record differs from the answer"
    ALLOW = "allow answered without a matching record"
    VOIDED = "decision answered and voided"
    LEASE = "answered by a replica that was frozen, under the lease from before"
    POLICY = "not what the policy says"
    REFUSED = "a valid request was refused"
    SILENCE = "asked and never answered"
    EVENT_LOST = "event acknowledged and lost"
    EVENT_TWICE = "event shown twice"
    EVENT_DIFFERS = "event differs from what was told"
    EVENT_ORDER = "events of a session out of order"
    STRANGER = "in the log, and nobody asked or told it"
    UNVERIFIED = "a real record is not verified"
    HOLE = "offsets of a partition are missing"
    CLASH = "two different rows of one place in Kafka"
    FINDING = "a finding that should not be"


class Fault(NamedTuple):
    """One thing that is wrong."""

    kind: StrEnum
    what: str


@dataclass
class Shown:
    """What ClickHouse has (`rows`, every one) and what its views show."""

    rows: list[Row]
    decisions: Counter[Key]
    """How often the view `decisions` shows each."""
    steps: dict[Key, list[Row]]
    """(agent, session) -> the rows of `session_steps`, in the order in which they are shown: id, kind, call, seq."""
    ends: dict[tuple[str, int], int] = field(default_factory=dict)
    """(topic, partition) -> Kafka's end offset, where whoever asks knows it."""


@dataclass
class Verdict:
    """What was found, and what was counted on the way."""

    faults: list[Fault]
    counts: dict[str, int]

    def text(self) -> str:
        """For people."""
        lines = [f"{name:<50} {count:>8}" for name, count in self.counts.items()]
        lines += [f"FAULT {kind}: {count}" for kind, count in Counter(fault.kind for fault in self.faults).items()]
        return "\n".join(lines + [f"  {kind}: {what}" for kind, what in self.faults[:40]])


def judge(journal: Iterable[dict[str, Any]], shown: Shown) -> Verdict:
    """Everything that is wrong."""
    lines = list(journal)
    judging = _Judging(lines, shown)
    checks = (
        judging.log,
        judging.findings,
        judging.answers,
        judging.asked,
        judging.leases,
        judging.events,
        judging.order,
    )
    faults = [fault for check in checks for fault in check()]
    return Verdict(faults, judging.counts())


class _Judging:
    def __init__(self, lines: list[dict[str, Any]], shown: Shown) -> None:
        self.shown = shown
        self.questions = {line["id"]: line for line in lines if line["what"] == "asked"}
        self.batches = {line["id"]: line for line in lines if line["what"] == "told"}
        self.acts = {line["id"] for line in lines if line["what"] == "acted"}
        self.emitting = {line["agent"] for line in lines if line["what"] == "emitted"}
        self.emitted = {(line["agent"], line["id"]) for line in lines if line["what"] == "emitted"}
        self.duplicated = {(line["agent"], line["id"]) for line in lines if line["what"] == "duplicated"}
        self.frozen = [line for line in lines if line["what"] == "frozen"]
        self.silences = [line for line in lines if line["what"] == "silence"]
        self.replies = [line for line in lines if line["what"] == "answer"]
        self.given = [line for line in self.replies if line["status"] == 200]
        self.told = {(b["agent"], e["id"]): e for b in self.batches.values() for e in b["events"]}
        self.places: dict[tuple[str, int, int], list[Row]] = defaultdict(list)
        for row in shown.rows:
            self.places[row["topic"], row["partition"], row["offset"]].append(row)
        once = [rows[0] for _, rows in sorted(self.places.items())]
        self.findings_seen = [row for row in once if row["topic"] == "alerts"]
        self.decided: dict[Key, list[Row]] = defaultdict(list)
        self.happened: dict[Key, list[Row]] = defaultdict(list)
        self.voids: dict[Key, Row] = {}
        for row in once:
            if row["topic"] == "actions":
                self.happened[row["agent"], row["id"]].append(row)
            elif row["kind"] == "decision":
                self.decided[row["agent"], row["id"]].append(row)
            elif row["kind"] == "decision.void":
                self.voids[row["agent"], row["parent"]] = row

    def counts(self) -> dict[str, int]:
        answered = {(line["agent"], line["body"]["id"]) for line in self.given if line["id"] in self.questions}
        thaws = [(line["replica"], line["to"]) for line in self.frozen]
        slept = [
            line for line in self.replies + self.silences
            if any(line["replica"] == who and line["sent"] < to < line["received"] for who, to in thaws)
        ]  # fmt: skip
        return {
            "questions": len(self.questions),
            "answers": sum(line["id"] in self.questions for line in self.given),
            "decisions answered": len(answered),
            "decisions recorded, their answer never received": len(self.decided.keys() - answered - self.voids.keys()),
            "decisions voided": len(self.voids),
            "events acknowledged": sum(len(self.batches[line["id"]]["events"]) for line in self._taken()),
            "events stored at more than one place": sum(len(rows) > 1 for rows in self.happened.values()),
            "answers 503": sum(line["status"] == 503 for line in self.replies),
            "requests without an answer": len(self.silences),
            "requests that a frozen replica woke up to": len(slept),
            "of them answered 503": sum(line.get("status") == 503 for line in slept),
            "answers that a freeze held up behind the last check": sum(len(several) == 1 for several in self._woken()),
            "rows stored twice": sum(len(rows) - 1 for rows in self.places.values()),
        }

    def log(self) -> Iterator[Fault]:
        """The log itself: every offset there, one content a place, all of it verified and asked for by somebody."""
        offsets: dict[tuple[str, int], set[int]] = defaultdict(set)
        for place, rows in self.places.items():
            offsets[place[:2]].add(place[2])
            if len({row["raw"] for row in rows}) > 1:
                yield Fault(Kind.CLASH, f"{place}")
        for partition in offsets.keys() | self.shown.ends.keys():
            if partition[0] in (
                "actions",
                "decisions",
            ):  # nothing compacts these; `control` has heartbeats that are not stored
                have = offsets[partition]
                end = self.shown.ends.get(partition, max(have, default=-1) + 1)
                missing = sorted(set(range(end)) - have)
                if missing:
                    yield Fault(Kind.HOLE, f"{partition}: {len(missing)} of {end}, the first {missing[0]}")
        for (agent, id_), rows in (self.decided | self.happened).items():
            if not all(row["verified"] for row in rows):
                yield Fault(Kind.UNVERIFIED, f"{rows[0]['kind']} {id_} of {agent}")
        for (agent, id_), (row, *_) in self.decided.items():
            if row["parent"] not in self.questions:
                yield Fault(Kind.STRANGER, f"decision {id_} of {agent} answers {row['parent']}")
        for agent, id_ in self.happened.keys() - self.told.keys() - self.emitted:
            # Our emitter tells by itself when a session begins and ends.
            if agent not in self.emitting or not self.happened[agent, id_][0]["kind"].startswith("session."):
                yield Fault(Kind.STRANGER, f"event {id_} of {agent}")

    def findings(self) -> Iterator[Fault]:
        for row in self.findings_seen:
            if row["detector"] in BAD_FINDINGS:
                yield Fault(Kind.FINDING, f"{row['detector']}: {row['title']}")

    def answers(self) -> Iterator[Fault]:
        """Every answer stands on one record that says the same and is shown once."""
        in_steps = Counter((agent, row["id"]) for (agent, _), rows in self.shown.steps.items() for row in rows)
        for line in self.given:
            question = self.questions.get(line["id"])
            if question is None:
                continue
            answer, agent = line["body"], line["agent"]
            key, name = (agent, answer["id"]), f"{answer['id']} of {agent} ({line['replica']})"
            rows = self.decided.get(key, [])
            wrong = [_differences(row, answer, question["body"]) for row in rows]
            if answer["decision"] == "allow" and not any(found == [] for found in wrong):
                yield Fault(Kind.ALLOW, name)
            if key in self.voids:
                yield Fault(Kind.VOIDED, f"{name}: {self.voids[key]['reason']}")
            if not rows:
                yield Fault(Kind.LOST, name)
                continue
            if wrong[0]:
                yield Fault(Kind.DIFFERS, f"{name}: {'; '.join(wrong[0])}")
            recorded = 1 if key in self.duplicated else len(rows)
            if recorded > 1 or self.shown.decisions[key] > 1 or in_steps[key] > 1:
                yield Fault(
                    Kind.TWICE, f"{name}: recorded {len(rows)}, shown {self.shown.decisions[key]}, {in_steps[key]}"
                )
            if not self.shown.decisions[key] or not in_steps[key]:
                yield Fault(Kind.HIDDEN, name)

    def asked(self) -> Iterator[Fault]:
        """Everything that was sent came to an answer in the end, and to the one that a reader of the policy expects."""
        ended = {line["id"] for line in self.replies if line["status"] not in (429, 503)}
        for id_ in (self.questions.keys() | self.batches.keys() | self.acts) - ended:
            yield Fault(Kind.SILENCE, id_)
        for line in self.replies:
            again = (
                line["status"] == 409 and line["try"] > 1 and line["id"] in self.acts
            )  # it was done, its answer lost
            if line["status"] not in (200, 429, 503) and not again:
                yield Fault(Kind.REFUSED, f"{line['id']} of {line['agent']}: {line['status']} {line['body']}")
        for line in self.given:
            question = self.questions.get(line["id"])
            if question is not None and question["expected"] not in (None, line["body"]["decision"]):
                yield Fault(Kind.POLICY, f"{line['body']} instead of {question['expected']} for {question['body']}")

    def leases(self) -> Iterator[Fault]:
        """What a replica answered after it was frozen, it answered under a lease that it got after it woke up. But for one
        answer a freeze: a process can be stopped between the last check and the write to the socket, and then goes on with the
        write. It is past its `valid_until`, and whoever gets it throws it away.
        """
        for several in self._woken():
            for line, late_s in several if len(several) > 1 else ():
                until = line["body"]["valid_until"]
                yield Fault(Kind.LEASE, f"{line['body']['id']}: valid until {until}, woken {late_s:.3f} s later")

    def _woken(self) -> Iterator[list[tuple[dict[str, Any], float]]]:
        """Of each freeze: the answers after it under a lease from before, and for how long that was over when it ended."""
        for nap in self.frozen:
            given = [
                line for line in self.given
                if line["body"].get("valid_until") and nap["replica"] == line["replica"] and nap["to"] <= line["received"]
            ]  # fmt: skip
            late = [(line, nap["to"] - _moment(line["body"]["valid_until"])) for line in given]
            yield [(line, late_s) for line, late_s in late if late_s >= 0]

    def events(self) -> Iterator[Fault]:
        """Every event of an acknowledged batch is stored as it was told, and shown once."""
        in_steps = Counter((agent, row["id"]) for (agent, _), rows in self.shown.steps.items() for row in rows)
        for line in self._taken():
            for event in self.batches[line["id"]]["events"]:
                key, name = (line["agent"], event["id"]), f"{event['kind']} {event['id']} of {line['agent']}"
                if key not in self.happened or not in_steps[key]:
                    yield Fault(
                        Kind.EVENT_LOST, f"{name}: {len(self.happened.get(key, []))} stored, {in_steps[key]} shown"
                    )
        for key, rows in self.happened.items():
            if in_steps[key] > 1:
                yield Fault(Kind.EVENT_TWICE, f"{rows[0]['kind']} {key[1]} of {key[0]}: {in_steps[key]} times")
            for row in rows:
                stored, told = json.loads(row["raw"]), self.told.get(key, {})
                wrong = sorted(name for name, value in told.items() if stored.get(name) != value)
                wrong += [name for name in ("session", "kind", "seq") if told and row[name] != told[name]]
                if wrong:
                    yield Fault(Kind.EVENT_DIFFERS, f"{key[1]} of {key[0]}: {', '.join(wrong)}")

    def order(self) -> Iterator[Fault]:
        """In the log each session's events come in the order of their numbers, and so they are shown, decisions in between."""
        first: dict[Key, list[int]] = defaultdict(list)
        for _, (row, *_) in sorted(
            self.happened.items(), key=lambda item: (item[1][0]["partition"], item[1][0]["offset"])
        ):
            first[row["agent"], row["session"]].append(row["seq"])
        for session, numbers in first.items():
            yield from _unordered(numbers, f"log of {session}")
        for session, rows in self.shown.steps.items():
            yield from _unordered([row["seq"] for row in rows if row["seq"]], f"view of {session}")
            stage: dict[str, int] = {}
            for row in rows:
                call = row["id"] if row["kind"] == "tool.call" else row["call"]
                now = {"tool.call": 1, "tool.result": 3}.get(row["kind"], 2)
                if call != NONE and now < stage.setdefault(call, now):
                    yield Fault(Kind.EVENT_ORDER, f"{row['kind']} {row['id']} of {session} stands too late")
                stage[call] = now

    def _taken(self) -> list[dict[str, Any]]:
        return [line for line in self.given if line["id"] in self.batches]


def _differences(row: Row, answer: dict[str, Any], question: dict[str, Any]) -> list[str]:
    """Where a record says something else than the answer, or is about something else than the question."""
    found = [
        f"{name} {row[name]!r} for {answer.get(name)!r}"
        for name in ANSWERED
        if row[name] != (answer.get(name) or _empty(name))
    ]
    found += [
        f"{name} {row[name]!r} for {question.get(name)!r}"
        for name in OPERATION
        if row[name] != (question.get(name) or _empty(name))
    ]
    if row["parent"] != question["id"]:
        found.append(f"parent {row['parent']} for {question['id']}")
    return found


def _empty(name: str) -> Any:
    return {"tier": 0, "call": NONE}.get(name, "")


def _unordered(numbers: list[int], where: str) -> Iterator[Fault]:
    for before, after in itertools.pairwise(numbers):
        if after <= before:
            yield Fault(Kind.EVENT_ORDER, f"{where}: {after} behind {before}")


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


# ── reading ──


@dataclass(frozen=True)
class ClickHouse:
    """An address and a user that may read."""

    url: str
    user: str
    password: str = field(repr=False)
    database: str = "banksman"

    def ask(self, sql: str, **parameters: str) -> list[Row]:
        """Rows; `@` in front of a table is the database, `{name:Type}` a parameter. OSError when there is no answer."""
        text = sql.replace("@", f"`{self.database}`.") + " FORMAT JSONEachRow"
        query = {f"param_{name}": value for name, value in parameters.items()}
        query |= {"output_format_json_quote_64bit_integers": "0"}
        request = urllib.request.Request(f"{self.url}/?{urllib.parse.urlencode(query)}", text.encode())
        login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        request.add_header("Authorization", f"Basic {login}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return [json.loads(line) for line in answer.read().splitlines()]


def rows_of(clickhouse: ClickHouse) -> list[Row]:
    """Every row that is no control."""
    return clickhouse.ask(f"SELECT {', '.join(COLUMNS)} FROM @events WHERE topic != 'control'")


def read(clickhouse: ClickHouse, ends: dict[tuple[str, int], int] | None = None) -> Shown:
    """All of it."""
    rows = rows_of(clickhouse)
    view = clickhouse.ask(
        "SELECT agent, id, count() AS n FROM @decisions(since = '1970-01-01 00:00:00') GROUP BY agent, id"
    )
    sessions = sorted({(row["agent"], row["session"]) for row in rows if row["session"] and row["topic"] != "alerts"})
    steps = {
        (agent, session): clickhouse.ask(
            "SELECT id, kind, call, seq FROM @session_steps(agent = {a:String}, session = {s:String}) ORDER BY n",
            a=agent,
            s=session,
        )
        for agent, session in sessions
    }
    return Shown(rows, Counter({(row["agent"], row["id"]): row["n"] for row in view}), steps, ends or {})


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Compare a load's journal with the audit log.")
    parser.add_argument("journal", type=Path)
    parser.add_argument("--clickhouse", default="http://127.0.0.1:8123")
    parser.add_argument("--user", default="analyst")
    parser.add_argument("--password-file", type=Path, required=True)
    parser.add_argument("--database", default="banksman")
    given = parser.parse_args()
    lines = [json.loads(line) for line in given.journal.read_text().splitlines()]
    clickhouse = ClickHouse(given.clickhouse, given.user, given.password_file.read_text().strip(), given.database)
    verdict = judge(lines, read(clickhouse))
    print(verdict.text())
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())
