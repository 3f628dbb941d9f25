"""One connection of an HTTP client: uvicorn's, with bounds of ours, and a short way for small requests.

    bytes ┬ a head that was seen before, and its whole body: data_received -> direct(connection) ... connection.answer(...)
          └ anything else: httptools -> an ASGI cycle and its task (uvicorn) -> the `Guard` -> the application

The short way is `banksman.http_shortcuts`.
"""

from __future__ import annotations

import logging
import resource
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from banksman.http_guard import Guard
from banksman.http_problem import Problem, problem

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from banksman.http_shortcuts import Direct

MAX_HEAD_BYTES = 64 * 1024
READ_WITHIN_S = 60  # a request, head and body: connections and memory are not for those who dawdle
KEPT_FILES = 256  # file descriptors that connections may not have: a process without them loses Kafka and its policies
_log = logging.getLogger("banksman")


def most_connections() -> int:
    """How many connections a listener holds at once; one more is cut at once. The rest of the process needs files, too."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if files == resource.RLIM_INFINITY else max(files - KEPT_FILES, files // 2)


class Connection(HttpToolsProtocol):
    """uvicorn's, with bounds on the head and the trailer of a request and on the time that a request takes to come, our
    own form of a 400, and its flow control in the scope. What stands in a trailer never counts as a header.

    `scope["flow"]`: a last check before an answer must not be followed by a wait for a slow reader, so who makes one
    waits for the flow first.
    """

    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # None before the first request
    _in_head = False
    _head_bytes = 0
    _idle_bytes = 0
    _fed = 0
    _owed = 0
    _continued = False
    _slow: asyncio.TimerHandle | None = None

    body = b""
    fields: Mapping[bytes, bytes]
    _chunk = b""
    """What was just received, if a request begins with it."""
    _between = True
    """The parser waits for the first byte of a request."""
    _answering = False
    """A `Direct` has taken a request. What comes meanwhile waits in `_behind`."""
    _behind = b""
    _leaving = False
    _answered = 0.0
    _common: tuple[object, bytes] = (None, b"")
    """uvicorn's headers of every answer, which change once a second, and their bytes: of all connections."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        assert isinstance(self.app, Guard), "nothing of uvicorn's stands between a connection and its guard"
        self._shortcuts = self.app.shortcuts

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            transport.abort()
            return
        self._keep_alive()  # who connects and says nothing is let go like who has nothing more to say

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        if self._slow is not None:
            self._slow.cancel()
        self._behind = b""

    def shutdown(self) -> None:
        if self._answering:
            self._leaving = True
        else:
            super().shutdown()

    # ── what the parser finds ──

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["flow"] = self.flow  # type: ignore[typeddict-unknown-key]
        self._in_head, self._head_bytes, self._idle_bytes = True, 0, 0
        self._between = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)
        # What stands in a trailer is thrown away: nobody in front of us has looked at it as at a head.

    def on_chunk_header(self) -> None:
        self._idle_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._continued or self._fed > MAX_HEAD_BYTES:  # it may be large: else there is no need to count
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._too_large()
                raise ValueError  # for the parser: nothing more is read
        chunk, self._chunk = self._chunk, b""
        if chunk:
            self._shortcuts.remember(chunk, self.headers)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._idle_bytes = 0
        self._between = True
        if self.parser.should_upgrade() and not self._owed and self._not_upgraded():
            return
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None
        super().on_message_complete()

    def _not_upgraded(self) -> bool:
        """A request that offers another protocol is answered in this one. The parser takes its body for the other
        protocol's first bytes: so they are handed over here. True when some are still to come.
        """
        fields = dict(self.headers)
        if b"transfer-encoding" in fields:
            self._refuse(problem(400, "an offer to upgrade, and a body of unknown length"))
            return True
        self._owed = int(fields.get(b"content-length") or 0)
        return self._owed > 0

    def _hand_over(self, data: bytes) -> bytes:
        body, rest = data[: self._owed], data[self._owed :]
        self.on_body(body)
        self._owed -= len(body)
        if not self._owed:
            self._owed = -1  # whole: `on_message_complete` is told so
            self.on_message_complete()
            self._owed = 0
        return rest

    # ── what comes, and what goes ──

    def data_received(self, data: bytes) -> None:
        if self._answering or self._behind:
            self._behind += data
            self.flow.pause_reading()
            return
        self._chunk = b""
        if self._between and not self._owed and (self.cycle is None or self.cycle.response_complete):
            found = self._shortcuts.find(data)
            if found is not None and self._directly(*found):
                return
            self._chunk = data
        self._continued, self._fed = self._in_head, len(data)
        self._unset_keepalive_if_required()
        while data:
            if self._owed:
                data = self._hand_over(data)
                continue
            before = self._idle_bytes = self._idle_bytes + 1
            try:
                self.parser.feed_data(data)
                if self._idle_bytes == before:  # no callback set it to 0: all of it is a chunk's head, or a trailer
                    self._idle_bytes += len(data)
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
                continue
            break
        if self.transport.is_closing():
            return
        if self._in_head and self._continued:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._too_large()
                return
        elif self._idle_bytes > MAX_HEAD_BYTES and not self._in_head:
            self._too_large("trailer")
            return
        cycle = self.cycle
        if (
            self._in_head or (cycle is not None and cycle.more_body and not cycle.response_complete)
        ) and not self._slow:
            self._slow = self.loop.call_later(READ_WITHIN_S, self._too_slow)
        if cycle is None or cycle.response_complete:
            self._keep_alive()  # what came belongs to no open request: it must not switch the timer off

    def _directly(self, direct: Direct, fields: Mapping[bytes, bytes], body: bytes) -> bool:
        """Offer a request to a `Direct` -> whether it took it."""
        self.fields, self.body = fields, body
        self._answering = True
        try:
            taken = direct(self)
        except Exception:  # noqa: BLE001 - the edge, as in the `Guard`
            _log.exception("a request failed")
            told = problem(500, "an error of ours; it is in the log")
            self.answer(told.status, told.head(), told.body())
            return True
        if not taken:
            self._answering = False
        return taken

    def answer(self, status: int, head: bytes, body: bytes) -> None:
        """As `Exchange` says. There is one answer to a request: a second one changes nothing."""
        if not self._answering:
            return
        self._answering = False
        if self.transport.is_closing():
            return
        given = self.server_state.default_headers
        if Connection._common[0] is not given:
            Connection._common = given, b"".join([b"%b: %b\r\n" % pair for pair in given])
        self.transport.write(
            b"%b%b%bcontent-length: %d\r\n\r\n%b" % (STATUS_LINE[status], Connection._common[1], head, len(body), body)
        )
        self.server_state.total_requests += 1
        if self._leaving:
            self.transport.close()
            return
        self._answered = self.loop.time()
        self._keep_alive()
        if self._behind:  # not in this step: who answers is in the middle of answering others
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Read what came while an answer was on its way."""
        behind, self._behind = self._behind, b""
        if behind and not self.transport.is_closing():
            self.flow.resume_reading()
            self.data_received(behind)

    def _keep_alive(self) -> None:
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def timeout_keep_alive_handler(self) -> None:
        """Let go who was silent for so long. An answer by the short way leaves the timer as it is, so that it comes early."""
        self.timeout_keep_alive_task = None
        left = self.timeout_keep_alive - (self.loop.time() - self._answered)
        if self._answering or left > 0:
            wait = self.timeout_keep_alive if self._answering else left
            self.timeout_keep_alive_task = self.loop.call_later(wait, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _too_slow(self) -> None:
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self._refuse(problem(408, f"the request did not come within {READ_WITHIN_S} s"))
        else:
            self.transport.close()

    def _too_large(self, part: str = "head") -> None:
        self._refuse(problem(431, f"the {part} of the request is larger than {MAX_HEAD_BYTES} bytes"))

    def send_400_response(self, msg: str) -> None:
        self._refuse(problem(400, msg.rstrip(".")))

    def _refuse(self, told: Problem) -> None:
        if self.transport.is_closing():
            return
        body = told.body()
        status = f"HTTP/1.1 {told.status} {HTTPStatus(told.status).phrase}\r\n".encode()
        head = told.head()
        self.transport.write(b"%b%bcontent-length: %d\r\nconnection: close\r\n\r\n%b" % (status, head, len(body), body))
        self.transport.close()
