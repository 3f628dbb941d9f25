"""The text of an `expr:` as words, and brackets with what is in them: as much of CEL as a policy may use, and where it stands.

What is not read here is refused at load, so that nothing reaches the evaluator that was not looked at: no bytes, no unsigned
numbers, no mappings or messages, no text in three quotes. (The grammar: cel-spec, doc/langdef.md.)
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

MAX_EXPR, MAX_BRACKETS = 1000, 12

_WORD = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    |(?P<text>[rR]?(?:"[^"\\\n]*"|'[^'\\\n]*')|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[rR](?:"[^"\n]*"|'[^'\n]*'))
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<number>0[xX][0-9a-fA-F]+|(?:[0-9]+\.[0-9]+|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+|[0-9]+)
    |(?P<sign>&&|\|\||[=!<>]=|[<>!?:+\-*/%.,()\[\]])""",
    re.VERBOSE,
).match
_OF_OTHERS = {"and": "&&", "or": "||", "not": "!", "None": "has(…)"}
_CLOSES = {"(": ")", "[": "]"}


class ExprError(ValueError):
    """What is wrong with an expression; `at`: with which of its characters, from 0."""

    def __init__(self, message: str, at: int | None = None) -> None:
        super().__init__(message if at is None else f"at character {at + 1}: {message}")


class Word(NamedTuple):
    """One word. `in` is a sign, as it is one in CEL."""

    kind: Literal["name", "number", "text", "sign"]
    said: str
    at: int


class Group(NamedTuple):
    """What stands in a pair of brackets. `opens`: the first of the pair."""

    opens: str
    inner: tuple[Item, ...]
    at: int


Item = Word | Group


def read(text: str) -> tuple[Item, ...]:
    """ExprError."""
    if len(text) > MAX_EXPR:
        raise ExprError(f"is longer than {MAX_EXPR} characters")
    open_: list[tuple[str, int, list[Item]]] = [("", 0, [])]
    for word in _words(text):
        sign = word.said if word.kind == "sign" else ""
        if sign in _CLOSES:
            if len(open_) > MAX_BRACKETS:
                raise ExprError(f"brackets are nested deeper than {MAX_BRACKETS}", word.at)
            open_.append((sign, word.at, []))
        elif sign in {")", "]"}:
            opens, at, inner = open_.pop()
            if _CLOSES.get(opens) != sign:
                raise ExprError(f"{sign} closes nothing", word.at)
            open_[-1][2].append(Group(opens, tuple(inner), at))
        else:
            open_[-1][2].append(word)
    opens, at, inner = open_.pop()
    if opens:
        raise ExprError(f"{opens} is never closed", at)
    return tuple(inner)


def _words(text: str) -> list[Word]:
    found, at, ended = list[Word](), 0, -1
    while at < len(text):
        read_ = _WORD(text, at)
        if read_ is None:
            raise ExprError(f"{text[at]!r} has no place in an expression here", at)
        kind, said = str(read_.lastgroup), read_[0]
        if kind != "space":
            if ended == at and found[-1].kind in {"text", "number", "name"} and kind in {"text", "number", "name"}:
                raise ExprError(
                    f"{found[-1].said}{said} is no one word: no bytes, unsigned numbers or triple quotes", at
                )
            if said in _OF_OTHERS and not (found and found[-1].said == "."):
                raise ExprError(f"write {_OF_OTHERS[said]} for {said}", at)
            if kind == "name" and said == "in":
                kind = "sign"
            found.append(Word(kind, said, at))  # type: ignore[arg-type]
            ended = read_.end()
        at = read_.end()
    return found


def split(items: tuple[Item, ...], signs: frozenset[str]) -> tuple[list[tuple[Item, ...]], list[str]]:
    """What stands between the signs, and the signs."""
    parts, between = [list[Item]()], list[str]()
    for item in items:
        if isinstance(item, Word) and item.kind == "sign" and item.said in signs:
            between.append(item.said)
            parts.append([])
        else:
            parts[-1].append(item)
    return [tuple(part) for part in parts], between


def words(items: tuple[Item, ...]) -> list[Word]:
    """All of them, those in brackets too."""
    return [word for item in items for word in (words(item.inner) if isinstance(item, Group) else [item])]
