"""The AuthZEN Access Request and Approval Profile, draft 1: denied, asked for, answered by people, evaluated again.

The first tests are the profile's own examples. What of them is not here: signed tokens, forms, callbacks, approvals for a
class of things. Where we are stricter (used once, nobody approves for himself) there is a test that says so.
"""

from __future__ import annotations

from typing import Any

from tests.enforcer.access_desk import (
    REQUESTS,
    USED,
    Office,
    access_request,
    again,
    reading,
    refused,
    said,
)
from tests.enforcer.conftest import Answer, until

from banksman.topics import Topic

# ── the profile's examples ──


def test_manager_approval(office: Office) -> None:
    """Appendix *End-to-End Manager Approval*; every step on the replica that did not take the one before."""
    one, two = office.one, office.two
    asked = {
        "subject": {"type": "user", "id": "alice@example.com"},
        "resource": {"type": "document", "id": "q4-plan"},
        "action": {"name": "can_read"},
        "context": {"time": "2026-04-30T20:15:00Z"},
    }
    answer = office.evaluate(asked, at=one)
    context = answer.body["context"]
    assert (answer.status, answer.body["decision"], context["reason"]) == (200, False, "approval_required")
    assert context["access_request"]["endpoint"] == one.base + REQUESTS
    assert set(context["access_request"]) == {"endpoint", "expires_at"}
    assert context["evaluated_at"] == office.decision(answer.body)["time"] < context["access_request"]["expires_at"]

    submission = asked | {
        "context": {"business_justification": "Needed for customer renewal review"},
        "requested_access": {"requested_until": "2026-05-01T00:15:00Z"},
        "denial": {
            "evaluation_id": context["evaluation_id"],
            "evaluated_at": context["evaluated_at"],
            "expires_at": context["access_request"]["expires_at"],
            "reason": "approval_required",
        },
    }
    key = "7b8d0f0d-65a1-4af1-9fd3-a684f08a5d13"
    answer = office.submit(submission, at=two, key=key)
    assert answer.status == 202, answer.raw
    task = answer.body["task"]
    assert (task["status"], "result" in answer.body, "links" in task) == ("pending", False, False)
    assert answer.headers["location"] == task["status_endpoint"] == f"{two.base}{REQUESTS}/{task['id']}"
    assert int(answer.headers["retry-after"]) > 0
    assert task["expires_at"] > context["access_request"]["expires_at"]

    polled = office.task(task["id"], at=one)
    assert (polled.status, polled.headers["cache-control"]) == (200, "no-store")
    assert polled.body == {"task": task | {"status_endpoint": f"{one.base}{REQUESTS}/{task['id']}"}}
    shown = one("GET", f"/v1/approvals/{task['id']}", token=office.people["vera"]).body
    assert (shown["agent_says"], shown["subject"]) == (
        "Needed for customer renewal review",
        "user:alice@example.com",
    )
    early = office.evaluate(again(asked, task["id"]), at=one)
    assert said(early) == (False, "approval_required", "retry")
    assert early.body["context"]["retry_after"] > 0
    assert office.settle(task["id"], comment="fine").status == 200

    told = until(lambda: (found := office.task(task["id"], at=two).body)["task"]["status"] != "pending" and found)
    approval = told["result"]["approval"]
    assert (told["task"]["status"], told["result"]["mode"]) == ("approved", "reevaluate")
    assert told["task"]["display"] == {"description": "fine"}
    assert approval["approved_at"] < approval["approved_until"] == context["access_request"]["expires_at"]

    asked["context"] = {"time": "2026-04-30T20:43:00Z"}
    final = office.evaluate(again(asked, approval), at=one)
    assert (final.body["decision"], final.body["context"]["approval"]) == (
        True,
        {name: approval[name] for name in ("id", "approved_until")},
    )
    record = office.decision(final.body)
    assert (record["decision"], record["reason"], record["approval"], record["subject"]) == (
        "allow", "approved", approval["id"], "user:alice@example.com",
    )  # fmt: skip
    (used,) = office.told(Topic.DECISIONS, "approval.used", approval["id"])
    assert used["parent"] == record["id"]
    assert (used["approval"], used["approver"]) == (approval["id"], "carl")
    (requested,) = office.told(Topic.CONTROL, "access.requested", approval["id"])
    assert (requested["agent"], requested["parent"]) == ("portal", context["evaluation_id"].partition(".")[0])
    assert key.encode() not in requested["_raw"]


def test_agent_tool_discovery(office: Office) -> None:
    """Appendix *End-to-End Agent Tool Discovery*: who acts may be told in the subject or as `client.actor`."""
    name = "agent_renewal_assistant_v3"
    alice = {"type": "user", "id": "alice@example.com"}
    act = {"iss": "https://agents.example.com", "sub": name, "sub_profile": "ai_agent"}
    asked: dict[str, Any] = {
        "subject": alice | {"properties": {"act": act}},
        "resource": {"type": "tool", "id": "crm.search_accounts"},
        "action": {"name": "invoke"},
        "context": {"time": "2026-05-12T15:00:00Z"},
    }
    context = office.denied(asked, agent=name)
    actor: dict[str, Any] = {"id": name, "issuer": "https://agents.example.com", "type": "ai_agent"}
    client: dict[str, Any] = {
        "id": "renewal_assistant", "actor": actor, "source": {"session_id": "session_01HX69WJ8Q0K7P4F0V0K9D6Z7N"}
    }  # fmt: skip
    body = access_request(
        asked | {"subject": alice, "context": {"business_justification": "Q2"}}, context, client=client
    )
    callback = {"endpoint": "https://agents.example.com/callbacks/access-requests", "events": ["approved"]}
    refused(office.submit(body | {"callback": callback}, agent=name), 400, field="callback")
    for wrong, field in (
        (actor | {"id": "portal"}, "client.actor.id"),
        (actor | {"act": {"sub": "boss", "iss": "x"}}, "client.actor.act"),
    ):
        refused(office.submit(body | {"client": client | {"actor": wrong}}, agent=name), 403, field=field)
    answer = office.submit(body, agent=name, key="9c1f5d12-2a18-4cba-8a5e-e0e8e2b6b5c7")
    assert answer.status == 202, answer.raw
    task = answer.body["task"]["id"]
    assert office.settle(task).status == 200
    told = until(lambda: (found := office.task(task, agent=name).body)["task"]["status"] == "approved" and found)
    assert said(office.evaluate(again(asked, told["result"]["approval"]), agent=name)) == USED


def test_what_the_error_example_says(office: Office, document: str) -> None:
    """*Error Responses*: an evaluation that cannot be asked for has no id to ask with."""
    told = office.evaluate(reading(document, "can_list")).body
    assert "evaluation_id" not in told["context"]
    never = office.evaluate(reading(document, "can_fly")).body
    assert (never["decision"], "access_request" in never["context"]) == (False, False)
    body = access_request(reading(document), office.denied(reading(document)))
    for name in (told["context"]["id"], never["context"]["id"], "eval_01HX4Y2P8BQ4Y3F0V0K9D6Z7M1", "", "..", "é.é.é"):
        forged = body | {"denial": body["denial"] | {"evaluation_id": name}}
        refused(office.submit(forged), 400, "invalid_denial_binding", "denial.evaluation_id")


# ── how a task ends ──


def test_a_no_stays_a_no(office: Office, document: str) -> None:
    asked = reading(document)
    task = office.waiting(asked)
    assert office.settle(task, "deny", comment="not this one").status == 200
    told = until(lambda: (found := office.task(task).body)["task"]["status"] == "denied" and found)
    assert told["task"]["display"] == {"description": "not this one"}
    assert "result" not in told
    answer = office.evaluate(again(asked, task))
    assert said(answer) == (False, "approval_denied", "none")
    assert "access_request" not in answer.body["context"]
    assert office.decision(answer.body)["decision"] == "deny"
    assert office.denied(asked)["approval"]["id"] != task  # who asks without it asks people anew


def test_what_nobody_answers_expires(office: Office, document: str) -> None:
    asked = reading(document, "can_peek")
    context = office.denied(asked)
    body = access_request(asked, context)
    first = office.submit(body, key=document)
    assert first.status == 202, first.raw
    task = first.body["task"]["id"]
    until(lambda: office.task(task).body["task"]["status"] == "expired")
    refused(office.submit(body | {"context": {"business_justification": "late"}}), 410, "expired_denial")
    late = office.submit(body, key=document)  # the same request again is told how it ended
    assert (late.status, late.body["task"]["status"]) == (201, "expired")
    revived = body | {"denial": body["denial"] | {"expires_at": "2099-01-01T00:00:00Z"}}
    refused(office.submit(revived), 400, "invalid_denial_binding", "denial.expires_at")
    assert len(office.told(Topic.CONTROL, "access.requested", task)) == 1  # what is refused leaves no record
    answer = office.evaluate(again(asked, task))
    assert said(answer) == (False, "approval_expired", "request")
    fresh = answer.body["context"]
    assert fresh["approval"]["id"] != task
    assert office.submit(access_request(asked, fresh)).status == 202


def test_a_yes_that_was_not_used_in_time_is_over(office: Office, document: str) -> None:
    asked = reading(document, "can_peek")
    approval = office.approved(asked)
    path, vera = f"/v1/approvals/{approval['id']}", office.people["vera"]
    until(lambda: office.one("GET", path, token=vera).body["status"] == "expired")
    assert said(office.evaluate(again(asked, approval))) == (False, "approval_expired", "request")
    assert office.task(approval["id"]).body["task"]["status"] == "approved"  # that is how people have answered


def test_settled_before_it_was_asked_for(office: Office, document: str) -> None:
    asked = reading(document)
    context = office.denied(asked)
    assert office.task(context["approval"]["id"]).status == 404  # nobody has asked for it
    assert office.settle(context["approval"]["id"]).status == 200
    answer = office.submit(access_request(asked, context))
    assert (answer.status, answer.body["task"]["status"]) == (201, "approved")
    assert "retry-after" not in answer.headers
    assert said(office.evaluate(again(asked, answer.body["result"]["approval"]))) == USED


# ── sent again ──


def test_the_same_request_again_is_the_same(office: Office, document: str) -> None:
    asked = reading(document) | {"context": {"business_justification": "first"}}
    context = office.denied(reading(document))
    body = access_request(asked, context)
    first = office.submit(body, key=document)
    shuffled = dict(reversed(body.items()))
    for at in (office.one, office.two):
        same = office.submit(shuffled, key=document, at=at)
        assert (same.status, same.body["task"]["id"]) == (202, first.body["task"]["id"])
        changed = body | {"context": {"business_justification": "second"}}
        refused(office.submit(changed, key=document, at=at), 409, "duplicate_request", "Idempotency-Key")
        elsewhere = reading(f"{document}-2")
        other_denial = access_request(elsewhere, office.denied(elsewhere))
        refused(office.submit(other_denial, key=document, at=at), 409, "duplicate_request", "Idempotency-Key")
    assert len(office.told(Topic.CONTROL, "access.requested", first.body["task"]["id"])) == 1
    assert office.submit(changed).status == 202  # without a key, or under another, it is one more
    assert office.submit(changed, key=f"{document}-b").body["task"]["id"] == first.body["task"]["id"]
    shown = office.one("GET", f"/v1/approvals/{first.body['task']['id']}", token=office.people["ann"]).body
    assert shown["agent_says"] == "first"  # what people have read does not change
    mine = reading(document)
    theirs = access_request(mine, office.denied(mine, agent="portal-2"))
    assert office.submit(theirs, agent="portal-2", key=document).status == 202  # a key is its agent's own


def test_asked_twice_it_is_one_task(office: Office, document: str) -> None:
    """Two denials of the same, each with an id of its own, wait for the same people."""
    asked = reading(document)
    one, two = office.denied(asked, at=office.one), office.denied(asked, at=office.two)
    assert one["evaluation_id"] != two["evaluation_id"]
    assert one["approval"] == two["approval"]
    answers = [office.submit(access_request(asked, context)) for context in (one, two)]
    assert {answer.body["task"]["id"] for answer in answers} == {one["approval"]["id"]}
    many = [office.submit(access_request(asked, one, n=n)) for n in range(20)]
    assert [answer.status for answer in many] == [202] * 14 + [429] * 6


def test_it_outlives_every_replica(office: Office, document: str) -> None:
    asked, waits = reading(document), reading(f"{document}-w")
    approval = office.approved(asked)
    body = access_request(waits, office.denied(waits))
    task = office.submit(body, key=document).body["task"]["id"]
    for replica in (office.one, office.two):
        replica.kill()
    for replica in (office.one, office.two):
        replica.start()
    assert office.task(task).body["task"]["status"] == "pending"
    assert office.submit(body, key=document).body["task"]["id"] == task
    changed = body | {"context": {"x": 1}}
    refused(office.submit(changed, key=document), 409, "duplicate_request")
    assert office.submit(changed, key="another").status == 202  # the denial is known, though its replica is gone
    assert said(office.evaluate(again(asked, approval), at=office.two)) == USED
    assert said(office.evaluate(again(asked, approval))) == (False, "approval_used", "request")


def test_a_new_token_does_not_lose_what_was_asked_for(office: Office, document: str) -> None:
    asked = reading(document)
    context = office.denied(asked, agent="portal-4")
    rotated = office.one("POST", "/v1/agents/portal-4/rotate", token=office.desk.admin, timeout=30)
    assert rotated.status == 200, rotated.raw
    token = rotated.body["token"]

    def ask(method: str, path: str, body: Any = None) -> Answer:
        answer = office.two(method, path, body, token=token, timeout=30)
        assert answer.status < 300, answer.raw
        return answer

    task = ask("POST", REQUESTS, access_request(asked, context)).body["task"]["id"]
    assert office.settle(task).status == 200
    until(lambda: ask("GET", f"{REQUESTS}/{task}").body["task"]["status"] == "approved")
    assert said(ask("POST", "/access/v1/evaluation", again(asked, task))) == USED
