"""A service as a process: uvloop, SIGTERM and SIGINT as a request to stop, one clear line and a fixed exit code.

    def run() -> None:
        service.run("enforcer", main)      # async def main(stop: asyncio.Event) -> None

Exit codes: 0 told to stop, 1 an error of ours (with its traceback), 2 a setting that cannot be used, 4 a deployment
that is not as it must be.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

import uvloop

from banksman import log
from banksman.errors import BadDeployment, InvalidSetting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def run(name: str, main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Work until `main` returns; never returns itself. `stop` is set at the first SIGTERM or SIGINT."""
    logger = log.configure(name)

    async def work() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await main(stop)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work())
    except InvalidSetting as error:
        logger.error("%s", error)  # noqa: TRY400 - one clear line, no traceback
        sys.exit(2)
    except BadDeployment as error:
        logger.error("%s", error)  # noqa: TRY400 - same
        sys.exit(4)
    except Exception:
        logger.exception("%s ended with an error", name)
        sys.exit(1)
    sys.exit(0)


async def together(stop: asyncio.Event, *tasks: asyncio.Task[None]) -> None:
    """Return when `stop` is set; raise when one of `tasks` ends before that: none of them may, unnoticed.

    A service whose reader or heartbeat died would go on answering from stale state. It must end instead.
    """
    stopping = asyncio.ensure_future(stop.wait())
    try:
        done, _ = await asyncio.wait((stopping, *tasks), return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            await task  # raises what it died of
            if not stop.is_set():
                raise RuntimeError(f"the task {task.get_name()} ended by itself")
    finally:
        stopping.cancel()
