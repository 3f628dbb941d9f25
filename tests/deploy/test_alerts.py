"""deploy/prometheus: rules that speak of what is told, and of nothing else."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from tests.deploy.conftest import CHART, DEPLOY, SERVICES, program
from tests.exposition import PAGE

RULES = DEPLOY / "prometheus" / "alerts.yml"
SCRAPES = DEPLOY / "prometheus" / "prometheus.yml"


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def metrics_of(rule: dict[str, Any]) -> set[str]:
    return set(re.findall(r"\bbanksman_\w+", rule["expr"]))


def labels_of(rule: dict[str, Any]) -> set[str]:
    """Those that it groups by, selects by, or tells."""
    grouped = re.findall(r"\b(?:by|without) \(([\w, ]+)\)", rule["expr"])
    selected = re.findall(r"(\w+)(?:=~|!~|!=|=)\"", rule["expr"])
    told = re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))
    return {label for text in grouped for label in text.split(", ")} | set(selected) | set(told)


def test_rules_are_whole() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) > 10
    for rule in rules():
        assert metrics_of(rule), rule
        assert rule["labels"]["severity"] in ("page", "warn"), rule
        assert set(rule["annotations"]) == {"summary", "runbook"}, rule


def test_what_nobody_of_ours_can_tell_is_looked_at() -> None:
    """docs/reference/metrics.md says what something outside has to look at."""
    expressions = " ".join(rule["expr"] for rule in rules())
    for metric in (
        "banksman_console_kafka_reachable",
        "banksman_console_group_waiting_seconds",
        "banksman_notifier_reigns",
    ):
        assert metric in expressions


def test_every_metric_is_documented() -> None:
    """That the page is what is told, no more and no less, is tested with each service."""
    page = PAGE.read_text()
    for rule in rules():
        for metric in metrics_of(rule):
            name = re.sub(r"_bucket$", "", metric)
            service = name.split("_")[1]
            assert service in SERVICES
            assert f"`{name}" in page or f"`…_{name.removeprefix(f'banksman_{service}_')}" in page, metric


def test_prometheus_reads_them() -> None:
    promtool = program("promtool")
    for words in (["rules", str(RULES)], ["config", "--syntax-only", str(SCRAPES)]):
        ran = subprocess.run([promtool, "check", *words], capture_output=True, text=True, timeout=30)
        assert ran.returncode == 0, ran.stderr


def test_what_happened_once_is_not_told_for_ever() -> None:
    """Of `control`, which is kept for ever, and of totals that only a restart resets: told, over, told again."""
    ran = subprocess.run(
        [program("promtool"), "test", "rules", str(Path(__file__).parent / "alerts_over_time.yml")],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_totals_are_asked_for_their_increase() -> None:
    """A counter that was above zero once stays so: a rule that compares the count itself never ends."""
    for rule in rules():
        for total in re.findall(r"\bbanksman_\w+_total\b", rule["expr"]):
            assert re.search(rf"\b(increase|rate)\({total}\[", rule["expr"]), rule


def test_the_chart_has_the_same_rules() -> None:
    link = CHART / "files" / "alerts.yml"
    assert link.is_symlink()
    assert link.resolve() == RULES
