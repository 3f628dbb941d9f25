"""`GET /v1/agents`: who is there at all, and how each is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from banksman.console.now import RUNNING_MS
from banksman.console.parameters import given, of_replay
from banksman.console.steps import moment_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.console.asking import Asking
    from banksman.console.known import Known

MOST_AGENTS = 10_000

AGENTS_SQL = """
SELECT agent, argMax(project, received) AS project_, argMax(session, received) AS session_,
    argMaxIf(kind, (received, offset), topic = 'actions') AS last_kind,
    toUnixTimestamp64Milli(max(received)) AS last_ms, argMaxIf(decision, received, kind = 'decision') AS last_decision,
    argMaxIf(rule, received, kind = 'decision') AS last_rule, argMax(replay, received) AS replay_,
    countIf(received > now64(3) - INTERVAL 1 MINUTE) AS events_last_minute
FROM @events
WHERE received > now64(3) - INTERVAL 1 DAY AND topic IN ('actions', 'decisions') AND verified AND @REPLAY AND @PROJECT
GROUP BY agent ORDER BY last_ms DESC LIMIT 10000
"""


class Agents:
    """The endpoint."""

    def __init__(self, knows: Known, asking: Asking) -> None:
        self._known, self._asking = knows, asking

    async def endpoint(self, request: Request) -> Response:
        """The endpoint."""
        began = time.perf_counter()
        self._known.operator(request.scope["fields"])
        found = given(request, "project", "replay")
        condition, values = of_replay(found)
        sql = AGENTS_SQL.replace("@REPLAY", condition)
        if "project" in found:
            sql, values = sql.replace("@PROJECT", "project = {project:String}"), values | {"project": found["project"]}
        rows = {row["agent"]: row for row in await self._asking.rows(sql.replace("@PROJECT", "true"), **values)}
        for name, enrolled in self._known.identities.agents.items():
            if (
                name not in rows
                and "replay" not in found
                and found.get("project", enrolled.project) == enrolled.project
            ):
                rows[name] = {}
        now_ms = time.time() * 1000
        listed = [self._one(name, row, now_ms) for name, row in rows.items()]
        listed.sort(key=lambda one: (one["last_seen"] is None, -rows[one["agent"]].get("last_ms", 0), one["agent"]))
        return JSONResponse({"agents": listed[:MOST_AGENTS], "took_ms": round((time.perf_counter() - began) * 1000, 1)})

    def _one(self, name: str, row: Mapping[str, Any], now_ms: float) -> dict[str, Any]:
        enrolled = self._known.identities.agents.get(name)
        project = enrolled.project if enrolled else row.get("project_") or None
        session, last_ms = row.get("session_") or None, row.get("last_ms")
        if not row.get("replay_") and self._known.controls.on(None, name, session):
            state = "killed"
        elif last_ms is None:
            state = "never_seen"
        elif row["last_kind"] == "session.ended":
            state = "ended"
        else:
            state = "running" if now_ms - last_ms < RUNNING_MS else "idle"
        return {
            "agent": name, "project": project, "owner": self._known.owner(project, name),
            "enrolled": enrolled is not None, "state": state, "session": session,
            "last_seen": None if last_ms is None else moment_ms(last_ms), "last_kind": row.get("last_kind") or None,
            "last_decision": row.get("last_decision") or None, "last_rule": row.get("last_rule") or None,
            "events_last_minute": row.get("events_last_minute", 0), "replay": row.get("replay_") or None,
        }  # fmt: skip
