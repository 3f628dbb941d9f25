"""banksman's own engine, for timing.py."""

from __future__ import annotations

from against.timing import Decide
from agent_rules import PER_PROJECT, project_text

from banksman.policy.compile import Bundle, CompiledPolicy
from banksman.policy.load import load


def build(agents: int) -> Decide:
    """A policy file for each hundred agents, as the enforcer reads them."""
    starts = range(0, agents, PER_PROJECT)
    loaded = [load(project_text(list(range(at, min(at + PER_PROJECT, agents)))).encode()).policy for at in starts]
    decide = Bundle({policy.project: CompiledPolicy(policy) for policy in loaded}).decide
    return lambda operation: str(decide(*operation).decision)
