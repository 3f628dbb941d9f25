"""The application: routes, and a count of what was answered."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from banksman.console.agents import Agents
from banksman.console.now import Now
from banksman.console.openapi import OpenApi
from banksman.console.session import Session
from banksman.console.sessions import Sessions
from banksman.console.sql import Analyst
from banksman.console.status import Status
from banksman.console.watch import Watch
from banksman.http_problem import ClientGone, Problem, routed

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from banksman.console.asking import Asking
    from banksman.console.known import Known
    from banksman.console.tail import Tail
    from banksman.http_problem import Application, Receive, Scope, Send
    from banksman.settings import Console


def build(known: Known, asking: Asking, tail: Tail, _settings: Console) -> Application:
    """Wants a `Guard` around it: `listener.serve` puts one there."""
    requests: Counter[tuple[str, int]] = Counter()
    agents, now, status = Agents(known, asking), Now(known, asking), Status(known, asking, tail, requests)
    routes = [
        Route("/v1/agents", agents.endpoint, methods=["GET"]),
        Route("/v1/agents/{agent}/now", now.endpoint, methods=["GET"]),
        Route("/v1/sessions", Sessions(known, asking).endpoint, methods=["GET"]),
        Route("/v1/sessions/{session}", Session(known, asking).endpoint, methods=["GET"]),
        Route("/v1/watch", Watch(known, tail).endpoint, methods=["GET"]),
        Route("/v1/findings", status.findings, methods=["GET"]),
        Route("/v1/status", status.status, methods=["GET"]),
        Route("/v1/sql", Analyst(known, asking).endpoint, methods=["POST"]),
        Route("/healthz", status.healthz, methods=["GET"]),
        Route("/readyz", status.readyz, methods=["GET"]),
        Route("/metrics", status.metrics, methods=["GET"]),
        Route("/openapi.json", OpenApi(known).endpoint, methods=["GET"]),
    ]
    app = routed(routes)
    paths = {route.path for route in routes}

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        path = _label(scope["path"], paths)

        async def noted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                requests[path, message["status"]] += 1
            await send(message)

        try:
            await app(scope, receive, noted)
        except Problem as refusal:
            requests[path, refusal.status] += 1
            raise
        except ClientGone:
            raise
        except Exception:
            requests[path, 500] += 1
            raise

    return counted


def _label(path: str, paths: set[str]) -> str:
    """The route's own path: what stands in its places is somebody's choice of text."""
    if path in paths:
        return path
    parts = path.split("/")
    if len(parts) == 5 and parts[2] == "agents":
        return "/v1/agents/{agent}/now"
    return "/v1/sessions/{session}" if len(parts) == 4 and parts[2] == "sessions" else "other"
