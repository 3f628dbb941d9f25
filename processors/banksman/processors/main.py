"""The archiver as a process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from pathlib import Path

from banksman import provision, service, settings
from banksman.errors import BrokerAway
from banksman.processors.archiver import Archiver
from banksman.signing import load_secret


def run() -> None:
    """Archive until SIGTERM or SIGINT; settings from the environment."""
    service.run("archiver", main)


TIDY_S = 60.0


async def main(stop: asyncio.Event) -> None:
    """Check what it rests on, then work."""
    # A round makes and drops hundreds of thousands of objects, none of them in a cycle: looking for cycles whenever there
    # are 700 new ones costs a quarter of the time. So it is done once a minute, and never over what was imported.
    gc.disable()
    gc.freeze()
    kafka, clickhouse = settings.load(settings.Kafka), settings.load(settings.ClickHouse)
    secret = load_secret(Path(settings.load(settings.Secrets).secret_file))
    archiver = Archiver(kafka, clickhouse, secret, instance=os.environ.get("BANKSMAN_WORKER") or f"{os.getpid()}")
    checked = asyncio.ensure_future(_checked(kafka))
    stopping = asyncio.ensure_future(stop.wait())
    tidying = asyncio.ensure_future(_tidy())
    await asyncio.wait({checked, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if checked.done():
        checked.result()
        print("archiver ready", flush=True)
        await archiver.run(stop)
    for task in (checked, stopping, tidying):
        task.cancel()


async def _tidy() -> None:
    while True:
        await asyncio.sleep(TIDY_S)
        gc.collect()


async def _checked(kafka: settings.Kafka) -> None:
    """Kafka's topics are as they must be; tried for as long as there is no broker to ask."""
    while True:
        try:
            await provision.check_topics(kafka)
        except BrokerAway as error:
            logging.getLogger("banksman").warning("waiting for Kafka: %s", error)
        else:
            return
