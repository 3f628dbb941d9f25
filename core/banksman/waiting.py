"""For how long at least something has been waiting: a log's reader says up to where it is done, and a mark is set at the log's
end each time it has passed the one before.
"""

from __future__ import annotations

UNSEEN_S = 30.0


class Waiting:
    """Of one partition's end and one reader. `records`: how many wait."""

    def __init__(self) -> None:
        self.records = 0
        self._mark, self._since = 0, 0.0
        """Everything before this offset is waited for, and since when."""
        self._looked = 0.0

    def look(self, end: int, done: int, now: float) -> None:
        """`now`: seconds. Of what waited while nobody looked, or before the log began anew, nothing is known."""
        if done >= self._mark or end < self._mark or now - self._looked > UNSEEN_S:
            self._mark, self._since = end, now
        self.records, self._looked = max(0, end - done), now

    @property
    def seconds(self) -> float:
        """0: nothing waits."""
        return self._looked - self._since if self.records else 0.0
