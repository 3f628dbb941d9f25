"""The short way of a small request to its answer, around the parser and around ASGI.

The short way is for the one call that an agent makes before each of its actions. Parsing the same head again, a task, a
scope and the messages of ASGI cost more than everything that has to be decided. So the head of a request that went the
long way and was nothing but usual is remembered, byte for byte but for the digits of its Content-Length; the next request
that begins with it is known without a parser, and whoever is at home at its address (a `Direct`) may answer it by a
callback. A `Direct` that does not want it says so before anything was done, and it goes the long way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

MAX_DIRECT_BYTES = 16 * 1024
MAX_KNOWN_HEAD = 2048
MOST_KNOWN_HEADS = 4096
_UNUSUAL = frozenset((b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"))
_LENGTH = b"\r\ncontent-length: "


class Flow(Protocol):
    """Whether the client takes what is written to it."""

    @property
    def write_paused(self) -> bool:
        """It does not at the moment."""

    async def drain(self) -> None:
        """Return when it does again."""


class Exchange(Protocol):
    """A small request that came whole, and the way to its answer."""

    @property
    def fields(self) -> Mapping[bytes, bytes]:
        """Its headers: lower-case names -> raw values."""

    @property
    def body(self) -> bytes: ...

    @property
    def flow(self) -> Flow: ...

    def answer(self, status: int, head: bytes, body: bytes) -> None:
        """Write the answer, in this step of the loop. Nothing happens when the client is gone.

        `head`: lines of headers, all but the content-length.
        """


Direct = Callable[[Exchange], bool]
"""Takes a request, and answers it now or later; False: it is one for the ASGI application. Raises nothing but bugs."""


class Shortcuts:
    """Who answers at which address without an ASGI application, and the heads that are known to lead there.

    `usual(fields, count)`: whether a request with these headers needs no check.
    """

    def __init__(self, direct: Mapping[bytes, Direct], usual: Callable[[dict[bytes, bytes], int], bool]) -> None:
        self._usual = usual
        self._direct = {b"POST " + path + b" HTTP/1.1": answers for path, answers in direct.items()}
        self._known: dict[bytes, tuple[Direct, Mapping[bytes, bytes]]] = {}

    def find(self, data: bytes) -> tuple[Direct, Mapping[bytes, bytes], bytes] | None:
        """(who answers, the headers, the body) when `data` is a known head and the whole of its body, and no more."""
        end = data.find(b"\r\n\r\n") + 4
        head = data[:end]
        at = head.lower().find(_LENGTH)
        if at < 0:
            return None
        at += len(_LENGTH)
        digits = head[at : head.find(b"\r", at)]
        known = self._known.get(head[:at] + head[at + len(digits) :])
        if known is None or not digits.isdigit() or len(digits) > 5 or end + int(digits) != len(data):
            return None
        return (*known, data[end:])

    def remember(self, data: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """`headers` are what the parser found in the request that `data` begins with: if they are nothing but usual, know
        this head from now on.
        """
        direct = self._direct.get(data[: data.find(b"\r\n")])
        end = data.find(b"\r\n\r\n") + 4
        head = data[:end]
        fields = dict(headers)
        lines = len(headers) + 2
        if (
            direct is None
            or not 4 <= end <= MAX_KNOWN_HEAD
            # a line for each header that was found: so parser and eye see the same end of the head
            or not lines == head.count(b"\r\n") == head.count(b"\r") == head.count(b"\n")
            or not self._usual(fields, len(headers))
            or not _UNUSUAL.isdisjoint(fields)
            or fields.get(b"connection", b"keep-alive").lower() != b"keep-alive"
        ):
            return
        at = head.lower().find(_LENGTH)
        digits = fields.pop(b"content-length", b"")
        if at < 0 or not digits.isdigit() or int(digits) > MAX_DIRECT_BYTES:
            return
        at += len(_LENGTH)
        if head[at : at + len(digits) + 1] != digits + b"\r":
            return
        if len(self._known) >= MOST_KNOWN_HEADS:  # who makes up heads only makes requests slower
            self._known.clear()
        self._known[head[:at] + head[at + len(digits) :]] = direct, fields
