"""What a person reads: nothing that an agent wrote can hide, move, mention, link or be too long."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from slack_sdk.models.blocks import Block
from tests.processors.notifying import finding

from banksman.processors.notifier import words
from banksman.processors.notifier.incidents import Incident, Incidents

START = 1_795_000_000_000
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
NASTY = (
    "<!channel> <@U1> <https://evil|click> & *b* _i_ ~s~ `c` ```code``` @here #x \u202eabc\u2066 \u200b\ufeff\x1b[31m\n"
)


def incident(**changes: Any) -> Incident:
    incidents = Incidents()
    incidents.apply(finding(**changes), START, 0)
    return next(iter(incidents.by_id.values()))


def texts(message: words.Message) -> Iterator[tuple[str, str]]:
    """(type, text) of every text object, and the text for notifications."""
    yield "text", message.text
    todo: list[Any] = [message.blocks]
    while todo:
        here = todo.pop()
        if isinstance(here, dict):
            if here.get("type") in ("plain_text", "mrkdwn") and isinstance(here.get("text"), str):
                yield here["type"], here["text"]
            todo += here.values()
        elif isinstance(here, list):
            todo += here


def check(message: words.Message) -> None:
    blocks = message.blocks
    assert 1 <= len(blocks) <= 50
    for parsed in Block.parse_all(blocks):
        parsed.validate_json()
    for block in blocks:
        if block["type"] == "header":
            assert 1 <= len(block["text"]["text"]) <= 150
        if block["type"] == "section":
            assert len(block.get("fields", [])) <= 10
            assert all(1 <= len(each["text"]) <= 2000 for each in block.get("fields", []))
            assert len(block.get("text", {"text": "-"})["text"]) <= 3000
    assert len(message.text) <= 3000
    for kind, text in texts(message):
        assert text
        assert not re.search(r"<|>|&(?!amp;|lt;|gt;)", text)
        assert not [char for char in text if unicodedata.category(char) in HIDDEN], ascii(text)
        if kind == "mrkdwn":  # a label of ours, or one block of code that nothing ends before its end
            assert re.fullmatch(r"\*[A-Z][a-zA-Z' ]*\*|```[^`]+```", text), text


def messages(one: Incident) -> list[words.Message]:
    made = [words.incident(one), words.worse(one), words.digest([one] * 30)]
    one.over_ms, one.how = START + 90_000, one.title
    return [*made, words.incident(one), words.ended(one)]


any_text = st.text(st.characters(), max_size=60) | st.sampled_from(
    [NASTY, NASTY * 30, "\u202e" * 400, "", "`", "```", "<!here>"]
)
any_value = st.none() | any_text | st.integers() | st.floats() | st.lists(any_text, max_size=2)


@settings(max_examples=100, deadline=None)
@given(
    title=any_text, agent=any_text, session=any_text, project=any_text, owner=any_text, suggestion=any_text,
    evidence=st.dictionaries(any_text, any_value, max_size=25),
)  # fmt: skip
def test_whatever_an_agent_writes(**changes: Any) -> None:
    one = incident(**changes)
    for message in messages(one):
        check(message)
        json.dumps(message.blocks).encode()
    for log_line in (words.line(one), words.line(incident(**changes))):
        assert not [char for char in log_line if unicodedata.category(char) in HIDDEN]
        assert len(log_line) <= 2000


def test_what_is_hidden_is_written_out() -> None:
    assert (
        words.visible("a\u202eb\u200bc\x1b[0m\nd\u00ade\U000e0041")
        == "a⟨U+202E⟩b⟨U+200B⟩c⟨U+001B⟩[0m⏎d⟨U+00AD⟩e⟨U+E0041⟩"
    )
    assert words.visible("Zoë 日本語 пётр 🙂") == "Zoë 日本語 пётр 🙂"
    assert words.visible("x\u3164\u2800\ufe0f\u2003") == "x⟨U+3164⟩⟨U+2800⟩⟨U+FE0F⟩⟨U+2003⟩"
    assert words.visible("a" + "\u0300" * 5) == "a" + "\u0300" * 3 + "⟨U+0300⟩" * 2


@pytest.mark.parametrize("most", range(1, 12))
def test_a_cut_never_splits_what_stands_for_a_character(most: int) -> None:
    cut = words.escaped("<&>\u202e<", most)
    assert len(cut) <= most
    assert re.fullmatch(r"(&lt;|&gt;|&amp;|⟨U\+202E⟩)*…?", cut)
    assert words.escaped("abc", 3) == "abc"


@pytest.mark.parametrize(
    ("suggestion", "found"),
    [
        ("banksman kill s --agent a --reason loop", ["banksman kill s --agent a --reason loop"]),
        ("banksman now a; raise agents.a.budget.daily_tokens", ["banksman now a"]),
        ("mend it, and `banksman status` says whether it loads", ["banksman status"]),
        ("see that every replica has the same files: banksman status", ["banksman status"]),
        ("banksman kill 'a; b' --reason x", []),
        ("`banksman kill \u202es`", []),
        ("read the letters", []),
        (None, []),
    ],
)
def test_the_exact_commands(suggestion: str | None, found: list[str]) -> None:
    assert words.commands(incident(suggestion=suggestion)) == [*found, "banksman session s --agent a"]


def test_names_that_are_none_are_in_no_command() -> None:
    assert words.commands(incident(session="s; rm -rf /", agent="a$(x)")) == ["banksman status"]
    assert words.commands(incident(session=None, agent="claude-1")) == ["banksman now claude-1"]


def test_what_stands_in_it(golden: Any) -> None:
    one = incident(
        id="01a22600-0000-7000-8000-000000000001", time="2026-11-24T15:30:02.000000Z", severity="page",
        title='billing/claude-invoice-01, session d97e2169: stripe refunds:create repeated 12x in 3 min; "<!channel>"',
        fingerprint="loops/claude-invoice-01/d97e2169", project="billing", agent="claude-invoice-01", session="d97e2169",
        owner="ann@acme.example", count=12, first_seen="2026-11-24T15:27:00.000000Z",
        suggestion="banksman kill d97e2169 --agent claude-invoice-01 --reason loop",
        evidence={"cost_usd_since": 3.2, "tokens_since": 120_000, "side_effects": True, "cycle": ["a", "b"], "seen_by": "x"},
    )  # fmt: skip
    opened, worse, _, over, ended = messages(one)
    shown = [
        ["opened", opened.text, opened.blocks],
        ["worse", worse.text],
        ["over", over.blocks[0]],
        ["ended", ended.text],
    ]
    golden("alerts/incident.json", json.dumps(shown, ensure_ascii=False, indent=2) + "\n")


def test_lengths_and_counts_in_words() -> None:
    assert [words.length(ms) for ms in (-1, 999, 45_000, 12 * 60_000, 185 * 60_000, 51 * 3_600_000)] == [
        "0 s", "0 s", "45 s", "12 min", "3 h 5 min", "2 d 3 h",
    ]  # fmt: skip
    assert (words.times(1), words.times(1200)) == ("once", "1,200 times")
    assert words.clock(1_795_000_000_000) == "2026-11-18 09:46:40 UTC" or words.clock(0) == "1970-01-01 00:00:00 UTC"
    assert words.clock(10**18).endswith("ms")
