"""`GET /openapi.json`: what this service answers, so that a machine can hold it to its word."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import JSONResponse

from banksman.console.sql import FORMS, Sql
from banksman.events import NAME

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.console.known import Known

_NAMED: dict[str, Any] = {"type": "string", "pattern": f"^{NAME}$"}
_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_WHEN: dict[str, Any] = {
    "type": "string", "anyOf": [{"format": "date-time"}, {"pattern": "^[0-9]{1,7}[smhd]$"}],
    "description": "A moment as RFC 3339 writes it, or how long ago: 90s, 15m, 2h, 7d.",
}  # fmt: skip
_SCHEMAS: dict[str, dict[str, Any]] = {
    "agent": _NAMED, "project": _NAMED, "session": _NAMED, "since": _WHEN, "until": _WHEN, "cursor": _TEXT,
    "replay": {"type": "string", "pattern": rf"^(\*|{NAME})$"}, "detector": _TEXT,
    "severity": {"enum": ["page", "warn", "info"]}, "limit": {"type": "integer", "minimum": 1, "maximum": 1000},
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
_FIELDS: dict[str, tuple[str, ...]] = {
    "/v1/agents": ("agents", "took_ms"),
    "/v1/agents/{agent}/now": (
        "agent", "project", "owner", "replay", "state", "since", "session", "session_started", "last_seen", "open_call",
        "open_calls", "last_decision", "approval", "tokens", "last_actions", "controls", "took_ms",
    ),
    "/v1/sessions": ("sessions", "next", "took_ms"),
    "/v1/sessions/{session}": ("header", "steps", "gaps", "repeats", "next", "took_ms"),
    "/v1/findings": ("findings", "took_ms"),
    "/v1/status": (
        "version", "started", "ready", "reason", "clickhouse", "kafka", "archiver", "processors", "notifier",
        "findings_last_hour", "dead_letters", "watchers", "agents", "operators",
    ),
    "/v1/sql": ("columns", "rows", "rows_read", "took_ms"),
    "/healthz": ("status",), "/readyz": ("status",), "/openapi.json": ("openapi", "info", "paths", "components"),
}  # fmt: skip
"""What an answer always holds, with null for what is not known (docs/reference/http-console.md says more)."""
_OPEN = {
    "/healthz": "The process turns.", "/readyz": "It is known who may ask.", "/metrics": "Prometheus text.",
    "/openapi.json": "This document.",
}  # fmt: skip
_PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "properties": {
        "type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"}, "detail": {"type": "string"},
        "field": {"type": "string", "description": "What is wrong."},
    },
    "required": ["type", "title", "status", "detail"],
}  # fmt: skip
_HTTP = (400, 403, 405, 408, 431)
"""What any address may answer, before anybody looks at what was asked."""
_SOON = {"Retry-After": {"required": True, "description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}},
    405: {"Allow": {"required": True, "schema": {"type": "string"}}},
    429: _SOON,
    503: _SOON,
}
_WHY = {
    400: "Not JSON, or not HTTP.", 401: "No token, or one that is not known.",
    403: "An agent's token; a foreign Host or Origin.",
    404: "There is no such thing.", 405: "Another method is for this address; Allow says which.",
    408: "The request did not come in time.", 409: "Not clear which, or it changed meanwhile.", 413: "The body is too large.",
    415: "Content-Type is not JSON.", 422: "A parameter or field is wrong; `field` says which.",
    429: "Too many queries at once.", 431: "The headers are too large.",
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
        if path == "/v1/sessions/{session}":
            parameters = [
                one | {"schema": _SCHEMAS["limit"] | {"maximum": 5000}} if one["name"] == "limit" else one
                for one in parameters
            ]
        elif path == "/v1/watch":
            parameters.append({"name": "Last-Event-ID", "in": "header", "schema": _TEXT})
        paths[path] = {"get": _call(path, summary, (401, 422, *problems), parameters=parameters)}
    body = {"required": True, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Sql"}}}}
    paths["/v1/sql"] = {
        "post": _call("/v1/sql", "Any question, read-only.", (401, 413, 415, 422, 429, 503), requestBody=body)
    }
    for path, summary in _OPEN.items():
        known = (401, 503) if path == "/openapi.json" else (503,)
        paths[path] = {"get": _call(path, summary, known)}
        if path != "/openapi.json":
            paths[path]["get"]["security"] = []
    return {
        "openapi": "3.1.0",
        "info": {"title": "banksman read side", "version": version("banksman")},
        "security": [{"operator": []}],
        "paths": paths,
        "components": {
            "schemas": parts | {"Problem": _PROBLEM},
            "securitySchemes": {"operator": {"type": "http", "scheme": "bearer"}},
        },
    }


def _call(path: str, summary: str, problems: tuple[int, ...], **more: Any) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if path in _FIELDS:
        fields = _FIELDS[path]
        schema = {"type": "object", "required": list(fields), "properties": {name: {} for name in fields}}
        content["application/json"] = {"schema": schema}
    else:
        content["text/event-stream" if path == "/v1/watch" else "text/plain"] = {"schema": {"type": "string"}}
    if path == "/v1/sql":
        for _, kind in FORMS.values():
            content.setdefault(kind.partition(";")[0], {"schema": {"type": "string"}})
    answers: dict[str, Any] = {"200": {"description": "The answer.", "content": content}}
    for status in sorted({*_HTTP, *problems}):
        problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        headers = {"headers": _HEADERS[status]} if status in _HEADERS else {}
        answers[str(status)] = {"description": _WHY[status], "content": problem, **headers}
    return {"summary": summary, "responses": answers, **more}
