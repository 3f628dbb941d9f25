"""cedarpy: our rules in Cedar's language, its engine for timing.py.

Cedar knows permit and forbid. An approval is a permit whose policy says so: the answer names the policies that made it. `like`
has one star, which crosses segments, so a star that stays inside one is `like "a/*" && !(… like "a/*/*")`. Parsed once, as
its documentation wants.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from against.timing import Decide
from agent_rules import Operation, agent_rules

EFFECTS = {"allow": "permit", "require_approval": "permit", "never": "forbid"}


def policies(i: int) -> Iterator[tuple[str, str]]:
    """(kind, text) of each rule of agent i."""
    for kind, effect in EFFECTS.items():
        for rule in agent_rules(i)[kind]:
            service = rule["service"]
            exact = [f"Action::{json.dumps(f'{service}/{one}')}" for one in rule["actions"]]
            when = []
            if any("*" in one for one in rule["actions"]):
                exact = []
                when.append(
                    f"context.service == {json.dumps(service)} && {_any('context.action', 'aws', rule['actions'])}"
                )
            for field, key in (("resource", "resources"), ("branch", "branches")):
                if key in rule:
                    when.append(f"context has {field} && {_any(f'context.{field}', service, rule[key])}")
            head = f"action in [{', '.join(exact)}]" if exact else "action"
            tail = f" when {{ {' && '.join(when)} }}" if when else ""
            yield kind, f'{effect}(principal == Agent::"agent-{i}", {head}, resource){tail};'


def _any(field: str, service: str, patterns: list[str]) -> str:
    return f"({' || '.join(_like(field, service, pattern) for pattern in patterns)})"


def _like(field: str, service: str, pattern: str) -> str:
    wide = pattern.replace("**", "*")
    if "*" not in pattern:
        return f"{field} == {json.dumps(pattern)}"
    if service != "git" or "**" in pattern:
        return f"{field} like {json.dumps(wide)}"
    return f"({field} like {json.dumps(wide)} && !({field} like {json.dumps(pattern.replace('*', '*/*'))}))"


def build(agents: int) -> Decide:
    """One policy set that holds the rules of all agents."""
    import cedarpy  # type: ignore[import-not-found]

    made = [one for i in range(agents) for one in policies(i)]
    kinds = {f"policy{number}": kind for number, (kind, _) in enumerate(made)}
    parsed = cedarpy.PolicySet.from_str("\n".join(text for _, text in made))
    entities = cedarpy.Entities.from_json_str("[]")
    resource_entity = {"type": "Resource", "id": "asked"}

    def decide(operation: Operation) -> str:
        _, agent, service, action, resource, branch = operation
        context: dict[str, Any] = {"service": service, "action": action, "resource": resource}
        if branch is not None:
            context["branch"] = branch
        request = {
            "principal": {"type": "Agent", "id": agent},
            "action": {"type": "Action", "id": f"{service}/{action}"},
            "resource": resource_entity,
            "context": context,
        }
        said = cedarpy.is_authorized(request, parsed, entities)
        if not said.allowed:
            return "deny"
        return "approve" if any(kinds[one] == "require_approval" for one in said.diagnostics.reasons) else "allow"

    return decide
