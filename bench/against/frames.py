"""The same engine in the frames of others: naive Faust, quixstreams, and aiokafka by itself.

Each is a process of its own (`python -m against.frames VARIANT`, settings as JSON on stdin), which prints seconds and CPU
seconds from the first record to the last.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from against import fetch
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from stream_log import PARTITIONS, engine_of

from banksman import settings, signing
from banksman.processors.worker.engine import Engine, Record
from banksman.processors.worker.main import found
from banksman.topics import Topic

BENCH = Path(__file__).parents[1]
LIMIT_S = 120


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
    clock = Clock(count, engine)

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
                if one.value is None:
                    tables[one.name].pop(one.key, None)
                else:
                    tables[one.name][one.key] = one.value
            engine.written()
            clock.tick()

    sys.argv = ["naive", "worker", "-l", "error", "--without-web"]
    app.main()


def quix(given: dict[str, Any]) -> None:
    sys.path.append(given["packages"])  # behind ours: what both have is ours
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
        clock.engines.append(engine)
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
                name = f"{one.name}/{one.key.decode()}"
                if one.value is None:
                    state.delete(name)
                else:
                    state.set_bytes(name, one.value)
            engine.written()
            clock.tick()

        app.dataframe(source).apply(step, stateful=True, metadata=True)

    of(Topic.ACTIONS)
    of(Topic.DECISIONS)
    app.run()


async def aiokafka_alone(given: dict[str, Any]) -> None:
    """The floor of any frame: polls of one consumer, the engine, the changed states acknowledged in batches, offsets committed.

    It has no table that it could recover, nothing for a partition that another one takes over, and signs nothing.
    """
    at, prefix = given["kafka"], given["prefix"]
    login = settings.Kafka(
        kafka=at, kafka_security="SASL_PLAINTEXT", kafka_username="service", kafka_password=given["password"]
    ).client()
    topics = {prefix + topic: topic for topic in (Topic.ACTIONS, Topic.DECISIONS)}
    tables: dict[str, dict[bytes, bytes]] = {name: {} for name in ["sources", *(one.name for one in found())]}
    engine = engine_of(signing.load_secret(Path(given["secret"])), tables)
    clock = Clock(given["count"], engine)
    changelog = f"{prefix}aiokafka-states"
    admin = AIOKafkaAdminClient(**login)
    await admin.start()
    await admin.create_topics([NewTopic(changelog, PARTITIONS, 1, topic_configs={"cleanup.policy": "compact"})])
    await admin.close()
    producer = AIOKafkaProducer(**login, acks="all", max_batch_size=1 << 18)
    consumer = AIOKafkaConsumer(
        *topics, **login, group_id=changelog, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await producer.start()
    await consumer.start()
    while True:
        polled = await consumer.getmany(timeout_ms=1000, max_records=4000)
        if polled:
            clock.begin()
        records = [
            Record(
                topics[one.topic], one.topic, one.partition, one.offset, one.timestamp, one.key, one.value, one.headers
            )
            for several in polled.values()
            for one in several
        ]
        engine.take(records)
        changed: dict[int, list[tuple[bytes, bytes | None]]] = defaultdict(list)
        for one in engine.encoded():
            changed[one.partition].append((one.key, one.value))
            if one.value is None:
                tables[one.name].pop(one.key, None)
            else:
                tables[one.name][one.key] = one.value
        acknowledged = []
        for partition, states in changed.items():
            batch = producer.create_batch()
            for key, value in states:
                if batch.append(key=key, value=value, timestamp=None) is None:
                    acknowledged.append(await producer.send_batch(batch, changelog, partition=partition))
                    batch = producer.create_batch()
                    assert batch.append(key=key, value=value, timestamp=None)
            acknowledged.append(await producer.send_batch(batch, changelog, partition=partition))
        await asyncio.gather(*acknowledged)
        engine.written()
        if records:
            await consumer.commit()
        clock.tick(len(records))


class Clock:
    """From the first record to the last, which the engines must all have counted."""

    def __init__(self, count: int, *engines: Engine) -> None:
        self._count, self._seen, self._began, self._cpu = count, 0, 0.0, 0.0
        self.engines = list(engines)

    def begin(self) -> None:
        if not self._began:
            self._began, self._cpu = time.perf_counter(), time.process_time()

    def tick(self, records: int = 1) -> None:
        """So many more are done."""
        if records:
            self.begin()
        self._seen += records
        if self._seen >= self._count:
            counted = sum(one.counted for one in self.engines)
            if counted != self._seen:
                print(f"{counted} of {self._seen} were counted", file=sys.__stderr__, flush=True)
                os._exit(1)
            took = [time.perf_counter() - self._began, time.process_time() - self._cpu]
            print("\n" + json.dumps(took), file=sys.__stdout__, flush=True)  # Faust has taken the other one
            os._exit(0)


def raw(given: dict[str, Any]) -> None:
    asyncio.run(aiokafka_alone(given))


VARIANTS = {"faust_naive": faust_naive, "quix": quix, "raw": raw}
NAMES = {"faust_naive": "naive Faust", "quix": "quixstreams", "raw": "raw aiokafka"}


def other(variant: str, given: dict[str, Any]) -> tuple[float, float]:
    """-> (seconds, CPU seconds) of a process of its own. Missing: it cannot be had, or it stood still twice.

    On a busy machine Faust now and then stands still after its first records: it gets a second chance, which is said.
    """
    if variant == "quix":
        given = given | {"packages": str(fetch.packages("quixstreams"))}
    command = [sys.executable, "-m", "against.frames", variant]
    for _ in range(2):
        try:
            ran = subprocess.run(
                command, input=json.dumps(given), capture_output=True, text=True, timeout=LIMIT_S, cwd=BENCH
            )
            break
        except subprocess.TimeoutExpired:
            print(f"{NAMES[variant]} was not done after {LIMIT_S} s", file=sys.stderr, flush=True)
    else:
        raise fetch.Missing(f"not done after {LIMIT_S} s, twice")
    said = [line for line in ran.stdout.splitlines() if line.startswith("[")]
    if not said:
        raise RuntimeError(f"{variant}: {ran.stdout[-500:]} {ran.stderr[-3000:]}")
    seconds, cpu = json.loads(said[-1])
    return seconds, cpu


if __name__ == "__main__":
    VARIANTS[sys.argv[1]](json.load(sys.stdin))
