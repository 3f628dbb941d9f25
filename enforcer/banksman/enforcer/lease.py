"""The lease: for how long this replica may still answer without having heard anything new.

A replica writes heartbeats into `control`. When one of its own, acknowledged by a quorum, comes back through its own
reader, everything written before it has been applied; so nothing that was written before the moment it was begun can
be unknown here, and the replica may answer until `length` seconds after that moment. Who writes a control and waits as
long as a lease knows: no replica that has not applied it can answer any more. Reading the end offset instead would not
do: a broker that is no leader any more answers that too.

The clock is CLOCK_BOOTTIME: CLOCK_MONOTONIC stands still while a machine is suspended.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from banksman.stamps import boottime, rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable


class _Beat:
    __slots__ = ("acknowledged", "back", "began")

    def __init__(self, began: float) -> None:
        self.began, self.acknowledged, self.back = began, False, False


class Lease:
    """What the heartbeats of one replica have bought. Nothing here reads anything but the clock that it is given."""

    def __init__(self, length: float, clock: Callable[[], float] = boottime) -> None:
        self.length, self.clock = length, clock
        self.ends = 0.0
        self.until = rfc3339(datetime.fromtimestamp(0, UTC))
        """`ends` as RFC 3339: what answers carry as `valid_until`."""
        self._beats: OrderedDict[str, _Beat] = OrderedDict()

    @property
    def valid(self) -> bool:
        """Whether the replica may answer at this moment."""
        return self.clock() < self.ends

    def begin(self, beat: str) -> None:
        """A heartbeat is about to be sent; call it before anything of the sending has begun."""
        now = self.clock()
        self._beats[beat] = _Beat(now)
        while next(iter(self._beats.values())).began + self.length < now:  # it could renew nothing
            self._beats.popitem(last=False)

    def acknowledged(self, beat: str) -> None:
        """The broker says that a quorum has it."""
        known = self._beats.get(beat)
        if known is not None:
            known.acknowledged = True
            self._renew(beat, known)

    def came_back(self, beat: str) -> bool:
        """The reader met it, with everything before it applied. False: it is not one of this replica's."""
        known = self._beats.get(beat)
        if known is None:
            return False
        known.back = True
        self._renew(beat, known)
        return True

    def give_up(self) -> None:
        """No answer from here on, whatever comes back later."""
        self._beats.clear()
        self.ends = 0.0

    def _renew(self, beat: str, known: _Beat) -> None:
        if not (known.acknowledged and known.back):
            return
        while self._beats:  # older ones can only end earlier
            name, _ = self._beats.popitem(last=False)
            if name == beat:
                break
        ends = known.began + self.length
        if ends > self.ends:
            self.ends = ends
            self.until = rfc3339(datetime.now(UTC) + timedelta(seconds=ends - self.clock()))
