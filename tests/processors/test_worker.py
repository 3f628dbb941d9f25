"""A worker on a real broker: what is on the log is counted once, whatever ends the worker in between."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from tests import raw_batches
from tests.processors.working import POLICY, Floor, a_floor
from tests.servers import PARTITIONS, Broker, freeze

from banksman import bus, provision, signing, stamps
from banksman.events import PolicyLoaded, Replica
from banksman.topics import Topic


@pytest.fixture
def floor(broker: Broker, tmp_path: Path) -> Iterator[Floor]:
    with a_floor(broker, tmp_path) as made:
        yield made


def test_spending_is_told_and_a_budget_runs_out(floor: Floor) -> None:
    floor.policy()
    worker = floor.start()
    floor.ready(worker)
    floor.put(*(floor.action(input_tokens=100) for _ in range(9)))
    floor.until(lambda: floor.spent() == 900)
    (near,) = floor.until(lambda: floor.records(Topic.ALERTS, kind="finding", detector="budgets"))
    assert near["severity"] == "warn", near
    floor.put(floor.action(input_tokens=150))
    found = floor.until(lambda: floor.records(Topic.ALERTS, kind="finding", severity="page"))
    assert found[0]["fingerprint"] == near["fingerprint"] == "budgets/buyer/tokens"
    budget = floor.records(Topic.LIMITS, kind="budget")[-1]
    assert (budget["spent"], budget["limit"], budget["fraction"]) == (1050, 1000, 1.05)
    floor.until(lambda: {one["partition"] for one in floor.records(Topic.LIMITS, kind="watermark")} == {0, 1})


def test_in_shadow_mode_it_is_only_told(floor: Floor) -> None:
    floor.policy(
        POLICY.replace("version: 1", "version: 2\nmode: shadow").rstrip() + "\n    detect: {loops: {on_alert: kill}}\n"
    )
    floor.ready(floor.start())
    spends = [floor.action(input_tokens=300) for _ in range(4)]
    calls = [
        floor.action(kind="tool.call", service="git", action="pull", resource="acme/x", args_hash="a") for _ in range(6)
    ]
    ends = [
        floor.action(kind="tool.result", parent=json.loads(call[2])["id"], status="error", error="no") for call in calls
    ]
    floor.put(*spends, *(one for pair in zip(calls, ends, strict=True) for one in pair))
    pages = floor.until(
        lambda: len(found := floor.records(Topic.ALERTS, kind="finding", severity="page")) == 2 and found
    )
    said = {one["detector"]: one["evidence"] for one in pages}
    assert said["budgets"]["on_exhausted"] == "alert"
    assert "done" not in said["loops"]
    assert not floor.records(Topic.CONTROL, kind="session.killed")


def test_what_is_counted_is_the_log_however_often_workers_are_killed(floor: Floor) -> None:
    """Two workers in turn are killed while agents spend, and each comes back; at the end the sums are those of the log."""
    agents = [f"agent-{number}" for number in range(20)]
    floor.policy(
        "project: shop\nagents:\n" + "".join(f"  {name}: {{budget: {{daily_tokens: 2000}}}}\n" for name in agents)
    )
    spent = dict.fromkeys(agents, 0)
    workers = {name: floor.start(name) for name in ("one", "two")}
    floor.ready(workers["one"], "one")
    for turn in range(6):
        batch = []
        for number in range(200):
            name = agents[(turn + number) % len(agents)]
            batch.append(floor.action(name, input_tokens=number))
            spent[name] += number
        floor.put(*batch)
        floor.put(*batch[::7])  # sent again
        victim = ("one", "two")[turn % 2]
        workers[victim].kill()
        workers[victim].wait()
        workers[victim] = floor.start(victim)
    floor.until(lambda: {name: floor.spent(name) for name in agents} == spent, 60)

    def pages() -> list[dict[str, Any]]:
        return floor.records(Topic.ALERTS, kind="finding", detector="budgets", severity="page")

    floor.until(lambda: {one["agent"] for one in pages()} == {name for name in agents if spent[name] >= 2000})
    ids = {(one["agent"], one["id"]) for one in pages()}
    assert len(ids) == len({agent for agent, _ in ids})  # one each; told twice it has one id


def test_killed_after_it_told_and_before_it_wrote_what_it_knows(floor: Floor) -> None:
    """The changelog takes nothing while the worker tells: the next one tells the same under the same ids, and counts once."""
    floor.policy()
    worker = floor.start()
    floor.ready(worker)
    floor.put(floor.action(input_tokens=600))
    floor.until(lambda: floor.spent() == 600)
    changelog = f"{floor.kafka.topic_prefix}processors-budgets-changelog"
    largest(floor, changelog, 1)
    floor.put(floor.action(input_tokens=500))
    floor.until(lambda: floor.spent() == 1100)
    floor.until(lambda: b"states are not written yet" in floor.log().read_bytes())
    worker.kill()
    worker.wait()
    largest(floor, changelog, 2 << 20)
    floor.ready(floor.start(), times=2)
    floor.put(floor.action(input_tokens=1))
    floor.until(lambda: floor.spent() == 1101)
    pages = floor.records(Topic.ALERTS, kind="finding", detector="budgets", severity="page")
    assert (len(pages), len({one["id"] for one in pages})) == (2, 1)
    told = [one for one in floor.records(Topic.LIMITS, kind="budget") if one["spent"] == 1100]
    assert (len(told), len({one["id"] for one in told})) == (2, 1)


def largest(floor: Floor, topic: str, size: int) -> None:
    """What the broker takes as a record of a topic."""

    async def alter() -> None:
        admin = await provision.connect_admin(floor.kafka)
        try:
            wanted = {
                "cleanup.policy": "compact",
                "message.timestamp.type": "LogAppendTime",
                "max.message.bytes": str(size),
            }
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=wanted)])
        finally:
            await admin.close()

    asyncio.run(alter())


def test_a_worker_that_stood_still_changes_nothing_when_it_goes_on(floor: Floor) -> None:
    floor.policy()
    first = floor.start("one")
    floor.ready(first, "one")
    floor.put(floor.action(input_tokens=100))
    floor.until(lambda: floor.spent() == 100)
    freeze(first.pid)
    floor.put(floor.action(input_tokens=50))
    second = floor.start("two")
    floor.ready(second, "two")
    floor.until(lambda: floor.spent() == 150)
    floor.put(floor.action(input_tokens=50))
    floor.until(lambda: floor.spent() == 200)
    first.send_signal(signal.SIGCONT)
    assert first.wait(10) == 70
    assert "stood still" in floor.log("one").read_text()
    second.kill()
    second.wait()
    third = floor.start("two")  # from what was written
    floor.ready(third, "two", times=2)
    floor.put(floor.action(input_tokens=1))
    floor.until(lambda: floor.spent() == 201)
    assert [one["spent"] for one in floor.records(Topic.LIMITS, kind="budget")] == sorted(
        one["spent"] for one in floor.records(Topic.LIMITS, kind="budget")
    )


def test_a_worker_waits_for_kafka_and_ends_when_it_is_told_to(floor: Floor) -> None:
    worker = floor.start(BANKSMAN_KAFKA="127.0.0.1:9")
    floor.until(lambda: floor.log().exists() and b"waiting for Kafka" in floor.log().read_bytes(), 60)
    worker.terminate()
    assert worker.wait(10) == 0


def test_what_nobody_can_read_stops_nothing(floor: Floor) -> None:
    """Once for a worker that works, and once for one that begins there."""
    floor.policy()
    worker = floor.start()
    floor.ready(worker)
    floor.put(floor.action(input_tokens=100))
    topic, key, value, headers = floor.action(input_tokens=1)
    home = bus.partition_of(key, PARTITIONS)
    raw_batches.send(floor.kafka, floor.kafka.topic(topic), home, [(key, value, [*headers, ("a[[b", b"")])])
    floor.put(floor.action(input_tokens=50))
    floor.until(lambda: floor.spent() == 150)
    assert b"a header's name is not UTF-8" in floor.log().read_bytes()
    worker.kill()
    worker.wait()
    raw_batches.send(floor.kafka, floor.kafka.topic(topic), home, [(key, value, [*headers, ("a[[b", b"")])])
    floor.put(floor.action(input_tokens=7))
    floor.ready(floor.start(), times=2)
    floor.until(lambda: floor.spent() == 157)


def test_records_as_large_as_can_be_do_not_fill_its_memory(floor: Floor) -> None:
    """60 MB wait for a worker that starts. What they are read into takes some twenty times as much."""
    floor.policy()
    about: dict[str, Any] = {"kind": "tool.call", "service": "git", "action": "pull", "args": {"x": [[]] * 330_000}}
    for _ in range(10):
        floor.put(*(floor.action(**about) for _ in range(6)))
    floor.put(floor.action(input_tokens=7))
    process = floor.start()
    floor.until(lambda: floor.spent("buyer") == 7, 60)
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    assert int(peak) < 300_000


def test_a_record_in_the_wrong_partition_stops_nothing(floor: Floor) -> None:
    floor.policy()
    worker = floor.start()
    floor.ready(worker)
    topic, key, value, headers = floor.action(input_tokens=100)
    elsewhere = 1 - bus.partition_of(key, PARTITIONS)
    raw_batches.send(floor.kafka, floor.kafka.topic(topic), elsewhere, [(key, value, headers)])
    floor.put(floor.action(input_tokens=50))
    floor.until(lambda: floor.spent() == 50)
    marks = len(floor.records(Topic.LIMITS, kind="watermark", partition=elsewhere))
    floor.until(lambda: len(floor.records(Topic.LIMITS, kind="watermark", partition=elsewhere)) > marks)
    assert floor.spent() == 50


def test_states_that_no_processor_has_signed_do_not_count(floor: Floor) -> None:
    floor.policy()
    worker = floor.start()
    floor.ready(worker)
    floor.put(floor.action(input_tokens=600))
    floor.until(lambda: floor.spent() == 600)
    worker.kill()
    worker.wait()
    changelog = f"{floor.kafka.topic_prefix}processors-budgets-changelog"
    home = bus.partition_of(b"buyer", PARTITIONS)
    author = signing.Author(project="shop", agent="buyer", token_id="t1")
    own = signing.Signer(author, signing.key_of(floor.secret, 1, author), 1)
    state = b"\x95\x81\xa7actions\xcd\xff\xff\x00\x93\xa4shop\xa5buyer\xa0\xc0\x90"  # further on than any other
    for value in (state, b"no state", None):
        headers = own.headers(
            changelog, b"buyer", value or b"", id=stamps.uuid7(), kind="state", time=stamps.rfc3339(), source="x"
        )
        raw_batches.send(floor.kafka, changelog, home, [(b"buyer", value, headers), (b"buyer", value, [])])
    floor.ready(floor.start(), times=2)
    floor.put(floor.action(input_tokens=50))
    floor.until(lambda: floor.spent() == 650)
    assert floor.log().read_bytes().count(b"no processor has signed it") == 6


def test_the_strictest_budget_of_the_replicas_counts_and_looks_at_everybody(floor: Floor) -> None:
    """Two replicas go by two versions; one of them leaves, and takes the policy away."""
    agents = ("buyer", "seller", "packer", "clerk")  # of both partitions
    assert {bus.partition_of(name.encode(), PARTITIONS) for name in agents} == {0, 1}

    def policy(tokens: int) -> str:
        return floor.policy(
            "project: shop\nagents:\n"
            + "".join(f"  {name}: {{budget: {{daily_tokens: {tokens}}}}}\n" for name in agents)
        )

    def beat(replica: str, version: str, *, ended: bool = False) -> None:
        event = Replica(
            v=1, id=stamps.uuid7(), time=stamps.rfc3339(), source="enforcer", replica=replica, address="http://r",
            applied=1, policies={"shop": version}, ended=ended,
        )  # fmt: skip
        floor.put(floor.service(Topic.CONTROL, f"replica/{replica}", event))

    def pages(limit: int) -> set[str]:
        found = floor.records(Topic.ALERTS, kind="finding", detector="budgets", severity="page")
        return {one["agent"] for one in found if one["evidence"]["limit"] == f"{limit:,} tokens"}

    wide = policy(5000)
    beat("one", wide)
    floor.ready(floor.start())
    floor.put(*(floor.action(name, input_tokens=2000) for name in agents))
    floor.until(lambda: {floor.spent(name) for name in agents} == {2000})
    strict = policy(1000)
    policy(5000)  # `one` is started again, and loads its own; it was loaded last
    beat("two", strict)
    floor.until(lambda: pages(1000) == set(agents))
    assert not pages(5000)
    newer = PolicyLoaded(
        v=1, id=stamps.uuid7(), time=stamps.rfc3339(), source="enforcer#2", project="shop", policy_version="0" * 12,
        text="project: shop\nof: a later version\n", replica="r2", file="shop.yaml",
    )  # fmt: skip
    floor.put(floor.service(Topic.CONTROL, f"policy.loaded/{newer.id}", newer))
    floor.until(lambda: b"cannot be read here; what was in force goes on" in floor.log().read_bytes())
    beat("two", strict, ended=True)
    floor.until(lambda: {one["agent"] for one in floor.records(Topic.ALERTS, over=True)} == set(agents))
    floor.put(*(floor.action(name, input_tokens=4000) for name in agents))
    floor.until(lambda: pages(5000) == set(agents))
