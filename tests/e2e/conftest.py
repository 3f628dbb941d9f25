"""The whole system, twice: as separate processes, and through `banksman up`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.stack import Stack, make


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Separate processes on servers of their own; everything runs, two agents are enrolled."""
    made = make(tmp_path)
    try:
        made.begin()
        yield made
    finally:
        made.end()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Brokers are away here all the time: what the Kafka clients of the test have to say about it is known."""
    caplog.set_level("CRITICAL", "aiokafka")
