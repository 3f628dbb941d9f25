"""`GET /v1/watch`: what is stored from now on, as server-sent events. One poller for everybody who watches.

Where a stream stands is the highest offset of every partition; that is also the events' `id`, so a reader that comes back goes
on behind what it had, also after a restart. Within a partition rows become visible in offset order, so nothing is passed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse

from banksman.console.parameters import given
from banksman.console.steps import COLUMNS, step
from banksman.http_problem import Problem, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.console.asking import Asking, Rows
    from banksman.console.known import Known

POLL_S = 0.2
QUIET_S = 10.0
BATCH = 2000
BEHIND = 10_000
MOST = 200
BIG = 16 << 10
Place = dict[tuple[str, int], int]
"""(topic, partition) -> the highest offset that was told."""

_LETTERS = {"actions": "a", "decisions": "d"}
_TOPICS = {letter: topic for topic, letter in _LETTERS.items()}
_PART = re.compile(r"([ad])([0-9]{1,5})=([0-9]{1,18})").fullmatch

START_SQL = """
SELECT topic, partition, max(offset) AS highest FROM @events WHERE topic IN ('actions', 'decisions') GROUP BY topic, partition
"""
NEW_SQL = f"""
SELECT {COLUMNS} FROM @events
WHERE received >= fromUnixTimestamp64Milli({{since:Int64}}) AND topic IN ('actions', 'decisions') AND ({{places}})
ORDER BY received, topic, partition, offset
LIMIT {BATCH}
"""


class Reader:
    """One stream: what it wants, and what waits for it."""

    def __init__(self, wants: dict[str, str]) -> None:
        self.wants = wants
        self.queue: asyncio.Queue[tuple[str, Rows | str]] = asyncio.Queue()
        self.waiting = 0
        self.lost = False

    def put(self, what: str, given: Rows | str) -> None:
        """Hand on a batch, or a word about a problem."""
        if what == "rows":
            self.waiting += len(given)
            self.lost |= self.waiting > BEHIND
        self.queue.put_nowait((what, given))


class Tail:
    """The poller. It asks only while somebody watches."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self.readers: set[Reader] = set()
        self.place: Place | None = None
        self._since_ms = 0
        self._wake = asyncio.Event()
        self._ended = False

    async def run(self) -> None:
        """Never returns."""
        told = ""
        while True:
            if not self.readers:
                self.place = None
                self._wake.clear()
                await self._wake.wait()
            try:
                if self.place is None:
                    await self.start()
                    continue
                rows = await self.after(self.place, self._since_ms)
                told = ""
            except Problem as away:
                if told != away.detail:
                    told = away.detail
                    for reader in self.readers:
                        reader.put("problem", away.detail)
                await asyncio.sleep(1)
                continue
            if rows:
                move(self.place, rows)
                # A partition may be stored later than another: what was received up to a minute ago can still come.
                self._since_ms = max(self._since_ms, rows[-1]["received_ms"] - 60_000)
                for reader in self.readers:
                    reader.put("rows", rows)
            if len(rows) < BATCH:
                await asyncio.sleep(POLL_S)

    async def start(self) -> Place:
        """Where the log is now, found once for all who watch."""
        if self.place is None:
            rows = await self._asking.rows(START_SQL)
            if self.place is None:
                self._since_ms = 0
                self.place = {(row["topic"], row["partition"]): row["highest"] for row in rows}
        return self.place

    async def after(self, place: Place, since_ms: int) -> Rows:
        """The next rows behind a place, at most `BATCH`."""
        known = [
            f"(topic = '{topic}' AND partition = {number} AND offset > {offset})"
            for (topic, number), offset in place.items()
        ]
        known += [
            f"(topic = '{topic}' AND partition NOT IN ({', '.join(str(n) for t, n in place if t == topic) or '65535'}))"
            for topic in _LETTERS
        ]
        found = await self._asking.rows(NEW_SQL.replace("{places}", " OR ".join(known)), since=since_ms)
        seen: set[tuple[str, int, int]] = set()
        return [row for row in found if not (_where(row) in seen or seen.add(_where(row)))]  # type: ignore[func-returns-value]

    def wake(self) -> None:
        """Somebody watches."""
        self._wake.set()

    def end(self) -> None:
        """The process stops: streams end by themselves."""
        self._ended = True
        for reader in self.readers:
            reader.put("end", "")

    @property
    def ended(self) -> bool:
        """Whether the process stops."""
        return self._ended


class Watch:
    """The endpoint."""

    def __init__(self, knows: Known, asking: Asking, tail: Tail) -> None:
        self._known, self._asking, self._tail = knows, asking, tail

    async def endpoint(self, request: Request) -> Response:
        """The endpoint."""
        fields = request.scope["fields"]
        self._known.operator(fields)
        wants = given(request, "agent", "project", "session", "replay", "last_event_id")
        last = fields.get(b"last-event-id", b"").decode("latin-1") or wants.pop("last_event_id", "")
        wants.pop("last_event_id", None)
        from_ = read(last) if last else None
        if len(self._tail.readers) >= MOST:
            raise problem(503, f"{MOST} streams are open already", retry_after=30)
        if from_ is None:
            await self._tail.start()  # 503 now rather than a stream that has nothing to say
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._stream(wants, from_), 200, headers, "text/event-stream")

    async def _stream(self, wants: dict[str, str], from_: tuple[int, Place] | None) -> AsyncIterator[bytes]:
        tail, reader = self._tail, Reader(wants)
        tail.readers.add(reader)
        tail.wake()
        try:
            yield b"retry: 1000\n: watching\n\n"
            if from_ is None:
                place = dict(await tail.start())
            else:
                place = from_[1]
                async for text in self._catch_up(reader, place, from_[0]):
                    yield text
            while not (reader.lost or tail.ended):
                try:
                    async with asyncio.timeout(QUIET_S):
                        what, found = await reader.queue.get()
                except TimeoutError:
                    yield b": nothing new\n\n"
                    continue
                if what == "problem":
                    yield _event("problem", {"detail": found}, place, time.time() * 1000)
                elif isinstance(found, list):
                    reader.waiting -= len(found)
                    yield b"".join(self._told(wants, place, found))
        except Problem as away:
            yield _event("problem", {"detail": away.detail}, {}, 0)
        finally:
            tail.readers.discard(reader)

    async def _catch_up(self, reader: Reader, place: Place, since_ms: int) -> AsyncIterator[bytes]:
        """What was stored behind `place` until now; what the poller brings meanwhile waits, and is not told twice."""
        while True:
            try:
                rows = await self._tail.after(place, since_ms)
            except Problem as away:
                yield _event("problem", {"detail": away.detail}, place, since_ms)
                await asyncio.sleep(1)
                continue
            if rows:
                yield b"".join(self._told(reader.wants, place, rows))
            if len(rows) < BATCH:
                return

    def _told(self, wants: dict[str, str], place: Place, rows: Rows) -> list[bytes]:
        texts = []
        for row in rows:
            where, offset = (row["topic"], row["partition"]), row["offset"]
            if offset <= place.get(where, -1):
                continue
            place[where] = offset
            if _fits(wants, row):
                texts.append(_event("action", _record(row), place, row["received_ms"]))
        return texts


def _where(row: Mapping[str, Any]) -> tuple[str, int, int]:
    return row["topic"], row["partition"], row["offset"]


def move(place: Place, rows: Rows) -> None:
    """Note that these rows were told."""
    for row in rows:
        key = (row["topic"], row["partition"])
        place[key] = max(place.get(key, -1), row["offset"])


def write(place: Place, received_ms: float) -> str:
    """An event's id: `MS;a0=117,d0=52`."""
    parts = ",".join(f"{_LETTERS[topic]}{number}={offset}" for (topic, number), offset in sorted(place.items()))
    return f"{int(received_ms)};{parts}"


def read(text: str) -> tuple[int, Place]:
    """An event's id -> (received from which on, the place). Problem 422: not one of ours."""
    ms, _, rest = text.partition(";")
    parts = [_PART(part) for part in rest.split(",")] if rest else []
    if not (ms.isascii() and ms.isdigit() and len(ms) < 15) or not all(parts):
        raise problem(422, "is not an id that this stream gave", field="Last-Event-ID")
    place = {(_TOPICS[part[1]], int(part[2])): int(part[3]) for part in parts if part}
    return max(
        0, int(ms) - 600_000
    ), place  # partitions are stored apart: ten minutes is more than one lags behind another


def _fits(wants: dict[str, str], row: Mapping[str, Any]) -> bool:
    run = wants.get("replay", "")
    if run != "*" and row["replay"] != run:
        return False
    return all(row[name] == wants[name] for name in ("agent", "project", "session") if name in wants)


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    made = {
        "agent": row["agent"],
        "session": row["session"] or None,
        "project": row["project"] or None,
        "replay": row["replay"] or None,
    }
    made |= step(row)
    for name in ("args", "result", "text"):
        with contextlib.suppress(ValueError):
            if len(json.dumps(made[name], ensure_ascii=False)) > BIG:
                made[name], made["cut"] = None, True
    return made


def _event(name: str, data: dict[str, Any], place: Place, received_ms: float) -> bytes:
    head = f"id: {write(place, received_ms)}\n" if place else ""
    return f"{head}event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", "replace")
