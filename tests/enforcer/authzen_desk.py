"""An agent that asks in the words of AuthZEN, under a policy of its own, and all that is recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.enforcer.conftest import Answer, Desk, Enforcer, Tape, make_desk, make_replica
from tests.servers import Broker

EVALUATION, EVALUATIONS = "/access/v1/evaluation", "/access/v1/evaluations"


@dataclasses.dataclass
class Gateway:
    """Asks. `tokens`: by agent; the first is the gateway's own."""

    desk: Desk
    enforcer: Enforcer
    tape: Tape
    tokens: dict[str, str]
    project: str

    @property
    def token(self) -> str:
        return next(iter(self.tokens.values()))

    def one(self, body: Any, **more: Any) -> Answer:
        return self.enforcer("POST", EVALUATION, body, **({"token": self.token} | more))

    def several(self, body: Any, **more: Any) -> Answer:
        return self.enforcer("POST", EVALUATIONS, body, **({"token": self.token} | more))


@contextmanager
def open_gateway(
    broker: Broker, folder: Path, policy: str, project: str, *agents: str, **more: str
) -> Iterator[Gateway]:
    desk = make_desk(broker, folder)
    (desk.policies / f"{project}.yaml").write_text(policy)
    tokens: dict[str, str] = {}
    for name in agents:
        credential, enrolled = desk.agent(name, project)
        desk.write(enrolled)
        tokens[name] = credential.token
    replica = make_replica(desk, policies=None, **more)
    try:
        replica.start()
        with Tape(desk.kafka) as tape:
            yield Gateway(desk, replica, tape, tokens, project)
    finally:
        replica.end()
