"""The notifier as a process."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from banksman import health, provision, service, settings
from banksman.metrics import Text
from banksman.processors.notifier.notifier import Notifier
from banksman.signing import load_secret


def run() -> None:
    """Tell until SIGTERM or SIGINT; settings from the environment."""
    service.run("notifier", main)


async def main(stop: asyncio.Event) -> None:
    """Check what it rests on, then work."""
    kafka, slack = settings.load(settings.Kafka), settings.load(settings.Slack)
    secret = load_secret(Path(settings.load(settings.Secrets).secret_file))
    named = settings.load(settings.Worker)
    notifier = Notifier(
        kafka, secret, slack, instance=named.worker or f"{os.getpid()}", worker=named.worker,
        session_s=named.worker_session_s, late_s=settings.load(settings.Health).late_s, ready=_ready(),
    )  # fmt: skip
    async with health.answered(Text("notifier", notifier.measures()), notifier.not_ready):
        checked, stopping = asyncio.ensure_future(provision.await_topics(kafka)), asyncio.ensure_future(stop.wait())
        await asyncio.wait({checked, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if checked.done():
            checked.result()
            await notifier.run(stop)
        for task in (checked, stopping):
            task.cancel()


class _ready:  # noqa: N801 - called as a function
    """Said once: it reads, or stands by."""

    said = False

    def __call__(self) -> None:
        if not self.said:
            self.said = True
            print("notifier ready", flush=True)
