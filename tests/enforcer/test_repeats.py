"""The same question again, after something changed that its answer rested on: decided afresh, and on record as its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.enforcer.conftest import POLICY, PUSH, Desk, two_replicas
from tests.enforcer.inside import Inside, eventually, inside
from tests.servers import PARTITIONS, Broker

from banksman.bus import Publisher, producer
from banksman.codec import encode
from banksman.events import Budget, Event, Watermark, kind_of
from banksman.signing import service_signer
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic


async def test_a_kept_answer_is_not_given_without_a_lease(desk: Desk) -> None:
    """It was good when it was given. What has been written since nobody here knows."""
    token = desk.agents["buyer"].token
    async with inside(desk, lease_s=10.0) as made:
        for way in ("asgi", "short"):
            made.prefer, question = way, uuid7()
            first = await made.decide(token, id=question)
            assert (await made.decide(token, id=question)).body["id"] == first.body["id"]
            lease = made.replica.lease
            ends, lease.ends = lease.ends, 0.0
            answer = await made.decide(token, id=question)
            assert answer.status == 503, answer.raw
            lease.ends = ends
            assert (await made.decide(token, id=question)).status == 200


async def tell(made: Inside, desk: Desk, *events: Event) -> None:
    """As the processors, into `limits`."""
    signer, topic = service_signer(desk.secret, "processors"), desk.kafka.topic(Topic.LIMITS)
    sender = producer(desk.kafka)
    await sender.start()
    try:
        to = Publisher(sender, topic)
        for event in events:
            value, kind = encode(event), kind_of(event)
            headers = signer.headers(topic, b"k", value, id=event.id, kind=kind, time=event.time, source=event.source)
            await to.put(0, b"k", value, headers)
    finally:
        await sender.stop()


async def test_a_kept_allow_is_not_given_once_the_budget_is_spent(desk: Desk) -> None:
    (desk.policies / "shop.yaml").write_text(
        POLICY.replace("  buyer:\n", "  buyer:\n    budget: {daily_tokens: 100}\n")
    )
    token, question = desk.agents["buyer"].token, uuid7()
    common: dict[str, Any] = {"v": 1, "time": rfc3339(), "source": "processors"}
    async with inside(desk, lease_s=10.0) as made:
        marks = (
            Watermark(**common, id=uuid7(), partition=number, lag_ms=0, worker="w") for number in range(PARTITIONS)
        )
        await tell(made, desk, *marks)
        await eventually(lambda: len(made.replica.budgets.counted_to) == PARTITIONS)
        first = await made.decide(token, id=question)
        assert first.body["decision"] == "allow"
        assert (await made.decide(token, id=question)).body["id"] == first.body["id"]
        spent = Budget(
            **common, id=uuid7(), project="shop", agent="buyer", window="2026-11-29", unit="tokens", spent=100.0,
            resets_at="2099-01-01T00:00:00.000000Z", offsets={"actions/0": 7},
        )  # fmt: skip
        await tell(made, desk, spent)
        await eventually(lambda: "buyer" in made.replica.budgets._spent)
        again = await made.decide(token, id=question)
        assert (again.body["decision"], again.body["reason"]) == ("deny", "exhausted")


async def test_a_kept_answer_is_not_given_once_the_policy_is_another(desk: Desk) -> None:
    token, question = desk.agents["buyer"].token, uuid7()
    async with inside(desk, lease_s=10.0) as made:
        first = await made.decide(token, id=question)
        assert first.body["decision"] == "allow"
        generation = made.replica.policies.generation
        (desk.policies / "shop.yaml").write_text(POLICY.replace("feature/*", "fix/*"))
        await eventually(lambda: made.replica.policies.generation > generation)
        again = await made.decide(token, id=question)
        assert (again.body["decision"], again.body["policy_version"] == first.body["policy_version"]) == ("deny", False)


def test_another_replica_decides_afresh_and_both_answers_are_on_record(broker: Broker, tmp_path: Path) -> None:
    with two_replicas(broker, tmp_path) as (desk, tape, one, two):
        question, token = uuid7(), desk.agents["buyer"].token
        answers = [at("POST", "/v1/decide", PUSH | {"id": question}, token=token).body for at in (one, two, one, two)]
        assert [answer["decision"] for answer in answers] == ["allow"] * 4
        assert len({answer["id"] for answer in answers}) == 2
        found = tape.wait(Topic.DECISIONS, lambda record: record.get("parent") == question, 2)
        assert {record["id"] for record in found} == {answer["id"] for answer in answers}
