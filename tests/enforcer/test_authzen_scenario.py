"""The certification scenario of the AuthZEN Authorization API 1.0, levels Basic, Batch and Discovery, in our own words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.enforcer.authzen_desk import EVALUATION, EVALUATIONS, Gateway, open_gateway
from tests.enforcer.conftest import Answer
from tests.servers import Broker

POLICY = """
project: records
subjects:
  user: {bob: {role: admin}}
claims: [subject.role, resource.status]
agents:
  record-keeper:
    allow:
      - {service: record, actions: [read]}
      - service: record
        actions: [write]
        when: {subject.id: alice, any: [{resource.status: {exists: false}}, {not: {resource.status: archived}}]}
      - {service: record, actions: [write], when: {subject.role: admin, resource.status: archived}}
      - {service: record, actions: [delete], when: {args.soft: true}}
"""
ALICE, BOB = {"type": "user", "id": "alice"}, {"type": "user", "id": "bob"}
ADMIN = BOB | {"properties": {"role": "admin"}}
READ, WRITE = {"name": "read"}, {"name": "write"}
ONE, TWO = {"type": "record", "id": "record-1"}, {"type": "record", "id": "record-2"}
ACTIVE, ARCHIVED = ONE | {"properties": {"status": "active"}}, TWO | {"properties": {"status": "archived"}}
CONTEXT = {"time": "2025-06-27T18:03-07:00", "ip": "192.168.1.1"}
GOOD = {"subject": ALICE, "action": READ, "resource": ONE}


def soft(value: bool) -> dict[str, Any]:
    return {"name": "delete", "properties": {"soft": value}}


@pytest.fixture(scope="module")
def pdp(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with open_gateway(broker, tmp_path_factory.mktemp("records"), POLICY, "records", "record-keeper") as made:
        yield made


def accepted(answer: Answer) -> Any:
    assert answer.status == 200, answer.raw
    assert answer.headers["content-type"] == "application/json"
    return answer.body


def decision(told: Any) -> bool:
    """One evaluation's answer, after a look at its shape."""
    assert isinstance(told["decision"], bool)
    assert isinstance(told.get("context", {}), dict)
    return bool(told["decision"])


def decisions(answer: Answer) -> list[bool]:
    told = accepted(answer)
    assert "decision" not in told
    return [decision(one) for one in told["evaluations"]]


def refused(answer: Answer, status: int = 400) -> Any:
    assert answer.status == status, answer.raw
    assert answer.body["detail"]
    return answer.body


# ── Basic ──


@pytest.mark.parametrize(
    ("subject", "action", "resource", "expected"),
    [
        (ALICE, READ, ONE, True),
        (ALICE, WRITE, ONE, True),
        (BOB, READ, ONE, True),
        (BOB, WRITE, ONE, False),
        (ALICE, WRITE, ARCHIVED, False),
        (ADMIN, WRITE, ARCHIVED, True),
        (ALICE, soft(True), ONE, True),
        (ALICE, soft(False), ONE, False),
    ],
)
@pytest.mark.parametrize("context", [None, CONTEXT])
def test_the_fixture(
    pdp: Gateway,
    subject: dict[str, Any],
    action: dict[str, Any],
    resource: dict[str, Any],
    expected: bool,
    context: dict[str, Any] | None,
) -> None:
    asked = {"subject": subject, "action": action, "resource": resource} | ({"context": context} if context else {})
    for path in (EVALUATION, EVALUATIONS):
        answer = pdp.enforcer("POST", path, asked, token=pdp.token)
        assert decision(accepted(answer)) is expected, answer.body


def test_properties_and_fields_beyond_those_that_are_known(pdp: Gateway) -> None:
    asked: dict[str, Any] = {
        "subject": ALICE | {"properties": {"department": "Sales", "role": "manager"}, "also": [1]},
        "action": READ | {"properties": {"method": "GET"}, "also": None},
        "resource": ONE | {"properties": {"status": "active", "owner": "bob"}, "also": {}},
    }
    assert decision(accepted(pdp.one(asked))) is True
    assert decision(accepted(pdp.one(GOOD | {"foo": "bar", "futureField": {"nested": True}}))) is True
    empties: list[Any] = [{}, None]
    for empty in empties:
        asked = {key: value | {"properties": empty} for key, value in GOOD.items()} | {"context": empty}
        assert decision(accepted(pdp.one(asked))) is True


@pytest.mark.parametrize("path", [EVALUATION, EVALUATIONS])
@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"subject": ...}, "subject"),
        ({"action": ...}, "action"),
        ({"resource": ...}, "resource"),
        ({"subject": {"id": "alice"}}, "subject.type"),
        ({"subject": {"type": "user"}}, "subject.id"),
        ({"action": {}}, "action.name"),
        ({"resource": {"id": "record-1"}}, "resource.type"),
        ({"resource": {"type": "record"}}, "resource.id"),
        ({"subject": "alice"}, "subject"),
        ({"subject": None}, "subject"),
        ({"action": "read"}, "action"),
        ({"action": {"name": 123}}, "action.name"),
        ({"action": {"name": None}}, "action.name"),
        ({"resource": ["record-1"]}, "resource"),
        ({"subject": ALICE | {"id": 7}}, "subject.id"),
        ({"subject": ALICE | {"properties": "admin"}}, "subject.properties"),
        ({"action": READ | {"properties": []}}, "action.properties"),
        ({"resource": ONE | {"properties": 1}}, "resource.properties"),
        ({"resource": ONE | {"properties": {"branch": 1}}}, "resource.properties.branch"),
        ({"context": "now"}, "context"),
        ({"context": {"session": 7}}, "context.session"),
        ({"context": {"session": "a b"}}, "context.session"),
    ],
)
def test_what_is_missing_or_has_another_type(pdp: Gateway, path: str, wrong: dict[str, Any], field: str) -> None:
    asked = {key: value for key, value in (GOOD | wrong).items() if value is not ...}
    told = refused(pdp.enforcer("POST", path, asked, token=pdp.token))
    assert told["field"] == field
    assert field.rpartition(".")[2] in told["detail"] or field.startswith(("context", "resource.properties.branch"))


@pytest.mark.parametrize("path", [EVALUATION, EVALUATIONS])
def test_bodies_that_are_none(pdp: Gateway, path: str) -> None:
    good = json.dumps(GOOD).encode()
    for raw in (b"", b" ", b"{", b"nonsense", good[:-1], good + good, b"[]", b"null", b'"x"', b"[" + good + b"]"):
        refused(pdp.enforcer("POST", path, raw, token=pdp.token))
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "",
        "application/json; charset=latin-1",
    ):
        told = refused(pdp.enforcer("POST", path, good, token=pdp.token, headers={"Content-Type": kind}))
        assert told["field"] == "Content-Type"
    for kind in ("application/json; charset=utf-8", "APPLICATION/JSON"):
        assert decision(accepted(pdp.enforcer("POST", path, good, token=pdp.token, headers={"Content-Type": kind})))


@pytest.mark.parametrize("path", [EVALUATION, EVALUATIONS])
def test_who_is_not_known_or_no_agent(pdp: Gateway, path: str) -> None:
    for token in (None, "nonsense", pdp.token[:-1]):
        answer = pdp.enforcer("POST", path, GOOD, token=token, headers={"X-Request-ID": "r1"})
        refused(answer, 401)
        assert answer.headers["x-request-id"] == "r1"
        assert "bearer" in answer.headers["www-authenticate"].lower()
    refused(pdp.enforcer("POST", path, GOOD, token=pdp.desk.admin), 403)


@pytest.mark.parametrize("path", [EVALUATION, EVALUATIONS])
def test_the_name_of_a_request_comes_back(pdp: Gateway, path: str) -> None:
    for name in ("bfe9eb29-ab87-4ca3-be83-a1d5d8305716", "any text; at=all", "x" * 500):
        for body, status in ((GOOD, 200), ({}, 400), (b"{", 400)):
            answer = pdp.enforcer("POST", path, body, token=pdp.token, headers={"X-Request-ID": name})
            assert (answer.status, answer.headers["x-request-id"]) == (status, name)
    assert "x-request-id" not in pdp.enforcer("POST", path, GOOD, token=pdp.token).headers


def test_the_same_again_gets_the_same(pdp: Gateway) -> None:
    assert {decision(accepted(pdp.one(GOOD))) for _ in range(5)} == {True}
    assert {decision(accepted(pdp.one(GOOD | {"subject": BOB, "action": WRITE}))) for _ in range(5)} == {False}


# ── Batch ──


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"subject": ALICE, "action": READ, "evaluations": [{"resource": ONE}, {"resource": TWO}]}, [True, True]),
        ({"subject": BOB, "resource": ONE, "evaluations": [{"action": READ}, {"action": WRITE}]}, [True, False]),
        ({"subject": ALICE, "action": WRITE, "evaluations": [{"resource": ACTIVE}, {"resource": ARCHIVED}]}, [True, False]),
        ({"action": WRITE, "resource": ARCHIVED, "evaluations": [{"subject": ALICE}, {"subject": ADMIN}]}, [False, True]),
        ({"evaluations": [GOOD, {"subject": BOB, "action": WRITE, "resource": ONE}]}, [True, False]),
        ({"subject": ALICE, "action": READ, "context": {"time": "2025-06-27T18:03-07:00"},
          "evaluations": [{"resource": ONE}, {"resource": TWO, "context": {"source": "override"}}]}, [True, True]),
        ({"subject": ALICE, "action": WRITE, "resource": ACTIVE, "evaluations": [{}, {"resource": ARCHIVED}]}, [True, False]),
    ],
)  # fmt: skip
def test_batches(pdp: Gateway, asked: dict[str, Any], expected: list[bool]) -> None:
    assert decisions(pdp.several(asked)) == expected
    assert decisions(pdp.several(asked | {"options": {"evaluations_semantic": "execute_all", "other": 1}})) == expected


def test_a_key_of_an_item_replaces_the_whole_default(pdp: Gateway) -> None:
    """The archived status of the default is no part of an item's own resource, nor is its type."""
    asked = {
        "subject": ALICE,
        "action": WRITE,
        "resource": ARCHIVED,
        "evaluations": [{"resource": ONE}, {"resource": {"id": "x"}}],
    }
    answer = pdp.several(asked)
    assert decisions(answer) == [True, False]
    assert answer.body["evaluations"][1]["context"]["error"]["field"] == "resource.type"


def test_the_order_is_kept(pdp: Gateway) -> None:
    items = [{"subject": BOB if n % 3 else ALICE, "action": WRITE, "resource": ONE} for n in range(60)]
    assert decisions(pdp.several({"evaluations": items})) == [n % 3 == 0 for n in range(60)]


@pytest.mark.parametrize(
    ("semantic", "items", "expected"),
    [
        ("execute_all", [ALICE, BOB, ALICE], [True, False, True]),
        ("deny_on_first_deny", [ALICE, BOB, ALICE], [True, False]),
        ("deny_on_first_deny", [ALICE, ALICE], [True, True]),
        ("deny_on_first_deny", [ALICE, "nobody", ALICE], [True, False]),
        ("permit_on_first_permit", [BOB, ALICE, BOB], [False, True]),
        ("permit_on_first_permit", [BOB, BOB], [False, False]),
        ("permit_on_first_permit", ["nobody", ALICE, BOB], [False, True]),
    ],
)
def test_semantics(pdp: Gateway, semantic: str, items: list[Any], expected: list[bool]) -> None:
    asked = {
        "action": WRITE, "resource": ONE, "options": {"evaluations_semantic": semantic},
        "evaluations": [{"subject": who} for who in items],
    }  # fmt: skip
    assert decisions(pdp.several(asked)) == expected


@pytest.mark.parametrize(
    ("item", "field"),
    [({}, "resource"), ({"resource": "x"}, "resource"), ({"resource": {"type": "record"}}, "resource.id"), ("x", ""),
     (None, ""), ({"resource": ONE, "context": {"session": ""}}, "context.session")],
)  # fmt: skip
def test_an_item_that_is_wrong_is_a_no_that_says_why(pdp: Gateway, item: Any, field: str) -> None:
    asked = {"subject": ALICE, "action": READ, "evaluations": [{"resource": ONE}, item, {"resource": TWO}]}
    answer = pdp.several(asked)
    assert decisions(answer) == [True, False, True]
    error = answer.body["evaluations"][1]["context"]["error"]
    assert (error["status"], error.get("field", "")) == (400, field)
    assert error["message"]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"evaluations": "x"}, "evaluations"),
        ({"evaluations": {"0": GOOD}}, "evaluations"),
        ({"evaluations": None}, "evaluations"),
        ({"evaluations": [GOOD] * 101}, "evaluations"),
        ({"evaluations": [GOOD], "options": []}, "options"),
        (GOOD | {"options": "x"}, "options"),
        ({"evaluations": [GOOD], "options": {"evaluations_semantic": "some"}}, "options.evaluations_semantic"),
        ({"evaluations": [GOOD], "options": {"evaluations_semantic": ["execute_all"]}}, "options.evaluations_semantic"),
        ({"evaluations": [GOOD], "subject": "alice"}, "subject"),
        ({"evaluations": [GOOD], "action": {}}, "action.name"),
        ({"evaluations": [GOOD], "resource": {"type": "record", "id": 1}}, "resource.id"),
        ({"evaluations": [GOOD], "context": 1}, "context"),
    ],
)
def test_a_batch_that_is_wrong_as_a_whole(pdp: Gateway, wrong: dict[str, Any], field: str) -> None:
    assert refused(pdp.several(wrong))["field"] == field


def test_without_items_it_is_one_question(pdp: Gateway) -> None:
    without: list[dict[str, Any]] = [{}, {"evaluations": []}]
    for more in without:
        assert decision(accepted(pdp.several(GOOD | more))) is True
        refused(pdp.several({"subject": ALICE, "action": READ} | more))
    assert (
        decision(accepted(pdp.one(GOOD | {"evaluations": [{"subject": 1}]}))) is True
    )  # a field that is not known there


def test_a_default_may_not_be_multiplied_beyond_the_bound(pdp: Gateway) -> None:
    large = {"name": "read", "properties": {"text": "x" * 20_000}}
    refused(pdp.several({"subject": ALICE, "action": large, "evaluations": [{"resource": ONE}] * 60}), 413)
    assert (
        decisions(pdp.several({"subject": ALICE, "action": large, "evaluations": [{"resource": ONE}] * 10}))
        == [True] * 10
    )


# ── Discovery ──


def test_metadata(pdp: Gateway) -> None:
    """Without a token, and of what there is only."""
    path, base = "/.well-known/authzen-configuration", pdp.enforcer.base
    answer = pdp.enforcer("GET", path)
    assert accepted(answer) == {
        "policy_decision_point": base,
        "access_evaluation_endpoint": base + EVALUATION,
        "access_evaluations_endpoint": base + EVALUATIONS,
        "access_request_endpoint": base + "/access/v1/requests",
        "capabilities": ["urn:openid:authzen:capability:access-request"],
    }
    behind = accepted(pdp.enforcer("GET", path, headers={"X-Forwarded-Proto": "https"}))
    assert all(one.startswith("https://") for name, one in behind.items() if name != "capabilities")
    strange = accepted(pdp.enforcer("GET", path, headers={"X-Forwarded-Proto": "gopher"}))
    assert strange == accepted(answer)
    assert pdp.enforcer("POST", path, {}).status == 405
    assert pdp.enforcer("POST", "/access/v1/search/subject", GOOD, token=pdp.token).status == 404
