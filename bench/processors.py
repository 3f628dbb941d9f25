"""How many records a second one worker works through with every detector, beside the same detectors in other frames.

usage: python bench/processors.py [RECORDS]        default 60000

The same signed records of 200 agents (model calls, tool calls, decisions, results) lie on a real broker; each variant reads
them from the beginning, verifies, decodes, runs every detector and keeps the states on the log:

    engine        in memory, no Kafka: what the detectors themselves cost
    worker        ours: `python -m banksman.processors.worker`, as it is run
    naive Faust   the tutorial's way: an event at a time, a table write for every state that it changes
    quixstreams   the same with its states (when the package is there)

A worker is done when its watermarks say that all is counted. Then the memory of a worker that knows 10,000 agents.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from aiokafka import AIOKafkaConsumer
from archive_stack import broker, machine

from banksman import bus, codec, provision, settings, signing, stamps
from banksman.events import Watermark
from banksman.local import children, kafka
from banksman.processors.worker.engine import Engine, Record
from banksman.processors.worker.main import found
from banksman.store.prices import load_prices
from banksman.topics import Topic

PARTITIONS, AGENTS, STEPS = 4, 200, 10
SLOW = 4
"""The slow variants get so much less."""


def story(agent: str, number: int) -> Iterator[tuple[Topic, dict[str, Any]]]:
    """One step of a session: the model is asked, a call is intended, decided and made."""
    call = stamps.uuid7()
    about = {
        "service": "git",
        "action": "push",
        "resource": f"acme/repo-{number % 7}",
        "branch": f"feature/{number % 11}",
    }
    args = {"path": f"/srv/data/{number}", "flags": ["-l", "-a"], "note": "n" * 100}
    head = {
        "project": "bench",
        "agent": agent,
        "session": f"s{number // STEPS}",
        "source": f"emitter-python/1.0#{agent}",
    }
    yield Topic.ACTIONS, head | {
        "kind": "model.call", "model": "claude-sonnet-4-5", "input_tokens": 900 + number % 100, "output_tokens": 80,
    }  # fmt: skip
    marks = {"args": args, "args_hash": f"hmac-sha256:{number:064x}"}
    yield Topic.ACTIONS, head | about | marks | {"kind": "tool.call", "id": call, "call": call}
    yield Topic.DECISIONS, head | about | {
        "kind": "decision", "source": "enforcer#bench", "call": call, "decision": "allow", "tier": 2,
        "rule": f"{agent}/allow/0", "reason": "allowed", "args_hash": f"hmac-sha256:{number:064x}",
    }  # fmt: skip
    yield Topic.ACTIONS, head | {
        "kind": "tool.result", "call": call, "parent": call, "status": "ok", "outcome_hash": f"hmac-sha256:{number:064x}",
    }  # fmt: skip


class Log:
    """Signed records, made in the order that they are published in."""

    def __init__(self, to: settings.Kafka, secret: signing.Secret) -> None:
        self.kafka, self._secret = to, secret
        self._signers: dict[str, signing.Signer] = {}
        self._seq: dict[str, int] = {}
        self._enforcer = signing.service_signer(secret, "enforcer")

    def records(self, count: int, agents: int) -> Iterator[tuple[Topic, bytes, bytes, signing.Headers]]:
        number = made = 0
        while True:
            name = f"agent-{number % agents:05d}"
            for topic, event in story(name, number // agents):
                yield self._signed(topic, name, event)
                made += 1
                if made == count:
                    return
            number += 1

    def _signed(self, topic: Topic, name: str, event: dict[str, Any]) -> tuple[Topic, bytes, bytes, signing.Headers]:
        event = {"v": 1, "id": stamps.uuid7(), "time": stamps.rfc3339(), **event}
        signer = self._enforcer
        if topic is Topic.ACTIONS:
            event["seq"] = self._seq[name] = self._seq.get(name, 0) + 1
            if name not in self._signers:
                author = signing.Author(project="bench", agent=name, token_id="t1")
                self._signers[name] = signing.Signer(author, signing.key_of(self._secret, 1, author), 1)
            signer = self._signers[name]
        value, key = codec.encode(event), name.encode()
        marks = {mark: str(event[mark]) for mark in ("id", "kind", "time", "source")}
        return topic, key, value, signer.headers(self.kafka.topic(topic), key, value, **marks)

    async def fill(self, count: int, agents: int) -> None:
        producer = bus.producer(self.kafka)
        await producer.start()
        to = {
            topic: bus.Publisher(producer, self.kafka.topic(topic), bound=10**7, deadline=600)
            for topic in (Topic.ACTIONS, Topic.DECISIONS)
        }
        waiting: list[Any] = []
        for topic, key, value, headers in self.records(count, agents):
            waiting.append(to[topic].put(bus.partition_of(key, PARTITIONS), key, value, headers))
            if len(waiting) == 10_000:
                await asyncio.gather(*waiting)
                waiting = []
        await asyncio.gather(*waiting)
        await producer.stop()


def engine_of(secret: signing.Secret, tables: Any) -> Engine:
    return Engine(signing.Verifier(secret), load_prices(), lambda _project, _agent: None, found(), tables, PARTITIONS)


def in_memory(log: Log, secret: signing.Secret, count: int) -> float:
    """us a record."""
    records = [
        Record(
            topic,
            log.kafka.topic(topic),
            bus.partition_of(key, PARTITIONS),
            offset,
            1_795_600_800_000 + offset,
            key,
            value,
            tuple(headers),
        )
        for offset, (topic, key, value, headers) in enumerate(log.records(count, AGENTS))
    ]
    names = ["sources", *(one.name for one in found())]
    engine = engine_of(secret, {name: {} for name in names})
    began = time.process_time()
    for first in range(0, count, 4000):
        engine.take(records[first : first + 4000])
        engine.encoded()
        engine.written()
    assert engine.counted == count, (engine.counted, engine.skipped)
    return (time.process_time() - began) / count * 1e6


async def all_counted(at: settings.Kafka, since_ms: float) -> None:
    """Return when a watermark of every partition says that what was there at `since_ms` is counted."""
    consumer = AIOKafkaConsumer(
        at.topic(Topic.LIMITS), **at.client(), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    seen: set[int] = set()
    async for record in consumer:
        event = codec.decode(record.value, Topic.LIMITS)
        if isinstance(event, Watermark) and record.timestamp - event.lag_ms >= since_ms:
            seen.add(event.partition)
        if len(seen) == PARTITIONS:
            break
    await consumer.stop()


def worker(at: settings.Kafka, folder: Path, name: str) -> tuple[float, float, float]:
    """-> (seconds from when it has its partitions to all counted, CPU seconds in that time, MB resident then)."""
    environment = dict(os.environ) | {
        "BANKSMAN_KAFKA": at.kafka, "BANKSMAN_KAFKA_SECURITY": at.kafka_security,
        "BANKSMAN_KAFKA_USERNAME": at.kafka_username, "BANKSMAN_KAFKA_PASSWORD": at.kafka_password,
        "BANKSMAN_TOPIC_PREFIX": at.topic_prefix, "BANKSMAN_SECRET_FILE": str(folder / "secret.json"),
        "BANKSMAN_WORKER": name, "BANKSMAN_WORKER_SESSION_S": "6",
    }  # fmt: skip
    filled, log = time.time() * 1000, folder / f"{name}.log"
    process = children.spawn([sys.executable, "-m", "banksman.processors.worker"], log=log, env=environment)
    try:
        while b" are ours" not in (log.read_bytes() if log.exists() else b""):
            assert process.poll() is None, children.last_lines(log, 30)
            time.sleep(0.01)  # between two looks
        began, cpu = time.perf_counter(), _cpu(process.pid)
        asyncio.run(all_counted(at, filled))
        return time.perf_counter() - began, _cpu(process.pid) - cpu, psutil.Process(process.pid).memory_info().rss / 1e6
    finally:
        process.kill()
        process.wait()


def _cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


# ── the others, each a process of its own: `python bench/processors.py VARIANT`, settings as JSON on stdin ──


def faust_naive(given: dict[str, Any]) -> None:
    import faust

    secret, count = signing.load_secret(Path(given["secret"])), given["count"]
    prefix = given["prefix"]
    app = faust.App(
        f"naive{time.time():.0f}", broker=f"kafka://{given['kafka']}", store="memory://", topic_partitions=PARTITIONS,
        broker_credentials=faust.SASLCredentials(username="service", password=given["password"], mechanism="PLAIN"),
        consumer_auto_offset_reset="earliest", topic_disable_leader=True, web_enabled=False, stream_wait_empty=False,
        broker_session_timeout=6.0, broker_rebalance_timeout=6.0, broker_heartbeat_interval=1.0,
        datadir=tempfile.mkdtemp(prefix="faust-"), key_serializer="raw", value_serializer="raw",
    )  # fmt: skip
    names = ["sources", *(one.name for one in found())]
    tables = {name: app.Table(name, partitions=PARTITIONS, key_type=bytes, value_type=bytes) for name in names}
    engine = engine_of(secret, {name: table.data for name, table in tables.items()})
    topics = {prefix + topic: topic for topic in (Topic.ACTIONS, Topic.DECISIONS)}
    clock = Clock(count)

    @app.agent(app.topic(*topics, key_type=bytes, value_type=bytes, partitions=PARTITIONS))
    async def process(stream: Any) -> None:
        async for event in stream.events():
            message = event.message
            record = Record(
                topics[message.topic], message.topic, message.partition, message.offset, int(message.timestamp * 1000),
                message.key, message.value, tuple(message.headers or ()),
            )  # fmt: skip
            engine.take([record])
            for one in engine.encoded():
                tables[one.name][one.key] = one.value
            engine.written()
            clock.tick()

    sys.argv = ["naive", "worker", "-l", "error", "--without-web"]
    app.main()


def quix(given: dict[str, Any]) -> None:
    from quixstreams import Application  # type: ignore[import-not-found]
    from quixstreams.kafka.configuration import ConnectionConfig  # type: ignore[import-not-found]

    secret, count, prefix = signing.load_secret(Path(given["secret"])), given["count"], given["prefix"]
    login = ConnectionConfig(
        bootstrap_servers=given["kafka"], security_protocol="SASL_PLAINTEXT", sasl_mechanism="PLAIN",
        sasl_username="service", sasl_password=given["password"],
    )  # fmt: skip
    app = Application(
        broker_address=login, consumer_group=f"quix{time.time():.0f}", auto_offset_reset="earliest",
        state_dir=tempfile.mkdtemp(prefix="quix-"), loglevel="WARNING", commit_interval=0.5,
        consumer_extra_config={"session.timeout.ms": 6000, "heartbeat.interval.ms": 1000},
        producer_extra_config={"enable.idempotence": False, "linger.ms": 5},
    )  # fmt: skip
    clock = Clock(count)
    names = ["sources", *(one.name for one in found())]

    class Held:
        """The state of the key that is worked on, as the engine's tables."""

        def __init__(self, table: str) -> None:
            self.table = table
            self.state: Any = None

        def get(self, key: bytes) -> bytes | None:
            return self.state.get_bytes(f"{self.table}/{key.decode()}") if self.state is not None else None

        def __iter__(self) -> Iterator[bytes]:
            return iter(())

    held: dict[str, Any] = {name: Held(name) for name in names}

    def of(topic: Topic) -> None:
        engine = engine_of(secret, held)
        source = app.topic(prefix + topic, value_deserializer="bytes", key_deserializer="bytes")

        def step(value: bytes, key: bytes, timestamp: int, headers: Any, state: Any) -> None:
            from quixstreams.context import message_context  # type: ignore[import-not-found]

            where = message_context()
            for one in held.values():
                one.state = state
            record = Record(topic, prefix + topic, where.partition, where.offset, timestamp, key, value, tuple(headers))
            engine.take([record])
            engine.states._kept.clear()  # noqa: SLF001 - its states lie in RocksDB
            for one in engine.encoded():
                state.set_bytes(f"{one.name}/{one.key.decode()}", one.value)
            engine.written()
            clock.tick()

        app.dataframe(source).apply(step, stateful=True, metadata=True)

    of(Topic.ACTIONS)
    of(Topic.DECISIONS)
    app.run()


class Clock:
    """From the first record to the last."""

    def __init__(self, count: int) -> None:
        self._count, self._seen, self._began, self._cpu = count, 0, 0.0, 0.0

    def tick(self) -> None:
        if not self._seen:
            self._began, self._cpu = time.perf_counter(), time.process_time()
        self._seen += 1
        if self._seen == self._count:
            took = [time.perf_counter() - self._began, time.process_time() - self._cpu]
            print("\n" + json.dumps(took), file=sys.__stdout__, flush=True)  # Faust has taken the other one
            os._exit(0)


VARIANTS = {"faust_naive": faust_naive, "quix": quix}


def other(variant: str, given: dict[str, Any]) -> tuple[float, float]:
    ran = subprocess.run(
        [sys.executable, __file__, variant], input=json.dumps(given), capture_output=True, text=True, timeout=600
    )
    said = [line for line in ran.stdout.splitlines() if line.startswith("[")]
    if not said:
        raise RuntimeError(f"{variant}: {ran.stdout[-500:]} {ran.stderr[-3000:]}")
    seconds, cpu = json.loads(said[-1])
    return seconds, cpu


def topics(node: kafka.Node, prefix: str) -> settings.Kafka:
    made = node.settings(topic_prefix=prefix, partitions=PARTITIONS)
    asyncio.run(provision.create_topics(made))
    return made


def main(count: int) -> None:
    print(machine())
    rows: list[tuple[str, float, float]] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        secret = signing.create_secret(folder / "secret.json")
        with broker(folder) as (node, _):
            memory = topics(node, "m.")
            log = Log(memory, secret)
            engine_us = in_memory(log, secret, count // 3)
            for turn in range(2):
                at = topics(node, f"w{turn}.")
                asyncio.run(Log(at, secret).fill(count, AGENTS))
                seconds, cpu, _ = worker(at, folder, f"turn{turn}")
                rows.append(("worker", count / seconds, cpu / count * 1e6))
                less = count // SLOW
                few = topics(node, f"n{turn}.")
                asyncio.run(Log(few, secret).fill(less, AGENTS))
                given = {
                    "kafka": few.kafka, "password": few.kafka_password, "prefix": few.topic_prefix, "count": less,
                    "secret": str(folder / "secret.json"),
                }  # fmt: skip
                seconds, cpu = other("faust_naive", given)
                rows.append(("naive Faust", less / seconds, cpu / less * 1e6))
                if importlib.util.find_spec("quixstreams"):
                    seconds, cpu = other("quix", given)
                    rows.append(("quixstreams", less / seconds, cpu / less * 1e6))
            asyncio.run(Log(memory, secret).fill(100, 10))
            _, _, empty = worker(memory, folder, "few")
            many = topics(node, "k.")
            asyncio.run(Log(many, secret).fill(40_000, 10_000))
            _, _, full = worker(many, folder, "many")
    print(
        f"{count:,} records of {AGENTS} agents, {PARTITIONS} partitions, {len(found())} detectors; two turns, interleaved\n"
    )
    print(f"{'':<14}{'records/s':>11}{'CPU us/record':>15}   of naive Faust")
    print(f"{'engine':<14}{1e6 / engine_us:>11,.0f}{engine_us:>15.1f}   in memory, one core")
    naive = [rate for name, rate, _ in rows if name == "naive Faust"]
    for number, (name, rate, cpu) in enumerate(rows):
        print(f"{name:<14}{rate:>11,.0f}{cpu:>15.1f}   {rate / naive[number * len(naive) // len(rows)]:.1f}x")
    if not importlib.util.find_spec("quixstreams"):
        print("quixstreams    not measured: the package is not installed")
    each = (full - empty) / 10
    print(
        f"\nmemory: {empty:.0f} MB with 10 agents, {full:.0f} MB with 10,000: {each:.1f} KB an agent with one session"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in VARIANTS:
        VARIANTS[sys.argv[1]](json.load(sys.stdin))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 60_000)
