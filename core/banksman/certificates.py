"""A certificate that is renewed while a listener runs: new connections get the new one, without a restart.

Whoever renews puts one file after the other in its place, or moves a link to both. So half a pair may be read, and what
listeners answer with must not be touched by it. OpenSSL adds, too: a context keeps one certificate for each kind of key, and a
new one of another kind leaves the old one beside it. So each renewal is read, once, into a context of its own, and connections
are handed that.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_S = 5.0
_log = logging.getLogger("banksman")

Look = tuple[tuple[int, int, int], ...]


def serving(certificate: str, key: str) -> ssl.SSLContext:
    """What a listener answers with. OSError (an SSLError is one): the pair cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # whatever this system's OpenSSL takes otherwise
    context.load_cert_chain(certificate, key)
    return context


async def follow(context: ssl.SSLContext, certificate: str, key: str, *, every: float = LOOK_S) -> None:
    """Keep what `context` answers with as the files are. Never returns; what cannot be used is told once, the old one stays."""
    loaded = told = _look(certificate, key)
    while True:
        await asyncio.sleep(every)
        found = _look(certificate, key)
        if found == loaded:
            continue
        try:
            renewed = serving(certificate, key)
        except OSError as error:
            if found != told:
                _log.error("the new certificate cannot be used, the one before stays: %s: %s", certificate, error)
            told = found
        else:
            context.sni_callback = _handing_out(renewed)
            loaded = told = found
            _log.info("the certificate was renewed: %s", certificate)


def _handing_out(context: ssl.SSLContext) -> Callable[[ssl.SSLObject, str | None, ssl.SSLContext], None]:
    """OpenSSL asks at every handshake, before it chooses a certificate, whether or not the client names a host."""

    def hand_out(connection: ssl.SSLObject, _name: str | None, _first: ssl.SSLContext) -> None:
        connection.context = context

    return hand_out


def _look(*files: str) -> Look:
    """What tells that a file is another one; nothing for one that is not there."""
    found = []
    for file in map(Path, files):
        try:
            seen = file.stat()
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((seen.st_mtime_ns, seen.st_ino, seen.st_size))
    return tuple(found)
