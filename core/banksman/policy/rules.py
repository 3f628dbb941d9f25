"""A policy as plain data: what a file says once it is known to be right.

This is what travels between the process that reads files and the one that decides, and what is compiled. Durations
are seconds, tokens counts, costs USD.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from banksman.policy.verdict import Approvers  # noqa: TC001 - msgspec resolves it when it decodes

if TYPE_CHECKING:
    from collections.abc import Iterator

Effect = Literal["never", "require_approval", "allow"]
EFFECTS: tuple[Effect, ...] = ("never", "require_approval", "allow")

GUARDRAILS = "guardrails"
"""Stands in rule ids where an agent's name would; no agent may be called so."""


class Rule(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """One rule of one agent, or one guardrail. `id`: `AGENT/LIST/INDEX`, or `guardrails/LIST/INDEX`, from 0."""

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


class Budget(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What an agent may spend in a day that begins at midnight of `timezone`. Alert at the share `alert_threshold`."""

    daily_tokens: int | None
    daily_cost_usd: float | None
    alert_threshold: float
    on_exhausted: Literal["deny", "approve", "alert"]
    timezone: str


OnAlert = Literal["alert", "pause", "kill"]


class AgentPolicy(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What is said about one agent."""

    owner: str | None
    rules: tuple[Rule, ...]
    budget: Budget | None
    on_loop: OnAlert
    on_anomaly: OnAlert


class Policy(msgspec.Struct, frozen=True, array_like=True):
    """One project's policy. `version`: `PROJECT@vN+sha256:12HEX`; N is 0 where the author gave none."""

    project: str
    version: str
    shadow: bool
    owner: str | None
    channel: str | None
    guardrails: tuple[Rule, ...]
    agents: dict[str, AgentPolicy]

    def rules_of(self, agent: str) -> Iterator[Rule]:
        """Every rule that binds the agent: guardrails first, then its own. An unknown agent has the guardrails."""
        yield from self.guardrails
        known = self.agents.get(agent)
        if known is not None:
            yield from known.rules

    def owner_of(self, agent: str) -> str | None:
        """Who answers for the agent: its own owner, else the project's."""
        known = self.agents.get(agent)
        return (known.owner if known is not None else None) or self.owner
