"""What a policy in shadow mode would have stopped, told as such: the action was allowed, and somebody tries the policy out.

Each operation of an agent is told once, and again each hour in which it happens, with how often since: what would have been
denied to people, what would have waited for one of them in the log. A decision that came late counts like any other: it is
about what a policy says, not about rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import field

from banksman.events import Decision
from banksman.processors.detector import Detector, Sighting
from banksman.processors.operation import digest, label

if TYPE_CHECKING:
    from banksman.policy.rules import AgentPolicy
    from banksman.processors.detector import Seen, Seens

QUIET_MS = 3_600_000
OPERATIONS = 64
"""So many of an agent are told apart; of more, those are forgotten that happened longest ago, and told anew."""
_STRICTNESS = {"allow": 0, "approve": 1, "deny": 2}


class Told(msgspec.Struct, array_like=True):
    """An operation: when it was told last, and how often it has happened since."""

    at_ms: int
    last_ms: int
    since: int = 0


class State(msgspec.Struct, array_like=True):
    """Of one agent. By the digest of service, action and what would have been answered."""

    told: dict[bytes, Told] = field(default_factory=dict)


def step(state: State, seen: Seen, _policy: AgentPolicy | None) -> tuple[State | None, Seens]:
    """One decision."""
    event = seen.event
    assert isinstance(event, Decision), event
    would = event.shadow
    if would is None or _STRICTNESS[would] <= _STRICTNESS[event.decision]:
        return (state if state.told else None), ()
    key = digest(event.service, event.action, would)
    known = state.told.get(key)
    if known is not None and seen.received_ms - known.at_ms < QUIET_MS:
        known.since += 1
        known.last_ms = max(known.last_ms, seen.received_ms)
        return state, ()
    count = known.since + 1 if known is not None else 1
    state.told[key] = Told(seen.received_ms, seen.received_ms)
    while len(state.told) > OPERATIONS:
        del state.told[min(state.told, key=lambda one: state.told[one].last_ms)]
    return state, (_sighting(event, would, count),)


def _sighting(event: Decision, would: str, count: int) -> Sighting:
    then = "been denied" if would == "deny" else "waited for a human"
    often = f"{count} times, " if count > 1 else ""
    return Sighting(
        "warn" if would == "deny" else "info",
        f"{event.project}/{event.agent}: {often}{label(event)} was allowed, and would have {then} (shadow mode)",
        f"shadow/{event.agent}/{digest(event.service, event.action, would).hex()}",
        {"operation": label(event), "would": would, "policy_version": event.policy_version, "not_enforced": True},
        "nothing was stopped: mend the policy, or enforce it with mode: enforce",
        count=count,
        session=event.session,
    )


DETECTOR = Detector("shadow", "agent", State, frozenset({Decision}), step)
