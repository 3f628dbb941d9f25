"""Why this answer: every rule that was looked at, the first thing about each that did not fit, the nearest rule first.

Works from the rules as written, not from what was compiled for speed; the verdict in it is the compiled one's.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from banksman.policy.catalogue import surely_reads
from banksman.policy.compile import names_action
from banksman.policy.conditions import All, Condition, Expr, Some, attributes_of, plain
from banksman.policy.globs import Custom, compile_patterns
from banksman.policy.holds import NONE, Asked, Facts, compile_condition, told_of, value_of
from banksman.policy.normal import bad_branch, bad_resource, bad_text, fold_action
from banksman.policy.rules import EVERY_SERVICE, FREEZE
from banksman.policy.verdict import MEANING, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from banksman.policy.compile import Bundle
    from banksman.policy.rules import Rule
    from banksman.policy.schedules import Schedule

Predicate = Literal["service", "action", "resource", "branch", "condition"]
_ORDER: tuple[Predicate, ...] = ("service", "action", "resource", "branch", "condition")


class LookedAt(msgspec.Struct, frozen=True):
    """One rule. `failed`: the first predicate that did not fit, None when the rule matched; `wanted`: the rule's
    patterns there, or what its condition says and what there is instead. `left_out`: the operation did not name it, which a
    `never` or `require_approval` rule minds. `unsure`: it matches because whether its condition holds cannot be worked out;
    `wanted` is then what of it cannot.
    """

    rule: str
    effect: str
    failed: Predicate | None
    wanted: tuple[str, ...] = ()
    left_out: bool = False
    unsure: bool = False
    shadow: bool = False


class Explanation(msgspec.Struct, frozen=True):
    """The verdict, why in words, what would have to be different, and every rule, the nearest first."""

    verdict: Verdict
    because: str
    mend: str | None
    rules: tuple[LookedAt, ...]


def explain(
    bundle: Bundle,
    project: str,
    agent: str,
    service: str,
    action: str,
    resource: str | None = None,
    branch: str | None = None,
    facts: Facts = NONE,
) -> Explanation:
    """Explains what `bundle.decide` says about the same operation. Nothing is recorded."""
    if facts.at is None:
        facts = facts._replace(at=time.time())  # one moment for the verdict and for what is said about it
    verdict = bundle.decide(project, agent, service, action, resource, branch, facts)
    compiled = bundle.policies.get(project)
    if compiled is not None:
        facts = compiled.about(agent, facts)
    asked = Asked(service, fold_action(service, action), resource, branch, agent, facts)
    policy = compiled.policy if compiled is not None else None
    looked = [_look(rule, asked, policy.schedules) for rule in policy.rules_of(agent)] if policy is not None else []
    looked.sort(key=_farness)
    because = MEANING[verdict.reason]
    if verdict.reason is Reason.NOT_CANONICAL:
        because += f": the {_misspelled(service, action, resource, branch)}"
    if verdict.ruling.shadow is not None:
        because += f" (shadow mode: enforced, it would be {verdict.ruling.shadow})"
    return Explanation(verdict, because, _mend(verdict, looked), tuple(looked))


def _farness(one: LookedAt) -> tuple[int, bool]:
    """How far it is from matching; of those that are as near, first what would allow. A freeze that does not hold is far."""
    if one.failed is None:
        return -len(_ORDER), False
    return 0 if one.rule.startswith(f"{FREEZE}/") else -_ORDER.index(one.failed), one.effect != "allow"


def _look(rule: Rule, asked: Asked, schedules: Mapping[str, Schedule]) -> LookedAt:
    def failed(predicate: Predicate, wanted: tuple[str, ...], *, left_out: bool = False) -> LookedAt:
        return LookedAt(rule.id, rule.effect, predicate, wanted, left_out, shadow=rule.shadow)

    if rule.service not in {asked.service, EVERY_SERVICE}:
        return failed("service", (rule.service,))
    if rule.freeze and surely_reads(asked.service, asked.action):
        return failed("action", ("what does not only read",))
    if not names_action(rule, asked.action):
        return failed("action", rule.actions)
    for predicate, custom, patterns, value in (
        ("resource", Custom.RESOURCE, rule.resources, asked.resource),
        ("branch", Custom.BRANCH, rule.branches, asked.branch),
    ):
        if patterns is None:
            continue
        if value is None or not compile_patterns(custom, asked.service, patterns)(value):
            return failed(predicate, patterns, left_out=value is None)  # type: ignore[arg-type]
    if rule.when is None:
        return LookedAt(rule.id, rule.effect, None, shadow=rule.shadow)
    truth = compile_condition(rule.when, asked.service, schedules)(asked)
    if truth or (truth is None and rule.effect != "allow"):
        unsure = tuple(unmet(rule.when, asked, schedules)) if truth is None else ()
        return LookedAt(rule.id, rule.effect, None, unsure, unsure=truth is None, shadow=rule.shadow)
    return failed("condition", tuple(unmet(rule.when, asked, schedules)))


def unmet(condition: Condition, asked: Asked, schedules: Mapping[str, Schedule]) -> Iterator[str]:
    """What of a condition does not hold, or cannot be worked out: what is wanted, and what there is."""
    if compile_condition(condition, asked.service, schedules)(asked):
        return
    match condition:
        case All(parts):
            for part in parts:
                yield from unmet(part, asked, schedules)
        case Some(parts):
            yield "one of: " + "; ".join(told for part in parts for told in unmet(part, asked, schedules))
        case _:
            yield _sentence(condition, asked)


def _sentence(condition: Condition, asked: Asked) -> str:
    there = []
    for name in dict.fromkeys(attributes_of(condition)):
        value = value_of(name, asked)
        if name == "time":
            value = datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds")
        there.append(f"{name} is {'not there' if value is None else json.dumps(value, ensure_ascii=False)}")
    wanted = json.dumps(plain(condition), ensure_ascii=False)
    if isinstance(condition, Expr):
        told = told_of(condition, asked)
        wanted += ", which is false" if told.truth is False else f", which cannot be worked out ({told.why})"
    return f"{wanted}, and {', '.join(there)}"


def _misspelled(service: str, action: str, resource: str | None, branch: str | None) -> str:
    for name, wrong in (
        ("service", bad_text(service)),
        ("action", bad_text(action)),
        ("resource", None if resource is None else bad_resource(service, resource)),
        ("branch", None if branch is None else bad_branch(branch)),
    ):
        if wrong:
            return f"{name} {wrong}"
    return "operation is spelled in more than one way"


def _mend(verdict: Verdict, looked: list[LookedAt]) -> str | None:
    """What would have allowed it, as far as one change would."""
    ruling = verdict.ruling
    if (ruling.shadow or ruling.decision) == "allow":
        return None
    match ruling.reason:
        case Reason.NO_POLICY:
            return "a policy file for the project"
        case Reason.UNKNOWN_AGENT:
            return "an entry under `agents:` in the project's policy"
        case Reason.NOT_CANONICAL | Reason.TOO_LONG:
            return "the same operation in its one spelling"
        case Reason.NEVER | Reason.GUARDRAIL:
            return f"nothing, as long as {ruling.rule} stands"
        case Reason.FREEZE:
            return f"the end of the freeze window {ruling.rule}"
        case Reason.CONDITION_ERROR:
            return f"the attributes that {ruling.rule} looks at, with their types"
        case Reason.APPROVAL_REQUIRED:
            return "a human's yes"
        case Reason.INCOMPLETE_OPERATION:
            named = " and ".join(sorted({str(one.failed) for one in looked if one.left_out and one.effect != "allow"}))
            return f"the operation with its {named or 'resource and branch'} named"
        case _:
            pass
    nearest = next((one for one in looked if one.effect == "allow" and not one.shadow), None)
    if nearest is None or nearest.failed in {None, "service"}:
        return "an `allow` rule for this service"
    if nearest.failed == "condition":
        return f"{nearest.rule}, if this held: {'; '.join(nearest.wanted)}"
    return f"{nearest.rule}, if the {nearest.failed} were one of: {', '.join(nearest.wanted)}"
