"""What every piece of `/openapi.json` is made of: an operation, its errors, small schemas."""

from __future__ import annotations

from typing import Any

from banksman.events import NAME

REASONS = {
    400: "Not the one JSON that it could be, or not HTTP.",
    401: "No token, or one that is not known.",
    403: "A token that may not do this; a foreign Host or Origin.",
    404: "There is no such thing.",
    405: "Another method is for this address; Allow says which.",
    408: "The request did not come in time.",
    409: "It is there already, or another question was asked under this id.",
    410: "It is over.",
    413: "The body is too large.",
    415: "Content-Type or Content-Encoding is not one that is read here.",
    422: "A field is wrong; `field` says which.",
    429: "The agent's limits are reached; Retry-After says when to come back.",
    431: "The headers are too large.",
    503: "Nothing can be answered truthfully now; Retry-After says when to come back.",
}

TEXT = {"type": "string"}
NAMED = {"type": "string", "pattern": f"^{NAME}$"}
REPLAY = {
    "name": "Banksman-Replay", "in": "header", "schema": NAMED,
    "description": "The name of a run. With an admin's token: what was recorded is replayed, marked, and changes nothing live.",
}  # fmt: skip
SOON = {"Retry-After": {"required": True, "description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": TEXT}},
    405: {"Allow": {"required": True, "schema": TEXT}},
    429: SOON,
    503: SOON,
}
PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "properties": {
        "type": TEXT,
        "title": TEXT,
        "status": {"type": "integer"},
        "detail": TEXT,
        "field": {"type": "string", "description": "The path of the field that is wrong."},
    },
    "required": ["type", "title", "status", "detail"],
}


def ref(name: str) -> dict[str, Any]:
    """A model by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def shape(**properties: Any) -> dict[str, Any]:
    """An object that has all of these."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def texts(*names: str) -> dict[str, Any]:
    """An object of texts."""
    return shape(**dict.fromkeys(names, TEXT))


def call(
    name: str,
    summary: str,
    who: str,
    or_who: str = "",
    *,
    answer: dict[str, Any] | None,
    body: dict[str, Any] | None = None,
    status: int = 200,
    also: tuple[int, ...] = (),
    content: dict[str, Any] | None = None,
    headers: tuple[dict[str, Any], ...] = (),
    wrong: int = 422,
) -> dict[str, Any]:
    """One operation. `who`: agent, or the role that an operator needs, or "" for anyone on the inside. `wrong`: what a
    wrong field gets.
    """
    errors = {400, 403, 405, 408, 431, *also} | ({401} if who else set()) | ({415, wrong} if body else set())
    good = {"application/json": {"schema": answer}} if answer is not None else {"text/plain": {"schema": TEXT}}
    security: list[dict[str, list[str]]] = (
        [] if not who else [{"agent": []}] if who == "agent" else [{"operator": [who]}]
    )
    if or_who == "agent":
        security.append({"agent": []})
    if REPLAY in headers:
        security.append({"operator": ["admin"]})
    made: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "security": security,
        "responses": {
            str(status): {"description": "As asked.", "content": good},
            **{str(error): problem_of(error) for error in sorted(errors)},
        },
    }
    if headers:
        made["parameters"] = list(headers)
    if body is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}, **(content or {})}}
    return made


def problem_of(status: int) -> dict[str, Any]:
    """The answer of this status."""
    told = {"description": REASONS[status], "content": {"application/problem+json": {"schema": ref("Problem")}}}
    return told | ({"headers": HEADERS[status]} if status in HEADERS else {})
