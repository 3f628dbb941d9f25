"""What the read side knows without ClickHouse: who is enrolled, which controls and budgets hold, how far Kafka is.

All of it comes from the `control` topic, read from its beginning as the enforcer reads it. With Kafka away what is known stays
known: tokens go on being good, and `heard_s_ago` says how old that is.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import aclosing
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaConnectionError, KafkaError

from banksman.control_log import ControlLog
from banksman.controls import Controls
from banksman.events import PolicyLoaded, PolicyRemoved
from banksman.http_problem import problem
from banksman.identities import Identities, Operator
from banksman.knocking import why_not
from banksman.progress import Progress
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from banksman.control_log import Forged
    from banksman.settings import Kafka
    from banksman.signing import Secret

LOOK_S = 1.0
_log = logging.getLogger("banksman")


class Known:
    """The state, and the tasks that keep it."""

    def __init__(self, kafka: Kafka, secret: Secret) -> None:
        self.identities, self.controls = Identities(), Controls()
        self.policies: dict[str, PolicyLoaded] = {}
        self.applied, self.refused, self.refused_live = -1, 0, 0
        """`refused`: since `control` begins, which is kept for ever. `refused_live`: since the first look at its end."""
        self.caught_up = asyncio.Event()
        """Set when the log of controls was read up to where it ended when it was first looked at."""
        self.progress = Progress(kafka)
        self.kafka_error: str | None = "not reached yet"
        self._kafka, self._log = kafka, ControlLog(kafka, secret, self._forged)
        self._heard: float | None = None
        self._must_reach: int | None = None

    async def run(self) -> None:
        """Apply `control`. Never returns; raises when the log under the reader is gone."""
        async with aclosing(self._log.batches()) as batches:
            async for batch in batches:
                for record in batch:
                    event = self._log.verified(record)
                    if isinstance(event, PolicyLoaded):
                        self.policies[event.project] = event
                    elif isinstance(event, PolicyRemoved):
                        self.policies.pop(event.project, None)
                    elif event is not None and not self.identities.apply(event):
                        self.controls.apply(event, record.offset)
                    self.applied = record.offset
                if batch:
                    self._heard = time.monotonic()
                self._judge()

    async def look_at_kafka(self) -> None:
        """Keep `progress` fresh. Never returns."""
        while True:
            try:
                await self.progress.look()
            except (KafkaError, OSError, TimeoutError) as error:
                why = f"{type(error).__name__}: {error}"
                if isinstance(error, KafkaConnectionError):  # as at "unable to bootstrap", which hides what is wrong
                    why = str(await why_not(self._kafka))
                if self.kafka_error != why:
                    _log.warning("Kafka is away: %s", why)
                self.kafka_error = why
            else:
                self.kafka_error = None
                if self._must_reach is None and self.progress.ends is not None:
                    self._must_reach = self.progress.ends[Topic.CONTROL.value, 0] - 1
                self._judge()
            await asyncio.sleep(LOOK_S)

    async def close(self) -> None:
        """Let the connections go."""
        await self.progress.close()

    @property
    def heard_s_ago(self) -> float | None:
        """Seconds since `control` brought anything; replicas write heartbeats, so it is small while one lives."""
        return None if self._heard is None else time.monotonic() - self._heard

    def operator(self, fields: Mapping[bytes, bytes]) -> Operator:
        """The operator whose token a request carries. Problem 401, 403; 503 when who is known cannot be said."""
        scheme, _, token = fields.get(b"authorization", b"").partition(b" ")
        if not token:
            raise problem(401, "a token is needed: Authorization: Bearer TOKEN")
        known = None
        if scheme.lower() == b"bearer":
            known = self.identities.by_token(token.strip().decode("latin-1"))
        if known is None and (not self.caught_up.is_set() or self.kafka_error is not None):
            raise problem(503, "who is known cannot be said: the log of controls cannot be read", retry_after=1)
        if known is None:
            raise problem(401, "this token is not known, or was rotated out")
        if not isinstance(known, Operator):
            raise problem(403, "the read side is for operators; an agent's token may not ask it")
        if not known.may("viewer"):
            raise problem(403, "this needs the role viewer")
        return known

    def budget(self, project: str | None, agent: str) -> dict[str, Any]:
        """The agent's `budget` in the policy in force, {} where there is none."""
        loaded = self.policies.get(project or "")
        if loaded is None:
            return {}
        found = _policy(loaded.text).get("agents", {}).get(agent, {}).get("budget", {})
        return found if isinstance(found, dict) else {}

    def owner(self, project: str | None, agent: str) -> str | None:
        """Who answers for an agent, as its decisions say: the policy in force, for the agent or for all, else its enrolment."""
        loaded, enrolled = self.policies.get(project or ""), self.identities.agents.get(agent)
        policy = _policy(loaded.text) if loaded is not None else {}
        said = policy.get("agents", {}).get(agent, {}).get("owner") or policy.get("owner")
        return said or (enrolled.owner if enrolled else None)

    def _judge(self) -> None:
        if self._must_reach is not None and self.applied >= self._must_reach:
            self.caught_up.set()

    def _forged(self, forged: Forged) -> None:
        self.refused += 1
        if self._must_reach is None:
            return  # the first look will still end behind it
        self.refused_live += forged.offset > self._must_reach


@lru_cache(maxsize=64)
def _policy(text: str) -> dict[str, Any]:
    """A policy's normalised text, read. One with 10,000 agents takes longer to parse than a question to answer."""
    found = json.loads(text)
    return found if isinstance(found, dict) else {}
