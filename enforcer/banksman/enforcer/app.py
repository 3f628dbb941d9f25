"""The application: `/v1/decide` compared as a literal before any framework, everything else routed by Starlette."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from banksman.enforcer.access_request import REQUESTS
from banksman.enforcer.access_tasks import AccessTasks
from banksman.enforcer.acts import Acts
from banksman.enforcer.admin import Admin
from banksman.enforcer.authzen import EVALUATION, EVALUATIONS, METADATA, AuthZen, metadata
from banksman.enforcer.decide import Decider
from banksman.enforcer.events_in import EventsIn
from banksman.enforcer.explain import Explain
from banksman.enforcer.inbox import Inbox
from banksman.enforcer.openapi import OpenApi
from banksman.enforcer.probe import Probe
from banksman.enforcer.status import Status
from banksman.http_problem import ClientGone, Problem, routed

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from banksman.enforcer.replica import Replica
    from banksman.http_problem import Application, Receive, Scope, Send


def build(replica: Replica) -> tuple[Application, Decider]:
    """-> (the ASGI application, its hot path). Wants a `Guard` around it: `listener.serve` puts one there."""
    decide, metrics = Decider(replica), replica.metrics
    admin, acts, status, explain = Admin(replica), Acts(replica), Status(replica), Explain(replica)
    inbox, tasks = Inbox(replica), AccessTasks(replica)
    rest = routed(
        [
            Route("/v1/events", EventsIn(replica).endpoint, methods=["POST"]),
            Route("/v1/explain", explain.endpoint, methods=["POST"]),
            Route("/v1/agents", admin.list_agents, methods=["GET"]),
            Route("/v1/agents", admin.add_agent, methods=["POST"]),
            Route("/v1/agents/{agent}/rotate", admin.rotate, methods=["POST"]),
            Route("/v1/agents/{agent}/revoke", acts.revoke, methods=["POST"]),
            Route("/v1/agents/{agent}/restore", acts.restore, methods=["POST"]),
            Route("/v1/sessions/{session}/kill", acts.kill, methods=["POST"]),
            Route("/v1/projects/{project}/pause", acts.pause, methods=["POST"]),
            Route("/v1/projects/{project}/resume", acts.resume, methods=["POST"]),
            Route("/v1/approvals", inbox.list_all, methods=["GET"]),
            Route("/v1/approvals/{approval}", inbox.one, methods=["GET"]),
            Route("/v1/approvals/{approval}", inbox.vote, methods=["POST"]),
            Route("/v1/operators", admin.add_operator, methods=["POST"]),
            Route("/v1/probe", Probe(replica).endpoint, methods=["POST"]),
            Route("/v1/status", status.status, methods=["GET"]),
            Route(EVALUATION, AuthZen(decide, several=False), methods=["POST"]),
            Route(EVALUATIONS, AuthZen(decide, several=True), methods=["POST"]),
            Route(REQUESTS, tasks.submit, methods=["POST"]),
            Route(f"{REQUESTS}/{{task}}", tasks.status, methods=["GET"]),
            Route(METADATA, metadata, methods=["GET"]),
            Route("/healthz", status.healthz, methods=["GET"]),
            Route("/readyz", status.readyz, methods=["GET"]),
            Route("/metrics", status.metrics, methods=["GET"]),
            Route("/openapi.json", OpenApi(replica).endpoint, methods=["GET"]),
        ]
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: MutableMapping[str, Any]) -> None:
            if message.get("status", 0) >= 400:
                metrics.problems[message["status"]] += 1
            await send(message)

        try:
            if scope["path"] == "/v1/decide":
                await decide(scope, receive, send)
            else:
                await rest(scope, receive, counted)
        except Problem as refusal:
            metrics.problems[refusal.status] += 1
            raise
        except ClientGone:
            raise
        except Exception:
            metrics.problems[500] += 1
            raise

    return app, decide
