"""What a service that listens nowhere else answers, on the inside: `/healthz` (it turns), `/readyz` (it does its work),
`/metrics` (Prometheus text). Only where BANKSMAN_HEALTH_PORT is set. None of them says a name, so none asks for a token.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from banksman import listener, settings
from banksman.http_problem import problem, routed
from banksman.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request

    from banksman.metrics import Text

NO_STORE = {"cache-control": "no-store"}
_log = logging.getLogger("banksman")


@asynccontextmanager
async def answered(page: Text, not_ready: Callable[[], str]) -> AsyncIterator[None]:
    """Answer for as long as the body runs. `not_ready`: why the work is not done at the moment, or "".

    InvalidSetting, BadDeployment: it cannot listen where the settings say.
    """
    own, access = settings.load(settings.Health), settings.load(settings.Listener)
    if own.health_port < 0:
        yield
        return

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"}, headers=NO_STORE)

    async def readyz(_request: Request) -> Response:
        why = not_ready()
        if why:
            raise problem(503, why, retry_after=1)
        return JSONResponse({"status": "ready"}, headers=NO_STORE)

    async def metrics(_request: Request) -> Response:
        return Response(page.text(), media_type=CONTENT_TYPE)

    app = routed([Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)])
    opened = listener.open_socket(own.health_host, own.health_port, access, setting="BANKSMAN_HEALTH_HOST")
    stop, listens = asyncio.Event(), asyncio.Event()

    def say(address: str) -> None:
        print(f"health {address}", flush=True)
        listens.set()

    serving = asyncio.create_task(
        listener.serve(app, opened, host=own.health_host, listener=access, stop=stop, say=say), name="health"
    )
    waiting = asyncio.create_task(listens.wait())
    await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if serving.done():
        serving.result()  # raises why
    serving.add_done_callback(
        lambda _: None if stop.is_set() else _log.error("nobody answers at the health port any more")
    )
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(serving, return_exceptions=True)  # the work is over; how this ends changes nothing
