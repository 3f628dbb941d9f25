"""Loops: a session that does the same things again and again and gets nowhere.

An action is a tool call together with its result, or a request to an API. It is judged when its result is there, also when
that is "denied": who hammers at a closed door is stuck. Its key is what was done (service, action, resource, branch,
arguments), its outcome what came of it, errors without their digits. For every period of 1 to 8 actions it is counted how
long the last actions repeat those of one period before, and how many of them with the same outcome. A loop is

1. `same_outcome`: a cycle seen 4 times (of one action) or 3 times (longer ones), at least 80 % of it with the same outcome;
2. `same_arguments`: a cycle seen 8, 5 (two actions) or 4 times (longer ones), whatever came of it;
3. `same_failure`: the same action failed 3 times in a row, whatever the error;
4. `nothing_new`: 9 of the last 12 actions had been seen in this session, with this outcome.

Where nothing is known of outcomes, arguments alone must do: 5 times, 4 times (cycles), 11 of 12. At 5 occurrences it is a
page; `nothing_new` stays a warning. One warning and one page are told per episode, and that it is over.

What is no loop: paging (its arguments differ), identical calls of one message (one decision of the model: they count as one),
and whatever came long after it happened. Polling is not known yet as what it is: an unchanged status is a loop at the fourth
look, a changing one at the eighth. Actions are judged in the order of their results, so a message whose parallel calls end in
another order each time may be no cycle here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import field

from banksman import stamps
from banksman.events import ApiRequest, ModelCall, SessionEnded, ToolCall, ToolResult
from banksman.policy.catalogue import is_read_only
from banksman.processors.detector import MOST, Detector, Sighting, forgotten, tokens_of
from banksman.processors.operation import arguments_of, call_of, command, digest, holds, label, masked, with_one

if TYPE_CHECKING:
    from banksman.policy.rules import AgentPolicy
    from banksman.processors.detector import Seen, Seens, Severity

PERIODS = 8
SAME, SAME_LONGER = 4, 3
CHANGING, CHANGING_LONGER = {1: 8, 2: 5}, 4
UNKNOWN, UNKNOWN_LONGER = 5, 4
FAILURES = 3
SAME_SHARE = 0.8
WINDOW, STALE, STALE_UNKNOWN = 12, 9, 11
PAGE_AT = 5

QUIET = 3
"""Actions without a rule that fires, and the episode is over."""
OPEN_CALLS = 32
"""Calls that wait for their result; beyond, the oldest never gets one."""
SEEN = 512
"""Pairs of action and outcome that a session is known to have had."""
LARGEST_MESSAGE = 64
"""Calls of one message. A higher index is no index: else who counts on for ever would never decide anything."""

WARNED, PAGED, ACTED = 1, 2, 3

_waits = re.compile("approve: |deny: (?:no_answer|not_asked|paused|killed|revoked|exhausted)").match
"""What a producer reports when its agent has to wait for others: in an outage everybody tries again. It is never a page."""


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """A moment of the session, and what had been used by then."""

    ms: int = 0
    tokens: int = 0
    nano: int = 0


class Action(msgspec.Struct, array_like=True):
    """One that was judged."""

    key: bytes
    outcome: bytes
    """Empty: nobody said."""
    label: str
    writes: bool


class Period(msgspec.Struct, array_like=True):
    """How long the last actions repeat those of so many actions before."""

    run: int = 0
    same: int = 0
    since: Mark = field(default_factory=Mark)
    """The first repeat."""


class Call(msgspec.Struct, array_like=True):
    """A call that waits for its result."""

    key: bytes
    label: str
    writes: bool
    further: bool
    """It is not the first one of its message."""


class Episode(msgspec.Struct, array_like=True):
    """What was told of a loop that goes on."""

    level: int = 0
    quiet: int = 0
    count: int = 0
    what: str = ""
    whose: str = ""
    fingerprint: str = ""
    session: str = ""
    since: Mark = field(default_factory=Mark)


class State(msgspec.Struct, array_like=True):
    """Of one session: some 2 KB, and never more than 32 KB."""

    last_ms: int = 0
    ended_ms: int = 0
    used: Mark = field(default_factory=Mark)
    """So far."""
    calls: dict[str, Call] = field(default_factory=dict)
    message: bytes = b""
    """The keys of the message that is being made."""
    index: int = 0
    ring: list[Action] = field(default_factory=list)
    periods: list[Period] = field(default_factory=lambda: [Period() for _ in range(PERIODS)])
    failures: int = 0
    failing: Mark = field(default_factory=Mark)
    seen: bytes = b""
    known: int = 0
    """A bit for each of the last actions, the newest lowest: seen before, with this outcome."""
    blind: int = 0
    """The same, of those whose outcome nobody said."""
    news: Mark = field(default_factory=Mark)
    """When something new happened last."""
    acted: bool = False
    episode: Episode | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that fires now."""

    rule: str
    period: int
    count: int
    since: Mark
    severity: Severity


def step(state: State, seen: Seen, policy: AgentPolicy | None) -> tuple[State | None, Seens]:
    """See `Detector`."""
    if seen.late:  # it changes nothing, not even for how long the session is remembered
        return (state if state.last_ms else None), ()
    event = seen.event
    state.last_ms = max(state.last_ms, seen.received_ms)
    state.ended_ms = 0
    used = state.used
    state.used = Mark(
        seen.received_ms, min(MOST, used.tokens + tokens_of(event)), min(MOST, used.nano + (seen.cost_nano or 0))
    )
    if isinstance(event, ToolCall):
        _open(state, event)
    elif isinstance(event, ToolResult):
        call = state.calls.pop(event.call or "", None) or state.calls.pop(event.parent or "", None)
        if call is not None:
            return state, _act_on(state, call, event, seen, policy)
    elif isinstance(event, ApiRequest):
        state.message = b""
        key, writes = _key(event), not is_read_only(event.service, event.action)
        return state, _act_on(state, Call(key, label(event), writes, further=False), event, seen, policy)
    elif isinstance(event, SessionEnded):
        state.ended_ms = seen.received_ms
        return state, _over(state, "the session ended")
    return state, ()


def due(state: State) -> int | None:
    """When the session is forgotten: soon after its end, or when it has been silent for a day."""
    return forgotten(state.last_ms, state.ended_ms)


def lapse(state: State, now_ms: int, _policy: AgentPolicy | None) -> tuple[State | None, Seens]:
    """See `Detector`."""
    if now_ms < (due(state) or 0):
        return state, ()
    return None, _over(state, "nothing more came")


# ── what an action is ──


def _key(event: ToolCall | ApiRequest) -> bytes:
    return digest(event.service, event.action, event.resource, event.branch, arguments_of(event))


def _outcome(event: ToolResult | ApiRequest) -> bytes:
    known = event.outcome_hash or event.result_hash
    if known is not None:
        return digest(event.status, known)
    if event.status in ("error", "denied") or event.error:
        return digest(event.status, None, masked(event.error))
    return b""


def _open(state: State, event: ToolCall) -> None:
    """A call begins. What a message says twice is one decision: the second one is not looked at."""
    key, index = _key(event), event.batch or 0
    further = state.index < index < LARGEST_MESSAGE  # an index that does not rise begins a new message
    state.index = index
    if not further:
        state.message = b""
    elif holds(state.message, key):
        return
    state.message += key
    writes = not is_read_only(event.service, event.action)
    state.calls[call_of(event)] = Call(key, label(event), writes, further)
    if len(state.calls) > OPEN_CALLS:
        del state.calls[next(iter(state.calls))]


# ── the rules ──


def _act_on(
    state: State, call: Call, event: ToolResult | ApiRequest, seen: Seen, policy: AgentPolicy | None
) -> list[Sighting]:
    """An action is complete."""
    hit = _judge(state, call, _outcome(event), failed=event.status in ("error", "denied"))
    episode = state.episode
    if hit is None:
        if episode is not None:
            episode.quiet += 1
            if episode.quiet >= QUIET:
                return _over(state, "it does other things now")
        return []
    if episode is None:
        episode = state.episode = Episode(
            whose=f"{event.project}/{event.agent}, session {event.session}",
            fingerprint=f"loops/{event.agent}/{event.session}", session=event.session, since=hit.since,
        )  # fmt: skip
    episode.quiet, episode.count = 0, hit.count
    severity: Severity = "warn" if _waits(event.error or "") else hit.severity
    wanted = PAGED if severity == "page" else WARNED
    # Pause or kill at the page, not at the warning: a warning is 3 or 4 occurrences, which well-behaved agents reach now and
    # then. Once in a session: an operator who lets a session go on has seen the loop, and must not be overruled by it. Never
    # for what was denied: that is stopped already, and a pause or an outage must not end in kills.
    may = wanted == PAGED and not state.acted and event.status != "denied"
    act = policy.on_loop if policy is not None and may else "alert"
    if act != "alert":
        wanted, state.acted = ACTED, True
    if wanted <= episode.level:
        return []
    episode.level = wanted
    cycle = [action.label for action in state.ring[-max(1, hit.period) :]]
    episode.what = _what(hit, cycle)
    return [
        Sighting(
            severity, _title(episode, hit, event, seen.received_ms), episode.fingerprint,
            evidence=_evidence(state, hit, event, cycle),
            suggestion=command("kill", event.session, "--agent", event.agent, "--reason", "loop"),
            count=hit.count, first_ms=hit.since.ms, session=event.session, act=act,
        )
    ]  # fmt: skip


def _judge(state: State, call: Call, outcome: bytes, *, failed: bool) -> Hit | None:
    """Count an action in; the first rule that fires, the shortest period first."""
    ring, now = state.ring, state.used
    again = bool(ring) and ring[-1].key == call.key
    pair = call.key if not outcome else digest(call.key.hex(), outcome.hex())
    stale = holds(state.seen, pair)
    if not stale:
        state.seen = with_one(state.seen, pair, SEEN)
    stale &= not call.further
    window = (1 << WINDOW) - 1
    state.known = (state.known << 1 | (stale and outcome != b"")) & window
    state.blind = (state.blind << 1 | (stale and outcome == b"")) & window
    if not stale:
        state.news = now
    state.failures = (state.failures + 1 if again else 1) if failed else 0
    if state.failures <= 2:
        state.failing = now
    ring.append(Action(call.key, outcome, call.label, call.writes))
    del ring[: -PERIODS - 1]
    hit = None
    for number, period in enumerate(state.periods, 1):
        before = ring[-1 - number] if len(ring) > number else None
        if before is None or before.key != call.key:
            period.run = period.same = 0
            continue
        period.run += 1
        if period.run == 1:
            period.since = now
        if outcome and before.outcome == outcome:
            period.same += 1
        elif number == 1 and outcome:
            period.same = 0
        if hit is None and period.run >= number and not (call.further and number == 1):
            hit = _cycle(number, period, known=outcome != b"")
    if hit is None and state.failures >= FAILURES:
        severity: Severity = "page" if state.failures >= PAGE_AT else "warn"
        return Hit("same_failure", 1, state.failures, state.failing, severity)
    old = state.known.bit_count()
    if hit is None and (old >= STALE or old + state.blind.bit_count() >= STALE_UNKNOWN):
        return Hit("nothing_new", 0, old + state.blind.bit_count(), state.news, "warn")
    return hit


def _cycle(number: int, period: Period, *, known: bool) -> Hit | None:
    count = period.run // number + 1
    severity: Severity = "page" if count >= PAGE_AT else "warn"
    if period.same >= period.run * SAME_SHARE and count >= (SAME if number == 1 else SAME_LONGER):
        return Hit("same_outcome", number, count, period.since, severity)
    need = CHANGING.get(number, CHANGING_LONGER) if known else UNKNOWN if number == 1 else UNKNOWN_LONGER
    return Hit("same_arguments", number, count, period.since, severity) if count >= need else None


# ── what is said ──


def _what(hit: Hit, cycle: list[str]) -> str:
    if hit.rule == "nothing_new":
        return f"{hit.count} of the last {WINDOW} actions brought nothing new"
    shown = " -> ".join(cycle[:3]) + (f" -> … ({len(cycle)} actions)" if len(cycle) > 3 else "")
    return shown if len(cycle) == 1 else f"the cycle {shown}"


def _title(episode: Episode, hit: Hit, event: ToolResult | ApiRequest, now_ms: int) -> str:
    if hit.rule == "nothing_new":
        return f"{episode.whose}: {episode.what}"
    how = "failed" if hit.rule == "same_failure" else "repeated"
    seconds = (now_ms - hit.since.ms) / 1000
    within = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f"{episode.whose}: {episode.what} {how} {hit.count}x in {within} with identical arguments; {_came_of_it(hit, event)}"


def _came_of_it(hit: Hit, event: ToolResult | ApiRequest) -> str:
    if hit.rule == "same_arguments":
        return "each time with another outcome" if _outcome(event) else "what came of it is not known"
    if event.status in ("error", "denied"):
        said = f' "{masked(event.error, 100)}"' if event.error else ""
        word = "denied" if event.status == "denied" else "an error"
        return f"{word} each time, at last{said}" if hit.rule == "same_failure" else f"the same each time: {word}{said}"
    return f"succeeded each time: {hit.count - 1} duplicates"


def _evidence(state: State, hit: Hit, event: ToolResult | ApiRequest, cycle: list[str]) -> dict[str, Any]:
    shown = state.ring[-hit.period :] if hit.period else state.ring
    return {
        "rule": hit.rule,
        "occurrences": hit.count,
        "period": hit.period,
        "cycle": cycle,
        "outcome": _came_of_it(hit, event) if hit.rule != "nothing_new" else "nothing that was not seen before",
        "first_repeat": stamps.rfc3339_ms(hit.since.ms),
        "side_effects": any(action.writes for action in shown),
        **_spent(hit.since, state.used),
    }


def _spent(since: Mark, used: Mark) -> dict[str, Any]:
    """Since the first repeat, as far as model calls were reported."""
    told: dict[str, Any] = {}
    tokens, minutes = used.tokens - since.tokens, (used.ms - since.ms) / 60_000
    if tokens > 0:
        told["tokens_since"] = tokens
        if minutes > 0:
            told["tokens_per_minute"] = round(tokens / minutes)
    if used.nano > since.nano:
        told["cost_usd_since"] = round((used.nano - since.nano) / 1e9, 6)
    return told


def _over(state: State, why: str) -> list[Sighting]:
    """The episode ends; said where the loop was told."""
    episode, state.episode = state.episode, None
    if episode is None or not episode.level:
        return []
    evidence = {"why": why, "occurrences": episode.count, **_spent(episode.since, state.used)}
    return [
        Sighting(
            "info", f"{episode.whose}: no loop any more, {why}; it was {episode.what}", episode.fingerprint,
            evidence=evidence, first_ms=episode.since.ms, session=episode.session, over=True,
        )
    ]  # fmt: skip


DETECTOR = Detector(
    name="loops",
    scope="session",
    state=State,
    kinds=frozenset({ToolCall, ToolResult, ApiRequest, ModelCall, SessionEnded}),
    step=step,
    due=due,
    lapse=lapse,
)
