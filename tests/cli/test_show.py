"""What is printed, where: nothing that an agent wrote is obeyed by a terminal."""

from __future__ import annotations

import io
import json
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banksman.cli import grid, show, words


@given(st.text(st.characters()))
def test_safe_text_has_nothing_that_a_terminal_obeys(text: str) -> None:
    made = show.safe(text)
    made.encode()  # no half of a surrogate pair is left
    assert all(char.isprintable() and unicodedata.category(char) not in ("Cc", "Cf") for char in made)
    assert show.safe(made) == made


@settings(max_examples=50)
@given(
    st.recursive(
        st.text(st.characters()) | st.integers() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_is_one_line_that_no_terminal_obeys_and_the_same_value(value: object) -> None:
    made = show.dumps(value)
    made.encode()
    assert json.loads(made) == value
    assert not [char for char in made if unicodedata.category(char) in ("Cc", "Zl", "Zp", "Cs")]
    assert not set(made) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


def test_what_stays_as_it_is() -> None:
    assert show.safe("push zu Müller 数据 ✓") == "push zu Müller 数据 ✓"
    assert show.safe("a\nb") == "a\\nb"
    assert show.safe("a\nb\x1b[2J", newlines=True) == "a\nb\\x1b[2J"
    assert show.safe("\u202egpj.exe\x9b") == "\\u202egpj.exe\\x9b"
    assert show.dumps({"a": "ü\x9b"}) == '{"a":"ü\\u009b"}'


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0 ms"), (0.0004, "0 ms"), (0.85, "850 ms"), (0.9996, "1.0 s"), (3.21, "3.2 s"), (59.94, "59.9 s"),
        (59.96, "1 min 0 s"), (250, "4 min 10 s"), (3599.6, "1 h 0 min"), (7500, "2 h 5 min"), (86_400, "1 d 0 h"),
        (3 * 86_400 + 4 * 3600, "3 d 4 h"),
    ],
)  # fmt: skip
def test_lengths_of_time(value: float, said: str) -> None:
    assert show.seconds(value) == said


def test_moments() -> None:
    assert show.moment("2026-03-01T12:00:00.123456Z") == "2026-03-01 12:00:00.123"
    assert show.moment("2026-03-01T12:00:00+02:00") == "2026-03-01 10:00:00.000"
    assert show.moment(None) == ""
    assert show.moment("yesterday") == "yesterday"


ROWS = [("git push acme/billing feature/very-long-branch-name", "allow", 1200), ("\x1b[31mred", None, 7)]


def test_a_table_in_a_pipe_is_a_row_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    show.table(("what", "decision", ">tokens"), [*ROWS, ("x" * 3000, "deny", 1)])
    out = capsys.readouterr().out
    lines = out.rstrip("\n").split("\n")
    assert len(lines) == 2 + 3
    assert lines[2].split() == ["git", "push", "acme/billing", "feature/very-long-branch-name", "allow", "1200"]
    assert "\x1b" not in out
    assert "\\x1b[31mred" in lines[3]
    assert "x" * 3000 in lines[4]


class Terminal(io.StringIO):
    """A stdout that says it is one."""

    encoding = "utf-8"

    @property
    def text(self) -> str:
        return self.getvalue()

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch, **env: str) -> Terminal:
    made = Terminal()
    monkeypatch.setattr("sys.stdout", made)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"TERM": "xterm", **env}.items():
        monkeypatch.setenv(name, value)
    return made


def test_a_table_on_a_terminal_keeps_within_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch, COLUMNS="50", NO_COLOR="1")
    show.table(("what", "decision", ">tokens"), ROWS)
    assert "\x1b" not in shown.text
    assert max(map(len, shown.text.split("\n"))) <= 50
    assert "git push acme/billing feature/" in shown.text
    assert "\nvery-long-branch-name\n" in shown.text


def test_a_narrow_terminal_gets_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch, COLUMNS="30", NO_COLOR="1")
    show.table(("what", "decision", ">tokens", "a", "b"), [(*row, "11111111111", "2222222222") for row in ROWS])
    assert "\x1b" not in shown.text
    lines = [line.split() for line in shown.text.split("\n")]
    assert ["decision", "allow"] in lines
    assert ["tokens", "7"] in lines
    assert lines.count(["a", "11111111111"]) == 2


def test_colours_only_where_they_show(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch)
    show.say("no", "red")
    assert shown.text == "\x1b[31mno\x1b[0m\n"
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        shown.truncate(0)
        shown.seek(0)
        monkeypatch.setenv(name, value)
        show.say("no", "red")
        assert shown.text == "no\n"


def test_words_of_a_state_have_a_colour_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = terminal(monkeypatch)
    show.table(("a", "b"), [("deny", "denying"), (show.Cell("gap", "red"), None)])
    assert "\x1b[31mdeny\x1b[0m  denying\n" in shown.text
    assert "\x1b[31mgap\x1b[0m\n" in shown.text


def test_ten_thousand_rows_are_drawn_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.process_time()
    show.table(("a", "b", ">c"), [("x" * 20, "yes", 1)] * 10_000)
    assert time.process_time() - began < 5  # rich takes more than ten
    assert capsys.readouterr().out.count("\n") == 10_002


@given(st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs"))), st.integers(2, 40))
def test_folding_loses_nothing_but_spaces(text: str, places: int) -> None:
    lines = grid.fold(text, places)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(grid.width(line) <= places for line in lines)


@given(st.lists(st.tuples(st.integers(0, 200), st.booleans()), min_size=1, max_size=12), st.integers(20, 250))
def test_columns_fit_or_are_none(columns: list[tuple[int, bool]], room: int) -> None:
    widths, rigid = [one for one, _ in columns], [stiff for _, stiff in columns]
    fitted = grid.fit(widths, rigid, room)
    if fitted is None:
        least = sum(one if stiff else min(one, grid.NARROWEST) for one, stiff in columns)
        assert least + 2 * (len(columns) - 1) > room - len(columns)
        return
    assert sum(fitted) + 2 * (len(columns) - 1) <= room
    for one, stiff, made in zip(widths, rigid, fitted, strict=True):
        assert made == one if stiff or one <= grid.NARROWEST else grid.NARROWEST <= made <= one


def test_an_empty_table_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    show.table(("a",), [], empty="nothing here")
    assert capsys.readouterr() == ("", "nothing here\n")


# ── words ──


@pytest.mark.parametrize(
    ("usd", "said"),
    [(None, ""), (0, "$0.00"), (0.0042, "$0.0042"), (0.1, "$0.10"), (3.2, "$3.20"), (12345.678, "$12,345.68")],
)
def test_money(usd: float | None, said: str) -> None:
    assert words.money(usd) == said


def test_marks_and_rulings() -> None:
    assert words.marks({"verified": True, "late": None}) == []
    wrong = {"verified": False, "late": "skew", "id_reused": True, "voided": True, "priced": "unpriced"}
    assert words.marks(wrong) == ["unverified", "clock skew", "id reused", "voided", "unpriced"]
    assert words.ruling({"rule": "buyer/allow/0", "reason": "allowed"}) == "buyer/allow/0"
    assert words.ruling({"rule": None, "reason": "default_deny"}) == "default_deny"
    assert (
        words.ruling({"rule": "x/allow/0", "reason": "exhausted", "shadow": "deny"})
        == "x/allow/0 (exhausted), shadow: would deny"
    )
    assert words.listed([]) == ""
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.guess("claude-invoise", ["claude-invoice-01", "x"]) == "; did you mean 'claude-invoice-01'?"
