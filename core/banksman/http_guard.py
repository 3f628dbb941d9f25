"""Who may knock: the checks of every request that come before any application of ours.

A page in somebody's browser can send requests to 127.0.0.1. It cannot choose the `Host` header, and it cannot hide its
`Origin`: so a name that is not ours and a foreign origin are refused, and no CORS header is ever sent.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from banksman.http_problem import ClientGone, Problem, problem
from banksman.http_shortcuts import Shortcuts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from banksman.http_problem import Application, Receive, Scope, Send
    from banksman.http_shortcuts import Direct
    from banksman.settings import Listener

MAX_HEADERS = 100
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_SINGLE = (b"host", b"origin", b"authorization", b"content-type", b"content-length", b"content-encoding")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")
_log = logging.getLogger("banksman")


class Guard:
    """Checks Host and Origin of every request, then calls `app`; what `app` raises becomes an answer.

    Leaves the request's headers as a dict in `scope["fields"]` (lower-case names -> raw values), so that nobody below
    has to walk the list again. A header that decides anything and is there twice is refused: two readers of such a
    request could see two different ones.

    `direct`: address -> who answers a small POST to it without an ASGI application (`banksman.http_shortcuts`).
    """

    def __init__(self, app: Application, names: Iterable[str], direct: Mapping[bytes, Direct] | None = None) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)
        self._good: set[bytes] = set()  # Host values found right before: they come again with every request
        self.shortcuts = Shortcuts(direct or {}, self._usual)

    def _usual(self, fields: dict[bytes, bytes], count: int) -> bool:
        """Whether there is nothing to check: a Host found right before, no Origin, none of the `count` headers twice."""
        return (
            fields.get(b"host") in self._good
            and b"origin" not in fields
            and len(fields) == count
            and count <= MAX_HEADERS
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # a websocket: nothing of ours speaks it
            return
        try:
            given = scope["headers"]
            fields = scope["fields"] = dict(given)
            if not self._usual(fields, len(given)):
                self._check(fields, given)
            await self._app(scope, receive, send)
        except Problem as refusal:
            await refusal(scope, receive, send)
        except ClientGone:
            pass  # there is nobody to tell, and nothing was done
        except Exception:  # noqa: BLE001 - the edge: logged whole, answered as a 500
            _log.exception("%s %s failed", scope["method"], scope["path"])
            await problem(500, "an error of ours; it is in the log")(scope, receive, send)

    def _check(self, fields: dict[bytes, bytes], given: list[tuple[bytes, bytes]]) -> None:
        if len(given) > MAX_HEADERS:
            raise problem(431, f"more than {MAX_HEADERS} headers")
        if len(fields) != len(given):
            names = [name for name, _ in given]
            for name in _SINGLE:
                if names.count(name) > 1:
                    raise problem(400, f"the header {name.decode()} is there twice")
        host = fields.get(b"host")
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
