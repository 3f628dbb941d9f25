"""What one replica counts. The hot path only adds to plain integers."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client.core import HistogramMetricFamily

from banksman.metrics import Measure, Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import Metric

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_BUCKETS_NS = [round(bucket * 1e9) for bucket in BUCKETS_S]


class Metrics:
    """Counters of one replica, and the `page` that shows them."""

    def __init__(self) -> None:
        self.answers: dict[str, int] = {"allow": 0, "deny": 0, "approve": 0}
        self.shadow: Counter[str] = Counter()
        """Of these, what would have been answered where a policy or a rule is in shadow mode."""
        self.problems: Counter[int] = Counter()
        self.unrecorded = 0
        self.voids = 0
        self.events = 0
        self._buckets = [0] * (len(_BUCKETS_NS) + 1)
        self._total_ns = 0
        self.page = Text("enforcer", self._counters(), self._decision_seconds)

    def took(self, nanoseconds: int) -> None:
        """A decision was answered after so long, its record's acknowledgement included."""
        self._buckets[bisect_left(_BUCKETS_NS, nanoseconds)] += 1
        self._total_ns += nanoseconds

    def _counters(self) -> Iterable[Measure]:
        yield Measure(
            "answers", "Decisions that were answered.", lambda: {(name,): count for name, count in self.answers.items()},
            labels=("decision",), counter=True,
        )  # fmt: skip
        yield Measure(
            "shadow", "Answers that would have been others, were it not for shadow mode.",
            lambda: {(would,): count for would, count in self.shadow.items()}, labels=("would",), counter=True,
        )  # fmt: skip
        yield Measure(
            "problems", "Answers that were an error.",
            lambda: {(str(status),): count for status, count in self.problems.items()}, labels=("status",), counter=True,
        )  # fmt: skip
        for name, about, value in (
            ("unrecorded", "Decisions that were not acknowledged in time: 503.", lambda: self.unrecorded),
            ("voids", "Decisions on record that were never answered as such.", lambda: self.voids),
            ("events", "Events of agents that were accepted over HTTP.", lambda: self.events),
        ):
            yield Measure(name, about, value, counter=True)

    def _decision_seconds(self) -> Iterable[Metric]:
        total, rows = 0, []
        for bucket, count in zip((*map(str, BUCKETS_S), "+Inf"), self._buckets, strict=True):
            total += count
            rows.append((bucket, total))
        yield HistogramMetricFamily(
            "banksman_enforcer_decision_seconds",
            "From the request's head to the answer, the record's acknowledgement included.",
            buckets=rows,
            sum_value=self._total_ns / 1e9,
        )
