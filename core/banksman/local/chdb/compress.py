"""Compression of answers, as Accept-Encoding asks for it."""

from __future__ import annotations

import zlib
from typing import Any, Protocol

from banksman.local.chdb.bodies import zstandard


class Encoder(Protocol):
    """One answer's compression. What was added need not come out before `flush` or `end`."""

    name: str

    def add(self, data: bytes) -> bytes: ...
    def flush(self) -> bytes: ...
    def end(self) -> bytes: ...


def encoder(accepted: str, *, level: int) -> Encoder | None:
    """The cheapest encoding that a client accepts, or None. `level` is for gzip and deflate (1 to 9)."""
    offers = {}
    for part in accepted.lower().split(","):
        name, _, rest = part.partition(";")
        offers[name.strip()] = rest.replace(" ", "") not in ("q=0", "q=0.0")
    if offers.get("lz4"):
        return _Lz4()
    if offers.get("zstd"):
        return _Zstd()
    if offers.get("gzip"):
        return _Zlib("gzip", level, 31)
    if offers.get("deflate"):
        return _Zlib("deflate", level, 15)
    return None


class _Zlib:
    def __init__(self, name: str, level: int, bits: int) -> None:
        self.name = name
        self._inner = zlib.compressobj(level, zlib.DEFLATED, bits)

    def add(self, data: bytes) -> bytes:
        return self._inner.compress(data)

    def flush(self) -> bytes:
        return self._inner.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._inner.flush()


class _Zstd:
    name = "zstd"

    def __init__(self) -> None:
        self._inner: Any = zstandard().ZstdCompressor(level=1)

    def add(self, data: bytes) -> bytes:
        return bytes(self._inner.compress(data))

    def flush(self) -> bytes:
        return bytes(self._inner.flush(self._inner.FLUSH_BLOCK))

    def end(self) -> bytes:
        return bytes(self._inner.flush(self._inner.FLUSH_FRAME))


class _Lz4:
    name = "lz4"

    def __init__(self) -> None:
        import lz4.frame

        self._inner = lz4.frame.LZ4FrameCompressor(auto_flush=True)
        self._begun = False

    def add(self, data: bytes) -> bytes:
        head = b"" if self._begun else bytes(self._inner.begin())
        self._begun = True
        return head + bytes(self._inner.compress(data))

    def flush(self) -> bytes:
        return b""

    def end(self) -> bytes:
        return (b"" if self._begun else bytes(self._inner.begin())) + bytes(self._inner.flush())
