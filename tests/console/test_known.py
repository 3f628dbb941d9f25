"""What the read side makes of `control`."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

from tests.enforcer.conftest import Desk
from tests.servers import Broker

from banksman import bus, provision
from banksman.console.known import Known
from banksman.signing import create_secret
from banksman.topics import Topic


async def test_what_was_forged_before_it_started_is_not_told_as_new(broker: Broker, tmp_path: Path) -> None:
    """`control` keeps a forged record for ever. Somebody is woken by one that is written, not by every restart after it."""
    kafka = broker.node.settings(topic_prefix=f"t{uuid.uuid4().hex[:8]}.", partitions=1)
    await provision.create_topics(kafka)
    desk = Desk(kafka, create_secret(tmp_path / "secret.json"), tmp_path)
    producer = bus.producer(kafka)
    await producer.start()

    async def forge(count: int) -> None:
        for _ in range(count):
            await producer.send_and_wait(kafka.topic(Topic.CONTROL), b"{}", key=b"forged", partition=0)

    async def counts(known: Known, whole: int) -> tuple[int, int]:
        async with asyncio.timeout(20):
            while not known.caught_up.is_set() or known.refused < whole:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.02)  # between two looks
        return known.refused, known.refused_live

    try:
        await forge(2)
        for before in (2, 5):
            known = Known(kafka, desk.secret)
            async with asyncio.TaskGroup() as tasks:
                at_work = [tasks.create_task(known.run()), tasks.create_task(known.look_at_kafka())]
                assert await counts(known, before) == (before, 0)
                await forge(3)
                assert await counts(known, before + 3) == (before + 3, 3)
                for task in at_work:
                    task.cancel()
            await known.close()
    finally:
        await producer.stop()
