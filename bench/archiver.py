"""Rows per second from a filled topic into ClickHouse, beside a plain loop of inserts of the same rows.

usage: python bench/archiver.py [ROWS]        default 400,000; writes bench/results/archiver.txt
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from archive_stack import Stack, cpu_seconds, machine, stack

from banksman.processors import rows as making
from banksman.signing import Verifier
from banksman.store.client import Store
from banksman.store.prices import load_prices
from banksman.topics import Topic

BLOCK = 20_000


class Taken:
    """A consumed record, as the row maker sees it."""

    partition = 9
    headers: list[tuple[str, bytes]]

    def __init__(self, offset: int, key: bytes, value: bytes, headers: list[tuple[str, bytes]], now: int) -> None:
        self.offset, self.key, self.value, self.headers, self.timestamp = offset, key, value, headers, now


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 400_000
    lines = [machine(), f"{count:,} signed tool.call of about 600 bytes, 200 agents, 4 partitions", ""]
    with stack() as made:
        asyncio.run(made.fill(count))
        plain_rate, make_us = plain(made)
        reader = made.reader()
        where = "WHERE partition < 9 AND topic = 'actions'"
        database = made.clickhouse.clickhouse_database
        started = time.monotonic()
        process = made.archiver()
        first = None
        while True:
            done = reader.query(f"SELECT count() AS n FROM `{database}`.events {where}")[0]["n"]
            if done and first is None:
                first = time.monotonic()
            if done >= count:
                break
            time.sleep(0.02)  # between two looks
        assert first is not None
        ended, cpu = time.monotonic(), cpu_seconds(process.pid)
        exact = reader.query(
            f"SELECT count() AS n, uniqExact(partition, offset) AS places, countIf(verified) AS verified, "
            f"uniqExact(id) AS ids FROM `{database}`.events {where}"
        )[0]
        assert exact == {"n": count, "places": count, "verified": count, "ids": count}, exact
        process.terminate()
        process.wait(30)
    rate = count / (ended - started)
    lines += [
        f"{'archiver: verified, checked, stored':45s} {count / (ended - first):>10,.0f} rows/s from its first row on",
        f"{'':45s} {rate:>10,.0f} rows/s from the start of the process",
        f"{'':45s} {1e6 * cpu / count:>10.1f} us CPU a row in the archiver",
        f"{'making a row alone':45s} {make_us:>10.1f} us CPU",
        f"{'plain inserts of ready rows, 20,000 a block':45s} {plain_rate:>10,.0f} rows/s",
        f"{'ratio':45s} {count / (ended - first) / plain_rate:>10.2f}",
    ]
    print("\n".join(lines))
    Path(__file__).with_name("results").joinpath("archiver.txt").write_text("\n".join(lines) + "\n")


def plain(made: Stack) -> tuple[float, float]:
    """(rows/s of inserts of ready rows one after another, CPU us of making one)."""
    maker, signer = making.RowMaker(Verifier(made.secret), load_prices()), made.signer("a")
    topic = made.kafka.topic(Topic.ACTIONS)
    records = [Taken(n, *made.record("a", n + 1, signer), time.time_ns() // 10**6) for n in range(BLOCK)]
    began = time.process_time()
    ready = [maker.row(record, Topic.ACTIONS, topic) for record in records]
    make_us = (time.process_time() - began) / BLOCK * 1e6
    block = b"\n".join([making.encode(row.values) for row in ready if row])
    store = Store(made.clickhouse, reader=False)
    store.insert("events", block)
    began = time.monotonic()
    for _ in range(5):
        store.insert("events", block)
    return 5 * BLOCK / (time.monotonic() - began), make_us


if __name__ == "__main__":
    main()
