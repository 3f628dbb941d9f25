"""The enforcer as a process: settings from the environment, one socket, one replica, until SIGTERM."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

from banksman import listener, service, settings
from banksman.enforcer.app import build
from banksman.enforcer.replica import Replica
from banksman.enforcer.short_way import ShortWay
from banksman.signing import load_secret


def run() -> None:
    """`banksman serve enforcer`. Never returns; exit codes as `banksman.service` says."""
    service.run("enforcer", main)


async def main(stop: asyncio.Event) -> None:
    """Answer until `stop` is set. InvalidSetting, BadDeployment: see `service.run`."""
    own = settings.load(settings.Enforcer)
    access = settings.load(settings.Listener)
    secret = load_secret(Path(settings.load(settings.Secrets).secret_file))
    opened = listener.open_socket(own.enforcer_host, own.enforcer_port, access, setting="BANKSMAN_ENFORCER_HOST")
    replica = Replica(settings.load(settings.Kafka), secret, own, listener.address_of(opened, access))
    app, decider = build(replica)
    # Every decision makes a few dozen containers that live until their acknowledgement. With the interpreter's default
    # thresholds the collector would walk all of them every few requests, and find nothing: they are in no cycle.
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    closing = asyncio.Event()  # the listener ends its open requests first; the replica's tasks must live that long
    serving = asyncio.create_task(
        listener.serve(
            app, opened, host=own.enforcer_host, listener=access, stop=stop, direct={b"/v1/decide": ShortWay(decider)}
        ),
        name="listener",
    )
    working = asyncio.create_task(replica.run(closing), name="replica")
    try:
        await asyncio.wait((serving, working), return_when=asyncio.FIRST_COMPLETED)
        if working.done():  # never by itself: raises what it died of
            working.result()
            raise RuntimeError("the replica ended by itself")
        await serving
    finally:
        stop.set()
        closing.set()
        await asyncio.gather(serving, working, return_exceptions=True)
    working.result()
