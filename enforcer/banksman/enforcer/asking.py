"""One question on its way from its request to its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from banksman.enforcer.answers import Answer
    from banksman.events import Claim


class Asking:
    """One question on its way. `began`: its head was there; `read`: the thread's own time since when it
    keeps the replica busy (both ns).
    """

    __slots__ = ("at", "began", "claim", "expires_at", "heavy", "id", "named", "read")

    def __init__(self, began: int, read: int, heavy: bool, name: str = "", at: str = "") -> None:
        self.began, self.read, self.heavy, self.id = began, read, heavy, name
        self.at = at
        """In a replay, when it was asked first."""
        self.claim: Claim | None = None
        """The approval that it took, as what gives it back."""
        self.expires_at = ""
        """The end of the approval that its record names."""
        self.named = False
        """Whether the question itself named one."""


class Given(NamedTuple):
    """An answer that is on its way out, and its record. None: it was given before."""

    session: str
    answer: Answer
    record: dict[str, Any] | None
    asked: Asking | None = None
