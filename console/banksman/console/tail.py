"""The end of the audit log, for everybody who watches: one poller, and what it found handed on to each stream.

Where a stream stands is the highest offset of every partition that it has told: within a partition rows become visible in the
order of their offsets, so nothing is passed over and nothing comes twice. That is also the events' `id` on the wire.

A question is bounded by `received`, or it would read the whole table. The bound is a minute behind the newest row, and further
back for as long as the archiver has not caught up with some partition: what it brings then was received long ago.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from banksman.console.steps import COLUMNS, encoded, step
from banksman.http_problem import Problem, problem
from banksman.progress import ARCHIVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from banksman.console.asking import Asking, Rows
    from banksman.console.known import Known

POLL_S = 0.2
AWAY_S = 1.0
EACH = 500
"""Rows of one partition in one question."""
BEHIND, BEHIND_BYTES = 10_000, 16 << 20
BIG = 16 << 10
WINDOW_MS = 60_000
DAY_MS = 86_400_000
Place = dict[tuple[str, int], int]
"""(topic, partition) -> the highest offset that was told."""

_LETTERS = {"actions": "a", "decisions": "d"}
_TOPICS = {letter: topic for topic, letter in _LETTERS.items()}
_PART = re.compile(r"([ad])(0|[1-9][0-9]{0,4})=(0|[1-9][0-9]{0,17})").fullmatch
_TAIL = "topic IN ('actions', 'decisions')"

START_SQL = f"""
SELECT topic, partition, max(offset) AS highest, toUnixTimestamp64Milli(max(received)) AS newest_ms FROM @events
WHERE {_TAIL} AND received >= (SELECT max(received) FROM @events) - INTERVAL 1 DAY GROUP BY topic, partition
"""
AFTER_SQL = f"""
SELECT {COLUMNS}, if(length(raw) > {4 * BIG}, '', raw) AS raw_, length(raw) AS size FROM @events
WHERE {_TAIL} AND received >= fromUnixTimestamp64Milli({{since:Int64}}) AND @PLACES AND @WANTS
ORDER BY topic, partition, offset
LIMIT {EACH} BY topic, partition
"""


@dataclass(frozen=True)
class Told:
    """One row, ready to be sent; made once for all who want it."""

    where: tuple[str, int]
    offset: int
    received_ms: int
    whose: Mapping[str, str]
    data: bytes


class Reader:
    """One stream: what it wants, how far it is, and what waits for it."""

    def __init__(self, wants: dict[str, str], here: Place, from_: Place | None = None) -> None:
        """`here`: where the poller is; `from_`: where the stream goes on, when that is not here."""
        self.wants, self.here = wants, here
        self.place = dict(here if from_ is None else from_)
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.ended = False
        """The process stops, or the stream is read too slowly and more than may wait for it."""
        self._held: list[tuple[Sequence[Told], int]] | None = None if from_ is None else []
        self._waiting = self._bytes = 0

    @property
    def late(self) -> bool:
        """Whether it has still to be told what lies before `here`. What the poller brings meanwhile is held."""
        return self._held is not None

    def caught_up(self) -> None:
        """It has been: what was held follows."""
        held, self._held = self._held or [], None
        self.place |= {where: max(at, self.place.get(where, -1)) for where, at in self.here.items()}
        self._waiting = 0
        for batch, since_ms in held:
            self.put(batch, since_ms)

    def put(self, batch: Sequence[Told], since_ms: int) -> None:
        """Take what of a batch is wanted and was not told yet."""
        if self._held is not None:
            self._held.append((batch, since_ms))
            self._waiting += len(batch)
        else:
            texts = self.texts(batch, since_ms)
            self._waiting += len(texts)
            if texts:
                self.say(b"".join(texts))
        if self._waiting > BEHIND or self._bytes > BEHIND_BYTES:
            self.end()

    def say(self, text: bytes) -> None:
        """Hand on what is ready."""
        self._bytes += len(text)
        self.queue.put_nowait(text)

    def texts(self, batch: Iterable[Told], since_ms: int) -> list[bytes]:
        """The same, as events at once."""
        made = []
        for told in batch:
            if told.offset <= self.place.get(told.where, -1):
                continue
            self.place[told.where] = told.offset
            if _fits(self.wants, told.whose):
                made.append(event("action", told.data, write(since_ms, self.place)))
        return made

    def end(self) -> None:
        """No more: wakes whoever waits."""
        self.ended = True
        self.queue.put_nowait(b"")

    async def get(self) -> bytes:
        """What came next; b"" when there will be no more."""
        text = b"" if self.ended else await self.queue.get()
        if self.ended:
            return b""
        self._waiting -= text.count(b"\nevent: ")
        self._bytes -= len(text)
        return text


class Tail:
    """The poller. It asks only while somebody watches."""

    def __init__(self, asking: Asking, known: Known) -> None:
        self._asking, self._known = asking, known
        self.readers: set[Reader] = set()
        self._place: Place | None = None
        self._newest_ms = 0
        self._last_ms: dict[tuple[str, int], int] = {}
        self._late: dict[tuple[str, int], int] = {}
        self._starting = asyncio.Lock()
        self._wake = asyncio.Event()

    @property
    def since_ms(self) -> int:
        """What the next question brings was received after this."""
        return max(0, min((self._newest_ms - WINDOW_MS, *self._late.values())))

    async def run(self) -> None:
        """Never returns."""
        told = ""
        while True:
            if not self.readers:
                self._place = None
                self._wake.clear()
                await self._wake.wait()
            try:
                more = await self._poll(await self.started())
            except Problem as away:
                if told != away.detail:
                    told = away.detail
                    for reader in self.readers:
                        reader.say(event("problem", encoded({"detail": told}), ""))
                await asyncio.sleep(AWAY_S)
            else:
                told = ""
                if not more:
                    await asyncio.sleep(POLL_S)

    async def reader(self, wants: dict[str, str], from_: Place | None) -> Reader:
        """A stream that begins here and now, or goes on behind `from_`. Problem 503. `leave` when it is over."""
        while True:
            place = await self.started()
            # The poller may be a moment behind: what is stored already is not "from now on".
            stored = await self._asking.rows(START_SQL) if from_ is None else []
            if place is self._place:  # nobody has let go of it meanwhile
                here = dict(place)
                for row in stored:
                    where = (row["topic"], row["partition"])
                    here[where] = max(row["highest"], here.get(where, -1))
                made = Reader(wants, here, from_)
                self.readers.add(made)
                self._wake.set()
                return made

    def leave(self, reader: Reader) -> None:
        """A stream is over."""
        self.readers.discard(reader)

    def end(self) -> None:
        """The process stops: streams end by themselves."""
        for reader in self.readers:
            reader.end()

    async def missed(self, reader: Reader, since_ms: int) -> list[bytes]:
        """The next page of what a late reader has to be told; it is not late any more when that was all."""
        wants = {name: word for name, word in reader.wants.items() if name in ("agent", "session")}
        rows = await self._after(reader.place, since_ms, wants)
        batch = await self._asking.work(partial(prepared, rows))
        before = [told for told in batch if told.offset <= reader.here.get(told.where, -1)]
        texts = reader.texts(before, since_ms)
        if len(rows) < EACH or not before:
            reader.caught_up()
        return texts

    async def started(self) -> Place:
        """Where the log is, found once for all who watch. Problem 503."""
        async with self._starting:
            if self._place is None:
                rows = await self._asking.rows(START_SQL)
                self._last_ms = {(row["topic"], row["partition"]): row["newest_ms"] for row in rows}
                self._newest_ms = max(self._last_ms.values(), default=0)
                self._late = {}
                self._place = {(row["topic"], row["partition"]): row["highest"] for row in rows}
            return self._place

    async def _poll(self, place: Place) -> bool:
        """One question, handed on; True: there is more."""
        behind = self._known.progress.behind(ARCHIVER)
        for where in behind:
            if where[0] in _LETTERS:
                self._late.setdefault(where, self._last_ms.get(where, self._newest_ms - DAY_MS))
        settled = [where for where in self._late if where not in behind]
        since_ms = self.since_ms
        rows = await self._after(place, since_ms, {})
        for where in settled:  # the archiver had caught up before this question, so nothing old can come any more
            self._late.pop(where, None)
        batch = await self._asking.work(partial(prepared, rows)) if rows else []
        for told in batch:
            place[told.where] = max(place.get(told.where, -1), told.offset)
            self._last_ms[told.where] = told.received_ms
            self._newest_ms = max(self._newest_ms, told.received_ms)
        for reader in self.readers:
            reader.put(batch, since_ms)
        return len(rows) >= EACH

    async def _after(self, place: Place, since_ms: int, wants: dict[str, str]) -> Rows:
        """The next rows behind a place, `EACH` of every partition at most."""
        known = [f"(topic = '{t}' AND partition = {number} AND offset > {at})" for (t, number), at in place.items()]
        for topic in _LETTERS:
            numbers = [str(number) for name, number in place if name == topic]
            other = f" AND partition NOT IN ({', '.join(numbers)})" if numbers else ""
            known.append(f"(topic = '{topic}'{other})")
        sql = AFTER_SQL.replace("@PLACES", f"({' OR '.join(known)})")
        conditions = " AND ".join(f"{name} = {{{name}:String}}" for name in wants) or "true"
        return await self._asking.rows(sql.replace("@WANTS", conditions), since=since_ms, **wants)


def prepared(rows: Rows) -> list[Told]:
    """Rows that are in the order of (topic, partition, offset) -> what is told, by `received` as far as that order allows:
    a broker's clock may have been set back within a partition.
    """
    made: list[tuple[int, Told]] = []
    latest, before = 0, None
    for row in rows:
        where, offset = (row["topic"], row["partition"]), row["offset"]
        if before is not None and before == (where, offset):
            continue  # stored twice after two archivers met
        latest = row["received_ms"] if before is None or before[0] != where else max(latest, row["received_ms"])
        before = (where, offset)
        whose = {name: row[name] for name in ("agent", "project", "session", "replay")}
        made.append((latest, Told(where, offset, row["received_ms"], whose, _data(row))))
    made.sort(key=lambda one: (one[0], one[1].where, one[1].offset))
    return [told for _, told in made]


def _data(row: Mapping[str, Any]) -> bytes:
    made = {name: row[name] or None for name in ("agent", "session", "project", "replay")}
    made |= step({**row, "raw": row["raw_"]})
    cut = row["size"] > 4 * BIG
    for name in ("args", "result", "text"):
        if len(encoded(made[name])) > BIG:
            made[name], cut = None, True
    return encoded(made | {"cut": True} if cut else made)


def _fits(wants: dict[str, str], whose: Mapping[str, str]) -> bool:
    run = wants.get("replay", "")
    if run != "*" and whose["replay"] != run:
        return False
    return all(whose[name] == wants[name] for name in ("agent", "project", "session") if name in wants)


def event(name: str, data: bytes, id_: str) -> bytes:
    """One server-sent event."""
    head = f"id: {id_}\nevent: {name}" if id_ else f"event: {name}"
    return b"%b\ndata: %b\n\n" % (head.encode(), data)


def write(since_ms: int, place: Place) -> str:
    """An event's id: `MS;a0=117,d0=52`: everything up to there was told, and nothing else was received before MS."""
    parts = ",".join(f"{_LETTERS[topic]}{number}={offset}" for (topic, number), offset in sorted(place.items()))
    return f"{since_ms};{parts}"


def read(text: str) -> tuple[int, Place]:
    """An event's id -> (received from which on, the place). Problem 422: not one of ours."""
    ms, _, rest = text.partition(";")
    parts = [_PART(part) for part in rest.split(",")] if rest else []
    if not (ms.isascii() and ms.isdigit() and len(ms) < 15) or not all(parts):
        raise problem(422, "is not an id that this stream gave", field="Last-Event-ID")
    return int(ms), {(_TOPICS[part[1]], int(part[2])): int(part[3]) for part in parts if part}
