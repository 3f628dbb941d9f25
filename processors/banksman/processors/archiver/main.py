"""The archiver as a process."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from pathlib import Path

from banksman import health, provision, service, settings
from banksman.metrics import Text
from banksman.processors.archiver.archiver import Archiver
from banksman.signing import load_secret


def run() -> None:
    """Archive until SIGTERM or SIGINT; settings from the environment."""
    service.run("archiver", main)


TIDY_S = 60.0

KEPT = 256 << 20
"""Bytes that go back to the system only when as many are free."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


async def main(stop: asyncio.Event) -> None:
    """Check what it rests on, then work."""
    # A round makes and drops hundreds of thousands of objects, none of them in a cycle: looking for cycles whenever there
    # are 700 new ones costs a quarter of the time. So it is done once a minute, and never over what was imported.
    gc.disable()
    gc.freeze()
    _keep_memory()
    kafka, clickhouse = settings.load(settings.Kafka), settings.load(settings.ClickHouse)
    secret = load_secret(Path(settings.load(settings.Secrets).secret_file))
    archiver = Archiver(kafka, clickhouse, secret, instance=os.environ.get("BANKSMAN_WORKER") or f"{os.getpid()}")
    async with health.answered(Text("archiver", archiver.gauges.measures()), archiver.not_ready):
        checked = asyncio.ensure_future(provision.await_topics(kafka))
        stopping = asyncio.ensure_future(stop.wait())
        tidying = asyncio.ensure_future(_tidy())
        await asyncio.wait({checked, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if checked.done():
            checked.result()
            print("archiver ready", flush=True)
            await archiver.run(stop)
        for task in (checked, stopping, tidying):
            task.cancel()


def _keep_memory() -> None:
    """Every round needs the same few buffers of tens of megabytes. glibc takes each from the system and gives it back, which
    clears all of its pages every time: a sixth of the archiver's time. Other C libraries do as they do.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, KEPT)


async def _tidy() -> None:
    while True:
        await asyncio.sleep(TIDY_S)
        gc.collect()
