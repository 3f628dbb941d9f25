"""A policy that is tried out, from the enforcer to the message in Slack: what it would have stopped is allowed, counted,
told as not enforced; and a guardrail holds all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tests.e2e.house import House, open_house
from tests.processors.fake_slack import FakeSlack
from tests.processors.notifying import Notifying
from tests.servers import Broker

from banksman.topics import Topic

POLICY = """\
project: tried
version: 1
owner: tried-team
mode: shadow
notify: {channel: "#tried"}
guardrails:
  never: [{service: aws, actions: ["iam:*"]}]
agents:
  rookie:
    allow: [{service: git, actions: [pull]}]
    require_approval: [{service: git, actions: [push], resources: ["acme/*"]}]
"""


@pytest.fixture(scope="module")
def house(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with open_house(broker, tmp_path_factory.mktemp("shadow"), {"tried": POLICY}, {"rookie": "tried"}) as made:
        yield made


def test_what_would_have_been_stopped_is_told_as_what_was_not_enforced(house: House) -> None:
    with FakeSlack() as slack:
        told = Notifying(
            house.desk.kafka, house.desk.secret, house.floor.folder / "secret.json", house.floor.folder, slack
        )
        told.process()
        try:
            answers = [
                house.ask("rookie", "delete_branch", resource="acme/web", branch="main"),
                house.ask("rookie", "push", resource="acme/web", branch="feature/x"),
                house.ask("rookie", "pull", resource="acme/web"),
            ]
            assert [one.body["decision"] for one in answers] == ["allow"] * 3
            held = house.ask("rookie", "iam:CreateUser", service="aws")
            assert (held.body["decision"], held.body["reason"]) == ("deny", "guardrail")

            (message,) = asyncio.run(told.until(lambda: slack.parents("#tried")))
            said = f"{message.text} {message.words}"
            assert "git:delete_branch(acme/web main) was allowed, and would have been denied (shadow mode)" in said
            assert "nothing was stopped" in said
            waited = "git:push(acme/web feature/x) was allowed, and would have waited for a human (shadow mode)"
            asyncio.run(told.until(lambda: waited in told.log(0).read_text()))
            assert len(slack.parents()) == 1
            assert "git:pull" not in told.log(0).read_text()
            assert "iam" not in told.log(0).read_text()
        finally:
            told.end()
    recorded = house.floor.records(Topic.DECISIONS, agent="rookie")
    would = {(one["action"], one["decision"], one.get("shadow")) for one in recorded}
    assert would == {
        ("delete_branch", "allow", "deny"),
        ("push", "allow", "approve"),
        ("pull", "allow", "allow"),
        ("iam:createuser", "deny", None),
    }
    counted = house.enforcer("GET", "/metrics").raw.decode()
    assert 'banksman_enforcer_shadow_total{would="deny"} 1' in counted, counted
