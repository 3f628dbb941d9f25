"""How this replica is: `/v1/status` for operators, `/healthz`, `/readyz` and `/metrics` for machines on the inside.

`/healthz`: the process turns. `/readyz`: it can decide. Neither says a name, so neither asks for a token.
"""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from banksman.http_problem import problem
from banksman.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from starlette.requests import Request

    from banksman.enforcer.replica import Replica

NO_STORE = {"cache-control": "no-store"}


class Status:
    """The endpoints."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def healthz(self, _request: Request) -> Response:
        """The event loop turns: that is all."""
        return JSONResponse({"status": "ok"}, headers=NO_STORE)

    async def readyz(self, _request: Request) -> Response:
        """200 when decisions are answered; 503 with the reason when not."""
        why = self._not_ready()
        if why:
            raise problem(503, why, retry_after=1)
        return JSONResponse({"status": "ready"}, headers=NO_STORE)

    async def metrics(self, _request: Request) -> Response:
        """Prometheus text."""
        return Response(self._replica.metrics.page.text(), media_type=CONTENT_TYPE)

    async def status(self, request: Request) -> Response:
        """Everything an operator asks first: is anything not enforcing, lagging, undelivered, rejected?"""
        self._replica.callers.operator(request.scope, "viewer")
        return JSONResponse(self._told(), headers=NO_STORE)

    def _not_ready(self) -> str:
        replica = self._replica
        if not replica.records.connected:
            return "Kafka has not been reached yet"
        if not replica.lease.valid:
            return "no lease: no heartbeat of this replica came back from Kafka lately"
        return ""

    def _told(self) -> dict[str, Any]:
        replica = self._replica
        now, clock = datetime.now(UTC), replica.lease.clock()
        live = replica.live()
        newest = max((peer.applied for peer in live), default=replica.state.applied)
        return {
            "replica": replica.id,
            "address": replica.address,
            "version": version("banksman"),
            "started": replica.started,
            "enforcing": not self._not_ready(),
            "reason": self._not_ready() or None,
            "lease": {"valid": replica.lease.valid, "seconds_left": round(max(0.0, replica.lease.ends - clock), 3)},
            "policies": [
                one | {"age_s": round((now - datetime.fromisoformat(one["since"])).total_seconds(), 3)}
                for one in replica.policies.in_force()
            ],
            "rejected": [
                {
                    "file": one.file,
                    "error": one.message,
                    "line": one.line,
                    "key": one.key,
                    "project": one.project,
                    "attempted": one.attempted,
                    "since": one.at,
                }
                for one in replica.policies.rejections
            ],
            "replicas": [
                {
                    "replica": peer.replica,
                    "address": peer.address,
                    "applied": peer.applied,
                    "lag": max(0, newest - peer.applied),
                    "heard_s_ago": round(clock - peer.met, 3),
                    "policies": peer.policies,
                }
                for peer in sorted(live, key=lambda peer: peer.replica)
            ],
            "disagreements": replica.agreement.now(live),
            "budgets": replica.budgets.status(replica.records.partitions if replica.records.connected else 0),
            "control": {"applied": replica.state.applied},
            "queue": {"waiting": replica.waiting(), "bound": replica.settings.queue},
            "undelivered": replica.records.undelivered,
            "dropped": replica.records.dropped,
            "decisions": {
                **replica.metrics.answers,
                "unrecorded": replica.metrics.unrecorded,
                "voids": replica.metrics.voids,
            },
            "controls": replica.state.controls.told(),
            "agents": len(replica.state.identities.agents),
            "operators": len(replica.state.identities.operators),
        }
