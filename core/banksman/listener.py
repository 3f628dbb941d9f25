"""What every HTTP listener of ours does around the application: where it listens, and until when.

    application = routed([Route(…), …])                     Starlette's routing; raise `Problem` anywhere in it
    body = await read_body(scope, receive, limit=…)
    await serve(application, open_socket(…), …)             wraps it in a `Guard`: Host, Origin, errors as RFC 9457

Beyond loopback a listener wants TLS, or an explicit word that something in front of it has it. TLS is 1.2 or newer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import sys
from typing import TYPE_CHECKING

import uvicorn

from banksman import certificates
from banksman.errors import BadDeployment, InvalidSetting
from banksman.http_body import media_type, read_body, require_type
from banksman.http_connection import Connection
from banksman.http_guard import Guard, names_of
from banksman.http_problem import ClientGone, Problem, problem, routed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from banksman.http_problem import Application
    from banksman.http_shortcuts import Direct
    from banksman.settings import Listener

__all__ = [
    "ClientGone", "Guard", "Problem", "address_of", "is_loopback", "media_type", "names_of", "open_socket",
    "problem", "read_body", "require_type", "routed", "serve",
]  # fmt: skip

KEEP_ALIVE_S = 75
GRACE_S = 5  # how long open requests may take to end when the process is told to stop


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


class _Server(uvicorn.Server):
    """uvicorn's, without its own idea of signals: the process that runs it has one."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _say(address: str) -> None:
    print(f"listening {address}", flush=True)


async def serve(
    app: Application,
    opened: socket.socket,
    *,
    host: str,
    listener: Listener,
    stop: asyncio.Event,
    direct: Mapping[bytes, Direct] | None = None,
    say: Callable[[str], None] = _say,
) -> None:
    """Answer on a bound socket until `stop` is set; then no new connection, open requests get `GRACE_S` to end.

    Prints one line `listening http://HOST:PORT` on stdout when the socket is open, or `say`s the address. `host`: the setting
    it came from.
    `direct`: address -> who answers small requests to it without an ASGI application.
    """
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # its start and stop are ours to tell; so is bad input
    try:
        config = uvicorn.Config(
            Guard(app, names_of(host, listener), direct),
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        config.load()
        if listener.tls_cert_file:
            config.ssl = certificates.serving(listener.tls_cert_file, listener.tls_key_file)
    except OSError as error:
        raise InvalidSetting(f"cannot be used: {error}", field="BANKSMAN_TLS_CERT_FILE or _KEY_FILE") from None
    renewing: asyncio.Task[None] | None = None
    if config.ssl is not None:
        renewing = asyncio.create_task(
            certificates.follow(config.ssl, listener.tls_cert_file, listener.tls_key_file), name="certificate"
        )
    server = _Server(config)
    opened.listen(config.backlog)
    say(address_of(opened, listener))
    running = asyncio.ensure_future(server.serve([opened]))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await running
    finally:
        stopping.cancel()
        if renewing is not None:
            renewing.cancel()
        server.should_exit = True
        if not running.done():  # cancelled from outside: the socket is closed all the same
            running.cancel()
            opened.close()
        sys.stdout.flush()
