"""What a detector is: a pure step over the records of one agent, or of one session, with a state that the worker keeps.

    step(state, seen, policy) -> (state, what it saw)

No detector reads a clock, asks a service or knows of Kafka: time is when the broker received a record, and what was seen is
the same however often the same records come. A detector is a file in `detectors/` with a `DETECTOR`; the worker finds it there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from banksman.events import ModelCall, ToolResult

if TYPE_CHECKING:
    from banksman.events import Event
    from banksman.policy.rules import AgentPolicy, OnAlert
    from banksman.topics import Topic

S = TypeVar("S")

Severity = Literal["info", "warn", "page"]


@dataclass(frozen=True, slots=True)
class Seen:
    """One record that counts: verified, and not a resend. `late`: it came long after it happened, or by a wrong clock; then it
    counts for what was spent, never for rates and loops.
    """

    event: Event
    """The typed model: ToolCall, ToolResult, ModelCall, Decision, …"""
    topic: Topic
    partition: int
    offset: int
    received_ms: int
    """When the broker appended it, since 1970."""
    late: bool = False
    cost_nano: int | None = None
    """What it cost in billionths of a USD, by its author or by the price table; None: nothing, or nobody knows."""
    unpriced: bool = False
    """It used tokens of a model that is not in the price table."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a detector saw. It becomes a `finding`, whose id comes from the record that gave rise to it."""

    severity: Severity
    title: str
    fingerprint: str
    """The same for the same thing seen again: begins with the detector's name."""
    evidence: dict[str, Any] = field(default_factory=dict)
    suggestion: str = ""
    count: int = 1
    first_ms: int | None = None
    """Since when; None: since the record that gave rise to it."""
    session: str | None = None
    over: bool = False
    """What was seen under this fingerprint is over."""
    act: OnAlert = "alert"
    """What the policy wants done besides telling a human."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What an agent has spent of a budget by now: goes to `limits`."""

    unit: Literal["tokens", "usd"]
    spent: float
    limit: float
    day: str
    """The day that it was spent in, as the policy's time zone has it: 2026-11-29."""
    resets_ms: int
    """When that day ends."""
    exhausted_ms: int | None
    """When it was exhausted; None: it is not."""
    burn: float
    """How fast it was spent in the last hour; 1: what a whole day can go on with."""


Seens = Sequence[Sighting | Spent]
MOST = 1 << 62
"""Of a sum: a state must be one that can be written."""
FORGET_MS, FORGET_ENDED_MS = 24 * 3_600_000, 60_000


def forgotten(last_ms: int, ended_ms: int) -> int:
    """When nobody needs to know any more of a session. `ended_ms`: 0 while it goes on."""
    return ended_ms + FORGET_ENDED_MS if ended_ms else last_ms + FORGET_MS


def tokens_of(event: Event) -> int:
    """What counts of what a call used: what was read from a cache does not."""
    if isinstance(event, ModelCall):
        return event.input_tokens + event.output_tokens + event.cache_write_tokens
    return event.input_tokens + event.output_tokens if isinstance(event, ToolResult) else 0


def _never(_state: Any) -> int | None:
    return None


def _nothing(state: Any, _now_ms: int, _policy: AgentPolicy | None) -> tuple[Any, Seens]:
    return state, ()


@dataclass(frozen=True)
class Detector(Generic[S]):
    """`state`: a msgspec Struct whose defaults are the state before the first record, and which msgpack can hold.

    `step` owns the state that it is given and may change it in place. It returns the state to keep, None to forget it.
    `due`: when, in ms since 1970, `lapse` wants to be called though no record came; `lapse(state, now_ms, policy)` is as
    `step`, and is called too when the agent's policy has changed.
    """

    name: str
    scope: Literal["agent", "session"]
    """Whether there is one state for an agent, or one for each of its sessions."""
    state: type[S]
    kinds: frozenset[type[Event]]
    """The models that `step` wants to see."""
    step: Callable[[S, Seen, AgentPolicy | None], tuple[S | None, Seens]]
    due: Callable[[S], int | None] = _never
    lapse: Callable[[S, int, AgentPolicy | None], tuple[S | None, Seens]] = _nothing
