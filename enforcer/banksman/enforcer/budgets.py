"""What `limits` says: how much of their budgets agents have spent, and up to when that is known.

Processors tell what was spent; whether that is too much says the policy that is in force here, so that a limit that is raised
holds on the next request. Where nobody has counted lately, an agent whose budget denies or asks gets no answer: a brake that
may not be there must not be driven with.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Literal, NamedTuple

from banksman.bus import follow
from banksman.events import Budget, Watermark
from banksman.service_events import service_event
from banksman.signing import Verifier
from banksman.stamps import moment_ms
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiokafka.structs import ConsumerRecord

    from banksman.enforcer.policies import Policies
    from banksman.policy.rules import Budget as Limits
    from banksman.settings import Enforcer, Kafka
    from banksman.signing import Secret


class Spent(NamedTuple):
    """What an agent has spent of one unit in the day that ends at `resets_ms`."""

    unit: Literal["tokens", "usd"]
    spent: float
    resets_at: str
    resets_ms: float
    counted: dict[str, int]
    at_ms: float


class Exhausted(NamedTuple):
    """A budget that is spent, and what the policy wants then."""

    unit: Literal["tokens", "usd"]
    spent: float
    limit: float
    resets_at: str
    then: Literal["deny", "approve"]
    shadow: bool
    """The project's policy is in shadow mode: it is only noted."""

    def told(self) -> dict[str, object]:
        """As JSON."""
        return {"unit": self.unit, "spent": self.spent, "limit": self.limit, "resets_at": self.resets_at}


class Unknown(NamedTuple):
    """Nobody has counted this agent's partition for `seconds`; None: nobody ever has, as far as is known here."""

    seconds: float | None
    shadow: bool


class Budgets:
    """`held` is asked for every decision. `clock`: seconds, also those of suspend."""

    def __init__(
        self, kafka: Kafka, secret: Secret, settings: Enforcer, policies: Policies, clock: Callable[[], float]
    ) -> None:
        self._kafka, self._topic, self._verifier = kafka, kafka.topic(Topic.LIMITS), Verifier(secret)
        self._policies, self._clock, self._stale_s = policies, clock, settings.budget_stale_s
        self._spent: dict[str, dict[str, Spent]] = {}
        self.counted_to: dict[int, float] = {}
        """Up to when, on this replica's clock, each partition is known to be counted."""
        self.unknown = 0
        """Questions that got no answer because nobody had counted."""

    def held(self, project: str, agent: str, partition: int) -> Exhausted | Unknown | None:
        """Why an agent may not go on as its rules say; None: it may."""
        compiled = self._policies.bundle.policies.get(project)
        known = compiled.agent(agent) if compiled is not None else None
        limits = known.budget if known is not None else None
        if compiled is None or limits is None or limits.on_exhausted == "alert":
            return None
        since = self._clock() - self.counted_to.get(partition, -1e9)
        if since > self._stale_s:
            return Unknown(since if since < 1e8 else None, compiled.is_shadow(agent))
        spent = self._spent.get(agent)
        return None if spent is None else self._exhausted(spent, limits, compiled.is_shadow(agent))

    def _exhausted(self, spent: dict[str, Spent], limits: Limits, shadow: bool) -> Exhausted | None:
        for unit, limit in (("tokens", limits.daily_tokens), ("usd", limits.daily_cost_usd)):
            told = spent.get(unit)
            if limit is not None and told is not None and told.spent >= limit and time.time() * 1000 < told.resets_ms:
                then: Literal["deny", "approve"] = "approve" if limits.on_exhausted == "approve" else "deny"
                return Exhausted(told.unit, told.spent, limit, told.resets_at, then, shadow)
        return None

    async def run(self) -> None:
        """Read `limits`, for as long as the process lives. Raises when the log under the reader is gone."""
        async with aclosing(follow(self._kafka, self._topic)) as batches:
            async for batch in batches:
                for record in batch:
                    self._apply(record)

    def status(self, partitions: int) -> dict[str, object]:
        """For `/v1/status`: of each partition, how long ago all was counted (None: never), and whether that is soon enough.
        `limited`: whether any agent has a budget that denies or asks.
        """
        now = self._clock()
        since = {number: now - self.counted_to.get(number, -1e9) for number in range(partitions)}
        return {
            "counted": [
                {
                    "partition": number,
                    "counted_s_ago": round(ago, 3) if ago < 1e8 else None,
                    "known": ago <= self._stale_s,
                }
                for number, ago in since.items()
            ],
            "unknown": self.unknown,
            "limited": any(
                agent.budget is not None and agent.budget.on_exhausted != "alert"
                for compiled in self._policies.bundle.policies.values()
                for agent in compiled.policy.agents.values()
            ),
        }

    def _apply(self, record: ConsumerRecord) -> None:
        """Take in a record that a service of ours has signed. What counts less than is known is late, or a copy."""
        told = service_event(record, Topic.LIMITS, self._topic, self._verifier)
        event = told[0] if told is not None else None
        if isinstance(event, Watermark):
            # A mark that waited for Kafka, or is a copy, is as old as it says that it is.
            age_ms = max(0.0, time.time() * 1000 - min(record.timestamp, moment_ms(event.time))) + event.lag_ms
            to = self._clock() - age_ms / 1000
            self.counted_to[event.partition] = max(to, self.counted_to.get(event.partition, to))
        elif isinstance(event, Budget) and event.resets_at is not None:
            units = self._spent.setdefault(event.agent, {})
            known, at_ms = units.get(event.unit), moment_ms(event.time)
            # Times say which is newer only of what counts the same: of some it is the broker's, of some the worker's.
            same = known is not None and event.offsets == known.counted
            if known is None or (at_ms >= known.at_ms if same else _counts_as_much(event.offsets, known.counted)):
                units[event.unit] = Spent(
                    event.unit, event.spent, event.resets_at, moment_ms(event.resets_at), event.offsets, at_ms
                )


def counted(unknown: Unknown) -> str:
    """Since when nobody has counted, in words."""
    if unknown.seconds is None:
        return "no processor has counted what this agent spends"
    return f"what this agent spends was last counted {unknown.seconds:.0f} s ago"


def _counts_as_much(offsets: dict[str, int], known: dict[str, int]) -> bool:
    return all(offsets.get(place, -1) >= offset for place, offset in known.items())
