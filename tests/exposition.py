"""Reading what `/metrics` says, and what docs/reference/metrics.md says of it."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from tests.enforcer.conftest import ask

Labels = tuple[tuple[str, str], ...]
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "metrics.md"


def metrics(base: str) -> dict[tuple[str, Labels], float]:
    """(name, labels) -> number."""
    answer = ask(base, "GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.raw.decode())
        for sample in family.samples
    }


def is_documented(base: str, service: str) -> None:
    """What is told is what the page has, no more and no less."""
    told = {re.sub(r"_(bucket|sum|count)$", "", name) for name, _ in metrics(base)}
    page = PAGE.read_text().replace("`…_", f"`banksman_{service}_")
    section = page.partition(f"## {service.title()}\n")[2].partition("\n## ")[0]
    rows = "".join(line.rpartition(" | ")[0] for line in section.splitlines() if line.startswith("| `"))
    described = set(re.findall(rf"`(banksman_{service}_\w+)", rows))
    assert told == described, (told - described, described - told)
