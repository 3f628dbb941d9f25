"""Access requests that are wrong, large or strange: what the caller is told, and by the name of which field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.enforcer.access_desk import REQUESTS, Office, access_request, again, reading, refused
from tests.enforcer.conftest import until

from banksman.stamps import uuid7
from banksman.topics import Topic


@pytest.fixture
def body(office: Office) -> dict[str, Any]:
    asked = reading(f"d-{uuid7()[-12:]}")
    return access_request(asked, office.denied(asked))


def changed(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`path`: with dots; `value` ... takes it out."""
    first, _, rest = path.partition(".")
    made = dict(body)
    if rest:
        made[first] = changed(made.get(first) or {}, rest, value)
    elif value is ...:
        del made[first]
    else:
        made[first] = value
    return made


WRONG: list[tuple[str, Any]] = [
    ("subject", ...), ("subject", "alice"), ("subject.id", ...), ("subject.id", 7), ("subject.properties", []),
    ("resource", ...), ("resource.type", None), ("action", ...), ("action", []), ("action.name", {}),
    ("context", "x"), ("context.session", "a b"), ("context.session", 1), ("context.business_justification", ["x"]),
    ("context.business_justification", "x" * 16385), ("context.approval", "x"), ("context.approval.id", 1),
    ("resource.properties.branch", 1), ("denial", ...), ("denial", "x"), ("denial.evaluation_id", ...),
    ("denial.evaluation_id", 1), ("denial.evaluation_id", "x" * 257), ("denial.expires_at", ...),
    ("denial.expires_at", "tomorrow"), ("denial.expires_at", "2026-02-30T00:00:00Z"), ("denial.expires_at", 5),
    ("client", "x"), ("client.actor", "x"), ("client.actor.name", "x"), ("items", []), ("callback", {}), ("callback", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), WRONG, ids=[f"{path}-{str(value)[:12]}" for path, value in WRONG])
def test_a_wrong_field_is_named(office: Office, body: dict[str, Any], path: str, value: Any) -> None:
    field = {"client.actor.name": "client.actor.id"}.get(path, path)
    answer = office.submit(changed(body, path, value))
    refused(answer, 400, field=field)
    assert answer.body["detail"].startswith(field)  # often it is all that a gateway logs


def test_what_cannot_be_bound(office: Office, body: dict[str, Any]) -> None:
    denial = body["denial"]
    decision, approval, seal = denial["evaluation_id"].split(".")
    for name in (
        f"{uuid7()}.{approval}.{seal}", f"{decision}.{uuid7()}.{seal}", f"{decision}.{approval}.{'0' * 32}",
        f"{decision}.{approval}.{seal[:-1]}", f"{decision}.{approval}.{seal}.", f"{approval}.{decision}.{seal}",
        f"{decision.upper()}.{approval}.{seal}", f"{decision}.{approval}", f"{decision}.{approval}.", decision, approval,
    ):  # fmt: skip
        answer = office.submit(changed(body, "denial.evaluation_id", name))
        refused(answer, 400, "invalid_denial_binding", "denial.evaluation_id")
    for field, wrong in (("denial.binding_token", "x.y.z"), ("denial.expires_at", "2026-01-01T00:00:00Z")):
        refused(office.submit(changed(body, field, wrong)), 400, "invalid_denial_binding", field)
    rounded = denial["expires_at"][:23] + "+00:00"  # as JavaScript has it
    assert office.submit(changed(body, "denial.expires_at", rounded)).status == 202


def test_what_is_not_known_is_ignored(office: Office, body: dict[str, Any]) -> None:
    more = {
        "requested_access": {"emergency": True, "https://x.example/y": 1},
        "client": {"name": "x", "actor": None},
        "z": [],
    }
    answer = office.submit(body | more | {"denial": body["denial"] | {"template": "t", "reason": "other"}})
    assert answer.status == 202, answer.raw


def test_a_subject_that_is_another_agent(office: Office, body: dict[str, Any]) -> None:
    refused(office.submit(body | {"subject": {"type": "agent", "id": "portal-2"}}), 403, field="subject.id")


def test_bodies_that_are_none(office: Office, body: dict[str, Any]) -> None:
    raw = json.dumps(body).encode()
    for wrong in (b"", b"{", b"[]", b"null", raw[:-1] + b', "denial": {}}', raw + raw):
        refused(office.submit(wrong), 400)


def test_headers(office: Office, body: dict[str, Any]) -> None:
    for key in ("", "x" * 256, "caf\xe9", "a\tb"):
        refused(office.submit(body, key=key), 400, field="Idempotency-Key")
    assert office.submit(body, key='"7b8d0f0d-65a1-4af1-9fd3-a684f08a5d13"').status == 202
    token = office.token("portal")
    named = office.one("POST", REQUESTS, body, token=token, headers={"X-Request-ID": "r-1"})
    assert (named.status, named.headers["x-request-id"]) == (202, "r-1")
    path = f"{REQUESTS}/{named.body['task']['id']}"
    for answer in (
        office.one("POST", REQUESTS, {}, token=token, headers={"X-Request-ID": "r-1"}),
        office.one("GET", path, token=token, headers={"X-Request-ID": "r-1"}),
        office.one("GET", f"{REQUESTS}/none", token=token, headers={"X-Request-ID": "r-1"}),
    ):
        assert answer.headers["x-request-id"] == "r-1"
    plain = office.one("POST", REQUESTS, json.dumps(body).encode(), token=token, headers={"Content-Type": "text/plain"})
    refused(plain, 400, field="Content-Type")
    behind = office.one("GET", path, token=token, headers={"X-Forwarded-Proto": "https"})
    assert behind.body["task"]["status_endpoint"] == office.one.base.replace("http://", "https://") + path
    for method, where in (("DELETE", path), ("POST", path), ("GET", REQUESTS), ("PUT", REQUESTS)):
        assert office.one(method, where, token=token).status == 405
    assert office.one("POST", f"{path}/cancel", token=token).status == 404  # nobody can cancel one


def test_large_ones(office: Office) -> None:
    """What takes long is done beside the loop; the answers are the same."""
    asked = reading(f"d-{uuid7()[-12:]}")
    asked["action"]["properties"] = {"text": "x" * 60_000}
    asked["subject"]["properties"] = {"note": ["y" * 10] * 2000}
    context = office.denied(asked)
    other = asked | {"subject": asked["subject"] | {"properties": {"note": ["y" * 10] * 1999}}}
    refused(office.submit(access_request(other, context)), 400, "invalid_denial_binding")
    task = office.submit(access_request(asked, context)).body["task"]["id"]
    assert office.settle(task).status == 200
    until(lambda: office.task(task).body["task"]["status"] == "approved")
    assert office.evaluate(again(other, task)).body["decision"] is False
    assert office.evaluate(again(asked, task)).body["decision"] is True
    refused(office.submit(b" " * (1 << 20) + b"{}"), 413)


def test_words_are_shown_without_secrets_and_cut(office: Office, body: dict[str, Any]) -> None:
    secret = "sk-ant-api03-" + "a1B2" * 20
    answer = office.submit(changed(body, "context.business_justification", f"with {secret} " + "é" * 6000))
    assert answer.status == 202, answer.raw
    task = answer.body["task"]["id"]
    (record,) = office.told(Topic.CONTROL, "access.requested", task)
    assert secret.encode() not in record["_raw"]
    assert len(record["_raw"]) < 6000
    shown = office.one("GET", f"/v1/approvals/{task}", token=office.people["ann"]).body["agent_says"]
    assert shown == record["asked"]
    assert shown.startswith("with [anthropic-key")


def test_words_that_come_with_the_question(office: Office) -> None:
    asked = reading(f"d-{uuid7()[-12:]}", business_justification="the auditors want it")
    context = office.denied(asked)
    shown = office.one("GET", f"/v1/approvals/{context['approval']['id']}", token=office.people["ann"]).body
    assert shown["agent_says"] == "the auditors want it"
    assert office.decision({"context": context})["asked"] == "the auditors want it"


@pytest.mark.parametrize("given", [None, {"id": "x" * 129}, {}, {"id": None}, "x", 1, []])
def test_an_approval_that_is_none(office: Office, given: Any) -> None:
    asked = reading("d")
    answer = office.evaluate(asked | {"context": {"approval": given}})
    if given is None:
        assert answer.status == 200
    else:
        refused(answer, 400)
        assert answer.body["field"].startswith("context.approval")
