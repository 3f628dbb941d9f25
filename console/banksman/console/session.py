"""`GET /v1/sessions/{session}`: what exactly happened, in order, with everything that is not as it should be marked."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from banksman.console import story
from banksman.console.now import ended_ms
from banksman.console.parameters import given, whole
from banksman.console.sessions import state
from banksman.console.steps import COLUMNS, add_usd, encoded, moment_ms, moment_us, step, tokens_of, usd
from banksman.events import is_name
from banksman.http_problem import problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request

    from banksman.console.asking import Asking, Rows
    from banksman.console.known import Known

PAGE_BYTES = 8 << 20
MOST_RECORDS = 200_000
WHOLE = 250
"""A session of so many records, all on one page, is fetched at once: each question to ClickHouse has its price."""
_SESSION = "topic IN ('actions', 'decisions') AND session = {session:String}"

CANDIDATES_SQL = f"""
SELECT agent, replay, any(session) AS session_,
    if(countIf(verified) > 0, anyIf(project, verified), any(project)) AS project_,
    toUnixTimestamp64Milli(min(received)) AS first_ms, toUnixTimestamp64Milli(max(received)) AS last_ms, count() AS records,
    countIf(verified) AS verified_
FROM @events WHERE {_SESSION} AND @AGENT AND @PROJECT AND @REPLAY
GROUP BY agent, replay ORDER BY verified_ = 0, last_ms DESC LIMIT 100
"""
LIGHT_SQL = f"""
SELECT {story.LIGHT} FROM @events
WHERE {_SESSION} AND agent = {{agent:String}} AND replay = {{replay:String}}
    AND received BETWEEN fromUnixTimestamp64Milli({{first:Int64}}) AND fromUnixTimestamp64Milli({{as_of:Int64}})
ORDER BY verified DESC, received, topic, partition, offset LIMIT {MOST_RECORDS + 1}
"""
WHOLE_SQL = f"""
SELECT {COLUMNS}, raw, if(kind = 'session.ended', error, '') AS error_ FROM @events
WHERE {_SESSION} AND agent = {{agent:String}} AND replay = {{replay:String}}
    AND received BETWEEN fromUnixTimestamp64Milli({{first:Int64}}) AND fromUnixTimestamp64Milli({{as_of:Int64}})
LIMIT {WHOLE + 1}
"""
NUMBERS_SQL = """
SELECT source, seq FROM @events
WHERE agent = {agent:String} AND replay = {replay:String} AND verified AND source IN {sources:Array(String)}
    AND seq BETWEEN {low:UInt64} AND {high:UInt64} AND session != {session:String} AND topic = 'actions'
LIMIT 1 BY source, seq LIMIT 1000000
"""
PAGE_SQL = f"""
SELECT {COLUMNS}, raw FROM @events
WHERE {_SESSION} AND agent = {{agent:String}} AND replay = {{replay:String}}
    AND received BETWEEN fromUnixTimestamp64Milli({{low:Int64}}) AND fromUnixTimestamp64Milli({{high:Int64}})
    AND (topic, partition, offset) IN {{places:Array(Tuple(String, UInt16, UInt64))}}
LIMIT 1 BY topic, partition, offset
"""


class Session:
    """The endpoint."""

    def __init__(self, knows: Known, asking: Asking) -> None:
        self._known, self._asking = knows, asking

    async def endpoint(self, request: Request) -> Response:
        """The endpoint."""
        began = time.perf_counter()
        self._known.operator(request.scope["fields"])
        found = given(request, "agent", "project", "replay", "limit", "cursor", "raw")
        session, limit = request.path_params["session"], whole(found, "limit", 1000, 5000)
        if found.get("raw", "0") not in ("0", "1"):
            raise problem(422, "must be 0 or 1", field="raw")
        if not is_name(session):
            raise problem(404, "that is not a name of a session")
        as_of, first, told_before = _cursor(found.get("cursor"))
        which = await self._which(session, found)
        mine = {"session": session, "agent": which["agent"], "replay": which["replay"]}
        # Between its first and last record: the session's own part of the log is all that is read.
        span = {"first": which["first_ms"], "as_of": as_of or which["last_ms"]}
        at_once = which["records"] <= min(WHOLE, limit) and not first
        every = await self._asking.rows(WHOLE_SQL, **span, **mine) if at_once else []
        there = 0 < len(every) <= WHOLE  # more may have come since they were counted
        light = every if there else await self._asking.rows(LIGHT_SQL, **span, **mine)
        if len(light) > MOST_RECORDS and light[MOST_RECORDS]["verified"]:
            raise problem(422, f"the session has more than {MOST_RECORDS} records: ask with SQL", field="session")
        rows = story.ordered(story.shown(light[:MOST_RECORDS]))  # a flood of forgeries is cut, and hides nothing
        digest = _digest(rows)
        if told_before and told_before != digest:
            raise problem(409, "what was received up to the first page has changed: begin again", field="cursor")
        marks = story.marks(rows)
        gaps, missing = await self._gaps(rows, marks, mine)
        page = _by_place(every) if there else await self._page(rows[first : first + limit], mine)
        steps: list[dict[str, Any]] = []
        size = 0
        shown = slice(first, first + limit)
        for n, (row, mark) in enumerate(zip(rows[shown], marks[shown], strict=True), first + 1):
            full = page.get((row["topic"], row["partition"], row["offset"]))
            if full is None or (steps and size + len(full["raw"]) > PAGE_BYTES):
                break
            size += len(full["raw"])
            steps.append(_step(full, mark, n, raw=found.get("raw") == "1"))
        end = first + len(steps)
        newest = max((row["received_ms"] for row in rows), default=0)
        header = self._header(which, rows, marks) | {"missing": missing}
        told = {
            "header": header, "steps": steps, "gaps": gaps, "repeats": story.repeats_of(rows),
            "next": f"{as_of or newest}.{end}.{digest}" if end < len(rows) else None,
            "took_ms": round((time.perf_counter() - began) * 1000, 1),
        }  # fmt: skip
        return Response(encoded(told), media_type="application/json")

    async def _which(self, session: str, found: dict[str, str]) -> Mapping[str, Any]:
        """The one (agent, replay) that is meant. Problem 404, 409."""
        sql = CANDIDATES_SQL
        values: dict[str, str] = {}
        for name in ("agent", "project"):
            sql = sql.replace(f"@{name.upper()}", f"{name} = {{{name}:String}}" if name in found else "true")
            if name in found:
                values[name] = found[name]
        run = found.get("replay")
        if run and run != "*":
            sql, values = sql.replace("@REPLAY", "replay = {replay:String}"), values | {"replay": run}
        rows = await self._asking.rows(sql.replace("@REPLAY", "true"), session=session, **values)
        live = [row for row in rows if not row["replay"]]
        if run is None and any(row["verified_"] for row in live):
            rows = live
        rows = [row for row in rows if row["verified_"]] or rows
        if not rows:
            raise problem(404, f"nothing was received of a session {session} that this could be")
        if len(rows) > 1:
            candidates = [
                {
                    "agent": row["agent"], "project": row["project_"] or None, "replay": row["replay"] or None,
                    "last_seen": moment_ms(row["last_ms"]), "records": row["records"],
                }
                for row in rows
            ]  # fmt: skip
            raise problem(409, "more than one session has this id: say whose (agent=, replay=)", candidates=candidates)
        return rows[0]

    async def _gaps(
        self, rows: Sequence[Mapping[str, Any]], marks: list[dict[str, Any]], mine: dict[str, str]
    ) -> tuple[list[dict[str, Any]], int]:
        """The gaps as they are told (marked on the steps behind them too), and how many records are missing in all."""
        numbers = story.jumps(rows)
        if not numbers:
            return [], 0
        low, high = min(seqs[0] for seqs in numbers.values()), max(seqs[-1] for seqs in numbers.values())
        elsewhere: dict[str, set[int]] = {}
        for other in await self._asking.rows(NUMBERS_SQL, sources=sorted(numbers), low=low, high=high, **mine):
            elsewhere.setdefault(other["source"], set()).add(other["seq"])
        places: dict[tuple[str, int], int] = {}
        for at, row in enumerate(rows):
            if row["verified"]:
                places.setdefault((row["source"], row["seq"]), at)
        told: list[dict[str, Any]] = []
        missing = 0
        for source, after, before, count in story.gaps_of(numbers, elsewhere):
            at = places[source, before]
            marks[at]["gap"] += count
            missing += count
            if len(told) < story.MOST_LISTED:
                told.append({"source": source, "after": after, "before": before, "missing": count, "n": at + 1})
        return told, missing

    async def _page(self, rows: Sequence[Mapping[str, Any]], mine: dict[str, str]) -> dict[Any, Mapping[str, Any]]:
        if not rows:
            return {}
        received = [row["received_ms"] for row in rows]
        places = [(row["topic"], row["partition"], row["offset"]) for row in rows]
        found: Rows = await self._asking.rows(PAGE_SQL, low=min(received), high=max(received), places=places, **mine)
        return _by_place(found)

    def _header(
        self, which: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], marks: list[dict[str, Any]]
    ) -> dict[str, Any]:
        sure = [row for row in rows if row["verified"]]
        agent, session_replay = which["agent"], which["replay"]
        begun = next((row for row in sure if row["kind"] == "session.started"), None)
        ended = next((row for row in reversed(sure) if row["kind"] == "session.ended"), None)
        seen = sure or list(rows)
        newest = max(seen, key=lambda row: row["received_ms"])
        timed = [
            row for row in seen if row["late"] != "skew"
        ] or seen  # one record from 1900 must not make it 126 years
        start, last = min(row["time_us"] for row in timed), max(row["time_us"] for row in timed)
        project = next((row["project"] for row in seen if row["project"]), None)
        held = self._known.controls.on(project, agent, which["session_"]) if not session_replay else []
        enrolled = self._known.identities.agents.get(agent)
        owner = next((row["owner"] for row in sure if row["owner"]), None) or (enrolled.owner if enrolled else None)
        cost: float | None = None
        for row in sure:
            cost = add_usd(cost, usd(row["cost_usd"]))
        voided = [row for row, mark in zip(rows, marks, strict=True) if mark["voided"]]
        taken_back = {row["id_"] for row in voided}
        decided = [row["decision"] for row in sure if row["kind"] == "decision" and row["id_"] not in taken_back]
        kind = "session.ended" if ended_ms(sure) is not None else ""
        fatal = any(one.kind != "project.paused" for one in held)
        return {
            "agent": agent, "session": which["session_"], "project": project, "owner": owner,
            "replay": session_replay or None,
            "policy_versions": sorted({row["policy_version"] for row in sure if row["policy_version"]}),
            "sources": sorted({row["source"] for row in seen if row["topic"] == "actions"}),
            "state": "killed" if fatal else state(kind, newest["received_ms"], time.time() * 1000),
            "status": ended["status"] or None if ended else None, "error": ended["error_"] or None if ended else None,
            "started": moment_us(begun["time_us"] if begun else start),
            "ended": moment_us(ended["time_us"]) if ended else None, "last_seen": moment_ms(newest["received_ms"]),
            "duration_s": round((last - start) / 1e6, 3), "steps": len(rows),
            "actions": sum(row["kind"] in ("tool.call", "api.request", "model.call") for row in sure),
            "allowed": decided.count("allow"), "denied": decided.count("deny"), "sent_to_approval": decided.count("approve"),
            "voided": len(voided), "tokens": sum(tokens_of(row) for row in sure), "cost_usd": cost,
            "unpriced_calls": sum(row["priced"] == "unpriced" for row in sure), "unverified": len(rows) - len(sure),
            "late": sum(bool(row["late"]) for row in rows), "id_reused": sum(mark["id_reused"] for mark in marks),
            "controls": [one.told() for one in held],
        }  # fmt: skip


def _by_place(rows: Rows) -> dict[Any, Mapping[str, Any]]:
    """The first of those that are stored twice, as `story.shown`."""
    return {(row["topic"], row["partition"], row["offset"]): row for row in reversed(rows)}


def _step(row: Mapping[str, Any], mark: dict[str, Any], n: int, *, raw: bool) -> dict[str, Any]:
    made = {"n": n, **step(row)}
    decision = made["decision"] or mark.get("decision")
    return made | mark | {"decision": decision, "raw": row["raw"] if raw else None}


def _digest(rows: Sequence[Mapping[str, Any]]) -> str:
    known = hashlib.blake2b(digest_size=6)
    for row in rows:
        known.update(f"{row['topic']}/{row['partition']}/{row['offset']} ".encode())
    return known.hexdigest()


def _cursor(text: str | None) -> tuple[int, int, str]:
    """(received up to, steps told so far, what they were); (0, 0, "") for the first page. Problem 422."""
    if text is None:
        return 0, 0, ""
    as_of, _, rest = text.partition(".")
    first, _, digest = rest.partition(".")
    if not (as_of.isdigit() and first.isdigit() and len(as_of) < 15 and len(first) < 10 and len(digest) == 12):
        raise problem(422, "is not a cursor that this call gave", field="cursor")
    return int(as_of), int(first), digest
