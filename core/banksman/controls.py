"""Which controls are in force: agents revoked, sessions killed, projects paused, as the `control` topic says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from banksman.events import AgentRestored, AgentRevoked, ProjectPaused, ProjectResumed, SessionKilled, kind_of

if TYPE_CHECKING:
    from banksman.events import Event


@dataclass(frozen=True)
class InForce:
    """One act of an operator that holds. `offset`: where it lies in `control`; `at`: when it was written."""

    kind: str
    offset: int
    at: str
    by: str | None
    reason: str | None

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {"kind": self.kind, "by": self.by, "reason": self.reason, "at": self.at}


class Controls:
    """The state that the records of controls add up to. Feed it every verified record in offset order."""

    def __init__(self) -> None:
        self.revoked: dict[str, InForce] = {}
        self.killed: dict[tuple[str, str], InForce] = {}
        """By (agent, session). A kill is for good."""
        self.paused: dict[str, InForce] = {}

    def apply(self, event: Event, offset: int) -> bool:
        """Take in a record; True when it changed what is in force.

        Lifting names the offset that it lifts: one that was sent again by a producer that would not give up never lifts
        a newer control.
        """
        if isinstance(event, AgentRevoked):
            self.revoked[event.agent] = _in_force(event, offset)
        elif isinstance(event, SessionKilled):
            self.killed.setdefault((event.agent, event.session), _in_force(event, offset))
        elif isinstance(event, ProjectPaused):
            self.paused[event.project] = _in_force(event, offset)
        elif isinstance(event, AgentRestored):
            return _lift(self.revoked, event.agent, event.lifts)
        elif isinstance(event, ProjectResumed):
            return _lift(self.paused, event.project, event.lifts)
        else:
            return False
        return True

    def first(self, project: str, agent: str, session: str) -> InForce | None:
        """The first of what `on` gives. Asked for every decision."""
        return self.killed.get((agent, session)) or self.revoked.get(agent) or self.paused.get(project)

    def on(self, project: str | None, agent: str, session: str | None) -> list[InForce]:
        """What holds for a session of an agent: its own kill first, then the agent's, then the project's."""
        found = (self.killed.get((agent, session or "")), self.revoked.get(agent), self.paused.get(project or ""))
        return [one for one in found if one is not None]

    def told(self) -> dict[str, Any]:
        """What is in force, for people: killed sessions, which only grow in number, as how many there are."""
        return {
            "revoked": [{"agent": name} | one.told() for name, one in sorted(self.revoked.items())],
            "paused": [{"project": name} | one.told() for name, one in sorted(self.paused.items())],
            "killed": len(self.killed),
        }


def _in_force(event: AgentRevoked | SessionKilled | ProjectPaused, offset: int) -> InForce:
    return InForce(kind_of(event), offset, event.time, event.by, event.reason)


def _lift(held: dict[str, InForce], name: str, lifts: int) -> bool:
    if name in held and held[name].offset <= lifts:
        del held[name]
        return True
    return False
