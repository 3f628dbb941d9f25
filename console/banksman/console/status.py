"""How the read side and the archiver are, and what was seen to be wrong."""

from __future__ import annotations

import json
import time
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from banksman.console.parameters import DAY_S, given, moment, whole
from banksman.console.steps import known as real
from banksman.console.steps import moment_ms
from banksman.events import RANK
from banksman.http_problem import Problem, problem
from banksman.metrics import CONTENT_TYPE, Measure, Text
from banksman.progress import ARCHIVER, NOTIFIER, PROCESSORS, READS
from banksman.stamps import rfc3339
from banksman.topics import ARCHIVED, Topic

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable

    from starlette.requests import Request

    from banksman.console.asking import Asking
    from banksman.console.known import Known
    from banksman.console.tail import Tail

NO_STORE = {"cache-control": "no-store"}
SEVERITIES = tuple(reversed(RANK))

ROWS_SQL = "SELECT count() AS records, toUnixTimestamp64Milli(max(received)) AS newest_ms FROM @events"
"""Both are known without reading a row."""
STORED_SQL = """
SELECT topic, partition, max(offset) AS highest FROM @events
WHERE received > now64(3) - INTERVAL 1 HOUR GROUP BY topic, partition
"""
"""Only how far the archiver is beyond its commits, so an hour is plenty, and a scan of the whole log is not."""
HOUR_SQL = """
SELECT severity, uniqExact(id) AS seen FROM @events
WHERE topic = 'alerts' AND kind = 'finding' AND verified AND received > now64(3) - INTERVAL 1 HOUR GROUP BY severity
"""
VERSION_SQL = "SELECT version() AS version"
FINDINGS_SQL = """
SELECT toString(id) AS id_, kind, toUnixTimestamp64Milli(received) AS received_ms, detector, severity, title, project, agent,
    session, fingerprint, raw
FROM @events
WHERE topic = 'alerts' AND verified AND @WHERE
    AND received >= fromUnixTimestamp64Milli({since:Int64}) AND received < fromUnixTimestamp64Milli({until:Int64})
ORDER BY received DESC, offset DESC LIMIT 1 BY id LIMIT {limit:UInt32}
"""


class Status:
    """The endpoints."""

    def __init__(self, knows: Known, asking: Asking, tail: Tail, requests: Counter[tuple[str, int]]) -> None:
        self._known, self._asking, self._tail, self._requests = knows, asking, tail, requests
        self._started = rfc3339()
        self._page = Text("console", self._measures())

    async def healthz(self, _request: Request) -> Response:
        """The event loop turns: that is all."""
        return JSONResponse({"status": "ok"}, headers=NO_STORE)

    async def readyz(self, _request: Request) -> Response:
        """200 when it is known who may ask."""
        why = self._not_ready()
        if why:
            raise problem(503, why, retry_after=1)
        return JSONResponse({"status": "ready"}, headers=NO_STORE)

    async def status(self, request: Request) -> Response:
        """`GET /v1/status`: 200 also when everybody else is away."""
        self._known.operator(request.scope["fields"])
        given(request)
        known = self._known
        progress = known.progress
        ends, archived = progress.ends, progress.commits[ARCHIVER]
        clickhouse, stored, findings = await self._clickhouse()
        partitions = None
        if ends is not None:
            topics = {topic.value for topic in ARCHIVED}
            partitions = [
                _lag(topic, number, end, stored, archived)
                for (topic, number), end in sorted(ends.items())
                if topic in topics
            ]
        return JSONResponse(
            {
                "version": version("banksman"), "started": self._started, "ready": not self._not_ready(),
                "reason": self._not_ready() or None, "clickhouse": clickhouse,
                "kafka": {
                    "reachable": ends is not None, "error": known.kafka_error,
                    "heard_s_ago": None if known.heard_s_ago is None else round(known.heard_s_ago, 3),
                    "control": {"applied": known.applied, "caught_up": known.caught_up.is_set(), "refused": known.refused},
                },
                "archiver": None if partitions is None else {
                    "lag": sum(one["lag"] for one in partitions), "waiting_s": round(progress.seconds(ARCHIVER), 3),
                    "partitions": partitions,
                },
                **{
                    group: None if ends is None else {
                        "lag": progress.lag(group), "waiting_s": round(progress.seconds(group), 3),
                        **({"next": progress.commits[group].get((Topic.ALERTS.value, 0))} if group == NOTIFIER else {}),
                    }
                    for group in (PROCESSORS, NOTIFIER)
                },
                "findings_last_hour": findings,
                "dead_letters": None if ends is None else sum(
                    end for (topic, _), end in ends.items() if topic == Topic.DEAD.value
                ),
                "watchers": len(self._tail.readers), "agents": len(known.identities.agents),
                "operators": len(known.identities.operators),
            },
            headers=NO_STORE,
        )  # fmt: skip

    async def findings(self, request: Request) -> Response:
        """`GET /v1/findings`."""
        began = time.perf_counter()
        self._known.operator(request.scope["fields"])
        found = given(request, "since", "until", "limit", "agent", "project", "detector", "severity")
        if found.get("severity", "info") not in SEVERITIES:
            raise problem(422, f"must be one of {', '.join(SEVERITIES)}", field="severity")
        names = [name for name in ("agent", "project", "detector", "severity") if name in found]
        where = " AND ".join(f"{name} = {{{name}:String}}" for name in names) or "true"
        if "detector" not in found:
            where += " AND detector != 'probe'"  # they say nothing, and must not push out what does
        rows = await self._asking.rows(
            FINDINGS_SQL.replace("@WHERE", where), since=moment(found, "since", DAY_S),
            until=moment(found, "until", 0) + ("until" not in found) * 60_000, limit=whole(found, "limit", 100, 1000),
            **{name: found[name] for name in names},
        )  # fmt: skip
        told = []
        for row in rows:
            body = json.loads(row["raw"])
            told.append(
                {
                    "id": real(row["id_"]), "at": moment_ms(row["received_ms"]), "kind": row["kind"],
                    **{name: row[name] or None for name in (
                        "detector", "severity", "title", "project", "agent", "session", "fingerprint",
                    )},
                    **{name: body.get(name) for name in ("count", "first_seen", "last_seen", "evidence", "suggestion")},
                }
            )  # fmt: skip
        return JSONResponse({"findings": told, "took_ms": round((time.perf_counter() - began) * 1000, 1)})

    async def metrics(self, _request: Request) -> Response:
        """Prometheus text."""
        return Response(self._page.text(), media_type=CONTENT_TYPE)

    def _measures(self) -> Iterable[Measure]:
        known = self._known
        progress = known.progress
        yield Measure(
            "requests", "Answers, by route.",
            lambda: {(path, str(status)): count for (path, status), count in self._requests.items()},
            labels=("path", "status"), counter=True,
        )  # fmt: skip
        yield Measure(
            "control_refused", "Records that came into control since the start and were not applied: forged, or copies.",
            lambda: known.refused_live, counter=True,
        )  # fmt: skip
        for name, about, value in (
            ("ready", "Whether it is known who may ask.", lambda: int(not self._not_ready())),
            ("control_applied", "The offset in control up to which records are applied.", lambda: known.applied),
            ("watchers", "Who is told what happens as it happens.", lambda: len(self._tail.readers)),
            ("kafka_reachable", "Whether Kafka answered the last look.", lambda: int(progress.ends is not None)),
        ):
            yield Measure(name, about, value)
        for name, about, of in (
            ("group_lag", "Records that wait for a service, as Kafka has it.", progress.lag),
            ("group_waiting_seconds", "For how long at least the oldest of them has been waiting.", progress.seconds),
        ):
            yield Measure(name, about, partial(_by_group, of), labels=("group",))

    def _not_ready(self) -> str:
        return "" if self._known.caught_up.is_set() else "the log of controls is not read to its end yet"

    async def _clickhouse(self) -> tuple[dict[str, Any], dict[tuple[str, int], int] | None, dict[str, int] | None]:
        told: dict[str, Any] = {
            "reachable": False,
            "error": None,
            "version": None,
            "rows": None,
            "newest": None,
            "newest_age_s": None,
        }
        try:
            told["version"] = (await self._asking.rows(VERSION_SQL))[0]["version"]
            (log,) = await self._asking.rows(ROWS_SQL)
            stored = await self._asking.rows(STORED_SQL)
            seen = {row["severity"]: row["seen"] for row in await self._asking.rows(HOUR_SQL)}
        except Problem as away:
            return told | {"error": away.detail}, None, None
        newest = log["newest_ms"]
        told |= {"reachable": True, "rows": log["records"]}
        if log["records"]:
            told |= {"newest": moment_ms(newest), "newest_age_s": round(max(0.0, time.time() - newest / 1000), 3)}
        highest = {(row["topic"], row["partition"]): row["highest"] for row in stored}
        return told, highest, {name: seen.get(name, 0) for name in SEVERITIES}


def _by_group(of: Callable[[str], float]) -> dict[tuple[str, ...], float]:
    return {(group,): of(group) for group in READS}


def _lag(
    topic: str, number: int, end: int, stored: dict[tuple[str, int], int] | None, archived: dict[tuple[str, int], int]
) -> dict[str, Any]:
    highest = None if stored is None else stored.get((topic, number))
    # Commits follow the rows: whichever is further says where the archiver goes on.
    behind = max(archived.get((topic, number), 0), 0 if highest is None else highest + 1)
    return {
        "topic": topic,
        "partition": number,
        "end": end,
        "stored": highest,
        "next": behind,
        "lag": max(0, end - behind),
    }
