"""Two policies: which operations get another answer. Found by going through all operations there are (`reach`), not the text.

    every agent x service -> the rules of both policies -> one table -> in each cell: judge twice, compare

A rule with a condition may match or not, so a cell is judged for every way in which its conditions can hold, and a change
says under which. Two files that say the same in other words differ in nothing.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from banksman.policy.conditions import All, Comparison, Condition, Not, Some, apart, plain
from banksman.policy.match import judge, refuse
from banksman.policy.reach import Cell, agents, cells, implies, services
from banksman.policy.regions import TooMany
from banksman.policy.rules import EVERY_SERVICE
from banksman.policy.verdict import Outcome, Reason

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from banksman.policy.rules import Policy, Rule

MOST_CONDITIONS = 8
"""Of one cell; beyond, it is said that the answers may differ, and not how."""

STRICTNESS: dict[Outcome, int] = {"allow": 0, "approve": 1, "deny": 2}


class Answer(NamedTuple):
    """What is compared. `approvers` and `tier` differ where the decision is the same."""

    decision: Outcome
    tier: int
    rule: str | None
    reason: str
    approvers: tuple[tuple[tuple[str, ...], int, int], ...]
    shadow: Outcome | None


class Change(NamedTuple):
    """One sort of operations that gets another answer, with one of them as the example. `under`: the conditions that hold and
    do not, as people write them; "": whatever they are. `before` and `after` None: they may differ, which was not worked out.
    """

    agent: str
    service: str
    action: str
    resource: str | None
    branch: str | None
    under: str
    before: Answer | None
    after: Answer | None

    @property
    def kind(self) -> str:
        """`stricter`, `looser`, `other` (the decision is the same) or `unknown`."""
        if self.before is None or self.after is None:
            return "unknown"
        apart = STRICTNESS[self.after.decision] - STRICTNESS[self.before.decision]
        return "stricter" if apart > 0 else "looser" if apart < 0 else "other"


class Setting(NamedTuple):
    """Something that is said about an agent or the project besides rules, and is another now."""

    about: str
    what: str
    before: str
    after: str


def diff(old: Policy, new: Policy) -> Iterator[Change]:
    """Every sort of operations whose answer is another one, agent by agent."""
    others = frozenset(name for name in old.schedules if old.schedules[name] != new.schedules.get(name))
    strangers = [SOMEBODY_ELSE] if old.shadow or new.shadow else []  # else whoever has no entry is denied
    for agent in (*agents(old, new), *strangers):
        before, after = list(old.rules_of(agent)), [_timed(rule, others) for rule in new.rules_of(agent)]
        if _same_rules(before, after) and old.is_shadow(agent) == new.is_shadow(agent) and _known(old, new, agent):
            continue
        yield from _compared(old, new, agent, EVERY_SERVICE, _NO_RULE)
        for service in (*services((*before, *after)), OTHER_SERVICE):
            try:
                for cell in cells((*before, *(_marked(rule) for rule in after)), service):
                    yield from _compared(old, new, agent, service, cell)
            except TooMany:
                yield Change(agent, service, "*", None, None, "too many patterns to go through", None, None)


def settings(old: Policy, new: Policy) -> Iterator[Setting]:
    """What else is another: modes, owners, budgets, what an alert does, where it goes; and the text of an `expr`, of which
    nobody can say which answers it changes.
    """
    for what in ("shadow", "owner", "channel", "schedules", "subjects", "claims"):
        yield from _changed("the project", what, getattr(old, what), getattr(new, what))
    for agent in agents(old, new):
        before, after = old.of(agent), new.of(agent)
        if (before is None) != (after is None):
            yield Setting(agent, "entry", *("there" if one is not None else "not there" for one in (before, after)))
        if before is not None and after is not None:
            for what in ("owner", "budget", "on_loop", "on_anomaly", "mode"):
                yield from _changed(agent, what, getattr(before, what), getattr(after, what))
    yield from _expressions(old, new)


def _expressions(old: Policy, new: Policy) -> Iterator[Setting]:
    """Of the rules that differ in their `expr` alone. By what else they say, since another rule above moves their ids."""
    before: dict[Rule, list[str]] = {}
    for rule in old.every_rule():
        without, said = _without_expr(rule)
        before.setdefault(without, []).append(said)
    for rule in new.every_rule():
        without, said = _without_expr(rule)
        was = before.get(without, [])
        if was and said not in was:
            yield Setting(rule.id, "expr (answers may differ)", was[0] or "none", said or "none")


def _without_expr(rule: Rule) -> tuple[Rule, str]:
    when, expr = apart(rule.when)
    owner = rule.id.rpartition("/")[0]
    return msgspec.structs.replace(rule, id=owner, when=when), "" if expr is None else expr.text


SOMEBODY_ELSE, OTHER_SERVICE = "somebody-else", "any-other-service"
"""Who, and what, no rule names: shadow mode and freezes are about them too."""


def _timed(rule: Rule, others: Collection[str]) -> Rule:
    """The new policy's rule, where it goes by a schedule that is another one now: another condition than the old one's."""
    return rule if rule.when is None or not others else msgspec.structs.replace(rule, when=_renamed(rule.when, others))


def _renamed(condition: Condition, others: Collection[str]) -> Condition:
    match condition:
        case All(parts):
            return All(tuple(_renamed(part, others) for part in parts))
        case Some(parts):
            return Some(tuple(_renamed(part, others) for part in parts))
        case Not(part):
            return Not(_renamed(part, others))
        case Comparison(attribute, "during", tuple() as names):
            return Comparison(attribute, "during", tuple(f"{name} (new)" if name in others else name for name in names))
        case _:
            return condition


_NO_RULE = Cell("*", None, None, (), ())
"""What no rule names."""

_NEW = "new\n"
"""Before the ids of the new policy's rules, so that they are told apart in one table."""


def _marked(rule: Rule) -> Rule:
    return msgspec.structs.replace(rule, id=_NEW + rule.id)


def _compared(old: Policy, new: Policy, agent: str, service: str, cell: Cell) -> Iterator[Change]:
    conditions = {
        msgspec.json.encode(rule.when): rule.when for rule in (*cell.match, *cell.missing) if rule.when is not None
    }
    place = agent, service, cell.action, cell.resource, cell.branch
    if len(conditions) > MOST_CONDITIONS:
        yield Change(*place, f"{len(conditions)} conditions, which were not gone through", None, None)
        return
    found: dict[tuple[Answer, Answer], list[dict[bytes, bool]]] = {}
    ways = 0
    for held in _ways(conditions):
        ways += 1
        before = _answer(old, agent, service, cell, held, new=False)
        after = _answer(new, agent, service, cell, held, new=True)
        if _differs(before, after):
            found.setdefault((before, after), []).append(held)
    for (before, after), several in found.items():
        under = "" if len(several) == ways else _least(several, conditions)
        yield Change(*place, under, before, after)


def _ways(conditions: dict[bytes, Condition]) -> Iterator[dict[bytes, bool]]:
    """How conditions may hold together, as far as one says what another does."""
    keys = list(conditions)
    for truths in itertools.product((True, False), repeat=len(keys)):
        held = dict(zip(keys, truths, strict=True))
        if not any(
            held[one] and not held[other] and implies(conditions[one], conditions[other])
            for one in keys
            for other in keys
        ):
            yield held


def _answer(policy: Policy, agent: str, service: str, cell: Cell, held: dict[bytes, bool], *, new: bool) -> Answer:
    def of(rules: Sequence[Rule]) -> list[Rule]:
        return [
            msgspec.structs.replace(rule, id=rule.id.removeprefix(_NEW))
            for rule in rules
            if rule.id.startswith(_NEW) is new and (rule.when is None or held[msgspec.json.encode(rule.when)])
        ]

    if policy.of(agent) is None and not policy.shadow:
        ruling = refuse(policy, None, Reason.UNKNOWN_AGENT)
    else:
        otherwise = Reason.UNKNOWN_AGENT if policy.of(agent) is None else Reason.DEFAULT_DENY
        ruling = judge(
            policy, policy.of(agent), service, cell.action, of(cell.match), of(cell.missing), otherwise=otherwise
        )
    approvers = tuple((one.any, one.min, one.expires) for one in ruling.approvers)
    return Answer(ruling.decision, ruling.tier, ruling.rule, ruling.reason, approvers, ruling.shadow)


def _differs(one: Answer, other: Answer) -> bool:
    return (one.decision, one.tier, one.approvers, one.shadow) != (
        other.decision, other.tier, other.approvers, other.shadow,
    )  # fmt: skip


def _least(several: Sequence[dict[bytes, bool]], conditions: dict[bytes, Condition]) -> str:
    """What all these ways have in common: the change is there only under it."""
    common = {key: truth for key, truth in several[0].items() if all(held[key] is truth for held in several)}
    parts = []
    for key, truth in common.items():
        text = json.dumps(plain(conditions[key]), ensure_ascii=False)
        parts.append(text if truth else f"not {text}")
    return " and ".join(parts) or "depending on conditions"


def _same_rules(before: Sequence[Rule], after: Sequence[Rule]) -> bool:
    return [msgspec.structs.replace(one, id="") for one in before] == [
        msgspec.structs.replace(one, id="") for one in after
    ]


def _known(old: Policy, new: Policy, agent: str) -> bool:
    return (old.of(agent) is None) == (new.of(agent) is None)


def _changed(about: str, what: str, before: object, after: object) -> Iterator[Setting]:
    if before != after:
        yield Setting(about, what, _said(before), _said(after))


def _said(value: object) -> str:
    if isinstance(value, dict):  # schedules, subjects
        return json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
    if isinstance(value, msgspec.Struct):
        value = {name: said for name, said in msgspec.structs.asdict(value).items() if said is not None}
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
