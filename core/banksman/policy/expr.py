"""`expr:` - a condition in CEL, the Common Expression Language, for what `when` cannot say: arithmetic, all or some of a list.

    expr: "args.amount * 2 < 500 && resource.startsWith('a')"
    expr: "args.items.all(item, item.price < 100 && item.currency in ['usd', 'eur'])"

It is put into a strict form of itself, and that is what is worked out (`banksman.policy.cel`):

* each attribute is a variable of its own, found as `when` finds it, so that null and what is missing are the same, and nothing
  is passed that the expression does not name;
* `==`, `!=` and `in` compare values of one kind, or cannot be worked out. CEL says a plain no to `["prod"] == "prod"`: whoever
  writes the arguments could walk around a rule by that. No kind of value has an order with another, so asking for the order
  first does it; it also leaves no number that is none (0 / 0) on any side of a bound;
* numbers are of one kind, as in JSON: whoever writes 2.5 for 2 would else make `args.price * 3` a thing that nobody can say;
* `all`, `exists`, `exists_one` and `in` go through lists. CEL takes a mapping's keys as well, in which a value is hidden well.
  Nothing but a list can be put together with a list, so that does it. The keys of `args` itself can be asked for.

What CEL has besides is refused: other functions (`map` and `filter` take the square of a list's length), lists within lists,
regular expressions that are not written in the policy.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

from banksman.canonical import MAX_INT
from banksman.policy.conditions import ROOTS, WHOLE, bad_attribute
from banksman.policy.expr_text import ExprError, Group, Item, Word, read, split, words
from banksman.policy.nearest import nearest
from banksman.policy.normal import fold_action

MAX_ATTRIBUTES, MAX_STRICT = 32, 20_000
TIME, NOBODY = "__time", "__nobody"
"""The one variable that is known to be a moment; and one that nothing is ever given for: what needs it cannot be worked out."""

Kind = Literal["is", "text", "any"]
EQUAL, ORDER = frozenset({"==", "!="}), frozenset({"<", "<=", ">", ">="})
_BETWEEN = frozenset({"&&", "||", "?", ":", ","})
_MACROS = frozenset({"all", "exists", "exists_one"})
_METHODS = frozenset({"startsWith", "endsWith", "contains", "matches", "size"})
_FUNCTIONS = frozenset({"has", "size", "int", "double", "timestamp", "duration"})


class Variable(NamedTuple):
    """One variable of the strict form. `exists`: it is whether there is such an attribute, not the attribute."""

    name: str
    attribute: str
    exists: bool


class Strict(NamedTuple):
    """The strict form. `patterns`: the regular expressions in it, `texts`: all texts, as they are written."""

    cel: str
    variables: tuple[Variable, ...]
    patterns: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def attributes(self) -> tuple[str, ...]:
        """What it looks at, in order."""
        return tuple(dict.fromkeys(one.attribute for one in self.variables))


@lru_cache(1024)
def strict(text: str) -> Strict:
    """ExprError: it is not what a policy may say. What is no CEL at all may pass; `banksman.policy.cel` refuses that."""
    items = read(text)
    made = _Strict(items)
    said = made.whole(items, frozenset(), within=False)
    if not made.variables:
        raise ExprError("looks at no attribute, so that it always says the same")
    if len(said) > MAX_STRICT:
        raise ExprError("is too complicated: write less of it, or the lists of values under `when`")
    texts = tuple(word.said for word in words(items) if word.kind == "text")
    return Strict(said, tuple(made.variables.values()), tuple(made.patterns), texts)


def never_an_action(text: str, service: str) -> str | None:
    """Why what an expression says about `action` would never be found there; None: it may be. Actions are folded before they
    are looked at, and what a text in it is compared with nobody knows before it runs, as `when` does.
    """
    found = strict(text)
    if "action" not in found.attributes:
        return None
    wrong = next((said for said in found.texts if fold_action(service, said) != said), None)
    if wrong is None:
        return None
    instead = "" if "\\" in wrong else f"write {fold_action(service, wrong)}, or "
    return (
        f"looks at `action`, which is folded as {service}'s actions are, and {wrong} is not: {instead}say it under `actions`, "
        "or in `when`, which folds it"
    )


class _Strict:
    def __init__(self, items: tuple[Item, ...]) -> None:
        self.variables: dict[tuple[str, bool], Variable] = {}
        self.patterns: list[str] = []
        self._each = 0
        self._may_be_no_number = _computes(items)

    def whole(self, items: tuple[Item, ...], bound: frozenset[str], *, within: bool) -> str:
        """What stands between two brackets. `bound`: names of members of lists; `within`: already within a list."""
        parts, between = split(items, _BETWEEN)
        told = [self._compared(part, bound, within=within) for part in parts]
        return told[0] + "".join(f" {sign} {part}" for sign, part in zip(between, told[1:], strict=True))

    def _compared(self, items: tuple[Item, ...], bound: frozenset[str], *, within: bool) -> str:
        sides, signs = split(items, EQUAL | ORDER | {"in"})
        if len(signs) > 1:
            second = [one for one in items if isinstance(one, Word) and one.said in signs][1]
            raise ExprError("two comparisons follow each other: put one of them in brackets", second.at)
        left = self._value(sides[0], bound, within=within)
        if not signs:
            return left
        if signs[0] == "in":
            return self._among(left, sides[1], bound, within=within)
        return self._strictly(left, signs[0], self._value(sides[1], bound, within=within))

    def _strictly(self, left: str, sign: str, right: str) -> str:
        if sign in ORDER and not self._may_be_no_number:
            return f"{left} {sign} {right}"
        return f"(({left} <= {right} || {left} >= {right}) ? ({left} {sign} {right}) : {NOBODY})"

    def _among(self, left: str, of: tuple[Item, ...], bound: frozenset[str], *, within: bool) -> str:
        if len(of) == 1 and isinstance(of[0], Group) and of[0].opens == "[":
            values, _ = split(of[0].inner, frozenset({","}))
            if values == [()]:
                raise ExprError("nothing is in an empty list", of[0].at)
            told = [f"({self.whole(value, bound, within=within)})" for value in values]
            return f"({' || '.join(self._strictly(left, '==', value) for value in told)})"
        self._each += 1
        name = f"__each_{self._each}"
        several = self._value(of, bound, within=within)
        found = f"{self._list(several)}.exists({name}, {self._strictly(name, '==', left)})"
        return f"(({left} <= {left} || {left} >= {left}) ? {found} : {NOBODY})"  # an empty list would ask for nothing of it

    def _list(self, several: str) -> str:
        every = self.variables.get(("args", False))
        return several if every is not None and several == every.name else f"({several} + [])"

    def _value(self, items: tuple[Item, ...], bound: frozenset[str], *, within: bool) -> str:
        said, at, begins = list[str](), 0, 0
        while at < len(items):
            item, after = items[at], items[at + 1] if at + 1 < len(items) else None
            arguments = after if isinstance(after, Group) and after.opens == "(" else None
            goes_on = at > 0 and (_is_dot(items[at - 1]) or (isinstance(item, Group) and _is_value(items[at - 1])))
            if not (goes_on or _is_dot(item)):
                begins = len(said)  # of what a method is called of
            if isinstance(item, Group):
                said.append(_in_brackets(item, self.whole(item.inner, bound, within=within)))
                if (
                    goes_on and item.opens == "["
                ):  # else the checker takes what it gives for a whole number, as in 1.0 - l[0]
                    said[begins:] = [f"dyn({' '.join(said[begins:])})"]
            elif item.kind == "number":
                said.append(_number(item))
            elif item.said == "%":
                raise ExprError("% is of whole numbers, and numbers here may have a fraction, as in JSON", item.at)
            elif item.kind != "name":
                said.append(item.said)
            elif at and _is_dot(items[at - 1]):
                if arguments is None:
                    said.append(item.said)  # of a member of a list, or of what an index gives
                else:
                    if item.said in _MACROS:
                        said[begins:] = [self._list(" ".join(said[begins:-1])), "."]
                    said.append(self._method(item, arguments, bound, within=within))
                    if item.said == "size":
                        said[begins:] = [f"double({' '.join(said[begins:])})"]
                    at += 1
            elif arguments is not None:
                said.append(self._function(item, arguments, bound, within=within))
                at += 1
            elif item.said in {"true", "false"} or item.said in bound:
                said.append(item.said)
            else:
                name, used = _path(items[at:])
                said.append(self._attribute(name, item.at))
                at += used - 1
            at += 1
        return " ".join(said)

    def _method(self, name: Word, arguments: Group, bound: frozenset[str], *, within: bool) -> str:
        if name.said in _MACROS:
            return self._macro(name, arguments, bound, within=within)
        if name.said not in _METHODS:
            raise ExprError(_no_function(name.said, _METHODS | _MACROS), name.at)
        if name.said == "matches":
            if (
                len(arguments.inner) != 1
                or not isinstance(arguments.inner[0], Word)
                or arguments.inner[0].kind != "text"
            ):
                raise ExprError("matches: the pattern must stand in the policy, as one text", arguments.at)
            self.patterns.append(arguments.inner[0].said)
        return f"{name.said}({self.whole(arguments.inner, bound, within=within)})"

    def _macro(self, name: Word, arguments: Group, bound: frozenset[str], *, within: bool) -> str:
        if within:
            raise ExprError(f"{name.said} within another one: lists within lists are not gone through", name.at)
        one, *rest = arguments.inner or (None,)
        comma = rest[0] if len(rest) > 1 else None
        # `all(x && …)` is a call with one argument, which the parser lets pass
        if not isinstance(one, Word) or one.kind != "name" or not isinstance(comma, Word) or comma.said != ",":
            raise ExprError(f"{name.said}: write .{name.said}(one, what holds of one)", name.at)
        if one.said in ROOTS or one.said.startswith("__"):
            raise ExprError(f"{one.said} cannot be the name of a member of a list", one.at)
        told = self.whole(tuple(rest[1:]), bound | {one.said}, within=True)
        return f"{name.said}({one.said}, {told})"

    def _function(self, name: Word, arguments: Group, bound: frozenset[str], *, within: bool) -> str:
        if name.said not in _FUNCTIONS:
            raise ExprError(_no_function(name.said, _FUNCTIONS), name.at)
        inner = arguments.inner
        if name.said == "has" and inner and isinstance(inner[0], Word) and inner[0].said not in bound:
            path, used = _path(inner)
            if used == len(inner):
                return self._attribute(path, inner[0].at, exists=True)
        told = f"{name.said}({self.whole(inner, bound, within=within)})"
        return f"double({told})" if name.said in {"size", "int"} else told

    def _attribute(self, name: str, at: int, *, exists: bool = False) -> str:
        wrong = None if name == "args" and not exists else bad_attribute(name)
        if name == "null":
            raise ExprError("null is as if it was left out: ask has(args.amount)", at)
        if wrong:
            raise ExprError(f"{name} {wrong}", at)
        known = self.variables.get((name, exists))
        if known is None:
            if len(self.variables) >= MAX_ATTRIBUTES:
                raise ExprError(f"looks at more than {MAX_ATTRIBUTES} attributes", at)
            kind: Kind = "is" if exists else "text" if name in WHOLE else "any"
            known = Variable(TIME if name == "time" else variable(kind, len(self.variables)), name, exists)
            self.variables[name, exists] = known
        return known.name


def variable(kind: Kind, number: int) -> str:
    """What the variables of strict forms are called: whether there is an attribute, what always is text, and all else."""
    return f"__{kind}_{number}"


def _path(items: tuple[Item, ...]) -> tuple[str, int]:
    """The attribute that begins here, and how many words it takes: what is called is no part of it."""
    names, used = list[str](), 0
    while used < len(items):
        item, after = items[used], items[used + 1] if used + 1 < len(items) else None
        if (
            not isinstance(item, Word)
            or item.kind != "name"
            or (names and isinstance(after, Group) and after.opens == "(")
        ):
            return ".".join(names), max(0, used - 1)
        names.append(item.said)
        if after is None or not _is_dot(after):
            return ".".join(names), used + 1
        used += 2
    return ".".join(names), used


def _is_dot(item: Item) -> bool:
    return isinstance(item, Word) and item.said == "."


def _is_value(item: Item) -> bool:
    """Whether brackets that follow it are an index, or what it is called with."""
    return isinstance(item, Group) or item.kind != "sign"


def _in_brackets(group: Group, inner: str) -> str:
    return f"({inner})" if group.opens == "(" else f"[{inner}]"


def _number(word: Word) -> str:
    said = word.said.lower()
    value = int(said, 16) if said.startswith("0x") else float(said) if set(said) & set(".e") else int(said)
    if value > MAX_INT:
        raise ExprError("is further from zero than numbers in JSON mean one thing (2^53 - 1)", word.at)
    return said if isinstance(value, float) else f"{value}.0"


def _computes(items: tuple[Item, ...]) -> bool:
    """Whether a number that is none can come of it: attributes are none of those."""
    told = words(items)
    return any((one.kind == "sign" and one.said in {"+", "-", "*", "/"}) or one.said == "double" for one in told)


def _no_function(name: str, known: frozenset[str]) -> str:
    return f"{name} is no function here; there are {', '.join(sorted(known))}{nearest(name, known)}"
