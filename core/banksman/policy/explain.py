"""Why this answer: every rule that was looked at, the first thing about each that did not fit, the nearest rule first.

Works from the rules as written, not from what was compiled for speed; the verdict in it is the compiled one's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from banksman.policy.compile import names_action
from banksman.policy.globs import Custom, compile_patterns
from banksman.policy.normal import bad_branch, bad_resource, bad_text, fold_action
from banksman.policy.verdict import MEANING, Reason, Verdict

if TYPE_CHECKING:
    from banksman.policy.compile import Bundle
    from banksman.policy.rules import Rule

Predicate = Literal["service", "action", "resource", "branch"]
_ORDER: tuple[Predicate, ...] = ("service", "action", "resource", "branch")


class LookedAt(msgspec.Struct, frozen=True):
    """One rule. `failed`: the first predicate that did not fit, None when the rule matched; `wanted`: the rule's
    patterns there. `left_out`: the operation did not name it, which a `never` or `require_approval` rule minds.
    """

    rule: str
    effect: str
    failed: Predicate | None
    wanted: tuple[str, ...] = ()
    left_out: bool = False


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
) -> Explanation:
    """Explains what `bundle.decide` says about the same operation. Nothing is recorded."""
    verdict = bundle.decide(project, agent, service, action, resource, branch)
    compiled = bundle.policies.get(project)
    rules = list(compiled.policy.rules_of(agent)) if compiled is not None else []
    looked = [_look(rule, service, fold_action(service, action), resource, branch) for rule in rules]
    looked.sort(key=lambda one: -len(_ORDER) if one.failed is None else -_ORDER.index(one.failed))
    because = MEANING[verdict.reason]
    if verdict.reason is Reason.NOT_CANONICAL:
        because += f": the {_misspelled(service, action, resource, branch)}"
    if verdict.ruling.shadow is not None:
        because += " (shadow mode: this was not enforced)"
    return Explanation(verdict, because, _mend(verdict, looked), tuple(looked))


def _look(rule: Rule, service: str, action: str, resource: str | None, branch: str | None) -> LookedAt:
    if rule.service != service:
        return LookedAt(rule.id, rule.effect, "service", (rule.service,))
    if not names_action(rule, action):
        return LookedAt(rule.id, rule.effect, "action", rule.actions)
    for predicate, custom, patterns, value in (
        ("resource", Custom.RESOURCE, rule.resources, resource),
        ("branch", Custom.BRANCH, rule.branches, branch),
    ):
        if patterns is None:
            continue
        if value is None or not compile_patterns(custom, service, patterns)(value):
            return LookedAt(rule.id, rule.effect, predicate, patterns, left_out=value is None)  # type: ignore[arg-type]
    return LookedAt(rule.id, rule.effect, None)


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
        case Reason.APPROVAL_REQUIRED:
            return "a human's yes"
        case Reason.INCOMPLETE_OPERATION:
            named = " and ".join(sorted({str(one.failed) for one in looked if one.left_out and one.effect != "allow"}))
            return f"the operation with its {named or 'resource and branch'} named"
        case _:
            pass
    nearest = next((one for one in looked if one.effect == "allow"), None)
    if nearest is None or nearest.failed in {None, "service"}:
        return "an `allow` rule for this service"
    return f"{nearest.rule}, if the {nearest.failed} were one of: {', '.join(nearest.wanted)}"
