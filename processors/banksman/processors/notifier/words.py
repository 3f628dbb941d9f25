"""What a person reads at three in the morning: what, who, since when, how often, what it has cost, what to do.

Titles, names and evidence may hold what an agent chose. So every character that cannot be seen, or that turns or moves others,
is written out; Slack's own `& < >` are escaped; and what is not ours stands in plain text or in a code block, where Slack knows
no mentions, links or emphasis. Lengths are cut to what Slack takes.
"""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from banksman.events import is_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from banksman.processors.notifier.incidents import Incident

Block = dict[str, Any]

HEADER, SECTION, FIELD, TEXT = 150, 3000, 400, 1000
FACTS_A_BLOCK = 5
"""A section takes ten fields; each fact takes two."""
MOST_FACTS = 20
MOST_COMMANDS = 4
MOST_LISTED = 20
ROW = 140
LINE = 2000

MARK = {"info": "🔵 info", "warn": "🟠 warn", "page": "🔴 PAGE"}
_OVER = "✅ over"
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0") | {
    chr(code) for code in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
}
"""Characters that count as letters or marks, and show nothing."""
_STACKED = 3
"""Marks that may stand on one letter; more climb over the lines around."""
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_COMMAND = re.compile(r"`(banksman [^`]+)`|(?:\A|: )(banksman [^`;]+?)\s*(?=;|\Z)")

KNOWN = {
    "cost_usd_since": "Cost since", "tokens_since": "Tokens since", "tokens_per_minute": "Tokens a minute", "spent": "Spent",
    "limit": "Limit", "on_exhausted": "When exhausted", "resets_at": "Resets at", "timezone": "Time zone",
    "calls_without_a_price": "Calls without a price", "done": "Done", "what": "What", "occurrences": "Occurrences",
    "cycle": "Cycle", "outcome": "Outcome", "side_effects": "Side effects", "first_repeat": "First repeat", "why": "Why",
    "rule": "Rule", "error": "Error", "record": "First record", "time": "Its clock", "received": "The broker's clock",
    "author": "Signed by",
}  # fmt: skip
"""Keys of evidence in words, in the order in which they are shown; the others come after them, as they are."""
_COSTS = {"Cost since", "Tokens since", "Spent"}
_OURS = {*KNOWN.values(), "Agent", "Project", "Session", "Owner", "Since", "Over at", "Seen"}


@dataclass(frozen=True)
class Message:
    """`text`: for notifications, and for who cannot show blocks."""

    text: str
    blocks: list[Block]


# ── making visible ──


def visible(text: object) -> str:
    """`text` on one line, whatever cannot be seen or moves what is around it written out: ⟨U+202E⟩."""
    return "".join(_visible(str(text)))


def escaped(text: object, most: int) -> str:
    """The same for Slack, in at most `most` characters; a `…` where it was cut."""
    made: list[str] = []
    room = most
    for shown in _visible(str(text)):
        piece = _ESCAPES.get(shown, shown)
        made.append(piece)
        room -= len(piece)
        if room < 0:
            while room < 1:
                room += len(made.pop())
            return "".join([*made, "…"])
    return "".join(made)


def _visible(text: str) -> Iterable[str]:
    marks = 0
    for char in text:
        if char in " \u00a0" or (char.isascii() and char.isprintable()):
            marks = 0
            yield char if char != "\u00a0" else " "
            continue
        category = unicodedata.category(char)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if char == "\n":
            yield "⏎"
        elif category in _HIDDEN or category == "Zs" or char in _BLANK or marks > _STACKED:
            yield f"⟨U+{ord(char):04X}⟩"
        else:
            yield char


# ── blocks: what is ours may be mrkdwn, what is not is plain text or code ──


def _plain(text: object, most: int) -> Block:
    return {"type": "plain_text", "text": escaped(text, most) or "-", "emoji": False}


def _section(text: object) -> Block:
    return {"type": "section", "text": _plain(text, SECTION)}


def _code(command: str) -> Block:
    return {
        "type": "section",
        "text": {"type": "mrkdwn", "text": f"```{escaped(command, SECTION - 6)}```", "verbatim": True},
    }


def _header(text: str) -> Block:
    return {"type": "header", "text": _plain(text, HEADER)}


def _facts(facts: Sequence[tuple[str, str]]) -> Iterable[Block]:
    for start in range(0, len(facts), FACTS_A_BLOCK):
        fields: list[Block] = []
        for name, value in facts[start : start + FACTS_A_BLOCK]:
            fields += [_label(name), _plain(value, FIELD)]
        yield {"type": "section", "fields": fields}


def _label(name: str) -> Block:
    """Bold where the word is ours; a key of evidence that nobody has named is not."""
    return {"type": "mrkdwn", "text": f"*{name}*"} if name in _OURS else _plain(name, FIELD)


def _context(text: str) -> Block:
    return {"type": "context", "elements": [_plain(text, SECTION)]}


# ── messages ──


def incident(of: Incident) -> Message:
    """The one message of an incident, as it stands now."""
    title = f"{_state(of)}: {of.title}"
    blocks = [_header(title)]
    if len(escaped(title, 10 * HEADER)) > HEADER:
        blocks.append(_section(of.title))
    facts = _who(of) + _when(of) + _evidence(of.evidence)
    blocks += _facts(facts[:MOST_FACTS])
    if len(facts) > MOST_FACTS:
        blocks.append(_context(f"and {len(facts) - MOST_FACTS} more facts: they stand in the record"))
    if of.over:
        blocks.append(_section(f"It is over: {of.how or 'whoever saw it says so'}"))
    else:
        blocks += _to_do(of)
    blocks.append(_context(f"{of.detector} · {of.fingerprint} · incident {of.id}"))
    return Message(escaped(title + _by(of), TEXT), blocks)


def worse(of: Incident) -> Message:
    """For the thread: it is a page now."""
    text = f"{MARK[of.severity]} now: {of.title}. {_seen(of)}"
    return Message(escaped(text, TEXT), [_section(text), *_to_do(of)])


def ended(of: Incident) -> Message:
    """For the thread: it is over."""
    text = f"{_OVER} at {clock(of.over_ms or 0)}, after {length((of.over_ms or 0) - of.first_ms)}: {of.how or of.title}"
    return Message(escaped(text, TEXT), [_section(text)])


def all_ended(of: Incident) -> Message:
    """For the thread of a digest, when the last one of it is over."""
    text = f"{_OVER} at {clock(of.over_ms or 0)}: all of these"
    return Message(escaped(text, TEXT), [_section(text)])


def digest(several: Sequence[Incident]) -> Message:
    """One message for many that came at once, the worst first."""
    worst = sorted(several, key=lambda one: (-one.rank, one.opened))
    title = f"{MARK[worst[0].severity]}: {len(several)} new alerts at once"
    kinds = Counter((one.rank, one.severity, one.detector) for one in several)
    counted = ", ".join(f"{number} {name} {of}" for (_, name, of), number in sorted(kinds.items(), reverse=True))
    blocks = [_header(title), _section(counted)]
    rows = [f"{_state(one)}: {one.title}{_by(one)}" for one in worst[:MOST_LISTED]]
    blocks += [_section(visible(row)[:ROW]) for row in rows]
    if len(several) > MOST_LISTED:
        blocks.append(_context(f"and {len(several) - MOST_LISTED} more"))
    blocks += [_section("What to do: see all of them"), _code("banksman status")]
    return Message(escaped(f"{title}: {counted}", TEXT), blocks)


def line(of: Incident) -> str:
    """One line for a log: what, who, how often, what to do."""
    if of.over:
        ending = f"over at {clock(of.over_ms or 0)} after {length((of.over_ms or 0) - of.first_ms)}: {of.how}"
        return visible(f"{_OVER}: {of.title}{_by(of)}; {ending}")[:LINE]
    do = "".join(f" | {command}" for command in commands(of))
    suggestion = f"; do: {of.suggestion}" if of.suggestion and of.suggestion not in commands(of) else ""
    cost = "".join(f"; {name}: {value}" for name, value in _evidence(of.evidence) if name in _COSTS)
    return visible(f"{_state(of)}: {of.title}{_by(of)}; {_seen(of)}{cost}{suggestion}{do}")[:LINE]


def commands(of: Incident) -> list[str]:
    """The exact commands: those of the suggestion, then the one that shows what happened."""
    found = [(quoted or last).strip() for quoted, last in _COMMAND.findall(of.suggestion or "")]
    if of.session and is_name(of.session):
        agent = ["--agent", of.agent] if of.agent and is_name(of.agent) else []
        found.append(shlex.join(["banksman", "session", of.session, *agent]))
    elif of.agent and is_name(of.agent):
        found.append(shlex.join(["banksman", "now", of.agent]))
    elif not found:
        found.append("banksman status")
    return [command for command in dict.fromkeys(found) if _exact(command)][:MOST_COMMANDS]


def _exact(command: str) -> bool:
    """Whether it can be copied as it is shown. What cannot stands in the suggestion alone."""
    try:
        return "`" not in command and visible(command) == command and len(shlex.split(command)) > 1
    except ValueError:  # a quotation that does not end: only a part of it was found
        return False


# ── parts ──


def _state(of: Incident) -> str:
    return f"{_OVER} ({of.severity})" if of.over else MARK[of.severity]


def _by(of: Incident) -> str:
    """Who, in brackets, where the title does not say it."""
    who = "/".join(part for part in (of.project, of.agent) if part)
    said = ", ".join(part for part in (who, f"session {of.session}" if of.session else "") if part)
    return "" if said and said in of.title else f" ({said or 'banksman itself'})"


def _who(of: Incident) -> list[tuple[str, str]]:
    who = "/".join(part for part in (of.project, of.agent) if part)
    named = (("Agent" if of.agent else "Project", who), ("Session", of.session), ("Owner", of.owner))
    return [(name, value) for name, value in named if value]


def _when(of: Incident) -> list[tuple[str, str]]:
    end = of.over_ms if of.over_ms is not None else of.last_ms
    lasted = f"{length(end - of.first_ms)}" if end - of.first_ms >= 1000 else ""
    facts = [("Since", clock(of.first_ms) + (f", for {lasted}" if lasted else ""))]
    if of.over_ms is not None:
        facts.append(("Over at", clock(of.over_ms)))
    return [*facts, ("Seen", f"{times(of.count)}, last at {clock(of.last_ms)}")]


def _to_do(of: Incident) -> list[Block]:
    every = commands(of)
    said = "" if (of.suggestion or "") in every else of.suggestion or ""
    return [_section(f"What to do: {said}".strip()), *map(_code, every)]


def _seen(of: Incident) -> str:
    return f"seen {times(of.count)} since {clock(of.first_ms)}, last at {clock(of.last_ms)}"


def _evidence(evidence: dict[str, Any]) -> list[tuple[str, str]]:
    order = {key: place for place, key in enumerate(KNOWN)}
    keys = sorted(evidence, key=lambda key: order.get(key, len(order)))
    return [
        (KNOWN.get(key, key.replace("_", " ")), _value(key, evidence[key])) for key in keys if evidence[key] is not None
    ]


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        if "usd" in key:
            return f"${value:,.2f}" if value == 0 or value >= 0.1 else f"${value:.4f}"
        return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def times(count: int) -> str:
    """`once`, `12 times`."""
    return "once" if count == 1 else f"{count:,} times"


def clock(ms: int) -> str:
    """`2026-11-24 15:30:02 UTC`."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"


def length(ms: int) -> str:
    """`45 s`, `12 min`, `3 h 5 min`, `2 d 3 h`."""
    seconds = max(0, ms) // 1000
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds} s"
