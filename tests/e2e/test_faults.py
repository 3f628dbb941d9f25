"""kill -9 of everything under load, and replicas frozen for longer than their lease: what was answered is there, once.

The schedule comes from a seed: FAULTS_SEED repeats a run, FAULTS_ROUNDS makes it longer.

    FAULTS_SEED=7 FAULTS_ROUNDS=10 .venv/bin/pytest tests/e2e/test_faults.py -s
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import checker
from tests.e2e.load import Load, read_journal
from tests.e2e.stack import REPLICAS, Stack

SEED = int(os.environ.get("FAULTS_SEED", "1"))
ROUNDS = int(os.environ.get("FAULTS_ROUNDS", "1"))
LEASE_S = 1.5

FAULTS = (
    ("kill", ("enforcer-1",)),
    ("kill", ("enforcer-2",)),
    ("kill", ("archiver",)),
    ("kill", ("clickhouse",)),
    ("kill", ("kafka",)),
    ("kill", ("kafka", "clickhouse", "archiver", *REPLICAS)),
    ("freeze", ("enforcer-1",)),
    ("freeze", ("enforcer-2",)),
    ("freeze", ("kafka",)),
)


def schedule(chance: random.Random) -> Iterator[tuple[str, tuple[str, ...], int, float]]:
    """(what, whom, after how many more answers, for how many seconds)."""
    for _ in range(ROUNDS):
        for what, whom in chance.sample(FAULTS, len(FAULTS)):
            away = chance.uniform(LEASE_S + 0.5, LEASE_S + 2.5) if what == "freeze" else chance.uniform(0, 1.5)
            yield what, whom, chance.randrange(20, 120), away


@pytest.mark.slow
@pytest.mark.timeout(240 * ROUNDS)
def test_whatever_is_killed_or_frozen_all_that_was_answered_is_there_once(stack: Stack, tmp_path: Path) -> None:
    print(f"FAULTS_SEED={SEED}")
    journal = tmp_path / "journal.jsonl"
    with Load(stack.replicas(), stack.tokens, journal, seed=SEED, pause=0.03) as load:
        for what, whom, after, away in schedule(random.Random(SEED)):
            load.tally.wait(after)
            print(f"{time.strftime('%H:%M:%S')} {what} {', '.join(whom)} for {away:.1f} s", flush=True)
            if what == "kill":
                stack.kill(*whom)
                time.sleep(away)  # this long it is away
                stack.start(*whom)
            else:
                stood_still = stack.freeze(whom[0])
                time.sleep(away)  # this long it stands still
                load.journal.write("frozen", replica=whom[0], **{"from": stood_still, "to": stack.thaw(whom[0])})
            back = time.monotonic()
            for replica in REPLICAS:
                load.tally.wait(1, replica)
            print(f"         both answer again after {time.monotonic() - back:.1f} s", flush=True)
    ends = stack.settled()
    verdict = checker.judge(read_journal(journal), checker.read(stack.reading(), ends))
    print(verdict.text())
    assert not verdict.faults, verdict.text()
    counts = verdict.counts
    assert counts["decisions answered"] > 500, "too little load to show anything"
    assert counts["requests that a frozen replica woke up to"] >= 2 * ROUNDS, "no replica was asked while it was frozen"
    assert counts["decisions recorded, their answer never received"] > 0, (
        "nothing was killed in the middle of a decision"
    )
