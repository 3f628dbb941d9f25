"""A policy file into a policy: everything that is wrong has a file, a line and a key.

`load` is the one door: files of the folder, texts of `policy.loaded` events and tests all come through it. What it
returns is complete and right, or it raises.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple, get_args, get_origin

from pydantic import ValidationError

from banksman.canonical import canonical
from banksman.canonical import parse as parse_json
from banksman.errors import InvalidInput, InvalidPolicy
from banksman.policy.conditions import Comparison, ConditionError, Scalar, comparisons
from banksman.policy.document import Path, read, spell
from banksman.policy.globs import has_wildcard
from banksman.policy.model import (
    AgentPart,
    AllowRule,
    ApprovalRule,
    ApproversPart,
    BudgetPart,
    FreezePart,
    GuardrailsPart,
    NeverRule,
    PatternError,
    PolicyFile,
    RulesPart,
    SchedulePart,
)
from banksman.policy.nearest import nearest
from banksman.policy.rules import (
    EFFECTS,
    EVERY_SERVICE,
    FREEZE,
    GUARDRAILS,
    USE,
    AgentPolicy,
    Budget,
    Effect,
    Policy,
    Rule,
    by_literals,
)
from banksman.policy.schedules import DAYS, Schedule
from banksman.policy.verdict import Approvers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic_core import ErrorDetails

MAX_EVENT_TEXT = 7_500_000
"""Bytes of the normalised text inside a `policy.loaded` event (8 MiB on Kafka, with the event's other fields)."""

MISSING = "is missing"


class Loaded(NamedTuple):
    """A policy and the whole normalised text that it is. `load(text.encode())` gives the same policy and version."""

    policy: Policy
    text: str


def load(raw: bytes, file: str = "policy") -> Loaded:
    """InvalidPolicy: the first thing that is wrong, by line; and how many more there are."""
    written, lines, wrong = checked(raw, file)
    if written is None:
        first, more = wrong[0], len(wrong) - 1
        if more:
            raise InvalidPolicy(f"{first.message} (and {more} more)", file=file, line=first.line, key=first.key)
        raise first
    return finished(written, lines, file)


def checked(raw: bytes, file: str) -> tuple[PolicyFile | None, dict[Path, int], list[InvalidPolicy]]:
    """-> (what is written, the line of each of its values, all that is wrong with it, by line)."""
    document = normal_document(raw)
    lines: dict[Path, int] = {(): 1}
    try:
        if document is None:
            document, lines = read(raw, file)
    except InvalidPolicy as error:
        return None, {}, [error]
    if not isinstance(document, dict):
        return None, lines, [InvalidPolicy("a policy is a mapping that begins with `project:`", file=file, line=1)]
    try:
        written = PolicyFile.model_validate(document)
    except ValidationError as error:
        places = {
            (line, path): message for line, path, message in (place_of(one, document, lines) for one in error.errors())
        }
        wrong = [InvalidPolicy(told, file=file, line=line, key=spell(path)) for (line, path), told in places.items()]
        # Of one line: a key that is spelled wrong before the one that is missing for it.
        return None, lines, sorted(wrong, key=lambda one: (one.line, one.message == MISSING, one.key))
    return written, lines, []


def finished(written: PolicyFile, lines: dict[Path, int], file: str) -> Loaded:
    """What is written as a policy. InvalidPolicy: it names what is not there, or is too large."""
    wrong = next(_unknown_names(written), None)
    if wrong is not None:
        raise InvalidPolicy(wrong[1], file=file, line=_line(wrong[0], lines), key=spell(wrong[0]))
    try:
        text = normal_text(written)
    except InvalidInput as error:
        raise InvalidPolicy(error.message, file=file, line=1, key=error.field) from None
    if len(json.dumps(text, ensure_ascii=False).encode()) > MAX_EVENT_TEXT:
        raise InvalidPolicy("the policy is too large to be published; split the project", file=file, line=1)
    policy = _policy(written, text)
    if policy.subjects or any(rule.when is not None for rule in policy.every_rule()):
        again, _, refused = checked(text.encode(), file)
        if again is None or _policy(again, text) != policy or normal_text(again) != text:
            why = f": {refused[0].message}" if refused else ""
            raise InvalidPolicy(
                f"has no one form that could be published{why}; write it more simply", file=file, line=1
            )
    return Loaded(policy, text)


def normal_document(raw: bytes) -> Any:
    """What stands in a normalised text, which is JSON on one line; None: it is none."""
    if not raw.startswith(b'{"') or b"\n" in raw:
        return None
    try:
        document = parse_json(raw)
    except InvalidInput:
        return None
    return None if _holds_null(document) else document


def _holds_null(value: Any) -> bool:
    """`null` must not come to mean any."""
    if isinstance(value, dict):
        value = list(value.values())
    return any(map(_holds_null, value)) if isinstance(value, list) else value is None


def normal_text(written: PolicyFile) -> str:
    """The policy in its one spelling: RFC 8785 JSON, defaults left out, lists whose order means nothing sorted.

    The order of rules stays, although it means nothing either: rule ids count from the top of their list.
    """
    return canonical(_normal(written.model_dump(mode="json", exclude_defaults=True, by_alias=True))).decode()


def version_of(project: str, number: int | None, text: str) -> str:
    """`project@vN+sha256:12HEX`: the first 12 digits of the SHA-256 of the normalised text."""
    return f"{project}@v{number or 0}+sha256:{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _without_empty(value: Any) -> Any:
    """Without empty lists and mappings, which say the same as leaving them out."""
    if not isinstance(value, dict):
        return value
    kept = {key: _without_empty(part) for key, part in value.items()}
    return {key: part for key, part in kept.items() if part not in ({}, [])}


_NAMED = ("agents", "rules")
"""An agent, or a set, without rules stays one."""


def _normal(document: dict[str, Any]) -> dict[str, Any]:
    named = {
        key: {name: _without_empty(part) for name, part in document[key].items()} for key in _NAMED if key in document
    }
    rest = {key: part for key, part in document.items() if key not in {*_NAMED, "subjects"}}
    whole = {key: part for key, part in named.items() if part or key == "agents"}
    subjects = {"subjects": document["subjects"]} if document.get("subjects") else {}
    return {**_without_empty(rest), **whole, **subjects}


def _policy(written: PolicyFile, text: str) -> Policy:
    return Policy(
        project=written.project,
        version=version_of(written.project, written.version, text),
        shadow=written.mode == "shadow",
        owner=written.owner,
        channel=written.notify.channel if written.notify else None,
        guardrails=_rules(GUARDRAILS, written.guardrails, guardrail=True) + _freezes(written.freeze),
        agents={name: _agent(name, part) for name, part in written.agents.items()},
        patterns=tuple(sorted(filter(has_wildcard, written.agents), key=by_literals)),
        sets={name: _rules(f"{USE}/{name}", part) for name, part in written.rules.items()},
        schedules={name: _schedule(part) for name, part in written.schedules.items()},
        subjects={
            type_: {one: {name: _attribute(value) for name, value in said.items()} for one, said in several.items()}
            for type_, several in written.subjects.items()
        },
        claims=tuple(written.claims),
    )


def _agent(name: str, part: AgentPart) -> AgentPolicy:
    return AgentPolicy(
        owner=part.owner,
        rules=_rules(name, part),
        budget=_budget(part.budget),
        on_loop=part.detect.loops.on_alert,
        on_anomaly=part.detect.anomalies.on_alert,
        mode=part.mode,
        use=tuple(part.use),
    )


def _schedule(part: SchedulePart) -> Schedule:
    days = tuple(sorted(map(DAYS.index, part.days or ())))
    return Schedule(part.timezone, days, part.since, part.until, part.begins, part.ends)


def _freezes(parts: list[FreezePart]) -> tuple[Rule, ...]:
    """Guardrails about everything, or all of some services, that does not surely only read."""
    return tuple(
        Rule(
            f"{FREEZE}/{at}" if part.services is None else f"{FREEZE}/{at}/{service}",
            "never" if part.then == "deny" else "require_approval",
            service,
            ("*",),
            None,
            None,
            approvers=_approvers(part.approvers),
            guardrail=True,
            when=Comparison("time", "during", tuple(part.during)),
            freeze=True,
        )
        for at, part in enumerate(parts)
        for service in part.services or [EVERY_SERVICE]
    )


def _attribute(value: Scalar | list[Scalar]) -> Scalar | tuple[Scalar, ...]:
    return tuple(value) if isinstance(value, list) else value


def _budget(part: BudgetPart | None) -> Budget | None:
    if part is None:
        return None
    return Budget(part.daily_tokens, part.daily_cost_usd, part.alert_threshold, part.on_exhausted, part.timezone)


def _rules(owner: str, part: RulesPart | GuardrailsPart, *, guardrail: bool = False) -> tuple[Rule, ...]:
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
        when=rule.condition,
        shadow=rule.mode == "shadow",
    )


def _approvers(part: ApproversPart | None) -> Approvers | None:
    said = Approvers(tuple(part.any or ()), part.min, part.expires) if part else Approvers()
    return None if said == Approvers() else said  # what everybody gets need not be said


# ── what is wrong, and where ──


def _unknown_names(written: PolicyFile) -> Iterator[tuple[Path, str]]:
    """Where a schedule or a set of rules is named that there is not, in the order of the file's keys."""
    for at, freeze in enumerate(written.freeze):
        for place, name in enumerate(freeze.during):
            if name not in written.schedules:
                yield ("freeze", at, "during", place), _no(name, "schedule", written.schedules)
    parts: list[tuple[Path, RulesPart | GuardrailsPart]] = [(("guardrails",), written.guardrails)]
    parts += [(("rules", name), part) for name, part in written.rules.items()]
    parts += [(("agents", name), part) for name, part in written.agents.items()]
    for path, part in parts:
        for place, name in enumerate(part.use if isinstance(part, AgentPart) else ()):
            if name not in written.rules:
                yield (*path, "use", place), _no(name, "set of rules", written.rules)
        for effect in EFFECTS:
            for at, rule in enumerate(getattr(part, effect, ())):
                for said in comparisons(rule.condition):
                    named = said.operand if said.op == "during" and isinstance(said.operand, tuple) else ()
                    for name in map(str, named):
                        if name not in written.schedules:
                            yield (*path, effect, at, "when"), _no(name, "schedule", written.schedules)


def _no(name: str, what: str, known: Iterable[str]) -> str:
    return f"{name!r} is no {what} of this file{nearest(name, known)}"


def _line(path: Path, lines: dict[Path, int]) -> int:
    while path not in lines and path:
        path = path[:-1]
    return lines.get(path, 1)


def place_of(detail: ErrorDetails, document: Any, lines: dict[Path, int], model: Any = None) -> tuple[int, Path, str]:
    """(line, path, message) of one thing that pydantic found in a document of that model (else a policy)."""
    cause = detail.get("ctx", {}).get("error")
    path = tuple(step for step in detail["loc"] if step != "[key]")
    while (
        detail["type"] != "missing" and path and _at(document, path) is None
    ):  # a type of a union is no step of the document
        path = path[:-1]
    if isinstance(cause, PatternError):
        written = _at(document, (*path, cause.key))
        path = (*path, cause.key, written.index(cause.pattern))
    if isinstance(cause, ConditionError):
        path = (*path, *cause.path)
    return _line(path, lines), path, _message(detail, _at(document, path), path, model or PolicyFile)


def _keys_at(model: Any, path: Path) -> tuple[str, ...]:
    """The keys of the mapping at a place of the format."""
    is_name = False  # what comes next is the name of an agent, a set, a schedule
    for step in path:
        if is_name or isinstance(step, int):
            is_name = False
            continue
        named = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        if step not in named:
            return ()
        is_name, model = get_origin(named[step]) is dict, _innermost(named[step])
        if model is None:
            return ()
    return tuple(field.alias or name for name, field in model.model_fields.items())


def _innermost(type_: Any) -> Any:
    """The model that a field holds, in a list or by name, or itself."""
    inner = [_innermost(one) for one in get_args(type_)]
    return next(
        (one for one in inner if hasattr(one, "model_fields")), type_ if hasattr(type_, "model_fields") else None
    )


def _at(document: Any, path: Path) -> Any:
    for step in path:
        try:
            document = document[step]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def _message(detail: ErrorDetails, value: Any, path: Path, model: Any) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return f"is not a key of the format here{nearest(path[-1], _keys_at(model, path[:-1]))}"
        case "missing":
            return MISSING
        case "string_type" if isinstance(value, bool):
            return f"{str(value).lower()} is read as true or false: put it in quotes"
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
