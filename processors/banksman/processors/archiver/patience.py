"""Waiting for ClickHouse and Kafka, however long they are away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from aiokafka.errors import KafkaError

from banksman.errors import Unavailable
from banksman.store.client import BadQuestion

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

logger = logging.getLogger("banksman")

Done = TypeVar("Done")
BACKOFF_S = (0.1, 5.0)
GRACE_S = 5.0
"""How long what is under way may still take when `stop` is set. Offsets are with the rows: left undone, it is read again."""


class Stopping(Exception):
    """Told to stop while waiting."""


class Patience:
    """What the archiver does again and again until it is done. `stop` ends it with Stopping."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._waiting_since: float | None = None

    def waited_s(self) -> float:
        """For how long ClickHouse has been away; 0: it is there."""
        return 0.0 if self._waiting_since is None else time.monotonic() - self._waiting_since

    async def ask(self, work: Callable[[], Done]) -> Done:
        """Run blocking `work` on ClickHouse in a thread. Errors that are about the data are the caller's.

        None of our questions is wrong: where ClickHouse says so, the database is not as it should be, and may become so.
        """
        pause, most = BACKOFF_S
        while True:
            try:
                done = await _apart(work)
            except (Unavailable, BadQuestion) as error:
                if self._waiting_since is None:
                    self._waiting_since = time.monotonic()
                    logger.warning("waiting: %s", error)
                await self.pause(pause)
                pause = min(pause * 2, most)
            else:
                if self._waiting_since is not None:
                    logger.info("ClickHouse is back after %.1f s", time.monotonic() - self._waiting_since)
                    self._waiting_since = None
                return done

    async def start(self, start: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a Kafka client."""
        said = False
        while True:
            try:
                await self.within(start())
            except (KafkaError, OSError) as error:
                if not said:
                    logger.warning("waiting for Kafka: %s", error)
                    said = True
                await self.pause(0.5)
            else:
                return

    async def within(self, work: Coroutine[Any, Any, None]) -> None:
        """`work`, which ends by itself soon after `stop` is set, or is cancelled GRACE_S after that: Stopping."""
        working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await asyncio.wait({working}, timeout=GRACE_S)
            if not working.done():
                logger.warning("stopping in the middle: what is under way is read again")
                raise Stopping
            await working
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.wait({working}, timeout=1)

    async def pause(self, seconds: float) -> None:
        """Stopping as soon as it is set."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
        if self._stop.is_set():
            raise Stopping


async def _apart(work: Callable[[], Done]) -> Done:
    """Blocking `work` in a thread that nobody waits for when the process ends: a frozen ClickHouse holds it for a minute."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Done] = loop.create_future()

    def tell(made: Callable[[], None]) -> None:
        if not done.done():  # cancelled: nobody asks any more
            made()

    def run() -> None:
        try:
            found = work()
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            made = partial(done.set_exception, error)
        else:
            made = partial(done.set_result, found)
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is the process, nearly
            loop.call_soon_threadsafe(tell, made)

    threading.Thread(target=run, name="clickhouse", daemon=True).start()
    return await done
