"""What would have been stopped is told as such, once an hour for each operation."""

from __future__ import annotations

from typing import Any

from tests.processors.feed import Feed

from banksman.events import Decision
from banksman.processors.detector import Sighting
from banksman.processors.detectors import shadow


def decided(
    to: Feed, decision: str = "allow", would: str | None = "deny", action: str = "push", **more: Any
) -> list[Sighting]:
    made = {"service": "git", "action": action, "resource": "acme/web", "tier": 2, "reason": "allowed"}
    return to.see(to.make(Decision, **{**made, "decision": decision, "shadow": would, **more}))


def test_it_is_told_as_not_enforced_and_once_an_hour() -> None:
    to = Feed(shadow.DETECTOR, through=True)
    [first] = decided(to)
    assert first.title == "p/a: git:push(acme/web) was allowed, and would have been denied (shadow mode)"
    assert (first.severity, first.evidence["not_enforced"], first.count) == ("warn", True, 1)
    assert [decided(to) for _ in range(5)] == [[]] * 5
    to.ms += shadow.QUIET_MS
    [again] = decided(to)
    assert (again.fingerprint, again.count) == (first.fingerprint, 6)
    assert "6 times, git:push" in again.title


def test_each_operation_and_each_answer_is_its_own() -> None:
    to = Feed(shadow.DETECTOR)
    assert len(decided(to) + decided(to, action="pull") + decided(to, would="approve")) == 3
    assert "waited for a human" in to.said[-1].title
    assert to.said[-1].severity == "info"


def test_what_was_enforced_or_would_be_looser_is_not_told() -> None:
    to = Feed(shadow.DETECTOR)
    assert decided(to, would=None) == decided(to, "deny", would=None) == []
    assert decided(to, "deny", would="allow") == decided(to, "deny", would="approve") == []
    assert to.state is None


def test_an_agent_cannot_fill_its_state() -> None:
    to = Feed(shadow.DETECTOR, through=True)
    for number in range(500):
        decided(to, action=f"a{number}")
    assert len(to.state.told) == shadow.OPERATIONS
    assert to.largest < 8192
