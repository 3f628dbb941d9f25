"""What an agent spends in a day, without Kafka: days of every zone, limits that change, what is told and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banksman.events import ModelCall, ToolResult
from banksman.policy.rules import AgentPolicy, Budget
from banksman.processors.detector import Seen, Sighting, Spent
from banksman.processors.detectors.budgets import DETECTOR, QUARTER_MS, SETTLED_MS, Spending, day_of
from banksman.topics import Topic

DAY_MS = 86_400_000
NOON = int(datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()) * 1000
ID = "019a0000-0000-7000-8000-000000000001"


def policy(tokens: int | None = 1000, usd: float | None = None, then: Any = "deny", zone: str = "UTC") -> AgentPolicy:
    return AgentPolicy(None, (), Budget(tokens, usd, 0.8, then, zone), "alert", "alert")


def call(at_ms: int, tokens: int = 0, usd: float | None = None, *, unpriced: bool = False, offset: int = 0) -> Seen:
    event = ModelCall(
        v=1, id=ID, time="2020-01-01T00:00:00.000000Z", source="x", project="p", agent="a", session="s", model="m",
        input_tokens=tokens,
    )  # fmt: skip
    return Seen(event, Topic.ACTIONS, 0, offset, at_ms, False, None if usd is None else round(usd * 10**9), unpriced)


class Life:
    """One agent's state and all that was said of it."""

    def __init__(self, rules: AgentPolicy | None) -> None:
        self.state: Any = Spending()
        self.rules = rules
        self.said: list[Sighting | Spent] = []

    def spend(self, at_ms: int, tokens: int = 0, usd: float | None = None, **more: Any) -> list[Sighting | Spent]:
        self.state, found = DETECTOR.step(self.state or Spending(), call(at_ms, tokens, usd, **more), self.rules)
        self.said += found
        return list(found)

    def wait(self, at_ms: int) -> list[Sighting | Spent]:
        self.state, found = DETECTOR.lapse(self.state or Spending(), at_ms, self.rules)
        self.said += found
        return list(found)

    def spent(self, unit: str = "tokens") -> float:
        return [one.spent for one in self.said if isinstance(one, Spent) and one.unit == unit][-1]


def sightings(found: list[Sighting | Spent]) -> list[tuple[str, bool]]:
    return [(one.severity, one.over) for one in found if isinstance(one, Sighting)]


def test_a_warning_at_the_threshold_a_page_at_the_end_and_a_new_day() -> None:
    life = Life(policy())
    assert sightings(life.spend(NOON, 799)) == []
    assert sightings(life.spend(NOON, 1)) == [("warn", False)]
    assert sightings(life.spend(NOON, 199)) == []
    found = life.spend(NOON, 1)
    assert sightings(found) == [("page", False)]
    assert next(one for one in found if isinstance(one, Spent)).exhausted_ms == NOON
    assert sightings(life.spend(NOON + 1, 500)) == []  # it is said once
    midnight = NOON + DAY_MS // 2
    assert DETECTOR.due(life.state) is not None
    assert sightings(life.wait(midnight - 1)) == []
    found = life.wait(midnight)
    assert sightings(found) == [("info", True)]
    assert life.spent() == 0
    assert sightings(life.spend(midnight + 5, 900)) == [("warn", False)]


def test_from_nothing_to_all_in_one_call_is_one_page() -> None:
    life = Life(policy())
    assert sightings(life.spend(NOON, 5000)) == [("page", False)]


def test_a_limit_that_is_raised_ends_it_and_one_that_is_lowered_begins_it() -> None:
    life = Life(policy())
    life.spend(NOON, 1000)
    life.rules = policy(5000)
    assert sightings(life.wait(NOON + 1)) == [("info", True)]
    life.rules = policy(900)
    assert sightings(life.wait(NOON + 2)) == [("page", False)]
    life.rules = policy(1200)
    assert sightings(life.wait(NOON + 3)) == [("info", True), ("warn", False)]
    life.rules = None
    assert sightings(life.wait(NOON + 4)) == [("info", True)]


def test_a_budget_that_comes_later_knows_of_today() -> None:
    life = Life(None)
    life.spend(NOON - 13 * 3_600_000, 400)  # yesterday
    life.spend(NOON - 3_600_000, 300)
    life.rules = policy()
    life.wait(NOON)
    assert life.spent() == 300
    life.rules = policy(zone="Asia/Kolkata")  # where it was today already
    life.wait(NOON)
    assert life.spent() == 700


def test_small_steps_are_told_when_they_have_settled() -> None:
    life = Life(policy(100_000))
    life.spend(NOON, 1)
    told = len(life.said)
    life.spend(NOON + 1, 1)
    life.spend(NOON + 2, 1)
    assert len(life.said) == told
    due = DETECTOR.due(life.state)
    assert due is not None
    assert due <= NOON + SETTLED_MS
    life.wait(due)
    assert life.spent() == 3
    life.wait(due + SETTLED_MS)
    assert len([one for one in life.said if isinstance(one, Spent)]) == 2


def test_a_unit_that_rests_does_not_keep_the_other_from_settling() -> None:
    life = Life(policy(100_000, 10.0))
    life.spend(NOON, 10)  # USD are told now, as none, and then never again
    life.spend(NOON + 60_000, 2000)
    life.spend(NOON + 61_000, 1)
    due = DETECTOR.due(life.state)
    assert due == NOON + 60_000 + SETTLED_MS
    life.wait(due - 1)
    assert DETECTOR.due(life.state) == due
    life.wait(due)
    assert life.spent() == 2011
    after = DETECTOR.due(life.state)
    assert after is not None
    assert after > due


def test_money_and_what_has_no_price() -> None:
    life = Life(policy(None, 1.0))
    life.spend(NOON, 10, 0.5)
    life.spend(NOON, 10, unpriced=True)
    found = life.spend(NOON, 10, 0.5)
    assert life.spent("usd") == 1.0
    sighting = next(one for one in found if isinstance(one, Sighting))
    assert sighting.evidence["calls_without_a_price"] == 1


def test_results_cost_as_well() -> None:
    event = ToolResult(
        v=1, id=ID, time="2026-11-25T12:00:00.000000Z", source="x", project="p", agent="a", session="s", status="ok",
        input_tokens=3, output_tokens=4,
    )  # fmt: skip
    state, _ = DETECTOR.step(Spending(), Seen(event, Topic.ACTIONS, 0, 0, NOON), policy())
    assert state is not None
    assert sum(held[0] for held in state.quarters.values()) == 7


def test_what_is_long_ago_is_forgotten() -> None:
    life = Life(None)
    life.spend(NOON, 10)
    due = DETECTOR.due(life.state)
    assert due is not None
    assert due > NOON + 25 * 3_600_000
    life.wait(due)
    assert life.state is None


def test_days_of_every_zone_follow_each_other_without_a_gap() -> None:
    zones = available_timezones() - {"Factory", "localtime"}
    assert len(zones) > 300
    for zone in zones:
        follow_the_days_of(zone)


def follow_the_days_of(zone: str) -> None:
    place = ZoneInfo(zone)
    at = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1000
    end = at + 366 * DAY_MS
    before: int | None = None
    while at < end:
        since, until = day_of(zone, at // QUARTER_MS)
        assert since <= at < until
        assert before in (None, since)
        assert since % QUARTER_MS == 0
        first, last = (datetime.fromtimestamp(moment / 1000, place).date() for moment in (since, until - 1))
        assert first == last
        assert datetime.fromtimestamp(since / 1000 - 0.001, place).date() != first
        before, at = until, until


def test_a_day_of_23_and_one_of_25_hours() -> None:
    for when, hours in ((datetime(2026, 3, 29, 12, tzinfo=UTC), 23), (datetime(2026, 10, 25, 12, tzinfo=UTC), 25)):
        since, until = day_of("Europe/Berlin", int(when.timestamp()) // 900)
        assert timedelta(milliseconds=until - since) == timedelta(hours=hours)


events = st.tuples(st.integers(0, 5 * DAY_MS), st.integers(0, 400), st.sampled_from([None, 0.01, 0.3]))
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/Havana", "Asia/Kathmandu", "Pacific/Chatham", "Africa/Cairo"])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(events, min_size=1, max_size=60),
    zones,
    st.sampled_from(
        [datetime(2026, 3, 27, tzinfo=UTC), datetime(2026, 10, 23, tzinfo=UTC), datetime(2026, 4, 22, tzinfo=UTC)]
    ),
    st.data(),
)
def test_what_is_told_is_the_sum_of_the_day(spends: list[Any], zone: str, start: datetime, data: Any) -> None:
    """However the policy changes meanwhile, and whenever the state is written and read back."""
    first = int(start.timestamp()) * 1000
    life = Life(policy(500, 2.0, zone=zone))
    log: list[tuple[int, int, float]] = []
    for offset, tokens, usd in sorted(spends, key=lambda one: one[0]):
        if data.draw(st.integers(0, 9)) == 0:
            life.rules = data.draw(st.sampled_from([policy(300, 1.0, zone=zone), None, policy(500, None, zone="UTC")]))
            life.wait(first + offset)
        life.spend(first + offset, tokens, usd)
        log.append((first + offset, tokens, usd or 0))
        life.state = msgspec.msgpack.decode(msgspec.msgpack.encode(life.state), type=Spending)
    life.rules = policy(500, 2.0, zone=zone)
    now = log[-1][0]
    life.wait(now)
    life.wait(now + SETTLED_MS)
    since, until = day_of(zone, (now + SETTLED_MS) // QUARTER_MS)
    today = [one for one in log if since <= one[0] < until]
    assert life.spent() == sum(tokens for _, tokens, _ in today)
    assert life.spent("usd") == pytest.approx(sum(usd for *_, usd in today))
    open_ = 0
    for said in (one for one in life.said if isinstance(one, Sighting) and one.fingerprint.endswith("tokens")):
        open_ = 0 if said.over else open_ + 1
        assert open_ <= 2  # a warning and a page, then it is over
