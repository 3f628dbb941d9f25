"""Events straight into Kafka: signed with the agent's event key, by an idempotent producer, in order, one batch in flight.

aiokafka lives in a thread and an event loop of its own; nothing here is imported by who sends over HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
from aiokafka.errors import (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
)

from banksman import bus
from banksman.errors import InvalidSetting
from banksman.knocking import why_not
from banksman.log import hush_kafka
from banksman.producers.transport import Away, NotLetIn, Rejected
from banksman.signing import SENT, Credential, parse_credential
from banksman.stamps import rfc3339
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from concurrent.futures import Future

    from aiokafka import AIOKafkaProducer

    from banksman.settings import Kafka

LATE_S = 3.0
"""An acknowledgement that takes longer is told as `away`; it is waited for all the same: the producer sends for ever."""
CLOSE_S = 2.0

_NOT_LET_IN = (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
)


class Marks(msgspec.Struct, gc=False):
    """What the headers of a record say of an event."""

    id: str
    kind: str
    time: str
    source: str


_marks = msgspec.json.Decoder(Marks).decode


class KafkaTransport:
    """Writes to `actions` as the agent of a credential."""

    def __init__(self, settings: Kafka, credential: Credential | str) -> None:
        """InvalidSetting: not a credential, or files in the settings that cannot be read."""
        known = parse_credential(credential) if isinstance(credential, str) else credential
        settings.client()
        self._settings = settings
        self._signer = known.signer()
        self._key = known.agent.encode()
        self._topic = settings.topic(Topic.ACTIONS)
        self._reset()

    def _reset(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._producer: AIOKafkaProducer | None = None
        self._aborted = False

    # ── for the thread that sends ──

    def send(self, payloads: Sequence[bytes], late: Callable[[Away], None]) -> None:
        """As `Transport.send`. What the producer has taken is waited for until it is acknowledged or failed for good."""
        under_way = self._submit(self._send(payloads))
        began, told = time.monotonic(), False
        while True:
            try:
                under_way.result(0.1)
            except TimeoutError:
                if self._aborted:
                    under_way.cancel()
                    raise Away("stopping") from None
                if not told and time.monotonic() - began > LATE_S:
                    told = True
                    late(Away(f"{self._topic}: not acknowledged for {LATE_S:g} s"))
            else:
                return

    def abort(self) -> None:
        """As `Transport.abort`."""
        self._aborted = True

    def close(self) -> None:
        """As `Transport.close`."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        with contextlib.suppress(TimeoutError):
            self._submit(self._drop()).result(CLOSE_S + 1)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(CLOSE_S)
        self._loop = self._thread = None

    def forked(self) -> None:
        """As `Transport.forked`. The parent's loop and sockets are left as they are: touching them would touch the parent's."""
        self._left_behind = (self._loop, self._producer)
        self._reset()

    def _submit(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        if self._loop is None:
            hush_kafka()
            loop = self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run, args=(loop,), name="banksman-kafka", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    # ── in the loop ──

    async def _send(self, payloads: Sequence[bytes]) -> None:
        try:
            producer = await self._connected()
            partitions = await asyncio.wait_for(producer.partitions_for(self._topic), 10)
            await self._publish(producer, bus.partition_of(self._key, len(partitions)), payloads)
        except (asyncio.CancelledError, Away):
            raise
        except _NOT_LET_IN as error:
            await self._drop()
            user = self._settings.kafka_username or "who sends"
            raise NotLetIn(f"Kafka: {user} may not write to {self._topic}: {type(error).__name__}") from None
        except MessageSizeTooLargeError:
            await self._drop()
            raise Rejected("larger than the topic takes", too_large=True) from None
        except (KafkaError, OSError, TimeoutError) as error:
            await self._drop()  # after an error of a batch its numbers are not the broker's any more
            raise Away(f"Kafka: {type(error).__name__}: {error}") from None

    async def _connected(self) -> AIOKafkaProducer:
        if self._producer is None:
            made = bus.producer(self._settings)
            try:
                await made.start()
            except KafkaConnectionError:
                await _stopped(made)
                why = await why_not(self._settings)
                raise (NotLetIn if isinstance(why, InvalidSetting) else Away)(f"Kafka: {why}") from None
            except BaseException:
                await _stopped(made)
                raise
            self._producer = made
        return self._producer

    async def _publish(self, producer: AIOKafkaProducer, partition: int, payloads: Sequence[bytes]) -> None:
        sent = (SENT, rfc3339().encode())
        at = 0
        while at < len(payloads):
            batch = producer.create_batch()
            first = at
            while at < len(payloads):
                value = payloads[at]
                marks = _marks(value)
                headers = self._signer.headers(
                    self._topic, self._key, value, id=marks.id, kind=marks.kind, time=marks.time, source=marks.source
                )
                headers.append(sent)
                if batch.append(key=self._key, value=value, timestamp=None, headers=headers) is None:
                    break
                at += 1
            if at == first:
                raise Rejected("does not fit into a batch", at=at, too_large=True)
            batch.close()
            await (await producer.send_batch(batch, self._topic, partition=partition))

    async def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stopped(producer)


async def _stopped(producer: AIOKafkaProducer) -> None:
    """Stop a producer; one that cannot say goodbye in time is left to itself."""
    with contextlib.suppress(TimeoutError, KafkaError, OSError):
        await asyncio.wait_for(producer.stop(), CLOSE_S)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.05))
    finally:
        loop.close()
