"""What the demo does as the operator: says yes to one action, kills one session, and looks whether both held."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from banksman.cli import approvals, show

if TYPE_CHECKING:
    from banksman.cli.client import Client
    from banksman.cli.demo.live import Live

SQL = """
SELECT countIf(reason = 'approved' AND approval IN {approvals:Array(String)}),
    countIf(reason = 'killed' AND session IN {killed:Array(String)}),
    countIf(decision != 'deny' AND session IN {killed:Array(String)} AND received > control.received)
FROM events LEFT JOIN (
    SELECT session, max(received) AS received FROM events WHERE kind = 'session.killed' AND verified GROUP BY session
) AS control USING session
WHERE kind = 'decision' AND verified AND replay = ''
"""


@dataclass
class Operator:
    """`approved`, `killed`: what was done, by approval and session."""

    enforcer: Client
    approved: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)

    def approve(self, live: Live, approval: str) -> None:
        """Say yes."""
        told = self.enforcer.post(
            f"/v1/approvals/{approval}", {"verdict": "approve", "comment": "agreed with the team"}
        )
        self.approved.append(approval)
        with live.printing:
            show.say(
                f"operator  approves  {told['agent']}: {approvals.operation(told)}    $ banksman approve {approval}",
                "bold",
            )

    def kill(self, live: Live, agent: str, session: str) -> None:
        """End it."""
        path = f"/v1/sessions/{session}/kill"
        told = self.enforcer.ask("POST", path, {"agent": agent}, {"reason": "it deletes what is still needed"})
        self.killed.append(session)
        with live.printing:
            where = f"in force on {told['in_force']}/{told['replicas']} enforcers in {told['took_ms']:.0f} ms"
            show.say(f"operator  kills     session {session} of {agent}: {where}    $ banksman kill {session}", "bold")

    def verdict(self, console: Client) -> int:
        """Say what came of it -> the exit code."""
        asked = {"approvals": self.approved, "killed": self.killed}
        answer = console.post("/v1/sql", {"query": SQL, "parameters": asked, "format": "json"})
        used, denied, allowed = map(int, answer["rows"][0])
        show.say(f"  approvals  {len(self.approved)} given, {used} used, each once")
        show.say(f"  kills      {len(self.killed)}; afterwards {denied} questions denied, {allowed} allowed")
        right = used == len(self.approved) > 0 and denied > 0 and allowed == 0 and len(self.killed) > 0
        if not right:
            show.say("  WRONG: an approval was not used exactly once, or a killed session was not denied", "red")
        return 0 if right else 1
