"""A replica that Kafka cannot be reached from any more, while the others go on: it stops by itself, and is named."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests.enforcer.conftest import PUSH, Answer, Desk, Enforcer, make_desk, make_replica, until
from tests.proxy import Proxy
from tests.servers import Broker, child_environment

from banksman.local import children, jars, java, kafka
from banksman.stamps import uuid7

LEASE_S = 3
ROOM = {"BANKSMAN_LEASE_S": str(LEASE_S), "BANKSMAN_AGENT_RATE": "100000"}


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[tuple[Broker, Proxy]]:
    """A broker with two doors: its own port, and another that it says lies behind the proxy."""
    port, behind = kafka.free_port(), kafka.free_port()
    (node,) = kafka.cluster(
        tmp_path / "kafka", [port], java=java.find_java(), jars=jars.fetch(jars.cache_folder()), heap="256m",
        users={kafka.SUPER_USER: "password"},
    )  # fmt: skip
    with Proxy(behind) as proxy:
        controller = f"CONTROLLER://127.0.0.1:{dict(node.voters)[node.node_id]}"
        jaas = 'org.apache.kafka.common.security.plain.PlainLoginModule required user_service="password";'
        node = replace(
            node,
            extra={
                "listeners": f"CLIENT://127.0.0.1:{port},GATE://127.0.0.1:{behind},{controller}",
                "advertised.listeners": f"CLIENT://127.0.0.1:{port},GATE://127.0.0.1:{proxy.port},{controller}",
                "listener.security.protocol.map": "CLIENT:SASL_PLAINTEXT,GATE:SASL_PLAINTEXT,CONTROLLER:SASL_PLAINTEXT",
                "listener.name.gate.plain.sasl.jaas.config": jaas,
            },
        )
        node.prepare()
        process = children.spawn(node.argv(), log=node.log, env=child_environment())
        try:
            asyncio.run(node.ready())
            yield Broker(node, process), proxy
        finally:
            process.kill()
            process.wait()


def ask(desk: Desk, at: Enforcer, session: str, **more: str) -> Answer:
    return at("POST", "/v1/decide", PUSH | {"session": session} | more, token=desk.agents["buyer"].token, timeout=60)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["silent", "refused"])
def test_a_replica_that_is_cut_off_from_kafka_allows_nothing_once_the_kill_is_answered(
    gate: tuple[Broker, Proxy], tmp_path: Path, how: str
) -> None:
    """It is well, its clients reach it, and the command never does. What it has answered before it could answer again without
    a record.
    """
    broker, proxy = gate
    desk = make_desk(broker, tmp_path)
    one = make_replica(desk, "one", policies=None, **ROOM)
    two = make_replica(desk, "two", policies=None, **ROOM, BANKSMAN_KAFKA=f"127.0.0.1:{proxy.port}")
    with ExitStack() as ends:
        for replica in (one, two):
            ends.callback(replica.end)
            replica.start()
        until(lambda: len(one("GET", "/v1/status", token=desk.viewer).body["replicas"]) == 2)
        question = uuid7()
        assert ask(desk, two, "doomed", id=question).body["decision"] == "allow"
        other = two("GET", "/v1/status", token=desk.viewer).body["replica"]
        if how == "silent":
            proxy.silence()
        else:
            proxy.away()
        asked: list[Answer] = []
        under_way = [threading.Thread(target=lambda: asked.append(ask(desk, two, "doomed"))) for _ in range(4)]
        for one_of_them in under_way:
            one_of_them.start()
        body = {"reason": "it does what it should not"}
        told = one("POST", "/v1/sessions/doomed/kill?agent=buyer", body, token=desk.admin, timeout=60)
        assert told.status == 200, told.raw
        assert (told.body["fenced"], told.body["replicas"]) == ([other], 2)
        again = ask(desk, two, "doomed", id=question)
        assert again.status == 503, again.raw
        for _ in range(20):
            answer = ask(desk, two, "doomed")
            assert answer.status == 503, answer.raw
            assert "without a lease" in answer.body["detail"]
        proxy.speak()
        proxy.back()
        for one_of_them in under_way:
            one_of_them.join()
        # What was asked while it was cut off waited for its record, and for longer than the lease.
        assert {answer.status for answer in asked} == {503}, [answer.raw for answer in asked]
        until(lambda: ask(desk, two, "other").status == 200, 60)
        assert ask(desk, two, "doomed").body["reason"] == "killed"
