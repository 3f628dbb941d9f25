"""Reading a request's body: bounded, also after decompression, and only of a type that was asked for."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

from banksman.http_problem import ClientGone, problem

if TYPE_CHECKING:
    from banksman.http_problem import Receive, Scope


MOST_MEMBERS = 64
"""A gzip body may be several members in a row, but each costs what it costs to begin one."""


async def read_body(scope: Scope, receive: Receive, *, limit: int) -> bytes:
    """The whole body, at most `limit` bytes after decompression (gzip or deflate).

    Raises Problem 413 beyond the limit (a compressed bomb is never unfolded further than that), 415 for another
    encoding, 400 for data that is not what its encoding says; ClientGone when the client hung up, or was let go because
    the body did not come in time (`listener`).
    """
    fields = scope["fields"]
    encoding = fields.get(b"content-encoding")
    if encoding is not None and (encoding := encoding.strip().lower()) not in (b"gzip", b"deflate", b"identity"):
        raise problem(415, "Content-Encoding must be gzip or deflate, or absent")
    if int(fields.get(b"content-length") or 0) > limit:  # the parser has seen to it that it is a number
        raise problem(413, f"the body is larger than {limit} bytes")
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    if not message.get("more_body") and encoding is None:
        scope["read"] = True
        body: bytes = message["body"]
        if len(body) > limit:
            raise problem(413, f"the body is larger than {limit} bytes")
        return body
    unfold = _Unfold(limit, compressed=encoding in (b"gzip", b"deflate"))
    while True:
        scope["read"] = not message.get("more_body")
        unfold.feed(message.get("body", b""))
        if scope["read"]:
            return unfold.end()
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone


class _Unfold:
    """Collects a body chunk by chunk, decompressing, and stops at the limit."""

    def __init__(self, limit: int, *, compressed: bool) -> None:
        self._limit, self._size = limit, 0
        self._parts: list[bytes] = []
        self._stream = _decompressor() if compressed else None
        self._raw = self._members = 0

    def feed(self, chunk: bytes) -> None:
        self._raw += len(chunk)
        if self._raw > self._limit:
            raise problem(413, f"the body is larger than {self._limit} bytes")
        while chunk:
            if self._stream is None:
                out, chunk = chunk, b""
            else:
                try:
                    out = self._stream.decompress(chunk, self._limit - self._size + 1)
                except zlib.error:
                    raise problem(400, "the body is not what its Content-Encoding says") from None
                chunk = self._stream.unconsumed_tail or self._stream.unused_data
                if self._stream.eof and chunk:
                    self._members += 1
                    if self._members >= MOST_MEMBERS:
                        raise problem(400, f"the body is more than {MOST_MEMBERS} gzip members")
                    self._stream = _decompressor()
            self._size += len(out)
            if self._size > self._limit:
                raise problem(413, f"the body is larger than {self._limit} bytes when it is unpacked")
            self._parts.append(out)

    def end(self) -> bytes:
        if self._stream is not None and not self._stream.eof:
            raise problem(400, "the compressed body ends too early")
        return b"".join(self._parts)


def _decompressor() -> zlib._Decompress:
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # the header says whether it is gzip or zlib


def media_type(scope: Scope) -> str:
    """The request's media type in lower case, without parameters; "" when there is none. 415: a charset but UTF-8."""
    value = scope["fields"].get(b"content-type", b"").decode("latin-1").lower()
    kind, _, parameters = value.partition(";")
    charset = re.search(r"charset\s*=\s*\"?([^\s\";]+)", parameters)
    if charset and charset[1] not in ("utf-8", "utf8"):
        raise problem(415, "the charset must be UTF-8")
    return str(kind.strip())


def require_type(scope: Scope, *accepted: str) -> str:
    """The request's media type, which is one of `accepted`; Problem 415 otherwise."""
    kind = media_type(scope)
    if kind not in accepted:
        raise problem(415, f"Content-Type must be {' or '.join(accepted)}", field="Content-Type")
    return kind
