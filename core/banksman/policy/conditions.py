"""`when:` - what an operation must be like, besides what it is called: data, and how it is written.

    when: {args.amount: {lt: 500}, args.currency: {in: [usd, eur]}, time: {during: office-hours}}
    when: {any: [{args.draft: true}, {not: {branch: {glob: "release/*"}}}]}
    when: {resource.owner: {is: {attr: subject.email}}}

Everything in a mapping must hold, and what stands beside it under `expr:` (`banksman.policy.expr`). What is written in several
ways becomes one form here, which is what is hashed, compared and worked out (`banksman.policy.holds`).
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from banksman.canonical import MAX_INT
from banksman.policy.globs import Custom, bad_pattern, has_wildcard
from banksman.policy.nearest import nearest
from banksman.policy.normal import bad_branch, bad_resource

if TYPE_CHECKING:
    from collections.abc import Iterator

Scalar = bool | int | float | str
Op = Literal["is", "in", "lt", "lte", "gt", "gte", "glob", "exists", "has", "during"]

ROOTS = ("args", "resource", "branch", "action", "agent", "time", "subject", "context")
WHOLE = frozenset({"resource", "branch", "action", "agent", "time"})
"""Attributes that are one value; `args`, `subject` and `context` are asked by what is in them, and `resource` may be."""

MAX_TESTS, MAX_DEPTH, MAX_VALUES = 100, 8, 1000

_ATTRIBUTE = re.compile(r"[a-z]+(?:\.[A-Za-z0-9_$-]{1,128}){0,8}").fullmatch
_ORDER = {"lt", "lte", "gt", "gte"}
_TEXT_OPS = {"is", "in", "glob", "exists", "not"}
_TIME_OPS = {"during", *_ORDER, "not"}
_ANY_OPS = {"is", "in", "not", "exists", "has", "glob", *_ORDER}


class Attr(msgspec.Struct, frozen=True, gc=False, tag="attr"):
    """Another attribute, as what one is compared with."""

    name: str


class Comparison(msgspec.Struct, frozen=True, gc=False, eq=False, tag="test"):
    """One attribute, one comparison. `operand`: `in`, `glob`, `has` and `during` have several, of which one is enough."""

    attribute: str
    op: Op
    operand: Scalar | tuple[Scalar, ...] | Attr

    def __eq__(self, other: object) -> bool:
        """By its text: to Python 1 and true are the same, and to a policy they are not."""
        return isinstance(other, Comparison) and msgspec.json.encode(self) == msgspec.json.encode(other)

    def __hash__(self) -> int:
        return hash((self.attribute, self.op, self.operand))


class All(msgspec.Struct, frozen=True, gc=False, tag="all"):
    """Every one of them holds."""

    parts: tuple[Condition, ...]


class Some(msgspec.Struct, frozen=True, gc=False, tag="any"):
    """One of them holds, or more."""

    parts: tuple[Condition, ...]


class Not(msgspec.Struct, frozen=True, gc=False, tag="not"):
    """It does not hold."""

    part: Condition


class Expr(msgspec.Struct, frozen=True, gc=False, tag="expr"):
    """What a rule's `expr` says, as it is written, and the attributes that it looks at. It may hold, or not, or nobody can say;
    what more there is to it `banksman.policy.expr` knows, and nothing that goes by the text of conditions.
    """

    text: str
    attributes: tuple[str, ...]


Condition = Comparison | All | Some | Not | Expr


class ConditionError(ValueError):
    """What is wrong with a condition; `path`: where, from the `when` on."""

    def __init__(self, message: str, path: tuple[str | int, ...]) -> None:
        super().__init__(message)
        self.path = path


def parse(written: Any, service: str | None) -> Condition:
    """What stands under `when`. ConditionError. `service`: whose custom resources follow; None: they were looked at before."""
    parser = _Parser(service)
    condition = parser.mapping(written, (), 0)
    if parser.tests > MAX_TESTS:
        raise ConditionError(f"holds more than {MAX_TESTS} comparisons", ())
    return condition


def plain(condition: Condition) -> dict[str, Any]:
    """The one way to write it; `parse` makes the same condition of it again."""
    match condition:
        case Comparison(attribute, op, Attr(name)):
            return {attribute: {op: {"attr": name}}}
        case Comparison(attribute, op, operand):
            return {attribute: {op: list(operand) if isinstance(operand, tuple) else operand}}
        case All(parts):
            return {"all": [plain(part) for part in parts]}
        case Some(parts):
            return {"any": [plain(part) for part in parts]}
        case Not(part):
            return {"not": plain(part)}
        case Expr(text):
            return {"expr": text}


def both(one: Condition | None, other: Condition | None) -> Condition | None:
    """That both hold."""
    parts = [part for part in (one, other) if part is not None]
    return _all(parts) if parts else None


def apart(condition: Condition | None) -> tuple[Condition | None, Expr | None]:
    """(what stands under `when`, what under `expr`) of a rule's condition."""
    if isinstance(condition, Expr):
        return None, condition
    parts = condition.parts if isinstance(condition, All) else ()
    expr = next((part for part in parts if isinstance(part, Expr)), None)
    return (condition, None) if expr is None else (_all([part for part in parts if part is not expr]), expr)


def comparisons(condition: Condition | None) -> Iterator[Comparison]:
    """Every comparison in it. Nobody looks into an `expr` for any."""
    match condition:
        case Comparison():
            yield condition
        case All(parts) | Some(parts):
            for part in parts:
                yield from comparisons(part)
        case Not(part):
            yield from comparisons(part)


def one_number(value: float) -> int | float:
    """5.0 and 5 are one number, and written as one. ValueError: JSON does not mean one thing by it."""
    whole = int(value) if value == int(value) else value
    if abs(whole) > MAX_INT:
        raise ValueError("is further from zero than numbers in JSON mean one thing (2^53 - 1)")
    return whole


def attributes_of(condition: Condition | None) -> Iterator[str]:
    """The attributes that a condition looks at; one may come again."""
    match condition:
        case Comparison(attribute, _, operand):
            yield attribute
            if isinstance(operand, Attr):
                yield operand.name
        case All(parts) | Some(parts):
            for part in parts:
                yield from attributes_of(part)
        case Not(part):
            yield from attributes_of(part)
        case Expr(_, attributes):
            yield from attributes


def moment(text: Any) -> float | None:
    """RFC 3339 with a zone -> seconds since 1970; None: it is not."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found.timestamp() if found.tzinfo is not None and "T" in text.upper() else None


class _Parser:
    def __init__(self, service: str | None) -> None:
        self._service = service
        self.tests = 0

    def mapping(self, written: Any, path: tuple[str | int, ...], depth: int) -> Condition:
        if not isinstance(written, dict) or not written:
            raise ConditionError("must be a mapping such as {args.amount: {lt: 500}}", path)
        if depth > MAX_DEPTH:
            raise ConditionError(f"is nested deeper than {MAX_DEPTH}", path)
        return _all([self._entry(key, value, (*path, key), depth) for key, value in written.items()])

    def _entry(self, key: str, value: Any, path: tuple[str | int, ...], depth: int) -> Condition:
        if key in {"all", "any"}:
            if not isinstance(value, list) or not value:
                raise ConditionError("must be a list of conditions", path)
            parts = [self.mapping(part, (*path, at), depth + 1) for at, part in enumerate(value)]
            return _all(parts) if key == "all" else _some(parts)
        if key == "not":
            return _not(self.mapping(value, path, depth + 1))
        wrong = bad_attribute(key)
        if wrong:
            raise ConditionError(wrong, path)
        return self._tested(key, value, path, depth)

    def _tested(self, attribute: str, value: Any, path: tuple[str | int, ...], depth: int) -> Condition:
        if not isinstance(value, dict):
            return self._test(attribute, "in" if isinstance(value, list) else "is", value, path)
        if not value:
            raise ConditionError("must say what is wanted, such as {lt: 500} or {in: [usd, eur]}", path)
        if depth > MAX_DEPTH:
            raise ConditionError(f"is nested deeper than {MAX_DEPTH}", path)
        found: list[Condition] = []
        allowed = _ops_of(attribute)
        for op, operand in value.items():
            here = (*path, op)
            if op not in allowed:
                known = ", ".join(sorted(allowed))
                raise ConditionError(f"is no comparison for {attribute}; there are {known}{nearest(op, allowed)}", here)
            if op == "not":
                found.append(_not(self._tested(attribute, operand, here, depth + 1)))
            else:
                found.append(self._test(attribute, op, operand, here))
        return _all(found)

    def _test(self, attribute: str, op: Any, operand: Any, path: tuple[str | int, ...]) -> Condition:
        self.tests += 1
        if op not in _ops_of(attribute):
            raise ConditionError(f"is compared by {', '.join(sorted(_ops_of(attribute)))}", path)
        if op == "exists":
            if not isinstance(operand, bool):
                raise ConditionError("must be true or false", path)
            there = Comparison(attribute, "exists", True)
            return there if operand else Not(there)
        if isinstance(operand, dict):
            return Comparison(attribute, op, self._attr(attribute, op, operand, path))
        if op in _ORDER:
            return Comparison(attribute, op, self._bound(attribute, operand, path))
        if op in {"in", "has", "glob", "during"}:
            return Comparison(attribute, op, self._several(attribute, op, operand, path))
        return Comparison(attribute, op, self._value(attribute, operand, path))

    def _attr(self, attribute: str, op: str, operand: dict[str, Any], path: tuple[str | int, ...]) -> Attr:
        name = operand.get("attr")
        if set(operand) != {"attr"} or not isinstance(name, str):
            raise ConditionError("is a value, or {attr: another attribute}", path)
        wrong = bad_attribute(name)
        if wrong:
            raise ConditionError(f"{name} {wrong}", path)
        if "time" in {name, attribute} or op in {"glob", "during"}:
            raise ConditionError("cannot be compared with another attribute", path)
        return Attr(name)

    def _bound(self, attribute: str, operand: Any, path: tuple[str | int, ...]) -> Scalar:
        if attribute == "time":
            if moment(operand) is None:
                raise ConditionError('must be a moment with its zone, such as "2026-12-19T18:00:00+01:00"', path)
            return str(operand)
        if isinstance(operand, bool) or not isinstance(operand, int | float):
            raise ConditionError("must be a number", path)
        return self._number(operand, path)

    def _number(self, value: float, path: tuple[str | int, ...]) -> int | float:
        try:
            return one_number(value)
        except ValueError as error:
            raise ConditionError(str(error), path) from None

    def _several(self, attribute: str, op: str, operand: Any, path: tuple[str | int, ...]) -> tuple[Scalar, ...]:
        values = operand if isinstance(operand, list) else [operand]
        if not values or len(values) > MAX_VALUES or (op == "in" and not isinstance(operand, list)):
            raise ConditionError(f"must be a list of one to {MAX_VALUES} values", path)
        for at, value in enumerate(values):
            here = (*path, at) if isinstance(operand, list) else path
            if op == "glob":
                self._pattern(attribute, value, here)
            elif op == "during" and not isinstance(value, str):
                raise ConditionError("must be the name of a schedule", here)
        if op in {"in", "has"}:
            values = [
                self._value(attribute, value, (*path, at) if isinstance(operand, list) else path)
                for at, value in enumerate(values)
            ]
        return tuple({(type(value).__name__, value): value for value in sorted(values, key=_by_type)}.values())

    def _pattern(self, attribute: str, value: Any, path: tuple[str | int, ...]) -> None:
        if not isinstance(value, str):
            raise ConditionError("must be a pattern", path)
        service = self._service if attribute == "resource" else ""
        wrong = None if service is None else bad_pattern(custom_of(attribute), service, value)
        if wrong:
            raise ConditionError(f"{value!r} {wrong}", path)

    def _value(self, attribute: str, value: Any, path: tuple[str | int, ...]) -> Scalar:
        if not isinstance(value, bool | int | float | str):
            raise ConditionError("must be text, a number, true or false", path)
        if attribute in WHOLE and not isinstance(value, str):
            raise ConditionError(f"must be text: {attribute} always is", path)
        wrong = None
        if attribute == "resource" and self._service is not None:
            wrong = bad_resource(self._service, str(value))
        elif attribute == "branch":
            wrong = bad_branch(str(value))
        if wrong:
            raise ConditionError(f"{value!r} {wrong}: it would never be met, since such operations are denied", path)
        if attribute in {"resource", "action", "agent"} and has_wildcard(str(value)):
            raise ConditionError(f"{value!r} holds a wildcard, and is compared as it stands: use glob", path)
        return value if isinstance(value, bool | str) else self._number(value, path)


def bad_attribute(name: str) -> str | None:
    """What is wrong with the name of an attribute, in words that follow it."""
    root, dot, _ = name.partition(".")
    if not _ATTRIBUTE(name):
        return "is no attribute: a root and what is in it, with dots between, such as args.amount"
    if root not in ROOTS:
        return f"is no attribute: they begin with {', '.join(ROOTS)}{nearest(root, ROOTS)}"
    if not dot and root not in WHOLE:
        return f"is no value: say what of it, such as {root}.amount"
    if dot and root in WHOLE - {"resource"}:
        return f"is no attribute: {root} is one value"
    return None


def custom_of(attribute: str) -> Custom:
    """Whose custom the patterns of an attribute follow."""
    return {"branch": Custom.BRANCH, "action": Custom.ACTION}.get(attribute, Custom.RESOURCE)


def _ops_of(attribute: str) -> set[str]:
    if attribute == "time":
        return _TIME_OPS
    return _TEXT_OPS if attribute in WHOLE else _ANY_OPS


def _all(parts: list[Condition]) -> Condition:
    flat = [inner for part in parts for inner in (part.parts if isinstance(part, All) else (part,))]
    return _one(flat) or All(_sorted(flat))


def _some(parts: list[Condition]) -> Condition:
    flat = [inner for part in parts for inner in (part.parts if isinstance(part, Some) else (part,))]
    return _one(flat) or Some(_sorted(flat))


def _one(parts: list[Condition]) -> Condition | None:
    distinct = _sorted(parts)
    return distinct[0] if len(distinct) == 1 else None


def _sorted(parts: list[Condition]) -> tuple[Condition, ...]:
    """Order and repetition mean nothing."""
    return tuple(part for _, part in sorted({msgspec.json.encode(part): part for part in parts}.items()))


def _by_type(value: Scalar) -> tuple[str, Scalar]:
    return type(value).__name__, value


def _not(part: Condition) -> Condition:
    return part.part if isinstance(part, Not) else Not(part)
