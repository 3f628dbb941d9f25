"""Calls that were made although nobody allowed them, or not so.

A call was made when its result says ok or error (denied: it was not), an API request when it has such a status itself. For
each there must be an allow of its own:

    without_allow     no allow, or only a no, or one that was taken back (`decision.void`)
    other_operation   allowed was another operation
    other_arguments   allowed were other arguments: the hashes differ
    twice             one allow, and it was made more than once

An allow belongs to the `tool.call` that its decision names; one that names none, to the first call that was made of the same
operation and arguments and has none. What was allowed in shadow mode counts as allowed: that was the answer.

Actions and decisions lie on different topics, and are read with seconds between them, in any order. So a call is judged only 10
seconds after its result was received, by `lapse`: whoever calls it must have read the decisions up to then.

Not judged, because it could be right: what came late; calls that began before this state saw the session's start, or within
15 seconds of its first record where it saw none (processors that start in the middle, retention); results whose call is not
known, or no longer; and calls without an allow that began while one may have been forgotten (more of them unused than are
kept). A request that
belongs to a tool call goes with that.

An agent that never asks and has no policy is only watched: that is said once in a session, as an info. What happens often is
told once a minute, with its count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import field

from banksman import stamps
from banksman.events import ApiRequest, Decision, DecisionVoid, SessionEnded, SessionStarted, ToolCall, ToolResult
from banksman.policy.catalogue import is_read_only
from banksman.processors.detector import Detector, Severity, Sighting, forgotten
from banksman.processors.operation import call_of, command, digest, digest_of, label

if TYPE_CHECKING:
    from banksman.policy.rules import AgentPolicy
    from banksman.processors.detector import Seen, Seens

PATIENCE_MS = 10_000
"""So long after a result the decision may still be on its way."""
UNKNOWN_MS = 15_000
"""After the first record of a session whose start was not seen."""
GOOD_MS = 600_000
"""What begins so long after an allow was not allowed by it; its answer was valid for seconds."""
QUIET_MS = 60_000
CALLS, ALLOWS, VOIDS, ANSWERS = 48, 48, 16, 3
"""What is kept at most: calls, allows that wait for their call, decisions that were taken back, answers of one call."""

NO, ANOTHER, OTHERWISE, YES = 0, 1, 2, 3
"""What an answer is worth to a call: denied; another operation; other arguments; allowed."""


class Answer(msgspec.Struct, array_like=True):
    """A decision, as far as it matters for calls."""

    id: str
    call: str
    """Empty: it names none."""
    operation: bytes
    args: bytes
    """Empty: not known."""
    allows: bool
    at_ms: int
    said: str
    """`allow: allowed`, `deny: default_deny`, …"""
    about: str
    """The operation for people."""


class Call(msgspec.Struct, array_like=True):
    """A call or a request, and what was answered to it."""

    operation: bytes
    args: bytes
    what: str
    writes: bool
    known: bool
    """Since its beginning everything was seen that could have allowed it."""
    at_ms: int
    parent: str = ""
    orphan: bool = False
    """It may belong to a call that is not known here, or no longer."""
    answers: list[Answer] = field(default_factory=list)
    taken_back: bool = False
    made: int = 0
    due_ms: int = 0
    """When it is judged; 0: it need not be."""


class Told(msgspec.Struct, array_like=True):
    """What was said of one kind, and what was not said since."""

    severity: Severity
    at_ms: int
    first_ms: int
    unsaid: int = 0
    title: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)


class State(msgspec.Struct, array_like=True):
    """Of one session: some KB, and never more than 192."""

    last_ms: int = 0
    ended_ms: int = 0
    known_ms: int = 0
    """What began from here on is known whole."""
    started: bool = False
    asks: bool = False
    watched: bool = False
    """It was said that it acts without asking."""
    crowded: bool = False
    """Calls had to be forgotten."""
    blind_ms: int = 0
    """What began until then may have had an allow that was forgotten."""
    agent: str = ""
    session: str = ""
    project: str = ""
    calls: dict[str, Call] = field(default_factory=dict)
    waiting: dict[str, Answer] = field(default_factory=dict)
    """Decisions whose call did not come yet, or that name none, by their id."""
    voids: list[str] = field(default_factory=list)
    told: dict[str, Told] = field(default_factory=dict)


def step(state: State, seen: Seen, _policy: AgentPolicy | None) -> tuple[State | None, Seens]:
    """See `Detector`."""
    event, now_ms = seen.event, seen.received_ms
    on_decisions = isinstance(event, (Decision, DecisionVoid))
    if seen.late and not on_decisions:  # its decision may be long forgotten
        return (state if state.last_ms else None), ()
    if not state.last_ms:
        state.known_ms = now_ms + UNKNOWN_MS
    state.last_ms = max(state.last_ms, now_ms)
    if isinstance(event, (ToolCall, ApiRequest, Decision)):
        state.agent, state.session, state.project = event.agent, event.session, event.project
    if isinstance(event, SessionStarted):
        if not state.started:
            state.started, state.known_ms = True, min(state.known_ms, now_ms)
        state.ended_ms = 0
    elif isinstance(event, ToolCall):
        _begun(state, event, now_ms)
    elif isinstance(event, ToolResult):
        call = state.calls.get((event.call if event.call in state.calls else event.parent) or "")
        if call is not None and event.status != "denied":
            _made(call, now_ms)
    elif isinstance(event, ApiRequest):
        _request(state, event, now_ms)
    elif isinstance(event, Decision):
        _answered(state, event, now_ms)
    elif isinstance(event, DecisionVoid):
        _void(state, event.parent or "")
    elif isinstance(event, SessionEnded):
        state.ended_ms = now_ms
    return state, ()


def due(state: State) -> int | None:
    """When the next call is to be judged, or a count told; at last when the session is forgotten."""
    found = [call.due_ms for call in state.calls.values() if call.due_ms]
    found += [told.at_ms + QUIET_MS for told in state.told.values() if told.unsaid]
    return min(found, default=forgotten(state.last_ms, state.ended_ms))


def lapse(state: State, now_ms: int, policy: AgentPolicy | None) -> tuple[State | None, Seens]:
    """See `Detector`. `now_ms` must not be past what was read of the decisions: else calls are judged before their answer."""
    said: list[Sighting] = []
    for name, call in state.calls.items():
        if call.due_ms and call.due_ms <= now_ms:
            call.due_ms = 0
            if not state.asks and policy is None:
                said += _watched(state, call)
            elif (kind := _judge(state, call)) is not None:
                said += _tell(state, kind, name, call, now_ms)
    for key, told in state.told.items():
        if told.unsaid and told.at_ms + QUIET_MS <= now_ms:
            said.append(_sighting(state, key.partition("/")[0], told, now_ms))
    open_yet = any(call.due_ms for call in state.calls.values()) or any(told.unsaid for told in state.told.values())
    return (None if now_ms >= forgotten(state.last_ms, state.ended_ms) and not open_yet else state), said


# ── what is done ──


def _call(state: State, event: ToolCall | ApiRequest, now_ms: int) -> Call:
    writes = not is_read_only(event.service, event.action)
    known = now_ms >= state.known_ms
    return Call(digest_of(event), _args(event), label(event), writes, known, now_ms, event.parent or "")


def _args(event: ToolCall | ApiRequest | Decision) -> bytes:
    return digest(event.args_hash) if event.args_hash is not None else b""  # only hashes can be compared with hashes


def _begun(state: State, event: ToolCall, now_ms: int) -> None:
    """A call. One that belongs to another one, or says it once more, is allowed with that."""
    name = call_of(event)
    if name not in state.calls:
        call = _call(state, event, now_ms)
        call.orphan = state.crowded and name != event.id
        _add(state, name, call)


def _made(call: Call, now_ms: int) -> None:
    call.made += 1
    call.due_ms = now_ms + PATIENCE_MS


def _request(state: State, event: ApiRequest, now_ms: int) -> None:
    """A request is its own intent and result. One that belongs to a tool call is allowed with that."""
    if event.status not in ("ok", "error"):
        return
    call = state.calls.get(event.call or "")
    if call is None:
        call = _call(state, event, now_ms)
        call.orphan = event.call is not None
        _add(state, event.call or event.id, call)
    elif not (call.orphan and call.operation == digest_of(event)):
        return
    _made(call, now_ms)


def _add(state: State, name: str, call: Call) -> None:
    """With the answers that wait for it. What is judged already goes first when there are too many."""
    state.calls[name] = call
    for answer in [one for one in state.waiting.values() if _of(one, name, call)]:
        _give(state, answer, call)
    if len(state.calls) > CALLS:
        judged = (one for one, at in state.calls.items() if at.made and not at.due_ms)
        del state.calls[next(judged, next(iter(state.calls)))]
        state.crowded = True


# ── what is answered ──


def _answered(state: State, event: Decision, now_ms: int) -> None:
    state.asks = True
    if event.id in state.voids:
        return
    answer = Answer(
        event.id, event.call or "", digest_of(event), _args(event), event.decision == "allow", now_ms,
        f"{event.decision}: {event.reason}"[:80], label(event),
    )  # fmt: skip
    _offer(state, answer)


def _offer(state: State, answer: Answer) -> None:
    """To the call that it names; else it waits for one. A no that names none matters to nobody."""
    for name, call in state.calls.items():
        if _of(answer, name, call):
            _give(state, answer, call)
            return
    if not answer.allows and not answer.call:
        return
    state.waiting[answer.id] = answer
    if len(state.waiting) > ALLOWS:
        noes = (one.id for one in state.waiting.values() if not one.allows)
        gone = state.waiting.pop(next(noes, next(iter(state.waiting))))
        if gone.allows:
            state.blind_ms = max(state.blind_ms, gone.at_ms + GOOD_MS)


def _of(answer: Answer, name: str, call: Call) -> bool:
    return answer.call == name or answer.id == call.parent


def _give(state: State, answer: Answer, call: Call) -> None:
    """Its words are only kept where something may have to be said."""
    state.waiting.pop(answer.id, None)
    if _worth(answer, call) == YES:
        answer.said = answer.about = ""
    call.answers.append(answer)
    if len(call.answers) > ANSWERS:  # a yes stays
        call.answers.remove(next((one for one in call.answers if _worth(one, call) != YES), answer))


def _worth(answer: Answer, call: Call) -> int:
    if not answer.allows:
        return NO
    if answer.operation != call.operation:
        return ANOTHER
    return OTHERWISE if answer.args and call.args and answer.args != call.args else YES


def _fits(answer: Answer, call: Call) -> bool:
    """Whether an allow that names no call may be the one of this call."""
    return not answer.call and call.at_ms < answer.at_ms + GOOD_MS and _worth(answer, call) == YES


def _void(state: State, decision: str) -> None:
    """Its answer was never given. The record of it may come after this one."""
    state.voids.append(decision)
    del state.voids[:-VOIDS]
    state.waiting.pop(decision, None)
    for call in state.calls.values():
        kept = [answer for answer in call.answers if answer.id != decision]
        call.taken_back |= len(kept) < len(call.answers)
        call.answers = kept


# ── judging ──


def _judge(state: State, call: Call) -> str | None:
    if not call.known:
        return None
    best = max((_worth(answer, call) for answer in call.answers), default=NO)
    if best != YES:
        unnamed = next((answer for answer in state.waiting.values() if _fits(answer, call)), None)
        if unnamed is not None:
            _give(state, unnamed, call)
            best = YES
    if best == YES:
        return "twice" if call.made > 1 else None
    if call.orphan and best != OTHERWISE:  # it may be a part of what was allowed
        return None
    if best == OTHERWISE:
        return "other_arguments"
    if best == ANOTHER:
        return "other_operation"
    if call.at_ms < state.blind_ms:
        return None
    used = any(_fits(answer, call) for other in state.calls.values() for answer in other.answers)
    return "twice" if used else "without_allow"


def _watched(state: State, call: Call) -> list[Sighting]:
    """Of an agent that is not governed at all."""
    if state.watched or not call.known:
        return []
    state.watched = True
    return [
        Sighting(
            "info", f"{_whose(state)} acts without asking: {call.what}, and no policy speaks of it",
            f"calls/{state.agent}/{state.session}/without_asking", evidence={"first": call.what},
            suggestion=command("session", state.session, "--agent", state.agent), first_ms=call.at_ms,
            session=state.session,
        )
    ]  # fmt: skip


def _tell(state: State, kind: str, name: str, call: Call, now_ms: int) -> list[Sighting]:
    severity: Severity = "page" if call.writes else "warn"
    key = f"{kind}/{severity}"
    told = state.told.get(key)
    if told is None:
        told = state.told[key] = Told(severity, now_ms - QUIET_MS, call.at_ms)
    if not told.unsaid:
        told.first_ms = call.at_ms
    told.unsaid += 1
    told.title, told.evidence = f"{_whose(state)} {_what(kind, call)}", _evidence(kind, name, call)
    return [_sighting(state, kind, told, now_ms)] if told.at_ms + QUIET_MS <= now_ms else []


def _sighting(state: State, kind: str, told: Told, now_ms: int) -> Sighting:
    """What was not said yet."""
    more = f"{told.unsaid} times, at last: " if told.unsaid > 1 else ""
    made = Sighting(
        told.severity, more + told.title, f"calls/{state.agent}/{state.session}/{kind}", evidence=told.evidence,
        suggestion=command("kill", state.session, "--agent", state.agent, "--reason", kind), count=told.unsaid,
        first_ms=told.first_ms, session=state.session,
    )  # fmt: skip
    told.at_ms, told.unsaid, told.title, told.evidence = now_ms, 0, "", {}
    return made


def _whose(state: State) -> str:
    return f"{state.project}/{state.agent}, session {state.session}"


def _what(kind: str, call: Call) -> str:
    if kind == "twice":
        return f"made {call.what} more often than it was allowed: once"
    if kind == "other_arguments":
        return f"made {call.what} with other arguments than were allowed"
    if kind == "other_operation":
        about = next(answer.about for answer in call.answers if answer.allows)
        return f"made {call.what}; what was allowed is {about}"
    if call.answers:
        return f"made {call.what} after {call.answers[-1].said}"
    return f"made {call.what}, and {'its allow was taken back' if call.taken_back else 'nobody was asked'}"


def _evidence(kind: str, name: str, call: Call) -> dict[str, Any]:
    return {
        "kind": kind,
        "call": name,
        "what": call.what,
        "at": stamps.rfc3339_ms(call.at_ms),
        "times": call.made,
        "side_effects": call.writes,
        "answers": [{"decision": answer.id, "said": answer.said, "about": answer.about} for answer in call.answers],
        "taken_back": call.taken_back,
    }


DETECTOR = Detector(
    name="calls",
    scope="session",
    state=State,
    kinds=frozenset({ToolCall, ToolResult, ApiRequest, Decision, DecisionVoid, SessionStarted, SessionEnded}),
    step=step,
    due=due,
    lapse=lapse,
)
