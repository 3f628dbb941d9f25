"""What is wrong, judged from what enforcer and console say about themselves. Pure: `status` and `doctor` ask and print."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from banksman.cli import show, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    Status = Mapping[str, Any]

FEW = 20
"""Records. An archiver that works is this much behind at any moment: nothing to look at twice."""
FAR = 100_000
"""Records. Further behind than this is wrong also while it catches up: the questions' answers are old."""
NAMED = 5
"""Controls that are told one by one; there are never many unless something is very wrong."""
UNTOLD_S = 120.0
"""What was found waits longer than this: Slack is away, or nobody tells. To edit a hundred messages takes as long."""
LATE_S = 60.0
"""Something waits for the archiver longer than this."""
FULL = 0.8
"""Share of the enforcer's queue."""


@dataclass(frozen=True)
class Wrong:
    """Something that is not as it should be, and what to do about it."""

    where: str
    text: str
    do: str = ""


def of_enforcer(status: Status) -> Iterator[Wrong]:
    """What an enforcer's `/v1/status` shows to be wrong."""
    if not status["enforcing"]:
        yield Wrong("enforcer", f"NOT ENFORCING, every question gets a 503: {status['reason']}", mend(status["reason"]))
    in_force = {one["project"]: one["policy_version"] for one in status["policies"]}
    for one in status["rejected"]:
        line = f":{one['line']}" if one["line"] else ""
        where = f"{one['key']}: " if one["key"] else ""
        stays = in_force.get(one["project"])
        rest = f"{stays} stays in force" if stays else "nothing of it is in force"
        yield Wrong(
            "policy",
            f"{one['file']}{line} was rejected at {show.moment(one['since'])[:19]}, {rest}: {where}{one['error']}",
            "mend the file: it is read again by itself",
        )
    if not in_force:
        yield Wrong(
            "policy", "no policy is in force: everything is denied", "put one into the enforcer's BANKSMAN_POLICIES"
        )
    for project in status["disagreements"]:
        about = "their policies" if project == "*" else f"the policy of {project}"
        yield Wrong("replicas", f"enforcers disagree on {about}", "see that their policy folders hold the same files")
    peers = status["replicas"]
    for peer in peers:
        if peer["lag"] > FEW * len(peers):
            behind = show.count(peer["lag"], "record")
            yield Wrong(
                "replicas", f"{peer['replica']} is {behind} of control behind", "look at its log and its network"
            )
    yield from _uncounted(status["budgets"])
    waiting, bound = status["queue"]["waiting"], status["queue"]["bound"]
    if waiting > FULL * bound:
        yield Wrong(
            "queue", f"{waiting} of {bound} decisions wait for their record", "Kafka is slow, or add an enforcer"
        )
    if status["undelivered"]:
        undelivered = show.count(status["undelivered"], "finding")
        yield Wrong("kafka", f"{undelivered} or voids are not on record yet", "is Kafka well?")
    if status["dropped"]:
        dropped = show.count(status["dropped"], "finding")
        yield Wrong("kafka", f"{dropped} had no room while Kafka was away and were lost", "read the enforcer's log")


def _uncounted(budgets: Mapping[str, Any]) -> Iterator[Wrong]:
    """Whether nobody counts what agents spend."""
    unknown = [one for one in budgets["counted"] if not one["known"]]
    if not unknown:
        return
    oldest = max((one["counted_s_ago"] for one in unknown), key=lambda since: math.inf if since is None else since)
    since = "was never counted" if oldest is None else f"was last counted {show.age(oldest)}"
    then = "agents whose budget denies or asks get 503" if budgets["limited"] else "no loop or anomaly is found"
    yield Wrong("processors", f"what agents do {since}: {then}", "is `banksman serve processors` running? Read its log")


def notes_on_enforcer(status: Status) -> Iterator[str]:
    """What is as somebody wanted it, or over, and worth a word."""
    shadow = [one["project"] for one in status["policies"] if one["mode"] == "shadow"]
    if shadow:
        yield f"not enforced on purpose (mode shadow): {words.listed(shadow)}"
    for one in status["policies"]:
        if one["mode"] != "shadow" and one.get("shadow"):
            yield f"not enforced on purpose in {one['project']} (mode shadow): {words.listed(one['shadow'])}"
    controls = status["controls"]
    for what, held in (("project", controls["paused"]), ("agent", controls["revoked"])):
        for one in held[:NAMED]:
            yield f"{_held(what, one)}; to lift it: banksman {'resume' if what == 'project' else 'restore'} {one[what]}"
        if len(held) > NAMED:
            yield f"and {len(held) - NAMED} more {what}s: banksman status --json"
    unrecorded = status["decisions"]["unrecorded"]
    if unrecorded:
        yield f"{show.count(unrecorded, 'question')} got a 503 since the start, as no record was acknowledged in time"


def _held(what: str, one: Mapping[str, Any]) -> str:
    state = "paused" if what == "project" else "revoked"
    why = f": {show.short(one['reason'])}" if one["reason"] else ""
    return f"{what} {one[what]} is {state} by {one['by'] or 'a service'} since {show.moment(one['at'])[:19]}{why}"


def of_console(status: Status, before: Status | None = None) -> Iterator[Wrong]:
    """What a console's `/v1/status` shows to be wrong. `before`: a look that was taken a moment earlier."""
    if not status["ready"]:
        yield Wrong("console", f"not ready: {status['reason']}", "the log of controls is being read, or Kafka is away")
    if not status["clickhouse"]["reachable"]:
        yield Wrong(
            "clickhouse",
            f"away, so no question is answered (decisions go on, Kafka keeps all): {status['clickhouse']['error']}",
            "start it; BANKSMAN_CLICKHOUSE says where the console looks",
        )
    if not status["kafka"]["reachable"]:
        yield Wrong(
            "kafka", f"away, as seen from the console: {status['kafka']['error']}", "start it, or mend the network"
        )
    notifier = status["notifier"]
    if notifier is not None and notifier["waiting_s"] > UNTOLD_S:
        yield Wrong(
            "notifier",
            f"for {notifier['waiting_s'] / 60:.0f} min something that was found waits to be told",
            "is `banksman serve notifier` running? Its log says what Slack answers",
        )
    archiver = status["archiver"]
    if archiver is None or archiver["lag"] is None:
        return
    behind = show.count(archiver["lag"], "record")
    late = archiver["waiting_s"] > LATE_S
    if before is not None and stands_still(before, status):
        yield Wrong("archiver", f"stands still, {behind} behind", "is `banksman serve archiver` running? Read its log")
    elif archiver["lag"] > FAR or late:
        since = f", for {archiver['waiting_s'] / 60:.0f} min" if late else ""
        yield Wrong("archiver", f"{behind} behind{since}: answers are old", "let it catch up, or run another one")


def may_stand_still(status: Status) -> bool:
    """Whether it takes a second look to know that the archiver moves."""
    archiver = status["archiver"]
    return archiver is not None and (archiver["lag"] or 0) > FEW


def stands_still(before: Status, after: Status) -> bool:
    """Whether nothing was archived between two looks, although there was something."""
    then, now = _positions(before), _positions(after)
    waiting = [where for where, (_, lag) in then.items() if lag and where in now]
    return bool(waiting) and all(now[where][0] == then[where][0] for where in waiting)


def of_findings(findings: Iterable[Mapping[str, Any]], enforcer: Status | None) -> Iterator[Wrong]:
    """Findings that a human should look at, newest first, each once. Not what the enforcer itself knows better by now."""
    seen: set[str] = set()
    for one in findings:
        if one["fingerprint"] in seen:
            continue
        seen.add(one["fingerprint"])
        if one["severity"] == "info" or one["kind"] == "alert.resolved" or _is_known(one, enforcer):
            continue
        times = f", {one['count']} times" if (one["count"] or 1) > 1 else ""
        yield Wrong("finding", f"{one['title']} (at {show.moment(one['at'])[:19]}{times})", one["suggestion"] or "")


_OF_THE_PRESENT = frozenset(("policy_rejected", "policy_disagreement", "watchdog"))
"""What enforcer and console say themselves as it is now; findings are asked of the console, so that one has answered."""


def _is_known(finding: Mapping[str, Any], enforcer: Status | None) -> bool:
    """Whether those were asked who say how this is now: as it was, and then it is told already, or over."""
    return enforcer is not None and finding["detector"] in _OF_THE_PRESENT


def _positions(status: Status) -> dict[tuple[str, int], tuple[int, int]]:
    """(topic, partition) -> (where the archiver goes on, lag)"""
    partitions: Sequence[Mapping[str, Any]] = (status["archiver"] or {}).get("partitions") or ()
    return {(one["topic"], one["partition"]): (one["next"] or 0, one["lag"] or 0) for one in partitions}


def mend(reason: str) -> str:
    """What to do about an enforcer that is not ready for this reason."""
    if "Kafka" in reason or "heartbeat" in reason:
        return "is Kafka up? BANKSMAN_KAFKA says where the enforcer looks; its log says what Kafka answers"
    return "read the enforcer's log"
