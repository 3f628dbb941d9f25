"""The checker of the fault runs is itself checked: each kind of fault, planted into a faultless run, is found, and no other."""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NamedTuple

import pytest
from tests.e2e.checker import NONE, Kind, Row, Shown, judge

CALLS = 6
Lines = list[dict[str, Any]]


class Run(NamedTuple):
    """A journal and what ClickHouse shows, without a fault until one is planted."""

    journal: Lines
    shown: Shown

    def kinds(self) -> Counter[StrEnum]:
        return Counter(fault.kind for fault in judge(self.journal, self.shown).faults)

    def rows(self, kind: str) -> list[Row]:
        return [row for row in self.shown.rows if row["kind"] == kind]

    def lines(self, what: str) -> Lines:
        return [line for line in self.journal if line["what"] == what]

    def answers(self) -> Lines:
        return [line for line in self.lines("answer") if "decision" in line["body"]]

    def steps(self) -> list[Row]:
        return self.shown.steps["ann", "s"]


def identifier(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012d}"


def faultless() -> Run:
    """One session of one agent: calls, questions, results, a retried batch, rows stored twice, a void, a frozen replica."""
    journal: Lines = []
    rows: list[Row] = []
    shown: list[Row] = []
    numbers, clock = itertools.count(1), itertools.count(1000)
    offsets = {"actions": itertools.count(), "decisions": itertools.count()}
    seq = itertools.count(1)

    def store(topic: str, kind: str, id_: str, **more: Any) -> Row:
        row: Row = {
            "topic": topic, "partition": 0, "offset": next(offsets[topic]), "kind": kind, "agent": "ann", "id": id_,
            "project": "faults", "session": "s", "seq": 0, "call": NONE, "parent": NONE, "service": "", "action": "",
            "resource": "", "branch": "", "decision": "", "tier": 0, "rule": "", "policy": "", "policy_version": "",
            "reason": "", "approval": "", "verified": True, "detector": "", "title": "", "raw": "{}",
        }  # fmt: skip
        rows.append(row | more)
        return rows[-1]

    def line(what: str, id_: str, **more: Any) -> None:
        journal.append({"what": what, "id": id_, "agent": "ann", "replica": "enforcer-1", "sent": next(clock)} | more)

    def answer(id_: str, body: dict[str, Any]) -> None:
        line("answer", id_, **{"try": 1}, status=200, body=body, received=next(clock))

    def tell(*events: dict[str, Any]) -> None:
        batch = identifier(next(numbers))
        line("told", batch, session="s", events=list(events))
        for event in events:
            extra = {name: event[name] for name in ("call", "parent") if name in event}
            shown.append(store("actions", event["kind"], event["id"], seq=event["seq"], raw=json.dumps(event), **extra))
        answer(batch, {"accepted": len(events)})

    def event(kind: str, **more: Any) -> dict[str, Any]:
        return {"id": identifier(next(numbers)), "kind": kind, "session": "s", "seq": next(seq), **more}

    for n in range(CALLS):
        outcome = ("allow", "deny", "approve")[n % 3]
        operation = {"service": "git", "action": "push", "resource": "acme/billing"}
        note = event("note", text="before")
        call = event("tool.call", **operation)
        tell(note, call)
        question = {"id": identifier(next(numbers)), "call": call["id"], "session": "s", **operation}
        line("asked", question["id"], session="s", body=question, expected=outcome)
        given: dict[str, Any] = {
            "id": identifier(next(numbers)), "decision": outcome, "tier": 2, "rule": "r", "policy": "p",
            "policy_version": "p@v1", "reason": "allowed", "valid_until": "1970-01-01T01:00:00.000000Z",
        }  # fmt: skip
        if outcome == "approve":
            given["approval"] = identifier(next(numbers))
        record = {k: v for k, v in given.items() if k not in ("id", "valid_until")} | operation
        shown.append(store("decisions", "decision", given["id"], call=call["id"], parent=question["id"], **record))
        answer(question["id"], given)
        tell(event("tool.result", call=call["id"], parent=call["id"], status="ok"))
    # No faults: a decision that its caller never got, one that was voided, an event that landed twice, a row stored twice.
    for lost in ("enforcer-1", "enforcer-2"):
        question = {"id": identifier(next(numbers)), "session": "s", "service": "git", "action": "pull"}
        line("asked", question["id"], session="s", body=question, expected="deny")
        unheard = store("decisions", "decision", identifier(next(numbers)), parent=question["id"], decision="deny")
        shown.append(unheard)
        if lost == "enforcer-2":
            shown.append(store("decisions", "decision.void", identifier(next(numbers)), parent=unheard["id"]))
            voided = unheard["id"]
        line("silence", question["id"], received=next(clock), error="RemoteDisconnected")
        given = {"id": identifier(next(numbers)), "decision": "deny", "tier": 4, "rule": None, "reason": "no_rule"}
        record = {k: v or "" for k, v in given.items() if k != "id"} | {"service": "git", "action": "pull"}
        shown.append(store("decisions", "decision", given["id"], parent=question["id"], **record))
        answer(question["id"], given)
    again = next(row for row in rows if row["kind"] == "note")
    rows.append(again | {"offset": next(offsets["actions"])})
    rows.append(copy.deepcopy(again))
    line("frozen", "", **{"from": 1003, "to": 1004})
    ids = Counter((row["agent"], row["id"]) for row in rows if row["kind"] == "decision" and row["id"] != voided)
    ends = {(topic, 0): next(count) for topic, count in offsets.items()}
    return Run(journal, Shown(rows, ids, {("ann", "s"): [dict(row) for row in shown]}, ends))


def test_a_faultless_run_has_no_fault() -> None:
    run = faultless()
    verdict = judge(run.journal, run.shown)
    assert verdict.faults == []
    assert verdict.counts["decisions answered"] == CALLS + 2
    assert verdict.counts["decisions recorded, their answer never received"] == 1
    assert verdict.counts["decisions voided"] == 1
    assert verdict.counts["events acknowledged"] == 3 * CALLS
    assert verdict.counts["events stored at more than one place"] == 1
    assert verdict.counts["rows stored twice"] == 1


PLANTED: dict[Kind, Callable[[Run], object]] = {}
BESIDES: dict[Kind, set[Kind]] = {
    # One deed, seen from two sides.
    Kind.LOST: {Kind.HOLE},
    Kind.ALLOW: {Kind.DIFFERS},
    Kind.VOIDED: {Kind.HIDDEN},
    Kind.EVENT_LOST: {Kind.HOLE},
}


def plants(kind: Kind) -> Callable[[Callable[[Run], object]], Callable[[Run], object]]:
    def note(plant: Callable[[Run], object]) -> Callable[[Run], object]:
        PLANTED[kind] = plant
        return plant

    return note


@plants(Kind.LOST)
def _(run: Run) -> None:
    gone = next(row for row in run.rows("decision") if row["decision"] == "deny")
    run.shown.rows.remove(gone)
    run.steps()[:] = [row for row in run.steps() if row["id"] != gone["id"]]
    del run.shown.decisions["ann", gone["id"]]


@plants(Kind.TWICE)
def _(run: Run) -> None:
    run.shown.decisions["ann", run.answers()[0]["body"]["id"]] += 1


@plants(Kind.HIDDEN)
def _(run: Run) -> None:
    del run.shown.decisions["ann", run.answers()[0]["body"]["id"]]


@plants(Kind.DIFFERS)
def _(run: Run) -> None:
    run.rows("decision")[1]["policy_version"] = "p@v2"


@plants(Kind.ALLOW)
def _(run: Run) -> None:
    run.rows("decision")[0]["resource"] = "acme/other"


@plants(Kind.VOIDED)
def _(run: Run) -> None:
    run.rows("decision.void")[0] |= {"parent": run.answers()[1]["body"]["id"], "reason": "lease_ended"}
    run.shown.decisions["ann", run.answers()[1]["body"]["id"]] = 0


@plants(Kind.LEASE)
def _(run: Run) -> None:
    for answer in run.answers()[2:4]:
        answer["body"]["valid_until"] = "1970-01-01T00:16:43.900000Z"


@plants(Kind.POLICY)
def _(run: Run) -> None:
    run.lines("asked")[1]["expected"] = "approve"


@plants(Kind.REFUSED)
def _(run: Run) -> None:
    run.journal.append(run.answers()[0] | {"status": 401, "body": {"title": "Unauthorized"}})


@plants(Kind.SILENCE)
def _(run: Run) -> None:
    run.journal.append(run.lines("asked")[0] | {"id": identifier(777)})


@plants(Kind.EVENT_LOST)
def _(run: Run) -> None:
    gone = run.rows("tool.result")[2]
    run.shown.rows.remove(gone)
    run.steps()[:] = [row for row in run.steps() if row["id"] != gone["id"]]


@plants(Kind.EVENT_TWICE)
def _(run: Run) -> None:
    # What a resend with other bytes would look like. It stands beside the first, so the order is not what is wrong.
    first = next(row for row in run.steps() if row["kind"] == "note")
    run.steps().insert(0, first | {"seq": 0})


@plants(Kind.EVENT_DIFFERS)
def _(run: Run) -> None:
    row = run.rows("tool.call")[1]
    row["raw"] = row["raw"].replace("acme/billing", "acme/other")


@plants(Kind.EVENT_ORDER)
def _(run: Run) -> None:
    steps = run.steps()
    at = next(n for n, row in enumerate(steps) if row["kind"] == "tool.call")
    steps[at - 1], steps[at] = steps[at], steps[at - 1]


@plants(Kind.STRANGER)
def _(run: Run) -> None:
    batch = run.lines("told")[0]
    run.journal[:] = [line for line in run.journal if line["id"] != batch["id"]]


@plants(Kind.UNVERIFIED)
def _(run: Run) -> None:
    run.rows("note")[1]["verified"] = False


@plants(Kind.HOLE)
def _(run: Run) -> None:
    run.shown.ends["actions", 0] += 1


@plants(Kind.CLASH)
def _(run: Run) -> None:
    run.shown.rows.append(run.rows("decision")[0] | {"raw": '{"other": 1}'})


@plants(Kind.FINDING)
def _(run: Run) -> None:
    about = {"topic": "alerts", "kind": "finding", "detector": "id_reuse", "title": "an id was used twice"}
    run.shown.rows.append(run.rows("note")[0] | about)


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
def test_each_fault_is_found_and_nothing_else(kind: Kind) -> None:
    run = faultless()
    PLANTED[kind](run)
    found = set(run.kinds())
    assert kind in found
    assert found <= {kind} | BESIDES.get(kind, set())


def test_out_of_order_in_the_log_too() -> None:
    """Not only in the view: the numbers of a session must come in order at Kafka's places."""
    run = faultless()
    first, second = run.rows("tool.result")[:2]
    first["offset"], second["offset"] = second["offset"], first["offset"]
    assert set(run.kinds()) == {Kind.EVENT_ORDER}


def test_a_decision_recorded_twice_under_one_id() -> None:
    run = faultless()
    run.shown.rows.append(run.rows("decision")[0] | {"offset": run.shown.ends["decisions", 0]})
    run.shown.ends["decisions", 0] += 1
    assert set(run.kinds()) == {Kind.TWICE}


def test_an_answer_from_before_the_freeze_is_no_fault() -> None:
    """A replica may have answered under its old lease before it stood still."""
    run = faultless()
    nap = run.lines("frozen")[0]
    early = run.answers()[0]
    early["body"]["valid_until"] = "1970-01-01T00:16:40.000000Z"
    nap |= {"from": early["received"] + 1, "to": early["received"] + 4}
    assert Kind.LEASE not in run.kinds()
    nap["to"] = early["received"]
    run.answers()[1]["body"]["valid_until"] = early["body"]["valid_until"]
    assert Kind.LEASE in run.kinds()


def test_a_freeze_may_hold_up_one_answer_behind_its_check() -> None:
    """Stopped between the last check and the write. A second one was answered without a check."""
    name = "answers that a freeze held up behind the last check"
    run = faultless()
    assert judge(run.journal, run.shown).counts[name] == 0
    run.answers()[2]["body"]["valid_until"] = "1970-01-01T00:16:43.900000Z"
    assert Kind.LEASE not in run.kinds()
    assert judge(run.journal, run.shown).counts[name] == 1
    run.answers()[3]["body"]["valid_until"] = "1970-01-01T00:16:43.900000Z"
    assert Kind.LEASE in run.kinds()
