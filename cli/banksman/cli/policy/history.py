"""What agents really asked, from the audit log through the read side: for `backtest` and `suggest`.

Only what a service has signed counts, and no replayed history: no agent can teach a policy by what it makes up. What was
answered and voided was never answered. Read a day at a time, or less where that is more than one answer of the read side holds.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from banksman.cli import client, show
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from banksman.policy.backtest import Needs, Recorded

OF_CONTROLS = ("revoked", "killed", "paused", "exhausted")
"""Reasons that are not the policy's."""
OF_APPROVALS = ("approved", "approval_denied", "approval_expired", "approval_used", "approval_unfit")
"""Reasons behind which the policy said `approve`."""
SLOW_S = 600.0
LEAST = timedelta(milliseconds=1)
_LENGTH = re.compile(r"([1-9][0-9]{0,6})([smhd])").fullmatch
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

_SQL = """
SELECT agent, service, action, resource, branch, said, count() AS times, any(session) AS session,
    groupUniqArray(toString(toDate(received))) AS days{more}
FROM
(
    SELECT *, multiIf(reason IN {{of_approvals:Array(String)}}, 'approve', shadow != '', shadow, decision) AS said{columns}
    FROM events
    WHERE received >= {{since:DateTime64(3)}} AND received < {{until:DateTime64(3)}} AND kind = 'decision' AND verified
        AND project = {{project:String}} AND replay = '' AND reason NOT IN {{of_controls:Array(String)}}{agent}
        AND (agent, id) NOT IN
        (
            SELECT agent, parent FROM events
            WHERE received >= {{since:DateTime64(3)}} AND received < {{until:DateTime64(3)}} + INTERVAL 1 HOUR
                AND kind = 'decision.void' AND verified
        )
    LIMIT 1 BY agent, id, body_hash
)
GROUP BY agent, service, action, resource, branch, said{more}
"""


def since(text: str, now: datetime) -> datetime:
    """A length before now (`30d`), or a moment with its zone. InvalidInput: neither."""
    length = _LENGTH(text)
    if length:
        return now - timedelta(**{_UNITS[length[2]]: int(length[1])})
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = now + timedelta(1)
    if found.tzinfo is None or found > now:
        raise InvalidInput(
            "must be a length before now (90s, 15m, 2h, 30d), or a past moment with its zone", field="--since"
        )
    return found.astimezone(UTC)


def recorded(
    project: str,
    begins: datetime,
    ends: datetime,
    needs: Needs,
    *,
    agent: str | None = None,
    progress: Callable[[float], None] = lambda _share: None,
) -> Iterator[list[Recorded]]:
    """What was decided between two moments, in pieces. `progress` is told the share of the time that is done."""
    console = client.console(timeout=SLOW_S)
    at, step = begins, timedelta(days=1)
    while at < ends:
        until = min(at + step, ends)
        try:
            found = _asked(console, project, at, until, needs, agent)
        except client.Problem as problem:
            if not problem.body.get("too_much") or until - at <= LEAST:
                raise
            step = (until - at) / 4
            continue
        yield found
        at, step = until, min(step * 2, timedelta(days=1))
        progress((at - begins) / (ends - begins))


def bar(what: str) -> Any:
    """On stderr, if that is a terminal, how far it is: a context that gives what is told the share that is done."""
    import contextlib
    import sys

    from rich.console import Console
    from rich.progress import Progress

    @contextlib.contextmanager
    def shown() -> Iterator[Callable[[float], None]]:
        with Progress(console=Console(file=sys.stderr), disable=not sys.stderr.isatty(), transient=True) as progress:
            task = progress.add_task(show.safe(what), total=1.0)
            yield lambda share: progress.update(task, completed=share)

    return shown()


def _asked(
    console: client.Client, project: str, since_: datetime, until: datetime, needs: Needs, agent: str | None
) -> list[Recorded]:
    from banksman.policy.backtest import Recorded

    columns = more = ""
    if needs.args:
        columns, more = f"{columns}, JSONExtractRaw(raw, 'args') AS args_", f"{more}, args_"
    if needs.time:
        columns, more = f"{columns}, toUnixTimestamp64Milli(received) AS at_", f"{more}, at_"
    if needs.subject:
        columns, more = (
            f"{columns}, if(subject != '', subject, JSONExtractString(raw, 'subject')) AS subject_",
            f"{more}, subject_",
        )
    query = _SQL.format(columns=columns, more=more, agent=" AND agent = {agent:String}" if agent is not None else "")
    parameters: dict[str, Any] = {
        "since": _clickhouse(since_), "until": _clickhouse(until), "project": project,
        "of_controls": list(OF_CONTROLS), "of_approvals": list(OF_APPROVALS),
    }  # fmt: skip
    if agent is not None:
        parameters["agent"] = agent
    raw, _ = console.fetch("POST", "/v1/sql", body={"query": query, "parameters": parameters, "format": "ndjson"})
    return [
        Recorded(
            row["agent"], row["service"], row["action"], row["resource"] or None, row["branch"] or None, row["said"],
            int(row["times"]), row["session"], json.loads(row["args_"]) if row.get("args_") else None,
            int(row["at_"]) / 1000 if "at_" in row else None, frozenset(row["days"]), row.get("subject_") or None,
        )
        for row in map(json.loads, raw.splitlines())
    ]  # fmt: skip


def _clickhouse(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
