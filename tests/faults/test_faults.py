"""A fault run in its short form; `bench/faults.py` is the long one.

FAULTS_SEED=7 .venv/bin/pytest tests/faults/test_faults.py -s            the same in another order
FAULTS_BROKERS=3 .venv/bin/pytest tests/faults/test_faults.py -s         on three brokers, too
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from tests.e2e.stack import Shape
from tests.faults.run import Run, Step

SEED = int(os.environ.get("FAULTS_SEED", "1"))
ONE = (
    ("kill", ("kafka", "clickhouse", "archiver", "enforcer-1", "enforcer-2", "worker", "notifier")),
    ("kill", ("emits-kafka",)),
    ("freeze", ("worker",)),
    ("silence", ("kafka",)),
    ("swallow", ("kafka",)),
    ("swallow", ("slack",)),
    ("cut", ("clickhouse",)),
    ("fill", ("clickhouse",)),
    ("duplicate", ("actions",)),
)
THREE = (
    ("kill", ("kafka-1",)),
    ("freeze", ("kafka-2",)),
    ("silence", ("kafka-3",)),
    ("restart", ("kafka-3", "worker", "enforcer-1", "archiver", "notifier")),
)
HANGS_S, SILENT_S = 25.0, 15.0
"""With three brokers an agent is answered again within so long, whichever of them is away. It takes 3 to 6 s on two cores."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("shape", "what"),
    [
        pytest.param(Shape(workers=1), ONE, id="one broker"),
        pytest.param(
            Shape(brokers=3, workers=1),
            THREE,
            id="three brokers",
            marks=pytest.mark.skipif(
                "FAULTS_BROKERS" not in os.environ, reason="two minutes: FAULTS_BROKERS=3 runs it"
            ),
        ),
    ],
)
def test_whatever_is_done_to_it_the_promises_hold(
    shape: Shape, what: tuple[tuple[str, tuple[str, ...]], ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", "aiokafka")
    print(f"FAULTS_SEED={SEED}")
    chance = random.Random(SEED)
    with Run(tmp_path, shape, seed=SEED) as run:
        steps = [
            # Longer than a lease and a worker's session; a broker hangs for longer than a client's patience.
            Step(deed, whom, chance.randrange(5, 40), HANGS_S if whom == ("kafka-2",) else chance.uniform(2.2, 3.5))
            for deed, whom in chance.sample(what, len(what))
        ]
        outcome = run.through(steps)
    print("\n".join(f"{name:<50} {count:>8}" for name, count in outcome.counts.items()))
    assert not outcome.faults, "\n".join(f"{kind}: {what}" for kind, what in outcome.faults[:40])
    assert shape.brokers == 1 or outcome.longest_s < SILENT_S
