"""What operators do about agents, on two replicas: in force when it is answered, on the one that was asked and on the other."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.enforcer.conftest import PUSH, Answer, Desk, Enforcer, Tape, two_replicas, until
from tests.servers import Broker

from banksman.events import AgentRestored, AgentRevoked, ProjectResumed
from banksman.signing import parse_credential
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic

LEASE_S = 3
ROOM = {"BANKSMAN_LEASE_S": str(LEASE_S), "BANKSMAN_AGENT_RATE": "100000", "BANKSMAN_AGENT_SESSIONS": "10000"}


@dataclass
class Pair:
    desk: Desk
    tape: Tape
    one: Enforcer
    two: Enforcer
    operator: str

    def act(self, path: str, *, at: Enforcer | None = None, token: str | None = None, body: Any = None) -> Answer:
        body = {"reason": "it does what it should not"} if body is None else body
        return (at or self.one)("POST", path, body, token=self.operator if token is None else token, timeout=30)

    def ask(self, at: Enforcer, token: str, session: str, **more: Any) -> Answer:
        return at("POST", "/v1/decide", PUSH | {"session": session, **more}, token=token)

    def reasons(self, token: str, session: str) -> set[str]:
        """What both replicas say, each twice."""
        return {self.ask(at, token, session).body["reason"] for at in (self.one, self.two, self.one, self.two)}

    def enrol(self, name: str, project: str = "shop") -> str:
        body = {"agent": name, "project": project, "owner": "ann"}
        return parse_credential(
            self.one("POST", "/v1/agents", body, token=self.desk.admin, timeout=30).body["token"]
        ).token


@pytest.fixture(scope="module")
def pair(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with two_replicas(broker, tmp_path_factory.mktemp("acts"), **ROOM) as (desk, tape, one, two):
        body = {"name": "opal", "roles": ["operator"]}
        token = one("POST", "/v1/operators", body, token=desk.admin, timeout=30).body["token"]
        yield Pair(desk, tape, one, two, token)


@pytest.fixture
def buyer(pair: Pair) -> str:
    return pair.desk.agents["buyer"].token


def fresh(word: str) -> str:
    return f"{word}-{uuid7()[-12:]}"


def test_a_killed_session_is_denied_everywhere_and_nothing_else_is(pair: Pair, buyer: str) -> None:
    doomed, other = fresh("s"), fresh("s")
    assert pair.reasons(buyer, doomed) == pair.reasons(buyer, other) == {"allowed"}
    answer = pair.act(f"/v1/sessions/{doomed}/kill", at=pair.two)
    assert answer.status == 200, answer.raw
    assert answer.headers["cache-control"] == "no-store"
    told = answer.body
    assert {name: told[name] for name in ("state", "session", "agent", "project", "in_force", "replicas", "fenced")} == {
        "state": "killed", "session": doomed, "agent": "buyer", "project": "shop", "in_force": 2, "replicas": 2, "fenced": [],
    }  # fmt: skip
    assert 0 < told["took_ms"] < LEASE_S * 1000
    assert pair.reasons(buyer, doomed) == {"killed"}
    assert pair.reasons(buyer, other) == {"allowed"}
    assert pair.ask(pair.one, pair.desk.agents["seller"].token, doomed, action="pull").body["reason"] == "allowed"

    (record,) = pair.tape.wait(Topic.CONTROL, lambda one: one.get("session") == doomed)
    assert (record["kind"], record["agent"], record["project"]) == ("session.killed", "buyer", "shop")
    assert (record["by"], record["reason"]) == ("opal", "it does what it should not")
    assert record["_key"] == f"session.killed/{record['id']}"
    denied = pair.ask(pair.one, buyer, doomed).body
    assert (denied["decision"], denied["tier"], denied["rule"]) == ("deny", 4, f"control/{record['_offset']}")
    assert denied["policy"] == "shop"  # each action belongs to a policy version, also one that no policy decided
    (decision,) = pair.tape.wait(Topic.DECISIONS, lambda one: one["id"] == denied["id"])
    assert (decision["reason"], decision["resource"], decision["owner"]) == (
        "killed",
        "acme/billing",
        "ann@acme.example",
    )
    assert decision["policy_version"] == denied["policy_version"]


def test_a_killed_agents_reports_are_still_taken(pair: Pair, buyer: str) -> None:
    """What it did is what one wants to know."""
    session = fresh("s")
    assert pair.ask(pair.one, buyer, session).body["decision"] == "allow"
    assert pair.act(f"/v1/sessions/{session}/kill").status == 200
    note = {"kind": "note", "session": session, "text": "but I had already pushed"}
    assert pair.two("POST", "/v1/events", note, token=buyer).body == {"accepted": 1}


def test_a_kill_is_for_good_and_may_be_said_again(pair: Pair, buyer: str) -> None:
    session = fresh("s")
    for _ in range(2):
        assert pair.act(f"/v1/sessions/{session}/kill?agent=buyer").body["state"] == "killed"
        assert pair.reasons(buyer, session) == {"killed"}
    assert pair.act("/v1/agents/buyer/restore").status == 409
    assert pair.reasons(buyer, session) == {"killed"}


def test_a_session_that_two_agents_use_has_to_be_named_with_its_agent(pair: Pair, buyer: str) -> None:
    session, seller = fresh("s"), pair.desk.agents["seller"].token
    assert pair.ask(pair.one, buyer, session).status == pair.ask(pair.one, seller, session).status == 200
    answer = pair.act(f"/v1/sessions/{session}/kill")
    assert (answer.status, answer.body["field"]) == (409, "agent")
    assert "buyer, seller" in answer.body["detail"]
    assert pair.reasons(buyer, session) == {"allowed"}
    assert pair.act(f"/v1/sessions/{session}/kill?agent=buyer").body["agent"] == "buyer"
    assert pair.reasons(buyer, session) == {"killed"}
    assert pair.ask(pair.two, seller, session, action="pull").body["reason"] == "allowed"


def test_a_session_that_was_never_seen_needs_its_agent(pair: Pair, buyer: str) -> None:
    session = fresh("s")
    assert pair.act(f"/v1/sessions/{session}/kill").status == 404
    unknown = pair.act(f"/v1/sessions/{session}/kill?agent=nobody")
    assert (unknown.status, unknown.body["field"]) == (404, "agent")
    assert pair.act("/v1/sessions/%20/kill?agent=buyer").status == 404
    assert pair.act(f"/v1/sessions/{session}/kill?agent=buyer").status == 200  # before it has begun
    assert pair.reasons(buyer, session) == {"killed"}


def test_a_revoked_agent_is_denied_in_every_session_until_it_is_restored(pair: Pair) -> None:
    name = fresh("agent")
    token = pair.enrol(name)
    assert pair.reasons(token, "s1") == {"unknown_agent"}
    told = pair.act(f"/v1/agents/{name}/revoke").body
    assert (told["state"], told["agent"], told["project"], told["in_force"]) == ("revoked", name, "shop", 2)
    for session in ("s1", "s2"):
        assert pair.reasons(token, session) == {"revoked"}
    status = pair.two("GET", "/v1/status", token=pair.desk.viewer).body["controls"]
    assert [(one["agent"], one["by"], one["reason"]) for one in status["revoked"] if one["agent"] == name] == [
        (name, "opal", "it does what it should not")
    ]
    assert pair.act(f"/v1/agents/{name}/restore", at=pair.two).body["state"] == "restored"
    assert pair.reasons(token, "s1") == {"unknown_agent"}
    again = pair.act(f"/v1/agents/{name}/restore")
    assert (again.status, again.body["detail"]) == (409, f"{name} is not revoked")
    lifted, revoked = (
        pair.tape.wait(Topic.CONTROL, lambda one, kind=kind: one["kind"] == kind and one.get("agent") == name)[0]  # type: ignore[misc]
        for kind in ("agent.restored", "agent.revoked")
    )
    assert lifted["lifts"] == revoked["_offset"]
    assert pair.act("/v1/agents/nobody/revoke").status == pair.act("/v1/agents/nobody/restore").status == 404


def test_a_paused_project_stands_still_until_it_is_resumed(pair: Pair, buyer: str) -> None:
    tester = pair.desk.agents["tester"].token
    told = pair.act("/v1/projects/shop/pause").body
    try:
        assert (told["state"], told["project"], told["in_force"]) == ("paused", "shop", 2)
        assert pair.reasons(buyer, "s1") == {"paused"}
        assert pair.ask(pair.one, tester, "s1", action="pull").body["reason"] == "allowed"  # another project
        paused = pair.one("GET", "/v1/status", token=pair.desk.viewer).body["controls"]["paused"]
        assert [one["project"] for one in paused] == ["shop"]
    finally:
        resumed = pair.act("/v1/projects/shop/resume", at=pair.two)
    assert resumed.body["state"] == "resumed"
    assert pair.reasons(buyer, fresh("s")) == {"allowed"}
    assert pair.act("/v1/projects/shop/resume").status == 409
    assert pair.act("/v1/projects/shoop/pause").status == pair.act("/v1/projects/shoop/resume").status == 404


def test_a_project_without_a_policy_can_be_paused(pair: Pair) -> None:
    assert pair.act("/v1/projects/nowhere/pause").status == 200
    try:
        assert pair.reasons(pair.desk.agents["homeless"].token, "s1") == {"paused"}
    finally:
        assert pair.act("/v1/projects/nowhere/resume").status == 200


def test_a_lift_that_lands_late_lifts_nothing_newer(pair: Pair, buyer: str) -> None:
    name = fresh("agent")
    token = pair.enrol(name)
    assert pair.act(f"/v1/agents/{name}/revoke").status == 200
    (first,) = pair.tape.wait(Topic.CONTROL, lambda one: one["kind"] == "agent.revoked" and one["agent"] == name)
    assert pair.act(f"/v1/agents/{name}/revoke").status == 200
    late = AgentRestored(
        v=1, id=uuid7(), time=rfc3339(), source="test", project="shop", agent=name, lifts=first["_offset"]
    )
    pair.desk.write(late)
    (landed,) = pair.tape.wait(Topic.CONTROL, lambda one: one["id"] == late.id)
    until(lambda: pair.one("GET", "/v1/status", token=pair.desk.viewer).body["control"]["applied"] >= landed["_offset"])
    assert pair.ask(pair.one, token, "s1").body["reason"] == "revoked"

    paused_before = pair.tape.records(Topic.CONTROL, lambda one: one["kind"] == "project.paused")
    assert pair.act("/v1/projects/shop/pause").status == 200
    try:
        old = paused_before[-1]["_offset"] if paused_before else 1
        resumed = ProjectResumed(v=1, id=uuid7(), time=rfc3339(), source="test", project="shop", lifts=old)
        pair.desk.write(resumed)
        (landed,) = pair.tape.wait(Topic.CONTROL, lambda one: one["id"] == resumed.id)
        until(
            lambda: (
                pair.one("GET", "/v1/status", token=pair.desk.viewer).body["control"]["applied"] >= landed["_offset"]
            )
        )
        assert pair.ask(pair.one, buyer, fresh("s")).body["reason"] == "paused"
    finally:
        assert pair.act("/v1/projects/shop/resume").status == 200


def test_what_nobody_of_ours_has_signed_is_no_control(pair: Pair, buyer: str) -> None:
    session = fresh("s")
    assert pair.reasons(buyer, session) == {"allowed"}
    forged = AgentRevoked(v=1, id=uuid7(), time=rfc3339(), source="x", project="shop", agent="buyer", by="root")
    pair.desk.write(forged, headers=False)
    (landed,) = pair.tape.wait(Topic.CONTROL, lambda one: one["id"] == forged.id)
    until(lambda: pair.one("GET", "/v1/status", token=pair.desk.viewer).body["control"]["applied"] >= landed["_offset"])
    assert pair.reasons(buyer, session) == {"allowed"}


def test_shadow_mode_does_not_cover_controls(pair: Pair) -> None:
    tester = pair.desk.agents["tester"].token
    assert pair.reasons(tester, "s1") == {"default_deny"}
    shadowed = pair.ask(pair.one, tester, "s1").body
    assert shadowed["decision"] == "allow"  # it is only noted what would have been
    assert pair.act("/v1/agents/tester/revoke").status == 200
    try:
        told = pair.ask(pair.one, tester, "s1").body
        assert (told["decision"], told["reason"]) == ("deny", "revoked")
    finally:
        assert pair.act("/v1/agents/tester/restore").status == 200


def test_the_same_question_is_not_answered_from_before_the_kill(pair: Pair, buyer: str) -> None:
    session, question = fresh("s"), uuid7()
    first = pair.ask(pair.one, buyer, session, id=question).body
    assert first["decision"] == "allow"
    assert pair.ask(pair.one, buyer, session, id=question).body["id"] == first["id"]
    assert pair.act(f"/v1/sessions/{session}/kill?agent=buyer", at=pair.two).status == 200
    again = pair.ask(pair.one, buyer, session, id=question).body
    assert (again["decision"], again["reason"]) == ("deny", "killed")


def test_explain_says_what_is_in_force(pair: Pair, buyer: str) -> None:
    session = fresh("s")
    question = PUSH | {"agent": "buyer", "session": session}
    before = pair.one("POST", "/v1/explain", question, token=pair.desk.viewer).body
    assert (before["controls"], before["verdict"]["ruling"]["decision"]) == ([], "allow")
    assert pair.act(f"/v1/sessions/{session}/kill?agent=buyer").status == 200
    told = pair.one("POST", "/v1/explain", question, token=pair.desk.viewer).body
    assert [(one["kind"], one["by"]) for one in told["controls"]] == [("session.killed", "opal")]
    assert (told["verdict"]["ruling"]["decision"], told["verdict"]["ruling"]["reason"]) == ("deny", "killed")
    assert "for good" in told["mend"]


@pytest.mark.parametrize(
    "path",
    ["/v1/agents/buyer/revoke", "/v1/agents/buyer/restore", "/v1/sessions/s1/kill?agent=buyer", "/v1/projects/shop/pause",
     "/v1/projects/shop/resume"],
)  # fmt: skip
def test_who_may_not_act_does_not(pair: Pair, buyer: str, path: str) -> None:
    approver = fresh("approver")
    body = {"name": approver, "roles": ["approver", "viewer"]}
    token = pair.one("POST", "/v1/operators", body, token=pair.desk.admin, timeout=30).body["token"]
    for other, status in ((buyer, 403), (pair.desk.viewer, 403), (token, 403), ("bmo_0_0", 401), ("", 401)):
        assert pair.act(path, token=other).status == status
    wrong: list[dict[str, Any]] = [
        {},
        {"reason": ""},
        {"reason": 1},
        {"reason": "x" * 1001},
        {"reason": "x", "by": "root"},
    ]
    for body_ in wrong:
        answer = pair.act(path, body=body_)
        assert answer.status == 422, answer.raw
        assert answer.body["field"] in ("reason", "by")
    assert pair.act(path, body=b'{"reason": "x", "reason": "y"}').status == 400
    assert pair.one("GET", path, token=pair.operator).status == 405
    assert pair.reasons(buyer, fresh("s")) == {"allowed"}


def test_under_load_nothing_is_allowed_once_the_kill_is_answered(pair: Pair, buyer: str) -> None:
    """Two clients a replica ask without a pause; what they asked after the command had returned must be no."""
    sessions = [fresh("s") for _ in range(20)]
    current, stop = [sessions[0]], threading.Event()
    allowed: dict[str, float] = dict.fromkeys(sessions, 0.0)
    statuses: set[int] = set()

    def ask(at: Enforcer) -> None:
        while not stop.is_set():
            session, asked = current[0], time.monotonic()
            answer = pair.ask(at, buyer, session)
            statuses.add(answer.status)
            if answer.status == 200 and answer.body["decision"] == "allow":
                allowed[session] = max(allowed[session], asked)

    clients = [threading.Thread(target=ask, args=(at,)) for at in (pair.one, pair.two) for _ in range(2)]
    for client in clients:
        client.start()
    in_force: dict[str, float] = {}
    try:
        for number, session in enumerate(sessions):
            current[0] = session
            until(lambda session=session: allowed[session])  # type: ignore[misc]
            answer = pair.act(f"/v1/sessions/{session}/kill?agent=buyer", at=(pair.one, pair.two)[number % 2])
            assert answer.body["fenced"] == [], answer.raw
            in_force[session] = time.monotonic()
            until(lambda session=session: time.monotonic() > in_force[session] + 0.05)  # type: ignore[misc]
    finally:
        stop.set()
        for client in clients:
            client.join()
    late = {session: allowed[session] - moment for session, moment in in_force.items() if allowed[session] > moment}
    assert late == {}
    assert statuses <= {200, 503}


def test_a_frozen_replica_is_fenced_and_named_and_allows_nothing_when_it_goes_on(pair: Pair, buyer: str) -> None:
    session = fresh("s")
    assert pair.reasons(buyer, session) == {"allowed"}
    (frozen,) = {one["replica"] for one in pair.one("GET", "/v1/status", token=pair.desk.viewer).body["replicas"]} - {
        pair.one("GET", "/v1/status", token=pair.desk.viewer).body["replica"]
    }
    assert pair.two.process is not None
    pair.two.process.send_signal(signal.SIGSTOP)
    try:
        answer = pair.act(f"/v1/sessions/{session}/kill?agent=buyer")
    finally:
        answers: list[Answer] = []
        asking = threading.Thread(target=lambda: answers.append(pair.ask(pair.two, buyer, session)))
        asking.start()  # it lies in the socket of the frozen one
        pair.two.process.send_signal(signal.SIGCONT)
    assert answer.status == 200, answer.raw
    assert (answer.body["fenced"], answer.body["in_force"], answer.body["replicas"]) == ([frozen], 1, 2)
    assert LEASE_S * 0.5 * 1000 < answer.body["took_ms"] < (LEASE_S + 1.5) * 1000
    asking.join()
    for said in (*answers, *(pair.ask(pair.two, buyer, session) for _ in range(20))):
        assert said.status == 503 or said.body["reason"] == "killed", said.raw
    until(lambda: pair.two("GET", "/readyz").status == 200)
    assert pair.reasons(buyer, session) == {"killed"}


def test_controls_outlive_every_replica(pair: Pair, buyer: str) -> None:
    session, name = fresh("s"), fresh("agent")
    token = pair.enrol(name)
    assert pair.act(f"/v1/sessions/{session}/kill?agent=buyer").status == 200
    assert pair.act(f"/v1/agents/{name}/revoke").status == 200
    for replica in (pair.one, pair.two):
        replica.kill()
    for replica in (pair.one, pair.two):
        replica.start()
    # Until their leases are over, the dead are waited for, and fenced, by either: that is as it must be.
    for at in (pair.one, pair.two):
        until(lambda at=at: len(at("GET", "/v1/status", token=pair.desk.viewer).body["replicas"]) == 2)  # type: ignore[misc]
    assert pair.reasons(buyer, session) == {"killed"}
    assert pair.reasons(token, "s1") == {"revoked"}
