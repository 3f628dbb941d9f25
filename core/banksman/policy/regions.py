"""All values there are, sorted by which of some patterns match them, each sort with an example.

Patterns are regular, so all of them together are one automaton: read a value, and where it ends says which match. Every set of
patterns that any value ends in is found by going through that automaton once (the subset construction of M. O. Rabin and
D. Scott, "Finite automata and their decision problems", 1959). What is not found there, no operation can reach: that makes
`policy lint` and `policy diff` proofs and not guesses.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from banksman.policy.globs import Custom, Wild, compile_patterns, tokens_of
from banksman.policy.normal import bad_branch, bad_resource, bad_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MAX_WORK = 1_000_000
"""Steps of patterns; a second or two. Beyond, a set of patterns is too much to go through; whoever asks says so."""

_OTHERS = "xyzwvqjk7"
"""What a character that no pattern names is shown as."""


class TooMany(Exception):
    """So many patterns, with so many wildcards, that they were not gone through."""


class Sort(NamedTuple):
    """Values that the same patterns match: the numbers of these, and one such value."""

    matched: frozenset[int]
    example: str


_BEGIN = "^"
"""Of the segment of nothing yet: a state of its own, since nothing is no value."""

_Place = tuple[int, int, bool]
"""(pattern, element, inside): `inside` of a `**/` that has taken something, so that it has to end in a slash."""


def sorts(custom: Custom, service: str, patterns: Sequence[str]) -> list[Sort]:
    """Every sort of values, the one that nothing matches included if there is any. TooMany."""
    programs = [list(_elements(tokens_of(custom, service, pattern))) for pattern in patterns]
    no_slash_after = {"/", "/.", "/.."} | ({_BEGIN} if custom is Custom.BRANCH else set())
    literals = {element for program in programs for element in program if isinstance(element, str)}
    other = next(char for char in _OTHERS + "".join(map(chr, range(0x4E00, 0x9000))) if char not in literals)
    # An ARN's keys, and what a URL begins with, have slashes that follow each other.
    paths = custom is not Custom.ACTION and service != "aws"
    paths = paths and not any(one.startswith("arn:") or "://" in one for one in patterns)
    start = _closed(programs, ((number, 0, False) for number in range(len(programs)))), _BEGIN
    seen: dict[tuple[frozenset[_Place], str], str] = {start: ""}
    waiting, work = deque([start]), 0
    found: dict[frozenset[int], str] = {}
    while waiting:
        state = waiting.popleft()
        places, segment = state
        value = seen[state]
        if value:
            matched = frozenset(number for number, at, inside in places if at == len(programs[number]) and not inside)
            if matched not in found or not is_asked(custom, service, found[matched]):
                found[matched] = value
        chars = (other, *sorted(_next(programs, places) | {"/", ":"} - {other}))
        work += len(places) * len(chars)
        if work > MAX_WORK:
            raise TooMany(f"{len(patterns)} patterns")
        for char in chars:
            if char == "/" and segment in no_slash_after:
                continue  # no operation is spelled so
            after = _step(programs, places, char), (_segment(segment, char) if paths else "")
            if after not in seen:
                seen[after] = value + char
                waiting.append(after)
    return [Sort(matched, _better(custom, service, patterns, matched, value)) for matched, value in found.items()]


def is_asked(custom: Custom, service: str, value: str) -> bool:
    """Whether an operation can name it so: anything else is denied before any rule is looked at."""
    if custom is Custom.ACTION:
        return bad_text(value) is None
    return (bad_branch(value) if custom is Custom.BRANCH else bad_resource(service, value)) is None


def _better(custom: Custom, service: str, patterns: Sequence[str], matched: frozenset[int], value: str) -> str:
    """One of the same sort that can be asked, if a longer one can: the shortest may end too early (`arn:aws::::`)."""
    for longer in (value, f"{value}x", f"{value}/x"):
        if is_asked(custom, service, longer) and matched == frozenset(
            number for number, one in enumerate(patterns) if compile_patterns(custom, service, (one,))(longer)
        ):
            return longer
    return value


def _segment(before: str, char: str) -> str:
    """What is known of the segment that a value is in: empty (`/`), dots alone, or `x`."""
    if char == "/":
        return "/"
    if char == "." and before in {_BEGIN, "/", "/."}:
        return "/.." if before == "/." else "/."
    return "x"


def _elements(tokens: Iterable[str | Wild]) -> Iterator[str | Wild]:
    for token in tokens:
        if isinstance(token, Wild):
            yield token
        else:
            yield from token


def _may_be_nothing(element: str | Wild) -> bool:
    return isinstance(element, Wild) and element.may_be_nothing


def _closed(programs: Sequence[Sequence[str | Wild]], places: Iterable[_Place]) -> frozenset[_Place]:
    """With everything that is reached without reading anything."""
    found, waiting = set[_Place](), list(places)
    while waiting:
        place = waiting.pop()
        if place in found:
            continue
        found.add(place)
        number, at, inside = place
        if at < len(programs[number]) and not inside and _may_be_nothing(programs[number][at]):
            waiting.append((number, at + 1, False))
    return frozenset(found)


def _next(programs: Sequence[Sequence[str | Wild]], places: Iterable[_Place]) -> set[str]:
    """The characters that one of the patterns goes on with."""
    return {
        element
        for number, at, _ in places
        if at < len(programs[number]) and isinstance(element := programs[number][at], str)
    }


def _step(programs: Sequence[Sequence[str | Wild]], places: Iterable[_Place], char: str) -> frozenset[_Place]:
    reached: list[_Place] = []
    for number, at, _inside in places:
        if at == len(programs[number]):
            continue
        element = programs[number][at]
        if isinstance(element, str):
            if element == char:
                reached.append((number, at + 1, False))
        elif element is Wild.DIRECTORIES:
            reached.append((number, at, True))
            if char == "/":
                reached.append((number, at + 1, False))
        elif element.takes(char):
            reached.append((number, at + (not element.may_be_nothing), False))
    return _closed(programs, reached)
