"""What is wrong after a fault run, besides what `tests.e2e.checker` finds: of stops, approvals, policies, budgets, alerts.

Nothing of the product: the journal, rows of ClickHouse, and the messages that Slack has.
"""

from __future__ import annotations

import bisect
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tests.e2e.checker import Fault, Row

Line = dict[str, Any]

SIDES = ("left", "right")
"""As in `tests.faults.crowd`: a version with an even number allows the first, the others the second."""
EDIT_S = 5.0
"""Within so long an edited policy is in force on a replica that nothing happens to. (It takes 0.1 s; this is under load.)"""
MAY_END = {("worker", 70), ("clickhouse", 3)}
"""A worker that stood still, or for Kafka's sake; a ClickHouse with a part that lacks what a full disk refused."""
LIFTS = {"restore": "revoke", "resume": "pause"}
CRASH_S = 0.02
"""What was emitted so long before its agent was killed arrives."""


class Kind(StrEnum):
    """What can be wrong."""

    STOPPED = "allowed after a stop was in force"
    LIFTED = "denied after the stop was lifted"
    USED_TWICE = "approval used twice"
    USELESS = "approval given and of no use"
    HALF = "answer that the policy version does not give"
    STALE = "answered by a policy from before an edit"
    BUDGET = "wrong budget"
    EMITTED_LOST = "emitted and lost"
    UNSEEN = "loop that no detector saw"
    UNTOLD = "alert missing"
    TOLD_TWICE = "alert told twice"
    ENDED = "a process ended by itself"
    LITTLE = "too little happened to show anything"


@dataclass
class World:
    """What there is to see at the end. `rows`: of ClickHouse, each place in Kafka once."""

    journal: list[Line]
    rows: list[Row]
    messages: list[dict[str, Any]]
    """The metadata of each message in Slack."""
    ended: Counter[tuple[str, int]] = field(default_factory=Counter)
    """(what ended by itself, with which exit code) -> how often."""
    away: list[Line] = field(init=False)
    edits: list[tuple[float, int]] = field(init=False)
    """When which version was written, in order."""

    def __post_init__(self) -> None:
        self.away = [line for line in self.journal if line["what"] == "away"]
        self.edits = sorted((line["at"], line["version"]) for line in self.journal if line["what"] == "edited")


def judge(world: World) -> list[Fault]:
    """Everything that is wrong."""
    checks = (stops, approvals, policies, budgets, emitters, alerts, ends, little)
    return [fault for check in checks for fault in check(world)]


def counts(world: World) -> dict[str, int]:
    """How much was tried."""
    acts = Counter(act["act"] for act, _, done in _acts(world) if done < float("inf"))
    used = [
        question["body"]["approval"]
        for question, answer in _decisions(world)
        if answer["body"]["decision"] == "allow" and question["body"].get("approval")
    ]
    return {
        **{f"{act}s in force": acts[act] for act in ("kill", "revoke", "restore", "pause", "resume")},
        "approvals given": acts["approve"],
        "approvals used": len(set(used)),
        "answers that an edit had to be in": sum(_known(world, answer) is not None for answer in _of_the_edited(world)),
        "policy edits": sum(line["what"] == "edited" for line in world.journal),
        "events of our emitters": sum(line["what"] == "emitted" for line in world.journal),
        "tokens counted": int(sum(spent for spent, _ in _budgets(world).values())),
        "loops": sum(line["what"] == "looped" for line in world.journal),
        "incidents": len(_incidents(world)),
        "messages in Slack": len(world.messages),
    }


# ── what was answered ──


def _questions(world: World) -> dict[str, Line]:
    return {line["id"]: line for line in world.journal if line["what"] == "asked"}


def _decisions(world: World) -> Iterator[tuple[Line, Line]]:
    """(question, one answer to it)."""
    asked = _questions(world)
    for line in world.journal:
        if line["what"] == "answer" and line["status"] == 200 and line["id"] in asked:
            yield asked[line["id"]], line


def _acts(world: World) -> list[tuple[Line, float, float]]:
    """(act, when it was first sent, when it was in force; infinite when nobody said so)."""
    done: dict[str, float] = {}
    for line in world.journal:
        if line["what"] == "answer" and (line["status"] == 200 or (line["status"] == 409 and line["try"] > 1)):
            done.setdefault(line["id"], line["received"])  # 409: it was done, and its answer lost
    return [
        (line, line["sent"], done.get(line["id"], float("inf"))) for line in world.journal if line["what"] == "acted"
    ]


def stops(world: World) -> Iterator[Fault]:
    """Nothing that is asked while a stop is in force is allowed, and everything is once it was lifted.

    The acts of the one operator come one after another, so what is between two of them is known.
    """
    acts = sorted((act for act in _acts(world) if act[0]["act"] != "approve"), key=lambda act: act[1])
    for question, answer in _decisions(world):
        if question["agent"] != "stopped":
            continue
        allowed, stopped, unsure = answer["body"]["decision"] == "allow", "", False
        held: set[str] = set()
        for act, sent, in_force in acts:
            if act["act"] == "kill" and act["session"] != question["session"]:
                continue
            if in_force <= answer["sent"]:
                held = held - {LIFTS[act["act"]]} if act["act"] in LIFTS else held | {act["act"]}
            elif sent < answer["received"]:
                unsure = True  # it came while it was asked: both answers are right
        stopped = ", ".join(sorted(held))
        name = f"{answer['body']['id']} of {question['session']} ({answer['replica']})"
        if unsure:
            continue
        if stopped and allowed:
            yield Fault(Kind.STOPPED, f"{name}: {stopped}")
        if not stopped and not allowed:
            yield Fault(Kind.LIFTED, f"{name}: {answer['body']['reason']}")


def approvals(world: World) -> Iterator[Fault]:
    """Of the requests that use an approval, exactly one is allowed, in what was answered and in what is on record."""
    voids = {(row["agent"], row["parent"]) for row in world.rows if row["kind"] == "decision.void"}
    used: defaultdict[str, set[str]] = defaultdict(set)
    tried: set[str] = set()
    for question, answer in _decisions(world):
        if approval := question["body"].get("approval"):
            tried.add(approval)
            if answer["body"]["decision"] == "allow":
                used[approval].add(question["id"])
    for row in world.rows:
        allows = (row["kind"], row["decision"]) == ("decision", "allow") and (row["agent"], row["id"]) not in voids
        if allows and row["approval"] in tried:
            used[row["approval"]].add(row["parent"])
    given = {act["approval"] for act, _, done in _acts(world) if act["act"] == "approve" and done < float("inf")}
    for approval in given & tried:
        if not used[approval]:
            yield Fault(Kind.USELESS, approval)
    for approval, requests in used.items():
        if len(requests) > 1:
            yield Fault(Kind.USED_TWICE, f"{approval}: {', '.join(sorted(requests))}")


def policies(world: World) -> Iterator[Fault]:
    """Each answer is what the whole text of its version says, and the version is a late one."""
    asked = _questions(world)
    for answer in _of_the_edited(world):
        question = asked[answer["id"]]
        body, name = answer["body"], f"{answer['body']['id']} ({answer['replica']})"
        if body["policy_version"] is None and body["decision"] == "deny":
            continue  # a replica that began while the file was no policy: it denies
        version = int(body["policy_version"].partition("@v")[2].partition("+")[0])
        wanted = "allow" if question["body"]["resource"] == SIDES[version % 2] else "deny"
        if body["decision"] != wanted:
            yield Fault(Kind.HALF, f"{name}: {body['decision']} by {body['policy_version']}")
        known = _known(world, answer)
        if known is not None and version < known:
            yield Fault(Kind.STALE, f"{name}: by version {version}, {known} was written {EDIT_S:g} s before")


def _of_the_edited(world: World) -> Iterator[Line]:
    """Answers under the policy that is edited."""
    for question, answer in _decisions(world):
        if question["agent"] in ("first", "second"):
            yield answer


def _known(world: World, answer: Line) -> int | None:
    """The version that the answer's replica has to know; None where something was done to that replica meanwhile."""
    since = answer["sent"] - 2 * EDIT_S
    for line in world.away:
        if line["who"] == answer["replica"] and line["from"] < answer["received"] and line["to"] > since:
            return None
    at = bisect.bisect(world.edits, (answer["sent"] - EDIT_S,))
    return world.edits[at - 1][1] if at else None


# ── what was counted ──


def _once(rows: Iterable[Row]) -> dict[tuple[str, str], Row]:
    """(agent, id) -> its first row: what a resend repeats counts once."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        found.setdefault((row["agent"], row["id"]), row)
    return found


def _budgets(world: World) -> dict[str, tuple[float, int]]:
    """Agent -> (what is counted, what its events in the audit log add up to)."""
    spent: dict[str, tuple[int, float]] = {}
    for row in world.rows:
        if (row["topic"], row["kind"]) == ("limits", "budget") and row["verified"]:
            told = json.loads(row["raw"])
            if told["unit"] == "tokens":
                spent[row["agent"]] = max(spent.get(row["agent"], (-1, 0.0)), (row["offset"], told["spent"]))
    sums: Counter[str] = Counter()
    for row in _once(row for row in world.rows if row["kind"] == "model.call" and row["verified"]).values():
        told = json.loads(row["raw"])
        sums[row["agent"]] += told.get("input_tokens", 0) + told.get("output_tokens", 0)
    agents = [line["agent"] for line in world.journal if line["what"] == "spent"]
    return {agent: (spent.get(agent, (0, 0.0))[1], sums[agent]) for agent in agents}


def budgets(world: World) -> Iterator[Fault]:
    """What is counted is what the audit log has; that has all that was acknowledged, as the other checks see to."""
    for agent, (counted, stored) in _budgets(world).items():
        if counted != stored:
            yield Fault(Kind.BUDGET, f"{agent}: {counted:.0f} counted, {stored} in the audit log")


def emitters(world: World) -> Iterator[Fault]:
    """What `flush` promised is there; what was emitted a moment before a kill, too."""
    there = {(row["agent"], row["id"]) for row in world.rows if row["topic"] == "actions"}
    kills = [(line["name"], line["at"]) for line in world.journal if line["what"] == "killed"]
    flushed = {(line["agent"], id_) for line in world.journal if line["what"] == "flushed" for id_ in line["ids"]}
    for key in flushed - there:
        yield Fault(Kind.EMITTED_LOST, f"{key[1]} of {key[0]}, flushed")
    known = there | flushed
    for line in world.journal:
        if line["what"] != "emitted" or (line["agent"], line["id"]) in known:
            continue
        if not any(name == line["agent"] and at - CRASH_S <= line["at"] <= at + 1 for name, at in kills):
            yield Fault(Kind.EMITTED_LOST, f"{line['id']} of {line['agent']}")


# ── what people were told ──


def _incidents(world: World) -> dict[str, Row]:
    """The id of the first finding of each incident that a person has to be told of -> its row.

    Findings of one fingerprint are one incident until one of them says that it is over. If all are `info`, a log is told.
    """
    open_: dict[str, str] = {}
    found: dict[str, Row] = {}
    known: set[str] = set()
    graver: set[str] = set()
    findings = (row for row in world.rows if (row["topic"], row["kind"]) == ("alerts", "finding") and row["verified"])
    for row in sorted(findings, key=lambda row: row["offset"]):
        told = json.loads(row["raw"])
        if row["id"] in known:
            continue  # sent again
        known.add(row["id"])
        if told.get("over"):
            open_.pop(told["fingerprint"], None)
            continue
        incident = open_.setdefault(told["fingerprint"], row["id"])
        found.setdefault(incident, row)
        if told["severity"] != "info":
            graver.add(incident)
    return {incident: row for incident, row in found.items() if incident in graver}


def alerts(world: World) -> Iterator[Fault]:
    """Each loop was seen, and each incident was told, once."""
    seen = {(row["agent"], row["session"]) for row in world.rows if row["detector"] == "loops"}
    for line in world.journal:
        if line["what"] == "looped" and (line["agent"], line["session"]) not in seen:
            yield Fault(Kind.UNSEEN, line["session"])
    told = Counter(message["incident"] for message in world.messages if message.get("step") == "opened")
    tails = Counter(
        member[:-1]  # the end of an incident's id, and a digit
        for message in world.messages
        if message.get("step") == "digest"
        for member in message["incidents"].split(",")
    )
    for incident, row in _incidents(world).items():
        alone, among = (
            told[incident],
            tails[incident[-12:]],
        )  # what was one of a digest's and grew worse is told alone, too
        if not alone + among or alone > 1 or among > 1:
            kind = Kind.TOLD_TWICE if alone + among else Kind.UNTOLD
            yield Fault(
                kind, f"{incident}: {row['detector']}, {row['title']!r}, {alone} times alone, {among} among others"
            )


# ── whether it was a run at all ──


def ends(world: World) -> Iterator[Fault]:
    """Nobody ends who was not ended, but for those who do so on purpose."""
    for (what, code), times in world.ended.items():
        if (what, code) not in MAY_END:
            yield Fault(Kind.ENDED, f"{what} with {code}, {times} times")


def little(world: World) -> Iterator[Fault]:
    """Of everything that is judged something was there."""
    for name, count in counts(world).items():
        if not count:
            yield Fault(Kind.LITTLE, f"no {name}")
