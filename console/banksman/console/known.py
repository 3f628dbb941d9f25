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

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from banksman import bus
from banksman.control_log import ControlLog
from banksman.controls import Controls
from banksman.events import PolicyLoaded, PolicyRemoved
from banksman.http_problem import problem
from banksman.identities import Identities, Operator
from banksman.stamps import boottime
from banksman.topics import ARCHIVED, Topic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from banksman.settings import Kafka
    from banksman.signing import Secret

LOOK_S = 1.0
ARCHIVER, NOTIFIER = "archiver", "notifier"
"""The consumer groups that commit how far the archive is, and up to where all alerts are told; after the topics' prefix."""
UNSEEN_S = 30.0
_log = logging.getLogger("banksman")


class Known:
    """The state, and the tasks that keep it."""

    def __init__(self, kafka: Kafka, secret: Secret) -> None:
        self.identities, self.controls = Identities(), Controls()
        self.policies: dict[str, PolicyLoaded] = {}
        self.applied, self.refused = -1, 0
        self.caught_up = asyncio.Event()
        """Set when the log of controls was read up to where it ended when it was first looked at."""
        self.ends: dict[tuple[str, int], int] | None = None
        """(topic, partition) -> the next offset that Kafka would give; None while Kafka is away."""
        self.archived: dict[tuple[str, int], int] = {}
        """(topic, partition) -> where the archiver goes on."""
        self.untold = Untold()
        self.kafka_error: str | None = "not reached yet"
        self._kafka, self._log = kafka, ControlLog(kafka, secret, self._forged)
        self._behind: set[tuple[str, int]] = set()
        self._heard: float | None = None
        self._must_reach: int | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._admin: AIOKafkaAdminClient | None = None

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
        """Keep `ends`, `archived` and `untold` fresh. Never returns."""
        while True:
            try:
                self.ends, self.archived, told = await self._look()
            except (KafkaError, OSError, TimeoutError) as error:
                why = f"{type(error).__name__}: {error}"
                if self.kafka_error != why:
                    _log.warning("Kafka is away: %s", why)
                self.ends, self.kafka_error = None, why
                await self.close()
            else:
                self.kafka_error = None
                self.untold.look(self.ends[Topic.ALERTS.value, 0], told, boottime())
                self._behind = {where for where, end in self.ends.items() if self.archived.get(where, 0) < end}
                if self._must_reach is None:
                    self._must_reach = self.ends[Topic.CONTROL.value, 0] - 1
                self._judge()
            await asyncio.sleep(LOOK_S)

    async def close(self) -> None:
        """Let the connections go."""
        consumer, admin, self._consumer, self._admin = self._consumer, self._admin, None, None
        if consumer is not None:
            await consumer.stop()
        if admin is not None:
            await admin.close()

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

    def behind(self) -> set[tuple[str, int]]:
        """The partitions that held more than was archived when Kafka was last looked at."""
        return self._behind

    def _judge(self) -> None:
        if self._must_reach is not None and self.applied >= self._must_reach:
            self.caught_up.set()

    def _forged(self, _forged: object) -> None:
        self.refused += 1

    async def _look(self) -> tuple[dict[tuple[str, int], int], dict[tuple[str, int], int], int]:
        """-> (ends, archived, up to where alerts are told)."""
        if self._consumer is None:
            self._consumer = await _started(bus.consumer(self._kafka))
        if self._admin is None:
            admin = AIOKafkaAdminClient(**self._kafka.client())
            bus.calm(admin._client)  # noqa: SLF001 - as in `bus.calm`
            self._admin = await _started(admin)
        full = {self._kafka.topic(topic): topic for topic in (*ARCHIVED, Topic.DEAD)}
        places = [
            TopicPartition(described["topic"], part["partition"])
            for described in await self._admin.describe_topics(list(full))
            for part in described["partitions"]
        ]
        found = await asyncio.wait_for(self._consumer.end_offsets(places), 5)
        ends = {(full[place.topic].value, place.partition): int(end) for place, end in found.items()}
        if not {(Topic.CONTROL.value, 0), (Topic.ALERTS.value, 0)} <= ends.keys():
            raise KafkaError("the topics are not there yet")
        commits = await self._admin.list_consumer_group_offsets(self._kafka.topic_prefix + ARCHIVER)
        archived = {
            (full[place.topic].value, place.partition): int(commit.offset)
            for place, commit in commits.items()
            if place.topic in full and commit.offset >= 0
        }
        told = await self._admin.list_consumer_group_offsets(self._kafka.topic_prefix + NOTIFIER)
        alerts = TopicPartition(self._kafka.topic(Topic.ALERTS), 0)
        first = (await asyncio.wait_for(self._consumer.beginning_offsets([alerts]), 5))[alerts]
        commit = told.get(alerts)
        return ends, archived, max(int(first), int(commit.offset) if commit is not None else 0)


class Untold:
    """For how long at least something in `alerts` has been waiting to be told: the notifier commits up to where all of it is,
    and a mark is set at the end of `alerts` each time it has passed the one before.
    """

    def __init__(self) -> None:
        self.records = 0
        self._mark, self._since = 0, 0.0
        """Everything before this offset is waited for, and since when."""
        self._looked = 0.0

    def look(self, end: int, told: int, now: float) -> None:
        """`now`: seconds. Of what waited while nobody looked, or before the log began anew, nothing is known."""
        if told >= self._mark or end < self._mark or now - self._looked > UNSEEN_S:
            self._mark, self._since = end, now
        self.records, self._looked = max(0, end - told), now

    @property
    def seconds(self) -> float:
        """0: nothing waits."""
        return self._looked - self._since if self.records else 0.0


@lru_cache(maxsize=64)
def _policy(text: str) -> dict[str, Any]:
    """A policy's normalised text, read. One with 10,000 agents takes longer to parse than a question to answer."""
    found = json.loads(text)
    return found if isinstance(found, dict) else {}


async def _started(client: Any) -> Any:
    """The client, started; nothing is left open when it cannot be."""
    try:
        await client.start()
    except BaseException:
        await (client.stop() if hasattr(client, "stop") else client.close())
        raise
    return client
