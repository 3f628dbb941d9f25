"""Rows per second from a filled topic into ClickHouse, beside a plain loop of inserts of the same rows.

usage: python bench/archiver.py [ROWS]        default 1,000,000; writes bench/results/archiver.txt
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from archive_stack import Stack, cpu_seconds, machine, resident_mb, stack

from banksman.batches import Batch
from banksman.processors.archiver.blocks import blocks
from banksman.processors.archiver.pieces import pieces
from banksman.processors.archiver.rows import RowMaker, Rows
from banksman.signing import Verifier
from banksman.store.client import Store
from banksman.store.prices import load_prices
from banksman.topics import Topic

BLOCK = 20_000


class Archived(NamedTuple):
    """The archiver, from a filled topic."""

    rate: float
    """Rows/s from its first round on."""
    whole_rate: float
    """Rows/s from the start of the process."""
    cpu_us: float
    clickhouse_us: float
    kafka_us: float
    half_mb: float
    full_mb: float
    block: int
    """Rows of an insert, on average."""


class Ready(NamedTuple):
    """Blocks that only need to be inserted."""

    names: list[str]
    blocks: list[bytes]
    rows: int
    """Of each block."""
    make_us: float
    encode_us: float


def archived(made: Stack, count: int) -> Archived:
    """Fill the topic, start an archiver, see that each record is there once."""
    asyncio.run(made.fill(count))
    reader, writer = made.reader(), Store(made.clickhouse, reader=False)
    where = "WHERE partition < 9 AND topic = 'actions'"
    database = made.clickhouse.clickhouse_database
    ask = f"SELECT count() AS n FROM `{database}`.events {where}"
    inserts_before = inserts(writer)
    started, before = time.monotonic(), {name: cpu_seconds(pid) for name, pid in made.pids.items()}
    process = made.archiver()
    first, half_mb = None, 0.0
    while True:
        done = reader.query(ask)[0]["n"]
        if done and first is None:  # the process has started, which costs it a second of CPU
            first, already, cpu_before = time.monotonic(), done, cpu_seconds(process.pid)
        if done >= count // 2 and not half_mb:
            half_mb = resident_mb(process.pid)
        if done >= count:
            break
        time.sleep(0.5)  # between two looks, which cost ClickHouse a little
    assert first is not None
    assert already < count, f"{count:,} rows are too few: all were there at the first look"
    ended, cpu = time.monotonic(), cpu_seconds(process.pid) - cpu_before
    servers = {name: cpu_seconds(pid) - before[name] for name, pid in made.pids.items()}
    exact = reader.query(
        f"SELECT count() AS n, uniqExact(partition, offset) AS places, countIf(verified) AS verified, "
        f"uniqExact(id) AS ids FROM `{database}`.events {where}"
    )[0]
    assert exact == {"n": count, "places": count, "verified": count, "ids": count}, exact
    full_mb = resident_mb(process.pid)
    process.terminate()
    process.wait(30)
    us = 1e6 / count
    return Archived(
        (count - already) / (ended - first), count / (ended - started), cpu / (count - already) * 1e6,
        us * servers["clickhouse"], us * servers["kafka"], half_mb, full_mb, count // (inserts(writer) - inserts_before),
    )  # fmt: skip


def inserts(store: Store) -> int:
    """How many inserts ClickHouse has got."""
    return int(store.query("SELECT value FROM system.events WHERE event = 'InsertQuery'")[0]["value"])


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    lines = [
        f"{machine()}, load {os.getloadavg()[0]:.1f} at the start",
        f"{count:,} signed tool.call of about 600 bytes, 200 agents, 4 partitions",
        "",
    ]
    with stack() as made:
        ours = archived(made, count)
        block = ready(made, BLOCK, 1)
        plain_rate, plain_us = plain(made, block)  # last: what it inserts is merged for a while
    lines += [
        f"{'archiver: verified, checked, stored':45s} {ours.rate:>10,.0f} rows/s from its first round on",
        f"{'':45s} {ours.whole_rate:>10,.0f} rows/s from the start of the process",
        f"{'':45s} {ours.cpu_us:>10.1f} us CPU a row in the archiver: {1e6 / ours.cpu_us:,.0f} rows/s a core",
        f"{'':45s} {ours.clickhouse_us:>10.1f} us CPU a row in ClickHouse, merges included",
        f"{'':45s} {ours.kafka_us:>10.1f} us CPU a row in Kafka",
        f"{'rows of an insert':45s} {ours.block:>10,}",
        f"{'reading and making rows alone':45s} {block.make_us:>10.1f} us CPU",
        f"{'writing blocks alone':45s} {block.encode_us:>10.1f} us CPU",
        f"{'plain inserts of ready blocks of 20,000':45s} {plain_rate:>10,.0f} rows/s",
        f"{'':45s} {plain_us:>10.1f} us CPU a row in ClickHouse",
        f"{'ratio':45s} {ours.rate / plain_rate:>10.2f}",
        f"{'resident memory of the archiver':45s} {ours.half_mb:>10,.0f} MB after half of the rows",
        f"{'':45s} {ours.full_mb:>10,.0f} MB after all",
    ]
    print("\n".join(lines))
    Path(__file__).with_name("results").joinpath("archiver.txt").write_text("\n".join(lines) + "\n")


def ready(made: Stack, size: int, number: int) -> Ready:
    """So many blocks of so many rows, as the archiver makes them; what making and writing one costs."""
    maker, signers = RowMaker(Verifier(made.secret), load_prices()), [made.signer(f"agent-{n:03d}") for n in range(200)]
    topic = made.kafka.topic(Topic.ACTIONS)
    packed = pack([made.record(f"agent-{n % 200:03d}", n // 200 + 1, signers[n % 200]) for n in range(size)])
    gc.collect()
    gc.disable()  # as in the archiver
    began = time.process_time()
    received = time.time_ns() // 10**6
    rows: list[Rows] = []
    wrong = 0
    for piece in pieces([Batch(received, first, last, data) for first, last, data in packed]):
        made_now, buried = maker.rows(piece, Topic.ACTIONS, topic, 9)
        rows += made_now
        wrong += len(buried)
    make_us = (time.process_time() - began) / size * 1e6
    assert not wrong
    [block] = blocks([rows])
    began = time.process_time()
    names, data = block.encoded()
    encode_us = (time.process_time() - began) / size * 1e6
    gc.enable()
    several = [data]
    while len(several) < number:  # the same rows further on in the log
        block.parts = [
            replace(part, columns={**part.columns, "offset": [offset + size for offset in part.columns["offset"]]})
            for part in block.parts
        ]
        several.append(block.encoded()[1])
    return Ready(names, several, size, make_us, encode_us)


def plain(made: Stack, block: Ready) -> tuple[float, float]:
    """-> (rows/s of inserts of a ready block one after another, CPU us a row in ClickHouse)."""
    store = Store(made.clickhouse, reader=False)
    [data] = block.blocks
    store.insert("events", block.names, data)
    began, before = time.monotonic(), cpu_seconds(made.pids["clickhouse"])
    for _ in range(10):
        store.insert("events", block.names, data)
    took, cpu = time.monotonic() - began, cpu_seconds(made.pids["clickhouse"]) - before
    return 10 * block.rows / took, cpu / (10 * block.rows) * 1e6


def pack(records: list[tuple[bytes, bytes, list[tuple[str, bytes]]]]) -> list[tuple[int, int, bytes]]:
    """Kafka batches of 1 MiB, each with its first and its last offset."""
    made: list[tuple[int, int, bytes]] = []
    first = 0
    while records:
        builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 20)
        taken = 0
        for offset, (key, value, headers) in enumerate(records):
            if builder.append(offset, 0, key, value, headers) is None:
                break
            taken += 1
        made.append((first, first + taken - 1, first.to_bytes(8, "big") + bytes(builder.build())[8:]))
        first += taken
        records = records[taken:]
    return made


if __name__ == "__main__":
    main()
