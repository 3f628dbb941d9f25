"""Asking ClickHouse without waiting for it: bounded pools of threads, time-outs, and a quick no while it is away.

A thread that asked a frozen server is lost until its socket times out, so threads are few and an answer is not waited for
longer than `PATIENCE_S`. Whoever was refused, or waited in vain, has a probe sent; when that fails too, everybody is refused
at once until a later probe, one a second, is answered. A single slow question proves nothing about the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from banksman.errors import InvalidInput, InvalidSetting, StoreAway
from banksman.http_problem import problem
from banksman.store.client import BadQuestion, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from banksman.http_problem import Problem
    from banksman.settings import ClickHouse, Console

PATIENCE_S = 5.0
QUESTIONS = 8
ANALYSTS = 4
QUEUE_S = 2.0
"""How long a question waits for a thread."""
PROBE_S = 1.0
"""Between two probes, and about the longest that one waits for its answer."""
MOST_BYTES = 64 << 20
UNKNOWN_IDENTIFIER = 47
OLDER = " - the tables are older than this version of banksman: run `banksman migrate`"
Rows = list[dict[str, Any]]
T = TypeVar("T")
_log = logging.getLogger("banksman")


class Asking:
    """Two ways to ask: our own questions (short, many) and analysts' SQL (long, few). Neither can starve the other."""

    def __init__(self, clickhouse: ClickHouse, console: Console) -> None:
        self.database = clickhouse.clickhouse_database
        self.away: str | None = None
        """Why ClickHouse is not asked at the moment."""
        self._console = console
        self._store = Store(clickhouse, reader=True, timeout=PATIENCE_S)
        self._analyst = Store(clickhouse, reader=True, timeout=console.sql_seconds + PATIENCE_S)
        self._prober = Store(clickhouse, reader=True, timeout=PROBE_S)
        self._questions, self._analysts = _Threads("question", QUESTIONS), _Threads("sql", ANALYSTS)
        self._probes, self._workers = _Threads("probe", 1), _Threads("work", 2)
        self._probing: asyncio.Task[None] | None = None

    async def rows(self, sql: str, **parameters: Any) -> Rows:
        """Rows of one of our own questions; `@events` in it is the table. Problem 503: ClickHouse is away, or busy."""
        text = sql.replace("@", f"`{self.database}`.")
        try:
            return await self._asked(self._questions, PATIENCE_S, partial(self._store.query, text, parameters))
        except Busy:
            raise self._refusal(f"{QUESTIONS} questions wait for an answer already") from None
        except InvalidInput as error:  # a question of ours that it does not understand, or refuses to this user
            older = isinstance(error, BadQuestion) and error.code == UNKNOWN_IDENTIFIER
            raise self._refusal(f"{error}{OLDER if older else ''}") from None

    async def sql(self, query: str, parameters: Mapping[str, Any], form: str) -> bytes:
        """An analyst's query -> ClickHouse's bytes in `form`. Problem 422: ClickHouse's message; 429, 503."""
        limits = {
            "max_execution_time": self._console.sql_seconds,
            "max_result_rows": self._console.sql_rows,
            "max_result_bytes": MOST_BYTES,
            "output_format_json_quote_64bit_integers": 1,
            "output_format_json_quote_decimals": 1,
            "output_format_json_quote_denormals": 0,
        }
        ask = partial(self._analyst.raw, query, dict(parameters), form=form, limits=limits)
        try:
            return await self._asked(self._analysts, self._console.sql_seconds + PATIENCE_S, ask)
        except Busy:
            raise problem(429, f"{ANALYSTS} queries are running already", retry_after=5) from None
        except InvalidInput as error:
            code = {"code": error.code} if isinstance(error, BadQuestion) else {}
            too_much = {"too_much": True} if isinstance(error, BadQuestion) and error.too_much else {}
            raise problem(422, error.message, field="query", **code, **too_much) from None

    async def work(self, make: Callable[[], T]) -> T:
        """`make()` in a thread: what takes a while must not stand in the way of other requests."""
        try:
            return await (await self._workers.run(make))
        except Busy:
            raise problem(503, "the read side has more to do than it can", retry_after=QUEUE_S) from None

    def close(self) -> None:
        """Let go; what still runs is not waited for."""
        if self._probing is not None:
            self._probing.cancel()

    async def _asked(self, threads: _Threads, seconds: float, ask: Callable[[], T]) -> T:
        if self.away is not None:
            raise self._refusal(self.away)
        running = await threads.run(ask)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(running)
        except TimeoutError:
            self._doubt()
            raise self._refusal(f"no answer within {seconds:g} s") from None
        except (StoreAway, InvalidSetting) as error:
            self._doubt()
            raise self._refusal(str(error)) from None

    def _doubt(self) -> None:
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe(), name="probe")

    async def _probe(self) -> None:
        """Ask for nothing until there is an answer, in a thread of its own: the others may all be waiting."""
        said = False
        while True:
            try:
                await (await self._probes.run(partial(self._prober.query, "SELECT 1")))
            except (StoreAway, InvalidInput) as error:
                self.away = str(error)
                if not said:
                    _log.warning("ClickHouse is away: %s", error)
                    said = True
            except Busy:
                pass  # the last probe still waits
            else:
                self.away = None
                if said:
                    _log.info("ClickHouse answers again")
                return
            await asyncio.sleep(PROBE_S)

    def _refusal(self, why: str) -> Problem:
        return problem(503, f"ClickHouse is away: {why}", retry_after=PROBE_S)


class Busy(Exception):
    """No thread became free in time."""


class _Threads:
    """At most `most` at once. Daemons, one a question: a process that is told to stop does not wait for a frozen server."""

    def __init__(self, name: str, most: int) -> None:
        self._name, self._free = name, asyncio.Semaphore(most)

    async def run(self, ask: Callable[[], T]) -> asyncio.Future[T]:
        """`ask`, begun. Busy: no thread became free in `QUEUE_S`."""
        try:
            async with asyncio.timeout(QUEUE_S):
                await self._free.acquire()
        except TimeoutError:
            raise Busy from None
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def settle(value: Any, error: BaseException | None) -> None:
            self._free.release()  # a thread is free when it is, not when somebody gave up waiting for it
            if answer.cancelled():
                return
            if error is None:
                answer.set_result(value)
            else:
                answer.set_exception(error)
                answer.exception()  # looked at: nobody may be waiting for it any more

        def work() -> None:
            value, error = None, None
            try:
                value = ask()
            except BaseException as raised:  # noqa: BLE001 - raised again where it is awaited
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process is about to end
                loop.call_soon_threadsafe(settle, value, error)

        threading.Thread(target=work, name=self._name, daemon=True).start()
        return answer
