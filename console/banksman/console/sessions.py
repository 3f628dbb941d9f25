"""`GET /v1/sessions`: which sessions there were, the one with the newest record first."""

from __future__ import annotations

import base64
import json
import time
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from banksman.console.parameters import DAY_S, given, moment, of_replay, whole
from banksman.console.steps import moment_ms, usd
from banksman.http_problem import problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.console.asking import Asking
    from banksman.console.known import Known

RUNNING_MS = 10_000

LIST_SQL = """
SELECT agent, session, replay, toUnixTimestamp64Milli(max(received)) AS last_ms
FROM @events
WHERE topic IN ('actions', 'decisions') AND verified AND session != '' AND @REPLAY AND @AGENT AND @PROJECT
    AND received >= fromUnixTimestamp64Milli({since:Int64}) AND received < fromUnixTimestamp64Milli({until:Int64})
GROUP BY agent, session, replay
HAVING (last_ms, agent, session, replay) < ({last:Int64}, {last_agent:String}, {last_session:String}, {last_replay:String})
ORDER BY last_ms DESC, agent DESC, session DESC, replay DESC
LIMIT {limit:UInt32}
"""
NUMBERS_SQL = """
SELECT agent, session, replay, anyIf(project, verified) AS project, maxIf(owner, verified) AS owner_,
    toUnixTimestamp64Milli(minIf(received, verified)) AS first_ms, toUnixTimestamp64Milli(maxIf(received, verified)) AS last_ms,
    argMaxIf(kind, (received, offset), verified AND topic = 'actions') AS last_kind,
    argMaxIf(status, received, verified AND kind = 'session.ended') AS status_,
    countIf(verified AND kind IN ('tool.call', 'api.request', 'model.call')) AS actions,
    countIf(answered AND decision = 'allow') AS allowed, countIf(answered AND decision = 'deny') AS denied,
    countIf(answered AND decision = 'approve') AS asked,
    sumIf(input_tokens + output_tokens + cache_write_tokens, verified) AS tokens, sumOrNullIf(cost_usd, verified) AS cost,
    countIf(verified AND priced = 'unpriced') AS unpriced, countIf(NOT verified) AS unverified,
    groupUniqArrayIf(policy_version, verified AND policy_version != '') AS policy_versions
FROM (
    SELECT *, verified AND kind = 'decision' AND (agent, toString(id)) NOT IN (
        SELECT agent, toString(parent) FROM @events
        WHERE kind = 'decision.void' AND verified AND @THESE) AS answered
    FROM @events
    WHERE topic IN ('actions', 'decisions') AND @THESE
    ORDER BY verified DESC, received, topic, partition, offset
    LIMIT 1 BY agent, session, replay, id, body_hash
)
GROUP BY agent, session, replay
""".replace("@THESE", "agent IN {agents:Array(String)} AND session IN {sessions:Array(String)}")


class Sessions:
    """The endpoint."""

    def __init__(self, knows: Known, asking: Asking) -> None:
        self._known, self._asking = knows, asking

    async def endpoint(self, request: Request) -> Response:
        """The endpoint."""
        began = time.perf_counter()
        self._known.operator(request.scope["fields"])
        found = given(request, "agent", "project", "since", "until", "limit", "cursor", "replay")
        limit = whole(found, "limit", 50, 1000)
        condition, values = of_replay(found)
        sql = LIST_SQL.replace("@REPLAY", condition)
        for name in ("agent", "project"):
            sql = sql.replace(f"@{name.upper()}", f"{name} = {{{name}:String}}" if name in found else "true")
            if name in found:
                values[name] = found[name]
        since, until = moment(found, "since", DAY_S), moment(found, "until", 0) + ("until" not in found) * 60_000
        last = _cursor(found.get("cursor"))
        listed = await self._asking.rows(
            sql, since=since, until=until, limit=limit + 1, last=last[0], last_agent=last[1], last_session=last[2],
            last_replay=last[3], **values,
        )  # fmt: skip
        more, listed = len(listed) > limit, listed[:limit]
        numbers: dict[tuple[str, str, str], Mapping[str, Any]] = {}
        if listed:
            agents, sessions = sorted({row["agent"] for row in listed}), sorted({row["session"] for row in listed})
            rows = await self._asking.rows(NUMBERS_SQL, agents=agents, sessions=sessions)
            numbers = {(row["agent"], row["session"], row["replay"]): row for row in rows}
        now_ms = time.time() * 1000
        told = [
            self._one(numbers[key], now_ms)
            for row in listed
            if (key := (row["agent"], row["session"], row["replay"])) in numbers
        ]
        end = listed[-1] if more else None
        return JSONResponse(
            {
                "sessions": told,
                "next": end and _write([end["last_ms"], end["agent"], end["session"], end["replay"]]),
                "took_ms": round((time.perf_counter() - began) * 1000, 1),
            }
        )

    def _one(self, row: Mapping[str, Any], now_ms: float) -> dict[str, Any]:
        killed = not row["replay"] and any(
            one.kind != "project.paused" for one in self._known.controls.on(None, row["agent"], row["session"])
        )
        return {
            "project": row["project"], "agent": row["agent"], "session": row["session"], "replay": row["replay"] or None,
            "owner": row["owner_"] or None,
            "state": "killed" if killed else state(row["last_kind"], row["last_ms"], now_ms),
            "status": row["status_"] or None, "started": moment_ms(row["first_ms"]), "last_seen": moment_ms(row["last_ms"]),
            "duration_s": round((row["last_ms"] - row["first_ms"]) / 1000, 3), "actions": row["actions"],
            "allowed": row["allowed"], "denied": row["denied"], "sent_to_approval": row["asked"], "tokens": row["tokens"],
            "cost_usd": usd(row["cost"]), "unpriced_calls": row["unpriced"],
            "policy_versions": sorted(row["policy_versions"]), "unverified": row["unverified"],
        }  # fmt: skip


def state(last_kind: str, last_ms: int, now_ms: float) -> str:
    """`ended`, `running` or `idle`, by the newest record alone."""
    if last_kind == "session.ended":
        return "ended"
    return "running" if now_ms - last_ms < RUNNING_MS else "idle"


def _write(place: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _cursor(text: str | None) -> tuple[int, str, str, str]:
    if text is None:
        return 2**62, "", "", ""
    try:
        last, agent, session, replay = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if not (isinstance(last, int) and all(isinstance(word, str) for word in (agent, session, replay))):
            raise TypeError
    except (ValueError, TypeError):
        raise problem(422, "is not a cursor that this call gave", field="cursor") from None
    return last, agent, session, replay
