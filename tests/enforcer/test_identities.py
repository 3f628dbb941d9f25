"""Agents and operators on two replicas: enrolled, rotated, raced for, and nothing secret anywhere."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from tests.enforcer.conftest import PUSH, Answer, Desk, Enforcer, Tape, two_replicas, until
from tests.servers import Broker

from banksman.signing import parse_credential, token_hash
from banksman.stamps import uuid7
from banksman.topics import Topic

LEASE_S = 3


@dataclass
class Pair:
    desk: Desk
    tape: Tape
    one: Enforcer
    two: Enforcer

    def enrol(self, name: str, *, at: Enforcer | None = None, project: str = "shop", owner: str = "ann") -> Answer:
        body = {"agent": name, "project": project, "owner": owner}
        return (at or self.one)("POST", "/v1/agents", body, token=self.desk.admin, timeout=30)

    def rotate(self, name: str, *, at: Enforcer | None = None) -> Answer:
        return (at or self.one)("POST", f"/v1/agents/{name}/rotate", token=self.desk.admin, timeout=30)

    def ask(self, at: Enforcer, token: str) -> Answer:
        return at("POST", "/v1/decide", PUSH, token=token)


@pytest.fixture(scope="module")
def pair(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with two_replicas(broker, tmp_path_factory.mktemp("pair"), BANKSMAN_LEASE_S=str(LEASE_S)) as made:
        yield Pair(*made)


@pytest.fixture
def name() -> str:
    return f"agent-{uuid7()[-12:]}"


def test_a_credential_is_good_everywhere_when_it_is_shown(pair: Pair, name: str) -> None:
    answer = pair.enrol(name, owner="Ann Lee, payments")
    assert answer.status == 201, answer.raw
    assert answer.headers["cache-control"] == "no-store"
    assert {k: v for k, v in answer.body.items() if k != "token"} == {
        "agent": name, "project": "shop", "owner": "Ann Lee, payments",
    }  # fmt: skip
    credential = parse_credential(answer.body["token"])
    assert (credential.agent, credential.project) == (name, "shop")
    for replica in (pair.two, pair.one):
        assert pair.ask(replica, credential.token).body["reason"] == "unknown_agent"
        assert pair.ask(replica, answer.body["token"]).status == 200  # the whole credential, as people paste it
    (record,) = pair.tape.wait(Topic.CONTROL, lambda one: one.get("agent") == name)
    assert (record["kind"], record["by"], record["owner"]) == ("agent.enrolled", "root", "Ann Lee, payments")
    assert record["token_hash"] == token_hash(credential.token)
    assert record["_key"] == f"agent.enrolled/{record['id']}"


def test_a_name_is_enrolled_once(pair: Pair, name: str) -> None:
    assert pair.enrol(name).status == 201
    for replica in (pair.one, pair.two):
        for project in ("shop", "lab"):
            again = pair.enrol(name, at=replica, project=project)
            assert (again.status, again.body["field"]) == (409, "agent")


def test_a_rotated_out_token_is_refused_at_once_on_every_replica(pair: Pair, name: str) -> None:
    old = parse_credential(pair.enrol(name).body["token"])
    for turn in range(6):
        assert pair.ask(pair.two, old.token).status == pair.ask(pair.one, old.token).status == 200
        answer = pair.rotate(name, at=(pair.one, pair.two)[turn % 2])
        assert answer.status == 200, answer.raw
        assert answer.headers["cache-control"] == "no-store"
        for replica in (pair.two, pair.one):
            refused = pair.ask(replica, old.token)
            assert refused.status == 401
            assert old.token.encode() not in refused.raw
            event = replica("POST", "/v1/events", {"kind": "note", "session": "s", "text": "x"}, token=old.token)
            assert event.status == 401
        old = parse_credential(answer.body["token"])
    listed = {agent["agent"]: agent for agent in pair.two("GET", "/v1/agents", token=pair.desk.viewer).body["agents"]}
    assert listed[name]["token_id"] == old.token_id
    assert listed[name]["rotated_at"] > listed[name]["enrolled_at"]


def test_who_is_not_there_cannot_be_rotated(pair: Pair) -> None:
    for gone in ("nobody", "bma_0123456789abcdef_secret", "%20", "a%0Ab"):
        answer = pair.rotate(gone)
        assert answer.status == 404
        assert gone.encode() not in answer.raw


def test_the_list_is_sorted_and_holds_nothing_secret(pair: Pair) -> None:
    agents = pair.one("GET", "/v1/agents", token=pair.desk.viewer).body["agents"]
    names = [agent["agent"] for agent in agents]
    assert names == sorted(names)
    assert set(pair.desk.agents) <= set(names)
    assert {key for agent in agents for key in agent} == {
        "agent", "project", "owner", "token_id", "enrolled_at", "rotated_at",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"agent": "a b", "project": "p", "owner": "o"}, 422, "agent"),
        ({"agent": "a\n", "project": "p", "owner": "o"}, 422, "agent"),
        ({"agent": "a", "project": "../p", "owner": "o"}, 422, "project"),
        ({"agent": "a", "project": "p", "owner": ""}, 422, "owner"),
        ({"agent": "a", "project": "p"}, 422, "owner"),
        ({"agent": "a", "project": "p", "owner": "o", "token": "mine"}, 422, "token"),
        ([], 422, ""),
        (b"{", 400, ""),
        (b'{"agent": "a", "agent": "b", "project": "p", "owner": "o"}', 400, "agent"),
    ],
)
def test_bad_enrolments_name_their_field(pair: Pair, body: Any, status: int, field: str) -> None:
    answer = pair.one("POST", "/v1/agents", body, token=pair.desk.admin)
    assert (answer.status, answer.body.get("field", "")) == (status, field)


def test_operators(pair: Pair, name: str) -> None:
    answer = pair.one("POST", "/v1/operators", {"name": name, "roles": ["viewer", "approver"]}, token=pair.desk.admin)
    assert answer.status == 201
    assert (answer.body["name"], answer.body["roles"]) == (name, ["viewer", "approver"])
    token = answer.body["token"]
    for replica in (pair.two, pair.one):
        assert replica("GET", "/v1/agents", token=token).status == 200
        assert replica("POST", "/v1/agents", {"agent": "x", "project": "p", "owner": "o"}, token=token).status == 403
    again = pair.two("POST", "/v1/operators", {"name": name, "roles": ["admin"]}, token=pair.desk.admin)
    assert (again.status, again.body["field"]) == (409, "name")
    for roles in ([], ["root"], "admin", ["admin", 1]):
        wrong = pair.one("POST", "/v1/operators", {"name": f"{name}-x", "roles": roles}, token=pair.desk.admin)
        assert wrong.status == 422
        assert wrong.body["field"].startswith("roles")
    (record,) = pair.tape.wait(Topic.CONTROL, lambda one: one.get("operator") == name)
    assert record["token_hash"] == token_hash(token)


def together(*calls: Any) -> list[Answer]:
    """All of them at the same moment."""
    gate = threading.Barrier(len(calls))

    def call(one: Any) -> Answer:
        gate.wait()
        answer: Answer = one()
        return answer

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def test_two_who_enrol_the_same_name_at_once(pair: Pair) -> None:
    """On two replicas: the first offset wins, and the winner's credential is the one that is good."""
    for _ in range(8):
        name = f"raced-{uuid7()[-12:]}"
        answers = together(*[lambda at=at, name=name: pair.enrol(name, at=at) for at in (pair.one, pair.two)])
        assert sorted(answer.status for answer in answers) == [201, 409]
        (won,) = [answer for answer in answers if answer.status == 201]
        token = parse_credential(won.body["token"]).token
        assert pair.ask(pair.one, token).status == pair.ask(pair.two, token).status == 200


def test_two_who_rotate_at_once(pair: Pair, name: str) -> None:
    """Whoever got a credential may have lost it to the other since, but exactly one of all is good in the end."""
    tokens = [parse_credential(pair.enrol(name).body["token"]).token]
    for _ in range(6):
        answers = together(*[lambda at=at: pair.rotate(name, at=at) for at in (pair.one, pair.two)])
        assert {answer.status for answer in answers} <= {200, 409}
        given = [parse_credential(answer.body["token"]).token for answer in answers if answer.status == 200]
        assert given
        tokens += given
        for replica in (pair.one, pair.two):
            good = [token for token in tokens if pair.ask(replica, token).status == 200]
            assert len(good) == 1
            assert good[0] in given


def test_a_frozen_replica_is_fenced_and_wakes_up_refusing(pair: Pair, name: str) -> None:
    """One lease is waited for it, no longer; what it was asked before and while it was frozen is never allowed."""
    token = parse_credential(pair.enrol(name).body["token"]).token
    assert pair.two.process is not None
    host, port = pair.two.base.removeprefix("http://").split(":")
    for turn in range(2):
        until(lambda: pair.ask(pair.two, token).status == 200, 20)  # noqa: B023
        body = b'{"session":"s","service":"git","action":"pull"}'
        request = (
            f"POST /v1/decide HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        clients = [socket.create_connection((host, int(port)), timeout=30) for _ in range(12)]
        try:
            for number, client in enumerate(clients):
                if number == 6:
                    pair.two.process.send_signal(signal.SIGSTOP)  # some of these six are in flight
                client.sendall(request)
            began = time.monotonic()
            rotated = pair.rotate(name)
            took = time.monotonic() - began
            assert rotated.status == 200, rotated.raw
            assert took < LEASE_S + 8
            answered = []
            for client in clients[:6]:  # what it answered before it was frozen, it answered before the rotation
                client.settimeout(0.2)
                try:
                    answered.append(client.recv(65536))
                except TimeoutError:
                    answered.append(b"")
                client.settimeout(30)
            pair.two.process.send_signal(signal.SIGCONT)
            for client, before in zip(clients, [*answered, *[b""] * 6], strict=True):
                if not before:
                    status = client.recv(65536).split(b" ", 2)[1]
                    assert status in (b"401", b"503"), (turn, status)
        finally:
            pair.two.process.send_signal(signal.SIGCONT)
            for client in clients:
                client.close()
        token = parse_credential(rotated.body["token"]).token
    assert "did not answer and were fenced" in pair.one.log.read_text()
    until(pair.two.is_ready, 20)


def test_no_token_is_written_anywhere(pair: Pair, name: str) -> None:
    """Neither on the log, nor in what the processes say, nor in their command lines."""
    credential = pair.enrol(name).body["token"]
    rotated = pair.rotate(name).body["token"]
    operator = pair.one("POST", "/v1/operators", {"name": name, "roles": ["viewer"]}, token=pair.desk.admin)
    secrets = [parse_credential(credential).token, parse_credential(rotated).token, operator.body["token"]]
    secrets += [pair.desk.admin, pair.desk.viewer, *[one.token for one in pair.desk.agents.values()]]
    for token in secrets:
        for replica in (pair.one, pair.two):
            pair.ask(replica, token)
            replica("POST", "/v1/decide", b"{", token=token)
            replica("GET", f"/v1/agents/{token}", token=token)
            replica("POST", "/v1/events", {"kind": "note", "session": "s", "text": f"my token is {token}"}, token=token)
    pair.tape.wait(Topic.CONTROL, lambda one: one.get("operator") == name)
    hidden = [secret.split("_", 2)[2].encode() for secret in secrets]
    keys = [credential.partition(".")[2].encode(), rotated.partition(".")[2].encode()]
    for topic in Topic:
        for record in pair.tape.records(topic):
            whole = record["_raw"] + b"".join(value or b"" for value in record["_headers"].values())
            assert not [one for one in hidden + keys if one in whole]
    for replica in (pair.one, pair.two):
        assert replica.process is not None
        said = replica.log.read_bytes()
        with open(f"/proc/{replica.process.pid}/cmdline", "rb") as line:
            said += line.read()
        assert not [one for one in hidden + keys if one in said]
