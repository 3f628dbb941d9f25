"""`POST /v1/explain`: why an operation would be answered as it would. Nothing is recorded as a decision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from starlette.responses import JSONResponse

from banksman.enforcer.budgets import Exhausted, Unknown, counted
from banksman.enforcer.decision import held, spent
from banksman.enforcer.question import MAX_QUESTION_BYTES, ExplainQuestion, parse
from banksman.http_body import read_body, require_type
from banksman.http_problem import problem
from banksman.policy.explain import explain
from banksman.policy.verdict import MEANING, Reason

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.enforcer.replica import Replica


_MEND = {
    "session.killed": "nothing: a kill is for good; another session of the agent",
    "agent.revoked": "an operator's `restore`",
    "project.paused": "an operator's `resume`",
}


def _budget(found: Exhausted | Unknown | None) -> dict[str, object] | None:
    if isinstance(found, Exhausted):
        return {"state": "exhausted", "then": found.then, **found.told()}
    if isinstance(found, Unknown):
        return {"state": "unknown", "why": counted(found)}
    return None


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
        told = explain(
            replica.policies.bundle,
            project,
            question.agent,
            question.service,
            question.action,
            question.resource,
            question.branch,
            question.facts(replica.policies.bundle, project),
        )
        controls = replica.state.controls.on(project, question.agent, question.session)
        if controls:
            verdict = held(told.verdict, controls[0])
            told = msgspec.structs.replace(
                told, verdict=verdict, because=MEANING[verdict.reason], mend=_MEND[controls[0].kind]
            )
        budget = replica.budgets.held(project, question.agent, replica.records.partition(question.agent.encode()))
        if not controls and isinstance(budget, Exhausted):
            verdict = spent(told.verdict, budget)
            if verdict is not told.verdict:
                told = msgspec.structs.replace(
                    told, verdict=verdict, because=MEANING[Reason.EXHAUSTED],
                    mend=f"a new day, at {budget.resets_at}, or a higher limit in the policy",
                )  # fmt: skip
        about = {
            "project": project,
            "agent": question.agent,
            "enrolled": known is not None,
            "controls": [one.told() for one in controls],
            "budget": _budget(budget),
        }
        return JSONResponse(about | msgspec.to_builtins(told))
