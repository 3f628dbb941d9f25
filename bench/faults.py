"""Fault runs: everything under load for minutes, while all that can be killed, frozen, cut off, slowed or filled is.

usage: python bench/faults.py [--minutes 5] [--seeds 1,2,3,rolling] [--brokers 1,3]

What is done, and by whom it is looked at, stands in `tests/faults`: the checker shares no code with the product, and
`tests/faults/test_judge.py` and `tests/e2e/test_checker.py` show that it finds each kind of fault when one is planted. With
three brokers there are three enforcers, two workers and two archivers, and no two brokers are away at once. The same seed does
the same things to the same processes in the same order. `rolling` instead of a seed: each process is restarted in turn, as for
a new version, and nothing else happens. Exit code 1 when anything was found.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from archive_stack import machine
from tests.e2e.stack import Shape
from tests.faults.run import KINDS, Outcome, Run, Step, rolling, schedule

SHAPES = {
    1: Shape(workers=1),
    3: Shape(brokers=3, enforcers=3, archivers=2, workers=2, partitions=4),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Fault runs.")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", default="1,2,3,rolling")
    parser.add_argument("--brokers", default="1,3")
    given = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # brokers are away all the time
    print(f"{machine()}; {given.minutes:g} minutes each\n", flush=True)
    outcomes = {}
    for brokers, seed in itertools.product(map(int, given.brokers.split(",")), given.seeds.split(",")):
        outcome = outcomes[brokers, seed] = one(brokers, seed, given.minutes)
        for kind, what in outcome.faults[:20]:
            print(f"{brokers} brokers, seed {seed}: {kind}: {what}", flush=True)
    print(table(outcomes))
    return 1 if any(outcome.faults for outcome in outcomes.values()) else 0


def one(brokers: int, seed: str, minutes: float) -> Outcome:
    """One run. Its folder goes away if nothing was found."""
    folder = Path(tempfile.mkdtemp(prefix=f"faults-{brokers}-{seed}-"))
    tell(f"{brokers} brokers, seed {seed}: {folder}")
    chance = random.Random(seed)
    with Run(folder, SHAPES[brokers], seed=chance.randrange(1 << 32), say=tell) as run:
        end = time.monotonic() + 60 * minutes
        outcome = run.through(rolling(run.names, chance) if seed == "rolling" else until(run, chance, end))
    if not outcome.faults:
        shutil.rmtree(folder)
    return outcome


def tell(line: str) -> None:
    """What is going on, beside the result."""
    print(line, file=sys.stderr, flush=True)


def until(run: Run, chance: random.Random, end: float) -> Iterator[Step]:
    """Rounds of everything, each in another order, until the time is over."""
    while True:
        for step in schedule(run.stack.shape, run.names, chance):
            if time.monotonic() >= end:
                return
            yield step


def table(outcomes: dict[tuple[int, str], Outcome]) -> str:
    """One column for each run: what was done, how much there was to lose, what was found."""
    every = list(outcomes.values())
    done = sorted({what for outcome in every for what in outcome.steps})
    rows: list[tuple[str, Sequence[object]]] = [
        ("brokers", [brokers for brokers, _ in outcomes]),
        ("seed", [seed for _, seed in outcomes]),
        *((f"done: {what}", [outcome.steps[what] for outcome in every]) for what in done),
        *((name, [outcome.counts[name] for outcome in every]) for name in every[0].counts),
        ("longest that an agent was not answered, s", [f"{outcome.longest_s:.1f}" for outcome in every]),
        *((f"FAULT {kind}", [dict(outcome.rows())[kind] for outcome in every]) for kind in KINDS),
    ]
    return "\n".join(f"{name:<66}" + "".join(f"{figure!s:>9}" for figure in figures) for name, figures in rows)


if __name__ == "__main__":
    sys.exit(main())
