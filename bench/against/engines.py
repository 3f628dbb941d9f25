"""Decisions in process: banksman's policy engine beside the engine of agent-governance-toolkit, cedarpy and pycasbin.

Each in a process of its own on one core, one after the other, in turns (timing.py): the same rules, the same operations,
checked before they are timed. Each holds the rules of all agents in one set.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from against import fetch
from against.timing import Timed
from agent_rules import edges, shapes
from http_load import SERVER_CORE

BENCH = Path(__file__).parents[1]
ENGINES = {"ours": "", "agt": "agent-governance-toolkit", "cedar": "cedarpy", "pycasbin": "pycasbin"}
LIMIT_S = 900


def one(module: str, agents: int, seconds: float) -> Timed:
    """One engine, once. Missing: it cannot be had."""
    peer = ENGINES[module]
    path = [str(fetch.packages(peer))] if peer else []
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([*path, str(BENCH)])}
    command = [
        "taskset",
        "-c",
        str(SERVER_CORE),
        sys.executable,
        "-m",
        "against.timing",
        module,
        str(agents),
        str(seconds),
    ]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    if ran.returncode:
        raise RuntimeError(f"{module} with {agents} agents: {ran.stderr[-2000:]}")
    return Timed(*json.loads(ran.stdout.splitlines()[-1]))


def row(rounds: int, seconds: float, sizes: tuple[int, ...]) -> list[str]:
    """The lines of the table."""
    found: dict[tuple[int, str], list[Timed]] = {}
    missing: dict[str, str] = {}
    for agents in sizes:
        for _ in range(rounds):
            for module, peer in ENGINES.items():
                if module in missing:
                    continue
                try:
                    found.setdefault((agents, module), []).append(one(module, agents, seconds))
                except fetch.Missing as why:
                    missing[module] = f"not measured: {peer}: {why}"
    checked = len(shapes(0) + edges(0))
    return [
        f"Decisions in process on one core: 11 rules for each agent, {checked} answers of up to 3 agents checked",
        f"medians of {rounds} interleaved runs of {seconds:g} s",
        *table(found, sizes),
        *missing.values(),
    ]


def table(found: dict[tuple[int, str], list[Timed]], sizes: tuple[int, ...]) -> Iterator[str]:
    yield ""
    yield "    agents  engine                           decisions/s    p50 us     p99 us  timed  load CPU s  banksman is"
    for agents in sizes:
        ours = statistics.median(run.rate for run in found[agents, "ours"])
        for module, peer in ENGINES.items():
            if (runs := found.get((agents, module))) is None:
                continue
            rate, p50, p99, load = (
                statistics.median(getattr(run, name) for run in runs) for name in ("rate", "p50_us", "p99_us", "load_s")
            )
            asked = sum(run.asked for run in runs)
            name = fetch.named(peer) if peer else "banksman"
            tail = f"{p99:>11,.1f}" if asked >= 100 else f"{'-':>11}"  # a percentile of a dozen is none
            yield (
                f"{agents:>10,}  {name:<30} {rate:>13,.0f} {p50:>9,.1f}{tail} {asked:>7,}  {load:>9.1f}  {ours / rate:>10,.1f}x"
            )
