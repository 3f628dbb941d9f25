"""`GET /openapi.json`: what this service answers, complete, so that a machine can hold it to its word.

Written out by hand: the hot path is no framework's, so none could read it off. The bodies' schemas come from the models
that check them; a test sends what the schema promises and what it does not (schemathesis).
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import JSONResponse

from banksman.enforcer.acts import Act
from banksman.enforcer.admin import NewAgent, NewOperator
from banksman.enforcer.answers import Answer
from banksman.enforcer.authzen import EVALUATION, EVALUATIONS, METADATA, MOST_ITEMS, SEMANTICS
from banksman.enforcer.evaluation import AccessRequest
from banksman.enforcer.inbox import LONGEST_WAIT_S, STATUSES, Verdict
from banksman.enforcer.question import ExplainQuestion, Question, ReplayedQuestion
from banksman.events import ACTION_KINDS, KINDS, NAME

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.enforcer.replica import Replica

_REASONS = {
    400: "Not the one JSON that it could be, or not HTTP.",
    401: "No token, or one that is not known.",
    403: "A token that may not do this; a foreign Host or Origin.",
    404: "There is no such thing.",
    405: "Another method is for this address; Allow says which.",
    408: "The request did not come in time.",
    409: "It is there already, or another question was asked under this id.",
    413: "The body is too large.",
    415: "Content-Type or Content-Encoding is not one that is read here.",
    422: "A field is wrong; `field` says which.",
    429: "The agent's limits are reached; Retry-After says when to come back.",
    431: "The headers are too large.",
    503: "Nothing can be answered truthfully now; Retry-After says when to come back.",
}


class OpenApi:
    """The endpoint. Viewers. The document is made once."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._document: dict[str, Any] | None = None

    async def endpoint(self, request: Request) -> Response:
        """The document."""
        self._replica.callers.operator(request.scope, "viewer")
        if self._document is None:
            self._document = document()
        return JSONResponse(self._document)


def document() -> dict[str, Any]:
    """The whole OpenAPI 3.1 document."""
    kinds = [KINDS[kind] for kind in sorted(ACTION_KINDS)]
    models = [
        Question,
        ReplayedQuestion,
        ExplainQuestion,
        NewAgent,
        NewOperator,
        Act,
        Verdict,
        Answer,
        AccessRequest,
        *kinds,
    ]
    _, components = msgspec.json.schema_components(models, ref_template="#/components/schemas/{name}")
    for kind in kinds:  # what is missing is stamped
        _loosen(components[kind.__name__])
    components["Problem"] = _PROBLEM
    one_event = {"oneOf": [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in kinds]}
    components["AgentEvent"] = one_event
    event = {"$ref": "#/components/schemas/AgentEvent"}
    ndjson = {"schema": {"type": "string", "description": "One event a line."}}
    paths = {
        "/v1/decide": {
            "post": _call(
                "decide", "May this agent do this?", "agent",
                body={"anyOf": [_ref("Question"), _ref("ReplayedQuestion")]}, answer=_ref("Answer"),
                also=(409, 413, 429, 503), headers=(_REPLAY,),
            )
        },
        "/v1/events": {
            "post": _call(
                "events", "What the agent did: one event, an array, or NDJSON. Answered when they are durable.", "agent",
                body={"oneOf": [event, {"type": "array", "items": event}]},
                answer=_object(accepted={"type": "integer", "minimum": 0}), also=(413, 429, 503),
                content={"application/x-ndjson": ndjson}, headers=(_SENT, _REPLAY),
            )
        },
        "/v1/explain": {
            "post": _call(
                "explain", "Why an operation would be answered as it would. Nothing is recorded.", "viewer",
                body=_ref("ExplainQuestion"), answer={"type": "object"}, also=(404, 413, 503),
            )
        },
        "/v1/agents": {
            "get": _call("listAgents", "Who is enrolled.", "viewer", answer=_object(agents=_AGENTS), also=(503,)),
            "post": _call(
                "addAgent", "Enrol an agent; its credential is shown once.", "admin", status=201,
                body=_ref("NewAgent"), answer=_texts("agent", "project", "owner", "token"), also=(409, 413, 503),
            ),
        },
        "/v1/agents/{agent}/rotate": {
            "post": {
                **_call(
                    "rotateAgent", "A new credential; the old token is refused from then on.", "admin",
                    answer=_texts("agent", "project", "token"), also=(404, 409, 503),
                ),
                "parameters": [{"name": "agent", "in": "path", "required": True, "schema": _NAMED}],
            }
        },
        "/v1/agents/{agent}/revoke": _act("revokeAgent", "Everything that the agent asks is denied.", "agent"),
        "/v1/agents/{agent}/restore": _act("restoreAgent", "Lifts the revocation that is in force.", "agent", 409),
        "/v1/sessions/{session}/kill": _act(
            "killSession", "Everything that the session asks is denied, for good.", "session", 409, query=_WHOSE
        ),
        "/v1/projects/{project}/pause": _act("pauseProject", "Everything that its agents ask is denied.", "project"),
        "/v1/projects/{project}/resume": _act("resumeProject", "Lifts the pause that is in force.", "project", 409),
        "/v1/approvals": {
            "get": {
                **_call(
                    "listApprovals", "What waits for a human, the newest first; an agent sees its own.", "viewer", "agent",
                    answer=_object(approvals={"type": "array", "items": _APPROVAL}), also=(422, 503),
                ),
                "parameters": [_STATUS_IS],
            }
        },
        "/v1/approvals/{approval}": {
            "get": {
                **_call(
                    "getApproval", "How one stands; with `wait` as soon as it is not pending any more.", "viewer", "agent",
                    answer=_APPROVAL, also=(404, 422, 503),
                ),
                "parameters": [_WHICH, _WAIT],
            },
            "post": {
                **_call(
                    "answerApproval", "Yes or no. 409: somebody was first, or it ran out.", "approver",
                    body=_ref("Verdict"), answer=_APPROVAL, also=(404, 409, 413, 503),
                ),
                "parameters": [_WHICH],
            },
        },
        "/v1/operators": {
            "post": _call(
                "addOperator", "Enrol a person; the token is shown once.", "admin", status=201,
                body=_ref("NewOperator"),
                answer=_object(name=_TEXT, roles={"type": "array", "items": _TEXT}, token=_TEXT), also=(409, 413, 503),
            )
        },
        "/v1/probe": {
            "post": _call(
                "probe", "A record that says nothing, to be looked for behind everybody.", "operator",
                answer=_object(
                    id=_TEXT, topic=_TEXT, partition={"type": "integer"}, offset={"type": "integer"}, time=_TEXT,
                    took_ms={"type": "number"},
                ),
                also=(429, 503),
            )
        },
        "/v1/status": {"get": _call("status", "How this replica is.", "viewer", answer=_STATUS, also=(503,))},
        EVALUATION: {
            "post": _call(
                "accessEvaluation", "OpenID AuthZEN: may this subject do this? Only an `allow` is true.", "agent",
                body=_ref("AccessRequest"), answer=_EVALUATED, also=(413, 429, 503), headers=(_REQUEST_ID,), wrong=400,
            )
        },
        EVALUATIONS: {
            "post": _call(
                "accessEvaluations", "The same about several at once. Without `evaluations` it is one question.", "agent",
                body=_EVALUATIONS, answer={"anyOf": [_EVALUATED, _object(evaluations={"type": "array", "items": _EVALUATED})]},
                also=(413, 429, 503), headers=(_REQUEST_ID,), wrong=400,
            )
        },
        METADATA: {
            "get": _call(
                "authzenConfiguration", "OpenID AuthZEN: where these two are.", "",
                answer=_texts("policy_decision_point", "access_evaluation_endpoint", "access_evaluations_endpoint"),
            )
        },
        "/healthz": {"get": _call("healthz", "The process turns.", "", answer=_texts("status"))},
        "/readyz": {"get": _call("readyz", "It can decide.", "", answer=_texts("status"), also=(503,))},
        "/metrics": {"get": _call("metrics", "Prometheus text.", "", answer=None)},
        "/openapi.json": {"get": _call("openapi", "This document.", "viewer", answer={"type": "object"}, also=(503,))},
    }  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": "banksman enforcer", "version": version("banksman")},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "agent": {"type": "http", "scheme": "bearer", "description": "An agent's token."},
                "operator": {"type": "http", "scheme": "bearer", "description": "An operator's token."},
            },
        },
    }


_TEXT = {"type": "string"}
_NAMED = {"type": "string", "pattern": f"^{NAME}$"}
_SENT = {
    "name": "Banksman-Sent", "in": "header", "schema": {"type": "string", "format": "date-time"},
    "description": "When the client sends this, by its own clock: what it kept during an outage is late then, its clock right.",
}  # fmt: skip
_REPLAY = {
    "name": "Banksman-Replay", "in": "header", "schema": _NAMED,
    "description": "The name of a run. With an admin's token: what was recorded is replayed, marked, and changes nothing live.",
}  # fmt: skip
_REQUEST_ID = {
    "name": "X-Request-ID", "in": "header", "schema": _TEXT,
    "description": "The caller's own name for this request; the answer has it, too.",
}  # fmt: skip
_WHOSE = {
    "name": "agent", "in": "query", "schema": _TEXT,
    "description": "Whose session it is. Needed where several agents use the name, or none that this replica has seen.",
}  # fmt: skip
_WHICH = {"name": "approval", "in": "path", "required": True, "schema": _TEXT}
_STATUS_IS = {"name": "status", "in": "query", "schema": {"enum": list(STATUSES), "default": "pending"}}
_WAIT = {
    "name": "wait", "in": "query", "schema": {"type": "number", "minimum": 0, "maximum": LONGEST_WAIT_S, "default": 0},
    "description": "Seconds to wait for an answer.",
}  # fmt: skip
_SOON = {"Retry-After": {"required": True, "description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"required": True, "schema": _TEXT}},
    405: {"Allow": {"required": True, "schema": _TEXT}},
    429: _SOON,
    503: _SOON,
}
_PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem details.",
    "properties": {
        "type": _TEXT,
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": _TEXT,
        "field": {"type": "string", "description": "The path of the field that is wrong."},
    },
    "required": ["type", "title", "status", "detail"],
}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _texts(*names: str) -> dict[str, Any]:
    return _object(**dict.fromkeys(names, _TEXT))


_WHY = {"context": {"type": "object"}}
_EVALUATED = {"type": "object", "properties": {"decision": {"type": "boolean"}, **_WHY}, "required": ["decision"]}
_EVALUATIONS = {
    "type": "object",
    "properties": {
        **{name: _ref(name.capitalize()) for name in ("subject", "action", "resource")},
        "context": {"type": ["object", "null"]},
        "evaluations": {
            "type": "array",
            "maxItems": MOST_ITEMS,
            "description": "Each an AccessRequest, its keys instead of those beside it. One that is wrong is answered as such.",
        },
        "options": {"type": "object", "properties": {"evaluations_semantic": {"enum": list(SEMANTICS)}}},
    },
}
_AGENTS = {
    "type": "array",
    "items": {
        **_texts("agent", "project", "owner", "token_id", "enrolled_at"),
        "properties": {
            **dict.fromkeys(("agent", "project", "owner", "token_id", "enrolled_at"), _TEXT),
            "rotated_at": {"type": ["string", "null"]},
        },
    },
}
_MAYBE = {"type": ["string", "null"]}
_APPROVAL = _object(
    approval=_TEXT,
    status={"enum": [status for status in STATUSES if status != "all"]},
    **dict.fromkeys(("project", "agent", "session", "service", "action", "requested_at", "expires_at"), _TEXT),
    **dict.fromkeys(
        ("owner", "resource", "subject", "branch", "args_hash", "rule", "policy_version", "used_by", "agent_says"),
        _MAYBE,
    ),
    args={"type": ["object", "null"]},
    brief={"type": "boolean", "description": "Arguments or words are left out for their length."},
    wanted={"type": "array", "items": _object(any={"type": "array", "items": _TEXT}, min={"type": "integer"})},
    votes={
        "type": "array",
        "items": _object(**dict.fromkeys(("by", "verdict", "at"), _TEXT), comment=_MAYBE),
    },
)
_STATUS = _object(
    replica=_TEXT,
    address=_TEXT,
    version=_TEXT,
    started=_TEXT,
    enforcing={"type": "boolean"},
    lease={"type": "object"},
    policies={"type": "array"},
    rejected={"type": "array"},
    replicas={"type": "array"},
    disagreements={"type": "array"},
    budgets={"type": "object"},
    control={"type": "object"},
    queue={"type": "object"},
    undelivered={"type": "integer"},
    controls={"type": "object"},
    decisions={"type": "object"},
    dropped={"type": "integer"},
    agents={"type": "integer"},
    operators={"type": "integer"},
    reason={"type": ["string", "null"]},
)


def _call(
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
    good = {"application/json": {"schema": answer}} if answer is not None else {"text/plain": {"schema": _TEXT}}
    security: list[dict[str, list[str]]] = (
        [] if not who else [{"agent": []}] if who == "agent" else [{"operator": [who]}]
    )
    if or_who == "agent":
        security.append({"agent": []})
    if _REPLAY in headers:
        security.append({"operator": ["admin"]})
    made: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "security": security,
        "responses": {
            str(status): {"description": "As asked.", "content": good},
            **{str(error): _problem(error) for error in sorted(errors)},
        },
    }
    if headers:
        made["parameters"] = list(headers)
    if body is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}, **(content or {})}}
    return made


def _act(name: str, summary: str, whom: str, *also: int, query: dict[str, Any] | None = None) -> dict[str, Any]:
    """What an operator does about an agent, a session or a project, and on how many replicas it is in force."""
    texts = {"session": ("session", "agent", "project"), "agent": ("agent", "project"), "project": ("project",)}[whom]
    answer = _object(
        state=_TEXT,
        **dict.fromkeys(texts, _TEXT),
        in_force={"type": "integer", "minimum": 0},
        replicas={"type": "integer", "minimum": 1},
        fenced={"type": "array", "items": _TEXT, "description": "Replicas that did not answer, and cannot any more."},
        took_ms={"type": "number", "minimum": 0},
    )
    made = _call(name, summary, "operator", body=_ref("Act"), answer=answer, also=(404, 413, 503, *also))
    named = {"name": whom, "in": "path", "required": True, "schema": _NAMED}
    return {"post": made | {"parameters": [named, *([query] if query else [])]}}


def _problem(status: int) -> dict[str, Any]:
    told = {"description": _REASONS[status], "content": {"application/problem+json": {"schema": _ref("Problem")}}}
    return told | ({"headers": _HEADERS[status]} if status in _HEADERS else {})


def _loosen(schema: dict[str, Any]) -> None:
    stamped = ("v", "id", "time", "source", "project", "agent")
    schema["required"] = [name for name in schema["required"] if name not in stamped]
