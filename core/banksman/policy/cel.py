"""What works an `expr:` out: `cel-expr-python`, Google's evaluator, behind the extra `cel`. The only file that imports it.

The evaluator is taken at its word where tests hold it to that (tests/policy/test_cel.py), and is not given what it is known to
get wrong or to be slow with: text with a NUL in it, which it reads only up to there; whole numbers that JSON has no one meaning
for; values nested so deeply that comparing them ends the process; more than so much of anything. Such an attribute counts as
one that nobody can say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from banksman.canonical import MAX_DEPTH, MAX_INT
from banksman.policy.conditions import ConditionError
from banksman.policy.expr import MAX_ATTRIBUTES, NOBODY, TIME, Kind, Strict, strict, variable
from banksman.policy.expr_text import ExprError

MAX_GIVEN, MAX_TEXT = 256, 16_384
"""Values in one attribute, and characters of all its text and keys, that an expression goes through."""

INSTALL = "expr needs an evaluator of CEL, which is not installed: pip install 'banksman[cel]'"
_UNFIT = object()
_STATUS = re.compile(r"^[A-Z_]+: | \[[A-Z_]+\]$")
_MISSING = re.compile(r'No value with name "(__\w+)"')
_COMPARED = re.compile(r"overload for '_(?:[<>]=?)_' applied to '\((.*)\)'")
_EXPECTING, _CONTAINER = re.compile(r" expecting \{.*$"), re.compile(r" \(in container ''\)$")
_TOO_DEEP = "it is too complicated: its parts are nested too deeply"
_SAID = re.compile(r"<input>:(-?\d+):(-?\d+): (.*)")


class Told(NamedTuple):
    """Whether an expression holds; None: nobody can say, and `why`."""

    truth: bool | None
    why: str


class Program:
    """An expression that is ready to be asked. Never changes."""

    __slots__ = ("_compiled", "strict")

    def __init__(self, of: Strict, compiled: Any) -> None:
        self.strict, self._compiled = of, compiled

    def ask(self, values: Mapping[str, Any]) -> Told:
        """`values`: by the names of the strict form's variables, without those that there are not. Never raises for what is in
        them; takes milliseconds, or 130 where its author adds up texts for each member of a list (docs/decisions/0095).
        """
        given = {name: value for name, of in values.items() if (value := _fit(of)) is not _UNFIT}
        try:
            found = self._compiled.eval(data=given).value()
        except RuntimeError as error:  # more steps than it takes: 10,000 members of lists
            return Told(None, self._why(str(error)))
        if found is True or found is False:
            return Told(found, "")
        return Told(None, self._why(found) if isinstance(found, str) else "it is not true or false")

    def _why(self, error: str) -> str:
        """The evaluator's reason in the author's words."""
        missing = _MISSING.search(error)
        if missing is None:
            return _STATUS.sub("", error).strip()
        named = next((one.attribute for one in self.strict.variables if one.name == missing[1]), None)
        return "it compares what is no number" if named is None else f"nobody can say what {named} is"


@lru_cache(4096)
def compiled(text: str) -> Program:
    """ConditionError: what is wrong with it, or that there is no evaluator."""
    try:
        of = strict(text)
    except ExprError as error:
        raise ConditionError(str(error), ()) from None
    environment = _environment()
    _parse(environment, text)
    made = _compile(environment, of.cel)
    kind = made.return_type().name()
    if kind not in {"BOOL", "DYN"}:
        raise ConditionError(f"must be true or false, and it is {kind.lower()}", ())
    for pattern in of.patterns:
        said = _compile(environment, f"''.matches({pattern})").eval(data={}).value()
        if not isinstance(said, bool):
            raise ConditionError(f"{pattern} is no regular expression (RE2): {said}", ())
    return Program(of, made)


def _library() -> Any:
    try:
        from cel_expr_python import cel
    except ImportError:
        raise ConditionError(INSTALL, ()) from None
    return cel


@lru_cache(1)
def _environment() -> Any:
    """One for all: strict forms have the same names for their variables."""
    cel = _library()
    kinds: dict[Kind, Any] = {"is": cel.Type.BOOL, "text": cel.Type.STRING, "any": cel.Type.DYN}
    names = {variable(kind, number): of for kind, of in kinds.items() for number in range(MAX_ATTRIBUTES)}
    return cel.NewEnv(variables=names | {NOBODY: cel.Type.BOOL, TIME: cel.Type.TIMESTAMP})


def _parse(environment: Any, text: str) -> None:
    """The author's own words, for the places of what is wrong. Names were looked at before, kinds are in the strict form."""
    try:
        environment.compile(text, disable_check=True)
    except RuntimeError as error:
        if "recursion" in str(error):
            raise ConditionError(_TOO_DEEP, ()) from None
        said = _SAID.search(str(error))
        where = f"at {said[1]}:{said[2]}: {_EXPECTING.sub('', said[3])}" if said is not None else str(error)
        raise ConditionError(where, ()) from None


def _compile(environment: Any, strict_form: str) -> Any:
    try:
        return environment.compile(strict_form)
    except RuntimeError as error:
        raise ConditionError(_in_words(str(error)), ()) from None


def _in_words(error: str) -> str:
    """What is wrong with the kinds of what is put together. The places that the checker names are those of the strict form."""
    if "recursion" in error:
        return _TOO_DEEP
    compared = _COMPARED.search(error)
    if compared is not None and ("list(" in compared[1] or "map(" in compared[1]):
        return "lists and mappings cannot be compared: use in, all or exists"
    if compared is not None:
        return f"compares what is of two kinds: {compared[1]}"
    said = _SAID.search(error)
    return _CONTAINER.sub("", said[3]) if said is not None else error.strip()


def _fit(value: Any) -> Any:
    """The value as the evaluator gets it; _UNFIT: it does not."""
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT and "\0" not in value and _is_unicode(value) else _UNFIT
    if isinstance(value, bool | datetime):
        return value
    if isinstance(value, int | float):
        return _one_number(value)
    return _Fitting().one(value, 0)


class _Fitting:
    def __init__(self) -> None:
        self._values = self._text = 0

    def one(self, value: Any, depth: int) -> Any:
        self._values += 1
        if self._values > MAX_GIVEN or depth > MAX_DEPTH:
            return _UNFIT
        if isinstance(value, str):
            self._text += len(value)
            return value if self._text <= MAX_TEXT and "\0" not in value and _is_unicode(value) else _UNFIT
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            return _one_number(value)
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        if not isinstance(value, list | tuple):
            return _UNFIT
        found = []
        for part in value:
            fit = self.one(part, depth + 1)
            if fit is _UNFIT:
                return _UNFIT
            found.append(fit)
        return found

    def _mapping(self, value: Mapping[Any, Any], depth: int) -> Any:
        found = {}
        for key, part in value.items():
            if not isinstance(key, str) or self.one(key, depth) is _UNFIT:
                return _UNFIT
            fit = self.one(part, depth + 1)
            if fit is _UNFIT:
                return _UNFIT
            if fit is not None:  # null is as if it was left out
                found[key] = fit
        return found


def _one_number(value: float) -> Any:
    """All numbers are of one kind, and 0 and -0 are one, by which one can divide to either side."""
    return float(value) + 0.0 if abs(value) <= MAX_INT else _UNFIT  # beyond it 1e17 + 7 is 1e17; NaN is within nothing


def _is_unicode(text: str) -> bool:
    """Lone surrogates are in no UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def moment_of(seconds: float) -> datetime:
    """The time, as expressions see it."""
    return datetime.fromtimestamp(seconds, UTC)
