"""Anomalies: an agent does what it never did, or at what it never did it. Ranked warnings, no proof.

Each action gets a score z: how surprising it is after the one before it, plus twice how new its target is (see `habits`); a
tenth of that where it only reads. A session's score is its best z, half of its second z, and 0.6 for every three actions in a
row (4 at most) that never followed each other before. It never falls, and what crosses the threshold is told, with the action
that explains it best. If an action with a higher z comes later it is told, too: the first one is often only the way to it.

The threshold is a quantile of the agent's own last sessions (four of the last 200 may be above), and never under a floor. All
sessions count for it, those that were told as well: whoever changes what an agent does gets some warnings, not one for each
session for ever.

Learnt is a session only when it ended (or was silent for an hour). Of one that was told, only what came before the action
that was told: a repeated attack must not become normal, but an agent whose sessions all end in something new would never be
known. An agent with fewer than 4 learnt sessions is "learning": it has no score. What its peers do is not known here yet; the
other agents of a project would have told many new things apart from strange ones (`docs/decisions/0081`).

Nothing happens to the agent unless its policy says so: at 1 attack in 100 sessions nearly nine of ten warnings are wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import field

from banksman import stamps
from banksman.events import ApiRequest, SessionEnded, ToolCall
from banksman.processors.detector import Detector, Sighting
from banksman.processors.habits import START, Act, Habits, Target, act_of, doing, targets_of
from banksman.processors.operation import command, digest, label

if TYPE_CHECKING:
    from banksman.policy.rules import AgentPolicy
    from banksman.processors.detector import Seen, Seens

LEARNING = 4
"""Sessions that must be learnt before one is scored."""
NOVELTY_WEIGHT, READ_WEIGHT, SECOND_WEIGHT = 2.0, 0.1, 0.5
UNSEEN_WEIGHT, UNSEEN_MOST = 0.6, 4
FLOOR, RECENT, ABOVE = 6.0, 200, 4
"""So many of the last sessions may be above the threshold: 2 %, and an agent's first ones before it has that many. The floor is
what 3 % of the development data's sessions without a successful attack pass, and 43 % of those with one.
"""
HAIR = 0.1
"""By more than this above the threshold: else a habit that shifts a little is a new height every time."""
TOLD_MOST = 3
"""In one session."""

OPEN, ACTS, ACTS_IN_ALL = 64, 48, 512
"""Sessions at a time (the one that was silent for longest goes, unlearnt), and what is remembered of one, and of all."""
IDLE_MS, DROP_MS, FORGET_MS = 3_600_000, 24 * 3_600_000, 90 * 24 * 3_600_000


class Top(msgspec.Struct, array_like=True):
    """The action that explains a session's score best."""

    z: float
    number: int
    ms: int
    action: bytes
    previous: bytes
    what: str
    surprise: float
    novelty: float
    slot: bytes = b""
    value: str = ""
    kind: str = ""
    kind_is_new: bool = False
    target: bytes = b""


class Open(msgspec.Struct, array_like=True):
    """A session that goes on."""

    last_ms: int
    scored: bool
    acts: list[Act] = field(default_factory=list)
    number: int = 0
    first: bytes = START
    second: bytes = START
    second_z: float = 0.0
    unseen: int = 0
    top: Top | None = None
    told: int = 0
    told_z: float = 0.0
    clean: int = ACTS
    """How many of its actions came before any that was told."""

    @property
    def score(self) -> float:
        """It never falls."""
        best = self.top.z if self.top is not None else 0.0
        return best + SECOND_WEIGHT * self.second_z + UNSEEN_WEIGHT * min(UNSEEN_MOST, self.unseen)


class State(msgspec.Struct, array_like=True):
    """Of one agent: a few KB, and never more than 256."""

    last_ms: int = 0
    habits: Habits = field(default_factory=Habits)
    open: dict[str, Open] = field(default_factory=dict)
    """By session; the one that did something last stands last."""
    held: int = 0
    """Acts of all of them."""
    recent: list[float] = field(default_factory=list)


def step(state: State, seen: Seen, policy: AgentPolicy | None) -> tuple[State | None, Seens]:
    """See `Detector`. What comes late is looked at as well: an attack during an outage is one; but it kills nobody any more."""
    event = seen.event
    state.last_ms = max(state.last_ms, seen.received_ms)
    if isinstance(event, SessionEnded):
        _end(state, event.session)
    elif isinstance(event, (ToolCall, ApiRequest)):
        session = _session(state, event.session, seen.received_ms)
        _score(state, session, event, seen.received_ms)
        if session.scored:
            return state, _tell(state, session, event, policy if not seen.late else None)
    return state, ()


def due(state: State) -> int | None:
    """When the next session has been silent for too long; or the agent itself, for 90 days."""
    return min((_until(one) for one in state.open.values()), default=state.last_ms + FORGET_MS)


def lapse(state: State, now_ms: int, _policy: AgentPolicy | None) -> tuple[State | None, Seens]:
    """See `Detector`."""
    for name in [name for name, one in state.open.items() if _until(one) <= now_ms]:
        _end(state, name)
    return (None if now_ms >= state.last_ms + FORGET_MS else state), ()


# ── sessions ──


def _until(session: Open) -> int:
    return session.last_ms + (DROP_MS if session.told else IDLE_MS)


def _session(state: State, name: str, now_ms: int) -> Open:
    session = state.open.pop(name, None) or Open(now_ms, scored=state.habits.sessions >= LEARNING)
    state.open[name] = session
    session.last_ms = max(session.last_ms, now_ms)
    if len(state.open) > OPEN:
        state.held -= len(state.open.pop(next(iter(state.open))).acts)
    return session


def _end(state: State, name: str) -> None:
    """Over: it counts for the threshold, and is learnt as far as nothing was told of it."""
    session = state.open.pop(name, None)
    if session is None:
        return
    state.held -= len(session.acts)
    if session.scored:
        state.recent.append(round(session.score, 3))
        del state.recent[:-RECENT]
    if acts := session.acts[: session.clean]:
        state.habits.learn(acts)


# ── scores ──


def _score(state: State, session: Open, event: ToolCall | ApiRequest, now_ms: int) -> None:
    habits = state.habits
    done = doing(event)
    action = done.action
    targets = targets_of(event, action)
    surprise = habits.surprise(session.second, action)
    novelty, target = habits.novelty(targets)
    z = surprise + NOVELTY_WEIGHT * novelty
    if done.reads:
        z *= READ_WEIGHT
    if session.top is None or z > session.top.z:
        if session.top is not None:
            session.second_z = session.top.z
        session.top = _top(habits, session, event, z, (action, surprise, novelty, target), now_ms)
    elif z > session.second_z:
        session.second_z = z
    session.unseen += not habits.knows_three(session.first, session.second, action)
    habits.call(action, done.name)
    session.first, session.second = session.second, action
    session.number += 1
    if len(session.acts) < ACTS and state.held < ACTS_IN_ALL:
        session.acts.append(act_of(action, targets))
        state.held += 1


def _top(
    habits: Habits, session: Open, event: ToolCall | ApiRequest, z: float,
    found: tuple[bytes, float, float, Target | None], now_ms: int,
) -> Top:  # fmt: skip
    action, surprise, novelty, target = found
    return Top(
        round(z, 4), session.number + 1, now_ms, action, session.second, label(event), surprise, novelty,
        target.slot if target else b"", target.text if target else "", target.kind_text if target else "",
        target is not None and habits.is_new_kind(target), digest(event.resource, event.branch),
    )  # fmt: skip


def threshold(recent: list[float]) -> float:
    """Above it a session is told: the score that a few of the last sessions passed, never under the floor."""
    return max(FLOOR, sorted(recent)[-ABOVE - 1]) if len(recent) > ABOVE else FLOOR


# ── what is said ──


def _tell(state: State, session: Open, event: ToolCall | ApiRequest, policy: AgentPolicy | None) -> list[Sighting]:
    top, score = session.top, session.score
    if top is None or score <= FLOOR or session.told >= TOLD_MOST or top.z <= session.told_z:
        return []
    above = threshold(state.recent)
    if score <= above + HAIR:
        return []
    act = policy.on_anomaly if policy is not None and not session.told else "alert"
    session.told += 1
    session.told_z = top.z
    session.clean = min(session.clean, top.number - 1)
    name = state.habits.name(top.action)
    return [
        Sighting(
            "warn",
            f"{event.project}/{event.agent}, session {event.session}, action {top.number}: {_why(state.habits, top)}",
            f"anomalies/{event.agent}/{name}/{top.target.hex()}",
            evidence=_evidence(state, session, top, score, above),
            suggestion=command("session", event.session, "--agent", event.agent),
            first_ms=top.ms, session=event.session, act=act,
        )
    ]  # fmt: skip


def _why(habits: Habits, top: Top) -> str:
    times, never = habits.actions.get(top.action, 0), "not lately" if habits.forgot else "never"
    if not times:
        return f"{top.what}: {never} done by this agent in {habits.sessions} sessions ({habits.total} actions)"
    slot = habits.slots.get(top.slot)
    if top.value and slot is not None:
        kind = f", {top.kind} is new as well" if top.kind_is_new else ""
        return f"{top.what}: {top.value} is new among {slot.distinct} targets in {slot.uses} uses{kind}"
    if top.value:
        return f"{top.what}: {never} used in this way in {times} uses"
    followed, every = habits.pairs.get(top.previous + top.action, 0), habits.after.get(top.previous, 0)
    return f"{top.what} after {habits.name(top.previous)}: {followed} of {every} times so far"


def _evidence(state: State, session: Open, top: Top, score: float, above: float) -> dict[str, Any]:
    """The counts behind every "never"."""
    habits, recent = state.habits, state.recent
    slot = habits.slots.get(top.slot)
    return {
        "score": round(score, 2),
        "threshold": round(above, 2),
        "sessions_above": f"{sum(one >= score for one in recent)} of the last {len(recent)}",
        "action": top.number,
        "at": stamps.rfc3339_ms(top.ms),
        "what": top.what,
        "previous": habits.name(top.previous),
        "surprise": round(top.surprise, 2),
        "novelty": round(top.novelty, 2),
        "new_target": top.value or None,
        "new_class": top.kind if top.kind_is_new else None,
        "unseen_threes": session.unseen,
        "history": {
            "sessions": habits.sessions,
            "actions": habits.total,
            "this_action": habits.actions.get(top.action, 0),
            "after_previous": habits.after.get(top.previous, 0),
            "this_after_previous": habits.pairs.get(top.previous + top.action, 0),
            "usual_after_previous": habits.usual_after(top.previous),
            "uses_with_a_target": slot.uses if slot else 0,
            "different_targets": slot.distinct if slot else 0,
            "peers": "not compared",
        },
    }


DETECTOR = Detector(
    name="anomalies",
    scope="agent",
    state=State,
    kinds=frozenset({ToolCall, ApiRequest, SessionEnded}),
    step=step,
    due=due,
    lapse=lapse,
)
