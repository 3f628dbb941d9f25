"""aiokafka clients (0.14) that go on when one broker of several is away, also one that hangs with its connections open.

A broker that was killed refuses connections, and its clients look elsewhere at once. One that stands still (stopped, swapping,
cut off by a firewall that drops) says nothing at all. What aiokafka does then is to wait, for the whole of its request's
time-out, at each of four places one after another; measured with three brokers and a time-out of 5 s, that was up to 17 s
without an answer, when the cluster itself had chosen new leaders after 2. Hence three changes, made in `ready_for_failover`:

* Metadata is asked of another broker when one has said nothing for HEDGE_S ("The Tail at Scale", Dean and Barroso, 2013:
  hedged requests), so that new leaders are known as soon as there are any.
* Connections are opened side by side; aiokafka opens one at a time, and all others wait for one that hangs.
* A broker that the cluster no longer lists gets no more patience: its connections are closed, and what was sent over them
  is sent again, to who leads now. (An idempotent producer's batch keeps its number: the log has it once.)

What is left when a broker hangs is the time after which the cluster itself notices (broker.session.timeout.ms: 9 s unless it
was changed), or the request's time-out, whichever is shorter.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import defaultdict
from typing import Any

from aiokafka.conn import CloseReason
from aiokafka.producer.transaction_manager import NO_PRODUCER_EPOCH, NO_PRODUCER_ID, PidAndEpoch

HEDGE_S = 0.5
"""So long one broker may keep a question for metadata to itself."""

MOST_ASKED = 4
"""So many questions at once. Each begins with any of the brokers: one that hangs is hardly the first of all four."""

PAUSE_S = 0.1
"""aiokafka's own pause between two tries."""
LAST_EPOCH = (1 << 15) - 1


def ready_for_failover(client: Any) -> None:
    """Make the changes above in an `AIOKafkaClient` that was not started yet; and a fourth:

    When a partition has no leader, its fetcher and its sender ask for metadata again and again, and nothing in the loop waits:
    10,000 tries a second where the connection is refused at once, hundreds where the other brokers answer. So a try that
    failed, or that found a partition without a leader, takes as long as the client's own back-off.
    """
    ask, connect = client._metadata_update, client._get_conn  # noqa: SLF001 - there is no public place for any of it
    opening: defaultdict[Any, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def connected(node: Any, *, group: int = 0, no_hint: bool = False) -> Any:
        async with opening[node, group]:
            return await connect(node, group=group, no_hint=no_hint)

    async def update(cluster: Any, topics: Any) -> bool:
        if not await _hedged(ask, cluster, topics):
            await asyncio.sleep(PAUSE_S)
            return False
        if cluster is client.cluster:
            _leave_unlisted(client)
            if _leaderless(client.cluster):
                await asyncio.sleep(PAUSE_S)
        return True

    client._get_conn_lock_value = contextlib.nullcontext()  # noqa: SLF001 - `connected` has a lock for each connection
    client._get_conn = connected  # noqa: SLF001
    client._metadata_update = update  # noqa: SLF001


async def _hedged(ask: Any, cluster: Any, topics: Any) -> bool:
    """Whether one of the questions was answered; the next is asked when those before have said nothing for HEDGE_S."""
    asked: set[asyncio.Task[bool]] = set()
    try:
        for patience in (HEDGE_S,) * (MOST_ASKED - 1) + (None,):
            asked.add(asyncio.ensure_future(ask(cluster, topics)))
            done, asked = await asyncio.wait(asked, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if any(task.result() for task in done):
                return True
            if not asked:
                return False
        for answer in asyncio.as_completed(asked):
            if await answer:
                return True
        return False
    finally:
        for task in asked:
            task.cancel()


def _leaderless(cluster: Any) -> bool:
    return any(
        cluster.available_partitions_for_topic(topic) != cluster.partitions_for_topic(topic)
        for topic in cluster.topics()
    )


def _leave_unlisted(client: Any) -> None:
    listed = {broker.nodeId for broker in client.cluster.brokers()}
    for (node, _), connection in list(client._conns.items()):  # noqa: SLF001
        if node != "bootstrap" and node not in listed and connection.connected():
            connection.close(reason=CloseReason.CONNECTION_TIMEOUT)


def never_out_of_order(producer: Any) -> None:
    """Make an idempotent `AIOKafkaProducer` that was not started yet go on after a batch that failed for good.

    A batch takes its numbers when it is sent for the first time. Where it fails for good, the log never has them, and all that
    the producer sends to the partition afterwards is refused as out of order, for ever. So

    * a batch whose partition has no leader waits for one; aiokafka takes numbers for it and gives it up after its time-out.
      Whoever published it has a deadline of their own;
    * whoever had a batch refused (too large, not allowed) goes on in its next epoch, in which all numbers begin with 0, as
      Java's producer does (KIP-360). What is in flight, one batch a partition, keeps the epoch and the numbers that it has.
    """
    accumulator, manager = producer._message_accumulator, producer._txn_manager  # noqa: SLF001
    pop = accumulator._pop_batch  # noqa: SLF001

    def popped(where: Any) -> Any:
        batch = pop(where)
        if batch.retry_count == 1:  # the first time that it is sent
            batch.future.add_done_callback(ended)
        return batch

    def ended(future: asyncio.Future[Any]) -> None:
        if future.cancelled() or future.exception() is None or not manager.has_pid():
            return
        producer_id, epoch = manager._pid_and_epoch  # noqa: SLF001
        if epoch < LAST_EPOCH:
            manager._pid_and_epoch = PidAndEpoch(producer_id, epoch + 1)  # noqa: SLF001
        else:  # another id is asked for before anything else is sent
            manager._pid_and_epoch = PidAndEpoch(NO_PRODUCER_ID, NO_PRODUCER_EPOCH)  # noqa: SLF001
            manager._pid_waiter = future.get_loop().create_future()  # noqa: SLF001
        manager._sequence_numbers.clear()  # noqa: SLF001

    accumulator._batch_ttl = math.inf  # noqa: SLF001
    accumulator._pop_batch = popped  # noqa: SLF001
