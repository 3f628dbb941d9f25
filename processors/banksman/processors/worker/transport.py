"""Faust's aiokafka transport, with a cheaper way from a fetched record to its stream, and a bound of bytes on what waits there.

Faust hands every record over in a race between its delivery and a rebalance, which takes four tasks. Nearly always the
delivery ends without having to wait, so it is run up to its first wait, and only then the race begins. On Python 3.12 and
later Faust's own way is taken: there `asyncio.wait_for` remembers the task that entered it, and a first step run by hand
would not be in that.
"""

from __future__ import annotations

import asyncio
import sys
import types
from collections import deque
from typing import TYPE_CHECKING, Any

import faust
from faust.transport.drivers import TRANSPORTS, aiokafka
from mode.utils.queues import ThrowableQueue

from banksman.failover import ready_for_failover

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterable

SCHEME = "banksman"
BY_HAND = sys.version_info < (3, 12)
WAITING, OBJECTS = 32 << 20, 1000
"""Bytes of records that wait in a stream: Faust counts records alone, and each may have two megabytes, be it in its headers. So
many come on top for the objects of each.
"""


class Thread(aiokafka.AIOKafkaConsumerThread):
    """Its client goes on when one of several brokers hangs, as all of ours do."""

    def _create_consumer(self, loop: asyncio.AbstractEventLoop) -> Any:
        made = super()._create_consumer(loop)
        ready_for_failover(made._client)  # noqa: SLF001 - there is no public way to it
        return made


class Consumer(aiokafka.Consumer):
    """Delivers a record without a task where it can, and none that Faust would throw away.

    Three gaps around a recovery of tables, each of which loses records until the next start:

    * A fetch goes by the set of partitions that are active, while others change it. At the end of a recovery it is empty for a
      moment, which means all of them: records of the streams are taken, and thrown away. A fetch gets a set of its own.
    * The partitions of the streams are resumed, then the flow, which empties the queues of the streams: what was delivered in
      between is gone. They are resumed with the flow.
    * Of a partition of which nothing was ever committed aiokafka seeks nowhere: it goes on behind what was thrown away. It
      begins at its beginning.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: set[Any] = set()

    def _new_consumer_thread(self) -> Thread:
        return Thread(self, loop=self.loop, beacon=self.beacon)

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:  # noqa: ASYNC109 - Faust's signature
        return await super()._getmany(None if active_partitions is None else set(active_partitions), timeout)

    def resume_partitions(self, tps: Iterable[Any]) -> None:
        """Changelogs at once; the others with the flow."""
        changelogs = {tp for tp in tps if tp.topic in self.app.tables.changelog_topics}
        self._held |= set(tps) - changelogs
        super().resume_partitions(changelogs)

    def pause_partitions(self, tps: Iterable[Any]) -> None:
        """At once."""
        self._held -= set(tps)
        super().pause_partitions(tps)

    def resume_flow(self) -> None:
        """The queues are empty, and what is delivered now stays."""
        super().resume_flow()
        held, self._held = self._held, set()
        super().resume_partitions(held & self.assignment())

    async def perform_seek(self) -> None:
        """Back to what is committed, or to the beginning."""
        await super().perform_seek()
        changelogs = self.app.tables.changelog_topics
        never = [tp for tp in self.assignment() if tp.topic not in changelogs and not self._committed_offset[tp]]
        if never:
            await self.seek_wait(await self.earliest_offsets(*never))

    async def wait_first(self, *coros: Any, timeout: Any = None) -> Any:  # noqa: ASYNC109 - Faust's signature
        """Called for every record with its delivery, and with what a rebalance would set."""
        if (
            BY_HAND and len(coros) == 2 and asyncio.iscoroutine(coros[0])
            and not (self.suspend_flow.is_set() or self.should_stop)
        ):  # fmt: skip
            deliver, suspended = coros
            try:
                waits_for = deliver.send(None)
            except StopIteration:
                suspended.close()
                return None
            except BaseException:
                suspended.close()
                raise
            coros = _rest(deliver, waits_for), suspended
        return await super().wait_first(*coros, timeout=timeout)


async def _rest(begun: Coroutine[Any, Any, Any], waits_for: Any) -> Any:
    return await _resumed(begun, waits_for)


@types.coroutine
def _resumed(begun: Coroutine[Any, Any, Any], waits_for: Any) -> Generator[Any, Any, Any]:
    try:
        yield waits_for  # what its first step waited for, now in the task that runs us
    except BaseException:
        begun.close()
        raise
    return (yield from begun.__await__())


class Transport(aiokafka.Transport):
    """`banksman://host:port`"""

    Consumer = Consumer


class Waiting(ThrowableQueue):  # type: ignore[type-arg]  # of Faust's events
    """What waits in a stream: full also when it has WAITING bytes."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self.bytes, self._sizes = 0, deque[int]()

    def _put(self, item: Any) -> None:
        super()._put(item)
        size = size_of(item.message) + OBJECTS
        self._sizes.append(size)
        self.bytes += size

    def _get(self) -> Any:
        self.bytes -= self._sizes.popleft()
        return super()._get()

    def full(self) -> bool:
        """Whether a record has to wait before it waits here."""
        return self.bytes >= WAITING or super().full()

    def clear(self) -> None:
        """Partitions were dealt out anew."""
        super().clear()
        self._sizes.clear()
        self.bytes = 0


def size_of(message: Any) -> int:
    """Bytes of a record."""
    size = len(message.value or b"") + len(message.key or b"")
    for name, value in message.headers or ():
        size += len(name) + len(value or b"")
    return size


class App(faust.App):
    """With streams of which nobody can make a worker's memory full."""

    def FlowControlQueue(  # noqa: N802 - Faust's name
        self, maxsize: int | None = None, *, clear_on_resume: bool = False
    ) -> ThrowableQueue[Any]:
        """A stream's queue, which stands still when Faust wants it to."""
        return Waiting(maxsize=maxsize, flow_control=self.flow_control, clear_on_resume=clear_on_resume)


TRANSPORTS[SCHEME] = f"{__name__}:Transport"
