"""Request bodies: read piece by piece, decompressed piece by piece, and never more of them than allowed."""

from __future__ import annotations

import re
import sys
import time
import zlib
from typing import TYPE_CHECKING, Any

from banksman.local.chdb.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from email.message import Message
    from io import BufferedIOBase

PIECE = 1 << 20
PATIENCE = 60.0  # seconds
SLOWEST = 1 << 16  # bytes a second after that
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_TRAILERS = 64


class Body:
    """The body of one request, by Content-Length or in chunks. ValueError: the headers do not say how long it is.

    It has to come within a minute and a second more for each 64 KiB: who sends a byte now and then holds no slot for long.
    """

    def __init__(self, file: BufferedIOBase, headers: Message, limit: int) -> None:
        self._file, self._limit = file, limit
        coding = headers.get("Transfer-Encoding")
        length = headers.get("Content-Length")
        if coding is not None and (coding.strip().lower() != "chunked" or length is not None):
            raise ValueError(f"Transfer-Encoding: {coding} is not served")
        if length is not None and not (length.isascii() and length.isdigit()):
            raise ValueError(f"Content-Length: {length} is no length")
        self._chunked = coding is not None
        self._left = int(length or 0)
        self._done = not self._chunked and self._left == 0
        self._read = 0
        self._until = time.monotonic() + PATIENCE

    def __iter__(self) -> Iterator[bytes]:
        """Pieces of at most 1 MiB. Fault 307 beyond the limit, 209 when they come too slowly; OSError: the client is gone."""
        while not self._done:
            if self._chunked and self._left == 0:
                self._next_chunk()
            else:
                yield self._part()

    def drain(self, limit: int, seconds: float) -> bool:
        """Read what is left, so that the connection can go on; False when that is too much, or does not come."""
        self._limit = self._read + limit
        self._until = time.monotonic() + seconds
        try:
            for _ in self:
                pass
        except (Fault, OSError, ValueError):
            return False
        return True

    def _part(self) -> bytes:
        if self._read + self._left > self._limit:
            raise Fault(307, f"The request's body is larger than {self._limit} bytes. (TOO_MANY_BYTES)")
        piece = bytearray()
        size = min(self._left, PIECE)
        while len(piece) < size:
            if time.monotonic() > self._until:
                raise Fault(209, "The request's body comes too slowly. (SOCKET_TIMEOUT)", status=408)
            got = self._file.read1(size - len(piece))
            if not got:
                raise ConnectionResetError
            piece += got
            self._until += len(got) / SLOWEST
        self._left -= size
        self._read += size
        if self._left == 0:
            if not self._chunked:
                self._done = True
            elif self._file.readline(3) != b"\r\n":
                raise ValueError("a chunk that is longer than it says")
        return bytes(piece)

    def _next_chunk(self) -> None:
        line = self._file.readline(1024)
        if not line:
            raise ConnectionResetError
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            raise ValueError("a chunk without its size")
        self._left = int(size[1], 16)
        if self._left == 0:
            self._done = True
            for _ in range(_TRAILERS):
                if not self._file.readline(8192).strip():
                    return
            raise ValueError("too many trailers")


def decoded(pieces: Iterator[bytes], encoding: str, limit: int) -> Iterator[bytes]:
    """The pieces decompressed. The decompressed size counts: Fault 307 as soon as it is over the limit, so that a small
    body that would unpack to a huge one is never unpacked. Fault 89: a Content-Encoding that is not known here. Fault 271:
    what came is not compressed in that way, or ends in the middle.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        yield from pieces
        return
    total = 0
    for piece in _unpacked(pieces, encoding):
        total += len(piece)
        if total > limit:
            raise Fault(307, f"The request's body unpacks to more than {limit} bytes. (TOO_MANY_BYTES)")
        if piece:
            yield piece


def _unpacked(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Frames may follow each other, as in `cat a.gz b.gz`."""
    make, broken = _decoder(encoding)
    decoder = None
    try:
        for piece in pieces:
            data = piece
            while data or (decoder is not None and not decoder.needs_input):
                if decoder is None:
                    decoder = make()
                yield decoder.decompress(data, PIECE)
                data = b""
                if decoder.eof:
                    data, decoder = decoder.unused_data, None
    except broken as error:
        raise Fault(271, f"The body is not {encoding}: {error}. (CANNOT_DECOMPRESS)") from None
    if decoder is not None:
        raise Fault(271, f"The body's {encoding} ends in the middle. (CANNOT_DECOMPRESS)")


def _decoder(encoding: str) -> tuple[Callable[[], Any], type[Exception]]:
    if encoding in ("gzip", "deflate"):
        return lambda: _Zlib(31 if encoding == "gzip" else 15), zlib.error
    if encoding == "lz4":
        import lz4.frame

        return lz4.frame.LZ4FrameDecompressor, RuntimeError
    if encoding == "zstd":
        zstd = zstandard()
        return zstd.ZstdDecompressor, zstd.ZstdError
    raise Fault(89, f"Unknown compression method '{encoding}'. (UNKNOWN_COMPRESSION_METHOD)")


def zstandard() -> Any:
    """The zstd module: of the standard library from Python 3.14 on, its backport before."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


class _Zlib:
    """zlib's decompressor with the manners of the others: input that was not taken is kept inside."""

    def __init__(self, bits: int) -> None:
        self._inner = zlib.decompressobj(bits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self.needs_input = not self._inner.unconsumed_tail and len(out) < max_length  # else there may be more inside
        return out
