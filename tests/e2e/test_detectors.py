"""What detectors see is acted upon as the policy wants it, once, and told."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from tests.e2e.house import House, open_house
from tests.enforcer.conftest import until
from tests.servers import PARTITIONS, Broker

from banksman.stamps import uuid7
from banksman.topics import Topic

POLICY = """\
project: {project}
version: 1
owner: {project}-team
agents:
  {agent}:
    allow: [{{service: ci, actions: [run]}}]
    detect: {{loops: {{on_alert: {act}}}}}
"""
ACTS = {"stuck": "kill", "costly": "pause", "watched": "alert"}
POLICIES = {f"p-{name}": POLICY.format(project=f"p-{name}", agent=name, act=act) for name, act in ACTS.items()}
NAMES = {name: f"p-{name}" for name in ACTS}


@pytest.fixture(scope="module")
def house(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with open_house(broker, tmp_path_factory.mktemp("detectors"), POLICIES, NAMES) as made:
        yield made


def fail(house: House, agent: str, session: str, times: int) -> None:
    """The same call, allowed, made, failed, again and again."""
    for _ in range(times):
        call = uuid7()
        about = {"service": "ci", "action": "run", "resource": "acme/api", "session": session}
        house.report(agent, "tool.call", id=call, **about)
        decided = house.enforcer("POST", "/v1/decide", about | {"call": call}, token=house.agents[agent].token)
        status = "error" if decided.body.get("decision") == "allow" else "denied"
        house.report(
            agent, "tool.result", call=call, parent=call, status=status, error="2 tests failed", session=session
        )


def pages(house: House, agent: str) -> list[dict[str, object]]:
    return house.floor.records(Topic.ALERTS, kind="finding", detector="loops", agent=agent, severity="page")


def test_a_stuck_session_is_killed_and_nothing_else_is(house: House) -> None:
    fail(house, "stuck", "s-loop", 5)
    until(lambda: house.reason("stuck", service="ci", action="run", session="s-loop") == "killed", 20)
    assert house.reason("stuck", service="ci", action="run", session="s-other") == "allowed"
    (page,) = until(lambda: pages(house, "stuck"))
    assert (page["session"], page["owner"], page["evidence"]["done"]) == (
        "s-loop",
        "p-stuck-team",
        "the session is killed",
    )
    fail(house, "stuck", "s-loop", 8)  # it goes on as if nothing were
    house.report("stuck", "session.ended", session="s-loop")
    house.floor.until(
        lambda: house.floor.records(Topic.ALERTS, kind="finding", detector="loops", agent="stuck", over=True)
    )
    killed = house.floor.records(Topic.CONTROL, kind="session.killed")
    assert [(one["agent"], one["session"]) for one in killed] == [("stuck", "s-loop")]
    assert "by" not in killed[0]
    assert killed[0]["parent"] == page["id"]
    assert str(page["policy_version"]).startswith("p-stuck@v")
    assert killed[0]["reason"].startswith("loops: ")


def test_a_pause_holds_until_an_operator_lifts_it_and_is_not_done_again(house: House) -> None:
    operator, event = house.desk.operator("opal", "operator")
    house.desk.write(event)
    fail(house, "costly", "s-loop", 5)
    until(lambda: house.reason("costly", service="ci", action="run", session="s-new") == "paused", 20)
    resume = partial(house.enforcer, "POST", "/v1/projects/p-costly/resume", {"reason": "seen"}, token=operator)
    answer = until(lambda: (said := resume()).status == 200 and said)
    assert answer.body["state"] == "resumed"
    fail(house, "costly", "s-loop", 6)  # the same loop goes on: the operator has seen it
    assert house.reason("costly", service="ci", action="run", session="s-new") == "allowed"
    worker = house.floor.running[-1]
    worker.kill()
    worker.wait()
    house.floor.ready(house.floor.start(), times=2)  # from what it had written
    fail(house, "costly", "s-loop", 3)
    before = len(house.floor.records(Topic.LIMITS, kind="watermark"))
    house.floor.until(
        lambda: len(house.floor.records(Topic.LIMITS, kind="watermark")) > before + PARTITIONS
    )  # all is counted
    assert len(house.floor.records(Topic.CONTROL, kind="project.paused")) == 1
    assert house.reason("costly", service="ci", action="run", session="s-new") == "allowed"


def test_an_alert_is_only_told(house: House) -> None:
    fail(house, "watched", "s-loop", 6)
    (page,) = until(lambda: pages(house, "watched"), 20)
    assert "done" not in page["evidence"]
    assert house.reason("watched", service="ci", action="run", session="s-loop") == "allowed"
