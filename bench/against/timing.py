"""One engine in a process of its own: it is asked what it must know, and timed if it is right.

    python -m against.timing MODULE AGENTS SECONDS        MODULE: ours, agt, cedar, pycasbin; prints one line of JSON

Every engine is timed by this one loop: operations are decoded from JSON 64 at a time just before they are timed, so that their
strings are fresh; first the rate over whole blocks, then a clock around each call. A slow engine is asked for as long as a
fast one, at least twelve operations.
"""

from __future__ import annotations

import importlib
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from agent_rules import Operation, edges, shapes

Decide = Callable[[Operation], str]
ASKED, BLOCK, LEAST = 24_000, 64, 12


class Timed(NamedTuple):
    load_s: float
    checked: int
    asked: int
    rate: float
    p50_us: float
    p99_us: float


def check(decide: Decide, agents: int) -> int:
    """-> how many were asked. ValueError: one was answered wrongly."""
    asked = [one for i in sorted({0, agents // 2, agents - 1}) for one in shapes(i) + edges(i)]
    for operation, expected in asked:
        got = decide(operation)
        if got != expected:
            raise ValueError(f"{operation}: {got} instead of {expected}")
    return len(asked)


def time_it(decide: Decide, agents: int, seconds: float) -> tuple[int, float, float, float]:
    """-> (operations of the rate, decisions/s, p50 and p99 in us)."""
    rng = random.Random(7)
    asked = [rng.choice(shapes(rng.randrange(agents)))[0] for _ in range(ASKED)]
    began = time.perf_counter()
    for operation in asked[:LEAST]:  # caches warm up
        decide(operation)
    slow = (time.perf_counter() - began) / LEAST
    size = max(LEAST, min(BLOCK, int(seconds / slow)))
    bodies = [json.dumps(asked[at : at + size]) for at in range(0, ASKED, size)]
    rates, each, now = list[float](), list[int](), time.perf_counter_ns
    count, at, ends = 0, 0, time.perf_counter() + seconds
    while not rates or time.perf_counter() < ends:
        operations = json.loads(bodies[at % len(bodies)])
        began_ns = now()
        for operation in operations:
            decide(operation)
        rates.append(len(operations) / (now() - began_ns) * 1e9)
        count, at = count + len(operations), at + 1
    ends = time.perf_counter() + seconds
    while not each or time.perf_counter() < ends:
        for operation in json.loads(bodies[at % len(bodies)]):
            began_ns = now()
            decide(operation)
            each.append(now() - began_ns)
        at += 1
    each.sort()
    return count, statistics.median(rates), each[len(each) // 2] / 1e3, each[len(each) * 99 // 100] / 1e3


def main() -> None:
    name, agents, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    began = time.process_time()
    decide: Decide = importlib.import_module(f"against.{name}").build(agents)
    load_s = time.process_time() - began
    checked = check(decide, agents)
    print(json.dumps(Timed(load_s, checked, *time_it(decide, agents, seconds))))


if __name__ == "__main__":
    main()
