"""The part of `/openapi.json` that is AuthZEN's: evaluations, access requests, metadata."""

from __future__ import annotations

from typing import Any

from banksman.enforcer.access_request import (
    ENDPOINT,
    IDEMPOTENCY_KEY,
    REEVALUATE,
    REQUESTS,
    TASK_STATUSES,
    Submission,
)
from banksman.enforcer.access_tasks import LONGEST_KEY
from banksman.enforcer.authzen import EVALUATION, EVALUATIONS, METADATA, MOST_ITEMS, SEMANTICS
from banksman.enforcer.evaluation import AccessRequest
from banksman.enforcer.openapi_parts import TEXT, call, ref, shape, texts

MODELS = (AccessRequest, Submission)

_REQUEST_ID = {
    "name": "X-Request-ID", "in": "header", "schema": TEXT,
    "description": "The caller's own name for this request; the answer has it, too.",
}  # fmt: skip
_WHY = {"context": {"type": "object"}}
_EVALUATED = {"type": "object", "properties": {"decision": {"type": "boolean"}, **_WHY}, "required": ["decision"]}
_EVALUATIONS = {
    "type": "object",
    "properties": {
        **{name: ref(name.capitalize()) for name in ("subject", "action", "resource")},
        "context": {"type": ["object", "null"]},
        "evaluations": {
            "type": "array",
            "maxItems": MOST_ITEMS,
            "description": "Each an AccessRequest, its keys instead of those beside it. One that is wrong is answered as such.",
        },
        "options": {"type": "object", "properties": {"evaluations_semantic": {"enum": list(SEMANTICS)}}},
    },
}

_KEY = {
    "name": IDEMPOTENCY_KEY, "in": "header", "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY},
    "description": "The caller's own name for the request: sent again it is the same one, and nothing else goes under it.",
}  # fmt: skip
_TASK_ID = {"name": "task", "in": "path", "required": True, "schema": TEXT}
_TASK = {
    "type": "object",
    "properties": {
        "task": {
            **texts("id", "status_endpoint", "expires_at"),
            "properties": {
                "id": TEXT,
                "status": {"enum": list(TASK_STATUSES)},
                "status_endpoint": TEXT,
                "expires_at": TEXT,
                "display": texts("description"),
            },
            "required": ["id", "status", "status_endpoint", "expires_at"],
        },
        "result": shape(mode={"enum": [REEVALUATE]}, approval=texts("id", "approved_at", "approved_until")),
    },
    "required": ["task"],
}


def paths() -> dict[str, Any]:
    """By path."""
    return {
        EVALUATION: {
            "post": call(
                "accessEvaluation", "OpenID AuthZEN: may this subject do this? Only an `allow` is true.", "agent",
                body=ref("AccessRequest"), answer=_EVALUATED, also=(413, 429, 503), headers=(_REQUEST_ID,), wrong=400,
            )
        },
        EVALUATIONS: {
            "post": call(
                "accessEvaluations", "The same about several at once. Without `evaluations` it is one question.", "agent",
                body=_EVALUATIONS, answer={"anyOf": [_EVALUATED, shape(evaluations={"type": "array", "items": _EVALUATED})]},
                also=(413, 429, 503), headers=(_REQUEST_ID,), wrong=400,
            )
        },
        REQUESTS: {"post": _submit()},
        f"{REQUESTS}/{{task}}": {
            "get": call(
                "accessRequestTask", "How what was asked for stands; the result, once it is approved.", "agent",
                answer=_TASK, also=(404, 410, 429, 503), headers=(_TASK_ID, _REQUEST_ID),
            )
        },
        METADATA: {
            "get": call(
                "authzenConfiguration", "OpenID AuthZEN: where these are.", "",
                answer={
                    **texts("policy_decision_point", "access_evaluation_endpoint", "access_evaluations_endpoint", ENDPOINT),
                    "properties": {
                        "policy_decision_point": TEXT,
                        "access_evaluation_endpoint": TEXT,
                        "access_evaluations_endpoint": TEXT,
                        ENDPOINT: TEXT,
                        "capabilities": {"type": "array", "items": TEXT},
                    },
                },
            )
        },
    }  # fmt: skip


def _submit() -> dict[str, Any]:
    made = call(
        "requestAccess", "Ask for what was denied and can be asked for. 202: people are asked; 201: it is settled already.",
        "agent", status=202, body=ref("Submission"), answer=_TASK, also=(409, 410, 413, 429, 503),
        headers=(_KEY, _REQUEST_ID), wrong=400,
    )  # fmt: skip
    made["responses"] = {"201": made["responses"]["202"], **made["responses"]}
    return made
