"""Globs: what a pattern means, and the cheapest way to ask whether a value matches.

* Paths (repositories, branches, files, hosts, everything that is no ARN): `*` and `?` stay inside one `/` segment, `**`
  crosses segments, and `**/` at the start of a segment is any number of whole segments, none included (as on GitHub).
* ARNs: six parts; wildcards stay inside a part, and in the sixth they match everything (as in AWS IAM).
* Actions: `*` and `?` match everything.

There are no sets, alternatives, negations or escapes; a pattern that seems to use one is refused, because a `never`
that reads like a set and matches nothing would be worse than no rule. Most patterns become plain string operations;
the rest go to RE2, which takes time linear in the value whatever the pattern.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from functools import lru_cache

import re2

from banksman.policy.normal import bad_branch, bad_resource, bad_text

Matcher = Callable[[str], object]
"""Truthy when the value matches."""

MAX_WILDCARDS = 16


class Custom(enum.Enum):
    """Whose custom a pattern follows. ARNs are told by their first four characters."""

    RESOURCE = "resource"
    BRANCH = "branch"
    ACTION = "action"


class Wild(enum.Enum):
    """A wildcard, by the regular expression that it is."""

    ONE = "[^/]"
    MANY = "[^/]*"
    ONE_IN_PART = "[^:]"
    MANY_IN_PART = "[^:]*"
    ONE_OF_ALL = "."
    ALL = ".*"
    DIRECTORIES = "(?:.*/)?"

    def takes(self, char: str) -> bool:
        """Whether one character may stand in its place, or be one of those that do."""
        return not self.value.startswith(f"[^{char}]")

    @property
    def may_be_nothing(self) -> bool:
        """Whether it also stands for no character at all."""
        return self in {Wild.MANY, Wild.MANY_IN_PART, Wild.ALL, Wild.DIRECTORIES}


def bad_pattern(custom: Custom, service: str, pattern: str) -> str | None:
    """What is wrong with a pattern, in words that follow it; None when nothing is."""
    if custom is Custom.RESOURCE:
        wrong = bad_resource(service, pattern, pattern=True)
    else:
        wrong = bad_branch(pattern, pattern=True) if custom is Custom.BRANCH else bad_text(pattern)
    if wrong:
        return f"{wrong}: it would never match, since such operations are denied as not_canonical"
    if pattern.startswith("!"):
        return "begins with !, which is no negation here; put what is forbidden under `never`"
    for char in "[]{}":
        if char in pattern:
            return f"holds {char}, which is no set or alternative here; list the patterns, or write ? for one character"
    if "***" in pattern:
        return "holds ***; write * or **"
    if pattern.count("*") + pattern.count("?") > MAX_WILDCARDS:
        return f"holds more than {MAX_WILDCARDS} wildcards"
    return None


def has_wildcard(pattern: str) -> bool:
    return "*" in pattern or "?" in pattern


def matches_name(pattern: str, name: str) -> bool:
    """Whether a pattern of agents' names matches one. They have no segments."""
    return bool(compile_patterns(Custom.ACTION, "", (pattern,))(name))


@lru_cache(maxsize=16384)
def compile_patterns(custom: Custom, service: str, patterns: tuple[str, ...]) -> Matcher:
    """One matcher for a list of patterns that `bad_pattern` has nothing against."""
    exact: set[str] = set()
    prefixes: list[str] = []
    others: list[Matcher] = []
    for pattern in patterns:
        tokens = tokens_of(custom, service, pattern)
        match tokens:
            case [Wild.ALL]:
                return _anything
            case [str(literal)]:
                exact.add(literal)
            case [str(literal), Wild.ALL]:
                prefixes.append(literal)
            case _:
                others.append(_matcher(tokens))
    return _any_of(exact, tuple(prefixes), others)


def _anything(_value: str) -> bool:
    return True


def tokens_of(custom: Custom, service: str, pattern: str) -> list[str | Wild]:
    """A pattern as literals (joined) and wildcards."""
    if custom is Custom.ACTION or (custom is Custom.RESOURCE and service == "aws" and pattern == "*"):
        # In IAM a lone * as the resource is everything; as a path it would not even match a key in a bucket.
        return _joined(pattern, 0, one=Wild.ONE_OF_ALL, many=Wild.ALL, all_=Wild.ALL)
    if custom is Custom.RESOURCE and pattern.startswith("arn:"):
        head = ":".join(pattern.split(":", 5)[:5]) + ":"
        first = _joined(head, 0, one=Wild.ONE_IN_PART, many=Wild.MANY_IN_PART, all_=Wild.MANY_IN_PART)
        rest = _joined(pattern, len(head), one=Wild.ONE_OF_ALL, many=Wild.ALL, all_=Wild.ALL)
        if rest and isinstance(rest[0], str) and isinstance(first[-1], str):
            return [*first[:-1], first[-1] + rest[0], *rest[1:]]
        return first + rest
    return _joined(pattern, 0, one=Wild.ONE, many=Wild.MANY, all_=Wild.ALL, directories=True)


def _joined(
    pattern: str, start: int, *, one: Wild, many: Wild, all_: Wild, directories: bool = False
) -> list[str | Wild]:
    found: list[str | Wild] = []
    at = literal = start
    while at < len(pattern):
        if pattern[at] not in "*?":
            at += 1
            continue
        if literal < at:
            found.append(pattern[literal:at])
        if directories and pattern.startswith("**/", at) and (at == 0 or pattern[at - 1] == "/"):
            found.append(Wild.DIRECTORIES)
            at += 3
        elif pattern.startswith("**", at):
            found.append(all_)
            at += 2
        else:
            found.append(one if pattern[at] == "?" else many)
            at += 1
        literal = at
    if literal < at:
        found.append(pattern[literal:])
    return found


def _matcher(tokens: Sequence[str | Wild]) -> Matcher:
    wild = [token for token in tokens if isinstance(token, Wild)]
    if wild == [Wild.MANY]:
        return _one_star(tokens)
    if all(token is Wild.ALL for token in wild):
        return _only_all(tokens)
    source = "".join(token.value if isinstance(token, Wild) else re2.escape(token) for token in tokens)
    options = re2.Options()
    options.log_errors = False
    matches: Matcher = re2.compile(f"(?s){source}", options).fullmatch
    return matches


# What the matchers below need is bound as defaults, not closed over: one tuple next to the function instead of a cell
# for each. With 10,000 agents' patterns in memory, that is what a decision waits for.


def _one_star(tokens: Sequence[str | Wild]) -> Matcher:
    """`a*b`, the star inside one segment: the commonest of all (`feature/*`, `*.csv`)."""
    before, after = _ends(tokens)

    def prefix(value: str, before: str = before, start: int = len(before)) -> bool:
        return value.startswith(before) and value.find("/", start) < 0

    def star(value: str, before: str = before, after: str = after) -> bool:
        end = len(value) - len(after)
        return (
            len(before) <= end
            and value.startswith(before)
            and value.endswith(after)
            and value.find("/", len(before), end) < 0
        )

    return star if after else prefix


def _only_all(tokens: Sequence[str | Wild]) -> Matcher:
    """Literals with wildcards between them that match everything: each literal at its first place is enough."""
    before, after = _ends(tokens)
    inner = tuple(token for token in tokens[bool(before) : len(tokens) - bool(after)] if isinstance(token, str))

    def crossing(value: str, before: str = before, inner: tuple[str, ...] = inner, after: str = after) -> bool:
        at, end = len(before), len(value) - len(after)
        if at > end or not value.startswith(before) or not value.endswith(after):
            return False
        for literal in inner:
            at = value.find(literal, at, end)
            if at < 0:
                return False
            at += len(literal)
        return True

    return crossing


def _ends(tokens: Sequence[str | Wild]) -> tuple[str, str]:
    """The literals that the pattern begins and ends with, or ""."""
    first, last = tokens[0], tokens[-1]
    return first if isinstance(first, str) else "", last if isinstance(last, str) else ""


def _any_of(exact: set[str], prefixes: tuple[str, ...], others: list[Matcher]) -> Matcher:
    found = list(others)
    if prefixes:

        def begins(value: str, prefixes: tuple[str, ...] = prefixes) -> bool:
            return value.startswith(prefixes)

        found.insert(0, begins)
    if exact:
        found.insert(0, next(iter(exact)).__eq__ if len(exact) == 1 else frozenset(exact).__contains__)
    if len(found) == 1:
        return found[0]

    def either(value: str, first: Matcher = found[0], second: Matcher = found[1]) -> object:
        return first(value) or second(value)

    def some(value: str, found: tuple[Matcher, ...] = tuple(found)) -> bool:
        return any(matches(value) for matches in found)

    return either if len(found) == 2 else some
