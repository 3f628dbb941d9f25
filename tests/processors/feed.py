"""A session's records for a detector, one after the other, by a clock of the test's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from banksman import events, stamps
from banksman.events import Event
from banksman.processors.detector import Detector, Seen, Sighting

NOW = 1_764_000_000_000


def policy(on_loop: str = "alert", on_anomaly: str = "alert") -> Any:
    """Of an agent, as far as detectors look at it."""
    from banksman.policy.rules import AgentPolicy

    return AgentPolicy(None, (), None, on_loop, on_anomaly)  # type: ignore[arg-type]  # one of the three words


@dataclass
class Feed:
    """Feeds one detector of one scope. `through`: encode and decode the state between any two steps."""

    detector: Detector[Any]
    agent: str = "a"
    session: str = "s"
    policy: Any = None
    through: bool = False
    ms: int = NOW
    state: Any = None
    said: list[Sighting] = field(default_factory=list)
    largest: int = 0
    """Bytes of the largest state, where `through`."""
    _count: int = 0

    def see(self, event: Event, *, late: bool = False, cost_nano: int | None = None) -> list[Sighting]:
        """A record comes in."""
        if type(event) not in self.detector.kinds:
            return []
        seen = Seen(event, event.topic, 0, self._count, self.ms, late, cost_nano)
        state, told = self.detector.step(self._before(), seen, self.policy)
        return self._after(state, told)

    def lapse(self, now_ms: int | None = None) -> list[Sighting]:
        """Time passes; without a moment: until the state wants to be asked, and no further."""
        before = self._before()
        due = self.detector.due(before)
        if now_ms is None:
            assert due is not None
            now_ms = due
        self.ms = max(self.ms, now_ms)
        return self._after(*self.detector.lapse(before, now_ms, self.policy))

    def make(self, kind: type[Event], **fields: Any) -> Any:
        """An event of this agent and session, a millisecond after the one before."""
        self.ms += 1
        self._count += 1
        common = {"v": 1, "id": self.id(), "time": stamps.rfc3339_ms(self.ms), "source": "test#1", "project": "p"}
        return kind(**{**common, "agent": self.agent, "session": self.session, **fields})

    def id(self) -> str:
        """The same in every run of a test."""
        self._count += 1
        return stamps.uuid7_from(self.ms, self.session, str(self._count))

    def call(self, action: str = "read", resource: str | None = "r", **fields: Any) -> events.ToolCall:
        """A call is made known -> its event."""
        late = fields.pop("late", False)
        made: events.ToolCall = self.make(
            events.ToolCall, **{"service": "files", "action": action, "resource": resource, **fields}
        )
        self.see(made, late=late)
        return made

    def result(self, call: events.ToolCall, status: str = "ok", **fields: Any) -> list[Sighting]:
        """What came of it."""
        late = fields.pop("late", False)
        name = call.call or call.id
        made = self.make(events.ToolResult, **{"call": name, "parent": name, "status": status, **fields})
        return self.see(made, late=late)

    def decide(self, asked: events.ToolCall | None, decision: str = "allow", **fields: Any) -> events.Decision:
        """The enforcer's answer about a call -> its event."""
        about: dict[str, Any] = {"tier": 1, "reason": "allowed", "decision": decision}
        if asked is not None:
            about["call"] = asked.call or asked.id
            about |= {name: getattr(asked, name) for name in ("service", "action", "resource", "branch", "args_hash")}
        made: events.Decision = self.make(events.Decision, **{**about, **fields})
        self.see(made)
        return made

    def _before(self) -> Any:
        if self.state is None:
            return self.detector.state()
        if self.through:
            raw = msgspec.msgpack.encode(self.state)
            self.largest = max(self.largest, len(raw))
            return msgspec.msgpack.decode(raw, type=self.detector.state)
        return self.state

    def _after(self, state: Any, told: Any) -> list[Sighting]:
        self.state = state
        found = [one for one in told if isinstance(one, Sighting)]
        self.said += found
        return found
