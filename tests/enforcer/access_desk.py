"""Gateways that ask for what they were denied, on two replicas, and the people who answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.enforcer.authzen_desk import EVALUATION, EVALUATIONS
from tests.enforcer.conftest import Answer, Desk, Enforcer, Tape, two_replicas, until
from tests.servers import Broker

from banksman.events import Event
from banksman.topics import Topic

REQUESTS = "/access/v1/requests"
ERROR = "urn:openid:authzen:access-request:error:"
POLICY = """\
project: office
claims: [context.ip, resource.label]
agents:
  "agent_renewal_assistant_v3":
    require_approval: [{service: tool, actions: [invoke]}]
  "portal*":
    allow:
      - {service: document, actions: [can_list]}
    require_approval:
      - {service: document, actions: [can_read, can_write, can_sign]}
      - {service: document, actions: [can_peek], approvers: {expires: 2s}}
      - {service: document, actions: [can_share], approvers: {any: [ann]}}
"""
ROOM = {"BANKSMAN_AGENT_RATE": "100000", "BANKSMAN_AGENT_SESSIONS": "10000", "BANKSMAN_AGENT_APPROVALS": "1000"}
AGENTS = ("portal", "portal-2", "portal-3", "portal-4", "agent_renewal_assistant_v3")


def reading(document: str, action: str = "can_read", who: str = "alice@example.com", **context: Any) -> dict[str, Any]:
    return {
        "subject": {"type": "user", "id": who}, "resource": {"type": "document", "id": document}, "action": {"name": action},
        "context": context,
    }  # fmt: skip


@dataclass
class Office:
    desk: Desk
    tape: Tape
    one: Enforcer
    two: Enforcer
    people: dict[str, str]

    def token(self, agent: str) -> str:
        return self.desk.agents[agent].token

    def evaluate(
        self, asked: Any, *, at: Enforcer | None = None, agent: str = "portal", path: str = EVALUATION, **more: Any
    ) -> Answer:
        return (at or self.one)("POST", path, asked, token=self.token(agent), timeout=30, **more)

    def denied(self, asked: dict[str, Any], **more: Any) -> dict[str, Any]:
        """The context of a denial that can be asked for."""
        answer = self.evaluate(asked, **more)
        assert answer.status == 200, answer.raw
        assert answer.body["decision"] is False
        context: dict[str, Any] = answer.body["context"]
        assert context["reason"] == "approval_required", context
        return context

    def submit(
        self, body: Any, *, at: Enforcer | None = None, agent: str = "portal", key: str | None = None, **more: Any
    ) -> Answer:
        headers = {"Idempotency-Key": key} if key is not None else {}
        return (at or self.one)("POST", REQUESTS, body, token=self.token(agent), headers=headers, timeout=30, **more)

    def task(self, name: str, *, at: Enforcer | None = None, agent: str = "portal") -> Answer:
        return (at or self.one)("GET", f"{REQUESTS}/{name}", token=self.token(agent), timeout=30)

    def settle(
        self, name: str, verdict: str = "approve", *, by: str = "carl", at: Enforcer | None = None, **more: Any
    ) -> Answer:
        body = {"verdict": verdict} | more
        return (at or self.two)("POST", f"/v1/approvals/{name}", body, token=self.people[by], timeout=30)

    def waiting(self, asked: dict[str, Any], **more: Any) -> str:
        """The task of what was just denied and asked for."""
        answer = self.submit(access_request(asked, self.denied(asked, **more)), **more)
        assert answer.status == 202, answer.raw
        name: str = answer.body["task"]["id"]
        return name

    def approved(self, asked: dict[str, Any], **more: Any) -> dict[str, Any]:
        """The approval of what was just denied, asked for and approved."""
        name = self.waiting(asked, **more)
        assert self.settle(name).status == 200
        body = until(lambda: (told := self.task(name, **more).body)["task"]["status"] == "approved" and told)
        approval: dict[str, Any] = body["result"]["approval"]
        return approval

    def told(self, topic: Topic, kind: str, approval: str) -> list[dict[str, Any]]:
        """What is on the log of this kind about an approval, once there is something."""
        return self.tape.wait(topic, lambda one: one.get("kind") == kind and one.get("approval") == approval)

    def decision(self, told: dict[str, Any]) -> dict[str, Any]:
        """The record behind an answer."""
        (found,) = self.tape.wait(Topic.DECISIONS, lambda one: one["id"] == told["context"]["id"])
        return found


def access_request(asked: dict[str, Any], context: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The access request for a denial of `asked`, whose `context` it is."""
    denial = {
        "evaluation_id": context["evaluation_id"], "evaluated_at": context["evaluated_at"], "reason": context["reason"],
        "expires_at": context["access_request"]["expires_at"],
    }  # fmt: skip
    return {key: value for key, value in asked.items() if value} | {"denial": denial} | more


def again(asked: dict[str, Any], approval: dict[str, Any] | str) -> dict[str, Any]:
    """The same once more, with its approval."""
    given = {"id": approval} if isinstance(approval, str) else approval
    return asked | {"context": asked.get("context", {}) | {"approval": given}}


def refused(answer: Answer, status: int, word: str = "", field: str | None = None) -> None:
    """A problem of the profile; of ours, where it has no `word` for it."""
    assert answer.status == status, answer.raw
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.body["type"] == (ERROR + word if word else "about:blank")
    assert answer.body["status"] == status
    assert answer.body["detail"]
    if field is not None:
        assert answer.body.get("field", "") == field, answer.body


def said(answer: Answer) -> tuple[Any, ...]:
    """What a caller goes by after it has named an approval."""
    assert answer.status == 200, answer.raw
    context = answer.body["context"]
    return answer.body["decision"], context.get("reason"), context.get("next_action")


USED = (True, "approved", None)


@contextmanager
def open_office(broker: Broker, folder: Path) -> Iterator[Office]:
    with two_replicas(broker, folder, **ROOM) as (desk, tape, one, two):
        (desk.policies / "office.yaml").write_text(POLICY)
        people, events = {"root": desk.admin, "vera": desk.viewer}, list[Event]()
        for name in ("ann", "bob", "carl", "alice@example.com"):
            people[name], event = desk.operator(name, "approver")
            events.append(event)
        for name in AGENTS:
            desk.agents[name], event = desk.agent(name, "office")
            events.append(event)
        desk.write(*events)
        made = Office(desk, tape, one, two, people)
        obeyed(made, lambda told: told["decision"] is True)
        yield made


def obeyed(office: Office, condition: Callable[[dict[str, Any]], bool], action: str = "can_list", **more: Any) -> None:
    """Wait until both replicas answer so."""

    def so(at: Enforcer) -> bool:
        answer = office.evaluate(reading("probe", action), at=at, **more)
        return answer.status == 200 and condition(answer.body)

    for at in (office.one, office.two):
        until(partial(so, at))


__all__ = ["EVALUATION", "EVALUATIONS", "REQUESTS"]
