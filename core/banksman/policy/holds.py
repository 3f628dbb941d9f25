"""Whether a condition holds: yes, no, or nobody can say.

What an attribute is compared with has its type, or the comparison cannot be worked out: `5` is no `"5"`, true is no number,
null is as if it was left out. Three values go together as Kleene had them: one plain no makes `all` a no whatever else cannot
be said, one plain yes makes `any` a yes, so that the order in which things are looked at never matters. (S. C. Kleene,
Introduction to Metamathematics, 1952, section 64.)
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

from banksman.policy import cel
from banksman.policy.conditions import (
    MAX_VALUES,
    WHOLE,
    All,
    Attr,
    Comparison,
    Condition,
    Expr,
    Not,
    Some,
    custom_of,
    moment,
)
from banksman.policy.globs import compile_patterns
from banksman.policy.normal import MAX_RESOURCE, bad_resource, fold_action
from banksman.policy.schedules import Schedule, holds


class Facts(NamedTuple):
    """What a question says besides what it is about. `at`: when it is asked, seconds since 1970; None: now. `subject`: whom it
    is about, where that is not the agent itself. `claims`: by attribute (`resource.owner`), what whoever asks says of it.
    """

    args: Mapping[str, Any] | None = None
    at: float | None = None
    subject: Mapping[str, Any] | None = None
    claims: Mapping[str, Any] | None = None


NONE = Facts()
UNKNOWN = object()
"""Of an attribute that is looked for inside of what holds nothing by name: there is something, and nobody can say what."""

MAX_HELD = 256
"""Values of a list that `has` goes through."""


class Asked(NamedTuple):
    """One operation of one agent, as conditions look at it."""

    service: str
    action: str
    resource: str | None
    branch: str | None
    agent: str
    facts: Facts


Truth = bool | None
Holds = Callable[[Asked], Truth]
Get = Callable[[Asked], Any]
"""The value of an attribute; None where there is none."""


def compile_condition(condition: Condition, service: str, schedules: Mapping[str, Schedule]) -> Holds:
    """-> what says whether it holds. KeyError: a schedule that there is not. ConditionError: an `expr`, and no evaluator."""
    match condition:
        case All(parts):
            return partial(_all, tuple(compile_condition(part, service, schedules) for part in parts))
        case Some(parts):
            return partial(_some, tuple(compile_condition(part, service, schedules) for part in parts))
        case Not(part):
            return partial(_not, compile_condition(part, service, schedules))
        case Comparison():
            return _comparison(condition, service, schedules)
        case Expr(text):
            program = cel.compiled(text)
            return partial(_expression, program, _given(program))


def told_of(said: Expr, asked: Asked) -> cel.Told:
    """Whether an expression holds and, where nobody can say, why; for people."""
    program = cel.compiled(said.text)
    return program.ask(_values(_given(program), asked))


def value_of(attribute: str, asked: Asked) -> Any:
    """What an attribute is, for people who ask why; None: there is none."""
    found = _get(attribute)(asked)
    return None if found is UNKNOWN else found


def _all(parts: tuple[Holds, ...], asked: Asked) -> Truth:
    unknown = False
    for part in parts:
        truth = part(asked)
        if truth is None:
            unknown = True
        elif not truth:
            return False
    return None if unknown else True


def _some(parts: tuple[Holds, ...], asked: Asked) -> Truth:
    unknown = False
    for part in parts:
        truth = part(asked)
        if truth is None:
            unknown = True
        elif truth:
            return True
    return None if unknown else False


def _not(part: Holds, asked: Asked) -> Truth:
    truth = part(asked)
    return None if truth is None else not truth


# ── an expression ──

_Given = tuple[tuple[str, str, Get, bool], ...]
"""Of each variable of an expression: its name, its attribute, what gets it, and whether only that there is one is asked."""


def _given(program: cel.Program) -> _Given:
    return tuple((one.name, one.attribute, _get(one.attribute), one.exists) for one in program.strict.variables)


def _values(given: _Given, asked: Asked) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, attribute, get, exists in given:
        value = get(asked)
        if value is UNKNOWN:
            continue
        if exists:
            found[name] = value is not None
        elif value is not None:
            found[name] = cel.moment_of(value) if attribute == "time" else value
    return found


def _expression(program: cel.Program, given: _Given, asked: Asked) -> Truth:
    return program.ask(_values(given, asked)).truth


# ── one comparison ──


def _comparison(said: Comparison, service: str, schedules: Mapping[str, Schedule]) -> Holds:
    get, operand = _get(said.attribute), said.operand
    if said.op == "exists":
        return partial(_exists, get)
    if said.attribute == "action":  # which is folded before it is matched
        operand = _folded(service, operand)
    if said.op == "during":
        assert isinstance(operand, tuple), operand
        several = [schedules[str(name)] for name in operand]
        return lambda asked: any(holds(one, get(asked)) for one in several)
    if isinstance(operand, Attr):
        other, compare = _get(operand.name), _COMPARE[said.op]
        return lambda asked: _compared(compare, get(asked), other(asked))
    if said.op == "glob":
        assert isinstance(operand, tuple), operand
        custom = custom_of(said.attribute)
        matches = compile_patterns(custom, service if said.attribute == "resource" else "", tuple(map(str, operand)))
        whole = said.attribute in WHOLE  # its spelling was looked at before any rule was
        return lambda asked: _globbed(matches, get(asked), whole=whole)
    if said.op == "in" and isinstance(operand, tuple):
        return partial(_among, get, _by_kind(operand))
    if said.attribute == "time":
        return partial(_timed, _COMPARE[said.op], moment(operand))
    return lambda asked, compare=_COMPARE[said.op]: _compared(compare, get(asked), operand)  # type: ignore[misc]


def _compared(compare: Callable[[Any, Any], Truth], value: Any, wanted: Any) -> Truth:
    if value is None or wanted is None or value is UNKNOWN or wanted is UNKNOWN:
        return None
    return compare(value, wanted)


def _folded(service: str, operand: Any) -> Any:
    if isinstance(operand, tuple):
        return tuple(fold_action(service, str(one)) for one in operand)
    return fold_action(service, operand) if isinstance(operand, str) else operand


def _exists(get: Get, asked: Asked) -> Truth:
    value = get(asked)
    return None if value is UNKNOWN else value is not None


def _by_kind(values: tuple[Any, ...]) -> dict[type, frozenset[Any]]:
    kinds = {_kind(one) for one in values}
    return {kind: frozenset(one for one in values if _kind(one) is kind) for kind in kinds}


def _among(get: Get, wanted: dict[type, frozenset[Any]], asked: Asked) -> Truth:
    value = get(asked)
    several = wanted.get(_kind(value))
    return None if several is None else value in several


def _kind(value: Any) -> type:
    """What a value can be compared with: bool, float for all numbers, str; anything else is of its own kind."""
    if isinstance(value, bool):
        return bool
    return float if isinstance(value, int | float) else type(value)


def _timed(compare: Callable[[Any, Any], Truth], bound: float | None, asked: Asked) -> Truth:
    return compare(_time(asked), bound)


def _globbed(matches: Callable[[str], object], value: Any, *, whole: bool) -> Truth:
    if not isinstance(value, str) or len(value) > MAX_RESOURCE or not (whole or _has_one_spelling(value)):
        return None  # `a/../b` has more than one spelling, so a pattern says nothing about it
    return bool(matches(value))


@lru_cache(512)
def _has_one_spelling(text: str) -> bool:
    """One argument may be looked at by many rules."""
    return bad_resource("", text) is None


def _same_kind(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return isinstance(one, bool) and isinstance(other, bool)
    if isinstance(one, int | float):
        return isinstance(other, int | float)
    return isinstance(one, str) and isinstance(other, str)


def _is(value: Any, wanted: Any) -> Truth:
    return value == wanted if _same_kind(value, wanted) else None


def _in(value: Any, wanted: Any) -> Truth:
    if not isinstance(wanted, Sequence) or isinstance(wanted, str) or len(wanted) > MAX_VALUES:
        return None
    kin = [one for one in wanted if _same_kind(value, one)]
    return value in kin if kin else None


def _has(value: Any, wanted: Any) -> Truth:
    """One of the wanted is in a list."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > MAX_HELD:
        return None
    several = wanted if isinstance(wanted, tuple) else (wanted,)
    plain = [one for one in value if isinstance(one, bool | int | float | str)]
    there = {(_kind(one), one) for one in plain}
    if any((_kind(one), one) in there for one in several):
        return True
    return False if len(plain) == len(value) else None  # what stands in a list in it nobody has looked at


def _ordered(compare: Callable[[Any, Any], bool], value: Any, wanted: Any) -> Truth:
    if isinstance(value, bool) or isinstance(wanted, bool):
        return None
    if not isinstance(value, int | float) or not isinstance(wanted, int | float):
        return None
    return compare(value, wanted)


_COMPARE: dict[str, Callable[[Any, Any], Truth]] = {
    "is": _is, "in": _in, "has": _has,
    "lt": partial(_ordered, operator.lt), "lte": partial(_ordered, operator.le),
    "gt": partial(_ordered, operator.gt), "gte": partial(_ordered, operator.ge),
}  # fmt: skip


# ── one attribute ──


def _get(attribute: str) -> Get:
    if attribute == "time":
        return _time
    if attribute in WHOLE:
        return operator.attrgetter(attribute)
    root, _, rest = attribute.partition(".")
    if attribute == "args":  # all of them, which expressions may ask for
        return _all_args
    if root == "args":
        return partial(_within_args, tuple(rest.split(".")))
    if root == "subject":
        return partial(_of_subject, rest, attribute)
    return partial(_claimed, attribute)


def _time(asked: Asked) -> float:
    return time.time() if asked.facts.at is None else asked.facts.at


def _all_args(asked: Asked) -> Any:
    return asked.facts.args


def _within_args(steps: tuple[str, ...], asked: Asked) -> Any:
    found: Any = asked.facts.args
    for step in steps:
        if isinstance(found, Mapping):
            found = found.get(step)
        elif isinstance(found, list) and step.isdecimal() and len(step) < 6:
            found = found[int(step)] if int(step) < len(found) else None
        else:
            return None if found is None else UNKNOWN
    return found


def _of_subject(name: str, attribute: str, asked: Asked) -> Any:
    """What the policy says of whom it is about; else what whoever asks says."""
    subject = asked.facts.subject
    found = subject.get(name) if subject is not None else None
    return _claimed(attribute, asked) if found is None else found


def _claimed(attribute: str, asked: Asked) -> Any:
    claims = asked.facts.claims
    return claims.get(attribute) if claims is not None else None
