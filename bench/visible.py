"""From an agent's call to the row that a query sees: how long, at 20 and 200 calls a second, with and without other load.

    .venv/bin/python bench/visible.py [SECONDS]       15 of each kind

Everything is a process of one real `banksman up`: Kafka, enforcer, archiver, ClickHouse's engine. The agent is an Emitter over
HTTP with its spool on disk. Its clock starts right before `session.note(…)` or `emitter.decide(…)` is called, and stops when
the first answer that holds the row has come back to a reader that asks ClickHouse again and again for the ids of the last
seconds. So a figure is at the most one round of that reader too long (printed), and never too short. Both clocks are one:
agent and reader are threads of this process.

The other load is 2,000 signed events a second of 49 other agents, straight into Kafka, from a process of its own.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from multiprocessing.synchronize import Event
from pathlib import Path

from archive_stack import machine
from memory import AGENTS, Stack

from banksman import bus, codec, log, settings
from banksman.producers import Emitter
from banksman.signing import parse_credential
from banksman.store.client import Store
from banksman.topics import Topic

OTHERS_PER_SECOND = 2000
PAUSE_S = 0.05
"""Between two looks: a reader that never rests would take ClickHouse's core away from what it measures."""
BEHIND_S = 2
"""How far behind the newest row that was seen a reader looks again."""
PATIENCE_S = 10
WATCHED = "agent-00"


@dataclass
class Reader:
    """Asks for the ids of the watched agent until it is told to stop."""

    store: Store
    seen: dict[str, float] = field(default_factory=dict)
    """Id -> when the first answer with it was there."""
    rounds: list[float] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        sql = (
            "SELECT toString(id) AS id, toUnixTimestamp64Milli(received) AS ms "
            f"FROM `{self.store.database}`.events WHERE agent = {{agent:String}} "
            "AND received > fromUnixTimestamp64Milli({since:Int64}) AND topic IN ('actions', 'decisions')"
        )
        before, newest = time.monotonic(), time.time_ns() // 10**6 - 1000 * BEHIND_S
        while not self.stop.is_set():
            rows = self.store.query(sql, {"agent": WATCHED, "since": newest - BEHIND_S * 1000})
            now = time.monotonic()
            for row in rows:
                self.seen.setdefault(row["id"], now)
                newest = max(newest, row["ms"])
            self.rounds.append(now - before)
            before = now
            self.stop.wait(PAUSE_S)


def kafka_of(stack: Stack) -> settings.Kafka:
    return settings.Kafka(
        kafka=f"127.0.0.1:{stack.ports['kafka']}", kafka_security="SASL_PLAINTEXT", kafka_username="service",
        kafka_password_file=str(stack.data / "kafka.password"),
    )  # fmt: skip


def reader_of(stack: Stack) -> Reader:
    return Reader(
        Store(
            settings.ClickHouse(
                clickhouse=f"http://127.0.0.1:{stack.ports['clickhouse']}",
                clickhouse_reader_password_file=str(stack.data / "clickhouse-reader.password"),
            ),
            reader=True,
        )
    )


def others(stack: Stack, ready: Event, stop: Event, sent: multiprocessing.Queue[tuple[int, float]]) -> None:
    """Other agents' events, spread evenly, until told to stop."""
    log.hush_kafka()
    stack.signers = [parse_credential(credential).signer() for credential in stack.credentials]
    sent.put(asyncio.run(_others(stack, ready, stop)))


async def _others(stack: Stack, ready: Event, stop: Event) -> tuple[int, float]:
    kafka = kafka_of(stack)
    producer, topic = bus.producer(kafka), kafka.topic(Topic.ACTIONS)
    await producer.start()
    to = bus.Publisher(producer, topic, bound=10**6, deadline=60)
    number, began = 0, time.monotonic()
    while not stop.is_set():
        due = int((time.monotonic() - began) * OTHERS_PER_SECOND)
        while number < due:
            number += 1
            agent, event = stack.action(number)
            if agent:  # not the watched one
                key, value = event["agent"].encode(), codec.encode(event)
                marks = {name: event[name] for name in ("id", "kind", "time", "source")}
                headers = stack.signers[agent].headers(topic, key, value, **marks)
                to.put(bus.partition_of(key, kafka.partitions), key, value, headers)
        if number > OTHERS_PER_SECOND:
            ready.set()
        await asyncio.sleep(0.01)
    took = time.monotonic() - began
    await to.flush()
    await producer.stop()
    return number - number // AGENTS, took


def calls(emitter: Emitter, kind: str, rate: int, seconds: float) -> dict[str, float]:
    """Id -> when the call was made. `kind`: events or decisions; evenly, `rate` a second."""
    made: dict[str, float] = {}
    with emitter.session() as session:
        began = time.monotonic()
        for number in range(int(rate * seconds)):
            wait = began + number / rate - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            at = time.monotonic()
            if kind == "events":
                made[emitter.emit({"kind": "note", "session": session.id, "text": f"step {number}"})] = at
            else:
                answer = emitter.decide(
                    {
                        "session": session.id, "service": "git", "action": "push", "resource": "acme/billing",
                        "branch": "feature/x", "args": {"commits": number},
                    }
                )  # fmt: skip
                if answer.id is None or not answer.allowed:
                    sys.exit(f"not decided: {answer}")
                made[answer.id] = at
    return made


def measured(stack: Stack, emitter: Emitter, kind: str, rate: int, seconds: float) -> str:
    """One line of the table. Ends the bench when a call is not seen within ten seconds."""
    reader = reader_of(stack)
    watching = threading.Thread(target=reader.run)
    watching.start()
    try:
        made = calls(emitter, kind, rate, seconds)
        end = time.monotonic() + PATIENCE_S
        while not made.keys() <= reader.seen.keys():
            if time.monotonic() > end:
                sys.exit(f"{len(made.keys() - reader.seen.keys())} of {len(made)} {kind} were not seen")
            time.sleep(0.01)  # between two looks
    finally:
        reader.stop.set()
        watching.join()
        reader.store.close()
    took = sorted((reader.seen[id_] - at) * 1e3 for id_, at in made.items())
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    looks = statistics.median(reader.rounds) * 1e3
    return f"{kind:10} {rate:>5}/s {len(took):>7} {p50:>8.0f} {p99:>8.0f} {took[-1]:>8.0f} {looks:>14.0f}"


def main() -> None:
    log.hush_kafka()
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 15.0
    runs = [("events", 20), ("events", 200), ("decisions", 20), ("decisions", 200)]
    print(machine())
    print("from the call in the agent to the first answer of ClickHouse that holds its row, in ms\n")
    heading = f"{'what':10} {'rate':>7} {'calls':>7} {'p50':>8} {'p99':>8} {'max':>8} {'a look takes':>14}"
    with tempfile.TemporaryDirectory(prefix="banksman-visible-") as folder:
        stack = Stack(Path(folder))
        up = stack.start()
        try:
            url = f"http://127.0.0.1:{stack.ports['enforcer']}"
            with Emitter(stack.credentials[0], url=url, spool=Path(folder) / "spool") as emitter:
                measured(stack, emitter, "decisions", 20, 2)  # the JVM and the caches warm up
                print(f"{heading}\nnothing else flows")
                for kind, rate in runs:
                    print(measured(stack, emitter, kind, rate, seconds), flush=True)
                spawned = multiprocessing.get_context("spawn")
                ready, stop, sent = spawned.Event(), spawned.Event(), spawned.Queue()
                flood = spawned.Process(target=others, args=(replace(stack, signers=[]), ready, stop, sent))
                flood.start()
                if not ready.wait(60):
                    sys.exit("the other load did not start")
                lines = [measured(stack, emitter, kind, rate, seconds) for kind, rate in runs]
                stop.set()
                count, took = sent.get(timeout=90)
                flood.join(30)
                print(f"while {count / took:,.0f} events a second of other agents flow")
                print("\n".join(lines))
        finally:
            up.terminate()
            up.wait(60)


if __name__ == "__main__":
    main()
