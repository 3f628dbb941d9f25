"""`GET /openapi.json`: what this service answers, complete, so that a machine can hold it to its word.

Written out by hand: the hot path is no framework's, so none could read it off. The bodies' schemas come from the models
that check them; a test sends what the schema promises and what it does not (schemathesis).
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import JSONResponse

from banksman.enforcer import openapi_authzen
from banksman.enforcer.acts import Act
from banksman.enforcer.admin import NewAgent, NewOperator
from banksman.enforcer.answers import Answer
from banksman.enforcer.inbox import LONGEST_WAIT_S, STATUSES, Verdict
from banksman.enforcer.openapi_parts import NAMED, PROBLEM, REPLAY, TEXT, call, ref, shape, texts
from banksman.enforcer.question import ExplainQuestion, Question, ReplayedQuestion
from banksman.events import ACTION_KINDS, KINDS

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.enforcer.replica import Replica


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
        *openapi_authzen.MODELS,
        *kinds,
    ]
    _, components = msgspec.json.schema_components(models, ref_template="#/components/schemas/{name}")
    for kind in kinds:  # what is missing is stamped
        _loosen(components[kind.__name__])
    components["Problem"] = PROBLEM
    one_event = {"oneOf": [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in kinds]}
    components["AgentEvent"] = one_event
    event = {"$ref": "#/components/schemas/AgentEvent"}
    ndjson = {"schema": {"type": "string", "description": "One event a line."}}
    paths = {
        "/v1/decide": {
            "post": call(
                "decide", "May this agent do this?", "agent",
                body={"anyOf": [ref("Question"), ref("ReplayedQuestion")]}, answer=ref("Answer"),
                also=(409, 413, 429, 503), headers=(REPLAY,),
            )
        },
        "/v1/events": {
            "post": call(
                "events", "What the agent did: one event, an array, or NDJSON. Answered when they are durable.", "agent",
                body={"oneOf": [event, {"type": "array", "items": event}]},
                answer=shape(accepted={"type": "integer", "minimum": 0}), also=(413, 429, 503),
                content={"application/x-ndjson": ndjson}, headers=(_SENT, REPLAY),
            )
        },
        "/v1/explain": {
            "post": call(
                "explain", "Why an operation would be answered as it would. Nothing is recorded.", "viewer",
                body=ref("ExplainQuestion"), answer={"type": "object"}, also=(404, 413, 503),
            )
        },
        "/v1/agents": {
            "get": call("listAgents", "Who is enrolled.", "viewer", answer=shape(agents=_AGENTS), also=(503,)),
            "post": call(
                "addAgent", "Enrol an agent; its credential is shown once.", "admin", status=201,
                body=ref("NewAgent"), answer=texts("agent", "project", "owner", "token"), also=(409, 413, 503),
            ),
        },
        "/v1/agents/{agent}/rotate": {
            "post": {
                **call(
                    "rotateAgent", "A new credential; the old token is refused from then on.", "admin",
                    answer=texts("agent", "project", "token"), also=(404, 409, 503),
                ),
                "parameters": [{"name": "agent", "in": "path", "required": True, "schema": NAMED}],
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
                **call(
                    "listApprovals", "What waits for a human, the newest first; an agent sees its own.", "viewer", "agent",
                    answer=shape(approvals={"type": "array", "items": _APPROVAL}), also=(422, 503),
                ),
                "parameters": [_STATUS_IS],
            }
        },
        "/v1/approvals/{approval}": {
            "get": {
                **call(
                    "getApproval", "How one stands; with `wait` as soon as it is not pending any more.", "viewer", "agent",
                    answer=_APPROVAL, also=(404, 422, 503),
                ),
                "parameters": [_WHICH, _WAIT],
            },
            "post": {
                **call(
                    "answerApproval", "Yes or no. 409: somebody was first, or it ran out.", "approver",
                    body=ref("Verdict"), answer=_APPROVAL, also=(404, 409, 413, 503),
                ),
                "parameters": [_WHICH],
            },
        },
        "/v1/operators": {
            "post": call(
                "addOperator", "Enrol a person; the token is shown once.", "admin", status=201,
                body=ref("NewOperator"),
                answer=shape(name=TEXT, roles={"type": "array", "items": TEXT}, token=TEXT), also=(409, 413, 503),
            )
        },
        "/v1/probe": {
            "post": call(
                "probe", "A record that says nothing, to be looked for behind everybody.", "operator",
                answer=shape(
                    id=TEXT, topic=TEXT, partition={"type": "integer"}, offset={"type": "integer"}, time=TEXT,
                    took_ms={"type": "number"},
                ),
                also=(429, 503),
            )
        },
        "/v1/status": {"get": call("status", "How this replica is.", "viewer", answer=_STATUS, also=(503,))},
        **openapi_authzen.paths(),
        "/healthz": {"get": call("healthz", "The process turns.", "", answer=texts("status"))},
        "/readyz": {"get": call("readyz", "It can decide.", "", answer=texts("status"), also=(503,))},
        "/metrics": {"get": call("metrics", "Prometheus text.", "", answer=None)},
        "/openapi.json": {"get": call("openapi", "This document.", "viewer", answer={"type": "object"}, also=(503,))},
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


_SENT = {
    "name": "Banksman-Sent", "in": "header", "schema": {"type": "string", "format": "date-time"},
    "description": "When the client sends this, by its own clock: what it kept during an outage is late then, its clock right.",
}  # fmt: skip
_WHOSE = {
    "name": "agent", "in": "query", "schema": TEXT,
    "description": "Whose session it is. Needed where several agents use the name, or none that this replica has seen.",
}  # fmt: skip
_WHICH = {"name": "approval", "in": "path", "required": True, "schema": TEXT}
_STATUS_IS = {"name": "status", "in": "query", "schema": {"enum": list(STATUSES), "default": "pending"}}
_WAIT = {
    "name": "wait", "in": "query", "schema": {"type": "number", "minimum": 0, "maximum": LONGEST_WAIT_S, "default": 0},
    "description": "Seconds to wait for an answer.",
}  # fmt: skip
_AGENTS = {
    "type": "array",
    "items": {
        **texts("agent", "project", "owner", "token_id", "enrolled_at"),
        "properties": {
            **dict.fromkeys(("agent", "project", "owner", "token_id", "enrolled_at"), TEXT),
            "rotated_at": {"type": ["string", "null"]},
        },
    },
}
_MAYBE = {"type": ["string", "null"]}
_APPROVAL = shape(
    approval=TEXT,
    status={"enum": [status for status in STATUSES if status != "all"]},
    **dict.fromkeys(("project", "agent", "session", "service", "action", "requested_at", "expires_at"), TEXT),
    **dict.fromkeys(
        ("owner", "resource", "subject", "branch", "args_hash", "rule", "policy_version", "used_by", "agent_says"),
        _MAYBE,
    ),
    args={"type": ["object", "null"]},
    brief={"type": "boolean", "description": "Arguments or words are left out for their length."},
    wanted={"type": "array", "items": shape(any={"type": "array", "items": TEXT}, min={"type": "integer"})},
    votes={
        "type": "array",
        "items": shape(**dict.fromkeys(("by", "verdict", "at"), TEXT), comment=_MAYBE),
    },
)
_STATUS = shape(
    replica=TEXT,
    address=TEXT,
    version=TEXT,
    started=TEXT,
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


def _act(name: str, summary: str, whom: str, *also: int, query: dict[str, Any] | None = None) -> dict[str, Any]:
    """What an operator does about an agent, a session or a project, and on how many replicas it is in force."""
    texts = {"session": ("session", "agent", "project"), "agent": ("agent", "project"), "project": ("project",)}[whom]
    answer = shape(
        state=TEXT,
        **dict.fromkeys(texts, TEXT),
        in_force={"type": "integer", "minimum": 0},
        replicas={"type": "integer", "minimum": 1},
        fenced={"type": "array", "items": TEXT, "description": "Replicas that did not answer, and cannot any more."},
        took_ms={"type": "number", "minimum": 0},
    )
    made = call(name, summary, "operator", body=ref("Act"), answer=answer, also=(404, 413, 503, *also))
    named = {"name": whom, "in": "path", "required": True, "schema": NAMED}
    return {"post": made | {"parameters": [named, *([query] if query else [])]}}


def _loosen(schema: dict[str, Any]) -> None:
    stamped = ("v", "id", "time", "source", "project", "agent")
    schema["required"] = [name for name in schema["required"] if name not in stamped]
