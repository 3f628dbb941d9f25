"""`POST /v1/explain`: why an operation would be answered as it would. Nothing is recorded as a decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from banksman.enforcer.question import MAX_QUESTION_BYTES, ExplainQuestion, parse
from banksman.http_body import read_body, require_type
from banksman.http_problem import problem

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.enforcer.replica import Replica


class Explain:
    """The endpoint. Viewers."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def endpoint(self, request: Request) -> Response:
        """Every rule that was looked at, and the first thing about each that did not fit."""
        replica = self._replica
        replica.callers.operator(request.scope, "viewer")
        require_type(request.scope, "application/json")
        question = parse(await read_body(request.scope, request.receive, limit=MAX_QUESTION_BYTES), ExplainQuestion)
        known = replica.state.identities.agents.get(question.agent)
        project = known.project if known is not None else question.project
        if project is None:
            raise problem(
                404, f"no agent {question.agent} is enrolled; name a project to ask all the same", field="agent"
            )
        told = replica.policies.explain(
            project, question.agent, question.service, question.action, question.resource, question.branch
        )
        return JSONResponse({"project": project, "agent": question.agent, "enrolled": known is not None, **told})
