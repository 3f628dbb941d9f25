"""What a start looks like while it goes on: on a terminal lines that move, anywhere else a line when a step is done."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol, Self

from banksman.cli import show

if TYPE_CHECKING:
    from collections.abc import Iterator


class Tell(Protocol):
    """What a step says about itself: how much of how much, and what it came to."""

    def __call__(self, *, done: int = 0, total: int = 0, result: str = "") -> None: ...


class Steps:
    """Steps with names, several at a time. Everything goes to stderr."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars: Any = None
        self._live = not quiet and sys.stderr.isatty()

    def __enter__(self) -> Self:
        if self._live:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._bars = Progress(
                SpinnerColumn(), TextColumn("{task.description:<24}"), BarColumn(20), TimeElapsedColumn(),
                console=show.stdout(sys.stderr), transient=True,
            )  # fmt: skip
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Tell]:
        """A step. What it `tell`s as its result stands behind its name when it is done; one that fails says nothing."""
        began, said = time.monotonic(), {"result": ""}
        bar = self._bars.add_task(name, total=None) if self._bars is not None else None

        def tell(*, done: int = 0, total: int = 0, result: str = "") -> None:
            said["result"] = result or said["result"]
            if bar is not None and total:
                self._bars.update(bar, completed=done, total=total)

        yield tell
        if bar is not None:
            self._bars.remove_task(bar)
        self.line(f"  {name:<24} {said['result']:<48} {show.seconds(time.monotonic() - began):>8}")

    def line(self, text: str) -> None:
        """A line above whatever moves."""
        if self._quiet:
            return
        if self._bars is not None:
            self._bars.console.print(show.safe(text), soft_wrap=True)
        else:
            show.note(text)
