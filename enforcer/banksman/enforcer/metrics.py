"""What Prometheus is told. The hot path only adds to plain integers; the text is made when somebody asks for it.

No label is an agent's choice of text: a label's values must be few, and known beforehand.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import Metric

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_BUCKETS_NS = [round(bucket * 1e9) for bucket in BUCKETS_S]
PREFIX = "banksman_enforcer"


class Metrics(Collector):
    """Counters of one replica; `gauges` are asked when the text is made: name -> (what it is, its value now)."""

    def __init__(self) -> None:
        self.answers: dict[str, int] = {"allow": 0, "deny": 0, "approve": 0}
        self.problems: Counter[int] = Counter()
        self.unrecorded = 0
        self.voids = 0
        self.events = 0
        self.gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._buckets = [0] * (len(_BUCKETS_NS) + 1)
        self._total_ns = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def took(self, nanoseconds: int) -> None:
        """A decision was answered after so long, its record's acknowledgement included."""
        self._buckets[bisect_left(_BUCKETS_NS, nanoseconds)] += 1
        self._total_ns += nanoseconds

    def text(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """prometheus_client's side of it."""
        answers = CounterMetricFamily(f"{PREFIX}_answers", "Decisions that were answered.", labels=["decision"])
        for decision, count in self.answers.items():
            answers.add_metric([decision], count)
        yield answers
        problems = CounterMetricFamily(f"{PREFIX}_problems", "Answers that were an error.", labels=["status"])
        for status, count in sorted(self.problems.items()):
            problems.add_metric([str(status)], count)
        yield problems
        for name, about, count in (
            ("unrecorded", "Decisions that were not acknowledged in time: 503.", self.unrecorded),
            ("voids", "Decisions on record that were never answered as such.", self.voids),
            ("events", "Events of agents that were accepted over HTTP.", self.events),
        ):
            yield CounterMetricFamily(f"{PREFIX}_{name}", about, value=count)
        total, rows = 0, []
        for bucket, count in zip((*map(str, BUCKETS_S), "+Inf"), self._buckets, strict=True):
            total += count
            rows.append((bucket, total))
        yield HistogramMetricFamily(
            f"{PREFIX}_decision_seconds",
            "From the request's head to the answer, the record's acknowledgement included.",
            buckets=rows,
            sum_value=self._total_ns / 1e9,
        )
        for name, (about, value) in self.gauges.items():
            yield GaugeMetricFamily(f"{PREFIX}_{name}", about, value=value())
