"""What every HTTP listener of ours does before and around the application: who may knock, what is read, how it errs.

    application = routed([Route(…), …])                     Starlette's routing; raise `Problem` anywhere in it
    body = await read_body(scope, receive, limit=…)
    await serve(application, open_socket(…), …)             wraps it in a `Guard`: Host, Origin, errors as RFC 9457

A page in somebody's browser can send requests to 127.0.0.1. It cannot choose the `Host` header, and it cannot hide its
`Origin`: so a name that is not ours and a foreign origin are refused, and no CORS header is ever sent. Beyond loopback
a listener wants TLS, or an explicit word that something in front of it has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import resource
import socket
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from banksman.errors import BadDeployment, InvalidSetting
from banksman.http_body import media_type, read_body, require_type
from banksman.http_problem import ClientGone, Problem, problem, routed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from banksman.http_problem import Application, Receive, Scope, Send
    from banksman.settings import Listener

__all__ = [
    "ClientGone", "Guard", "Problem", "address_of", "is_loopback", "media_type", "names_of", "open_socket",
    "problem", "read_body", "require_type", "routed", "serve",
]  # fmt: skip

MAX_HEADERS = 100
MAX_HEAD_BYTES = 64 * 1024
KEEP_ALIVE_S = 75
READ_WITHIN_S = 60  # a request, head and body: connections and memory are not for those who dawdle
KEPT_FILES = 256  # file descriptors that connections may not have: a process without them loses Kafka and its policies
GRACE_S = 5  # how long open requests may take to end when the process is told to stop
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_SINGLE = (b"host", b"origin", b"authorization", b"content-type", b"content-length", b"content-encoding")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")
_log = logging.getLogger("banksman")


# ── who may knock ──


class Guard:
    """Checks Host and Origin of every request, then calls `app`; what `app` raises becomes an answer.

    Leaves the request's headers as a dict in `scope["fields"]` (lower-case names -> raw values), so that nobody below
    has to walk the list again. A header that decides anything and is there twice is refused: two readers of such a
    request could see two different ones.
    """

    def __init__(self, app: Application, names: Iterable[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)
        self._good: set[bytes] = set()  # Host values found right before: they come again with every request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # a websocket: nothing of ours speaks it
            return
        try:
            given = scope["headers"]
            fields = scope["fields"] = dict(given)
            host = fields.get(b"host")
            count = len(given)
            if host not in self._good or b"origin" in fields or len(fields) != count or count > MAX_HEADERS:
                self._check(fields, given, host)
            await self._app(scope, receive, send)
        except Problem as refusal:
            await refusal(scope, receive, send)
        except ClientGone:
            pass  # there is nobody to tell, and nothing was done
        except Exception:  # noqa: BLE001 - the edge: logged whole, answered as a 500
            _log.exception("%s %s failed", scope["method"], scope["path"])
            await problem(500, "an error of ours; it is in the log")(scope, receive, send)

    def _check(self, fields: dict[bytes, bytes], given: list[tuple[bytes, bytes]], host: bytes | None) -> None:
        if len(given) > MAX_HEADERS:
            raise problem(431, f"more than {MAX_HEADERS} headers")
        if len(fields) != len(given):
            names = [name for name, _ in given]
            for name in _SINGLE:
                if names.count(name) > 1:
                    raise problem(400, f"the header {name.decode()} is there twice")
        if host is None:
            raise problem(400, "a request needs a Host header")
        parts = _HOST.fullmatch(host.decode("latin-1"))
        if parts is None or parts[1].lower() not in self._names:
            raise problem(403, "this Host is not one of this listener's names (setting: hosts)")
        origin = fields.get(b"origin")
        if origin is not None and origin.lower().partition(b"://")[2] != host.lower():
            raise problem(403, "a page of another origin may not call this listener")
        if len(self._good) < 1000:  # so many spellings of our names come from nobody honest
            self._good.add(host)


def names_of(host: str, listener: Listener) -> list[str]:
    """The names that a Host header may carry: loopback's, the bound address, and those of the settings."""
    extra = [name.strip() for name in listener.hosts.split(",") if name.strip()]
    return [*LOOPBACK_NAMES, f"[{host}]" if ":" in host else host, *extra]


# ── listening ──


def is_loopback(host: str) -> bool:
    """Whether an address to bind to can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_socket(host: str, port: int, listener: Listener, *, setting: str) -> socket.socket:
    """A bound socket (port 0: any free one), not yet listening. `setting` names the variable to blame.

    Raises InvalidSetting: beyond loopback without TLS and without `allow_plain_http`, or not an address of this
    machine; BadDeployment: the port is taken.
    """
    if bool(listener.tls_cert_file) != bool(listener.tls_key_file):
        raise InvalidSetting("certificate and key go together", field="BANKSMAN_TLS_CERT_FILE, BANKSMAN_TLS_KEY_FILE")
    if not is_loopback(host) and not listener.tls_cert_file and not listener.allow_plain_http:
        raise InvalidSetting(
            f"{host} is beyond loopback: give BANKSMAN_TLS_CERT_FILE and BANKSMAN_TLS_KEY_FILE, or set "
            "BANKSMAN_ALLOW_PLAIN_HTTP=true when a proxy in front has TLS",
            field=setting,
        )
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise InvalidSetting(f"{host} is not an address to listen on: {error.strerror}", field=setting) from None
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(where)
    except OSError as error:
        opened.close()
        raise BadDeployment(f"cannot listen on {host}:{port}: {error.strerror}") from None
    opened.setblocking(False)
    return opened


def address_of(opened: socket.socket, listener: Listener) -> str:
    """`http://HOST:PORT` of a bound socket."""
    host, port = opened.getsockname()[:2]
    scheme = "https" if listener.tls_cert_file else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def most_connections() -> int:
    """How many connections a listener holds at once; one more is cut at once. The rest of the process needs files, too."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if files == resource.RLIM_INFINITY else max(files - KEPT_FILES, files // 2)


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with bounds on the head and the trailer of a request and on the time that a request takes to come, our
    own form of a 400, and its flow control in the scope. What stands in a trailer never counts as a header.

    `scope["flow"]`: a last check before an answer must not be followed by a wait for a slow reader, so who makes one
    waits for the flow first.
    """

    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # None before the first request
    _in_head = False
    _head_bytes = 0
    _idle_bytes = 0
    _fed = 0
    _owed = 0
    _continued = False
    _slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > most_connections():
            transport.abort()
            return
        self._keep_alive()  # who connects and says nothing is let go like who has nothing more to say

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        if self._slow is not None:
            self._slow.cancel()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["flow"] = self.flow  # type: ignore[typeddict-unknown-key]
        self._in_head, self._head_bytes, self._idle_bytes = True, 0, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)
        # What stands in a trailer is thrown away: nobody in front of us has looked at it as at a head.

    def on_chunk_header(self) -> None:
        self._idle_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._continued or self._fed > MAX_HEAD_BYTES:  # it may be large: else there is no need to count
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._too_large()
                raise ValueError  # for the parser: nothing more is read
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._idle_bytes = 0
        if self.parser.should_upgrade() and not self._owed and self._not_upgraded():
            return
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None
        super().on_message_complete()

    def _not_upgraded(self) -> bool:
        """A request that offers another protocol is answered in this one. The parser takes its body for the other
        protocol's first bytes: so they are handed over here. True when some are still to come.
        """
        fields = dict(self.headers)
        if b"transfer-encoding" in fields:
            self._refuse(problem(400, "an offer to upgrade, and a body of unknown length"))
            return True
        self._owed = int(fields.get(b"content-length") or 0)
        return self._owed > 0

    def _hand_over(self, data: bytes) -> bytes:
        body, rest = data[: self._owed], data[self._owed :]
        self.on_body(body)
        self._owed -= len(body)
        if not self._owed:
            self._owed = -1  # whole: `on_message_complete` is told so
            self.on_message_complete()
            self._owed = 0
        return rest

    def data_received(self, data: bytes) -> None:
        self._continued, self._fed = self._in_head, len(data)
        self._unset_keepalive_if_required()
        while data:
            if self._owed:
                data = self._hand_over(data)
                continue
            before = self._idle_bytes = self._idle_bytes + 1
            try:
                self.parser.feed_data(data)
                if self._idle_bytes == before:  # no callback set it to 0: all of it is a chunk's head, or a trailer
                    self._idle_bytes += len(data)
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
                continue
            break
        if self.transport.is_closing():
            return
        if self._in_head and self._continued:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._too_large()
                return
        elif self._idle_bytes > MAX_HEAD_BYTES and not self._in_head:
            self._too_large("trailer")
            return
        cycle = self.cycle
        if (
            self._in_head or (cycle is not None and cycle.more_body and not cycle.response_complete)
        ) and not self._slow:
            self._slow = self.loop.call_later(READ_WITHIN_S, self._too_slow)
        if cycle is None or cycle.response_complete:
            self._keep_alive()  # what came belongs to no open request: it must not switch the timer off

    def _keep_alive(self) -> None:
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _too_slow(self) -> None:
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self._refuse(problem(408, f"the request did not come within {READ_WITHIN_S} s"))
        else:
            self.transport.close()

    def _too_large(self, part: str = "head") -> None:
        self._refuse(problem(431, f"the {part} of the request is larger than {MAX_HEAD_BYTES} bytes"))

    def send_400_response(self, msg: str) -> None:
        self._refuse(problem(400, msg.rstrip(".")))

    def _refuse(self, told: Problem) -> None:
        if self.transport.is_closing():
            return
        body = told.body()
        status = f"HTTP/1.1 {told.status} {HTTPStatus(told.status).phrase}\r\n".encode()
        head = b"".join(b"%b: %b\r\n" % pair for pair in told.headers())
        self.transport.write(b"%b%bcontent-length: %d\r\nconnection: close\r\n\r\n%b" % (status, head, len(body), body))
        self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn's, without its own idea of signals: the process that runs it has one."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(app: Application, opened: socket.socket, *, host: str, listener: Listener, stop: asyncio.Event) -> None:
    """Answer on a bound socket until `stop` is set; then no new connection, open requests get `GRACE_S` to end.

    Prints one line `listening http://HOST:PORT` on stdout when the socket is open. `host`: the setting it came from.
    """
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # its start and stop are ours to tell; so is bad input
    try:
        config = uvicorn.Config(
            Guard(app, names_of(host, listener)),
            http=_Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
            ssl_certfile=listener.tls_cert_file or None,
            ssl_keyfile=listener.tls_key_file or None,
        )
        config.load()
    except OSError as error:
        raise InvalidSetting(f"cannot be used: {error}", field="BANKSMAN_TLS_CERT_FILE or _KEY_FILE") from None
    server = _Server(config)
    opened.listen(config.backlog)
    print(f"listening {address_of(opened, listener)}", flush=True)
    running = asyncio.ensure_future(server.serve([opened]))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await running
    finally:
        stopping.cancel()
        server.should_exit = True
        if not running.done():  # cancelled from outside: the socket is closed all the same
            running.cancel()
            opened.close()
        sys.stdout.flush()
