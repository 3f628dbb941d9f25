"""A record in `control` that holds when its writer is answered: written, acknowledged, and known to every replica that may
still answer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple

from banksman.errors import Unavailable
from banksman.http_problem import problem

if TYPE_CHECKING:
    from banksman.enforcer.replica import Replica
    from banksman.events import Control

READ_BACK_S = 5.0
_log = logging.getLogger("banksman")


class Holds(NamedTuple):
    """Since `took_ms` after it was asked for, no replica can answer without knowing of the record at `offset`.

    `replicas`: how many were heard of lately. `fenced`: the ids of those that did not say that they know.
    """

    offset: int
    replicas: int
    fenced: list[str]
    took_ms: float


async def command(replica: Replica, event: Control) -> Holds:
    """Append to control and return when every replica goes by it.

    Problem 503: it is not acknowledged, or not read back. It may land all the same: who asks again finds out.
    """
    awake(replica)
    began = replica.lease.clock()
    try:
        offset = await replica.records.control(event)
        asked, fenced = await everywhere(replica, offset)
    except Unavailable as error:
        raise problem(503, f"it may or may not be in force: {error}", retry_after=1) from None
    if fenced:
        _log.warning("replicas %s did not answer and were fenced", ", ".join(fenced))
    return Holds(offset, asked, fenced, (replica.lease.clock() - began) * 1000)


def awake(replica: Replica) -> None:
    """Problem 503 where nothing would come of writing to control: nobody knows how long it would wait."""
    if not replica.lease.valid:
        raise problem(503, "nothing was heard from Kafka lately", retry_after=1)


async def read_back(replica: Replica, offset: int, seconds: float = READ_BACK_S) -> None:
    """Return when this replica has applied what was just acknowledged at `offset` in control. Unavailable: not in time."""
    if offset < 0:
        raise Unavailable("it is on record, but nobody can say where")
    try:
        async with asyncio.timeout(seconds):
            await replica.control.applied(offset)
    except TimeoutError:
        raise Unavailable(f"it is on record at {offset}, but was not read back within {seconds:g} s") from None


async def everywhere(replica: Replica, offset: int) -> tuple[int, list[str]]:
    """Return when no replica can answer without knowing what was just acknowledged at `offset` in control.

    -> (how many replicas there are, the ids of those that did not say so). These are fenced: a lease that does not know of
    it was begun before it was written, so one lease (theirs: their heartbeats tell how long) after the acknowledgement the
    last of them has run out. Unavailable: this replica itself has not read it back; it is in force all the same.
    """
    acknowledged = replica.lease.clock()
    await read_back(replica, offset)
    live = replica.live()
    asked = [peer.replica for peer in live]
    until = acknowledged + max((peer.lease_s for peer in live), default=replica.lease.length)
    while True:
        peers = replica.state.peers
        behind = [name for name in asked if name in peers and peers[name].applied < offset and not peers[name].ended]
        left = until - replica.lease.clock()
        if not behind or left <= 0:
            return len(asked), behind
        await replica.control.moved(left)
