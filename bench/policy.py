"""The policy engine: decisions in process beside three other engines, loading a thousand projects, and serving meanwhile; going
through policies (`lint`, `diff`) and through a million recorded decisions (`backtest`).

usage: python bench/policy.py [--short]        some six minutes; the peers are fetched once (against/fetch.py)

Decisions are those of bench/peers.py: the same rules and operations, answers checked before they are timed. A thousand files
of ten agents with eleven rules each are read as the enforcer reads them, in a process of its own; `edit` is from when one of
them is written to when what it says is answered, of which 0.1 s is how long a file has to be quiet. Serving: 16 connections,
before, and while the thousand files come.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml
from against import engines
from agent_rules import agent_rules
from archive_stack import broker, machine
from growth import TOKEN_OF, Fleet, allows, edit, enforcers, policy
from http_decide import QUESTION
from http_load import spread

from banksman import log
from banksman.local import kafka
from banksman.policy.backtest import Backtest, Recorded
from banksman.policy.compile import CompiledPolicy
from banksman.policy.diff import diff
from banksman.policy.lint import lint
from banksman.policy.load import load
from banksman.policy.reader import FolderReader
from banksman.policy.rules import Policy

PROJECTS, AGENTS = 1_000, 10
CONNECTIONS = 16


def files(count: int) -> dict[str, str]:
    """File name -> text, of so many projects."""
    made = {}
    for number in range(count):
        agents = {f"agent-{number}-{n}": agent_rules(n) for n in range(AGENTS)}
        made[f"p{number}.yaml"] = yaml.safe_dump({"project": f"p{number}", "version": 1, "agents": agents})
    return made


def loading(texts: dict[str, str]) -> Iterator[str]:
    """A folder read from nothing, one file edited, what it holds in memory."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name, text in texts.items():
            (folder / name).write_text(text)
        time.sleep(1.1)  # files that changed within the last second are waited for: that is not what is measured
        before = psutil.Process().memory_info().rss
        reader, began = FolderReader(folder), time.perf_counter()
        found = reader.scan()
        took = time.perf_counter() - began
        compiled = [CompiledPolicy(one.policy) for one in found if hasattr(one, "policy")]
        held = (psutil.Process().memory_info().rss - before) / 1e6
        assert len(compiled) == len(texts)
        one = (folder / "p0.yaml").read_bytes()
        times = []
        for _ in range(20):
            began = time.perf_counter()
            load(one, "p0.yaml")
            times.append(time.perf_counter() - began)
        agents = len(texts) * AGENTS
        yield f"{len(texts):,} files, {agents:,} agents, {agents * 11:,} rules: read and checked in {took:.1f} s, {held:.0f} MB"
        yield f"one file of {AGENTS} agents: {statistics.median(times) * 1000:.1f} ms"


def serving(node: kafka.Node, texts: dict[str, str], seconds: float) -> Iterator[str]:
    """The enforcer answers while they come."""
    with enforcers(node, "s.", 1, {"0.yaml": policy(*TOKEN_OF[:1], TOKEN_OF[1:])}) as fleet:
        asked(fleet, 1.0)  # the first second is another one
        yield f"{'':<34}{'p50 ms':>8}{'p99 ms':>8}{'requests/s':>12}"
        _, rate, p50, p99 = asked(fleet, seconds)
        yield f"{'with one file':<34}{p50:>8.1f}{p99:>8.1f}{rate:>12,.0f}"
        writing = threading.Thread(target=_write, args=(fleet.folder / "policies", texts))
        writing.start()
        _, rate, p50, p99 = asked(fleet, seconds)
        writing.join()
        yield f"{f'while {len(texts):,} files come':<34}{p50:>8.1f}{p99:>8.1f}{rate:>12,.0f}"
        allows(fleet.urls[0], fleet.headers)
        edits = sorted(edit(fleet, number) for number in range(8))
        yield f"an edit is answered by after {edits[4] * 1000:.0f} ms (slowest {edits[-1] * 1000:.0f}), 0.1 s of it quiet"


def asked(fleet: Fleet, seconds: float) -> tuple[int, float, float, float]:
    """(answers, a second, p50 ms, p99 ms)."""
    urls = [f"{url}/v1/decide" for url in fleet.urls]
    return asyncio.run(spread(urls, fleet.headers, json.dumps(QUESTION).encode(), CONNECTIONS, seconds))


def _write(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).write_text(text)


def going_through(texts: dict[str, str], recorded: int) -> Iterator[str]:
    """`lint`, `diff` and the engine's part of `backtest`."""
    raw = texts["p0.yaml"].encode()
    began = time.perf_counter()
    lint(raw, "p0.yaml")
    yield f"lint of {AGENTS} agents: {(time.perf_counter() - began) * 1000:.0f} ms"
    old = load(raw).policy
    new = load(raw.replace(b"feature/*", b"feature/**")).policy
    began = time.perf_counter()
    changes = list(diff(old, new))
    yield f"diff of two such files: {(time.perf_counter() - began) * 1000:.0f} ms, {len(changes)} changes"
    backtest, began = Backtest(new), time.perf_counter()
    backtest.take(history(old, recorded))
    took = time.perf_counter() - began
    yield f"backtest of {recorded:,} decisions, each by itself: {took:.1f} s, {recorded / took:,.0f} a second"


def history(old: Policy, count: int) -> Iterator[Recorded]:
    """As if it had been recorded."""
    names = list(old.agents)
    for number in range(count):
        which = number % len(names)
        yield Recorded(
            names[which], "git", "push", f"acme/app-{which}", f"feature/{number}", "allow", 1, f"s{number % 999}"
        )


def main() -> None:
    log.hush_kafka()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="see that it works; its figures are none")
    short = parser.parse_args().short
    print(f"{machine()}{', short: these are no measurements' if short else ''}\n")
    for line in engines.row(1, 0.5, (1, 100)) if short else engines.row(3, 2.0, (1, 100, 10_000)):
        print(line, flush=True)
    texts = files(50 if short else PROJECTS)
    print("\nLoading", *loading(texts), sep="\n", flush=True)
    print("\nServing", flush=True)
    with tempfile.TemporaryDirectory() as made, broker(Path(made)) as (node, _):
        for line in serving(node, texts, 1.0 if short else 6.0):
            print(line, flush=True)
    print("\nGoing through", *going_through(texts, 10_000 if short else 1_000_000), sep="\n", flush=True)


if __name__ == "__main__":
    main()
