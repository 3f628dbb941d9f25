"""A worker and an enforcer on one log, and agents that speak to both over HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.enforcer.conftest import Answer, Desk, Enforcer, Tape, make_desk, make_replica, until
from tests.processors.working import Floor
from tests.servers import Broker

from banksman.stamps import rfc3339, uuid7


@dataclass
class House:
    desk: Desk
    floor: Floor
    enforcer: Enforcer
    agents: dict[str, Any]

    def ask(self, agent: str, action: str = "pull", **more: Any) -> Answer:
        body = {"session": "s1", "service": "git", "action": action} | more
        return self.enforcer("POST", "/v1/decide", body, token=self.agents[agent].token)

    def reason(self, agent: str, action: str = "pull", **more: Any) -> str:
        answer = self.ask(agent, action, **more)
        return str(answer.body.get("reason") or answer.body["detail"])

    def report(self, agent: str, kind: str, **fields: Any) -> str:
        """Over HTTP, as agents do -> the event's id."""
        event = {
            "v": 1, "kind": kind, "id": uuid7(), "time": rfc3339(), "source": "test", "session": "s1",
        } | fields  # fmt: skip
        answer = self.enforcer("POST", "/v1/events", event, token=self.agents[agent].token)
        assert answer.status == 200, answer.raw
        return str(event["id"])

    def spend(self, agent: str, tokens: int = 0, **fields: Any) -> None:
        self.report(agent, "model.call", model="m", input_tokens=tokens, **fields)


@contextmanager
def open_house(
    broker: Broker,
    folder: Path,
    policies: Mapping[str, str],
    names: Mapping[str, str],
    *,
    worker: bool = True,
    **more: str,
) -> Iterator[House]:
    """`policies`: by project. `names`: agent -> project."""
    desk = make_desk(broker, folder)
    for project, text in policies.items():
        (desk.policies / f"{project}.yaml").write_text(text)
    agents = {}
    for name, project in names.items():
        agents[name], event = desk.agent(name, project)
        desk.write(event)
    enforcer = make_replica(desk, "enforcer", policies=None, **({"BANKSMAN_AGENT_RATE": "1000000"} | more))
    with Tape(desk.kafka) as tape:
        floor = Floor(desk.kafka, desk.secret, folder, tape)
        try:
            enforcer.start()
            if worker:
                floor.ready(floor.start())
            made = House(desk, floor, enforcer, agents)
            if worker:
                until(lambda: all(made.ask(name).status == 200 for name in agents), 20)
            yield made
        finally:
            enforcer.end()
            floor.end()
