"""The log of controls after Kafka has compacted it: heartbeats are gone, and nothing else is."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from tests.enforcer.conftest import PUSH, Answer, Enforcer, Shop, Tape, make_desk, make_replica, until
from tests.servers import Broker

from banksman import bus, provision
from banksman.settings import Kafka
from banksman.signing import parse_credential
from banksman.stamps import uuid7
from banksman.topics import SPECS, Topic

WHY = {"reason": "it does what it should not"}


def in_haste(kafka: Kafka) -> None:
    """Segments of `control` are closed at once, and cleaned as soon as there is anything to clean."""

    async def alter() -> None:
        admin = await provision.connect_admin(kafka)
        try:
            wanted = SPECS[Topic.CONTROL].configs(replication=1) | {
                "segment.ms": "500", "min.cleanable.dirty.ratio": "0.001"
            }  # fmt: skip
            name = kafka.topic(Topic.CONTROL)
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=wanted)])
        finally:
            await admin.close()

    asyncio.run(alter())


def there(kafka: Kafka) -> tuple[set[int], int]:
    """Of `control` as it is now: the offsets of what is no heartbeat, and how many heartbeats there are."""

    async def read() -> tuple[set[int], int]:
        topic, kept, heartbeats = kafka.topic(Topic.CONTROL), set[int](), 0
        end = await bus.end_of(kafka, topic)
        async with aclosing(bus.read_from_start(kafka, topic)) as batches:
            async for batch in batches:
                for record in batch:
                    if record.key.startswith(b"replica/"):
                        heartbeats += 1
                    else:
                        kept.add(record.offset)
                if batch and batch[-1].offset >= end - 1:
                    return kept, heartbeats
        raise AssertionError

    return asyncio.run(read())


@pytest.mark.slow
def test_compaction_takes_old_heartbeats_and_nothing_that_is_in_force(broker: Broker, tmp_path: Path) -> None:
    """Kills, a revocation and its lifting, a rotation, a vote and a use: each has a key of its own."""
    desk = make_desk(broker, tmp_path)
    in_haste(desk.kafka)
    first, second = (make_replica(desk, name) for name in ("first", "second"))
    with Tape(desk.kafka) as tape:
        try:
            first.start()
            shop = Shop(desk, first, tape)
            approval, question, new = acts(shop)
            lifted = shop("POST", "/v1/agents/tester/revoke", WHY, token=desk.admin, timeout=30)
            assert lifted.status == 200, lifted.raw

            def compacted() -> bool:
                seen = tape.records(Topic.CONTROL, lambda one: one["_key"].startswith("replica/"))
                return there(desk.kafka)[1] < len(seen) / 2

            until(compacted, 90, 0.5)
            kept, _ = there(desk.kafka)
            written = tape.records(Topic.CONTROL, lambda one: not one["_key"].startswith("replica/"))
            assert {one["_offset"] for one in written} <= kept
            first.kill()
            second.start()
            reasons = {agent: reason(desk, second, agent) for agent in ("buyer", "seller", "tester")}
            assert reasons == {"buyer": "killed", "seller": "default_deny", "tester": "revoked"}
            used = MAIN | {"approval": approval}
            old, rotated = desk.agents["stranger"].token, new
            assert [second("POST", "/v1/decide", PUSH, token=token).status for token in (old, rotated)] == [401, 200]
            buyer = desk.agents["buyer"].token
            assert second("POST", "/v1/decide", used, token=buyer).body["reason"] == "approval_used"
            assert second("POST", "/v1/decide", used | {"id": question}, token=buyer).body["reason"] == "approved"
            # A lift names the offset of what it lifts, and that is what it was.
            assert second("POST", "/v1/agents/tester/restore", WHY, token=desk.admin, timeout=60).status == 200
            assert reason(desk, second, "tester") == "allowed"
        finally:
            first.end()
            second.end()


MAIN = PUSH | {"branch": "main", "session": "asks"}


def acts(shop: Shop) -> tuple[str, str, str]:
    """-> (an approval that was used, by which question, the token that a rotation gave)."""
    desk = shop.desk
    admin: dict[str, Any] = {"token": desk.admin, "timeout": 30}
    for path in ("/v1/sessions/s1/kill?agent=buyer", "/v1/agents/seller/revoke", "/v1/agents/seller/restore"):
        done(shop("POST", path, WHY, **admin))
    new = parse_credential(done(shop("POST", "/v1/agents/stranger/rotate", **admin)).body["token"]).token
    approval = done(shop.decide(MAIN)).body["approval"]
    done(shop("POST", f"/v1/approvals/{approval}", {"verdict": "approve"}, **admin))
    used = shop.decide(MAIN | {"approval": approval, "id": (question := uuid7())})
    assert used.body["reason"] == "approved", used.raw
    return approval, question, new


def done(answer: Answer) -> Answer:
    assert answer.status == 200, answer.raw
    return answer


def reason(desk: Any, at: Enforcer, agent: str) -> str:
    asked = PUSH if agent != "tester" else PUSH | {"action": "pull"}
    return str(at("POST", "/v1/decide", asked, token=desk.agents[agent].token).body["reason"])
