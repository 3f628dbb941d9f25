"""Alerts to people, each exactly once: the log of alerts is read, told, and written to.

One notifier reigns: the one that the group gives the single partition of `alerts` to. It reads the log from a week back
(or from the oldest incident that is not over), knows from its own records what was told, and goes on from there. While
it can commit to the group it may tell: a commit that was taken says that nobody else had been given the partition when it was
sent, and nobody will be within a session after that. One that was frozen finds its last commit too old, and tells nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata

from banksman import bus, provision
from banksman.errors import BanksmanError, BrokerAway
from banksman.events import Alert, AlertResolved
from banksman.metrics import Measure
from banksman.processors.notifier import words
from banksman.processors.notifier.channels import Channels, named
from banksman.processors.notifier.incidents import LOG, WINDOW_MS, Incidents
from banksman.processors.notifier.records import SERVICE, Records, counted
from banksman.processors.notifier.slack import Slack
from banksman.processors.notifier.telling import Telling
from banksman.processors.notifier.watchdog import Enforcers, Watchdog
from banksman.progress import Progress
from banksman.service import together
from banksman.signing import Verifier
from banksman.stamps import boottime
from banksman.topics import Topic
from banksman.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aiokafka.structs import ConsumerRecord

    from banksman import settings
    from banksman.events import Finding
    from banksman.settings import Kafka
    from banksman.signing import Secret

logger = logging.getLogger("banksman")

POLL_MS = 200
LEASE = 2 / 3
"""For how much of a session a commit lets tell: after a session another may have been given the partition."""
COMMITS, COMMIT_S = 6, 2.0
"""Commits in a session, and at most so many seconds between two: others see by them how far all is told."""
MARGIN_MS = 5_000
"""A record may be on its way for so long: until then nothing is taken as over for not being seen."""
SKEW_MS = 60_000
"""How far this machine's clock may be before the broker's, where nothing was received that says what the broker's is."""
NEWS_MS = 3_600_000
"""Where no notifier ever ran: what was over longer ago than this is no news."""
CONTROL_S = 10.0


class Notifier:
    """One notifier process. `worker`: a stable name, under which the partition is given back at once after a restart;
    `session_s`: after how long without a sign of life it is given to another.
    """

    def __init__(
        self,
        kafka: Kafka,
        secret: Secret,
        slack: settings.Slack,
        *,
        instance: str,
        worker: str = "",
        session_s: float = 6.0,
        late_s: float = 60.0,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._kafka, self._secret, self._instance = kafka, secret, instance
        self._worker, self._session_s, self._late_s = worker, session_s, late_s
        self._verifier = Verifier(secret)
        self._where = TopicPartition(kafka.topic(Topic.ALERTS), 0)
        self._group = kafka.topic_prefix + SERVICE
        self._slack = Slack(slack) if slack.bot_token() else None
        self._enforcers = Enforcers()
        self._channels = Channels(
            kafka, secret, named(slack.slack_channel) if self._slack else LOG, self._enforcers.seen
        )
        self._ready, self._is_ready = ready, False
        self._waiting = Waiting()
        self._incidents = Incidents()
        self._telling: Telling | None = None
        self._assigned = asyncio.Event()
        self._lease = 0.0
        self._newest = (0, 0.0)
        """The broker's stamp of the last record, and when it was read."""

    def not_ready(self) -> str:
        """Why nothing would be told, or ""."""
        if not self._is_ready:
            return "alerts are not read yet: Kafka is awaited"
        return "Kafka takes no commit: nothing is told" if self._telling is not None and not self._may() else ""

    def measures(self) -> Iterable[Measure]:
        """For `/metrics`."""
        for name, about, value in (
            (
                "reigns",
                "Whether this one tells; 0: it stands by.",
                lambda: int(self._telling is not None and self._may()),
            ),
            ("incidents", "Incidents that are not over, or not fully told.", lambda: len(self._incidents.by_id)),
            ("pending", "Of them, those of which something is to be told.", lambda: len(self._incidents.pending)),
            ("read", "The offset in alerts up to which is read.", lambda: self._incidents.next),
            ("waiting_seconds", "For how long at least the oldest of that has been waiting.", self._waiting_s),
        ):
            yield Measure(name, about, value)

    def _waiting_s(self) -> float:
        return self._waiting.seconds if self._telling is not None else 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Tell until `stop` is set. Kafka and Slack may be away for as long as they like."""
        if self._slack is None:
            logger.warning("BANKSMAN_SLACK_TOKEN is not set: alerts are told here, in this log, and nowhere else")
        else:
            await self._slack.open()
        consumer, producer = self._consumer(), bus.producer(self._kafka)
        tasks: list[asyncio.Task[None]] = []
        try:
            if not await _started(stop, consumer, producer):
                return
            self._records = Records(producer, self._kafka, self._secret, self._instance)
            consumer.subscribe([self._where.topic], listener=_Listener(self, consumer))
            tasks = [
                asyncio.create_task(self._channels.run(), name="control reader"),
                asyncio.create_task(self._read(consumer), name="alerts reader"),
                asyncio.create_task(self._keep(consumer), name="lease"),
                asyncio.create_task(bus.died(producer), name="Kafka producer"),
                asyncio.create_task(self._watchdog().run(), name="watchdog"),
            ]
            if self._slack is not None:
                tasks.append(asyncio.create_task(self._greet(self._slack), name="Slack"))
            await together(stop, *tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.leave()
            await bus.goodbye(consumer.stop())
            await bus.goodbye(producer.stop())
            if self._slack is not None:
                await self._slack.close()

    def _watchdog(self) -> Watchdog:
        return Watchdog(
            Progress(self._kafka), self._records, self._enforcers, self._late_s, now_ms=self._broker_ms,
            may=lambda: self._incidents if self._telling is not None and self._may() else None,
            applied=lambda: self._channels.applied,
        )  # fmt: skip

    def _consumer(self) -> AIOKafkaConsumer:
        return bus.consumer(
            self._kafka,
            group_id=self._group,
            group_instance_id=f"{SERVICE}-{self._worker}" if self._worker else None,
            auto_offset_reset="earliest",
            max_poll_interval_ms=86_400_000,  # Slack may be away for long: that is no reason to leave the group
            session_timeout_ms=int(self._session_s * 1000),
            heartbeat_interval_ms=int(min(1.0, self._session_s / 4) * 1000),
        )

    # ── reading ──

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            if self._assigned.is_set():
                await self._reign(consumer)
            try:
                polled = await consumer.getmany(timeout_ms=POLL_MS)
            except KafkaError as error:
                logger.warning("reading: %s: %s", type(error).__name__, error)
                await asyncio.sleep(0.5)
                continue
            if self._telling is None or self._assigned.is_set():
                continue
            for records in polled.values():
                self._apply(records, again=False)
            ended = self._incidents.lapse(self._broker_ms() - MARGIN_MS)
            if polled or ended:
                self._telling.news()
            self._telling.check()
            self._waiting.look(self._incidents.next, self._incidents.done, boottime())

    async def _reign(self, consumer: AIOKafkaConsumer) -> None:
        """Know what the log says, then begin to tell."""
        self._assigned.clear()
        await self.leave()
        if self._where not in consumer.assignment():
            logger.info("another notifier tells; this one stands by")
            self._say_ready()
            return
        try:
            self._incidents = Incidents()
            await self._rebuild(consumer)
        except (KafkaError, BrokerAway, OSError) as error:
            logger.warning("reading what was told: %s: %s", type(error).__name__, error)
            self._assigned.set()  # once more, from the beginning
            await asyncio.sleep(0.5)
            return
        if self._assigned.is_set():
            return
        self._telling = Telling(
            self._incidents, self._slack, self._records, self._channels.of, self._channels.default, may=self._may
        )
        self._telling.news()
        self._say_ready()

    def _say_ready(self) -> None:
        self._is_ready = True
        self._ready()

    async def _rebuild(self, consumer: AIOKafkaConsumer) -> None:
        control_end = await self._channels.end()
        commit = (await provision.committed(self._kafka, self._group, patience=2)).get(self._where)
        week_ago = time.time_ns() // 1_000_000 - WINDOW_MS
        found = (await consumer.offsets_for_times({self._where: week_ago}))[self._where]
        first = (await consumer.beginning_offsets([self._where]))[self._where]
        end = (await consumer.end_offsets([self._where]))[self._where]
        start = max(first, min(end, found.offset if found else end, _oldest(commit)))
        consumer.seek(self._where, start)
        consumer.resume(self._where)
        self._incidents.next = start
        while (await consumer.position(self._where)) < end and not self._assigned.is_set():
            polled = await consumer.getmany(timeout_ms=POLL_MS)
            for records in polled.values():
                self._apply(records, again=True)
        if self._assigned.is_set():
            return  # the group has decided anew: all of this is read again
        if commit is None:
            self._incidents.forget_past(self._broker_ms() - NEWS_MS)
        self._incidents.lapse(self._broker_ms() - MARGIN_MS)
        self._incidents.doubt()
        for incident in self._incidents.by_id.values():
            if self._slack is not None and incident.place is not None and incident.place.ts:
                self._slack.learn(incident.place.name, incident.place.channel)
        await self._channels.reached(control_end - 1, CONTROL_S)
        logger.info(
            "read alerts from %d to %d: %d incidents open, of %d something is to be told",
            start, end, len(self._incidents.by_id), len(self._incidents.pending),
        )  # fmt: skip

    def _apply(self, records: Sequence[ConsumerRecord], *, again: bool) -> None:
        for record in records:
            self._newest = max(self._newest[0], record.timestamp), boottime()
            event: Finding | None = counted(record, self._where.topic, self._verifier)
            if not isinstance(event, (Alert, AlertResolved)):
                if (
                    event is not None
                    and not self._incidents.apply(event, record.timestamp, record.offset)
                    and not again
                ):
                    logger.warning("not told, since it is of %s: %s", event.time[:10], words.visible(event.title))
            elif again:
                self._incidents.heard(event, record.timestamp, record.offset)
            self._incidents.next = record.offset + 1

    def _broker_ms(self) -> int:
        """What the broker's clock says at least."""
        stamp, read = self._newest
        return max(stamp + int((boottime() - read) * 1000) if stamp else 0, time.time_ns() // 1_000_000 - SKEW_MS)

    # ── who may tell ──

    def _may(self) -> bool:
        return boottime() < self._lease

    async def _keep(self, consumer: AIOKafkaConsumer) -> None:
        """Commit how far everything is told, and with it from where the log has to be read."""
        said = False
        while True:
            if self._telling is not None and not self._assigned.is_set():
                incidents, begun = self._incidents, boottime()
                commit = OffsetAndMetadata(incidents.done, f"from={incidents.oldest}")
                try:
                    async with asyncio.timeout(self._session_s):
                        await consumer.commit({self._where: commit})
                except (KafkaError, TimeoutError) as error:
                    if not said:
                        logger.warning("nothing is told before Kafka takes a commit: %s", type(error).__name__)
                    said = True
                else:
                    said = False
                    if incidents is self._incidents and self._telling is not None:
                        self._lease = begun + self._session_s * LEASE
                        await asyncio.sleep(min(self._session_s / COMMITS, COMMIT_S))
            await asyncio.sleep(POLL_MS / 1000)

    def assigned(self) -> None:
        """The group has decided anew."""
        self._assigned.set()

    async def leave(self) -> None:
        """Tell nothing more: another may."""
        self._lease = 0.0
        telling, self._telling = self._telling, None
        if telling is not None:
            await telling.stop()

    async def _greet(self, slack: Slack) -> None:
        """Say who we are to Slack; a token that is wrong is said at once, not at the first alert."""
        try:
            logger.info("alerts are told in Slack as %s", await slack.who())
        except BanksmanError as error:
            logger.error("Slack does not know us yet: %s", error)  # noqa: TRY400
        await asyncio.Event().wait()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """What the group decides."""

    def __init__(self, notifier: Notifier, consumer: AIOKafkaConsumer) -> None:
        self._notifier, self._consumer = notifier, consumer

    async def on_partitions_revoked(self, revoked: list[TopicPartition]) -> None:  # noqa: ARG002 - aiokafka's names
        await self._notifier.leave()

    async def on_partitions_assigned(self, assigned: list[TopicPartition]) -> None:
        # It stands still until it is known where to read from: questions about offsets would wait behind each fetch.
        self._consumer.pause(*assigned)
        self._notifier.assigned()


async def _started(stop: asyncio.Event, *clients: Any) -> bool:
    """Start Kafka clients, however long it takes; False: told to stop before."""
    said = False
    for client in clients:
        while True:
            try:
                await client.start()
            except (KafkaError, OSError) as error:
                if not said:
                    logger.warning("waiting for Kafka: %s", error)
                    said = True
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), 0.5)
            else:
                break
            if stop.is_set():
                return False
    return True


def _oldest(commit: OffsetAndMetadata | None) -> float:
    """From where the log has to be read, as the last commit says."""
    word, _, number = (commit.metadata if commit is not None else "").partition("=")
    return int(number) if word == "from" and number.isdigit() else float("inf")
