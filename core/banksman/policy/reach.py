"""What the rules of one agent, for one service, say about everything that can be asked of it: a table of finite size.

    actions x resources x branches, each sorted by which patterns match (`regions`), each also left out
      -> of every rule: matches, would match, does not

Conditions are not worked out here: a rule with one may hold or not, and two hold together only where one says all that the
other says. So what is called dead is dead whatever the arguments, the time and the subject are.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from banksman.policy.catalogue import READ_ONLY_AWS, READ_ONLY_WORDS, SERVICES, is_read_only, surely_reads
from banksman.policy.conditions import All, Attr, Comparison, Condition, Not, Scalar, Some
from banksman.policy.globs import Custom, compile_patterns, matches_name
from banksman.policy.normal import fold_action
from banksman.policy.regions import Sort, TooMany, sorts
from banksman.policy.rules import EVERY_SERVICE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from banksman.policy.rules import Policy, Rule

MAX_CELLS = 200_000
"""Cells of one table; beyond, TooMany."""


class Cell(NamedTuple):
    """One sort of operations. `match` and `missing`: the rules that match, and that would if nothing was left out; both
    whatever their conditions say.
    """

    action: str
    resource: str | None
    branch: str | None
    match: tuple[Rule, ...]
    missing: tuple[Rule, ...]


def cells(rules: Sequence[Rule], service: str) -> Iterator[Cell]:
    """Every sort of operations on a service that at least one of the rules is about. TooMany."""
    own = [rule for rule in rules if rule.service in {service, EVERY_SERVICE}]
    by_action = _actions(own, service)
    resources = _Dimension(Custom.RESOURCE, service, [rule.resources for rule in own])
    branches = _Dimension(Custom.BRANCH, service, [rule.branches for rule in own])
    if len(by_action) * len(resources.sorts) * len(branches.sorts) * len(own) > MAX_CELLS:
        raise TooMany(f"{len(own)} rules for {service}")
    for action, about in by_action:
        for resource, branch in itertools.product(resources.sorts, branches.sorts):
            match, missing = [], []
            for number in about:
                held = {resources.holds(number, resource), branches.holds(number, branch)}
                if None in held and False not in held:
                    if own[number].effect != "allow":
                        missing.append(own[number])
                elif False not in held:
                    match.append(own[number])
            if match or missing:
                yield Cell(
                    action, resource and resource.example, branch and branch.example, tuple(match), tuple(missing)
                )


def implies(one: Condition | None, other: Condition | None) -> bool:
    """Whether `other` certainly holds where `one` does. No: it may hold or not."""
    if other is None or one == other:
        return True
    parts = one.parts if isinstance(one, All) else (one,)
    wanted = other.parts if isinstance(other, All) else (other,)
    return all(any(_follows(part, want) for part in parts) for want in wanted)


def _follows(one: Condition | None, other: Condition) -> bool:
    if one == other:
        return True
    if isinstance(one, Not) and isinstance(other, Not):
        # The other way round, where the same values can be compared at all: what cannot be worked out is no no.
        return _kinds(one.part) == _kinds(other.part) is not None and _follows(other.part, one.part)
    if isinstance(other, Some):
        return any(implies(one, part) for part in other.parts)
    if not isinstance(one, Comparison) or not isinstance(other, Comparison) or one.attribute != other.attribute:
        return False
    if {one.op, other.op} <= _BOUNDS and not isinstance(one.operand, Attr) and not isinstance(other.operand, Attr):
        return _within(one, other) if one.attribute != "time" else False
    if _kinds(one) is None or _kinds(one) != _kinds(other):
        return False  # `in ["5", 6]` is a plain no where `is 6` cannot be worked out
    return set(_values(one) or ()) <= set(_values(other) or ()) if _values(one) else False


def _kinds(one: Condition) -> set[str] | None:
    """The kinds of values that a comparison can be worked out for; None: that depends."""
    if not isinstance(one, Comparison) or isinstance(one.operand, Attr):
        return None
    if one.op in _BOUNDS:
        return {"number"}
    values = _values(one)
    return None if values is None else {"number" if kind in {"int", "float"} else kind for kind, _ in values}


_BOUNDS = {"lt", "lte", "gt", "gte"}


def _within(one: Comparison, other: Comparison) -> bool:
    """`lt 5` holds only where `lt 9` does."""
    if one.op[:2] != other.op[:2]:
        return False
    a, b = one.operand, other.operand
    assert isinstance(a, int | float), a
    assert isinstance(b, int | float), b
    if a == b:
        return one.op == other.op or one.op in {"lt", "gt"}
    return a < b if one.op.startswith("lt") else a > b


def _values(one: Comparison) -> set[tuple[str, Scalar]] | None:
    """The values that an attribute must be one of; by type, since to Python 1 and true are the same."""
    if isinstance(one.operand, Attr) or one.op not in {"is", "in"}:
        return None
    several = one.operand if isinstance(one.operand, tuple) else (one.operand,)
    return {(type(value).__name__, value) for value in several}


class _Dimension:
    """Resources or branches: the sorts, and which of the rules each belongs to. None stands for what was left out."""

    def __init__(self, custom: Custom, service: str, lists: Sequence[tuple[str, ...] | None]) -> None:
        self._patterns = list(dict.fromkeys(pattern for several in lists for pattern in several or ()))
        number = {pattern: at for at, pattern in enumerate(self._patterns)}
        self._wanted = [None if several is None else frozenset(number[one] for one in several) for several in lists]
        self.sorts: list[Sort | None] = [None]
        if self._patterns:
            self.sorts += sorts(custom, service, self._patterns)

    def holds(self, rule: int, sort: Sort | None) -> bool | None:
        """Whether a rule is about it; None: it would be, if only it was named."""
        wanted = self._wanted[rule]
        if wanted is None:
            return True
        return None if sort is None else bool(wanted & sort.matched)


def _actions(rules: Sequence[Rule], service: str) -> list[tuple[str, list[int]]]:
    """An action of each sort, and the rules that name it. Of one sort are those that the same patterns match, and that read,
    or may be taken to read, alike: an `allow` rule's tier and a freeze go by that.
    """
    known = SERVICES.get(service)
    patterns = list(dict.fromkeys(fold_action(service, one) for rule in rules for one in rule.actions))
    found = {one.example: None for one in sorts(Custom.ACTION, service, patterns)} if patterns else {}
    if known is None or known.open:
        found |= dict.fromkeys(_spelled(service, patterns))
    if known is not None:  # its own verbs are better examples
        found = dict.fromkeys(sorted(known.verbs)) | found
    told: dict[object, tuple[str, list[int]]] = {}
    for action in found:
        about = [number for number, rule in enumerate(rules) if _names(rule, service, action)]
        matched = tuple(bool(compile_patterns(Custom.ACTION, service, (one,))(action)) for one in patterns)
        if about:
            told.setdefault((matched, is_read_only(service, action), surely_reads(service, action)), (action, about))
    return list(told.values())


def _spelled(service: str, patterns: Sequence[str]) -> Iterator[str]:
    """Actions that patterns match and that read, or do not, by their first words: of one sort there may be both."""
    words = READ_ONLY_AWS if service == "aws" else sorted(READ_ONLY_WORDS)
    for pattern in patterns:
        first, star, rest = pattern.replace("?", "x").partition("*")
        if star:
            head = "s3:" if service == "aws" and ":" not in first else ""
            for word in (*words, "", "x"):
                yield f"{first}{head}{word}{rest.replace('*', '')}"


def _names(rule: Rule, service: str, action: str) -> bool:
    if rule.freeze and surely_reads(service, action):
        return False
    folded = tuple(fold_action(service, pattern) for pattern in rule.actions)
    return bool(compile_patterns(Custom.ACTION, service, folded)(action))


def agents(*policies: Policy) -> list[str]:
    """Everybody whom a policy names, and one of each sort that patterns of names tell apart."""
    patterns = sorted({pattern for policy in policies for pattern in policy.patterns})
    named = {name for policy in policies for name in policy.agents} - set(patterns)
    found = [one for one in sorts(Custom.ACTION, "", patterns) if one.matched] if patterns else []
    return sorted(named | {_nobodys(one, patterns, named) for one in found})


def _nobodys(sort: Sort, patterns: Sequence[str], named: Collection[str]) -> str:
    """A name of that sort that has no entry of its own."""
    for name in (sort.example, *(f"{sort.example}{more}" for more in ("x", "-x", "0", "-0")), f"x{sort.example}"):
        if name not in named and sort.matched == frozenset(
            number for number, one in enumerate(patterns) if matches_name(one, name)
        ):
            return name
    return sort.example


def services(rules: Iterable[Rule]) -> list[str]:
    """Those that rules name, in order."""
    return sorted({rule.service for rule in rules} - {EVERY_SERVICE})
