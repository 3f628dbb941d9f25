"""What an agent spends in a day, against its budget: a warning at the threshold, a page when it is spent, over at midnight.

A day begins at midnight of the policy's time zone and is found by when the broker received a record, so that no agent's clock
says to which day its tokens belong. What was spent is kept in quarters of an hour, the largest piece that the days of all
time zones are made of: a policy that changes the zone, or gives a budget to an agent that had none, is right at once.

Tokens are input + output + cache writes. What late records cost counts as well: it was spent.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Literal
from zoneinfo import ZoneInfo

import msgspec

from banksman.events import ModelCall, ToolResult
from banksman.processors.detector import MOST, Detector, Sighting, Spent, tokens_of
from banksman.stamps import rfc3339_ms

if TYPE_CHECKING:
    from collections.abc import Iterator

    from banksman.policy.rules import AgentPolicy, Budget
    from banksman.processors.detector import Seen, Seens

QUARTER_MS = 900_000
KEPT = 26 * 4
"""Quarters that are kept: the longest day, when clocks go back, has 25 hours."""
STEP = 0.01
"""Of its limit, what is spent is told in steps of this size,"""
SETTLED_MS = 10_000
"""and what does not make a step, so long after the last time."""

UNDER, NEAR, OVER = 0, 1, 2
NANO = 1_000_000_000

Unit = Literal["tokens", "usd"]


class Told(msgspec.Struct, array_like=True):
    """What was last told of one unit. `level`: under its threshold, over it, or all spent."""

    since_ms: int
    spent: float
    limit: float
    level: int
    at_ms: int
    exhausted_ms: int | None = None


class Spending(msgspec.Struct, array_like=True):
    """What one agent spent lately. `quarters`: [tokens, nano-USD, calls without a price] by quarter of an hour since 1970."""

    project: str = ""
    agent: str = ""
    quarters: dict[int, list[int]] = {}
    told: dict[str, Told] = {}
    day: list[int] = []
    """[since, until, tokens, nano-USD, calls without a price] of the day that was last looked at: a sum that need not be made
    for every record."""
    unpriced_ms: int = 0
    """The day of which it was said that calls have no price."""
    restless_ms: int = 0
    """When what was spent since it was told wants to be told; 0: all is told."""


def step(state: Spending, seen: Seen, policy: AgentPolicy | None) -> tuple[Spending, Seens]:
    """Count one record in."""
    event = seen.event
    assert isinstance(event, ModelCall | ToolResult)
    tokens = tokens_of(event)
    if not tokens and not seen.cost_nano and not seen.unpriced:
        return state, ()
    spent = tokens, seen.cost_nano or 0, int(seen.unpriced)
    state.project, state.agent = event.project, event.agent
    quarter = seen.received_ms // QUARTER_MS
    there = state.quarters.get(quarter)
    if there is None:
        state.quarters = {at: held for at, held in state.quarters.items() if at > quarter - KEPT}
        there = state.quarters[quarter] = [0, 0, 0]
    day = state.day
    in_day = bool(day) and day[0] <= seen.received_ms < day[1]
    for at, more in enumerate(spent):
        there[at] = min(MOST, there[at] + more)
        if in_day:
            day[2 + at] = min(MOST, day[2 + at] + more)
    return state, tuple(_judge(state, seen.received_ms, policy.budget if policy else None))


def lapse(state: Spending, now_ms: int, policy: AgentPolicy | None) -> tuple[Spending | None, Seens]:
    """What time changes: a day that is over, a sum that was not told yet; and what a new policy changes."""
    told = tuple(_judge(state, now_ms, policy.budget if policy else None, settled=True))
    newest = max(state.quarters, default=0)
    if not state.told and newest <= now_ms // QUARTER_MS - KEPT:
        return None, told
    return state, told


def due(state: Spending) -> int | None:
    """When `lapse` is wanted: at midnight, when a sum has settled, and when there is nothing left to keep."""
    wanted = [state.day[1]] if state.told and state.day else []
    if state.restless_ms:
        wanted += [state.restless_ms]
    if not wanted:
        wanted = [(max(state.quarters, default=0) + KEPT) * QUARTER_MS]
    return min(wanted)


def _judge(state: Spending, now_ms: int, budget: Budget | None, *, settled: bool = False) -> Iterator[Sighting | Spent]:
    state.restless_ms = 0
    if budget is None:
        for unit in list(state.told):
            yield from _let_go(state, unit)
        state.day = []
        return
    since, until, tokens, nano, unpriced = _today(state, now_ms, budget.timezone)
    units: tuple[tuple[Unit, float, float | None], ...] = (
        ("tokens", tokens, budget.daily_tokens), ("usd", nano / NANO, budget.daily_cost_usd),
    )  # fmt: skip
    for unit, spent, limit in units:
        if limit is None:
            yield from _let_go(state, unit)
        else:
            yield from _unit(state, unit, spent, limit, (since, until, now_ms), budget, unpriced, settled)
    if unpriced and budget.daily_cost_usd is not None and state.unpriced_ms != since:
        state.unpriced_ms = since
        yield Sighting(
            "warn", f"{state.agent} uses a model without a price, which its budget in USD does not see",
            f"budgets/{state.agent}/unpriced", {"calls_without_a_price": unpriced},
            f"let {state.agent} report cost_usd, or give it daily_tokens in the policy of {state.project}",
        )  # fmt: skip


def _unit(
    state: Spending, unit: Unit, spent: float, limit: float, when: tuple[int, int, int], budget: Budget, unpriced: int,
    settled: bool,
) -> Iterator[Sighting | Spent]:  # fmt: skip
    since, until, now_ms = when
    told = state.told.get(unit)
    if told is None:
        told = Told(0, 0.0, 0.0, UNDER, now_ms)
    level = OVER if spent >= limit else NEAR if spent >= budget.alert_threshold * limit else UNDER
    new_day = told.since_ms != since
    before = UNDER if new_day else told.level
    if new_day and told.level > UNDER:
        yield _over(state, unit)
    elif level < before == OVER or (level == UNDER < before):
        yield _over(state, unit)  # the limit was raised
        before = UNDER
    exhausted = None if level < OVER else now_ms if before < OVER or told.exhausted_ms is None else told.exhausted_ms
    changed = new_day or level != before or limit != told.limit
    moved = abs(spent - told.spent)
    if not (changed or moved >= STEP * limit or (settled and moved and now_ms - told.at_ms >= SETTLED_MS)):
        if moved:
            wants = told.at_ms + SETTLED_MS
            state.restless_ms = min(state.restless_ms, wants) if state.restless_ms else wants
        return
    state.told[unit] = Told(since, spent, limit, level, now_ms, exhausted)
    day = datetime.fromtimestamp(since // 1000, _place(budget.timezone)).date().isoformat()
    yield Spent(unit, spent, limit, day, until, exhausted, _burn(state, unit, limit, now_ms))
    if level > before:
        yield _sighting(state, unit, spent, limit, level, until, budget, unpriced)


def _let_go(state: Spending, unit: str) -> Iterator[Sighting]:
    """The policy limits this no more."""
    told = state.told.pop(unit, None)
    if told is not None and told.level > UNDER:
        yield _over(state, unit)


def _over(state: Spending, unit: str) -> Sighting:
    title = f"{state.agent} has budget again: it is a new day, or its limit was raised"
    return Sighting("info", title, _fingerprint(state, unit), over=True)


def _sighting(
    state: Spending, unit: Unit, spent: float, limit: float, level: int, until: int, budget: Budget, unpriced: int
) -> Sighting:  # fmt: skip
    def shown(amount: float) -> str:
        return f"{amount:,.0f} tokens" if unit == "tokens" else f"${amount:,.2f}"

    key = "daily_tokens" if unit == "tokens" else "daily_cost_usd"
    then = {
        "deny": "everything it asks is denied",
        "approve": "everything it asks waits for a human",
        "alert": "it goes on",
    }
    if level == OVER:
        title = f"{state.agent} has spent its budget of {shown(limit)} for today; {then[budget.on_exhausted]}"
    else:
        title = f"{state.agent} has spent {spent / limit:.0%} of its {shown(limit)} for today"
    evidence: dict[str, object] = {
        "spent": shown(spent), "limit": shown(limit), "resets_at": rfc3339_ms(until), "timezone": budget.timezone,
        "on_exhausted": budget.on_exhausted,
    }  # fmt: skip
    if unpriced and unit == "usd":
        evidence["calls_without_a_price"] = unpriced
    return Sighting(
        "page" if level == OVER else "warn", title, _fingerprint(state, unit), evidence,
        f"banksman now {state.agent}; raise agents.{state.agent}.budget.{key} in the policy of {state.project}, or wait until "
        f"{rfc3339_ms(until)[:16]}Z",
    )  # fmt: skip


def _fingerprint(state: Spending, unit: str) -> str:
    return f"budgets/{state.agent}/{unit}"


def _today(state: Spending, now_ms: int, zone: str) -> tuple[int, int, int, int, int]:
    """-> (since, until, tokens, nano-USD, calls without a price)."""
    since, until = day_of(zone, now_ms // QUARTER_MS)
    if state.day and since < state.day[0] == until:  # clocks differ by a moment: a day that is over does not come back
        since, until = state.day[0], state.day[1]
    if state.day[:2] != [since, until]:
        sums = [0, 0, 0]
        for quarter, held in state.quarters.items():
            if since <= quarter * QUARTER_MS < until:
                sums = [min(MOST, one + more) for one, more in zip(sums, held, strict=True)]
        state.day = [since, until, *sums]
    return state.day[0], state.day[1], state.day[2], state.day[3], state.day[4]


def _burn(state: Spending, unit: Unit, limit: float, now_ms: int) -> float:
    """How fast it was spent in the last hour; 1: a whole day could go on with that."""
    at, size = (0, 1) if unit == "tokens" else (1, NANO)
    newest = now_ms // QUARTER_MS
    return sum(held[at] for quarter, held in state.quarters.items() if quarter > newest - 4) / size / limit * 24


def _place(zone: str) -> tzinfo:
    return UTC if zone == "UTC" else ZoneInfo(zone)


@lru_cache(4096)
def day_of(zone: str, quarter: int) -> tuple[int, int]:
    """(since, until), in ms, of the day in a time zone that a quarter of an hour since 1970 belongs to.

    Python takes a midnight that clocks jump over by the offset before: that is the moment of the jump. Of a midnight that they
    show twice it takes the first.
    """
    place = _place(zone)
    local = datetime.fromtimestamp(quarter * 900, place)
    midnight = datetime(local.year, local.month, local.day, tzinfo=place)
    return int(midnight.timestamp() * 1000), int((midnight + timedelta(days=1)).timestamp() * 1000)


DETECTOR = Detector(
    "budgets", "agent", Spending, frozenset({ModelCall, ToolResult}), step, due=due, lapse=lapse,
)  # fmt: skip
