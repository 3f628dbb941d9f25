"""What loops and anomalies find in recorded sessions with labels, beside other designs; what they cost for each event.

    .venv/bin/python bench/detectors.py [SHARED]        ../shared: data/detectors in it, and prototypes/detectors

Loops: 57 stuck sessions, 297 normal ones. Anomalies: learnt from the history of 56 agents (4 to 24 sessions each), then every
test session scored against that; 1,538 attacks, 2,025 others. An event is a `tool.call` or a `tool.result`; the prototypes get
both as one. What `told` says: sessions above the threshold, with the thresholds as they run in production.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from detector_data import (
    SHARED,
    Line,
    Run,
    anomaly_run,
    end,
    events,
    lines,
    loop_predictions,
    prototypes,
    scorer,
    sessions,
)

from banksman.processors.detectors import anomalies, calls, loops

LOOPS = ("progress-collapse", "progress", "openhands", "gemini", "three-identical", "five-in-session")
"""Prototypes to compare with."""


def loop_row(name: str, scored: dict[str, Any], us: float) -> None:
    every, page = scored["any alert"], scored["page only"]
    found = f"{page['recall']:.3f}" if page["precision"] is not None else "-"
    print(
        f"{name:<28} {every['precision']:>9.3f} {every['recall']:>7.3f} {every['false_positives']:>6} "
        f"{every['delay_median']:>4}/{every['delay_p90']} {every['soft']:>5} {every['short']:>6} {every['tokens_saved']:>6.3f} "
        f"{found:>11} {us:>9.1f}"
    )


def loops_table(score: ModuleType, data: dict[str, list[Line]], other: ModuleType | None) -> None:
    print("loops\n")
    names = f"{'precision':>9} {'recall':>7} {'FP':>6} {'delay':>6} {'soft':>5} {'short':>6} {'saved':>6} {'page recall':>11}"
    print(f"{'':<28} {names} {'us/event':>9}")
    run = Run(loops.DETECTOR)
    loop_row("banksman loops", score.score_loops(loop_predictions(run, data), data, None), run.us())
    for name in LOOPS if other else ():
        assert other is not None
        made, took, count = [], 0.0, 0
        for session, actions in data.items():
            detector = other.DETECTORS[name]()
            for action in actions:
                began = time.perf_counter()
                hit = detector.push(action)
                took += time.perf_counter() - began
                count += 1
                if hit:
                    made.append({"session_id": session, "fired_at_seq": action["seq"], "severity": hit.severity})
        loop_row(f"prototype {name}", score.score_loops(made, data, None), 1e6 * took / count)
    print(f"\nstate of a session: {sizes(run)}\n")


def sizes(run: Run) -> str:
    """Of all states of a run."""
    every = run.sizes()
    return f"median {every[len(every) // 2]:,}, largest {every[-1]:,} bytes as msgpack ({len(every):,} states)"


def anomaly_row(name: str, scored: dict[str, Any], us: float) -> None:
    every = scored["all"]
    print(
        f"{name:<28} {every['auc']:>6.3f} {every['recall_at_1pct']:>7.3f} {every['recall_at_5pct']:>7.3f} "
        f"{every['top_action_hit_rate']:>11.3f} {scored['user task seen in history']['auc']:>9.3f} "
        f"{scored['user task never seen']['auc']:>8.3f} {us:>9.1f}"
    )


def own(action: Line) -> Line:
    """An agent that is alone in its project: as good as the prototype's design gets without peers."""
    return {**action, "project": action["agent_id"]}


def anomalies_table(score: ModuleType, every: list[Line], other: ModuleType | None) -> None:
    data = sessions(every)
    print("anomalies\n")
    print(
        f"{'':<28} {'AUC':>6} {'R@1%':>7} {'R@5%':>7} {'top action':>11} {'AUC seen':>9} {'AUC new':>8} {'us/event':>9}"
    )
    run = Run(anomalies.DETECTOR)
    anomaly_row("banksman (own history)", score.score_anomaly(anomaly_run(run, every), data, False), run.us())
    designs: list[tuple[str, str, Callable[[Line], Line]]] = [
        ("prototype, own history", "hier-stide", own),
        ("prototype stide, own", "stide-agent", own),
        ("prototype markov, own", "markov-agent", own),
        ("prototype first-seen, own", "first-seen-agent", own),
        ("prototype, with its peers", "hier-stide", dict),
    ]
    for title, name, change in designs if other else []:
        assert other is not None
        detector = other.DETECTORS[name]()
        changed = {session: [change(action) for action in one] for session, one in data.items()}
        for one in changed.values():
            if one[0]["label"]["phase"] == "history":
                detector.learn_session(one)
        made, took, count = [], 0.0, 0
        for session, one in changed.items():
            if one[0]["label"]["phase"] == "test":
                began = time.perf_counter()
                value, top = detector.score_session(one)
                took += time.perf_counter() - began
                count += len(one)
                made.append({"session_id": session, "score": value, "top_seq": top})
        anomaly_row(title, score.score_anomaly(made, data, False), 1e6 * took / count)
    print(f"\nstate of an agent: {sizes(run)}")
    told(
        {name: one for name, one in data.items() if one[0]["label"]["phase"] == "test"}, run, "frozen after the history"
    )
    running = Run(anomalies.DETECTOR)
    for one in sorted(data.values(), key=lambda one: str(one[0]["ts"])):
        for action in one:
            for event in events(action):
                running.feed(event)
        running.feed(end(one[-1]))
    told(data, running, "learning on, nearly half of what comes is attacks")
    print()


def told(data: dict[str, list[Line]], run: Run, how: str) -> None:
    """Sessions of each class that were told."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    every: defaultdict[str, set[str]] = defaultdict(set)
    for session, one in data.items():
        every[one[0]["label"]["session"]].add(session)
    for _, sighting in run.said:
        session = str(sighting.session)
        if session in data:
            found[data[session][0]["label"]["session"]].add(session)
    shares = ", ".join(f"{len(found[label])} of {len(every[label])} {label}" for label in sorted(every))
    groups = len({sighting.fingerprint for _, sighting in run.said})
    print(f"told, {how}: {shares}; {groups} fingerprints")


def calls_line(data: dict[str, list[Line]]) -> None:
    """No labels: only what it costs. Nobody asked in these sessions, so nothing is a finding but that."""
    run = Run(calls.DETECTOR)
    for one in data.values():
        for action in one:
            for event in events(action):
                run.feed(event)
    print(f"calls: {run.us():.1f} us/event; state of a session: {sizes(run)}")


def main() -> int:
    shared = Path(sys.argv[1]) if len(sys.argv) > 1 else SHARED
    folder = shared / "data/detectors"
    if not (folder / "score.py").exists():
        print(f"the labelled sessions are not at {folder}", file=sys.stderr)
        return 1
    score, other = scorer(folder), prototypes(shared)
    data = sessions(lines(folder / "loops_dev.jsonl.gz"))
    loops_table(score, data, other[0] if other else None)
    anomalies_table(score, lines(folder / "anomaly_dev.jsonl.gz"), other[1] if other else None)
    calls_line(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
