"""The HTTP side: ClickHouse's interface on GET and POST /, /ping and /replicas_status, on loopback.

Threads, because the engine's calls block; the standard library's server, because it gives the request's body as a stream.
"""

from __future__ import annotations

import base64
import email.errors
import logging
import socket
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from banksman.local.chdb import answers
from banksman.local.chdb.bodies import Body
from banksman.local.chdb.faults import Fault
from banksman.local.chdb.request import Request
from banksman.local.chdb.users import User, authenticate

if TYPE_CHECKING:
    from banksman.local.chdb.engine import Engine

LOOPBACK = "127.0.0.1"
NAMES = frozenset({LOOPBACK, "localhost", "::1"})
CONNECTIONS = 256
FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n"
ADDRESS_BYTES = 1 << 20  # of a request's first line: what a server takes; the library alone would take 64 KiB
DRAINED = 1 << 20  # bytes of a refused body that are read so that its connection can go on
LINGER_BYTES, LINGER_SECONDS = 256 << 20, 10.0
_ONCE = (
    "Host",
    "Origin",
    "Content-Length",
    "Transfer-Encoding",
    "Content-Encoding",
    "Content-Type",
    "Authorization",
    "X-ClickHouse-User",
    "X-ClickHouse-Key",
)
_TORN = (email.errors.MissingHeaderBodySeparatorDefect, email.errors.FirstHeaderLineIsContinuationDefect)
log = logging.getLogger(__name__)


class Server(ThreadingHTTPServer):
    """Serves one engine on a port of 127.0.0.1. `max_body`: bytes, decompressed.

    Connections beyond `connections` are closed with 503: each has a thread of its own.
    """

    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True

    def __init__(
        self, port: int, engine: Engine, users: dict[str, User], *, max_body: int, connections: int = CONNECTIONS
    ) -> None:
        self.engine, self.users, self.max_body = engine, users, max_body
        self._connections = threading.BoundedSemaphore(connections)
        super().__init__((LOOPBACK, port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """One thread a connection, while there is room."""
        if not self._connections.acquire(blocking=False):
            self._refuse(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system gives us no more threads
            self._connections.release()
            self._refuse(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The connection's thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the library's signature
        """A client that went away in the middle is no error of ours."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("a connection failed", exc_info=error)

    def _refuse(self, request: Any) -> None:
        request.setblocking(False)
        try:
            request.send(FULL)
        except OSError:
            log.debug("a client beyond the limit of connections went away")
        self.shutdown_request(request)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "ClickHouse"
    sys_version = ""
    wbufsize = 1 << 16  # head and body in one write: Nagle and delayed acknowledgements cost 40 ms otherwise
    disable_nagle_algorithm = True
    timeout = 60
    server: Server
    body: Body | None = None
    answered = False

    def log_message(self, *_: Any) -> None:
        """Queries may hold what must not be in a log."""

    def handle_one_request(self) -> None:
        """The library's, with room for many bound parameters in an address."""
        try:
            self.raw_requestline = self.rfile.readline(ADDRESS_BYTES + 1)
            if not self.raw_requestline:
                self.close_connection = True
            elif len(self.raw_requestline) > ADDRESS_BYTES:
                self.requestline = self.request_version = self.command = ""
                self.send_error(414)
            elif self.parse_request():
                answer = getattr(self, f"do_{self.command}", None)
                if answer is None:
                    self.send_error(501, f"Unsupported method ({self.command!r})")
                else:
                    answer()
            self.wfile.flush()
        except TimeoutError:  # silent for too long
            self.close_connection = True

    def do_GET(self) -> None:
        self._answer(changes=False)

    def do_HEAD(self) -> None:
        self._answer(changes=False)

    def do_POST(self) -> None:
        self._answer(changes=True)

    def do_PUT(self) -> None:
        self._answer(changes=True)

    def send_response(self, code: int, message: str | None = None) -> None:
        """From here on no other answer can be given to this request."""
        self.answered = True
        super().send_response(code, message)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """What the library found wrong with a request, as one line of text."""
        self.close_connection = True
        text = message or self.responses.get(code, ("an error",))[0]
        answers.whole(self, code, text.encode("utf-8", "replace") + b"\n", [])

    def _answer(self, *, changes: bool) -> None:
        self.body, self.answered, query_id = None, False, ""
        try:
            self._check_head()
            self.body = Body(self.rfile, self.headers, self.server.max_body)
            url = urlsplit(self.path)
            parameters = dict(parse_qsl(url.query, keep_blank_values=True, errors="surrogateescape"))
            if url.path in ("/ping", "/replicas_status") or (url.path == "/" and not parameters and not changes):
                answers.whole(self, 200, b"Ok.\n", [])
            elif url.path != "/":
                raise Fault(1002, f"There is no handle {url.path}. (UNKNOWN_EXCEPTION)", status=404)
            else:
                query_id = parameters.get("query_id") or str(uuid.uuid4())
                Request(self, self._user(parameters), parameters, self.body, query_id, changes=changes).run()
            if not self.body.drain(DRAINED, LINGER_SECONDS):  # what nobody asked for must not become the next request
                self.close_connection = True
        except Fault as fault:
            self._fail(fault, query_id)
        except OSError:  # the client went away, or was silent for too long
            self.close_connection = True
        except ValueError as error:  # a header, a parameter or a body that is not what it says it is
            self._fail(Fault(36, f"{error}. (BAD_ARGUMENTS)"), query_id)
        except Exception as error:
            log.exception("a request failed")
            self._fail(Fault(1002, f"{type(error).__name__}. (UNKNOWN_EXCEPTION)"), query_id)

    def _check_head(self) -> None:
        """Two readers of one head must not see two requests; and DNS rebinding and other people's web pages: only our own
        names, and no request that a page of another site made.
        """
        twice = [name for name in _ONCE if len(self.headers.get_all(name, [])) > 1]
        torn = any(isinstance(defect, _TORN) for defect in self.headers.defects)
        if torn or twice:
            raise ValueError(f"the header {twice[0]} is there twice" if twice else "a header line without a name")
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if host is None and self.request_version == "HTTP/1.1":
            raise ValueError("a request needs a Host header")
        if host is not None and _hostname(host) not in NAMES:
            raise Fault(516, f"Host {host!r} is not served here. (AUTHENTICATION_FAILED)", status=403)
        ours = host is not None and origin in (f"http://{host}", f"https://{host}")
        if (origin is not None and not ours) or self.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
            raise Fault(516, "Requests of other sites' pages are refused. (AUTHENTICATION_FAILED)", status=403)

    def _fail(self, fault: Fault, query_id: str) -> None:
        if self.answered:  # in the middle of an answer: all that is left is to break it off
            self.close_connection = True
            return
        body = self.body
        whole = body is not None and body.drain(DRAINED, LINGER_SECONDS)
        self.close_connection = self.close_connection or not whole
        message = fault.message(self.server.engine.version) + "\n"
        headers = [*self.common(query_id), ("X-ClickHouse-Exception-Code", str(fault.code))]
        if fault.code == 516 and fault.status == 401:
            headers.append(("WWW-Authenticate", 'Basic realm="ClickHouse"'))
        answers.whole(self, fault.status, message.encode("utf-8", "replace"), headers)
        if body is not None and not whole:
            # Closing a socket with unread data resets the connection, and a client that is still sending would never see why.
            self.connection.shutdown(socket.SHUT_WR)
            body.drain(LINGER_BYTES, LINGER_SECONDS)

    def common(self, query_id: str) -> answers.Headers:
        """Headers of every answer to a query."""
        printable = "".join(c if " " <= c <= "~" else "?" for c in query_id)
        return [
            ("X-ClickHouse-Server-Display-Name", "chdb"),
            ("X-ClickHouse-Query-Id", printable),
            ("X-ClickHouse-Timezone", self.server.engine.timezone),
        ]

    def _user(self, parameters: dict[str, str]) -> User:
        """Who asks: basic authentication, headers or parameters. Fault 516: 401 when nobody was named, 403 otherwise."""
        named = self.headers.get("X-ClickHouse-User") or parameters.get("user")
        password = self.headers.get("X-ClickHouse-Key") or parameters.get("password") or ""
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic":
            named, _, password = base64.b64decode(given, validate=True).decode("utf-8", "replace").partition(":")
        user = authenticate(self.server.users, named or "default", password)
        if user is None:
            raise Fault(
                516,
                f"{named or 'default'}: Authentication failed: password is incorrect, or there is no user with such name. "
                "(AUTHENTICATION_FAILED)",
                status=403 if named else 401,
            )
        return user


def _hostname(host: str) -> str:
    """The name in a Host header, without port and brackets, lower case; "" when it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
