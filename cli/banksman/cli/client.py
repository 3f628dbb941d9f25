"""Operators' commands speak HTTP through this: the enforcer and the console, with an operator's token. Standard library only.

    from banksman.cli import client
    agents = client.enforcer().get("/v1/agents")["agents"]
    for message in client.console().stream("/v1/watch", {"agent": name}):  ...

Whatever is not a 2xx becomes a Problem: one line for people, `status` and `body` for code, and the exit code it means. Nobody
there, or somebody who is no banksman, is Unavailable. The token is looked for in BANKSMAN_OPERATOR_TOKEN, the file that
BANKSMAN_OPERATOR_TOKEN_FILE names, then `admin.token` in the folder of `banksman up`; it is in no message.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from banksman import settings
from banksman.errors import BanksmanError, InvalidSetting, Refused, Unavailable

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping

TIMEOUT_S = 10.0  # a broker's failover takes up to 6 s: an enforcer that waits for it is not away


class Problem(BanksmanError):
    """An answer that says no. `body`: its problem details (RFC 9457), or {} where it had none."""

    def __init__(self, status: int, reason: str, body: dict[str, Any], retry_after: str | None = None) -> None:
        self.status, self.body, self.retry_after = status, body, retry_after
        title = str(body.get("title") or reason or "no reason given")
        self.hint = f"; try again in {retry_after} s" if retry_after and retry_after.isdigit() else ""
        where, said = body.get("field"), f"{status} {title}"
        if self.detail and self.detail != title:  # what is wrong comes first, what HTTP calls it last
            said = f"{f'{where}: ' if where else ''}{self.detail} ({said})"
        super().__init__(f"{said}{self.hint}")

    @property
    def detail(self) -> str:
        """What went wrong, without status and title; "" where nothing was said."""
        return str(self.body.get("detail") or "")

    @property
    def exit_code(self) -> int:
        """2: what was asked for is wrong; 3: who asked may not; 4: try again."""
        if self.status in (401, 403):
            return 3
        return 4 if self.status == 429 or self.status >= 500 else 2


class Nobody(Unavailable):
    """There is nobody at the address, or they do not answer."""


class Answer(dict[str, Any]):
    """A JSON object of an answer. A field that is not in it is another version's, or another program's: Unavailable."""

    def __missing__(self, name: str) -> Any:
        raise Unavailable(f"the answer has no {name!r}: is the service a banksman of this version?")


@dataclass(frozen=True)
class Token:
    """An operator's token, and where it was found."""

    value: str = field(repr=False)
    origin: str


@dataclass(frozen=True)
class Message:
    """One server-sent event. `id`: the last that was said, by this one or before it."""

    id: str
    event: str
    data: str


class Client:
    """One service's HTTP side. A connection per request, as a command makes a few of them; with `keep` one connection that
    stays open, for one thread that asks thousands of times.
    """

    def __init__(
        self,
        base: str,
        token: str = "",
        *,
        variable: str,
        ca_file: str = "",
        timeout: float = TIMEOUT_S,
        keep: bool = False,
    ) -> None:
        """`variable`: the setting that `base` came from, for messages. InvalidSetting: not an http(s) address."""
        self._keep, self._kept = keep, None  # type: bool, http.client.HTTPConnection | None
        try:
            parts = urlsplit(base)
            self._host, self._port = parts.hostname, parts.port
        except ValueError as error:
            raise InvalidSetting(f"is not an address: {error}", field=variable) from None
        if parts.username is not None or parts.password is not None:
            raise InvalidSetting("an address may not hold a user or password; tokens have settings", field=variable)
        if parts.scheme not in ("http", "https") or not self._host:
            raise InvalidSetting(f"{base!r} is not an http:// or https:// address", field=variable)
        self.base, self._variable, self._timeout = base.rstrip("/"), variable, timeout
        self._path = parts.path.rstrip("/")
        self._token = token
        self._tls = _tls(ca_file) if parts.scheme == "https" else None

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Answer:
        """The JSON object of a 2xx answer, or Problem, or Unavailable."""
        return self.ask("GET", path, query)

    def post(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """The same for a POST with a JSON body."""
        return self.ask("POST", path, None, body, headers)

    def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request. `query`: what is None is left out."""
        raw, kind = self.fetch(method, path, query, body, headers)
        try:
            value = json.loads(raw, object_hook=Answer) if kind.endswith("json") else None
        except ValueError:
            raise self._stranger(f"broken {kind}") from None
        if not isinstance(value, Answer):
            raise self._stranger(kind)
        return value

    def fetch(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[bytes, str]:
        """The same for an answer of any kind -> (its bytes, its media type)."""
        connection, response = self._open(method, path, query, body, headers or {}, self._timeout)
        whole = False
        try:
            raw = response.read()
            whole = True
        except (OSError, http.client.HTTPException) as error:
            raise self._away(error) from None
        finally:
            if self._keep and whole and not response.will_close:
                self._kept = connection
            else:
                connection.close()
        return raw, response.headers.get_content_type()

    def close(self) -> None:
        """Let a kept connection go."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def stream(
        self, path: str, query: Mapping[str, Any] | None = None, *, last_id: str = "", silence: float = 40.0
    ) -> Iterator[Message]:
        """Server-sent events as they come; one without data says that the line is open, and perhaps how far it is.

        Unavailable when the connection ends or is silent for `silence` seconds (the console says something every 15):
        begin again with the last message's id as `last_id`.
        """
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last_id} if last_id else {})
        connection, response = self._open("GET", path, query, None, headers, silence)
        try:
            if response.headers.get_content_type() != "text/event-stream":
                raise self._stranger(response.headers.get_content_type())
            lines: list[str] = []
            while raw := response.readline():
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                if line:
                    lines.append(line)
                elif lines:
                    message = _message(lines, last_id)
                    lines, last_id = [], message.id
                    yield message
        except (OSError, http.client.HTTPException) as error:
            raise self._away(error) from None
        finally:
            connection.close()
        raise Unavailable(f"{self.base} ended the stream")

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: Any,
        headers: Mapping[str, str],
        timeout: float,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        asked = urlencode([(key, value) for key, value in (query or {}).items() if value is not None])
        target = f"{self._path}{path}{f'?{asked}' if asked else ''}"
        sent = {"Accept": "application/json", **headers}
        if self._token:
            sent["Authorization"] = f"Bearer {self._token}"
        if body is not None:
            sent["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
        kept, self._kept = self._kept, None
        connection = kept or self._connect(timeout)
        try:
            try:
                connection.request(method, target, data, sent)
                response = connection.getresponse()
            except (ConnectionError, http.client.BadStatusLine):
                if kept is None:
                    raise
                connection.close()  # the other side let go of an idle connection: that is no answer, ask on a new one
                connection = self._connect(timeout)
                connection.request(method, target, data, sent)
                response = connection.getresponse()
            if response.status >= 300:
                details = _details(response.read(), response.headers.get_content_type())
                raise Problem(response.status, response.reason, details, response.headers.get("Retry-After"))
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._away(error) from None
        except BaseException:
            connection.close()
            raise
        return connection, response

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        assert self._host is not None
        if self._tls:
            return http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout)

    def _away(self, error: Exception) -> BanksmanError:
        if verified := getattr(error, "verify_message", ""):  # an SSLCertVerificationError's
            return InvalidSetting(
                f"the certificate of {self.base} is not trusted: {verified}", field="BANKSMAN_CA_FILE"
            )
        if isinstance(error, TimeoutError):
            return Nobody(f"{self.base} did not answer in time ({self._variable} says where)")
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, http.client.IncompleteRead | http.client.RemoteDisconnected | ConnectionResetError):
            return Unavailable(f"{self.base} broke off in the middle of its answer: {why}")
        if isinstance(error, http.client.HTTPException):
            return Unavailable(f"{self.base} does not speak HTTP as it should: {why} ({self._variable} says where)")
        return Nobody(f"nobody answers at {self.base}: {why} ({self._variable} says where; is `banksman up` running?)")

    def _stranger(self, kind: str) -> Unavailable:
        return Unavailable(f"{self.base} is no banksman: it answered with {kind} ({self._variable} says where)")


def enforcer(*, timeout: float = TIMEOUT_S, keep: bool = False) -> Client:
    """The enforcer (BANKSMAN_URL), as the operator of this environment. Refused: there is no token."""
    known = settings.load(settings.Client)
    token = operator_token(known)
    return Client(known.url, token, variable="BANKSMAN_URL", ca_file=known.ca_file, timeout=timeout, keep=keep)


def console(*, timeout: float = TIMEOUT_S) -> Client:
    """The read side (BANKSMAN_CONSOLE_URL), likewise."""
    known = settings.load(settings.Client)
    token = operator_token(known)
    return Client(known.console_url, token, variable="BANKSMAN_CONSOLE_URL", ca_file=known.ca_file, timeout=timeout)


def operator_token(known: settings.Client) -> str:
    """The token that commands act with. Refused says where it was looked for, or why what is there is none."""
    return find_token(known).value


def find_token(known: settings.Client) -> Token:
    """The same, with where it was found."""
    if known.operator_token:
        return _token(known.operator_token, "BANKSMAN_OPERATOR_TOKEN")
    file = token_file(known)
    try:
        return _token(file.read_text(encoding="utf-8", errors="replace"), str(file))
    except OSError as error:
        raise Refused(
            f"no operator token: BANKSMAN_OPERATOR_TOKEN is not set and {file} cannot be read ({error.strerror})",
            status=401,
        ) from None


def token_file(known: settings.Client) -> Path:
    """The file that the token is in when the environment does not hold it."""
    return Path(known.operator_token_file or Path(settings.load(settings.Local).data) / "admin.token")


def part(text: str) -> str:
    """A name as one segment of a path."""
    return quote(text, safe="")


def _token(text: str, origin: str) -> Token:
    value = text.strip()
    if value.startswith("bma_"):
        raise Refused(f"{origin} holds an agent's credential; commands need an operator's token", status=401)
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise Refused(f"{origin} holds no operator's token", status=401)
    return Token(value, origin)


def _tls(ca_file: str) -> ssl.SSLContext:
    import ssl

    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidSetting(f"{ca_file} cannot be used: {error}", field="BANKSMAN_CA_FILE") from None


def _details(raw: bytes, kind: str) -> dict[str, Any]:
    """The problem details of an answer that says no; {} when it has none."""
    try:
        found = json.loads(raw) if kind.endswith("json") else None
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _message(lines: list[str], last_id: str) -> Message:
    """One event of a stream (HTML standard, server-sent events)."""
    event, data, id_ = "message", [], last_id
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            event = value
        elif name == "data":
            data.append(value)
        elif name == "id":
            id_ = value
    return Message(id_, event, "\n".join(data))
