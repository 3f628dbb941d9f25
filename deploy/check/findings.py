"""What is said, and where it was found; a question over HTTP."""

from __future__ import annotations

import http.client
import json
import ssl
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "FAILED", "skipped"]
    text: str


@dataclass(frozen=True)
class Place:
    """A service at an address."""

    name: str
    url: str

    @property
    def valid(self) -> bool:
        """Whether it is an address at all."""
        try:
            parts = urlsplit(self.url)
            return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            return False

    @property
    def secure(self) -> bool:
        """It says that it speaks TLS."""
        return self.url.startswith("https:")

    @property
    def host(self) -> str:
        """Without the port."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The one that it names, or its scheme's."""
        return urlsplit(self.url).port or (443 if self.secure else 80)

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class Answer:
    """Of an HTTP request."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """The body; {} where it is no JSON object."""
        try:
            told = json.loads(self.body)
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}


def ask(
    place: Place,
    method: str,
    path: str,
    *,
    ca: str | None,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """One request on a connection of its own. OSError (ssl.SSLError is one), http.client.HTTPException."""
    connection: http.client.HTTPConnection
    if place.secure:
        context = ssl.create_default_context(cafile=ca)
        connection = http.client.HTTPSConnection(place.host, place.port, timeout=TIMEOUT_S, context=context)
    else:
        connection = http.client.HTTPConnection(place.host, place.port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, answer.read())
    finally:
        connection.close()


def why(error: Exception) -> str:
    """What an error says, in a few words."""
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
