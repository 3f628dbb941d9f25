"""From rules to a verdict: `never` > `require_approval` > `allow` > default deny, whatever their order.

`judge` is the whole meaning of a policy once it is known which rules match; `match_rule` says whether one does. Both
are plain and slow enough to read; `compile.py` only arranges that they are asked as seldom as possible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from banksman.policy.catalogue import is_read_only
from banksman.policy.verdict import ASK, FREE, LOGGED, NEVER, Approvers, Outcome, Reason, Ruling

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from banksman.policy.rules import AgentPolicy, Policy, Rule

_NOBODY_IN_PARTICULAR = Approvers()


NO_POLICY = Ruling("deny", NEVER, None, Reason.NO_POLICY)


class _Judged(NamedTuple):
    decision: Outcome
    tier: int
    rule: str | None
    reason: Reason
    approvers: tuple[Approvers, ...] = ()


def judge(
    policy: Policy,
    known: AgentPolicy | None,
    service: str,
    action: str,
    matched: Sequence[Rule],
    missing: Sequence[Rule],
    unsure: Collection[Rule] = (),
    *,
    otherwise: Reason = Reason.DEFAULT_DENY,
) -> Ruling:
    """The answer to an agent of which that is `known`, when `matched` match and `missing` (never and require_approval) would,
    had the operation named its branch or resource. Both with guardrails first, in the order of the file. `unsure`: those that
    match because whether their condition holds cannot be worked out. `otherwise`: why, when nothing matches.
    """
    by = _Combining(service, action, unsure, otherwise)
    in_force = [rule for rule in matched if not rule.shadow], [rule for rule in missing if not rule.shadow]
    said = by(*in_force)
    shadow: Outcome | None = None
    if policy.shadows(known):
        # Shadow never covers guardrails: what they say alone is in force, the rest is only noted.
        held = by(*([rule for rule in rules if rule.guardrail] for rules in in_force), allowed=True)
        if held.reason is otherwise:
            said, shadow = said._replace(decision="allow", approvers=()), said.decision
        elif held.decision != said.decision:
            said, shadow = held, said.decision
        else:
            said = held
    elif len(in_force[0]) + len(in_force[1]) < len(matched) + len(missing):
        noted = by(matched, missing)
        if noted.decision != said.decision:
            shadow = noted.decision
    ids = tuple(rule.id for rule in matched)
    return Ruling(
        said.decision, said.tier, said.rule, said.reason, ids, said.approvers, shadow,
        policy.project, policy.version, policy.owner_by(known),
    )  # fmt: skip


def refuse(policy: Policy, known: AgentPolicy | None, reason: Reason) -> Ruling:
    """The answer to an operation that no rule is asked about: an unknown agent, a spelling that is not the one.

    In shadow mode it is only noted, unless the policy has guardrails: a spelling that cannot be matched may be one of
    what they forbid.
    """
    covered = policy.shadows(known) and not policy.guardrails
    return Ruling(
        "allow" if covered else "deny", NEVER, None, reason, (), (), "deny" if covered else None,
        policy.project, policy.version, policy.owner_by(known),
    )  # fmt: skip


class _Combining(NamedTuple):
    """`never` > left out > `require_approval` > `allow`. A freeze that asks makes nothing possible: it asks where the rest
    would allow, which in shadow mode it always does (`allowed`).
    """

    service: str
    action: str
    unsure: Collection[Rule]
    otherwise: Reason

    def __call__(self, matched: Sequence[Rule], missing: Sequence[Rule], *, allowed: bool = False) -> _Judged:
        forbidding = self._surest(rule for rule in matched if rule.effect == "never")
        if forbidding:
            rule = forbidding[0]
            return _Judged(
                "deny", NEVER, rule.id, self._why(rule, Reason.GUARDRAIL if rule.guardrail else Reason.NEVER)
            )
        if missing:
            return _Judged("deny", NEVER, missing[0].id, Reason.INCOMPLETE_OPERATION)
        asking = self._surest(rule for rule in matched if rule.effect == "require_approval")
        if asking and (allowed or not all(rule.freeze or rule.effect == "never" for rule in matched)):
            # Every matching rule's approvers are asked for, so that the order of rules cannot pick the easier one.
            wanted = sorted({rule.approvers or _NOBODY_IN_PARTICULAR for rule in asking}, key=_as_tuple)
            return _Judged("approve", ASK, asking[0].id, self._why(asking[0], Reason.APPROVAL_REQUIRED), tuple(wanted))
        allowing = [(allow_tier(rule, self.service, self.action), rule) for rule in matched if rule.effect == "allow"]
        if allowing:
            tier = max(tier for tier, _ in allowing)
            return _Judged("allow", tier, next(rule.id for at, rule in allowing if at == tier), Reason.ALLOWED)
        return _Judged("deny", NEVER, None, self.otherwise)

    def _surest(self, rules: Iterable[Rule]) -> list[Rule]:
        """Those that surely match first: a reason that is plain goes before one that nobody could work out."""
        return sorted(rules, key=lambda rule: rule in self.unsure)

    def _why(self, rule: Rule, plain: Reason) -> Reason:
        if rule in self.unsure:
            return Reason.CONDITION_ERROR
        return Reason.FREEZE if rule.freeze and rule.effect == "never" else plain


def _as_tuple(approvers: Approvers) -> tuple[tuple[str, ...], int, int]:
    return approvers.any, approvers.min, approvers.expires


def allow_tier(rule: Rule, service: str, action: str) -> int:
    """The tier that an `allow` rule gives this action: its own, else 1 for what only reads and 2 for the rest."""
    return rule.tier or verb_tier(service, action)


def verb_tier(service: str, action: str) -> int:
    """The tier of an allowed action about which no rule says more."""
    return FREE if is_read_only(service, action) else LOGGED
