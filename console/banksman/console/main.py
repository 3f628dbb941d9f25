"""The read side as a process: one listener, what `control` says, a pool of threads that ask ClickHouse."""

from __future__ import annotations

import asyncio
from pathlib import Path

from banksman import listener, service, settings
from banksman.console.app import build
from banksman.console.asking import Asking
from banksman.console.known import Known
from banksman.console.tail import Tail
from banksman.signing import load_secret


def run() -> None:
    """`banksman serve console`. Never returns; exit codes as `banksman.service` says."""
    service.run("console", main)


async def main(stop: asyncio.Event) -> None:
    """Answer until `stop` is set. InvalidSetting, BadDeployment: see `service.run`."""
    own, access = settings.load(settings.Console), settings.load(settings.Listener)
    kafka, clickhouse = settings.load(settings.Kafka), settings.load(settings.ClickHouse)
    secret = load_secret(Path(settings.load(settings.Secrets).secret_file))
    opened = listener.open_socket(own.console_host, own.console_port, access, setting="BANKSMAN_CONSOLE_HOST")
    known, asking = Known(kafka, secret), Asking(clickhouse, own)
    tail = Tail(asking, known)
    app = build(known, asking, tail, own)
    tasks = [
        asyncio.create_task(
            listener.serve(app, opened, host=own.console_host, listener=access, stop=stop), name="listener"
        ),
        asyncio.create_task(known.run(), name="control reader"),
        asyncio.create_task(known.look_at_kafka(), name="offsets"),
        asyncio.create_task(tail.run(), name="tail"),
    ]
    try:
        await service.together(stop, *tasks)
        tail.end()
        await tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await known.close()
        asking.close()
