"""The policies that this replica has in force, from its own folder, and what it tells the others about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from banksman.events import rfc3339
from banksman.policy.compile import Bundle, CompiledPolicy
from banksman.policy.load import load

if TYPE_CHECKING:
    from banksman.enforcer.replica import Replica
    from banksman.policy.verdict import Verdict


@dataclass
class InForce:
    version: str
    file: str
    shadow: bool
    owner: str | None
    since: str


class Policies:
    """INTERIM until PolicyFolder stands."""

    def __init__(self, replica: Replica) -> None:
        self.generation = 0
        self.rejected: dict[str, Any] = {}
        self._in: dict[str, InForce] = {}
        comp = {}
        for p in sorted(Path(replica.settings.policies).glob("*.yaml")):
            if not p.name.endswith("_test.yaml"):
                l = load(p.read_bytes(), p.name)
                comp[l.policy.project] = CompiledPolicy(l.policy)
                self._in[l.policy.project] = InForce(
                    l.policy.version, p.name, l.policy.shadow, l.policy.owner, rfc3339()
                )
        self.bundle = Bundle(comp)

    def decide(
        self, project: str, agent: str, service: str, action: str, resource: str | None, branch: str | None
    ) -> Verdict:
        return self.bundle.decide(project, agent, service, action, resource, branch)

    def explain(self, *a: Any) -> dict[str, Any]:
        return {}

    def versions(self) -> dict[str, str]:
        return self.bundle.versions()

    def in_force(self) -> dict[str, InForce]:
        return self._in

    async def run(self) -> None:
        import asyncio

        await asyncio.Event().wait()
