"""What an approval by AuthZEN is good for: once, for exactly what was denied, for who asked, as long as nothing is stronger."""

from __future__ import annotations

from typing import Any

import pytest
from tests.enforcer.access_desk import (
    EVALUATIONS,
    POLICY,
    REQUESTS,
    USED,
    Office,
    access_request,
    again,
    obeyed,
    reading,
    refused,
    said,
)
from tests.enforcer.conftest import until

from banksman.stamps import uuid7

# ── what it is good for ──


def test_it_is_used_once(office: Office, document: str) -> None:
    asked = reading(document)
    approval = office.approved(asked)
    assert said(office.evaluate(again(asked, approval))) == USED
    for at in (office.one, office.two):
        answer = office.evaluate(again(asked, approval), at=at)
        assert said(answer) == (False, "approval_used", "request")
        assert office.decision(answer.body)["reason"] == answer.body["context"]["recorded_reason"] == "approval_used"
    assert office.submit(access_request(asked, answer.body["context"])).status == 202
    assert office.task(approval["id"]).body["task"]["status"] == "approved"


def test_of_a_batch_one_item_uses_it(office: Office, document: str) -> None:
    asked = reading(document)
    approval = office.approved(asked)
    answer = office.evaluate(again(asked, approval) | {"evaluations": [{}, {}, {}]}, path=EVALUATIONS)
    assert sorted(one["decision"] for one in answer.body["evaluations"]) == [False, False, True]


OTHERS: dict[str, dict[str, Any]] = {
    "subject": {"subject": {"type": "user", "id": "bob@example.com"}},
    "type of subject": {"subject": {"type": "robot", "id": "alice@example.com"}},
    "the agent itself": {"subject": {"type": "agent", "id": "portal"}},
    "properties of the subject": {"subject": {"type": "user", "id": "alice@example.com", "properties": {"team": "x"}}},
    "action": {"action": {"name": "can_write", "properties": {"page": 1}}},
    "arguments": {"action": {"name": "can_read", "properties": {"page": 2}}},
    "no arguments": {"action": {"name": "can_read"}},
    "a number that is another": {"action": {"name": "can_read", "properties": {"page": "1"}}},
    "resource": {"resource": {"type": "document", "id": "another"}},
    "properties of the resource": {"resource": {"properties": {"label": "secret"}}},
    "branch": {"resource": {"properties": {"branch": "main"}}},
    "session": {"context": {"session": "other", "ip": "10.0.0.1"}},
    "context that counts": {"context": {"session": "s", "ip": "10.0.0.2"}},
    "less context that counts": {"context": {"session": "s"}},
}


def other(asked: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    made = asked | change
    if "resource" in change:
        made["resource"] = asked["resource"] | change["resource"]
    return made


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS.keys())
def test_it_is_good_for_exactly_what_was_denied(office: Office, document: str, change: dict[str, Any]) -> None:
    asked = reading(document, session="s", ip="10.0.0.1", time="20:15")
    asked["action"]["properties"] = {"page": 1}
    context = office.denied(asked)
    body = access_request(asked, context)
    refused(office.submit(other(body, change)), 400, "invalid_denial_binding")
    assert office.submit(body | {"context": asked["context"] | {"time": "20:43"}}).status == 202
    task = context["approval"]["id"]
    assert office.settle(task).status == 200
    until(lambda: office.task(task).body["task"]["status"] == "approved")
    changed = office.evaluate(again(other(asked, change), task))
    assert said(changed) == (False, "out_of_scope", "request")
    assert changed.body["context"]["approval"]["id"] != task  # people are asked about the other thing
    assert office.decision(changed.body)["reason"] == "approval_unfit"
    asked["context"] |= {"time": "20:44", "business_justification": "again"}
    assert said(office.evaluate(again(asked, task))) == USED


def test_what_was_given_here_is_not_good_at_decide_nor_the_other_way_round(office: Office, document: str) -> None:
    asked = reading(document) | {"subject": {"type": "agent", "id": "portal"}}
    approval = office.approved(asked)["id"]
    question = {"session": "authzen", "service": "document", "action": "can_read", "resource": document}

    def decide(**more: Any) -> dict[str, Any]:
        answer = office.one("POST", "/v1/decide", question | more, token=office.token("portal"), timeout=30)
        assert answer.status == 200, answer.raw
        body: dict[str, Any] = answer.body
        return body

    told = decide(approval=approval)
    assert (told["decision"], told["reason"]) == ("deny", "approval_unfit")
    mine = decide()["approval"]
    assert mine != approval
    assert office.settle(mine).status == 200
    refused(office.task(mine), 404, "unknown_task")
    assert said(office.evaluate(again(asked, mine)))[:2] == (False, "out_of_scope")
    assert said(office.evaluate(again(asked, approval))) == USED
    assert decide(approval=mine)["decision"] == "allow"


def test_another_agent_neither_polls_nor_uses_nor_asks_for_it(office: Office, document: str) -> None:
    asked = reading(document)
    context = office.denied(asked)
    body = access_request(asked, context)
    refused(office.submit(body, agent="portal-2"), 400, "invalid_denial_binding", "denial.evaluation_id")
    task = office.submit(body).body["task"]["id"]
    for name in (task, uuid7(), "none", "%00"):
        refused(office.task(name, agent="portal-2"), 404, "unknown_task")
    assert office.settle(task).status == 200
    refused(office.task(task, agent="portal-2"), 404, "unknown_task")
    for name in (task, uuid7(), "none", ""):
        answer = office.evaluate(again(asked, name), agent="portal-2")
        assert said(answer) == (False, "approval_unverifiable", "none")
        assert office.decision(answer.body)["decision"] == "deny"
    assert office.one("GET", f"{REQUESTS}/{task}", token=office.people["ann"]).status == 403
    assert said(office.evaluate(again(asked, task))) == USED


def test_nobody_approves_for_himself(office: Office, document: str) -> None:
    task = office.waiting(reading(document))
    answer = office.settle(task, by="alice@example.com")
    assert (answer.status, answer.body["detail"]) == (403, "it is about you: somebody else has to answer")
    assert office.settle(task, by="bob").status == 200


# ── what is stronger than a yes ──


def test_a_never_beats_a_yes(office: Office, document: str) -> None:
    asked = reading(document, "can_sign")
    approval = office.approved(asked)
    file = office.desk.policies / "office.yaml"
    file.write_text(POLICY + "    never: [{service: document, actions: [can_sign]}]\n")
    try:
        obeyed(office, lambda told: told["context"]["reason"] == "never", "can_sign")
        answer = office.evaluate(again(asked, approval))
        assert said(answer) == (False, "policy_denied", "none")
        assert answer.body["context"]["recorded_reason"] == "never"
    finally:
        file.write_text(POLICY)
        obeyed(office, lambda told: told["context"]["reason"] != "never", "can_sign")
    assert said(office.evaluate(again(asked, approval))) == USED  # it was not burnt


def test_when_the_policy_wants_others_people_are_asked_anew(office: Office, document: str) -> None:
    asked = reading(document, "can_write")
    approval = office.approved(asked)
    file = office.desk.policies / "office.yaml"
    file.write_text(POLICY.replace("[can_read, can_write, can_sign]}", "[can_write], approvers: {any: [bob]}}"))
    try:
        obeyed(office, lambda told: "access_request" not in told["context"], "can_sign")
        answer = office.evaluate(again(asked, approval))
        assert said(answer) == (False, "out_of_scope", "request")
        fresh = answer.body["context"]["approval"]["id"]
        assert office.settle(fresh, by="carl").status == 403
    finally:
        file.write_text(POLICY)
        obeyed(office, lambda told: "access_request" in told["context"], "can_sign")


def test_what_the_policy_counted_then_is_what_is_compared(office: Office, document: str) -> None:
    """A claim that is listed later makes nobody ask people again for what they have allowed."""
    asked = reading(document, floor=3)
    context = office.denied(asked)
    file = office.desk.policies / "office.yaml"
    file.write_text(POLICY.replace("claims: [", "claims: [context.floor, "))
    try:
        until(lambda: office.denied(asked)["approval"]["id"] != context["approval"]["id"])
        moved = asked | {"context": {"floor": 4}}
        assert office.submit(access_request(moved, context)).status == 202
        task = context["approval"]["id"]
        assert office.settle(task).status == 200
        until(lambda: office.task(task).body["task"]["status"] == "approved")
        assert said(office.evaluate(again(moved, task))) == USED
        strict = office.denied(asked)
        refused(office.submit(access_request(moved, strict)), 400, "invalid_denial_binding")
    finally:
        before = office.denied(asked)["approval"]["id"]
        file.write_text(POLICY)
        until(lambda: office.denied(asked)["approval"]["id"] != before)


def test_controls_come_before_a_yes(office: Office, document: str) -> None:
    def act(path: str) -> None:
        assert office.two("POST", path, {"reason": "test"}, token=office.desk.admin, timeout=30).status == 200

    asked = reading(document, session=document)
    approval = office.approved(asked, agent="portal-3")
    context = office.denied(reading(document, "can_write", session=document), agent="portal-3")
    act("/v1/projects/office/pause")
    try:
        answer = office.evaluate(again(asked, approval), agent="portal-3")
        assert said(answer) == (False, "policy_denied", "retry")
        assert answer.body["context"]["retry_after"] > 0
        body = access_request(reading(document, "can_write", session=document), context)
        refused(office.submit(body, agent="portal-3"), 400, "not_requestable")
    finally:
        act("/v1/projects/office/resume")
    assert said(office.evaluate(again(asked, approval), agent="portal-3")) == USED
    act(f"/v1/sessions/{document}/kill?agent=portal-3")
    assert said(office.evaluate(again(asked, approval), agent="portal-3")) == (False, "policy_denied", "none")
