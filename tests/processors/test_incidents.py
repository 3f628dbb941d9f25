"""From findings to incidents: whatever comes in whatever order, and whenever the notifier dies."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.processors.notifying import finding

from banksman import events, stamps
from banksman.processors.notifier import records
from banksman.processors.notifier.channels import channel_in
from banksman.processors.notifier.incidents import (
    DIGEST_BEYOND,
    DIGEST_MOST,
    IN_LOG,
    QUIET_MS,
    WINDOW_MS,
    Incident,
    Incidents,
    Place,
)

START = 1_790_000_000_000
QUIET = QUIET_MS["forged"]
FINGERPRINTS = ("forged/a", "forged/b", "loops/a/s", "budgets/a/tokens")
HERE = Place("#here", "C1", "1.0", own=True)


def at(ms: int, fingerprint: str = "loops/a/s", **changes: Any) -> events.Finding:
    return finding(fingerprint, time=stamps.rfc3339_ms(ms), **changes)


def everywhere(_one: Incident) -> bool:
    return True


def applied(*several: tuple[int, events.Finding]) -> Incidents:
    made = Incidents()
    for offset, (ms, one) in enumerate(several):
        made.apply(one, ms, offset)
    return made


def tell(incidents: Incidents, one: Incident, place: Place = HERE) -> None:
    if one.need() == "resolve":
        one.told_over = True
    else:
        one.place, one.told, one.shown, one.shown_over = place, one.rank, one.revision, one.over
    incidents.note(one)


def test_repeats_are_one_incident() -> None:
    made = applied(
        (START, at(START, title="3 records", evidence={"record": "a", "cost_usd": 1})),
        (START + 5, at(START + 5, title="5 more: 3 records", count=5, evidence={"cost_usd": 2}, owner="ann")),
    )
    (one,) = made.by_id.values()
    assert (one.title, one.count, one.owner) == ("3 records", 6, "ann")
    assert one.evidence == {"record": "a", "cost_usd": 2}
    assert (one.first_ms, one.last_ms) == (START, START + 5)
    assert [each.need() for each in made.waiting(everywhere)] == ["open"]


def test_who_says_since_when_has_counted_since_then() -> None:
    since = stamps.rfc3339_ms(START - 60_000)
    made = applied(
        (START, at(START, count=3, first_seen=since)), (START + 9, at(START + 9, count=8, first_seen=since))
    )  # fmt: skip
    (one,) = made.by_id.values()
    assert (one.count, one.first_ms) == (8, START - 60_000)


def test_a_repeat_is_no_news_and_an_escalation_is() -> None:
    made = applied((START, at(START)))
    (one,) = made.by_id.values()
    tell(made, one)
    made.apply(at(START + 1), START + 1, 1)
    assert not made.waiting(everywhere)
    assert made.stale(everywhere) == [one]
    made.apply(at(START + 2, severity="page"), START + 2, 2)
    assert one.need() == "escalate"
    assert (made.done, made.oldest) == (2, 0)
    tell(made, one)
    made.apply(at(START + 3, severity="warn"), START + 3, 3)
    assert one.severity == "page"
    assert made.done == 4


def test_what_follows_a_resolution_is_another_incident() -> None:
    made = applied((START, at(START)), (START + 1, at(START + 1, over=True, title="it stopped")))
    (first,) = made.by_id.values()
    assert (first.over_ms, first.how, first.need()) == (START + 1, "it stopped", "open")
    tell(made, first)
    assert first.need() == "resolve"
    made.apply(at(START + 2), START + 2, 2)
    assert len(made.by_id) == 2
    tell(made, first)
    (second,) = made.by_id.values()
    assert second.id != first.id
    assert second.need() == "open"


def test_quiet_is_judged_by_the_brokers_time() -> None:
    made = applied((START, at(START, "forged/x")), (START + QUIET - 1, at(START, "forged/x")))
    assert len(made.by_id) == 1
    made.apply(at(START, "forged/x"), START + 2 * QUIET - 1, 2)
    first, _ = made.by_id.values()
    assert first.how == "not seen again for 30 min"
    assert not made.lapse(START + 3 * QUIET - 2)
    assert made.lapse(START + 3 * QUIET - 1)
    assert not applied((START, at(START))).lapse(START + 2 * QUIET), "whoever says over is waited for"


def test_the_same_finding_again_and_one_from_long_ago_are_nothing() -> None:
    same = at(START, "forged/x")
    made = applied(
        (START, same), (START + 5, same), (START + 3 * QUIET, same), (START + 4, at(START - WINDOW_MS, "forged/old"))
    )
    (one,) = made.by_id.values()
    assert one.count == 1


def test_many_at_once_are_a_digest_and_what_got_worse_goes_first() -> None:
    made = applied(*((START + n, at(START + n, f"loops/{n}")) for n in range(DIGEST_BEYOND)))
    assert len(made.waiting(everywhere)) == 1
    made = applied(*((START + n, at(START + n, f"loops/{n}")) for n in range(DIGEST_MOST + 5)))
    step = made.waiting(everywhere)
    assert [one.fingerprint for one in step] == [f"loops/{n}" for n in range(DIGEST_MOST)]
    tell(made, step[0])
    made.apply(at(START, "loops/0", severity="page"), START, 500)
    assert made.waiting(everywhere) == step[:1]
    tell(made, step[0])
    made.apply(at(START, "loops/0", over=True), START, 501)
    assert len(made.waiting(everywhere)) == DIGEST_MOST


def test_info_in_the_log_then_worse_has_a_message_of_its_own() -> None:
    made = applied((START, at(START, severity="info")))
    (one,) = made.by_id.values()
    tell(made, one, IN_LOG)
    made.apply(at(START, severity="page"), START, 1)
    assert one.need() == "open"


def test_what_is_known_from_what_was_told_alone() -> None:
    before = applied((START, at(START, "budgets/a", count=7)))
    (one,) = before.by_id.values()
    made = Incidents()
    made.heard(records.alert(one, HERE, 1, "notifier#1", over=False), START + 9, 100)
    (again,) = made.by_id.values()
    assert (again.id, again.count, again.place, again.need()) == (one.id, 7, HERE, None)
    made.apply(at(START + 10, "budgets/a"), START + 10, 101)
    assert len(made.by_id) == 1
    assert made.oldest == 100


@given(st.lists(st.tuples(st.sampled_from(FINGERPRINTS), st.booleans(), st.integers(0, QUIET)), max_size=30))
def test_every_finding_is_in_one_incident(steps: list[tuple[str, bool, int]]) -> None:
    made, now, total = Incidents(), START, 0
    counts: dict[str, int] = {}
    for offset, (fingerprint, over, later) in enumerate(steps):
        now += later
        total += not over
        made.apply(at(now, fingerprint, over=over), now, offset)
        counts |= {one.id: one.count for one in made.by_id.values()}
    assert sum(counts.values()) == total
    assert made.next == len(steps)


@dataclass
class _Slack:
    told: Counter[tuple[str, str]] = field(default_factory=Counter)
    order: list[tuple[str, str]] = field(default_factory=list)

    def hear(self, one: Incident, step: str) -> None:
        self.told[one.id, step] += 1
        self.order.append((one.id, step))


class Dying(RuleBasedStateMachine):
    """A log, a Slack, and a notifier that dies at any moment: between Slack's answer and its record, too."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.log: list[tuple[int, events.Finding]] = []
        self.slack = _Slack()
        self.live = Incidents()

    @rule(
        fingerprint=st.sampled_from(FINGERPRINTS), severity=st.sampled_from(list(events.RANK)), over=st.booleans(),
        later=st.integers(0, QUIET // 2), again=st.booleans(),
    )  # fmt: skip
    def comes(self, fingerprint: str, severity: str, over: bool, later: int, again: bool) -> None:
        self.now += later
        seen = [one for _, one in self.log if type(one) is events.Finding]
        one = seen[-1] if again and seen else at(self.now, fingerprint, severity=severity, over=over)
        self.log.append((self.now, one))
        self.live.apply(one, self.now, len(self.log) - 1)

    @rule(later=st.integers(1, 2 * QUIET))
    def time_passes(self, later: int) -> None:
        self.now += later
        self.live.lapse(self.now)

    @precondition(lambda self: self.live.pending)
    @rule(dies=st.booleans())
    def tells(self, dies: bool) -> None:
        for one in self.live.waiting(everywhere):
            step = f"told {one.rank}" if one.need() != "resolve" else "over"
            if not (one.unsure and (one.id, step) in self.slack.told):  # it looks for it, and finds it
                self.slack.hear(one, step)
            if dies:
                break
            if one.need() == "resolve":
                record: events.Finding = records.resolution(one, "notifier#1")
            else:
                record = records.alert(one, HERE if one.rank else IN_LOG, one.rank, "notifier#1", over=one.over)
            tell(self.live, one, HERE if one.rank else IN_LOG)
            one.unsure = 0
            self.log.append((self.now, record))
            self.live.next = len(self.log)
        if dies:
            self.starts_anew()

    @rule()
    def starts_anew(self) -> None:
        before, self.live = self.live, Incidents()
        for offset, (received, one) in enumerate(self.log):
            if isinstance(one, (events.Alert, events.AlertResolved)):
                self.live.heard(one, received, offset)
            else:
                self.live.apply(one, received, offset)
        self.live.lapse(self.now)
        before.lapse(self.now)
        self.live.doubt()
        assert _known(self.live) == _known(before)
        assert self.live.next == before.next

    @invariant()
    def each_is_told_once_and_opened_before_it_is_over(self) -> None:
        assert all(times == 1 for times in self.slack.told.values())
        opened: set[str] = set()
        for name, step in self.slack.order:
            assert step != "over" or name in opened
            opened.add(name)

    def teardown(self) -> None:
        """In the end everything is told, and nothing is left that is over."""
        while self.live.pending:
            self.tells(dies=False)
        assert all(not one.over for one in self.live.by_id.values())
        openers = {one.id for _, one in self.log if type(one) is events.Finding and not one.over}
        assert {name for name, _ in self.slack.told} <= openers
        self.each_is_told_once_and_opened_before_it_is_over()


def _known(of: Incidents) -> dict[str, Any]:
    return {
        name: (
            one.need(),
            one.told,
            one.told_over,
            one.over,
            one.over_ms,
            one.count,
            one.severity,
            one.place,
            one.opened,
        )
        for name, one in of.by_id.items()
    }


TestDying = Dying.TestCase
TestDying.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(
    ("text", "channel"),
    [
        ('{"notify":{"channel":"#payments-agents"}}', "#payments-agents"),
        ('{"notify":{"channel":" payments "}}', "#payments"),
        ('{"notify":{"channel":"C0123456789"}}', "C0123456789"),
        ('{"notify":{"channel":7}}', ""),
        ('{"notify":null}', ""),
        ("[]", ""),
        ("{", ""),
    ],
)
def test_the_channel_of_a_policy(text: str, channel: str) -> None:
    assert channel_in(text) == channel
