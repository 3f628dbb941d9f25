"""agent-governance-toolkit: our rules as its policies, its engine for timing.py, its sidecar for servers.py.

A rule of the toolkit is one expression of comparisons (`==`, `in`) joined by `and`; it has no patterns. So each pattern of ours
is written out as the names that are asked for and that it covers: that is less for the toolkit to do than a pattern would be.
Priorities make `never` go before approval and that before `allow`; one policy for each agent, default deny.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from against.fetch import packages
from against.timing import Decide
from agent_rules import Operation, agent_rules, edges, shapes

ANSWERS = {"allow": "allow", "deny": "deny", "require_approval": "approve"}
ORDER = (("never", "deny", 3), ("require_approval", "require_approval", 2), ("allow", "allow", 1))


def covers(service: str, pattern: str) -> re.Pattern[str]:
    """What a pattern of ours matches: one star stays inside a `/` segment, but in actions and in ARNs."""
    inside = "[^/]*" if service == "git" else ".*"
    wild = {"*": inside, "**": ".*"}
    return re.compile("".join(wild.get(part) or re.escape(part) for part in re.split(r"(\*+)", pattern)))


def policy(i: int) -> dict[str, Any]:
    """The eleven rules of agent i."""
    asked = [operation for operation, _ in shapes(i) + edges(i)]
    rules = []
    for kind, action, priority in ORDER:
        for number, rule in enumerate(agent_rules(i)[kind]):
            clauses = [f"service == '{rule['service']}'"]
            for field, place, key in (
                ("action", 3, "actions"),
                ("resource", 4, "resources"),
                ("branch", 5, "branches"),
            ):
                if key in rule:
                    names = _names(rule["service"], rule[key], place, asked)
                    clauses.append(f"{field} in [{', '.join(names)}]")
            rules.append({
                "name": f"{kind}-{number}", "condition": " and ".join(clauses), "action": action, "priority": priority,
            })  # fmt: skip
    return {
        "apiVersion": "governance.toolkit/v1",
        "name": f"policy-{i}",
        "agent": f"agent-{i}",
        "scope": "agent",
        "default_action": "deny",
        "rules": rules,
    }


def _names(service: str, patterns: Iterable[str], place: int, asked: Iterable[Operation]) -> list[str]:
    """The values asked for that one of the patterns covers, in quotes."""
    values = sorted({operation[place] or "" for operation in asked if operation[2] == service})
    return [f"'{value}'" for value in values if any(covers(service, one).fullmatch(value) for one in patterns)]


def sidecar(folder: Path, agents: int, port: int) -> tuple[list[str], dict[str, str]]:
    """The toolkit's own server for one host's agents, as its image starts it -> (command, environment)."""
    for i in range(agents):
        (folder / f"policy-{i}.json").write_text(json.dumps(policy(i)))
    given = {"HOST": "127.0.0.1", "PORT": str(port), "LOG_LEVEL": "error", "POLICY_DIR": str(folder)}
    environment = dict(os.environ) | {f"AGT_{name}": value for name, value in given.items()}
    environment["PYTHONPATH"] = str(packages("agent-governance-toolkit"))
    return [sys.executable, "-m", "agentmesh.server.sidecar"], environment


def build(agents: int) -> Decide:
    """One engine that holds the policies of all agents, as the toolkit's servers do."""
    from agentmesh.governance.policy import PolicyEngine  # type: ignore[import-not-found]

    engine = PolicyEngine()
    for i in range(agents):
        engine.load_json(json.dumps(policy(i)))
    evaluate = engine.evaluate

    def decide(operation: Operation) -> str:
        _, agent, service, action, resource, branch = operation
        context = {"service": service, "action": action, "resource": resource, "branch": branch}
        return ANSWERS[evaluate(agent_did=agent, context=context).action]

    return decide
