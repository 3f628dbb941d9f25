"""A worker as a process."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import pkgutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError

from banksman import bus, fetched, health, provision, service, settings
from banksman.metrics import Text
from banksman.processors import detectors
from banksman.processors.worker.frame import Laid
from banksman.processors.worker.known import Known
from banksman.processors.worker.worker import Worker
from banksman.signing import load_secret
from banksman.store.prices import load_prices
from banksman.topics import Topic

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer

    from banksman.processors.detector import Detector

SWITCH_S = 0.0005
CATCH_UP_S = 15.0
"""Seconds after which a worker that is still behind says that it works."""
CLOSE_S = 5.0
"""Seconds that Faust gets to say goodbye."""
_log = logging.getLogger("banksman")


def run() -> None:
    """Work until SIGTERM or SIGINT; settings from the environment."""
    service.run("processors", main)


def found() -> list[Detector[Any]]:
    """Every detector that has a file."""
    modules = (
        importlib.import_module(f"{detectors.__name__}.{one.name}") for one in pkgutil.iter_modules(detectors.__path__)
    )
    return [module.DETECTOR for module in modules]


async def main(stop: asyncio.Event) -> None:
    """Check what it rests on, read what is in force, then work."""
    for library in ("faust", "mode", __package__):  # Faust's own words, also of what is made of its classes here
        logging.getLogger(library).setLevel(logging.WARNING)
    fetched.hand_on()
    sys.setswitchinterval(SWITCH_S)  # Kafka's records come from a thread of their own, which must not wait for its turn
    # A batch makes tens of thousands of objects and lets them go, none of them in a cycle; the states stay, and there is
    # nothing to be found among them either.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    page, made = Text("processors", ()), list[Worker]()
    async with health.answered(page, lambda: made[0].not_ready() if made else "Kafka is awaited"):
        stopping = asyncio.create_task(stop.wait())
        working = asyncio.create_task(_work(page, made))
        await asyncio.wait((stopping, working), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            stopping.cancel()
            working.result()
        _end_in_time(0)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def _work(page: Text, made: list[Worker]) -> None:
    kafka, own = settings.load(settings.Kafka), settings.load(settings.Worker)
    secret = load_secret(Path(settings.load(settings.Secrets).secret_file))
    name = own.worker or f"{os.uname().nodename}-{os.getpid()}"
    partitions = await provision.await_topics(kafka)
    copies = await provision.awaited(lambda: provision.copies_of(kafka, Topic.ACTIONS))
    known = Known(kafka, secret)
    reading = asyncio.create_task(known.run(), name="control reader")
    producer = bus.producer(kafka)
    tasks = [reading]
    try:
        await _first(_started(producer), reading)
        await _first(known.caught_up.wait(), reading)
        laid_out = Laid(partitions[Topic.ACTIONS], copies)
        worker = Worker(kafka, secret, own, name, laid_out, known, producer, found(), load_prices())
        page.add(*worker.measures())
        made.append(worker)
        tasks += [
            asyncio.create_task(worker.run(), name="worker"),
            asyncio.create_task(bus.died(producer), name="Kafka producer"),
            asyncio.create_task(_say(worker), name="ready"),
        ]
        done, _ = await asyncio.wait(tasks[:3], return_when=asyncio.FIRST_COMPLETED)
        _end_in_time(1)
        for task in done:
            task.result()
            raise RuntimeError(f"the task {task.get_name()} ended by itself")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await producer.stop()


async def _started(producer: AIOKafkaProducer) -> None:
    """It may have gone away since the topics were looked at."""
    while True:
        try:
            await producer.start()
        except (KafkaError, OSError) as error:
            _log.warning("waiting for Kafka: %s", error)
            await asyncio.sleep(bus.RETRY_S)
        else:
            return


def _end_in_time(code: int) -> None:
    """End this process soon, whatever happens: in the middle of a rebalance Faust may wait for long, keep the event loop from
    turning, and leave a thread behind that does not end. What counts is on the log.
    """
    patience = threading.Timer(CLOSE_S, lambda: os._exit(code))
    patience.daemon = True
    patience.start()


async def _say(worker: Worker) -> None:
    try:
        await asyncio.wait_for(worker.ready.wait(), CATCH_UP_S)
    except TimeoutError:
        _log.warning("there is much to work through; until that is done, agents with a budget get 503")
    print("processors ready", flush=True)


async def _first(wanted: Any, other: asyncio.Task[None]) -> None:
    waiting = asyncio.ensure_future(wanted)
    await asyncio.wait((waiting, other), return_when=asyncio.FIRST_COMPLETED)
    if other.done():
        waiting.cancel()
        other.result()
    waiting.result()
