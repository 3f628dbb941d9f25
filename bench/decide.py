"""Decisions per second in process, at 1 / 100 / 10,000 agents with 11 rules each; what loading and one edit cost.

    .venv/bin/python bench/decide.py [--out bench/results/decide.txt]

Throughput is the median of five passes over 24,000 operations of 12 shapes, latency a clock around each call. Operations
are decoded from JSON 64 at a time just before they are timed, as they are in the enforcer: their strings are fresh
(nothing has hashed them) and warm. Every answer is checked against an expectation written by hand before anything is
timed. Agents come 100 to a project, so that 10,000 agents are 100 files. One core; other load shows in p99 first.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import statistics
import time
from pathlib import Path

import msgspec
from agent_rules import PER_PROJECT, Operation, project_text, shapes

from banksman.policy.compile import Bundle, CompiledPolicy
from banksman.policy.load import load


def resident_mb() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(agents: int) -> str:
    texts = [
        project_text(list(range(start, min(start + PER_PROJECT, agents)))).encode()
        for start in range(0, agents, PER_PROJECT)
    ]
    rng = random.Random(7)
    asked = [rng.choice(shapes(rng.randrange(agents))) for _ in range(24_000)]
    bodies = [json.dumps([operation for operation, _ in asked[at : at + 64]]) for at in range(0, len(asked), 64)]
    decode = msgspec.json.Decoder(list[Operation]).decode

    began = time.process_time()
    loaded = [load(text).policy for text in texts]
    load_s = time.process_time() - began
    gc.collect()
    before = resident_mb()
    bundle = Bundle({policy.project: CompiledPolicy(policy) for policy in loaded})
    decide = bundle.decide
    began = time.process_time()
    for operation, expected in asked:
        got = decide(*operation).decision
        assert got == expected, (operation, got, expected)
    first_s = time.process_time() - began
    compiled_mb = resident_mb() - before

    rates, each, now = [], [], time.perf_counter_ns
    for _ in range(5):
        took = 0
        for body in bodies:
            operations = decode(body)
            began_ns = now()
            for operation in operations:
                decide(*operation)
            took += now() - began_ns
        rates.append(len(asked) / took * 1e9)
    for body in bodies:
        for operation in decode(body):
            began_ns = now()
            decide(*operation)
            each.append(now() - began_ns)
    each.sort()
    p50, p99 = each[len(each) // 2] / 1e3, each[len(each) * 99 // 100] / 1e3
    return (
        f"{agents:>7,} {agents * 11:>8,} {statistics.median(rates):>12,.0f} {p50:>7.2f} {p99:>7.2f} "
        f"{load_s * 1e6 / agents:>12,.0f} {first_s * 1e6 / len(asked):>12.1f} {compiled_mb:>9.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    lines = [
        f"machine: {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}; one core used",
        "",
        " agents    rules  decisions/s  p50 us  p99 us  load us/agent  first us/op  compiled MB",
    ]
    print("\n".join(lines))
    for agents in (1, 100, 10_000):
        lines.append(measure(agents))
        print(lines[-1], flush=True)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
