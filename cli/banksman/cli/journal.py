"""How far a replay came: a line a finished action, appended, so that a replay that was cut off goes on where it was.

It only saves time. Should it be lost, or miss the last lines, these actions are sent again with the same ids and bytes, and
are still shown once.
"""

from __future__ import annotations

import fcntl
import hashlib
from typing import TYPE_CHECKING

from banksman.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

OUTCOMES = ("allow", "deny", "approve")


class Journal:
    """One run against one deployment. `done`: line number -> what was decided."""

    def __init__(self, folder: Path, run: str, deployment: str) -> None:
        """`deployment`: whatever tells one enforcer's log from another's: a journal of one says nothing about the other.

        InvalidInput: the same replay is running already.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        mark = hashlib.sha256(deployment.encode()).hexdigest()[:8]
        self.path = folder / f"{run}-{mark}.journal"
        self._file = open(self.path, "a+", encoding="ascii")  # noqa: SIM115 - it is kept open, the lock with it
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InvalidInput("is being replayed by another process already", field=run) from None
        self._file.seek(0)
        self.done: dict[int, str] = {}
        text = self._file.read()
        whole = text[: text.rfind("\n") + 1]  # a kill may have torn the last line
        for line in whole.splitlines():
            number, _, outcome = line.partition(" ")
            if number.isdigit() and outcome in OUTCOMES:
                self.done[int(number)] = outcome
        if len(whole) < len(text):
            self._file.truncate(len(whole))

    def add(self, finished: Iterable[tuple[int, str]]) -> None:
        """Write down what is finished: decided, and all its events durable."""
        listed = list(finished)
        self.done.update(listed)
        self._file.write("".join(f"{line} {outcome}\n" for line, outcome in listed))
        self._file.flush()

    def close(self) -> None:
        """Let another process have it."""
        self._file.close()
