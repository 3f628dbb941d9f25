"""Three brokers with three copies of everything: each is killed and frozen in turn under load. Whatever happens to one, agents
are answered again while it is away, and what was answered is there, once.

    FAULTS_BROKERS=3 FAULTS_SEED=7 FAULTS_ROUNDS=10 .venv/bin/pytest tests/e2e/test_three_brokers.py -s
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import checker
from tests.e2e.load import Load, read_journal
from tests.e2e.stack import REPLICAS, Shape, Stack, make
from tests.e2e.test_faults import ROUNDS, SEED

THREE = Shape(brokers=3)
FAILOVER_S = 15
"""Within so long both replicas answer again, one broker being away. It takes 2 to 6 s on two cores, whether it was killed or
stands still and its connections stay open.
"""


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = make(tmp_path, THREE)
    try:
        made.begin()
        yield made
    finally:
        made.end()


@pytest.mark.slow
@pytest.mark.skipif("FAULTS_BROKERS" not in os.environ, reason="three brokers for 90 s: FAULTS_BROKERS=3 runs it")
@pytest.mark.timeout(400 * ROUNDS)
def test_any_one_of_three_brokers_may_go(stack: Stack, tmp_path: Path) -> None:
    print(f"FAULTS_SEED={SEED}")
    chance, journal = random.Random(SEED), tmp_path / "journal.jsonl"
    with Load(stack.replicas(), stack.tokens, journal, seed=SEED, pause=0.03) as load:
        for _ in range(ROUNDS):
            steps = [(what, broker) for what in ("kill", "freeze") for broker in THREE.names("brokers")]
            for what, broker in chance.sample(steps, len(steps)):
                load.tally.wait(chance.randrange(20, 80))
                if what == "kill":
                    stack.kill(broker)
                else:
                    stack.freeze(broker)
                began = time.monotonic()
                for replica in REPLICAS:  # while it is away
                    load.tally.wait(20, replica, seconds=FAILOVER_S)
                print(
                    f"{what} {broker}: both have answered 20 times after {time.monotonic() - began:.1f} s", flush=True
                )
                if what == "kill":
                    stack.start(broker)
                else:
                    stack.thaw(broker)
    ends = stack.settled()
    verdict = checker.judge(read_journal(journal), checker.read(stack.reading(), ends))
    print(verdict.text())
    print(f"longest without an answer from anybody: {longest_silence(read_journal(journal)):.1f} s")
    assert not verdict.faults, verdict.text()
    assert verdict.counts["decisions answered"] > 500, "too little load to show anything"


def longest_silence(lines: list[dict[str, object]]) -> float:
    """Seconds between two answers with 200, of any replica to any agent."""
    answered = sorted(
        float(str(line["received"])) for line in lines if line["what"] == "answer" and line["status"] == 200
    )
    return max((after - before for before, after in itertools.pairwise(answered)), default=0.0)
