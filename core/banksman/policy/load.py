"""A policy file into a policy: everything that is wrong has a file, a line and a key.

`load` is the one door: files of the folder, texts of `policy.loaded` events and tests all come through it. What it
returns is complete and right, or it raises.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from banksman.canonical import canonical
from banksman.errors import InvalidPolicy
from banksman.policy.document import Path, read, spell
from banksman.policy.model import (
    AgentPart,
    AllowRule,
    ApprovalRule,
    ApproversPart,
    BudgetPart,
    GuardrailsPart,
    NeverRule,
    PatternError,
    PolicyFile,
)
from banksman.policy.rules import EFFECTS, GUARDRAILS, AgentPolicy, Budget, Effect, Policy, Rule
from banksman.policy.verdict import Approvers

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MAX_EVENT_TEXT = 7_500_000
"""Bytes of the normalised text inside a `policy.loaded` event (8 MiB on Kafka, with the event's other fields)."""

LATER = {
    "when": "conditions (`when`)",
    "expr": "conditions (`expr`)",
    "use": "shared rule sets (`use`)",
    "rules": "shared rule sets (`rules`)",
    "schedule": "schedules",
    "schedules": "schedules",
    "freeze": "freeze windows",
}
"""Keys that a later version of the format gives a meaning: a file that has one is refused, never half obeyed."""


class Loaded(NamedTuple):
    """A policy and the whole normalised text that it is. `load(text.encode())` gives the same policy and version."""

    policy: Policy
    text: str


def load(raw: bytes, file: str = "policy") -> Loaded:
    """InvalidPolicy: the first thing that is wrong, by line; and how many more there are."""
    document, lines = read(raw, file)
    if not isinstance(document, dict):
        raise InvalidPolicy("a policy is a mapping that begins with `project:`", file=file, line=1)
    try:
        written = PolicyFile.model_validate(document)
    except ValidationError as error:
        raise _first(error, document, lines, file) from None
    text = normal_text(written)
    if len(json.dumps(text, ensure_ascii=False).encode()) > MAX_EVENT_TEXT:
        raise InvalidPolicy("the policy is too large to be published; split the project", file=file, line=1)
    return Loaded(_policy(written, text), text)


def normal_text(written: PolicyFile) -> str:
    """The policy in its one spelling: RFC 8785 JSON, defaults left out, lists whose order means nothing sorted.

    The order of rules stays, although it means nothing either: rule ids count from the top of their list.
    """
    return canonical(_without_empty(written.model_dump(mode="json", exclude_defaults=True))).decode()


def version_of(project: str, number: int | None, text: str) -> str:
    """`project@vN+sha256:12HEX`: the first 12 digits of the SHA-256 of the normalised text."""
    return f"{project}@v{number or 0}+sha256:{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _without_empty(value: Any) -> Any:
    """Without empty lists and mappings, which say the same as leaving them out; an agent without rules stays."""
    if not isinstance(value, dict):
        return value
    agents = value.get("agents")
    kept = {key: _without_empty(part) for key, part in value.items() if key != "agents"}
    result = {key: part for key, part in kept.items() if part not in ({}, [])}
    if agents is not None:
        result["agents"] = {name: _without_empty(part) for name, part in agents.items()}
    return result


def _policy(written: PolicyFile, text: str) -> Policy:
    return Policy(
        project=written.project,
        version=version_of(written.project, written.version, text),
        shadow=written.mode == "shadow",
        owner=written.owner,
        channel=written.notify.channel if written.notify else None,
        guardrails=_rules(GUARDRAILS, written.guardrails, guardrail=True),
        agents={name: _agent(name, part) for name, part in written.agents.items()},
    )


def _agent(name: str, part: AgentPart) -> AgentPolicy:
    return AgentPolicy(
        owner=part.owner,
        rules=_rules(name, part),
        budget=_budget(part.budget),
        on_loop=part.detect.loops.on_alert,
        on_anomaly=part.detect.anomalies.on_alert,
    )


def _budget(part: BudgetPart | None) -> Budget | None:
    if part is None:
        return None
    return Budget(part.daily_tokens, part.daily_cost_usd, part.alert_threshold, part.on_exhausted, part.timezone)


def _rules(owner: str, part: AgentPart | GuardrailsPart, *, guardrail: bool = False) -> tuple[Rule, ...]:
    return tuple(
        _rule(f"{owner}/{effect}/{at}", effect, rule, guardrail=guardrail)
        for effect in EFFECTS
        for at, rule in enumerate(getattr(part, effect, ()))
    )


def _rule(rule_id: str, effect: Effect, rule: NeverRule, *, guardrail: bool) -> Rule:
    return Rule(
        id=rule_id,
        effect=effect,
        service=rule.service,
        actions=tuple(rule.actions),
        resources=tuple(rule.resources) if rule.resources else None,
        branches=tuple(rule.branches) if rule.branches else None,
        tier=rule.tier if isinstance(rule, AllowRule) else None,
        approvers=_approvers(rule.approvers) if isinstance(rule, ApprovalRule) else None,
        guardrail=guardrail,
    )


def _approvers(part: ApproversPart | None) -> Approvers | None:
    said = Approvers(tuple(part.any or ()), part.min, part.expires) if part else Approvers()
    return None if said == Approvers() else said  # what everybody gets need not be said


# ── what is wrong, and where ──


def _first(error: ValidationError, document: Any, lines: dict[Path, int], file: str) -> InvalidPolicy:
    found = sorted((_place(detail, document, lines) for detail in error.errors()), key=lambda one: one[0])
    line, path, message = found[0]
    more = len({(line, path) for line, path, _ in found}) - 1
    if more:
        message += f" (and {more} more)"
    return InvalidPolicy(message, file=file, line=line, key=spell(path))


def _place(detail: ErrorDetails, document: Any, lines: dict[Path, int]) -> tuple[int, Path, str]:
    cause = detail.get("ctx", {}).get("error")
    path = tuple(step for step in detail["loc"] if step != "[key]")
    if isinstance(cause, PatternError):
        written = _at(document, (*path, cause.key))
        path = (*path, cause.key, written.index(cause.pattern))
    known = path
    while known not in lines and known:
        known = known[:-1]
    return lines.get(known, 1), path, _message(detail, _at(document, path), path)


def _at(document: Any, path: Path) -> Any:
    for step in path:
        try:
            document = document[step]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def _message(detail: ErrorDetails, value: Any, path: Path) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            later = LATER.get(str(path[-1]))
            if later:
                return f"{later} are not supported yet: the file is refused rather than half obeyed"
            return "is not a key of the format here"
        case "missing":
            return "is missing"
        case "string_type" if isinstance(value, int | float):
            return f"{value} is read as a number: put it in quotes"
        case "string_type":
            return "must be text"
        case "list_type":
            return "must be a list, such as [push, pull]"
        case "dict_type" | "model_type" | "model_attributes_type":
            return "must be a mapping of keys to values"
        case "too_short":
            return "must not be an empty list; leave the key out for any"
        case "too_long" | "string_too_long":
            return f"is longer than {context.get('max_length')}"
        case "literal_error":
            return f"must be {context['expected']}"
        case "int_type" | "int_from_float":
            return "must be a whole number"
        case "float_type":
            return "must be a number"
        case "greater_than_equal":
            return f"must be at least {context['ge']}"
        case "less_than_equal":
            return f"must be at most {context['le']}"
        case "value_error":
            return str(context["error"])
        case _:
            return detail["msg"]
