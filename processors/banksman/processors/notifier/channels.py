"""Which channel a project's alerts are told in: what its policy says, as `control` has it; else the setting."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from contextlib import aclosing
from typing import TYPE_CHECKING

from banksman import bus
from banksman.control_log import ControlLog
from banksman.events import PolicyLoaded, PolicyRemoved
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Callable

    from banksman.control_log import Forged
    from banksman.events import Event
    from banksman.settings import Kafka
    from banksman.signing import Secret

_log = logging.getLogger("banksman")
MOST_NAME = 100
_is_id = re.compile("[CDG][A-Z0-9]{8,}").fullmatch
"""Slack's ids; names are in lower case."""


class Channels:
    """The channels of the policies in force."""

    def __init__(
        self, kafka: Kafka, secret: Secret, default: str, also: Callable[[Event], None] = lambda _event: None
    ) -> None:
        """`also`: called with every verified record of `control`."""
        self.default, self._kafka, self._also = default, kafka, also
        self.applied = -1
        self._of: dict[str, str] = {}
        self._log = ControlLog(kafka, secret, _nothing)
        self._moved = asyncio.Event()

    def of(self, project: str | None) -> str:
        """A project's channel."""
        return self._of.get(project or "", self.default)

    async def run(self) -> None:
        """Follow `control`. Never returns; raises when the log under the reader is gone."""
        async with aclosing(self._log.batches()) as batches:
            async for batch in batches:
                for record in batch:
                    event = self._log.verified(record)
                    if isinstance(event, PolicyLoaded):
                        self._put(event.project, channel_in(event.text))
                    elif isinstance(event, PolicyRemoved):
                        self._put(event.project, "")
                    if event is not None:
                        self._also(event)
                    self.applied = record.offset
                if batch:
                    self._moved.set()

    async def end(self) -> int:
        """Where `control` ends now."""
        return await bus.end_of(self._kafka, self._kafka.topic(Topic.CONTROL))

    async def reached(self, offset: int, seconds: float) -> None:
        """Return when `control` is applied up to an offset, or when that takes too long: an alert does not wait for ever."""
        try:
            async with asyncio.timeout(seconds):
                while self.applied < offset:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            _log.warning("control cannot be read to its end yet: until it is, some alerts may go to %s", self.default)

    def _put(self, project: str, channel: str) -> None:
        if channel:
            self._of[project] = channel
        else:
            self._of.pop(project, None)


def channel_in(text: str) -> str:
    """`notify.channel` of a policy's normalised text; "": it names none."""
    try:
        notify = json.loads(text).get("notify") or {}
        channel = notify.get("channel")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return named(channel) if isinstance(channel, str) else ""


def named(channel: str) -> str:
    """`payments` and `#payments` -> `#payments`; an id stays what it is."""
    text = channel.strip()[:MOST_NAME]
    return text if not text or text.startswith("#") or _is_id(text) else f"#{text}"


def _nothing(_forged: Forged) -> None:
    """The enforcer and the archiver tell what is forged; it comes to us as a finding."""
