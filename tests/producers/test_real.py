"""Through a real enforcer and a real broker: what an agent reported is on the topic, verified, once by id, in order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka.protocol.admin import CreateAclsRequest
from tests.enforcer.conftest import Desk, Shop, shop, until
from tests.producers.conftest import Agent
from tests.proxy import Proxy
from tests.servers import Broker

from banksman import bus, provision, settings
from banksman.producers import Emitter, KafkaTransport
from banksman.signing import SENT, Verifier
from banksman.topics import Topic

__all__ = ["shop"]

ALLOWED: dict[str, Any] = {"resource": "acme/billing", "branch": "feature/a"}


def actions(shop: Shop, session: str, at_least: int = 0) -> list[dict[str, Any]]:
    return shop.tape.wait(Topic.ACTIONS, lambda record: record.get("session") == session, at_least)


def once_by_id(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the views show them: the first of every id. A resend has the same bytes, or it is another event."""
    first: dict[str, dict[str, Any]] = {}
    for record in sorted(records, key=lambda record: (record["_partition"], record["_offset"])):
        known = first.setdefault(record["id"], record)
        assert known["_raw"] == record["_raw"], "the same id with other bytes"
    return list(first.values())


@pytest.fixture
def make_real(shop: Shop, tmp_path: Path) -> Iterator[Callable[..., Emitter]]:
    made: list[Emitter] = []

    def make(agent: str = "buyer", **more: Any) -> Emitter:
        known = {"url": shop.enforcer.base, "spool": tmp_path / "spool"}
        made.append(Emitter(shop.desk.agents[agent], **{**known, **more}))
        return made[-1]

    yield make
    for one in made:
        one.close(0)


# ── over HTTP ──


def test_the_story_of_a_session(shop: Shop, make_real: Callable[..., Emitter]) -> None:
    emitter = make_real()
    args = {"force": False, "note": "für Ann", "amount": 1.5, "key": "AKIA" + "Q" * 16}
    with emitter.session("story") as session:
        session.prompt("push it")
        call = session.tool_call("git", "push", args=args, **ALLOWED)
        decision = session.decide("git", "push", args=args, call=call, **ALLOWED)
        assert (decision.decision, decision.rule, decision.tier) == ("allow", "buyer/allow/0", 2)
        session.tool_result(call, "ok", result="done")
        assert session.decide("git", "push", resource="acme/billing", branch="main").decision == "approve"
        denied = session.decide("git", "force_push", **ALLOWED)
        assert (denied.decision, denied.reason) == ("deny", "never")
    assert emitter.flush(20)
    records = actions(shop, "story", 5)
    assert [r["kind"] for r in records] == ["session.started", "prompt", "tool.call", "tool.result", "session.ended"]
    assert [r["seq"] for r in records] == [1, 2, 3, 4, 5]
    verifier = Verifier(shop.desk.secret)
    for record in records:
        author = verifier.author(
            shop.desk.kafka.topic(Topic.ACTIONS), b"buyer", list(record["_headers"].items()), record["_raw"]
        )
        assert author is not None
        assert SENT in record["_headers"]
    asked = shop.tape.wait(Topic.DECISIONS, lambda record: record.get("call") == call)[0]
    intent = records[2]
    assert intent["args_hash"] == asked["args_hash"], "the emitter's hash is the enforcer's"
    assert intent["args"] == asked["args"], "redacted here and there alike"
    assert intent["args"]["key"].startswith("[aws-access-key:")


def test_a_governed_function_runs_when_a_human_has_said_yes(shop: Shop, make_real: Callable[..., Emitter]) -> None:
    emitter = make_real()
    ran: list[str] = []
    with emitter.session("waits") as session:

        @session.govern(service="git", resource=lambda repo, _: repo, branch=lambda _, branch: branch, wait=30)
        def push(repo: str, branch: str) -> None:
            ran.append(branch)

        agent = threading.Thread(target=push, args=("acme/billing", "main"))
        agent.start()

        def waiting() -> Any:
            found = shop.enforcer("GET", "/v1/approvals", token=shop.desk.admin).body["approvals"]
            return [one for one in found if one["session"] == "waits"]

        (approval,) = until(waiting)
        assert ran == []
        path = f"/v1/approvals/{approval['approval']}"
        assert shop.enforcer("POST", path, {"verdict": "approve"}, token=shop.desk.admin).status == 200
        agent.join(20)
    assert ran == ["main"]
    assert emitter.flush(20)
    records = actions(shop, "waits", 4)
    assert [r["kind"] for r in records] == ["session.started", "tool.call", "tool.result", "session.ended"]
    assert records[2]["status"] == "ok"


def test_the_enforcer_takes_what_the_emitter_made_as_it_is(
    shop: Shop, make_real: Callable[..., Emitter], tmp_path: Path
) -> None:
    """Nothing is stamped, redacted or hashed twice: the record is the spool's own bytes."""
    emitter = make_real()
    session = emitter.session("as-it-is")
    session.tool_call("x", "y", args={"deep": {"a": [1, None, "é", 2.5]}, "password": "hunter2", "mail": "a@b.example"})
    session.tool_result(session.tool_call("x", "y"), "error", error="no such id 0xdeadbeef", result={"n": float("nan")})
    session.note("x" * 300_000)
    assert emitter.flush(20)
    spooled = b"".join(path.read_bytes() for path in tmp_path.rglob("*.log"))
    for record in actions(shop, "as-it-is", 4):
        assert json.loads(record["_raw"])["id"].encode() in spooled
        assert record["_raw"] in spooled


def test_one_event_that_speaks_for_another_is_set_aside(shop: Shop, make_real: Callable[..., Emitter]) -> None:
    emitter = make_real()
    session = emitter.session("other")
    session.note("before")
    emitter.emit({"kind": "note", "session": "other", "text": "forged", "agent": "seller"})
    emitter.emit({"kind": "note", "session": "other", "text": "forged", "project": "lab"})
    session.note("after")
    assert emitter.flush(20)
    assert emitter.stats().refused == 2
    assert [record["text"] for record in actions(shop, "other", 2)] == ["before", "after"]


def test_an_agent_that_is_enrolled_later(shop: Shop, make_real: Callable[..., Emitter]) -> None:
    credential, enrolled = shop.desk.agent("latecomer")
    shop.desk.agents["latecomer"] = credential
    emitter = make_real("latecomer")
    emitter.session("late").note("waited")
    until(lambda: emitter.stats().state == "not_let_in")
    assert "401" in emitter.stats().why
    shop.desk.write(enrolled)
    assert emitter.flush(60)
    assert [record["text"] for record in actions(shop, "late", 1)] == ["waited"]


def test_lost_answers_and_cut_lines(shop: Shop, make_real: Callable[..., Emitter]) -> None:
    """Every third answer is lost on its way back, the line is cut in between: once by id, in order, nothing missing."""
    with Proxy(int(shop.enforcer.base.rpartition(":")[2])) as proxy:
        proxy.on_answer = lambda data: None if proxy.answers % 3 == 1 else data
        emitter = make_real(url=proxy.url)
        session = emitter.session("lines")
        for n in range(300):
            session.note(str(n))
            if n % 50 == 25:
                proxy.cut()
            time.sleep(0.002)  # a steady agent
        assert emitter.flush(60)
        shop.tape.wait(Topic.ACTIONS, lambda r: r.get("session") == "lines" and r["text"] == "299", 1)
        records = actions(shop, "lines")
    shown = once_by_id(records)
    assert [record["text"] for record in shown] == [str(n) for n in range(300)]
    assert len(records) > 300, "no answer was lost after all"


STEADY = """
import os, sys, time
from banksman.producers import Emitter
emitter = Emitter.from_settings()
first, session = int(sys.stdin.readline()), emitter.session(os.environ["SESSION"])
told, n = [], first
while True:
    session.note(str(n))
    told.append((time.monotonic(), n))
    while told and time.monotonic() - told[0][0] > 0.02:
        print(told.pop(0)[1], flush=True)
    n += 1
    time.sleep(0.005)
"""


def steady(make_agent: Callable[..., Agent], environment: dict[str, str], first: int) -> tuple[Agent, list[int]]:
    """An agent that reports 200 a second from `first` on, and the numbers that are 20 ms old, as it says them."""
    agent = make_agent(STEADY, **environment)
    agent.say(str(first))
    numbers: list[int] = []

    def listen() -> None:
        assert agent.process.stdout is not None
        numbers.extend(int(line) for line in agent.process.stdout if line.endswith("\n"))

    threading.Thread(target=listen, daemon=True).start()
    until(lambda: numbers, 30)
    return agent, numbers


@pytest.mark.slow
def test_enforcer_killed_agent_killed_and_all_of_it_again(
    shop: Shop, make_agent: Callable[..., Agent], make_real: Callable[..., Emitter], tmp_path: Path
) -> None:
    """200 a second while the enforcer is killed and started, and the agent too: 0 lost, 0 twice, in order."""
    environment = {
        "BANKSMAN_URL": shop.enforcer.base, "BANKSMAN_TOKEN": str(shop.desk.agents["buyer"]), "SESSION": "steady",
        "BANKSMAN_SPOOL": str(tmp_path / "spool"),
    }  # fmt: skip
    port = shop.enforcer.base.rpartition(":")[2]
    shop.enforcer.environment["BANKSMAN_ENFORCER_PORT"] = port
    one, first = steady(make_agent, environment, 0)
    until(lambda: len(first) > 100)
    shop.enforcer.kill()
    until(lambda: len(first) > 300)
    one.kill()
    two, second = steady(make_agent, environment, 100_000)
    until(lambda: len(second) > 100)
    shop.enforcer.log.write_text("")
    shop.enforcer.start()
    until(lambda: len(second) > 300)
    two.kill()
    wanted = [*first, *second]
    emitter = make_real()
    shop.tape.wait(Topic.ACTIONS, lambda r: r.get("session") == "steady" and r["text"] == str(wanted[-1]), 1, 40)
    assert emitter.flush(30)
    shown = [int(record["text"]) for record in once_by_id(actions(shop, "steady"))]
    assert set(wanted) <= set(shown)
    assert shown == sorted(shown)
    assert len(set(shown)) == len(shown)


# ── straight into Kafka ──


def kafka_of(desk: Desk, **more: Any) -> settings.Kafka:
    known = {name: getattr(desk.kafka, name) for name in desk.kafka.__struct_fields__}
    return settings.Kafka(**{**known, **more})


def test_the_story_straight_into_kafka(shop: Shop, make_real: Callable[..., Emitter]) -> None:
    emitter = make_real(transport=KafkaTransport(shop.desk.kafka, shop.desk.agents["buyer"]))
    with emitter.session("direct") as session:
        call = session.tool_call("git", "push", args={"n": 1}, **ALLOWED)
        assert session.decide("git", "push", args={"n": 1}, call=call, **ALLOWED)
        for n in range(3000):
            session.note(f"{n} " + "x" * 500)
        session.note("y" * 1_500_000)
    assert emitter.flush(30)
    records = actions(shop, "direct", 3004)
    assert [record["seq"] for record in records] == list(range(1, 3005))
    partition = bus.partition_of(b"buyer", shop.desk.kafka.partitions)
    verifier = Verifier(shop.desk.secret)
    for record in records:
        assert (record["_key"], record["_partition"]) == ("buyer", partition)
        author = verifier.author(
            shop.desk.kafka.topic(Topic.ACTIONS), b"buyer", list(record["_headers"].items()), record["_raw"]
        )
        assert author is not None
        assert str(author).startswith("agent:shop/buyer/")
        assert record["_headers"]["ce_type"] == b"banksman." + record["kind"].encode()
        assert SENT in record["_headers"]
    decision = shop.tape.wait(Topic.DECISIONS, lambda record: record.get("call") == call)[0]
    assert decision["_partition"] == partition
    assert decision["args_hash"] == records[1]["args_hash"]


def test_a_wrong_password_waits_and_says_so(
    shop: Shop, make_real: Callable[..., Emitter], caplog: pytest.LogCaptureFixture
) -> None:
    wrong = kafka_of(shop.desk, kafka_password="not-the-password")
    emitter = make_real(transport=KafkaTransport(wrong, shop.desk.agents["buyer"]))
    emitter.session("wrong").note("x")
    until(lambda: emitter.stats().state != "sending", 20)
    assert emitter.stats().state == "not_let_in"
    assert "not-the-password" not in caplog.text + emitter.stats().why
    assert not emitter.flush(0.1)


async def grant(kafka: settings.Kafka, user: str, topic: str) -> None:
    """The user may write to the topic and see it: nothing else."""
    admin = await provision.connect_admin(kafka)
    try:
        for operation in (4, 8):  # write, describe
            answer = await admin._send_request(CreateAclsRequest(2, topic, 3, f"User:{user}", "*", operation, 3))
            assert answer.creation_responses[0][0] == 0
    finally:
        await admin.close()


def test_a_user_that_may_write_actions_and_nothing_else(
    shop: Shop, broker: Broker, make_real: Callable[..., Emitter]
) -> None:
    mine = kafka_of(shop.desk, kafka_username="agent", kafka_password=broker.node.users["agent"])
    emitter = make_real("seller", transport=KafkaTransport(mine, shop.desk.agents["seller"]))
    emitter.session("acl").note("waited")
    until(lambda: emitter.stats().state != "sending", 30)
    assert not emitter.flush(0.1)
    asyncio.run(grant(shop.desk.kafka, "agent", shop.desk.kafka.topic(Topic.ACTIONS)))
    assert emitter.flush(60)
    assert [record["text"] for record in actions(shop, "acl", 1)] == ["waited"]


def test_a_broker_that_is_frozen_and_an_agent_that_is_killed_meanwhile(
    shop: Shop, broker: Broker, make_agent: Callable[..., Agent], tmp_path: Path
) -> None:
    environment = kafka_environment(shop.desk) | {
        "BANKSMAN_TOKEN": str(shop.desk.agents["buyer"]), "BANKSMAN_SPOOL": str(tmp_path / "spool"),
        "SESSION": "frozen",
    }  # fmt: skip
    one, first = steady(make_agent, environment, 0)
    actions(shop, "frozen", 50)
    os.kill(broker.process.pid, signal.SIGSTOP)
    try:
        before = len(first)
        until(lambda: len(first) > before + 200)
        one.kill()
        two, second = steady(make_agent, environment, 100_000)
        until(lambda: len(second) > 100)
    finally:
        os.kill(broker.process.pid, signal.SIGCONT)
    until(lambda: len(second) > 300)
    shop.tape.wait(Topic.ACTIONS, lambda r: r.get("session") == "frozen" and r["text"] == str(second[200]), 1, 60)
    two.kill()
    with Emitter(
        shop.desk.agents["buyer"], spool=tmp_path / "spool",
        transport=KafkaTransport(shop.desk.kafka, shop.desk.agents["buyer"]),
    ) as emitter:  # fmt: skip
        emitter.session("frozen").note("1000000")
        assert emitter.flush(60)
    wanted = [*first, *second]
    shop.tape.wait(Topic.ACTIONS, lambda r: r.get("session") == "frozen" and r["text"] == "1000000")
    shown = [int(record["text"]) for record in once_by_id(actions(shop, "frozen"))]
    assert set(wanted) <= set(shown)
    assert shown == sorted(shown)


def kafka_environment(desk: Desk) -> dict[str, str]:
    return {
        "BANKSMAN_TRANSPORT": "kafka", "BANKSMAN_KAFKA": desk.kafka.kafka,
        "BANKSMAN_KAFKA_SECURITY": desk.kafka.kafka_security, "BANKSMAN_KAFKA_USERNAME": desk.kafka.kafka_username,
        "BANKSMAN_KAFKA_PASSWORD": desk.kafka.kafka_password, "BANKSMAN_TOPIC_PREFIX": desk.kafka.topic_prefix,
    }  # fmt: skip


@pytest.mark.slow
def test_a_broker_that_is_killed_and_comes_back(shop: Shop, broker: Broker, make_real: Callable[..., Emitter]) -> None:
    emitter = make_real(transport=KafkaTransport(shop.desk.kafka, shop.desk.agents["buyer"]))
    session = emitter.session("killed")
    reported = 0
    try:
        for n in range(600):
            session.note(str(n))
            reported = n + 1
            if n == 200:
                broker.kill()
            time.sleep(0.002)  # a steady agent
        until(lambda: emitter.stats().state == "away", 30)
    finally:
        if broker.process.poll() is not None:
            broker.start()
    assert emitter.flush(60)
    shop.tape.wait(Topic.ACTIONS, lambda r: r.get("session") == "killed" and r["text"] == str(reported - 1), 1, 60)
    shown = [int(record["text"]) for record in once_by_id(actions(shop, "killed"))]
    assert shown == list(range(reported))
