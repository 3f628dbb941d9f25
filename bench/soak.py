"""An hour at a steady load: what `banksman up` holds at the beginning and at the end.

usage: python bench/soak.py [MINUTES]        60

200 records a second, as in memory.py: 110 straight into Kafka, by a producer that is made anew each second, 50 events in a
batch over HTTP, 40 decisions, over new connections; 50 agents, a new session every 100 records of each. Every minute it is
looked what each process has: resident memory, open handles (files, sockets), threads; what lies on disk; how many records wait
to be stored and to be counted; how long "what is agent X doing right now" takes. The first look is after five minutes, when
caches have filled. `slope`: what a straight line through all looks gains in an hour, as a part of the first look.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from archive_stack import machine
from memory import AGENTS, Stack, batches, ends, over_http, questions, straight

from banksman import log

RATE = {"straight": 110, "events": 50, "decisions": 40}
WARM_S, LOOK_S = 300.0, 60.0
SHOWN = 5


def held(stack: Stack) -> dict[str, float]:
    """Name of a figure -> it, now."""
    found: dict[str, float] = {}
    for file in sorted((stack.data / "run").glob("*.json")):
        process = psutil.Process(json.loads(file.read_text())["pid"])
        every = [process, *process.children(recursive=True)]
        found[f"{file.stem}: MB"] = sum(one.memory_info().rss for one in every) / 1e6
        found[f"{file.stem}: handles"] = sum(one.num_fds() for one in every)
        found[f"{file.stem}: threads"] = sum(one.num_threads() for one in every)
    for part in ("kafka", "clickhouse"):
        found[f"{part}: disk MB"] = disk(stack.data / part) / 1e6
    found["waits to be stored"] = stack.sent + stack.ended - stack.stored()
    found["waits to be counted"] = stack.ask("console", "/v1/status")["processors"]["lag"]
    began = time.perf_counter()
    stack.ask("console", "/v1/agents/agent-07/now")
    found["now, ms"] = (time.perf_counter() - began) * 1000
    return found


def disk(folder: Path) -> int:
    """Bytes that are taken."""
    total = 0
    for at, _, names in os.walk(folder):  # passes over folders that were merged away meanwhile
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(at) / name).stat().st_blocks * 512
    return total


def second(stack: Stack) -> None:
    """A second's records."""
    first = stack.sent
    ranges = {}
    for how, count in RATE.items():
        ranges[how] = range(first, first + count)
        first += count

    async def send() -> None:
        await straight(stack, ranges["straight"])
        await over_http(stack, batches(stack, ranges["events"]))
        await over_http(stack, questions(ranges["decisions"]))

    asyncio.run(send())
    stack.sent = first
    if first // (100 * AGENTS) != ranges["straight"].start // (100 * AGENTS):  # of questions alone nobody says the end
        over = range(ranges["straight"].start, ranges["straight"].start + 1)
        asyncio.run(over_http(stack, ends(stack, over)))
        stack.ended += AGENTS


def main() -> None:
    log.hush_kafka()
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    warm = min(WARM_S, 12 * minutes)
    looks: list[tuple[float, dict[str, float]]] = []
    late = 0
    with tempfile.TemporaryDirectory(prefix="banksman-soak-") as made:
        stack = Stack(Path(made))
        up = stack.start()
        try:
            began = time.monotonic()
            next_second, next_look = began, began + warm
            while time.monotonic() < began + 60 * minutes:
                second(stack)
                next_second += 1
                if next_second < time.monotonic():
                    late += 1
                if time.monotonic() >= next_look:
                    looks.append((time.monotonic() - began, held(stack)))
                    print(f"after {looks[-1][0] / 60:.0f} min, {stack.sent:,} records", file=sys.stderr, flush=True)
                    next_look += min(LOOK_S, 6 * minutes)
                time.sleep(max(0.0, next_second - time.monotonic()))  # the load is a steady one
            assert up.poll() is None, (stack.folder / "up.log").read_text()
        finally:
            up.terminate()
            up.wait(60)
    print(f"{machine()}\n{stack.sent:,} records in {minutes:g} minutes, {late} seconds late\n")
    shown = [looks[round(place * (len(looks) - 1) / (SHOWN - 1))] for place in range(SHOWN)]
    print(f"{'':26}" + "".join(f"{f'{at / 60:.0f} min':>10}" for at, _ in shown) + f"{'slope':>10}")
    for name in looks[0][1]:
        slope = statistics.linear_regression([at for at, _ in looks], [found[name] for _, found in looks]).slope * 3600
        first = looks[0][1][name]
        gained = f"{slope / first:+.0%}" if first else f"{slope:+.1f}"
        print(f"{name:26}" + "".join(f"{found[name]:>10,.0f}" for _, found in shown) + f"{gained:>10}")


if __name__ == "__main__":
    main()
