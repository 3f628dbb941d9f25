"""The development data as events of ours, and what the detectors make of them. Shared by bench/detectors.py and the tests.

The data lie outside of the project (see its README): one JSON object per action, which becomes a `tool.call` and its
`tool.result`; sessions end after their last action.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from banksman.events import Event, SessionEnded, ToolCall, ToolResult
from banksman.processors.detector import Detector, Seen, Sighting
from banksman.stamps import rfc3339_ms, uuid7_from
from banksman.topics import Topic

SHARED = Path(__file__).resolve().parents[2] / "shared"

Line = dict[str, Any]


def scorer(folder: Path) -> ModuleType:
    """The data's own `score.py`."""
    spec = importlib.util.spec_from_file_location("detector_score", folder / "score.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prototypes(shared: Path) -> tuple[ModuleType, ModuleType] | None:
    """The prototypes of loops and anomalies that the scores are compared with, where they are."""
    if not (shared / "prototypes/detectors/loops.py").exists():
        return None
    sys.path.insert(0, str(shared / "prototypes"))
    try:
        return importlib.import_module("detectors.loops"), importlib.import_module("detectors.anomaly")
    finally:
        sys.path.pop(0)


def lines(path: Path) -> list[Line]:
    """Every action, labels included."""
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file if line.strip()]


def sessions(actions: Iterable[Line]) -> dict[str, list[Line]]:
    """By session, each in its order."""
    found: dict[str, list[Line]] = {}
    for action in actions:
        found.setdefault(action["session_id"], []).append(action)
    for one in found.values():
        one.sort(key=lambda action: action["seq"])
    return found


def events(action: Line) -> Iterator[Event]:
    """The call and its result."""
    ms = at_ms(action)
    agent = agent_name(action)
    call = uuid7_from(ms, action["session_id"], str(action["seq"]))
    common: dict[str, Any] = {
        "v": 1, "time": rfc3339_ms(ms), "source": "bench", "project": action["project"],
        "agent": agent, "session": action["session_id"],
    }  # fmt: skip
    yield ToolCall(
        **common, id=call, call=call, service=action["service"], action=action["action"], resource=action["resource"] or None,
        args_hash=action["args_digest"], batch=action.get("batch_index") or None,
    )  # fmt: skip
    yield ToolResult(
        **common, id=uuid7_from(ms, call, "result"), call=call, parent=call, status=action["status"],
        error=action.get("error") or None, result_hash=action["result_digest"],
        outcome_hash=action.get("result_norm_digest"), result_size=action["result_size"],
        input_tokens=action["input_tokens"], output_tokens=action["output_tokens"],
    )  # fmt: skip


def end(action: Line) -> Event:
    """Of the session whose last action this is."""
    ms = at_ms(action) + 1
    return SessionEnded(
        v=1, id=uuid7_from(ms, action["session_id"], "end"), time=rfc3339_ms(ms), source="bench", project=action["project"],
        agent=agent_name(action), session=action["session_id"],
    )  # fmt: skip


def at_ms(action: Line) -> int:
    """When."""
    return int(datetime.fromisoformat(action["ts"]).timestamp() * 1000)


def agent_name(action: Line) -> str:
    """`project/model` holds a slash, which no agent's name may; what is cut off is told apart by a digest."""
    digest = hashlib.sha256(action["agent_id"].encode()).hexdigest()[:8]
    return f"{digest}-{action['agent_id'].replace('/', '.')}"[:128]


@dataclass
class Run:
    """A detector, the states that it has, and what it said."""

    detector: Detector[Any]
    states: dict[str, Any] = field(default_factory=dict)
    said: list[tuple[Event, Sighting]] = field(default_factory=list)
    took_s: float = 0.0
    count: int = 0
    largest: int = 0
    """Bytes of a state."""
    offset: int = 0

    def feed(self, event: Event) -> list[Sighting]:
        """One event, if the detector wants it."""
        if type(event) not in self.detector.kinds:
            return []
        key = getattr(event, self.detector.scope)
        self.offset += 1
        ms = int(datetime.fromisoformat(event.time).timestamp() * 1000)
        seen = Seen(event, Topic.ACTIONS, 0, self.offset, ms)
        state = self.states.get(key) or self.detector.state()
        began = time.perf_counter()
        state, told = self.detector.step(state, seen, None)
        self.took_s += time.perf_counter() - began
        self.count += 1
        if state is None:
            self.states.pop(key, None)
        else:
            self.states[key] = state
        found = [one for one in told if isinstance(one, Sighting)]
        self.said += [(event, one) for one in found]
        return found

    def us(self) -> float:
        """Microseconds per event."""
        return 1e6 * self.took_s / max(1, self.count)

    def sizes(self) -> list[int]:
        """Bytes of every state, the smallest first."""
        return sorted(len(msgspec.msgpack.encode(state)) for state in self.states.values())


def loop_predictions(run: Run, data: dict[str, list[Line]]) -> list[Line]:
    """Feed every session to `loops`; lines for the scorer."""
    made: list[Line] = []
    for name, actions in data.items():
        for action in actions:
            for event in events(action):
                made += [
                    {"session_id": name, "fired_at_seq": action["seq"], "severity": one.severity, "title": one.title}
                    for one in run.feed(event)
                    if not one.over
                ]
    return made


def anomaly_run(run: Run, actions: list[Line]) -> list[Line]:
    """Learn every session of the history, then score each test session against that and nothing else -> lines for the scorer.

    The score of a session stands in the detector's state, and the threshold is left out: what is measured is the ranking.
    """
    from banksman.processors.detectors.anomalies import State

    every = sessions(actions)
    history = [one for one in every.values() if one[0]["label"]["phase"] == "history"]
    for one in history:
        for action in one:
            for event in events(action):
                run.feed(event)
        run.feed(end(one[-1]))
    frozen = {agent: msgspec.msgpack.encode(state) for agent, state in run.states.items()}
    run.took_s, run.count, made = 0.0, 0, []
    for name, one in every.items():
        if one[0]["label"]["phase"] == "history":
            continue
        agent = agent_name(one[0])
        if agent in frozen:
            run.states[agent] = msgspec.msgpack.decode(frozen[agent], type=State)
        for action in one:
            for event in events(action):
                run.feed(event)
        session = run.states.pop(agent).open[name]
        made.append({"session_id": name, "score": session.score, "top_seq": one[session.top.number - 1]["seq"]})
    run.states = {agent: msgspec.msgpack.decode(raw, type=State) for agent, raw in frozen.items()}
    return made
