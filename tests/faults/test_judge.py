"""The judge of the fault runs is itself judged: each kind of fault, planted into a faultless run, is found, and no other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tests.faults.judge import EDIT_S, Kind, World, counts, judge

BEGAN = 1000.0


class Making:
    """A world in the making, one line after the other."""

    def __init__(self) -> None:
        self.journal: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self.ended = Counter({("worker", 70): 2, ("clickhouse", 3): 1})
        self._now, self._ids, self._offsets = BEGAN, 0, 0

    def pass_time(self, seconds: float) -> float:
        self._now += seconds
        return self._now

    def id(self) -> str:
        self._ids += 1
        return f"00000000-0000-7000-8000-{self._ids:012d}"

    def row(self, topic: str, kind: str, agent: str, **more: Any) -> dict[str, Any]:
        self._offsets += 1
        made = {
            "topic": topic, "partition": 0, "offset": self._offsets, "kind": kind, "agent": agent, "id": self.id(),
            "session": "", "parent": "", "decision": "", "approval": "", "verified": True, "detector": "", "title": "",
            "raw": "{}",
        } | more  # fmt: skip
        self.rows.append(made)
        return made

    def ask(self, agent: str, session: str, decision: str, *, version: int = 0, **body: Any) -> dict[str, Any]:
        """A question, its answer and its record -> the answer's line."""
        id_, sent = self.id(), self.pass_time(1)
        row = self.row("decisions", "decision", agent, decision=decision, parent=id_, approval=body.get("approval", ""))
        answer = {"id": row["id"], "decision": decision, "reason": "r", "policy_version": f"edited@v{version}+sha256:0"}
        about = {"id": id_, "agent": agent, "session": session, "replica": "enforcer-1", "sent": sent}
        self.journal.append({"what": "asked", "body": body, "expected": None} | about)
        line = {"what": "answer", "try": 1, "received": self.pass_time(0.1), "status": 200, "body": answer} | about
        self.journal.append(line)
        return line

    def act(self, act: str, **about: str) -> dict[str, Any]:
        """-> the line that says when it was in force."""
        id_, sent = self.id(), self.pass_time(1)
        self.journal.append({"what": "acted", "act": act, "id": id_, "agent": "", "sent": sent} | about)
        line = {
            "what": "answer",
            "id": id_,
            "try": 1,
            "sent": sent,
            "received": self.pass_time(0.1),
            "status": 200,
            "body": {},
        }
        self.journal.append(line)
        return line

    def finding(self, fingerprint: str, detector: str = "loops", **more: Any) -> dict[str, Any]:
        raw = json.dumps({"fingerprint": fingerprint, "severity": "page"} | more)
        return self.row("alerts", "finding", "looping", session="looping-0", detector=detector, raw=raw)

    def told(self, row: dict[str, Any]) -> None:
        self.messages.append({"incident": row["id"], "step": "opened"})


def faultless() -> Making:
    """Of everything a little, with what looks like a fault and is none."""
    made = Making()
    for stop, lift in (("kill", ""), ("revoke", "restore"), ("pause", "resume")):
        name = f"stopped-{stop}"
        made.ask("stopped", name, "allow")
        made.act(stop, **({"session": name} if stop == "kill" else {}))
        made.ask("stopped", name, "deny")
        made.ask("stopped", f"other-{stop}", "allow" if stop == "kill" else "deny")
        if lift:
            made.act(lift)
            made.ask("stopped", name, "allow")
    under_way = made.ask("stopped", "under-way", "allow")
    made.act("kill", session="under-way")
    made.journal[-2]["sent"] = under_way["sent"] + 0.01  # both at once: either answer is right
    made.act("approve", approval="an-approval")
    made.ask("asking", "asking-0", "allow", approval="an-approval")
    made.ask("asking", "asking-0", "deny", approval="an-approval")
    voided = made.ask("asking", "asking-0", "deny", approval="an-approval")
    record = next(row for row in made.rows if row["id"] == voided["body"]["id"])
    made.row("decisions", "decision.void", "asking", parent=record["id"])
    record["decision"] = "allow"
    for version in (0, 1):
        if version:
            made.journal.append({"what": "edited", "version": version, "at": made.pass_time(1)})
            made.ask("first", "edited", "allow", resource="left", version=0)  # a moment later
            made.pass_time(2 * EDIT_S)
        made.ask("first", "edited", "allow", resource=("left", "right")[version], version=version)
        made.ask("second", "edited", "deny", resource=("right", "left")[version], version=version)
    made.journal.append({"what": "spent", "agent": "spending"})
    for tokens in (5, 7):
        row = made.row(
            "actions", "model.call", "spending", raw=json.dumps({"input_tokens": tokens, "output_tokens": 1})
        )
        made.rows.append(row | {"offset": 900 + tokens})  # sent twice
        made.row("limits", "budget", "spending", raw=json.dumps({"unit": "tokens", "spent": 6 if tokens == 5 else 14}))
    for at in (1.0, 2.0, 2.99):
        id_ = made.id()
        made.journal.append({"what": "emitted", "id": id_, "agent": "emits-http", "at": at})
        if at < 2.9:
            made.row("actions", "note", "emits-http")["id"] = id_
        if at < 2:
            made.journal.append({"what": "flushed", "agent": "emits-http", "ids": [id_]})
    made.journal.append({"what": "killed", "name": "emits-http", "at": 3.0})
    made.journal.append({"what": "looped", "agent": "looping", "session": "looping-0"})
    first = made.finding("loops/1")
    made.finding("loops/1")
    made.rows.append(first | {"offset": 990})
    made.finding("loops/1", over=True)
    made.told(first)
    made.told(made.finding("loops/1"))  # another incident
    made.finding("clocks/1", detector="clock_skew", severity="info")  # told in a log
    among = made.finding("loops/2", severity="info")
    made.finding("loops/2")  # it grew worse
    made.messages.append({"incident": "x", "step": "digest", "incidents": f"{among['id'][-12:]}2,{'0' * 12}1"})
    return made


def found(made: Making) -> set[Kind]:
    rows = sorted(made.rows, key=lambda row: int(row["offset"]))
    return {Kind(fault.kind) for fault in judge(World(made.journal, rows, made.messages, made.ended))}


def answers(made: Making, agent: str) -> list[dict[str, Any]]:
    return [line for line in made.journal if line["what"] == "answer" and line.get("agent") == agent]


def test_a_faultless_run_has_no_fault() -> None:
    made = faultless()
    assert found(made) == set()
    seen = counts(World(made.journal, made.rows, made.messages))
    assert (seen["kills in force"], seen["revokes in force"], seen["policy edits"]) == (2, 1, 1)
    assert (seen["approvals given"], seen["approvals used"], seen["answers that an edit had to be in"]) == (1, 1, 2)
    assert (seen["tokens counted"], seen["loops"], seen["incidents"], seen["messages in Slack"]) == (14, 1, 3, 3)


def without(what: str) -> Callable[[Making], object]:
    """As if nothing of the kind had happened."""

    def plant(made: Making) -> None:
        made.journal[:] = [line for line in made.journal if line["what"] != what]

    return plant


PLANTED: dict[Kind, list[Callable[[Making], object]]] = {
    Kind.STOPPED: [
        lambda made: made.ask("stopped", "stopped-kill", "allow"),
        lambda made: (made.act("revoke"), made.ask("stopped", "s", "allow")),
        lambda made: (made.act("pause"), made.ask("stopped", "s", "allow")),
        lambda made: (made.act("pause"), made.act("revoke"), made.act("resume"), made.ask("stopped", "s", "allow")),
    ],
    Kind.LIFTED: [
        lambda made: made.ask("stopped", "s", "deny"),
        lambda made: (made.act("pause"), made.act("resume"), made.ask("stopped", "s", "deny")),
    ],
    Kind.USED_TWICE: [
        lambda made: made.ask("asking", "asking-0", "allow", approval="an-approval"),
        lambda made: made.row("decisions", "decision", "asking", decision="allow", approval="an-approval", parent="x"),
    ],
    Kind.USELESS: [
        lambda made: (made.act("approve", approval="b"), made.ask("asking", "asking-1", "deny", approval="b")),
    ],
    Kind.HALF: [
        lambda made: made.ask("second", "edited", "deny", resource="right", version=1),
        lambda made: made.ask("first", "edited", "allow", resource="left", version=1),
    ],
    Kind.STALE: [lambda made: made.ask("first", "edited", "allow", resource="left", version=0)],
    Kind.BUDGET: [
        lambda made: made.row("limits", "budget", "spending", raw=json.dumps({"unit": "tokens", "spent": 20})),
        lambda made: made.row("actions", "model.call", "spending", raw=json.dumps({"input_tokens": 1})),
        lambda made: (
            made.journal.extend([{"what": "spent", "agent": "x"}]),  # type: ignore[func-returns-value]
            made.row("actions", "model.call", "x", raw='{"input_tokens": 1}'),
        ),
    ],
    Kind.EMITTED_LOST: [
        lambda made: made.journal.append({"what": "flushed", "agent": "emits-http", "ids": [made.id()]}),
        lambda made: made.journal.append({"what": "emitted", "agent": "emits-http", "id": made.id(), "at": 2.95}),
        lambda made: made.journal.append({"what": "emitted", "agent": "emits-kafka", "id": made.id(), "at": 2.99}),
    ],
    Kind.UNSEEN: [lambda made: made.journal.append({"what": "looped", "agent": "looping", "session": "looping-1"})],
    Kind.UNTOLD: [
        lambda made: made.finding("loops/3"),
        lambda made: (made.finding("loops/1", over=True), made.finding("loops/1")),
    ],
    Kind.TOLD_TWICE: [
        lambda made: made.messages.append(dict(made.messages[0])),
        lambda made: made.messages.append(dict(made.messages[-1])),
    ],
    Kind.ENDED: [
        lambda made: made.ended.update({("worker", 1): 1}),
        lambda made: made.ended.update({("enforcer", 0): 1}),
    ],
    Kind.LITTLE: [
        without("edited"),
        without("emitted"),
        without("looped"),
    ],
}


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
def test_each_fault_is_found_and_nothing_else(kind: Kind) -> None:
    for plant in PLANTED[kind]:
        made = faultless()
        plant(made)
        assert found(made) == {kind}


def test_an_edit_is_not_waited_for_where_something_was_away() -> None:
    made = faultless()
    made.pass_time(60)
    late = made.ask("first", "edited", "allow", resource="left", version=0)
    away = {"what": "away", "who": "enforcer-2", "from": late["sent"] - 3, "to": late["sent"] - 1}
    made.journal.append(away)
    assert found(made) == {Kind.STALE}, "nothing was done to the one that answered"
    away["who"] = late["replica"]
    assert found(made) == set()


def test_whoever_has_no_policy_denies_and_does_nothing_else() -> None:
    made = faultless()
    line = made.ask("first", "edited", "deny", resource="right", version=1)
    line["body"]["policy_version"] = None
    assert found(made) == set()
