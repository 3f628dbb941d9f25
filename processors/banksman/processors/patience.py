"""Waiting for ClickHouse and Kafka, however long they are away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, TypeVar

from aiokafka.errors import KafkaError

from banksman.errors import Unavailable
from banksman.store.client import BadQuestion

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

logger = logging.getLogger("banksman")

Done = TypeVar("Done")
BACKOFF_S = (0.1, 5.0)


class Stopping(Exception):
    """Told to stop while waiting."""


class Patience:
    """What the archiver does again and again until it is done. `stop` ends it with Stopping."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._waiting_since: float | None = None

    async def ask(self, work: Callable[[], Done]) -> Done:
        """Run blocking `work` on ClickHouse in a thread. Errors that are about the data are the caller's.

        None of our questions is wrong: where ClickHouse says so, the database is not as it should be, and may become so.
        """
        pause, most = BACKOFF_S
        while True:
            try:
                done = await asyncio.to_thread(work)
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

    async def start(self, start: Callable[[], Awaitable[None]]) -> None:
        """Start a Kafka client."""
        said = False
        while True:
            try:
                await start()
            except (KafkaError, OSError) as error:
                if not said:
                    logger.warning("waiting for Kafka: %s", error)
                    said = True
                await self.pause(0.5)
            else:
                return

    async def pause(self, seconds: float) -> None:
        """Stopping as soon as it is set."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
        if self._stop.is_set():
            raise Stopping
