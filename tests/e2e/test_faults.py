"""Replicas frozen for longer than their lease, also in the middle of an answer: what was answered is there, once. What else can
happen is in `tests/faults`.

The schedule comes from a seed: FAULTS_SEED repeats a run, FAULTS_ROUNDS makes it longer.

    FAULTS_SEED=7 FAULTS_ROUNDS=10 .venv/bin/pytest tests/e2e/test_faults.py -s
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.e2e import checker
from tests.e2e.load import Load, read_journal
from tests.e2e.stack import REPLICAS, Stack

SEED = int(os.environ.get("FAULTS_SEED", "1"))
ROUNDS = int(os.environ.get("FAULTS_ROUNDS", "1"))
LEASE_S = 1.5

FAULTS = (
    ("freeze", ("enforcer-2",)),
    ("strand", ("enforcer-1",)),  # frozen between a record's acknowledgement and the answer, for longer than the lease
    ("strand and kill", ("enforcer-2",)),
)


class Step(NamedTuple):
    """What is done to whom, after how many more answers, and for how many seconds they are away then."""

    what: str
    whom: tuple[str, ...]
    after: int
    away: float


def schedule(chance: random.Random) -> Iterator[Step]:
    """Each fault once a round, in an order of the seed's."""
    for _ in range(ROUNDS):
        for what, whom in chance.sample(FAULTS, len(FAULTS)):
            yield Step(what, whom, chance.randrange(20, 120), chance.uniform(LEASE_S + 0.5, LEASE_S + 2.0))


def do(step: Step, stack: Stack, load: Load) -> None:
    """The fault, and its end: everybody runs and is ready."""
    name = step.whom[0]
    stood_still = stack.freeze(name) if step.what == "freeze" else stack.strand(name)
    time.sleep(step.away)  # this long it stands still
    if step.what == "strand and kill":
        stack.kill(name)
        stack.start(name)
    else:
        load.journal.write("frozen", replica=name, **{"from": stood_still, "to": stack.thaw(name)})


@pytest.mark.slow
@pytest.mark.timeout(300 * ROUNDS)
def test_whatever_is_killed_or_frozen_all_that_was_answered_is_there_once(stack: Stack, tmp_path: Path) -> None:
    print(f"FAULTS_SEED={SEED}")
    journal = tmp_path / "journal.jsonl"
    with Load(stack.replicas(), stack.tokens, journal, seed=SEED, pause=0.03) as load:
        for step in schedule(random.Random(SEED)):
            load.tally.wait(step.after)
            print(f"{time.strftime('%H:%M:%S')} {step.what} {', '.join(step.whom)} for {step.away:.1f} s", flush=True)
            do(step, stack, load)
            back = time.monotonic()
            for replica in REPLICAS:
                load.tally.wait(1, replica)
            print(f"         both answer again after {time.monotonic() - back:.1f} s", flush=True)
    ends = stack.settled()
    verdict = checker.judge(read_journal(journal), checker.read(stack.reading(), ends))
    print(verdict.text())
    assert not verdict.faults, verdict.text()
    counts = verdict.counts
    assert counts["decisions answered"] > 200, "too little load to show anything"
    assert counts["requests that a frozen replica woke up to"] >= 2 * ROUNDS, "no replica was asked while it was frozen"
    assert counts["decisions recorded, their answer never received"] >= ROUNDS, "nobody died between record and answer"
    assert counts["decisions voided"] >= ROUNDS, "no late answer was held back"
