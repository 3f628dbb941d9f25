"""RFC 9457 problem details: every answer of ours that is not what was asked for."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence

    from starlette.routing import BaseRoute

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_encode = msgspec.json.Encoder().encode


class Problem(Exception):
    """An answer that is not what was asked for, as RFC 9457 problem details. Raise it anywhere below a `Guard`."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        field: str = "",
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.field, self.retry_after = status, detail, field, retry_after
        self._headers, self._more = headers or {}, more

    def body(self) -> bytes:
        """The JSON: `type`, `title`, `status`, `detail`, and `field` (the path of the field) where one is wrong."""
        told: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        if self.field:
            told["field"] = self.field
        return _encode(told | self._more)

    def beside(self, name: str, value: str) -> Problem:
        """The same, with a header of the answer more."""
        self._headers = {**self._headers, name: value}
        return self

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of the answer, but content-length."""
        made = [(b"content-type", b"application/problem+json"), (b"cache-control", b"no-store")]
        if self.retry_after is not None:
            made.append((b"retry-after", b"%d" % max(1, round(self.retry_after))))
        if self.status == 401:
            made.append((b"www-authenticate", b'Bearer realm="banksman"'))
        made.extend((name.lower().encode(), value.encode("latin-1")) for name, value in self._headers.items())
        return made

    def head(self) -> bytes:
        """The same as lines."""
        return b"".join([b"%b: %b\r\n" % pair for pair in self.headers()])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it: a problem is an ASGI application of its own."""
        await _let_finish(scope, receive)
        body = self.body()
        headers = [*self.headers(), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


MOST_UNWANTED = 16 * 1024 * 1024


async def _let_finish(scope: Scope, receive: Receive) -> None:
    """Take in what is left of a body that nobody will read, up to a bound.

    A connection that is closed on unread data is reset, and the answer is lost on its way to a client that still sends.
    `scope["read"]`: the body was read (`http_body`). One that waits for a 100 Continue has not begun to send.
    """
    fields = scope.get("fields", {})
    if scope.get("read") or b"expect" in fields or not (b"content-length" in fields or b"transfer-encoding" in fields):
        return
    left = MOST_UNWANTED
    while left > 0:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return
        left -= len(message["body"])


def problem(status: int, detail: str, *, field: str = "", retry_after: float | None = None, **more: Any) -> Problem:
    """A problem to raise, or to return where an ASGI application or a Starlette response is wanted."""
    return Problem(status, detail, field=field, retry_after=retry_after, **more)


class ClientGone(Exception):
    """The client hung up before its request was whole: there is nobody to answer."""


def routed(routes: Sequence[BaseRoute]) -> Application:
    """Starlette's routing, with a `Problem` for everything that goes wrong in it, 404 and 405 too.

    Starlette's own outermost layer would answer errors itself and raise them again; here they reach the `Guard`.
    """
    from starlette.exceptions import HTTPException
    from starlette.middleware.exceptions import ExceptionMiddleware
    from starlette.routing import Match, Route, Router

    async def itself(_request: Any, error: Exception) -> Any:
        return error

    async def http(request: Any, error: Exception) -> Any:
        assert isinstance(error, HTTPException)
        detail = {404: "there is nothing here", 405: "this method is not for this address"}.get(error.status_code)
        headers = dict(error.headers or {})
        if error.status_code == 405:  # of all routes of the address, not of the first alone
            fits = [one for one in routes if isinstance(one, Route) and one.matches(request.scope)[0] is Match.PARTIAL]
            headers["Allow"] = ", ".join(sorted({method for route in fits for method in route.methods or ()}))
        return Problem(error.status_code, detail or error.detail, headers=headers)

    app = ExceptionMiddleware(Router(routes, redirect_slashes=False), handlers={Problem: itself, HTTPException: http})

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = app  # without one Starlette answers 404 and 405 in plain text
        await app(scope, receive, send)

    return answer
