"""A policy as plain data: what a file says once it is known to be right.

This is what travels between the process that reads files and the one that decides, and what is compiled. Durations
are seconds, tokens counts, costs USD.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from banksman.policy.conditions import Condition, Scalar  # noqa: TC001 - msgspec resolves it when it decodes
from banksman.policy.globs import has_wildcard, matches_name
from banksman.policy.schedules import Schedule  # noqa: TC001
from banksman.policy.verdict import Approvers  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Iterator

Effect = Literal["never", "require_approval", "allow"]
EFFECTS: tuple[Effect, ...] = ("never", "require_approval", "allow")

Mode = Literal["enforce", "shadow"]

GUARDRAILS, FREEZE, USE = "guardrails", "freeze", "use"
"""Stand in rule ids where an agent's name would; no agent may be called so."""

EVERY_SERVICE = "*"
"""In place of a service: only a freeze window names all of them."""


class Rule(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One rule. `id`: `AGENT/LIST/INDEX`, from 0, with `guardrails` or `use/SET` in place of the agent; `freeze/INDEX`."""

    id: str
    effect: Effect
    service: str
    actions: tuple[str, ...]
    resources: tuple[str, ...] | None
    branches: tuple[str, ...] | None
    tier: int | None = None
    """Of an `allow` rule that says so; else the verb decides."""
    approvers: Approvers | None = None
    guardrail: bool = False
    """Also a freeze window: no rule of an agent lifts it, and shadow does not cover it."""
    when: Condition | None = None
    shadow: bool = False
    """It is only noted what it would do."""
    freeze: bool = False
    """A freeze window: about all that does not surely only read."""


class Budget(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What an agent may spend in a day that begins at midnight of `timezone`. Alert at the share `alert_threshold`."""

    daily_tokens: int | None
    daily_cost_usd: float | None
    alert_threshold: float
    on_exhausted: Literal["deny", "approve", "alert"]
    timezone: str


OnAlert = Literal["alert", "pause", "kill"]
SEVERITY: tuple[OnAlert, ...] = ("alert", "pause", "kill")


class AgentPolicy(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What an entry of `agents` says, of one agent or of all whose names its pattern matches. None: nothing."""

    owner: str | None
    rules: tuple[Rule, ...]
    budget: Budget | None
    on_loop: OnAlert
    on_anomaly: OnAlert
    mode: Mode | None = None
    use: tuple[str, ...] = ()
    """The rule sets that it shares."""


class Policy(msgspec.Struct, frozen=True, array_like=True):
    """One project's policy. `version`: `PROJECT@vN+sha256:12HEX`; N is 0 where the author gave none."""

    project: str
    version: str
    shadow: bool
    owner: str | None
    channel: str | None
    guardrails: tuple[Rule, ...]
    """Freeze windows among them."""
    agents: dict[str, AgentPolicy]
    """By name, or by a pattern of names."""
    patterns: tuple[str, ...] = ()
    """Those of them that are patterns, the more literal one first."""
    sets: dict[str, tuple[Rule, ...]] = {}
    schedules: dict[str, Schedule] = {}
    subjects: dict[str, dict[str, dict[str, Scalar | tuple[Scalar, ...]]]] = {}
    """Of whom others ask: type -> id -> what the policy says of them."""
    claims: tuple[str, ...] = ()
    """Attributes that whoever asks is believed about."""

    def every_rule(self) -> Iterator[Rule]:
        """All that the file holds, in its order."""
        yield from self.guardrails
        for rules in self.sets.values():
            yield from rules
        for entry in self.agents.values():
            yield from entry.rules

    def entries_of(self, agent: str) -> list[AgentPolicy]:
        """Every entry about an agent: its own first, then patterns, the more literal one first."""
        own = self.agents.get(agent)
        found = [] if own is None or has_wildcard(agent) else [own]
        return found + [self.agents[name] for name in self.patterns if matches_name(name, agent)]

    def of(self, agent: str) -> AgentPolicy | None:
        """All that is said about an agent as one entry. The rules of all entries hold; owner, budget and mode are those of the
        first that has one, what an alert does is the strictest. None: the policy does not know the agent.
        """
        entries = self.entries_of(agent)
        if len(entries) < 2 and not (entries and entries[0].use):
            return entries[0] if entries else None
        sets = dict.fromkeys(name for entry in entries for name in entry.use)
        return AgentPolicy(
            owner=next((one.owner for one in entries if one.owner is not None), None),
            rules=tuple(rule for entry in entries for rule in entry.rules)
            + tuple(rule for name in sets for rule in self.sets[name]),
            budget=next((one.budget for one in entries if one.budget is not None), None),
            on_loop=max((one.on_loop for one in entries), key=SEVERITY.index),
            on_anomaly=max((one.on_anomaly for one in entries), key=SEVERITY.index),
            mode=next((one.mode for one in entries if one.mode is not None), None),
        )

    def rules_of(self, agent: str) -> Iterator[Rule]:
        """Every rule that binds the agent: guardrails first, then its own. An unknown agent has the guardrails."""
        yield from self.guardrails
        known = self.of(agent)
        if known is not None:
            yield from known.rules

    def owner_of(self, agent: str) -> str | None:
        """Who answers for the agent: its own owner, else the project's."""
        return self.owner_by(self.of(agent))

    def owner_by(self, known: AgentPolicy | None) -> str | None:
        """The same for an agent of which that is said."""
        return (known.owner if known is not None else None) or self.owner

    def is_shadow(self, agent: str) -> bool:
        """Whether what is said about the agent is only noted."""
        return self.shadows(self.of(agent))

    def shadows(self, known: AgentPolicy | None) -> bool:
        """The same for an agent of which that is said."""
        return self.shadow if known is None or known.mode is None else known.mode == "shadow"


def by_literals(pattern: str) -> tuple[int, str]:
    """What patterns of names are sorted by: the more characters stand for themselves, the earlier."""
    return pattern.count("*") + pattern.count("?") - len(pattern), pattern
