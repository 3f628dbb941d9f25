"""`GET /v1/agents/{agent}/now`: what is an agent doing right now."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from starlette.responses import JSONResponse

from banksman.console.parameters import given, of_replay
from banksman.console.steps import COLUMNS, NIL, known, moment_ms, step, usd
from banksman.events import is_name
from banksman.http_problem import problem
from banksman.stamps import rfc3339

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.console.asking import Asking, Rows
    from banksman.console.known import Known

RUNNING_MS = 10_000
OPEN_MS = 3_600_000
SAME_MOMENT_MS = 1000
RECENT = 200
DAY_MS = 86_400_000
PROMPT_MS = 2000
"""What is received later than this after its id was made is looked at twice: it may be a copy."""
SHOWN = 5
ACTIONS = ("tool.call", "api.request", "model.call")

LATELY = "received > now64(3) - INTERVAL 1 DAY"
"""Where to look first: an agent at work has written today, and a month of an agent's records is no quick look."""

_LIVE = "agent = {agent:String} AND topic IN ('actions', 'decisions') AND verified AND @REPLAY"
_VOIDED = f"SELECT toString(parent) FROM @events WHERE {_LIVE} AND @SINCE AND kind = 'decision.void'"

RECENT_SQL = f"""
SELECT {COLUMNS}, '' AS raw FROM @events
WHERE {_LIVE} AND @SINCE
ORDER BY agent DESC, received DESC, topic DESC, partition DESC, offset DESC
LIMIT {{limit:UInt32}}
"""
DECISION_SQL = f"""
SELECT {COLUMNS} FROM @events
WHERE {_LIVE} AND @SINCE AND kind = 'decision' AND toString(id) NOT IN ({_VOIDED})
ORDER BY agent DESC, received DESC, topic DESC, partition DESC, offset DESC
LIMIT {{limit:UInt32}}
"""
FIRST_SQL = f"""
SELECT toString(id) AS id_, body_hash, toUnixTimestamp64Milli(min(received)) AS first_ms FROM @events
WHERE {_LIVE} AND received >= fromUnixTimestamp64Milli({{since:Int64}}) AND id IN {{ids:Array(UUID)}} GROUP BY id, body_hash
"""
OPEN_SQL = f"""
SELECT toString(step) AS call_, argMin(service, place) AS service_, argMin(action, place) AS action_,
    argMin(resource, place) AS resource_, argMin(branch, place) AS branch_,
    toUnixTimestamp64Milli(min(received)) AS started_ms, any(session) AS session_
FROM (
    SELECT *, (kind != 'tool.call', received, topic, offset) AS place,
        if(call = toUUID('{NIL}') AND kind = 'tool.call', id, call) AS step
    FROM @events
    WHERE {_LIVE} AND @SINCE AND (
        kind IN ('tool.call', 'tool.result') OR kind = 'decision' AND toString(id) NOT IN ({_VOIDED})))
WHERE step != toUUID('{NIL}')
GROUP BY step
HAVING countIf(kind = 'tool.call' OR decision = 'allow') > 0 AND countIf(kind = 'tool.result' OR decision = 'deny') = 0
ORDER BY started_ms DESC
LIMIT 1000
"""
SESSIONS_SQL = f"""
SELECT session, toUnixTimestamp64Milli(min(received)) AS started_ms, countIf(kind = 'session.started') > 0 AS begun,
    toUnixTimestamp64Milli(maxIf(received, kind = 'session.ended')) AS ended_ms
FROM @events
WHERE {_LIVE} AND @SINCE GROUP BY session
"""
SESSION_SQL = f"""
SELECT toUnixTimestamp64Milli(min(received)) AS started_ms FROM @events
WHERE {_LIVE} AND session = {{session:String}}
"""
APPROVAL_SQL = f"""
SELECT kind, toUnixTimestamp64Milli(received) AS received_ms, raw FROM @events
WHERE {_LIVE} AND approval = {{approval:String}} AND received > now64(3) - INTERVAL 31 DAY AND kind != 'decision'
ORDER BY received
"""
SPENT_SQL = f"""
SELECT sum(input_tokens + output_tokens + cache_write_tokens) AS used, sumOrNull(cost_usd) AS cost,
    countIf(priced = 'unpriced') AS unpriced
FROM (
    SELECT input_tokens, output_tokens, cache_write_tokens, cost_usd, priced FROM @events
    WHERE {_LIVE} AND received >= fromUnixTimestamp64Milli({{since:Int64}}) AND kind IN ('model.call', 'tool.result')
    ORDER BY received, topic, partition, offset LIMIT 1 BY id, body_hash)
"""
NEWEST_RUN_SQL = """
SELECT argMax(replay, received) AS run FROM @events
WHERE agent = {agent:String} AND topic IN ('actions', 'decisions') AND verified AND replay != ''
"""


class Now:
    """The endpoint."""

    def __init__(self, knows: Known, asking: Asking) -> None:
        self._known, self._asking = knows, asking

    async def endpoint(self, request: Request) -> Response:
        """The endpoint."""
        began = time.perf_counter()
        self._known.operator(request.scope["fields"])
        agent = request.path_params["agent"]
        found = given(request, "replay")
        enrolled = self._known.identities.agents.get(agent)
        if not is_name(agent):
            raise problem(404, "that is not a name of an agent")
        recent, run = await self._recent(agent, found)
        if not recent and enrolled is None:
            raise problem(404, f"no agent {agent} is enrolled, and nothing was received of one")
        told = await self._told(agent, recent, run)
        told["took_ms"] = round((time.perf_counter() - began) * 1000, 1)
        return JSONResponse(told)

    async def _recent(self, agent: str, found: dict[str, str]) -> tuple[Rows, str]:
        """The newest records, and the replay that they are of ("" for live)."""
        condition, values = of_replay(found)
        recent = await self._newest(RECENT_SQL, RECENT, condition, agent=agent, **values)
        if recent:
            return recent, recent[0]["replay"]
        if "replay" in found:
            raise problem(404, f"nothing of {agent} is in the replay {found['replay']}", field="replay")
        run = (await self._asking.rows(NEWEST_RUN_SQL, agent=agent))[0]["run"]
        if not run:
            return [], ""
        return await self._newest(RECENT_SQL, RECENT, "replay = {replay:String}", agent=agent, replay=run), run

    async def _newest(self, sql: str, count: int, condition: str, **values: Any) -> Rows:
        """The newest rows, but copies: a record that lies at a second place, and was received there as if it were news.

        A client sends again what was not acknowledged, and whoever can write to Kafka can append what an agent once wrote.
        """
        rows: Rows = []
        text = sql.replace("@REPLAY", condition)
        for since in (LATELY, "true"):
            for limit in (count, 100 * count):
                found = await self._asking.rows(text.replace("@SINCE", since), limit=limit, **values)
                rows = await self._without_copies(found, condition, **values)
                if len(found) < limit or len(rows) * 2 > count:
                    break
            if rows:
                break
        return rows[:count]

    async def _without_copies(self, rows: Rows, condition: str, **values: Any) -> Rows:
        times = Counter((row["id_"], row["body_hash"]) for row in rows)
        doubted = sorted(
            {
                row["id_"]
                for row in rows
                if times[row["id_"], row["body_hash"]] > 1 or row["received_ms"] - _made_ms(row["id_"]) > PROMPT_MS
            }
        )
        if not doubted:
            return rows
        text = FIRST_SQL.replace("@REPLAY", condition)
        found = await self._asking.rows(text, ids=doubted, since=_first_ms(doubted), **values)
        first = {(row["id_"], row["body_hash"]): row["first_ms"] for row in found}
        return [
            row for row in rows if row["received_ms"] <= first.get((row["id_"], row["body_hash"]), row["received_ms"])
        ]

    async def _told(self, agent: str, recent: Rows, run: str) -> dict[str, Any]:
        enrolled = self._known.identities.agents.get(agent)
        newest = recent[0] if recent else None
        project = newest["project"] if newest is not None and (run or enrolled is None) else None
        project = project or (enrolled.project if enrolled else None)
        noted = next((row["owner"] for row in recent if row["owner"]), None)
        owner = (noted if run else None) or self._known.owner(project, agent) or noted
        session = newest["session"] if newest else None
        budget = self._known.budget(project, agent)
        zone = _zone(budget.get("timezone", "UTC"))
        since, until = _day(zone)
        decided, open_calls, sessions, spent = await asyncio.gather(
            self._decided(agent, recent, run),
            self._ask(OPEN_SQL, agent, run),
            self._ask(SESSIONS_SQL, agent, run),
            self._ask(SPENT_SQL, agent, run, since=int(since.timestamp() * 1000)),
        )
        known_sessions = {row["session"]: row for row in sessions}
        started_ms = await self._started(agent, session, run, known_sessions.get(session or ""))
        now_ms = time.time() * 1000
        over = {row["session"]: row["ended_ms"] for row in sessions}
        open_calls = [row for row in open_calls if row["started_ms"] > over.get(row["session_"], 0)]
        if not run:
            open_calls = await self._truly_open(open_calls, agent)
        waits = await self._waits(agent, run, decided) if decided and decided["decision"] == "approve" else None
        controls = self._known.controls.on(project, agent, session)
        fatal = [one for one in controls if one.kind != "project.paused"] if not run else []
        state, at_ms = _state(recent, open_calls, waits, decided, now_ms)
        since_told = fatal[0].at if fatal else None if at_ms is None else moment_ms(at_ms)
        opened = open_calls[0] if open_calls else None
        return {
            "agent": agent, "project": project, "owner": owner or None, "replay": run or None,
            "state": "killed" if fatal else state, "since": since_told,
            "session": session, "session_started": None if started_ms is None else moment_ms(started_ms),
            "last_seen": moment_ms(newest["received_ms"]) if newest else None,
            "open_call": None if opened is None else {
                "call": opened["call_"],
                **{name: opened[f"{name}_"] or None for name in ("service", "action", "resource", "branch")},
                "started": moment_ms(opened["started_ms"]), "age_s": _age(now_ms, opened["started_ms"]),
            },
            "open_calls": len(open_calls),
            "last_decision": None if decided is None else {
                **{name: decided[name] or None for name in (
                    "decision", "tier", "rule", "reason", "policy_version", "service", "action", "resource", "branch",
                    "approval",
                )},
                "id": decided["id_"], "at": moment_ms(decided["received_ms"]), "age_s": _age(now_ms, decided["received_ms"]),
            },
            "approval": waits,
            "tokens": {
                "used": spent[0]["used"], "limit": budget.get("daily_tokens"), "cost_usd": usd(spent[0]["cost"]),
                "limit_usd": budget.get("daily_cost_usd"), "unpriced_calls": spent[0]["unpriced"], "window": "day",
                "timezone": zone.key, "since": rfc3339(since), "resets_at": rfc3339(until),
            },
            "last_actions": last_actions(recent),
            "controls": [one.told() for one in controls],
        }  # fmt: skip

    async def _truly_open(self, calls: Rows, agent: str) -> Rows:
        """The calls that were not there before: a copy of an old tool.call opens nothing again."""
        doubted = [row["call_"] for row in calls if row["started_ms"] - _made_ms(row["call_"]) > PROMPT_MS]
        if not doubted:
            return calls
        found = await self._ask(FIRST_SQL, agent, "", ids=doubted, since=_first_ms(doubted))
        first: dict[str, int] = {}
        for row in found:
            first[row["id_"]] = min(row["first_ms"], first.get(row["id_"], row["first_ms"]))
        return [row for row in calls if row["started_ms"] <= first.get(row["call_"], row["started_ms"])]

    async def _ask(self, sql: str, agent: str, run: str, **values: Any) -> Rows:
        # A replay keeps its own times: what of it is "open" is judged over the whole run.
        since = "true" if run else LATELY
        text = sql.replace("@REPLAY", "replay = {replay:String}").replace("@SINCE", since)
        return await self._asking.rows(text, agent=agent, replay=run, **values)

    async def _decided(self, agent: str, recent: Rows, run: str) -> Mapping[str, Any] | None:
        """The last decision that stands. What takes one back is newer than it: so it is among the newest rows, or not there."""
        voided = {row["parent_"] for row in recent if row["kind"] == "decision.void"}
        for row in recent:
            if row["kind"] == "decision" and row["id_"] not in voided:
                return row
        if not recent:
            return None
        found = await self._newest(DECISION_SQL, 1, "replay = {replay:String}", agent=agent, replay=run)
        return found[0] if found else None

    async def _started(self, agent: str, session: str | None, run: str, lately: Mapping[str, Any] | None) -> int | None:
        """When the session began, in ms; further back than a day only where its start is."""
        if session is None or (lately is not None and lately["begun"]):
            return None if lately is None else int(lately["started_ms"])
        rows = await self._ask(SESSION_SQL, agent, run, session=session)
        return int(rows[0]["started_ms"])

    async def _waits(self, agent: str, run: str, decided: Mapping[str, Any]) -> dict[str, Any] | None:
        """The approval that nobody has answered and that has not run out, or None."""
        if not decided["approval"]:
            return None
        rows = await self._ask(APPROVAL_SQL, agent, run, approval=decided["approval"])
        if any(row["kind"] != "approval.requested" for row in rows):
            return None
        for row in rows:
            expires_at = json.loads(row["raw"]).get("expires_at")
            if isinstance(expires_at, str) and expires_at > rfc3339():
                requested = moment_ms(row["received_ms"])
                return {"approval": decided["approval"], "requested": requested, "expires_at": expires_at}
        return None


def _first_ms(doubted: Sequence[str]) -> int:
    """Nothing of these was received before: a clock that is a day ahead is no clock."""
    return max(0, min(_made_ms(one) for one in doubted) - DAY_MS)


def _made_ms(identity: str) -> int:
    """When a UUIDv7 was made, by its author's clock."""
    return int(identity[:8] + identity[9:13], 16)


def last_actions(recent: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The newest five actions of newest-first rows, each with the decision and the result that belong to it."""
    decisions = {row["call_"]: row for row in reversed(recent) if row["kind"] == "decision"}
    results = {row["call_"]: row for row in reversed(recent) if row["kind"] == "tool.result"}
    calls = {known(row["call_"]) or row["id_"] for row in recent if row["kind"] == "tool.call"}
    shown: list[dict[str, Any]] = []
    seen: set[str] = set()
    for row in recent:
        call = known(row["call_"]) or row["id_"]
        if row["id_"] in seen:
            continue
        seen.add(row["id_"])
        alone = row["kind"] == "decision" and row["call_"] not in calls
        if len(shown) < SHOWN and (row["kind"] in ACTIONS or alone):
            shown.append(_action(row, decisions.get(call), results.get(call)))
    return shown


def _action(
    row: Mapping[str, Any], decision: Mapping[str, Any] | None, result: Mapping[str, Any] | None
) -> dict[str, Any]:
    own = step(row)
    made = {name: own[name] for name in (
        "time", "kind", "id", "call", "service", "action", "resource", "branch", "model", "decision", "rule", "reason",
        "status", "error", "duration_ms", "tokens", "cost_usd",
    )}  # fmt: skip
    made["session"] = row["session"]
    if decision is not None:
        made |= {name: decision[name] or None for name in ("decision", "rule", "reason")}
    if result is not None:
        told = step(result)
        made |= {name: told[name] for name in ("status", "error", "duration_ms", "tokens", "cost_usd")}
    denied = made["decision"] == "deny"
    made["open"] = row["kind"] == "tool.call" and result is None and not denied
    return made


def _state(
    recent: Rows, open_calls: Rows, waits: dict[str, Any] | None, decided: Mapping[str, Any] | None, now_ms: float
) -> tuple[str, int | None]:
    """(state, since when in ms) of what was received; controls come before it."""
    if not recent:
        return "never_seen", None
    newest, ended = recent[0], ended_ms(recent)
    if ended is not None:
        return "ended", ended
    young = [row for row in open_calls if now_ms - row["started_ms"] < OPEN_MS]
    # A call that waits for its approval is not being carried out.
    if waits is not None and decided is not None and (not young or young[0]["call_"] == decided["call_"]):
        return "waiting", decided["received_ms"]
    if young:
        return "running", young[0]["started_ms"]
    if now_ms - newest["received_ms"] < RUNNING_MS:
        return "running", newest["received_ms"]
    return "idle", newest["received_ms"]


def ended_ms(rows: Collection[Mapping[str, Any]]) -> int | None:
    """When a session ended, if the last thing that its agent reported is that. What the enforcer answered about the same
    moment lies in another topic, and is stamped a little earlier or later.
    """
    last = max(
        (row for row in rows if row["topic"] == "actions"),
        key=lambda row: (row["received_ms"], row["offset"]),
        default=None,
    )
    if last is None or last["kind"] != "session.ended":
        return None
    over: int = last["received_ms"]
    return None if any(row["received_ms"] > over + SAME_MOMENT_MS for row in rows) else over


def _age(now_ms: float, then_ms: int) -> float:
    return round(max(0.0, now_ms - then_ms) / 1000, 3)


def _zone(name: object) -> ZoneInfo:
    try:
        return ZoneInfo(str(name))
    except (OSError, ValueError, KeyError):  # the enforcer knew it when it loaded the policy; this machine does not
        return ZoneInfo("UTC")


def _day(zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Midnight before and after now, in the zone."""
    here = datetime.now(zone)
    start = here.replace(hour=0, minute=0, second=0, microsecond=0)
    after = (start + timedelta(days=1)).replace(hour=0)
    return start.astimezone(UTC), after.astimezone(UTC)
