"""What the detectors find in recorded sessions whose labels are known. The data lie beside the project, not in it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from banksman.processors.detectors import anomalies, loops

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared/data/detectors"

pytestmark = pytest.mark.skipif(
    not (DATA / "score.py").exists(),
    reason=f"the labelled sessions are not at {DATA}: how well loops and anomalies are found was not measured",
)


@pytest.fixture(scope="module")
def bench() -> Any:
    """`bench/detector_data.py`, as the bench uses it."""
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        import detector_data
    finally:
        sys.path.remove(str(ROOT / "bench"))
    return detector_data


@pytest.fixture(scope="module")
def score(bench: Any) -> ModuleType:
    scorer: ModuleType = bench.scorer(DATA)
    return scorer


def test_loops_are_found_and_nothing_else(bench: Any, score: ModuleType) -> None:
    data = bench.sessions(bench.lines(DATA / "loops_dev.jsonl.gz"))
    run = bench.Run(loops.DETECTOR)
    scores = score.score_loops(bench.loop_predictions(run, data), data, None)
    every, page = scores["any alert"], scores["page only"]
    assert every["precision"] >= 0.98
    assert every["recall"] >= 0.98
    assert int(every["false_positives"].partition("/")[0]) <= 1
    assert every["delay_median"] <= 3
    assert every["delay_p90"] <= 4
    assert page["precision"] == 1.0
    assert page["recall"] >= 0.95
    assert max(run.sizes()) < 4096


def test_attacks_are_ranked_above_the_rest(bench: Any, score: ModuleType) -> None:
    lines = bench.lines(DATA / "anomaly_dev.jsonl.gz")
    run = bench.Run(anomalies.DETECTOR)
    scores = score.score_anomaly(bench.anomaly_run(run, lines), bench.sessions(lines), False)["all"]
    assert scores["auc"] >= 0.89, "reached: .90; with peers .96 is possible"
    assert scores["recall_at_5pct"] >= 0.53
    assert scores["top_action_hit_rate"] >= 0.82
    assert max(run.sizes()) < 8192
