"""`POST /v1/probe`: a record that says nothing, to be looked for behind everybody that it has to go through."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
from starlette.responses import JSONResponse

from banksman.enforcer.record import stamp
from banksman.errors import Unavailable
from banksman.events import Finding
from banksman.http_problem import problem
from banksman.topics import Topic

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.enforcer.replica import Replica

DETECTOR = "probe"
EVERY_S = 5.0
"""Least time between two: whoever asks again and again must not fill the log."""


class Probe:
    """The endpoint. For operators with the role `operator`."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._next = 0.0

    async def endpoint(self, request: Request) -> Response:
        """A finding that is told to nobody (`info`), acknowledged -> its id and place."""
        by = self._replica.callers.operator(request.scope, "operator")
        now = time.monotonic()
        if now < self._next:
            raise problem(429, f"one probe in {EVERY_S:.0f} s is enough", retry_after=int(EVERY_S))
        self._next = now + EVERY_S
        records = self._replica.records
        if not records.connected:
            raise problem(503, "Kafka has not been reached yet", retry_after=1)
        finding = Finding(
            **stamp(records.source), detector=DETECTOR, severity="info", title=f"a probe of {by.name}",
            fingerprint=DETECTOR, evidence={"by": by.name}, over=True,
        )  # fmt: skip
        try:
            offset = await records.put(records.alerts, 0, b"banksman", msgspec.to_builtins(finding))
        except Unavailable as error:
            raise problem(503, f"the probe is not on record: {error}", retry_after=1) from None
        return JSONResponse(
            {
                "id": finding.id, "topic": Topic.ALERTS.value, "partition": 0, "offset": offset, "time": finding.time,
                "took_ms": round((time.monotonic() - now) * 1000, 1),
            },
            headers={"cache-control": "no-store"},
        )  # fmt: skip
