"""Asking ClickHouse without waiting for it: a bounded pool of threads, time-outs, and a quick no while it is away."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from banksman.errors import InvalidSetting, StoreAway
from banksman.http_problem import problem
from banksman.store.client import BadQuestion, Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from banksman.settings import ClickHouse, Console

PATIENCE_S = 5.0
QUESTIONS = 8
ANALYSTS = 4
RETRY_S = 1.0
MOST_BYTES = 64 << 20
Rows = list[dict[str, Any]]


class Asking:
    """Two ways to ask: our own questions (short, many) and analysts' SQL (long, few). Neither can starve the other."""

    def __init__(self, clickhouse: ClickHouse, console: Console) -> None:
        self.database = clickhouse.clickhouse_database
        self._console = console
        self._store = Store(clickhouse, reader=True, timeout=PATIENCE_S)
        self._analyst = Store(clickhouse, reader=True, timeout=console.sql_seconds + PATIENCE_S)
        self._pool = ThreadPoolExecutor(QUESTIONS, "question")
        self._long_pool = ThreadPoolExecutor(ANALYSTS, "sql")
        self._free, self._long_free = asyncio.Semaphore(QUESTIONS), asyncio.Semaphore(ANALYSTS)
        self._away, self._again = "", 0.0

    async def rows(self, sql: str, **parameters: Any) -> Rows:
        """Rows of one of our own questions; `@events` in it is the table. Problem 503: ClickHouse is away."""
        if self._away and time.monotonic() < self._again:
            raise self._problem(self._away)
        text = sql.replace("@", f"`{self.database}`.")
        rows: Rows = await self._in(self._pool, self._free, PATIENCE_S, partial(self._store.query, text, parameters))
        return rows

    async def sql(self, query: str, parameters: Mapping[str, Any], form: str) -> bytes:
        """An analyst's query -> ClickHouse's bytes in `form`. Problem 422, 429, 503."""
        limits = {
            "max_execution_time": self._console.sql_seconds,
            "max_result_rows": self._console.sql_rows,
            "max_result_bytes": MOST_BYTES,
            "output_format_json_quote_64bit_integers": 1,
            "output_format_json_quote_decimals": 1,
            "output_format_json_quote_denormals": 0,
        }
        ask = partial(self._analyst.raw, query, dict(parameters), form=form, limits=limits)
        if self._long_free.locked():
            try:
                async with asyncio.timeout(2):
                    await self._long_free.acquire()
                self._long_free.release()
            except TimeoutError:
                raise problem(429, f"{ANALYSTS} queries are running already", retry_after=5) from None
        answer: bytes = await self._in(
            self._long_pool, self._long_free, self._console.sql_seconds + 2 * PATIENCE_S, ask
        )
        return answer

    def close(self) -> None:
        """Let go; what still runs is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._long_pool.shutdown(wait=False, cancel_futures=True)

    async def _in(
        self, pool: ThreadPoolExecutor, free: asyncio.Semaphore, seconds: float, ask: Callable[[], Any]
    ) -> Any:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await free.acquire()
        except TimeoutError:
            raise self._problem("every connection waits for an answer") from None
        running = asyncio.get_running_loop().run_in_executor(pool, ask)
        running.add_done_callback(lambda _: free.release())  # a thread is free when it is, not when we gave up
        try:
            answer = await _within(seconds, running)
        except TimeoutError:
            self._note(f"no answer within {seconds:g} s")
            raise self._problem(self._away) from None
        except StoreAway as error:
            self._note(str(error))
            raise self._problem(self._away) from None
        except InvalidSetting as error:
            raise problem(503, str(error), retry_after=5) from None
        except BadQuestion as error:
            more = {"code": error.code} | ({"too_much": True} if error.too_much else {})
            raise problem(422, error.message, field="query", **more) from None
        self._away = ""
        return answer

    def _note(self, why: str) -> None:
        self._away, self._again = why, time.monotonic() + RETRY_S

    def _problem(self, why: str) -> Exception:
        return problem(503, f"ClickHouse is away: {why}", retry_after=RETRY_S)


async def _within(seconds: float, running: Awaitable[Any]) -> Any:
    async with asyncio.timeout(seconds):
        return await asyncio.shield(running)
