"""Work that is too long for the event loop: one thread for it, so that heartbeats and everybody else's answers go on."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from banksman.enforcer.limits import AgentLimits

HEAVY = 32 * 1024
"""Bytes of JSON that are read, hashed and redacted in the loop itself; what is larger is not."""

P = ParamSpec("P")
R = TypeVar("R")


class Aside:
    """The thread. One: each further one would take a turn of the interpreter's lock from the loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "aside")

    async def __call__(self, limits: AgentLimits, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What `work` returns or raises; its time is charged to `limits`. It must touch nothing that the loop changes."""

        def timed() -> tuple[R | BaseException, int]:
            began = time.thread_time_ns()
            result: R | BaseException
            try:
                result = work(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - raised again in the loop
                result = error
            return result, time.thread_time_ns() - began

        result, took = await asyncio.get_running_loop().run_in_executor(self._thread, timed)
        limits.charge(took)
        if isinstance(result, BaseException):
            raise result
        return result
