"""For how long findings wait to be told."""

from __future__ import annotations

import pytest

from banksman.waiting import Waiting

Look = tuple[int, int, float]
"""Where `alerts` ends, up to where it is told, and when that was seen."""


@pytest.mark.parametrize(
    ("looks", "records", "seconds"),
    [
        ([(0, 0, 5.0)], 0, 0.0),
        ([(7, 7, 5.0), (7, 7, 900.0)], 0, 0.0),
        ([(7, 7, 5.0), (9, 7, 6.0), (12, 7, 30.0), (12, 7, 59.0)], 5, 53.0),  # nobody tells
        ([(3, 0, 5.0), (3, 0, 30.0), (3, 0, 55.0)], 3, 50.0),  # nobody ever did
        ([(9, 7, 6.0), (12, 8, 7.0)], 4, 1.0),
        ([(9, 7, 6.0), (12, 8, 7.0), (15, 9, 8.0)], 6, 0.0),  # the mark was passed, and is set anew
        ([(9, 7, 6.0), (12, 8, 7.0), (12, 12, 8.0)], 0, 0.0),
        ([(9, 7, 6.0), (9, 9, 8.0), (10, 9, 20.0), (10, 9, 21.0)], 1, 1.0),  # what waits now came later
        (
            [(9, 7, 6.0), (9, 7, 7.0), (9, 7, 3600.0)],
            2,
            0.0,
        ),  # nobody looked for an hour: perhaps nobody could tell, either
        ([(9, 7, 6.0), (2, 0, 20.0), (2, 0, 21.0)], 2, 1.0),  # the log began anew
    ],
)
def test_waiting(looks: list[Look], records: int, seconds: float) -> None:
    waiting = Waiting()
    for look in looks:
        waiting.look(*look)
    assert (waiting.records, waiting.seconds) == (records, seconds)
