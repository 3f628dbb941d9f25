"""Written straight into Kafka: what no service of ours has signed, for here and for now, is applied by nobody and told."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests import raw_batches
from tests.enforcer.conftest import PUSH, Shop, make_desk, open_shop, until
from tests.servers import Broker

from banksman import bus, codec
from banksman.events import AgentEnrolled, AgentRotated, Event, OperatorEnrolled, Replica, kind_of
from banksman.signing import Headers, Secret, Signer, new_credential, new_token, parse_credential, service_signer
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic


def append(shop: Shop, key: bytes, value: bytes | None, headers: Headers) -> int:
    """One record into control -> its offset."""

    async def write() -> int:
        sender = bus.producer(shop.desk.kafka)
        await sender.start()
        try:
            topic = shop.desk.kafka.topic(Topic.CONTROL)
            return int((await sender.send_and_wait(topic, value, key=key, partition=0, headers=headers)).offset)
        finally:
            await sender.stop()

    return asyncio.run(write())


def write(
    shop: Shop,
    event: Event,
    signer: Signer | None,
    *,
    topic: Topic = Topic.CONTROL,
    changes: dict[str, str] | None = None,
) -> int:
    value, kind = codec.encode(event), kind_of(event)
    key = f"{kind}/{event.id}".encode()
    headers: Headers = []
    if signer is not None:
        told = {"id": event.id, "kind": kind, "time": event.time, "source": event.source} | (changes or {})
        headers = signer.headers(shop.desk.kafka.topic(topic), key, value, **told)
    return append(shop, key, value, headers)


def enrolment(shop: Shop, name: str, *, at: str | None = None) -> tuple[str, AgentEnrolled]:
    credential, event = shop.desk.agent(name)
    assert isinstance(event, AgentEnrolled)
    event.time = at or event.time
    return credential.token, event


def applied(shop: Shop, offset: int) -> None:
    until(lambda: shop("GET", "/v1/status", token=shop.desk.viewer).body["control"]["applied"] >= offset)


def told(shop: Shop, offset: int) -> dict[str, Any]:
    """The finding about the record at `offset`."""
    (finding,) = shop.tape.wait(
        Topic.ALERTS, lambda one: one.get("evidence", {}).get("record") == f"control/0/{offset}"
    )
    codec.decode(finding["_raw"], Topic.ALERTS)
    assert (finding["detector"], finding["severity"]) == ("forged", "page")
    return finding


def signers(shop: Shop) -> dict[str, Signer | None]:
    other = Secret({1: b"x" * 32}, 1)
    return {
        "nobody": None,
        "another secret": service_signer(other, "up"),
        "an agent": shop.desk.agents["buyer"].signer(),
    }


@pytest.mark.parametrize("who", ["nobody", "another secret", "an agent"])
def test_a_forged_enrolment_is_applied_by_nobody(shop: Shop, who: str) -> None:
    name = f"forged-{uuid7()[-12:]}"
    token, event = enrolment(shop, name)
    offset = write(shop, event, signers(shop)[who])
    finding = told(shop, offset)
    assert finding["evidence"]["kind"] in ("agent.enrolled", "")
    assert shop("POST", "/v1/decide", PUSH, token=token).status == 401
    listed = shop("GET", "/v1/agents", token=shop.desk.viewer).body["agents"]
    assert name not in [agent["agent"] for agent in listed]
    assert finding["time"][:10] == rfc3339()[:10]  # Kafka's time, not the forger's


def test_a_forged_operator_rotation_and_heartbeat_are_applied_by_nobody(shop: Shop) -> None:
    token, token_id, hashed = new_token("bmo")
    common: dict[str, Any] = {"v": 1, "time": rfc3339(), "source": "x"}
    operator = OperatorEnrolled(
        **common, id=uuid7(), operator="mallory", roles=["admin"], token_id=token_id, token_hash=hashed
    )
    told(shop, write(shop, operator, None))
    assert shop("GET", "/v1/agents", token=token).status == 401

    credential, hashed = new_credential(shop.desk.secret, "shop", "buyer")
    rotation = AgentRotated(
        **common, id=uuid7(), project="shop", agent="buyer", token_id=credential.token_id, token_hash=hashed
    )
    told(shop, write(shop, rotation, shop.desk.agents["buyer"].signer()))
    assert shop("POST", "/v1/decide", PUSH, token=credential.token).status == 401
    assert shop.decide().status == 200

    beat = Replica(**common, id=uuid7(), replica="ghost", address="http://evil", applied=10**9, policies={})
    told(shop, write(shop, beat, None))
    status = shop("GET", "/v1/status", token=shop.desk.viewer).body
    assert "ghost" not in [replica["replica"] for replica in status["replicas"]]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"id": uuid7()}, "its headers name another event than its body"),
        ({"kind": "policy.removed"}, "its headers name another event than its body"),
        ({"replay": "run-1"}, "a replay touches no control"),
    ],
)
def test_a_signature_is_good_for_what_it_says_alone(shop: Shop, changes: dict[str, str], why: str) -> None:
    token, event = enrolment(shop, f"half-{uuid7()[-12:]}")
    offset = write(shop, event, service_signer(shop.desk.secret, "up"), changes=changes)
    assert why in told(shop, offset)["title"]
    assert shop("POST", "/v1/decide", PUSH, token=token).status == 401


def test_a_record_of_another_topic_is_none_of_control(shop: Shop) -> None:
    token, event = enrolment(shop, f"moved-{uuid7()[-12:]}")
    offset = write(shop, event, service_signer(shop.desk.secret, "up"), topic=Topic.ACTIONS)
    assert "nobody of ours has signed it" in told(shop, offset)["title"]
    assert shop("POST", "/v1/decide", PUSH, token=token).status == 401


def test_a_copy_of_a_genuine_record_counts_for_nothing(shop: Shop) -> None:
    """The rotation that made a token good, appended again after that token was rotated out."""
    name = f"copied-{uuid7()[-12:]}"
    enrolled = shop("POST", "/v1/agents", {"agent": name, "project": "shop", "owner": "o"}, token=shop.desk.admin)
    tokens = [parse_credential(enrolled.body["token"]).token]
    for _ in range(2):
        rotated = shop("POST", f"/v1/agents/{name}/rotate", token=shop.desk.admin)
        tokens.append(parse_credential(rotated.body["token"]).token)
    genuine = shop.tape.wait(Topic.CONTROL, lambda one: one.get("agent") == name, 3)
    for record in genuine[:2]:
        headers = list(record["_headers"].items())
        offset = append(shop, record["_key"].encode(), record["_raw"], headers)
        assert f"it is a copy of the record at offset {record['_offset']}" in told(shop, offset)["title"]
        statuses = [shop("POST", "/v1/decide", PUSH, token=token).status for token in tokens]
        assert statuses == [401, 401, 200]


@pytest.mark.parametrize("minutes", [-11, 11])
def test_a_record_far_from_its_own_time_counts_for_nothing(shop: Shop, minutes: int) -> None:
    """A copy whose original is gone from the log, or a clock that is wrong: dated 2020 and 2099 alike."""
    at = rfc3339(datetime.now(UTC) + timedelta(minutes=minutes))
    token, event = enrolment(shop, f"late-{uuid7()[-12:]}", at=at)
    offset = write(shop, event, service_signer(shop.desk.secret, "up"))
    assert "a copy, or a clock is wrong" in told(shop, offset)["title"]
    assert shop("POST", "/v1/decide", PUSH, token=token).status == 401
    beat = Replica(v=1, id=uuid7(), time=at, source="x", replica=f"r{minutes}", address="a", applied=0)
    applied(shop, write(shop, beat, service_signer(shop.desk.secret, "enforcer")))
    status = shop("GET", "/v1/status", token=shop.desk.viewer).body
    assert f"r{minutes}" not in [replica["replica"] for replica in status["replicas"]]


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"x", b"", []),
        (b"x", b"\xff\x00", [("ce_id", b"\xff")]),
        (b"x", b"{}", [("banksman-auth", b"1 1 service:up " + b"0" * 64)]),
        (b"x", b"[" * 100_000, []),
        (b"x", b'{"kind":"agent.enrolled","v":1}', [("banksman-auth", b"")]),
        (b"", b"null", [("ce_type", b"banksman." + b"x" * 5000)]),
        (b"k" * 10_000, b'"' + b"x" * 1_000_000 + b'"', []),
    ],
)
def test_garbage_stops_nobody(shop: Shop, key: bytes, value: bytes, headers: Headers) -> None:
    applied(shop, offset := append(shop, key, value, headers))
    assert len(told(shop, offset)["_raw"]) < 10_000
    assert shop.decide().status == 200


def test_what_nobody_can_read_stops_nobody(broker: Broker, tmp_path: Path) -> None:
    """Neither a replica that reads along, nor one that begins there."""
    with contextmanager(open_shop)(make_desk(broker, tmp_path)) as shop:
        kafka = shop.desk.kafka
        for topic in (Topic.CONTROL, Topic.LIMITS):
            raw_batches.send(kafka, kafka.topic(topic), 0, raw_batches.UNREADABLE)
        applied(shop, append(shop, b"x", b"{}", []))
        assert shop.decide().status == 200
        shop.enforcer.kill()
        shop.enforcer.start()
        applied(shop, append(shop, b"x", b"{}", []))
        assert shop.decide().status == 200


def test_a_record_of_a_later_version_is_nobodys_attack(shop: Shop) -> None:
    """While replicas are upgraded one by one, those that are still older must not page people to change Kafka's passwords."""
    _, event = enrolment(shop, f"later-{uuid7()[-8:]}")
    value = codec.encode(event).replace(b'"agent.enrolled"', b'"agent.of_tomorrow"')
    key, kind, topic = (
        f"agent.of_tomorrow/{event.id}".encode(),
        "agent.of_tomorrow",
        shop.desk.kafka.topic(Topic.CONTROL),
    )
    said = {"id": event.id, "kind": kind, "time": event.time, "source": event.source}
    offsets = [
        append(shop, key, value, signer.headers(topic, key, value, **said) if signer is not None else [])
        for signer in (service_signer(shop.desk.secret, "enforcer"), None)
    ]
    applied(shop, offsets[1])
    assert "cannot be understood" in told(shop, offsets[1])["title"], "anybody may have written this one"
    about = f"control/0/{offsets[0]}"
    assert not shop.tape.records(Topic.ALERTS, lambda one: one.get("evidence", {}).get("record") == about)


def test_a_tombstone_is_nothing_to_apply(shop: Shop) -> None:
    (record,) = shop.tape.wait(
        Topic.CONTROL, lambda one: one.get("agent") == "buyer" and one["kind"] == "agent.enrolled"
    )
    applied(shop, offset := append(shop, record["_key"].encode(), None, []))
    assert "a tombstone that nobody of ours has signed" in told(shop, offset)["title"]
    assert shop.decide().status == 200


def test_a_flood_of_forged_records_is_no_flood_of_findings(broker: Broker, tmp_path: Path) -> None:
    with contextmanager(open_shop)(make_desk(broker, tmp_path)) as shop:

        async def flood() -> int:
            sender = bus.producer(shop.desk.kafka)
            await sender.start()
            try:
                publisher = bus.Publisher(sender, shop.desk.kafka.topic(Topic.CONTROL))
                return max(await asyncio.gather(*[publisher.put(0, b"x", b"%d" % n, []) for n in range(5000)]))
            finally:
                await sender.stop()

        applied(shop, asyncio.run(flood()))
        assert shop.decide().status == 200
        until(lambda: shop("GET", "/v1/status", token=shop.desk.viewer).body["undelivered"] == 0)
        marker = write(shop, enrolment(shop, "marker", at=rfc3339(datetime(2020, 1, 1, tzinfo=UTC)))[1], None)
        applied(shop, marker)
        assert 20 < len(shop.tape.wait(Topic.ALERTS, lambda _: True, 20)) < 60
