"""What operators do about agents: revoke and restore one, kill a session, pause and resume a project.

Each is a record of its own in `control`, in force on every replica when it is answered. Lifting names the offset of what
it lifts: a `restore` that was sent, given up and lands late lifts nothing newer. None of it needs the agent to be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta
from starlette.responses import JSONResponse

from banksman.enforcer.admin import body_of
from banksman.enforcer.command import Holds, command
from banksman.enforcer.record import stamp
from banksman.events import AgentRestored, AgentRevoked, ProjectPaused, ProjectResumed, SessionKilled, is_name
from banksman.http_problem import problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.controls import InForce
    from banksman.enforcer.replica import Replica
    from banksman.identities import Agent

_NO_STORE = {"cache-control": "no-store"}
NAMED = 5


class Act(msgspec.Struct, forbid_unknown_fields=True):
    """The body of every act."""

    reason: Annotated[str, Meta(min_length=1, max_length=1000)]
    """Why, for whoever reads the log later, and for the agent's owner."""


class Acts:
    """The endpoints. For operators with the role `operator`."""

    def __init__(self, replica: Replica) -> None:
        self._replica, self._state, self._callers = replica, replica.state, replica.callers
        self._controls = replica.state.controls

    async def revoke(self, request: Request) -> Response:
        """`POST /v1/agents/{id}/revoke`: everything that the agent asks is denied, in every session."""
        head, agent = await self._head(request), self._agent(request.path_params["agent"])
        held = await command(self._replica, AgentRevoked(**head, project=agent.project, agent=agent.name))
        _sure(held, self._controls.revoked.get(agent.name))
        return _told("revoked", held, agent=agent.name, project=agent.project)

    async def restore(self, request: Request) -> Response:
        """`POST /v1/agents/{id}/restore`: lifts the revocation that is in force. 409: none is, or a newer one came between."""
        head, agent = await self._head(request), self._agent(request.path_params["agent"])
        lifts = _lifted(self._controls.revoked, agent.name, f"{agent.name} is not revoked")
        restored = AgentRestored(**head, project=agent.project, agent=agent.name, lifts=lifts)
        held = await command(self._replica, restored)
        if (newer := self._controls.revoked.get(agent.name)) is not None:
            raise problem(409, f"{agent.name} was revoked again at the same moment, by {newer.by or 'a service'}")
        return _told("restored", held, agent=agent.name, project=agent.project)

    async def kill(self, request: Request) -> Response:
        """`POST /v1/sessions/{id}/kill`: everything that the session asks is denied, for good. `?agent=` says whose it is;
        without it this replica must have seen exactly one agent use that id (404, 409).
        """
        head, session = await self._head(request), request.path_params["session"]
        if not is_name(session):
            raise problem(404, "no session can have this name")
        agent = self._whose(session, request.query_params)
        killed = SessionKilled(**head, project=agent.project, agent=agent.name, session=session)
        held = await command(self._replica, killed)
        _sure(held, self._controls.killed.get((agent.name, session)), earlier=True)
        return _told("killed", held, session=session, agent=agent.name, project=agent.project)

    async def pause(self, request: Request) -> Response:
        """`POST /v1/projects/{id}/pause`: everything that the project's agents ask is denied."""
        head, project = await self._head(request), self._project(request.path_params["project"])
        held = await command(self._replica, ProjectPaused(**head, project=project))
        _sure(held, self._controls.paused.get(project))
        return _told("paused", held, project=project)

    async def resume(self, request: Request) -> Response:
        """`POST /v1/projects/{id}/resume`: lifts the pause that is in force. 409: none is, or a newer one came between."""
        head, project = await self._head(request), self._project(request.path_params["project"])
        lifts = _lifted(self._controls.paused, project, f"{project} is not paused")
        held = await command(self._replica, ProjectResumed(**head, project=project, lifts=lifts))
        if (newer := self._controls.paused.get(project)) is not None:
            raise problem(409, f"{project} was paused again at the same moment, by {newer.by or 'a service'}")
        return _told("resumed", held, project=project)

    async def _head(self, request: Request) -> dict[str, Any]:
        """How the record begins: what every event has, who asked for it and why."""
        by = self._callers.operator(request.scope, "operator")
        asked = await body_of(request, Act)
        return {**stamp(self._replica.records.source), "by": by.name, "reason": asked.reason}

    def _agent(self, name: str, field: str = "") -> Agent:
        known = self._state.identities.agents.get(name)
        if known is None:
            raise problem(404, "no agent of this name is enrolled", field=field)
        return known

    def _project(self, name: str) -> str:
        """A project that has agents or a policy: nobody pauses a misspelled one and believes that it stands still."""
        if name in self._state.loaded or any(one.project == name for one in self._state.identities.agents.values()):
            return name
        raise problem(404, "no agent is enrolled in a project of this name, and it has no policy")

    def _whose(self, session: str, query: Mapping[str, str]) -> Agent:
        if "agent" in query:
            return self._agent(query["agent"], "agent")
        agents = self._callers.using(session)
        if not agents:
            raise problem(
                404, "this replica has not seen a session of this name lately; add ?agent= to kill it all the same"
            )
        if len(agents) > 1:
            some = ", ".join(agents[:NAMED]) + (", …" if len(agents) > NAMED else "")
            raise problem(409, f"several agents use a session of this name ({some}); add ?agent=", field="agent")
        return self._agent(agents[0])


def _lifted(held: Mapping[str, InForce], name: str, why_not: str) -> int:
    if name not in held:
        raise problem(409, why_not)
    return held[name].offset


def _sure(held: Holds, control: InForce | None, *, earlier: bool = False) -> None:
    """Problem 503 where what lies on the log was not applied: it was signed and written at times that are too far apart. A kill
    that was there `earlier` is as good.
    """
    if control is None or (control.offset < held.offset and not earlier):
        raise problem(
            503, "it is NOT in force: the record was refused, or lifted at once; is a clock wrong?", retry_after=1
        )


def _told(state: str, held: Holds, **whom: str) -> Response:
    told = {
        "state": state, **whom, "in_force": held.replicas - len(held.fenced), "replicas": held.replicas,
        "fenced": held.fenced, "took_ms": round(held.took_ms, 3),
    }  # fmt: skip
    return JSONResponse(told, headers=_NO_STORE)
