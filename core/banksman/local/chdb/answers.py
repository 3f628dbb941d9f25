"""How an answer goes out: whole with its length, or in chunks with an error in the middle marked as ClickHouse marks it."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from banksman.local.chdb.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import BaseHTTPRequestHandler

    from banksman.local.chdb.compress import Encoder

TEXT = "text/plain; charset=UTF-8"
SLICE = 1 << 20  # the socket's time-out counts for one write
WORTH_COMPRESSING = 1024
FLUSH_SECONDS = 0.1
EXCEPTION_BYTES = 16 << 10

Headers = list[tuple[str, str]]


def whole(
    http: BaseHTTPRequestHandler,
    status: int,
    data: bytes,
    headers: Headers,
    *,
    kind: str = TEXT,
    encoder: Encoder | None = None,
) -> None:
    """An answer that is there at once."""
    if encoder is not None and len(data) >= WORTH_COMPRESSING:
        data = encoder.add(data) + encoder.end()
        headers = [*headers, ("Content-Encoding", encoder.name)]
    _head(http, status, kind, [*headers, ("Content-Length", str(len(data)))])
    if http.command != "HEAD":
        _write(http, data)
    http.wfile.flush()


def may_stream(http: BaseHTTPRequestHandler) -> bool:
    """Whether the client takes chunks, and a body at all."""
    return http.request_version == "HTTP/1.1" and http.command != "HEAD"


def stream(
    http: BaseHTTPRequestHandler,
    first: bytes,
    pieces: Iterator[bytes],
    headers: Headers,
    *,
    kind: str,
    encoder: Encoder | None,
    version: str,
) -> None:
    """Chunks. An error in the middle stands at the end of the body, between marks with a tag that the head announced; then
    the connection closes without the last chunk, so that a client which knows no marks sees a broken answer, not a short one.
    """
    tag = secrets.token_hex(8)
    headers = [*headers, ("X-ClickHouse-Exception-Tag", tag), ("Transfer-Encoding", "chunked")]
    if encoder is not None:
        headers.append(("Content-Encoding", encoder.name))
    _head(http, 200, kind, headers)

    def put(data: bytes) -> None:
        if data:
            http.wfile.write(b"%x\r\n" % len(data))
            _write(http, data)
            http.wfile.write(b"\r\n")

    flushed = time.monotonic()
    try:
        put(encoder.add(first) if encoder else first)
        for piece in pieces:
            put(encoder.add(piece) if encoder else piece)
            if time.monotonic() - flushed > FLUSH_SECONDS:  # a slow query's rows are seen as they come
                put(encoder.flush() if encoder else b"")
                http.wfile.flush()
                flushed = time.monotonic()
    except Fault as fault:
        mark = b"\r\n__exception__\r\n"
        line = (fault.message(version) + "\n").encode("utf-8", "replace")[: EXCEPTION_BYTES - 128]
        end = mark + tag.encode() + b"\r\n" + line + b"%d " % len(line) + tag.encode() + mark
        put(encoder.add(end) + encoder.end() if encoder else end)
        http.close_connection = True
    else:
        put(encoder.end() if encoder else b"")
        http.wfile.write(b"0\r\n\r\n")
    http.wfile.flush()


def _head(http: BaseHTTPRequestHandler, status: int, kind: str, headers: Headers) -> None:
    http.send_response(status)
    http.send_header("Content-Type", kind)
    for name, value in headers:
        http.send_header(name, value)
    if http.close_connection:
        http.send_header("Connection", "close")
    http.end_headers()


def _write(http: BaseHTTPRequestHandler, data: bytes) -> None:
    if len(data) <= SLICE:
        http.wfile.write(data)
        return
    view = memoryview(data)
    for at in range(0, len(view), SLICE):
        http.wfile.write(view[at : at + SLICE])
