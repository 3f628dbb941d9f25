"""`banksman kill`, `revoke`, `restore`, `pause`, `resume`: what is sent, what is said, and what a script is told."""

from __future__ import annotations

from typing import Any

import pytest
from tests.cli import canned
from tests.cli.conftest import Reply, Scribe, Shell, problem

HOLDS: dict[str, Any] = {"in_force": 3, "replicas": 3, "fenced": [], "took_ms": 17.6}
KILLED = {"state": "killed", "session": "s1", "agent": "buyer", "project": "shop", **HOLDS}


@pytest.mark.parametrize(
    ("words", "path", "told", "said"),
    [
        (("revoke", "buyer"), "/v1/agents/buyer/revoke", {"state": "revoked", "agent": "buyer"}, "buyer is revoked"),
        (
            ("restore", "buyer"),
            "/v1/agents/buyer/restore",
            {"state": "restored", "agent": "buyer"},
            "buyer is restored",
        ),
        (("pause", "shop"), "/v1/projects/shop/pause", {"state": "paused", "project": "shop"}, "shop is paused"),
        (("resume", "shop"), "/v1/projects/shop/resume", {"state": "resumed", "project": "shop"}, "shop is resumed"),
    ],
    ids=["revoke", "restore", "pause", "resume"],
)
def test_it_says_where_it_is_in_force(
    operator: Shell, scribe: Scribe, words: tuple[str, ...], path: str, told: dict[str, Any], said: str
) -> None:
    scribe.on[f"POST {path}"] = Reply(told | HOLDS)
    ran = operator(*words, "-m", "ticket 4711")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"{said}: in force on 3/3 enforcers in 18 ms\n"
    assert scribe.asked[-1].body == {"reason": "ticket 4711"}
    assert operator(*words, "--json").json == told | HOLDS
    assert scribe.asked[-1].body == {"reason": "no reason given"}


UNSEEN = problem(404, "this replica has not seen a session of this name lately; add ?agent= to kill it all the same")


def test_whose_session_it_is_comes_from_the_enforcer_else_from_the_audit_log(operator: Shell, scribe: Scribe) -> None:
    scribe.on["POST /v1/sessions/s1/kill"] = Reply(KILLED)
    ran = operator("kill", "s1")
    assert ran.out == "session s1 of buyer is killed: in force on 3/3 enforcers in 18 ms\n"
    assert "banksman revoke buyer" in ran.err
    assert [asked.query for asked in scribe.asked] == [""]
    scribe.on["GET /v1/sessions/s1"] = Reply(canned.session(canned.step(1, "session.started")))
    scribe.on["POST /v1/sessions/s1/kill"] = [UNSEEN, Reply(KILLED)]
    assert operator("kill", "s1").code == 0
    assert scribe.asked[-1].query == "agent=buyer"
    ran = operator("kill", "s1", "--agent", "seller", "--json")
    assert (ran.json, ran.err) == (KILLED, "")
    assert scribe.asked[-1].query == "agent=seller"
    assert scribe.asked[-2].path == "/v1/sessions/s1/kill"  # nobody asks the console whose it is when that is said


@pytest.mark.parametrize("says", [problem(404, "nothing was received"), problem(503, "ClickHouse is away"), None])
def test_a_session_that_nobody_knows_has_to_be_named_with_its_agent(
    operator: Shell, scribe: Scribe, says: Reply | None
) -> None:
    def broken_off(_: Any) -> None:
        """No answer at all."""

    scribe.on["GET /v1/sessions/s1"] = says or broken_off
    scribe.on["POST /v1/sessions/s1/kill"] = UNSEEN
    ran = operator("kill", "s1")
    assert (ran.code, ran.out) == (2, "")
    assert "?agent=" in ran.err


def test_a_session_of_two_agents_is_nobodys_guess(operator: Shell, scribe: Scribe) -> None:
    scribe.on["POST /v1/sessions/s1/kill"] = UNSEEN
    scribe.on["GET /v1/sessions/s1"] = problem(409, "several agents have a session s1: buyer, seller; say which")
    ran = operator("kill", "s1")
    assert (ran.code, ran.out) == (2, "")
    assert "buyer, seller" in ran.err
    assert [asked.method for asked in scribe.asked] == ["POST", "GET"]
    scribe.on["POST /v1/sessions/s1/kill"] = problem(409, "several agents use a session of this name (buyer, seller)")
    assert operator("kill", "s1").code == 2


def test_a_silent_enforcer_is_fenced_and_named(operator: Shell, scribe: Scribe) -> None:
    told = {"state": "revoked", "agent": "buyer"} | HOLDS | {"in_force": 2, "fenced": ["8a7f00c1"], "took_ms": 1512.3}
    scribe.on["POST /v1/agents/buyer/revoke"] = Reply(told)
    ran = operator("revoke", "buyer")
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "buyer is revoked: in force on 2/3 enforcers in 1512 ms",
        "did not answer, and can allow nothing any more before it has caught up: 8a7f00c1",
    ]


def test_what_is_not_confirmed_is_an_error(operator: Shell, scribe: Scribe) -> None:
    scribe.on["POST /v1/projects/shop/pause"] = problem(503, "it may or may not be in force: too slow", retry_after=1)
    ran = operator("pause", "shop")
    assert (ran.code, ran.out) == (4, "")
    assert "may or may not be in force" in ran.err
    scribe.on["POST /v1/projects/shop/resume"] = problem(409, "shop is not paused")
    assert operator("resume", "shop").code == 2
    scribe.on["POST /v1/projects/shop/resume"] = problem(403, "this needs the role operator")
    assert operator("resume", "shop").code == 3


def test_what_an_agent_is_called_is_one_segment_of_the_path(operator: Shell, scribe: Scribe) -> None:
    assert operator("revoke", "a/../../b").code == 2
    assert scribe.asked[-1].path == "/v1/agents/a%2F..%2F..%2Fb/revoke"
