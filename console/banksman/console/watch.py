"""`GET /v1/watch`: what is stored from now on, or from behind what a reader had, as server-sent events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.responses import StreamingResponse

from banksman.console import tail
from banksman.console.parameters import given
from banksman.console.steps import encoded
from banksman.http_problem import Problem, problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

    from banksman.console.known import Known

QUIET_S = 10.0
MOST = 200


class Watch:
    """The endpoint."""

    def __init__(self, knows: Known, from_tail: tail.Tail) -> None:
        self._known, self._tail = knows, from_tail

    async def endpoint(self, request: Request) -> Response:
        """The endpoint."""
        fields = request.scope["fields"]
        self._known.operator(fields)
        wants = given(request, "agent", "project", "session", "replay", "last_event_id")
        asked = wants.pop("last_event_id", "")
        last = fields.get(b"last-event-id", b"").decode("latin-1") or asked
        since_ms, place = tail.read(last) if last else (0, None)
        if len(self._tail.readers) >= MOST:
            raise problem(503, f"{MOST} streams are open already", retry_after=30)
        await self._tail.started()  # 503 now rather than a stream that has nothing to say
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._stream(wants, since_ms, place), 200, headers, "text/event-stream")

    async def _stream(self, wants: dict[str, str], since_ms: int, place: tail.Place | None) -> AsyncIterator[bytes]:
        while (reader := await self._registered(wants, place)) is None:
            yield tail.event("problem", encoded({"detail": "ClickHouse is away"}), "")
            await asyncio.sleep(tail.AWAY_S)
        try:
            # An id at once: a stream that is cut before anything happened goes on from where it began.
            begun = f"id: {tail.write(self._tail.since_ms, reader.place)}\n" if place is None else ""
            yield f"retry: 1000\n{begun}: watching\n\n".encode()
            while reader.late and not reader.ended:
                try:
                    texts = await self._tail.missed(reader, since_ms)
                except Problem as away:
                    yield tail.event("problem", encoded({"detail": away.detail}), "")
                    await asyncio.sleep(tail.AWAY_S)
                    continue
                yield b"".join(texts) or b": nothing of this yet\n\n"
            while True:
                try:
                    async with asyncio.timeout(QUIET_S):
                        text = await reader.get()
                except TimeoutError:
                    text = b": nothing new\n\n"
                if not text:
                    return
                yield text
        finally:
            self._tail.leave(reader)

    async def _registered(self, wants: dict[str, str], place: tail.Place | None) -> tail.Reader | None:
        try:
            return await self._tail.reader(wants, place)
        except Problem:  # it was there when the stream was asked for
            return None
