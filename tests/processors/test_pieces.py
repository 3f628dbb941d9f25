"""What an archiver makes into rows in one go."""

from __future__ import annotations

from banksman.batches import Batch
from banksman.processors.archiver.pieces import PIECE, pieces


def test_pieces_are_of_one_day_and_end_with_the_batch_that_fills_them() -> None:
    day, half = 86_400_000, bytes(PIECE // 2)
    received = [1, 2, 3, 4, day, day + 1, 5]
    several = [Batch(ms, n, n, half) for n, ms in enumerate(received)]
    found = list(pieces(several))
    assert [[one.first for one in piece] for piece in found] == [[0, 1], [2, 3], [4, 5], [6]]
    assert list(pieces([])) == []
    large = [Batch(1, 0, 0, bytes(3 * PIECE)), Batch(1, 1, 1, half)]
    assert [len(piece) for piece in pieces(large)] == [1, 1]
