"""What Prometheus is told, by every service alike. The work itself only adds to plain numbers; the text is made when somebody
asks for it.

No label is an agent's choice of text: a label's values must be few, and known beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Measure:
    """A number, or several: values of the `labels` -> number. `name` without the service's; in seconds, bytes or things."""

    name: str
    about: str
    value: Callable[[], float | Mapping[tuple[str, ...], float]]
    labels: tuple[str, ...] = ()
    counter: bool = False
    """It only ever goes up, but for a restart."""

    def family(self, service: str) -> Metric:
        """As it is now."""
        kind = CounterMetricFamily if self.counter else GaugeMetricFamily
        family = kind(f"banksman_{service}_{self.name}", self.about, labels=self.labels)
        value = self.value()
        rows = value if isinstance(value, Mapping) else {(): value}
        for labels, number in sorted(rows.items()):
            family.add_metric(labels, number)
        return family


class Text(Collector):
    """The text of one service. `more`: what is no plain number."""

    def __init__(self, service: str, measures: Iterable[Measure], more: Callable[[], Iterable[Metric]] = tuple) -> None:
        self._service, self._measures, self._more = service, list(measures), more
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def add(self, *measures: Measure) -> None:
        """These, too."""
        self._measures += measures

    def text(self) -> bytes:
        """As it is now."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """prometheus_client's side of it."""
        for measure in self._measures:
            yield measure.family(self._service)
        yield from self._more()

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked before there is something to tell."""
        return ()
