"""How many records a second one worker works through with every detector, beside the same detectors in other frames.

usage: python bench/processors.py [RECORDS]        default 120000

The same signed records of 200 agents (model calls, tool calls, decisions, results) lie on a real broker; each variant reads
them from the beginning, verifies, decodes, runs every detector and keeps the states on the log:

    engine        in memory, no Kafka: what the detectors themselves cost
    worker        ours: `python -m banksman.processors.worker`, as it is run
    naive Faust   the tutorial's way: an event at a time, a table write for every state that it changes
    quixstreams   the same with its states (where the package can be had: against/fetch.py)
    raw aiokafka  the floor: one consumer's polls, the engine, the states acknowledged; no recovery, no rebalance, no signatures

A worker is done when its watermarks say that all is counted. Then the memory of a worker that knows 10,000 agents.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from against.fetch import Missing
from against.frames import NAMES, other
from aiokafka import AIOKafkaConsumer
from archive_stack import broker, machine
from stream_log import AGENTS, PARTITIONS, Log, engine_of, topics

from banksman import bus, codec, settings, signing
from banksman.events import Watermark
from banksman.local import children, kafka
from banksman.processors.worker.engine import Record
from banksman.processors.worker.main import found
from banksman.topics import Topic

SLOW = 8
"""Naive Faust gets so much less."""


class Ran(NamedTuple):
    rows: list[tuple[str, float, float]]
    """(name, records/s, CPU us a record), turn by turn."""
    missing: dict[str, str]


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


async def all_counted(at: settings.Kafka, since_ms: float, by: Sequence[subprocess.Popen[bytes]]) -> None:
    """Return when a watermark of every partition says that what was there at `since_ms` is counted; `by` whom."""
    counting = asyncio.create_task(_all_counted(at, since_ms))
    while not counting.done():
        assert all(process.poll() is None for process in by), "a worker has ended"
        await asyncio.wait({counting}, timeout=0.1)
    await counting


async def _all_counted(at: settings.Kafka, since_ms: float) -> None:
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
        asyncio.run(all_counted(at, filled, [process]))
        return time.perf_counter() - began, _cpu(process.pid) - cpu, psutil.Process(process.pid).memory_info().rss / 1e6
    finally:
        process.kill()
        process.wait()


def _cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def turns(number: int, count: int, node: kafka.Node, folder: Path, secret: signing.Secret) -> Ran:
    """The worker and the others, one after the other, in so many turns."""
    ran = Ran([], {})
    for turn in range(number):
        many, few = topics(node, f"w{turn}."), topics(node, f"n{turn}.")
        asyncio.run(Log(many, secret).fill(count, AGENTS))
        asyncio.run(Log(few, secret).fill(count // SLOW, AGENTS))
        seconds, cpu, _ = worker(many, folder, f"turn{turn}")
        ran.rows.append(("worker", count / seconds, cpu / count * 1e6))
        for variant, at, least in (("faust_naive", few, count // SLOW), ("quix", many, count), ("raw", many, count)):
            given = {
                "kafka": at.kafka, "password": at.kafka_password, "prefix": at.topic_prefix, "count": least,
                "secret": str(folder / "secret.json"),
            }  # fmt: skip
            try:
                seconds, cpu = other(variant, given)
            except Missing as why:
                ran.missing[NAMES[variant]] = str(why)
            else:
                ran.rows.append((NAMES[variant], least / seconds, cpu / least * 1e6))
    return ran


def main(count: int) -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        secret = signing.create_secret(folder / "secret.json")
        with broker(folder) as (node, _):
            memory = topics(node, "m.")
            engine_us = in_memory(Log(memory, secret), secret, count // 3)
            ran = turns(2, count, node, folder, secret)
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
    naive = [rate for name, rate, _ in ran.rows if name == "naive Faust"]
    for number, (name, rate, cpu) in enumerate(ran.rows):
        print(f"{name:<14}{rate:>11,.0f}{cpu:>15.1f}   {rate / naive[number * len(naive) // len(ran.rows)]:.1f}x")
    for name, why in ran.missing.items():
        print(f"{name:<14}not measured: {why}")
    each = (full - empty) / 10
    print(
        f"\nmemory: {empty:.0f} MB with 10 agents, {full:.0f} MB with 10,000: {each:.1f} KB an agent with one session"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 120_000)
