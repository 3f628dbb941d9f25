"""The order of a session's records and what is wrong with them. Pure: rows in, places and gaps out.

The order of the story is that of `time`; what belongs to a call stands directly behind it: its decision, approvals, the rest,
its result. `LIGHT` are the columns that it takes to know that; the records themselves are only fetched for the page shown.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from banksman.console.steps import NIL, add_usd, tokens_of, usd

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Row = Mapping[str, Any]

LIGHT = """
    toString(id) AS id_, kind, toUnixTimestamp64Micro(time) AS time_us, toUnixTimestamp64Milli(received) AS received_ms,
    project, source, seq, toString(call) AS call_, toString(parent) AS parent_, decision, status, policy_version, owner,
    input_tokens, output_tokens, cache_write_tokens, cost_usd, priced, verified, late, topic, partition, offset, body_hash,
    if(kind = 'session.ended', error, '') AS error_
"""
_PLACES = {"tool.call": 0, "api.request": 0, "decision": 1, "decision.void": 2, "tool.result": 9}
MOST_LISTED = 1000


def shown(rows: Iterable[Row]) -> list[Row]:
    """Each record once: rows of the same coordinates are one, a resend (same id and bytes) is shown at its first place,
    a verified one before others.
    """
    places: set[tuple[str, int, int]] = set()
    first: dict[tuple[str, int], Row] = {}
    for row in rows:
        place = (row["topic"], row["partition"], row["offset"])
        if place in places:
            continue
        places.add(place)
        key = (row["id_"], row["body_hash"])
        known = first.get(key)
        if known is None or _rank(row) < _rank(known):
            first[key] = row
    return list(first.values())


def _rank(row: Row) -> tuple[bool, int, str, int, int]:
    return not row["verified"], row["received_ms"], row["topic"], row["partition"], row["offset"]


def ordered(rows: Sequence[Row]) -> list[Row]:
    """The rows as the story goes. What nobody has signed moves nothing that somebody has."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["id_"] if row["call_"] == NIL else row["call_"]].append(row)
    # A call begins with its tool.call, however wrong the clock of whoever answered it.
    begins = {name: min(map(_begins, group))[-1] for name, group in groups.items()}
    order = sorted(groups, key=lambda name: (begins[name], name))
    return [row for name in order for row in sorted(groups[name], key=_within)]


def _begins(row: Row) -> tuple[bool, bool, int]:
    """The least of a call says when it began: of what is signed before what is not, and its tool.call before the rest."""
    return not row["verified"], row["kind"] != "tool.call", row["time_us"]


def _within(row: Row) -> tuple[int, bool, int, int, str, int, int]:
    place = _PLACES.get(row["kind"], 5)
    return place, not row["verified"], row["time_us"], row["seq"], row["topic"], row["partition"], row["offset"]


def gaps_of(numbers: Mapping[str, Iterable[int]], elsewhere: Mapping[str, set[int]]) -> list[tuple[str, int, int, int]]:
    """(source, after, before, how many are missing) between numbers of this session that neither it nor another session of
    the same source carries. `elsewhere`: the numbers of verified records of the agent's other sessions.
    """
    found = []
    for source in sorted(numbers):
        here = sorted(set(numbers[source]))
        others = elsewhere.get(source, set())
        for after, before in pairwise(here):
            missing = before - after - 1
            if missing > 0:
                missing -= sum(1 for number in others if after < number < before)
                if missing > 0:
                    found.append((source, after, before, missing))
    return found


def jumps(rows: Iterable[Row]) -> dict[str, list[int]]:
    """Source -> its numbers in this session, for sources with a jump in them; the rest has no gap."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        if row["seq"] and row["verified"]:
            numbers[row["source"]].add(row["seq"])
    return {source: sorted(found) for source, found in numbers.items() if max(found) - min(found) + 1 > len(found)}


def repeats_of(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Different records of one source with the same number."""
    by_number: dict[tuple[str, int], set[str]] = defaultdict(set)
    for row in rows:
        if row["seq"] and row["verified"]:
            by_number[row["source"], row["seq"]].add(row["id_"])
    twice = [(key, ids) for key, ids in sorted(by_number.items()) if len(ids) > 1]
    return [{"source": source, "seq": seq, "ids": sorted(ids)} for (source, seq), ids in twice[:MOST_LISTED]]


def marks(rows: list[Row]) -> list[dict[str, Any]]:
    """What a row can only be told among the others, in their order: running totals, `id_reused`, `voided`, `decision`."""
    bodies: dict[str, set[int]] = defaultdict(set)
    for row in rows:
        bodies[row["id_"]].add(row["body_hash"])
    voided = {row["parent_"] for row in rows if row["kind"] == "decision.void" and row["verified"]}
    answers = {row["call_"]: row["decision"] for row in rows if row["kind"] == "decision" and row["verified"]}
    made, tokens, cost = [], 0, None
    for row in rows:
        if row["verified"]:
            tokens, cost = tokens + tokens_of(row), add_usd(cost, usd(row["cost_usd"]))
        one: dict[str, Any] = {
            "tokens_total": tokens,
            "cost_usd_total": cost,
            "id_reused": len(bodies[row["id_"]]) > 1,
            "voided": row["kind"] == "decision" and row["id_"] in voided,
            "gap": 0,
        }
        if row["kind"] in ("tool.call", "api.request"):
            one["decision"] = answers.get(row["call_"] if row["call_"] != NIL else row["id_"])
        made.append(one)
    return made
