"""`banksman serve SERVICE`: one service in this process, for containers and for `banksman up`'s children."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

HELP = """Run one service until SIGTERM or Ctrl-C. Where Kafka and ClickHouse are, and how to get in, comes from the settings
(BANKSMAN_KAFKA, BANKSMAN_CLICKHOUSE, BANKSMAN_SECRET_FILE, …); run as many of each as you like."""
EXAMPLES = """
  BANKSMAN_KAFKA=k1:9092,k2:9092,k3:9092 BANKSMAN_SECRET_FILE=/etc/banksman/secret.json banksman serve enforcer
  BANKSMAN_CLICKHOUSE=https://ch.internal:8443 banksman serve archiver
  banksman serve console
"""

SERVICES = {
    "enforcer": ("banksman.enforcer.main", "answers decide, records every decision"),
    "archiver": ("banksman.processors.archiver.main", "brings every topic into ClickHouse, exactly once"),
    "processors": ("banksman.processors.worker.main", "counts budgets, finds loops and strange actions"),
    "notifier": ("banksman.processors.notifier.main", "tells people: alerts to Slack, or to its log"),
    "console": ("banksman.console.main", "the read side: answers questions from ClickHouse"),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    services = "; ".join(f"{name}: {what}" for name, (_, what) in SERVICES.items())
    parser.add_argument("service", choices=tuple(SERVICES), help=services)


def run(args: argparse.Namespace) -> int:
    """Does not return before the service ends."""
    importlib.import_module(SERVICES[args.service][0]).run()
    return 0
