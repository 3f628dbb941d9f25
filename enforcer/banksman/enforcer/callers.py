"""Who calls: from the Authorization header to an agent (with everything that is worked out once per agent) or operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from banksman.enforcer.limits import AgentLimits
from banksman.events import is_name
from banksman.http_problem import problem
from banksman.identities import Agent, Operator
from banksman.redact import Redactor
from banksman.signing import Author, Mac, key_of

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from banksman.enforcer.replica import Replica

REPLAY_HEADER = b"banksman-replay"
REPLAY_TOKEN_ID = "replay"  # noqa: S105 - a name, no secret


class Caller:
    """An agent that was let in, and what its requests need again and again."""

    __slots__ = ("holder", "key", "limits", "mac", "name", "owner", "partition", "project", "redactor", "replay")

    def __init__(
        self,
        agent: Agent,
        event_key: bytes,
        limits: AgentLimits,
        partition: int,
        holder: Agent | Operator,
        replay: str = "",
    ) -> None:
        self.name, self.project, self.owner = agent.name, agent.project, agent.owner
        self.holder = holder
        """Whose token it was: the agent's own, or in a replay the admin's."""
        self.replay = replay
        """The run, when somebody replays what this agent once did; "" for the agent itself."""
        self.mac = Mac(event_key)
        self.redactor = Redactor(event_key)
        self.key = agent.name.encode()
        self.limits = limits
        self.partition = partition


MOST_KNOWN = 10_000
LONGEST_KNOWN = 1024


class Callers:
    """The doorkeeper. Agents are remembered by the raw header value; a change of who is known empties that memory.

    A header that lets its agent in can be spelled in as many ways as somebody likes, so there is a bound on that memory.
    """

    def __init__(self, replica: Replica) -> None:
        self._state, self._records, self._lease = replica.state, replica.records, replica.lease
        self._secret, self._settings, self._now = replica.secret, replica.settings, replica.lease.clock
        self._known: dict[bytes, Caller] = {}
        self._generation = -1
        self.limits: dict[str, AgentLimits] = {}

    def agent(self, fields: Mapping[bytes, bytes]) -> Caller:
        """The agent whose token a request with these headers carries. Problem 401: no or unknown token; 403: an operator's."""
        raw = fields.get(b"authorization")
        if self._generation != self._state.generation:
            self._known.clear()
            self._generation = self._state.generation
        caller = self._known.get(raw) if raw is not None else None
        if caller is not None:
            return caller
        who = self._who(raw)
        if not isinstance(who, Agent):
            raise problem(403, "this call is for agents; an operator's token may not make it")
        assert raw is not None
        caller = self.of(who)
        if len(raw) <= LONGEST_KNOWN:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[raw] = caller
        return caller

    def anybody(self, scope: MutableMapping[str, Any]) -> Agent | Operator:
        """Whoever has a token that is known. Problem 401."""
        return self._who(scope["fields"].get(b"authorization"))

    def using(self, session: str) -> list[str]:
        """The agents that use a session of this name, as far as this replica has seen."""
        return sorted(name for name, limits in self.limits.items() if limits.is_open(session))

    def of(self, agent: Agent) -> Caller:
        """A caller for an agent, its account of limits kept from before."""
        limits = self.limits.get(agent.name)
        if limits is None:
            limits = self.limits[agent.name] = AgentLimits(self._settings, self._now)
        author = Author(project=agent.project, agent=agent.name, token_id=agent.token_id)
        event_key = key_of(self._secret, self._secret.current, author)
        return Caller(agent, event_key, limits, self._records.partition(agent.name.encode()), agent)

    def replay(self, scope: MutableMapping[str, Any]) -> tuple[str, Operator]:
        """(the run, the admin) of a request with the replay header. Problem 401, 403; 422: not a name for a run."""
        operator = self.operator(scope, "admin")
        run = scope["fields"][REPLAY_HEADER].decode("latin-1")
        if not is_name(run):
            raise problem(422, "must be a name of at most 128 letters, digits and . _ @ : -", field="Banksman-Replay")
        return run, operator

    def replayed(self, project: str, name: str, holder: Operator, run: str) -> Caller:
        """A caller for an agent as a replay names it: of no account, its event key derived for replays alone."""
        agent = Agent(name, project, "", REPLAY_TOKEN_ID, "", "")
        author = Author(project=project, agent=name, token_id=REPLAY_TOKEN_ID)
        event_key = key_of(self._secret, self._secret.current, author)
        limits = AgentLimits(self._settings, self._now)
        return Caller(agent, event_key, limits, self._records.partition(name.encode()), holder, run)

    def operator(self, scope: MutableMapping[str, Any], role: str) -> Operator:
        """The operator whose token this request carries. Problem 401; 403: an agent's token, or not this role."""
        who = self._who(scope["fields"].get(b"authorization"))
        if not isinstance(who, Operator):
            raise problem(403, "this call is for operators; an agent's token may not make it")
        if not who.may(role):
            raise problem(403, f"this needs the role {role}")
        return who

    def _who(self, raw: bytes | None) -> Agent | Operator:
        if raw is None:
            raise problem(401, "a token is needed: Authorization: Bearer TOKEN")
        scheme, _, token = raw.partition(b" ")
        known = None
        if scheme.lower() == b"bearer":
            known = self._state.identities.by_token(token.strip().decode("latin-1"))
        if known is None and not self._lease.valid:
            raise problem(503, "who is known cannot be said: nothing was heard from Kafka lately", retry_after=1)
        if known is None:
            raise problem(401, "this token is not known, or was rotated out")
        return known
