"""The requests of the AuthZEN interop events and what they must get, where they are at hand, under policies of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.enforcer.authzen_desk import Gateway, open_gateway
from tests.servers import Broker

PLACES = [parent / "shared" / "data" / "authzen" for parent in Path(__file__).resolve().parents[2:4]]
"""In the project's own folder, or beside it."""
VECTORS = {
    "todo-01": "todo/decisions-authorization-api-1_0-01.json",
    "todo-02": "todo/decisions-authorization-api-1_0-02.json",
    "api-gateway": "api-gateway/decisions.json",
}
PEOPLE = {
    "CiRmZDA2": ("rick@the-citadel.com", ["admin", "evil_genius"]),
    "CiRmZDE2": ("morty@the-citadel.com", ["editor"]),
    "CiRmZDI2": ("summer@the-smiths.com", ["editor"]),
    "CiRmZDM2": ("beth@the-smiths.com", ["viewer"]),
    "CiRmZDQ2": ("jerry@the-smiths.com", ["viewer"]),
}
"""By how their ids begin: e-mail, roles."""

RULES = """
project: interop
claims: [resource.ownerID]
agents:
  todo-backend:
    allow:
      - {service: user, actions: [can_read_user], when: {subject.roles: {exists: true}}}
      - {service: todo, actions: [can_read_todos], when: {subject.roles: {exists: true}}}
      - {service: todo, actions: [can_create_todo], when: {subject.roles: {has: [admin, editor]}}}
      - service: todo
        actions: [can_update_todo]
        when:
          any:
            - {subject.roles: {has: evil_genius}}
            - {subject.roles: {has: [admin, editor]}, resource.ownerID: {is: {attr: subject.email}}}
      - service: todo
        actions: [can_delete_todo]
        when:
          any:
            - {subject.roles: {has: admin}}
            - {subject.roles: {has: editor}, resource.ownerID: {is: {attr: subject.email}}}
      - {service: route, actions: [GET], when: {resource: ["/users/{userId}", /todos], subject.roles: {exists: true}}}
      - {service: route, actions: [POST], when: {resource: /todos, subject.roles: {has: [admin, editor]}}}
      - service: route
        actions: [PUT]
        when: {resource: "/todos/{todoId}", subject.roles: {has: [admin, editor, evil_genius]}}
      - {service: route, actions: [DELETE], when: {resource: "/todos/{todoId}", subject.roles: {has: [admin, editor]}}}
"""


def folder() -> Path:
    """Where the vectors are. Skips, and says so, where they are not."""
    for place in PLACES:
        if (place / VECTORS["todo-01"]).is_file():
            return place
    pytest.skip(f"the AuthZEN interop vectors are in none of {', '.join(map(str, PLACES))}")


@cache
def vectors(name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder() / VECTORS[name]).read_text())
    return told


def policy() -> str:
    """The rules, and what is known of everybody who is asked about."""
    subjects: dict[str, dict[str, Any]] = {"user": {}, "identity": {}}
    for name in VECTORS:
        for case in vectors(name)["evaluation"]:
            who = case["request"]["subject"]
            email, roles = PEOPLE[who["id"][:8]]
            subjects[who["type"]][who["id"]] = {"email": email, "roles": roles}
    return f"{RULES}subjects: {json.dumps(subjects)}\n"


@pytest.fixture(scope="module")
def gateway(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with open_gateway(broker, tmp_path_factory.mktemp("interop"), policy(), "interop", "todo-backend") as made:
        yield made


@pytest.mark.parametrize("name", VECTORS)
def test_single(gateway: Gateway, name: str) -> None:
    cases = vectors(name)["evaluation"]
    assert len(cases) >= 25
    for case in cases:
        answer = gateway.one(case["request"])
        assert answer.status == 200, answer.raw
        assert answer.body["decision"] is case["expected"], (case, answer.body)


def test_batches(gateway: Gateway) -> None:
    cases = vectors("todo-02")["evaluations"]
    assert len(cases) == 3
    for case in cases:
        answer = gateway.several(case["request"])
        assert answer.status == 200, answer.raw
        told = [{"decision": one["decision"]} for one in answer.body["evaluations"]]
        assert told == case["expected"], (case, answer.body)


def test_there_are_both_answers() -> None:
    for name in VECTORS:
        assert {case["expected"] for case in vectors(name)["evaluation"]} == {True, False}
