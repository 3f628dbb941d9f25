"""Enrolling and rotating: `/v1/agents`, `/v1/operators`. Tokens are stored as SHA-256 and shown once.

The record goes first, and is judged as every replica judges it: by its place in `control`. Two who enrol the same name
at once: the first offset wins, the other gets 409. An answer is given when every replica goes by the record: a new
credential is good everywhere, and the old one nowhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta
from starlette.responses import JSONResponse

from banksman.enforcer.command import command
from banksman.enforcer.question import strict, wrong
from banksman.enforcer.record import stamp
from banksman.events import AgentEnrolled, AgentRotated, Name, OperatorEnrolled
from banksman.http_body import read_body, require_type
from banksman.http_problem import problem
from banksman.identities import roles_from
from banksman.signing import new_credential, new_token

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.enforcer.replica import Replica

T = TypeVar("T", bound=msgspec.Struct)
MAX_BYTES = 64 * 1024
_PRIVATE = {"cache-control": "no-store"}


class NewAgent(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/agents`."""

    agent: Name
    project: Name
    owner: Annotated[str, Meta(min_length=1, max_length=256)]
    """The person or team that answers for it."""


class NewOperator(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/operators`."""

    name: Name
    roles: Annotated[list[Literal["viewer", "approver", "operator", "admin"]], Meta(min_length=1, max_length=16)]


class Admin:
    """The endpoints. Operators only."""

    def __init__(self, replica: Replica) -> None:
        self._replica, self._state = replica, replica.state
        self._callers, self._records = replica.callers, replica.records

    async def add_agent(self, request: Request) -> Response:
        """`POST /v1/agents`: 201 with the credential; 409 when the name is taken."""
        by = self._callers.operator(request.scope, "admin")
        asked = await body_of(request, NewAgent)
        if asked.agent in self._state.identities.agents:
            raise problem(409, f"{asked.agent} is enrolled already; `rotate` gives it a new credential", field="agent")
        credential, hashed = new_credential(self._replica.secret, asked.project, asked.agent)
        await command(
            self._replica,
            AgentEnrolled(
                **stamp(self._records.source),
                by=by.name,
                project=asked.project,
                agent=asked.agent,
                owner=asked.owner,
                token_id=credential.token_id,
                token_hash=hashed,
            ),
        )
        if self._state.identities.agents[asked.agent].token_hash != hashed:
            raise problem(409, f"{asked.agent} was enrolled by somebody else at the same moment", field="agent")
        told = {"agent": asked.agent, "project": asked.project, "owner": asked.owner, "token": str(credential)}
        return JSONResponse(told, 201, _PRIVATE)

    async def rotate(self, request: Request) -> Response:
        """`POST /v1/agents/{id}/rotate`: 200 with the new credential; the old token gets 401 from here on."""
        by = self._callers.operator(request.scope, "admin")
        name = request.path_params["agent"]
        known = self._state.identities.agents.get(name)
        if known is None:
            raise problem(404, "no agent of this name is enrolled")
        credential, hashed = new_credential(self._replica.secret, known.project, name)
        await command(
            self._replica,
            AgentRotated(
                **stamp(self._records.source),
                by=by.name,
                project=known.project,
                agent=name,
                token_id=credential.token_id,
                token_hash=hashed,
            ),
        )
        if self._state.identities.agents[name].token_hash != hashed:
            raise problem(409, f"{name} was rotated by somebody else at the same moment")
        return JSONResponse({"agent": name, "project": known.project, "token": str(credential)}, 200, _PRIVATE)

    async def list_agents(self, request: Request) -> Response:
        """`GET /v1/agents`: who is enrolled, without anything secret."""
        self._callers.operator(request.scope, "viewer")
        agents = [
            {
                "agent": agent.name,
                "project": agent.project,
                "owner": agent.owner,
                "token_id": agent.token_id,
                "enrolled_at": agent.enrolled_at,
                "rotated_at": agent.rotated_at,
            }
            for _, agent in sorted(self._state.identities.agents.items())
        ]
        return JSONResponse({"agents": agents})

    async def add_operator(self, request: Request) -> Response:
        """`POST /v1/operators`: 201 with the token; 409 when the name is taken."""
        by = self._callers.operator(request.scope, "admin")
        asked = await body_of(request, NewOperator)
        if asked.name in self._state.identities.operators:
            raise problem(409, f"{asked.name} is enrolled already", field="name")
        token, token_id, hashed = new_token("bmo")
        roles = roles_from(asked.roles)
        await command(
            self._replica,
            OperatorEnrolled(
                **stamp(self._records.source),
                by=by.name,
                operator=asked.name,
                roles=roles,  # type: ignore[arg-type]  # the four words, put in order
                token_id=token_id,
                token_hash=hashed,
            ),
        )
        if self._state.identities.operators[asked.name].token_hash != hashed:
            raise problem(409, f"{asked.name} was enrolled by somebody else at the same moment", field="name")
        return JSONResponse({"name": asked.name, "roles": roles, "token": token}, 201, _PRIVATE)


async def body_of(request: Request, model: type[T]) -> T:
    """A request's body as a model. Problem 400, 413, 415, 422 names what is wrong with it."""
    require_type(request.scope, "application/json")
    value = strict(await read_body(request.scope, request.receive, limit=MAX_BYTES))
    try:
        return msgspec.convert(value, model)
    except msgspec.ValidationError as error:
        raise wrong(error) from None
