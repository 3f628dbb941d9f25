"""A fault run in its short form; `bench/faults.py` is the long one.

FAULTS_SEED=7 .venv/bin/pytest tests/faults/test_faults.py -s            the same again
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from tests.e2e.stack import Shape
from tests.faults.run import Run, schedule

SEED = int(os.environ.get("FAULTS_SEED", "1"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whatever_is_done_to_it_the_promises_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "aiokafka")
    print(f"FAULTS_SEED={SEED}")
    with Run(tmp_path, Shape(workers=1), seed=SEED) as run:
        outcome = run.through(schedule(run.stack.shape, run.names, random.Random(SEED), full=run.full))
    print("\n".join(f"{name:<50} {count:>8}" for name, count in outcome.counts.items()))
    assert not outcome.faults, "\n".join(f"{kind}: {what}" for kind, what in outcome.faults[:40])
