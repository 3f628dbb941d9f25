"""Kafka frozen, killed and back: no decision is answered that is not on record, and the enforcer recovers by itself."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.enforcer.conftest import Answer, Desk, Enforcer, Shop, Tape, make_desk, open_shop, until
from tests.servers import Broker, freeze

from banksman.stamps import uuid7
from banksman.topics import Topic


@contextmanager
def frozen(broker: Broker) -> Iterator[None]:
    """Its connections stay open, and nothing is answered."""
    freeze(broker.process.pid)
    try:
        yield
    finally:
        broker.process.send_signal(signal.SIGCONT)


def note(session: str) -> dict[str, Any]:
    return {"kind": "note", "session": session, "text": "x"}


def access(session: str) -> dict[str, Any]:
    """Two AuthZEN questions: one that is allowed, one that waits for a human."""
    branches = [{"type": "git", "id": "acme/billing", "properties": {"branch": name}} for name in ("feature/a", "main")]
    return {
        "subject": {"type": "user", "id": "ann"}, "action": {"name": "push"}, "context": {"session": session},
        "evaluations": [{"resource": resource} for resource in branches],
    }  # fmt: skip


@pytest.fixture
def shop(broker: Broker, tmp_path: Path) -> Iterator[Shop]:
    """The lease outlives the deadline, so that it is the record that a decision waits for in vain."""
    yield from open_shop(make_desk(broker, tmp_path), BANKSMAN_LEASE_S="5", BANKSMAN_RECORD_DEADLINE_S="2")


def test_frozen(broker: Broker, shop: Shop) -> None:
    """503 within the deadline; what landed all the same is voided; then everything goes on."""
    assert shop.decide(session="before").status == 200
    approval = shop.decide(session="before", branch="main").body["approval"]
    until(lambda: shop("GET", f"/v1/approvals/{approval}", token=shop.desk.viewer).status == 200)
    until(lambda: shop("GET", "/v1/status", token=shop.desk.viewer).body["lease"]["seconds_left"] > 4)
    token = shop.desk.agents["buyer"].token
    with ThreadPoolExecutor(8) as pool, frozen(broker):
        began = time.monotonic()
        questions = [pool.submit(shop.decide, session="frozen", branch=branch) for branch in ("feature/a", "main")]
        event = pool.submit(shop, "POST", "/v1/events", note("frozen"), token=token)
        batch = pool.submit(shop, "POST", "/access/v1/evaluations", access("frozen"), token=token)
        for answer in [future.result() for future in [*questions, event, batch]]:
            assert answer.status == 503, answer.raw
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["content-type"] == "application/problem+json"
        assert time.monotonic() - began < 8  # the deadline is 2 s; the rest is a loaded machine
        until(lambda: shop("GET", "/readyz").status == 503, 20)
        began = time.monotonic()
        late = shop.decide(session="later")
        assert (late.status, "without a lease" in late.body["detail"]) == (503, True)
        assert shop("POST", "/v1/events", note("later"), token=token).status == 503
        assert shop("POST", "/access/v1/evaluations", access("later"), token=token).status == 503
        unknown = shop("POST", "/v1/decide", {}, token="bma_0000000000000000_nobody")
        assert unknown.status == 503  # whoever it is may have been enrolled a second ago
        assert (
            shop("POST", "/v1/agents", {"agent": "x", "project": "p", "owner": "o"}, token=shop.desk.admin).status
            == 503
        )
        for path, body in (
            ("/v1/agents/buyer/revoke", {"reason": "now"}),
            ("/v1/sessions/before/kill", {"reason": "now"}),
            ("/v1/projects/shop/pause", {"reason": "now"}),
            (f"/v1/approvals/{approval}", {"verdict": "approve"}),
        ):
            assert shop("POST", path, body, token=shop.desk.admin).status == 503, path
        assert time.monotonic() - began < 2  # at once: nothing is waited for
        status = shop("GET", "/v1/status", token=shop.desk.viewer).body
        assert status["enforcing"] is False
        assert status["lease"]["valid"] is False
        assert "no lease" in status["reason"]
        assert shop("GET", "/healthz").status == 200
    until(shop.enforcer.is_ready, 20)
    after = shop.decide(session="after")
    assert after.body["decision"] == "allow"  # none of it was done, and none of it lands later
    shop.record(after)
    answered = shop("POST", f"/v1/approvals/{approval}", {"verdict": "approve"}, token=shop.desk.admin)
    assert answered.body["status"] == "approved"
    # One batch is in flight to a partition: what waited behind it is never sent when its caller has given up.
    decisions = shop.tape.records(
        Topic.DECISIONS, lambda one: one.get("kind") == "decision" and one["session"] == "frozen"
    )
    assert len(decisions) >= 1
    voids = shop.tape.wait(
        Topic.DECISIONS, lambda one: one.get("kind") == "decision.void" and one["session"] == "frozen", len(decisions)
    )
    assert {void["parent"] for void in voids} == {decision["id"] for decision in decisions}
    assert {void["reason"] for void in voids} == {"not_acknowledged"}
    assert shop.tape.records(Topic.DECISIONS, lambda one: one.get("session") == "later") == []
    until(lambda: shop("GET", "/v1/status", token=shop.desk.viewer).body["undelivered"] == 0)


@pytest.mark.slow
def test_killed_and_back(broker: Broker, desk: Desk, make_enforcer: Any) -> None:
    """Under load, on two replicas: every 200 is on record, every other record is voided, nobody is restarted."""
    usual = {"BANKSMAN_LEASE_S": "1.5", "BANKSMAN_RECORD_DEADLINE_S": "2"}
    replicas = [make_enforcer(**usual), make_enforcer(**usual)]
    answers: list[tuple[str, Answer]] = []
    stop = threading.Event()

    def ask(replica: Enforcer, agent: str) -> None:
        token = desk.agents[agent].token
        client = http.client.HTTPConnection(replica.base.removeprefix("http://"), timeout=20)  # kept, as agents do
        while not stop.is_set():
            question = uuid7()
            body = {"id": question, "session": f"load-{agent}", "service": "git", "action": "pull",
                    "resource": "acme/billing", "branch": "feature/a"}  # fmt: skip
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            client.request("POST", "/v1/decide", json.dumps(body), headers)
            told = client.getresponse()
            answers.append((question, Answer(told.status, dict(told.headers), told.read())))
        client.close()

    def good() -> int:
        return sum(answer.status == 200 for _, answer in list(answers))

    with Tape(desk.kafka) as tape:
        threads = [
            threading.Thread(target=ask, args=(replica, agent))
            for replica in replicas
            for agent in ("buyer", "seller", "tester")
        ]
        for thread in threads:
            thread.start()
        try:
            until(lambda: good() > 100, 30)
            broker.kill()
            until(lambda: answers[-1][1].status == 503, 20)
            broker.start()
            enough = good() + 100
            until(lambda: good() > enough, 60)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            if broker.process.poll() is not None:
                broker.start()
        assert {answer.status for _, answer in answers} == {200, 503}
        answered = {answer.body["id"] for _, answer in answers if answer.status == 200}
        records = tape.wait(Topic.DECISIONS, lambda one: one["id"] in answered, len(answered), 30)
        assert len(records) == len(answered)  # none twice
        on_record = {one["id"] for one in tape.records(Topic.DECISIONS, lambda one: one.get("kind") == "decision")}
        unanswered = on_record - answered
        voided = tape.wait(
            Topic.DECISIONS, lambda one: one.get("kind") == "decision.void" and one["parent"] in unanswered,
            len(unanswered), 30,
        )  # fmt: skip
        assert {void["parent"] for void in voided} == unanswered
    for replica in replicas:
        assert replica.process is not None
        assert replica.process.poll() is None
        assert replica.stop() == 0


def test_a_share_of_the_queue_and_the_whole_of_it(broker: Broker, tmp_path: Any) -> None:
    """With nothing acknowledged: two of eight places for one agent, then 429; when all are taken, 503 for everybody."""
    lasting = {"BANKSMAN_LEASE_S": "60", "BANKSMAN_RECORD_DEADLINE_S": "8", "BANKSMAN_QUEUE": "8"}
    with contextmanager(open_shop)(make_desk(broker, tmp_path), **lasting) as shop:
        waiting: list[Future[Answer]] = []
        with ThreadPoolExecutor(16) as pool, frozen(broker):

            def fill(agent: str) -> None:
                waiting.extend(pool.submit(shop.decide, agent=agent, session="full") for _ in range(2))
                until(
                    lambda: shop("GET", "/v1/status", token=shop.desk.viewer).body["queue"]["waiting"] == len(waiting)
                )

            fill("buyer")
            third = shop.decide()
            assert third.status == 429, third.raw
            assert "2 requests of this agent are waiting" in third.body["detail"]
            assert third.headers["retry-after"] == "1"
            for agent in ("seller", "stranger", "tester"):
                fill(agent)
            full = shop.decide(agent="homeless")
            assert full.status == 503, full.raw
            assert "8 records are waiting" in full.body["detail"]
            assert {future.result().status for future in waiting} == {503}
        for agent in ("buyer", "seller", "stranger", "tester"):  # whatever landed lies before these
            shop.record(until(lambda: (told := shop.decide(agent=agent, session="after")).status == 200 and told, 20))  # noqa: B023
        on_record = {
            one["id"]
            for one in shop.tape.records(Topic.DECISIONS, lambda one: one.get("session") == "full")
            if one["kind"] == "decision"
        }
        assert len(on_record) <= 8
        voids = shop.tape.wait(Topic.DECISIONS, lambda one: one.get("kind") == "decision.void" and one["parent"] in on_record,
                               len(on_record))  # fmt: skip
        assert {one["parent"] for one in voids} == on_record


def test_told_to_stop_while_kafka_is_away(broker: Broker, desk: Desk, make_enforcer: Any) -> None:
    replica = make_enforcer()
    with frozen(broker):
        assert replica("POST", "/v1/decide", {}, token=desk.agents["buyer"].token).status == 422
        replica.process.terminate()
        assert replica.process.wait(25) == 0
    said = replica.log.read_text()
    assert "could not say goodbye" in said
    assert "Traceback" not in said
