"""banksman beside what else there is, each row both sides in one run: the same rules, payloads, connections and cores.

    .venv/bin/python bench/peers.py [--rows http,inprocess,processors,archiver] [--short] [--out bench/results/peers.txt]

    http         decisions over HTTP, recorded before they are answered, beside OPA's server, the sidecar of
                 agent-governance-toolkit and the floor of bench/http_decide.py
    inprocess    the policy engine beside agent-governance-toolkit, cedarpy and pycasbin
    processors   the worker beside naive Faust, quixstreams and aiokafka by itself
    archiver     the archiver beside a loop that only inserts ready blocks, in the engine's own process

Peers are no dependencies: they are fetched once, at the versions pinned in against/fetch.py, into ~/.cache/banksman-bench (or
BANKSMAN_BENCH_PEERS); one that cannot be had is named with the reason, and its row is left out. Whoever decides is asked what
it must know before it is timed. `--short` only shows that everything works; its figures are none.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import archiver
import processors
from against import chdb_loop, engines, fetch, servers
from archive_stack import broker, stack
from run import RESULTS, heading
from stream_log import AGENTS

from banksman import signing

FEET = {
    "http": (
        "banksman     authenticates the agent, redacts, hashes and signs the record, and answers after Kafka has it",
        "             (acks=all; one broker, which has it in the page cache)",
        "OPA          the caller says who it is; no log: nothing is recorded; console log: a line to a file, not awaited,",
        "             not on disk when the answer is sent",
        "AGT sidecar  the caller says who it is; nothing is recorded; no patterns: its rules list the names that are asked for",
        "floor        decides nothing: uvicorn, uvloop and httptools with a constant answer",
    ),
    "inprocess": (
        "all          the rules of all agents in one set; where a caller keeps a set for each agent, the rows of 1 agent hold",
        "AGT          no patterns: its rules list the names that are asked for; looks at the policies of all agents",
        "cedarpy      permit or forbid: an approval is told by the policies that permit; looks at the policies of all agents",
        "pycasbin     yes or no: asked up to three times; its FastEnforcer finds the lines of an agent",
    ),
    "processors": (
        "all          verify, decode, every detector, changed states kept on the log; not pinned, both cores",
        "worker       signs its states, has them acknowledged before offsets are committed, recovers, tells what it found",
        "naive Faust  the tutorial's way: a table write for each state that an event changes, not awaited; fewer records",
        "quixstreams  states in RocksDB and a changelog, flushed at each commit; signs nothing, tells nothing",
        "raw aiokafka has its states acknowledged before offsets are committed; signs, tells, recovers and hands over nothing",
    ),
    "archiver": (
        "archiver     fetches from Kafka, verifies, checks, makes rows, stores over HTTP, each once; Kafka on the same cores",
        "chDB loop    blocks of the archiver's size, ready in files, into the archive's table, in the engine's own process",
    ),
}


def http(*, short: bool) -> Iterator[str]:
    return iter(servers.row(1, 1.0) if short else servers.row(3, 3.0))


def inprocess(*, short: bool) -> Iterator[str]:
    return iter(engines.row(1, 0.5, (1, 100)) if short else engines.row(3, 2.0, (1, 100, 10_000)))


def streams(*, short: bool) -> Iterator[str]:
    count, number = (4_000, 1) if short else (60_000, 3)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        secret = signing.create_secret(folder / "secret.json")
        with broker(folder) as (node, _):
            ran = processors.turns(number, count, node, folder, secret)
    yield f"Processors: {count:,} signed records of {AGENTS} agents, medians of {number} interleaved turns"
    yield ""
    yield f"{'':<14}{'records/s':>11}{'CPU us/record':>15}  worker is"
    names = list(dict.fromkeys(name for name, _, _ in ran.rows))
    rates = {name: statistics.median(rate for one, rate, _ in ran.rows if one == name) for name in names}
    for name in names:
        cpu = statistics.median(us for one, _, us in ran.rows if one == name)
        yield f"{name:<14}{rates[name]:>11,.0f}{cpu:>15.1f}  {rates['worker'] / rates[name]:>8.2f}x"
    for name, why in ran.missing.items():
        yield f"not measured: {name}: {why}"


def archive(*, short: bool) -> Iterator[str]:
    count, number = (150_000, 5) if short else (1_000_000, 20)
    with stack() as made:
        ours = archiver.archived(made, count)
        ready = archiver.ready(made, ours.block, number)
    with tempfile.TemporaryDirectory() as folder:
        seconds, cpu = chdb_loop.run(Path(folder), ready)
    rows = number * ready.rows
    yield f"Archiver: {count:,} signed tool.call of about 600 bytes, inserts of {ours.block:,} rows"
    yield ""
    yield f"{'':<14}{'rows/s':>11}{'CPU us/row':>12}  archiver is"
    yield f"{'archiver':<14}{ours.rate:>11,.0f}{ours.cpu_us + ours.clickhouse_us:>12.1f}  {1:>10.2f}x"
    yield f"{'  of these':<14}{'':>11}{ours.cpu_us:>12.1f}  in the archiver, {ours.clickhouse_us:.1f} in ClickHouse"
    yield f"{'chDB loop':<14}{rows / seconds:>11,.0f}{cpu / rows * 1e6:>12.1f}  {ours.rate / (rows / seconds):>10.2f}x"


ROWS: dict[str, Callable[..., Iterator[str]]] = {
    "http": http,
    "inprocess": inprocess,
    "processors": streams,
    "archiver": archive,
}


def chosen(given: str) -> list[str]:
    """The rows that are named. ArgumentTypeError: there is none of that name."""
    names = given.split(",")
    for name in names:
        if name not in ROWS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(ROWS)}")
    return names


def versions() -> str:
    """What is measured, and what ours stands on."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=RESULTS.parent
    )
    stands_on = ("aiokafka", "faust-streaming", "chdb", "uvicorn")
    ours = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in stands_on)
    theirs = ", ".join(fetch.named(peer) for peer in ("opa", *fetch.PYPI))
    return f"banksman {importlib.metadata.version('banksman')} ({commit.stdout.strip() or 'no git'}), {ours}\npeers: {theirs}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=chosen, default=list(ROWS), help="some of them, with commas between")
    parser.add_argument("--short", action="store_true", help="see that it works: written only where --out says")
    parser.add_argument("--out", type=Path, help="default: results/peers.txt, when all rows are measured in full")
    args = parser.parse_args()
    began, lines = time.monotonic(), [versions()]
    print(lines[0], flush=True)
    for name in args.rows:
        told = ["", f"── {name}{', short: these are no measurements' if args.short else ''}", ""]
        told += [*ROWS[name](short=args.short), "", *FEET[name]]
        print("\n".join(told), flush=True)
        lines += told
    out = args.out or (RESULTS / "peers.txt" if args.rows == list(ROWS) and not args.short else None)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(heading("peers", time.monotonic() - began) + "\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
