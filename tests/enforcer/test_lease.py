"""The lease by itself: what renews it, from when it counts, and what buys nothing. The clock is the test's."""

from __future__ import annotations

import time

import pytest
from tests.enforcer.conftest import Clock

from banksman.enforcer.lease import Lease

LENGTH = 1.5


@pytest.fixture
def lease(clock: Clock) -> Lease:
    return Lease(LENGTH, clock)


def test_it_counts_from_the_moment_the_heartbeat_was_begun(lease: Lease, clock: Clock) -> None:
    """However long it was under way: what was written to the log meanwhile may be unknown here."""
    lease.begin("one")
    clock.now += 1.4
    lease.acknowledged("one")
    assert lease.came_back("one")
    assert lease.valid
    clock.now += 0.1
    assert not lease.valid


def test_one_half_renews_nothing(lease: Lease) -> None:
    """Acknowledged, and the reader has not met it: it may be far behind. Met, and not acknowledged: a leader that is none any
    more may have shown it.
    """
    lease.begin("one")
    lease.acknowledged("one")
    assert not lease.valid
    lease.begin("two")
    lease.came_back("two")
    assert not lease.valid
    lease.acknowledged("two")
    assert lease.valid


@pytest.mark.parametrize("acknowledged_last", [True, False])
def test_one_that_comes_late_buys_what_is_left_of_its_own_time(
    lease: Lease, clock: Clock, acknowledged_last: bool
) -> None:
    """The process stood still between the sending and the news of it."""
    halves = [lease.came_back, lease.acknowledged] if acknowledged_last else [lease.acknowledged, lease.came_back]
    lease.begin("one")
    halves[0]("one")
    clock.now += LENGTH
    halves[1]("one")
    assert not lease.valid
    lease.begin("two")  # and nothing of the first is left that could be bought later
    halves[1]("one")
    assert not lease.valid


def test_an_older_one_takes_nothing_back(lease: Lease, clock: Clock) -> None:
    lease.begin("one")
    clock.now += 0.4
    lease.begin("two")
    for name in ("two", "one"):
        lease.acknowledged(name)
        lease.came_back(name)
    clock.now += 1.4
    assert lease.valid


def test_another_replicas_heartbeat_renews_nothing(lease: Lease) -> None:
    lease.begin("own")
    lease.acknowledged("another's")
    assert not lease.came_back("another's")
    assert not lease.valid


def test_what_is_given_up_never_comes_back(lease: Lease) -> None:
    for name in ("one", "two"):
        lease.begin(name)
    lease.acknowledged("one")
    lease.came_back("one")
    assert lease.valid
    lease.give_up()
    lease.acknowledged("two")
    lease.came_back("two")
    assert not lease.valid


def test_a_machine_that_sleeps_uses_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLOCK_MONOTONIC stands still in suspend: after an hour of it the lease from before would be good."""
    asleep = [0.0]
    real = time.clock_gettime

    def slept(which: int) -> float:
        return real(which) + (asleep[0] if which == time.CLOCK_BOOTTIME else 0.0)

    monkeypatch.setattr(time, "clock_gettime", slept)
    lease = Lease(LENGTH)
    lease.begin("one")
    lease.acknowledged("one")
    lease.came_back("one")
    assert lease.valid
    asleep[0] = 3600.0
    assert not lease.valid
