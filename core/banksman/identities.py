"""Who is known: agents and operators as the `control` topic says, looked up by token on every request."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

from banksman.events import AgentEnrolled, AgentRotated, Event, OperatorEnrolled
from banksman.signing import token_hash

if TYPE_CHECKING:
    from collections.abc import Iterable

ROLES = ("viewer", "approver", "operator", "admin")
"""What an operator may do. `admin` includes every other role, and replays; each of the rest includes `viewer`."""


@dataclass(frozen=True)
class Agent:
    """One identity with one credential."""

    name: str
    project: str
    owner: str
    token_id: str
    token_hash: str
    enrolled_at: str
    rotated_at: str | None = None


@dataclass(frozen=True)
class Operator:
    """A person with roles."""

    name: str
    roles: frozenset[str]
    token_id: str
    token_hash: str

    def may(self, role: str) -> bool:
        """Whether one of this operator's roles is `role` or includes it."""
        return role in self.roles or "admin" in self.roles or (role == "viewer" and bool(self.roles))


class Identities:
    """The state that `control`'s identity records add up to. Feed it every verified record in offset order."""

    def __init__(self) -> None:
        self.agents: dict[str, Agent] = {}
        self.operators: dict[str, Operator] = {}
        self._by_token: dict[str, Agent | Operator] = {}

    def apply(self, event: Event) -> bool:
        """Take in a record; True when it changed who is known. The first enrolment of a name holds."""
        changed: Agent | Operator
        if isinstance(event, AgentEnrolled):
            if event.agent in self.agents:
                return False
            changed = Agent(event.agent, event.project, event.owner, event.token_id, event.token_hash, event.time)
            self.agents[event.agent] = changed
        elif isinstance(event, AgentRotated):
            old = self.agents.get(event.agent)
            if old is None or old.project != event.project:
                return False
            self._by_token.pop(old.token_id, None)
            changed = Agent(
                old.name,
                old.project,
                old.owner,
                event.token_id,
                event.token_hash,
                old.enrolled_at,
                rotated_at=event.time,
            )
            self.agents[event.agent] = changed
        elif isinstance(event, OperatorEnrolled):
            if event.operator in self.operators:
                return False
            changed = Operator(event.operator, frozenset(event.roles), event.token_id, event.token_hash)
            self.operators[event.operator] = changed
        else:
            return False
        self._by_token[changed.token_id] = changed
        return True

    def by_token(self, token: str) -> Agent | Operator | None:
        """Who a token (or a credential that begins with it) belongs to; None for an unknown or rotated-out one."""
        bare = token.partition(".")[0]
        parts = bare.split("_", 2)
        if len(parts) != 3 or parts[0] not in ("bma", "bmo"):
            return None
        known = self._by_token.get(parts[1])
        if known is None or not hmac.compare_digest(known.token_hash, token_hash(bare)):
            return None
        if parts[0] != ("bma" if isinstance(known, Agent) else "bmo"):
            return None
        return known


def roles_from(names: Iterable[str]) -> list[str]:
    """Role names in one order, without repeats; ValueError names an unknown one."""
    given = set(names)
    unknown = sorted(given - set(ROLES))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a role; there are {', '.join(ROLES)}")
    return [role for role in ROLES if role in given]
