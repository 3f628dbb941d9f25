"""Every action has an owner: the policy's word, and where it has none, that of whoever enrolled the agent."""

from __future__ import annotations

import pytest
from tests.enforcer.conftest import Shop

from banksman.signing import parse_credential
from banksman.stamps import uuid7


@pytest.mark.parametrize(("project", "owner"), [("no-policy", "dora@acme.example"), ("shop", "payments-team")])
def test_a_decision_names_an_owner(shop: Shop, project: str, owner: str) -> None:
    body = {"agent": f"new-{uuid7()[-12:]}", "project": project, "owner": "dora@acme.example"}
    enrolled = shop("POST", "/v1/agents", body, token=shop.desk.admin)
    assert enrolled.status == 201, enrolled.raw
    token = parse_credential(enrolled.body["token"]).token
    asked = {"session": "s", "service": "git", "action": "pull"}
    record = shop.record(shop("POST", "/v1/decide", asked, token=token))
    assert (record["decision"], record["owner"]) == ("deny", owner)
