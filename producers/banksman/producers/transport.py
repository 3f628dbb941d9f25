"""The way of events to the other side, as `delivery` sees it: a batch arrives, or one of these says why not.

Undelivered
├── Away           nobody is there, or it is too busy: the same again, later
├── NotLetIn       the token or key is not accepted (any more): the same again, later, and people are told
└── Rejected       something in the batch can never be stored; where it is known, `at` says which event
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from banksman.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Undelivered(Unavailable):
    """The batch did not arrive, as far as is known."""


class Away(Undelivered):
    """`retry_after`: not before so many seconds, where the other side said so."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotLetIn(Away):
    """Who sends is not known there, or may not."""


class Rejected(Undelivered):
    """`at`: the index of the event that is wrong; None: not known. `too_large`: the batch as a whole is."""

    def __init__(self, message: str, *, at: int | None = None, too_large: bool = False) -> None:
        super().__init__(message)
        self.at, self.too_large = at, too_large


class Transport(Protocol):
    """Used by one thread, but for `abort`."""

    def send(self, payloads: Sequence[bytes], late: Callable[[Away], None]) -> None:
        """Return when all of them are durable on the other side, in this order. Raises Undelivered.

        May wait as long as the transport sees fit, but not after `abort`; `late` is told when that becomes long.
        """

    def abort(self) -> None:
        """Called from another thread: end what is under way, soon, and refuse the rest."""

    def close(self) -> None:
        """Let go of connections, after the last `send`."""

    def forked(self) -> None:
        """In a child: forget the parent's connections without a word on them."""
