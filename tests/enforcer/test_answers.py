"""The answers that are kept for repeated questions: so many, so long, each to its own question."""

from __future__ import annotations

from banksman.enforcer.answers import KEEP, Answer, Answers

GIVEN = Answer("d", "allow", 1, "r", "p", "p@v1", "allowed", "")


def test_so_many_are_kept_and_the_oldest_go() -> None:
    """Who asks again after that is decided afresh; nobody's questions fill the memory."""
    kept = Answers(lambda: 0.0)
    for number in range(KEEP + 1):
        kept.finish(kept.begin("a", f"q{number}", b""), GIVEN, None)
    assert len(kept) == KEEP == 100_000
    assert kept.find("a", "q0") is None
    assert kept.find("a", "q1") is not None


def test_so_long_and_no_longer() -> None:
    now = [0.0]
    kept = Answers(lambda: now[0], keep_s=600.0)
    kept.finish(kept.begin("a", "q", b"body"), GIVEN, None)
    now[0] = 600.0
    assert kept.find("a", "q") is not None
    assert kept.find("b", "q") is None  # an id is the agent's own
    now[0] = 600.1
    assert kept.find("a", "q") is None
    assert len(kept) == 0
