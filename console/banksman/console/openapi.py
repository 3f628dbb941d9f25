"""`GET /openapi.json`: what this service answers, so that a machine can hold it to its word."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import JSONResponse

from banksman.console.sql import Sql
from banksman.events import NAME

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.console.known import Known

_NAMED: dict[str, Any] = {"type": "string", "pattern": f"^{NAME}$"}
_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "agent": _NAMED, "project": _NAMED, "session": _NAMED, "since": _TEXT, "until": _TEXT, "cursor": _TEXT, "replay": _TEXT,
    "detector": _TEXT, "severity": {"enum": ["page", "warn", "info"]}, "limit": {"type": "integer", "minimum": 1},
    "raw": {"enum": ["0", "1"]}, "last_event_id": _TEXT,
}  # fmt: skip
_CALLS: dict[str, tuple[str, tuple[str, ...], tuple[int, ...]]] = {
    "/v1/agents": ("Every agent and its state.", ("project", "replay"), (503,)),
    "/v1/agents/{agent}/now": ("What is this agent doing right now?", ("replay",), (404, 503)),
    "/v1/sessions": (
        "Which sessions there were.", ("agent", "project", "since", "until", "limit", "cursor", "replay"), (503,),
    ),
    "/v1/sessions/{session}": (
        "What exactly happened?", ("agent", "project", "replay", "limit", "cursor", "raw"), (404, 409, 503),
    ),
    "/v1/watch": ("What happens, as it happens.", ("agent", "project", "session", "replay", "last_event_id"), (503,)),
    "/v1/findings": (
        "What was seen to be wrong.", ("since", "until", "limit", "agent", "project", "detector", "severity"), (503,),
    ),
    "/v1/status": ("How the read side and the archiver are.", (), (503,)),
}  # fmt: skip
_OPEN = {
    "/healthz": "The process turns.", "/readyz": "It is known who may ask.", "/metrics": "Prometheus text.",
    "/openapi.json": "This document.",
}  # fmt: skip
_PROBLEM = {"content": {"application/problem+json": {"schema": {"type": "object"}}}}
_WHY = {
    400: "Not JSON, or not HTTP.", 401: "No token, or one that is not known.",
    403: "An agent's token; a foreign Host or Origin.",
    404: "There is no such thing.", 409: "Not clear which, or it changed meanwhile.", 413: "The body is too large.",
    415: "Content-Type is not JSON.", 422: "A parameter or field is wrong; `field` says which.",
    429: "Too many queries at once.",
    503: "ClickHouse or Kafka is away; Retry-After says when to come back.",
}  # fmt: skip


class OpenApi:
    """The endpoint."""

    def __init__(self, knows: Known) -> None:
        self._known = knows

    async def endpoint(self, request: Request) -> Response:
        """The document."""
        self._known.operator(request.scope["fields"])
        return JSONResponse(document())


def document() -> dict[str, Any]:
    """The whole OpenAPI 3.1 document."""
    _, parts = msgspec.json.schema_components([Sql], ref_template="#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for path, (summary, names, problems) in _CALLS.items():
        places = [name for name in ("agent", "session") if f"{{{name}}}" in path]
        parameters = [{"name": n, "in": "path", "required": True, "schema": _SCHEMAS[n]} for n in places]
        parameters += [{"name": n, "in": "query", "schema": _SCHEMAS[n]} for n in names if n not in places]
        kind = "text/event-stream" if path == "/v1/watch" else "application/json"
        paths[path] = {"get": _call(summary, (400, 401, 403, 422, *problems), kind, parameters=parameters)}
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Sql"}}}}
    paths["/v1/sql"] = {
        "post": _call(
            "Any question, read-only.", (400, 401, 403, 413, 415, 422, 429, 503), "application/json", requestBody=body
        )
    }
    for path, summary in _OPEN.items():
        known = (401, 403, 503) if path == "/openapi.json" else (503,)
        kind = "text/plain" if path == "/metrics" else "application/json"
        paths[path] = {"get": _call(summary, (400, 403, *known), kind)}
        if path != "/openapi.json":
            paths[path]["get"]["security"] = []
    return {
        "openapi": "3.1.0",
        "info": {"title": "banksman read side", "version": version("banksman")},
        "security": [{"operator": []}],
        "paths": paths,
        "components": {"schemas": parts, "securitySchemes": {"operator": {"type": "http", "scheme": "bearer"}}},
    }


def _call(summary: str, problems: tuple[int, ...], kind: str, **more: Any) -> dict[str, Any]:
    answers: dict[str, Any] = {"200": {"description": "The answer.", "content": {kind: {"schema": {}}}}}
    answers |= {str(status): {"description": _WHY[status], **_PROBLEM} for status in sorted(set(problems))}
    return {"summary": summary, "responses": answers, **more}
