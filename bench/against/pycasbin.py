"""pycasbin: our rules as a model and its lines, its engine for timing.py.

Casbin answers yes or no. So each line says what it answers, and what is forbidden is asked first, then what needs approval,
then what is allowed: each looks at its own lines only. FastEnforcer, its own way for many lines, finds them by answer and
agent; the matcher compares with casbin's own regexMatch.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from against.agt import covers
from against.timing import Decide
from agent_rules import Operation, agent_rules

MODEL = """
[request_definition]
r = answer, agent, service, action, resource, branch
[policy_definition]
p = answer, agent, service, action, resource, branch
[policy_effect]
e = some(where (p.eft == allow))
[matchers]
m = r.answer == p.answer && r.agent == p.agent && r.service == p.service && regexMatch(r.action, p.action) \
&& regexMatch(r.resource, p.resource) && regexMatch(r.branch, p.branch)
"""
ANSWERS = {"never": "deny", "require_approval": "approve", "allow": "allow"}


def lines(i: int) -> Iterator[list[str]]:
    """One line for each rule of agent i."""
    for kind, answer in ANSWERS.items():
        for rule in agent_rules(i)[kind]:
            service = rule["service"]
            matches = [_regex(service, rule.get(key)) for key in ("actions", "resources", "branches")]
            yield [answer, f"agent-{i}", service, *matches]


def _regex(service: str, patterns: list[str] | None) -> str:
    return f"^(?:{'|'.join(covers(service, one).pattern for one in patterns)})$" if patterns else ""


def build(agents: int) -> Decide:
    """One enforcer that holds the lines of all agents."""
    import casbin  # type: ignore[import-not-found]

    logging.disable(logging.CRITICAL)  # it tells of each denial
    with tempfile.TemporaryDirectory() as folder:
        model, policy = Path(folder, "model.conf"), Path(folder, "policy.csv")
        model.write_text(MODEL)
        policy.write_text("".join(f"p, {', '.join(line)}\n" for i in range(agents) for line in lines(i)))
        enforcer = casbin.FastEnforcer(str(model), str(policy), cache_key_order=[0, 1])
    enforce = enforcer.enforce

    def decide(operation: Operation) -> str:
        _, agent, service, action, resource, branch = operation
        for answer in ANSWERS.values():
            if enforce(answer, agent, service, action, resource, branch or ""):
                return answer
        return "deny"

    return decide
