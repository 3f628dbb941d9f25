"""`POST /v1/decide` through a real process: answers, their records, repeated questions."""

from __future__ import annotations

from tests.enforcer.conftest import PUSH, Desk, Enforcer


def test_a_day_of_an_agent(enforcer: Enforcer, desk: Desk) -> None:
    token = desk.agents["buyer"].token
    allow = enforcer("POST", "/v1/decide", PUSH, token=token)
    assert allow.status == 200, allow.raw
    assert allow.body["decision"] == "allow"
