"""What a report costs the agent's thread, on a machine that may be busy: the best of some rounds. Figures: bench/emitter.py."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from tests.producers.fake_enforcer import FakeEnforcer

from banksman.producers import Emitter

LIMIT_US = 50
ARGS = {"path": "/srv/data/17", "flags": ["-l", "-a"], "query": "select * from t where id = 3", "note": "n" * 100}


@pytest.mark.parametrize("there", [True, False], ids=["there", "away"])
def test_a_report_costs_its_thread_less_than_50_us(
    fake: FakeEnforcer, make_emitter: Callable[..., Emitter], there: bool
) -> None:
    """p99 of a round of 300 calls, the best of ten rounds: what others do on this machine can spoil some, hardly all."""
    if not there:
        fake.stop()
    emitter = make_emitter()
    session = emitter.session("s1")
    rounds: list[float] = []
    for _ in range(10):
        took: list[int] = []
        for _ in range(300):
            before = time.perf_counter_ns()
            session.tool_call("git", "push", resource="acme/billing", branch="feature/x", args=ARGS)
            took.append(time.perf_counter_ns() - before)
        rounds.append(sorted(took)[297] / 1000)
        emitter.flush(20 if there else 0.05)
    assert min(rounds) <= LIMIT_US, rounds
    assert emitter.stats().dropped == 0
