"""Request bodies: read piece by piece, decompressed piece by piece, and never more of them than allowed."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from banksman.local.chdb.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message
    from io import BufferedIOBase

PIECE = 1 << 20


class Body:
    """The body of one request, by Content-Length or in chunks."""

    def __init__(self, file: BufferedIOBase, headers: Message, limit: int) -> None:
        self._file, self._limit = file, limit
        self._chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        self._left = int(headers.get("Content-Length") or 0) if not self._chunked else 0
        self._done = not self._chunked and self._left <= 0
        self._read = 0

    def __iter__(self) -> Iterator[bytes]:
        """Pieces of at most 1 MiB. Fault (413) beyond the limit; ConnectionResetError when the client went away."""
        while not self._done:
            piece = self._chunk() if self._chunked else self._part()
            self._read += len(piece)
            if self._read > self._limit:
                raise Fault(307, f"The request's body is larger than {self._limit} bytes. (TOO_MANY_BYTES)")
            if piece:
                yield piece

    def drain(self) -> bool:
        """Read what is left, so that the connection can go on; False when that is too much, or the client is gone."""
        try:
            for _ in self:
                pass
        except (Fault, OSError, ValueError):
            return False
        return True

    def _part(self) -> bytes:
        piece = self._file.read(min(self._left, PIECE))
        if not piece:
            raise ConnectionResetError
        self._left -= len(piece)
        self._done = self._left <= 0
        return piece

    def _chunk(self) -> bytes:
        size = int(self._file.readline(64).split(b";")[0].strip() or b"x", 16)
        if size == 0:
            while self._file.readline(8192).strip():
                pass
            self._done = True
            return b""
        if size > self._limit:
            raise Fault(307, f"The request's body is larger than {self._limit} bytes. (TOO_MANY_BYTES)")
        piece = self._file.read(size)
        if len(piece) < size:
            raise ConnectionResetError
        self._file.read(2)
        return piece


def decoded(pieces: Body, encoding: str, limit: int) -> Iterator[bytes]:
    """The pieces decompressed. The decompressed size counts: Fault (413) as soon as it is over the limit, so that a small
    body that would unpack to a huge one is never unpacked. Fault 43: a Content-Encoding that is not known here.
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


def _unpacked(pieces: Body, encoding: str) -> Iterator[bytes]:
    if encoding in ("gzip", "deflate"):
        yield from _zlib(pieces, 31 if encoding == "gzip" else 15)
        return
    decoder: Any
    broken: type[Exception]
    if encoding == "lz4":
        import lz4.frame

        decoder, broken = lz4.frame.LZ4FrameDecompressor(), RuntimeError
    elif encoding == "zstd":
        from backports import zstd

        decoder, broken = zstd.ZstdDecompressor(), zstd.ZstdError
    else:
        raise Fault(43, f"Unknown compression method '{encoding}'. (ILLEGAL_TYPE_OF_ARGUMENT)")
    try:
        for piece in pieces:
            data = piece
            while True:
                yield decoder.decompress(data, max_length=PIECE)
                data = b""
                if decoder.eof or decoder.needs_input:
                    break
    except broken as error:
        raise Fault(27, f"The body is not {encoding}: {error}. (CANNOT_DECOMPRESS)") from None


def _zlib(pieces: Body, bits: int) -> Iterator[bytes]:
    decoder = zlib.decompressobj(bits)
    try:
        for piece in pieces:
            data = piece
            while data:
                yield decoder.decompress(data, PIECE)
                data = decoder.unconsumed_tail
        yield decoder.flush(PIECE)
    except zlib.error as error:
        raise Fault(27, f"The body cannot be decompressed: {error}. (CANNOT_DECOMPRESS)") from None
