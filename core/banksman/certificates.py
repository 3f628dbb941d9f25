"""A certificate that is renewed while a listener runs: new connections get the new one, without a restart.

Whoever renews puts one file after the other in its place, or moves a link to both. So the pair is tried apart first: half of it
in the context that listeners answer with would break what works.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

LOOK_S = 5.0
_log = logging.getLogger("banksman")

Look = tuple[tuple[int, int, int], ...]


async def follow(context: ssl.SSLContext, certificate: str, key: str, *, every: float = LOOK_S) -> None:
    """Keep `context` as the files are. Never returns; what cannot be used is told once and leaves the context as it was."""
    loaded = told = _look(certificate, key)
    while True:
        await asyncio.sleep(every)
        found = _look(certificate, key)
        if found == loaded:
            continue
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
            context.load_cert_chain(certificate, key)
        except OSError as error:  # an SSLError is one
            if found != told:
                _log.error("the new certificate cannot be used, the one before stays: %s: %s", certificate, error)
            told = found
        else:
            loaded = told = found
            _log.info("the certificate was renewed: %s", certificate)


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
