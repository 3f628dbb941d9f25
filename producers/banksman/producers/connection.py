"""One HTTP connection that stays open: standard library only, every wait within one deadline."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from banksman.errors import InvalidSetting

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

MAX_ANSWER = 4 << 20

boottime: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A clock that counts while the machine sleeps (`time.monotonic` stands still): an old answer must look old."""


def clock() -> float:
    """Seconds on that clock."""
    return time.clock_gettime(boottime)


@dataclass(frozen=True)
class Address:
    """Where a service is. `tls` None: plain HTTP."""

    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None


def address(url: str, ca_file: str = "", *, variable: str = "BANKSMAN_URL") -> Address:
    """`http(s)://HOST[:PORT][/PATH]` -> its parts. InvalidSetting: it is none, or the certificates cannot be used."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise InvalidSetting(f"{url!r} is not an http:// or https:// address", field=variable)
    tls = None
    if parts.scheme == "https":
        import ssl

        try:
            tls = ssl.create_default_context(cafile=ca_file or None)
        except (OSError, ssl.SSLError) as error:
            raise InvalidSetting(f"{ca_file} cannot be used: {error}", field="BANKSMAN_CA_FILE") from None
    return Address(host, port or (443 if tls else 80), parts.path.rstrip("/"), tls)


@dataclass(frozen=True)
class Answer:
    """What came back. `problem`: its problem details (RFC 9457), or {}: then it was not a service of ours that said it."""

    status: int
    raw: bytes
    problem: dict[str, Any]
    retry_after: float | None

    @property
    def text(self) -> str:
        """One line about an answer that says no."""
        field, detail = self.problem.get("field"), self.problem.get("detail")
        return f"{self.status} {f'{field}: ' if field else ''}{detail or http.client.responses.get(self.status, '')}".strip()


def reason(error: Exception) -> str:
    """Why there is no answer, in one line; which setting it is about where a certificate is not trusted."""
    if verified := getattr(error, "verify_message", ""):  # an SSLCertVerificationError's
        return f"its certificate is not trusted: {verified} (BANKSMAN_CA_FILE says whose are)"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class Connection:
    """For one thread at a time, but for `abort`."""

    def __init__(self, where: Address) -> None:
        self._where = where
        self._open: http.client.HTTPConnection | None = None
        self._fresh = True

    def post(self, path: str, body: bytes, headers: Mapping[str, str], *, until: float) -> Answer:
        """The answer, before `until` on `clock()`. Raises OSError (TimeoutError when the time is over) or HTTPException.

        A connection that the other side let go of while it was idle is opened again, once: send only what may be sent twice.
        """
        return self._twice("POST", path, body, headers, until)

    def get(self, path: str, headers: Mapping[str, str], *, until: float) -> Answer:
        """The same for a GET."""
        return self._twice("GET", path, None, headers, until)

    def _twice(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], until: float) -> Answer:
        self._fresh = self._open is None
        try:
            return self._once(method, path, body, headers, until)
        except (ConnectionError, http.client.BadStatusLine):
            self.close()
            if self._fresh:
                raise
        except BaseException:
            self.close()
            raise
        try:
            return self._once(method, path, body, headers, until)
        except BaseException:
            self.close()
            raise

    def _once(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], until: float) -> Answer:
        if self._open is None:
            self._open = _connection(self._where, _left(until))
            self._open.connect()
        connection = self._open
        assert connection.sock is not None
        connection.sock.settimeout(_left(until))
        connection.request(method, self._where.path + path, body, dict(headers))
        connection.response_class = lambda sock, **more: _Response(sock, until, **more)  # type: ignore[assignment]
        response = connection.getresponse()
        raw = response.read(MAX_ANSWER + 1)
        if len(raw) > MAX_ANSWER:
            raise http.client.HTTPException("the answer is too large")
        if response.will_close or not response.isclosed():
            self.close()
        problem: Any = None
        if response.headers.get_content_type() == "application/problem+json":
            try:
                problem = json.loads(raw)
            except ValueError:
                problem = None
        return Answer(
            response.status,
            raw,
            problem if isinstance(problem, dict) else {},
            _seconds(response.headers["Retry-After"]),
        )

    def abort(self) -> None:
        """From another thread: whoever waits on this connection gets an OSError."""
        opened = self._open
        sock = opened.sock if opened is not None else None
        if sock is not None:
            with contextlib.suppress(OSError):  # it is not connected (any more)
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it; the next request opens a new one."""
        opened, self._open = self._open, None
        if opened is not None:
            opened.close()


def _connection(where: Address, timeout: float) -> http.client.HTTPConnection:
    if where.tls is not None:
        return http.client.HTTPSConnection(where.host, where.port, timeout=timeout, context=where.tls)
    return http.client.HTTPConnection(where.host, where.port, timeout=timeout)


class _Response(http.client.HTTPResponse):
    """One that is read within a deadline: a socket's own time-out begins anew with every byte."""

    def __init__(self, sock: socket.socket, until: float, **more: Any) -> None:
        super().__init__(sock, **more)
        self.fp.close()
        self.fp = io.BufferedReader(_Until(sock, until))


class _Until(io.RawIOBase):
    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock, self._until = sock, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._until))
        return self._sock.recv_into(buffer)


def _left(until: float) -> float:
    left = until - clock()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


def _seconds(text: str | None) -> float | None:
    """A Retry-After in seconds; its other form, a date, is not worth a clock that may be wrong."""
    try:
        return max(0.0, min(float(text or ""), 300.0))
    except ValueError:
        return None
