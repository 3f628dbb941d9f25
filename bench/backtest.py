"""`banksman policy backtest` over a million recorded decisions, as a user runs it: command, read side, ClickHouse.

usage: python bench/backtest.py [ROWS]        4,200,000 rows, of which a million are decisions; some three minutes

200 agents in 8 projects over 30 days (question_rows.py); each project has a candidate of its own, so the command runs eight
times. Without conditions ClickHouse counts equal operations; with one about an argument each decision is asked by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from archive_stack import machine, stack
from question_rows import AGENTS, fill
from questions import Console, enrol

from banksman import log
from banksman.cli import main as cli
from banksman.store.client import Store

ROWS, PROJECTS = 4_200_000, 8
RULES = [
    {"service": "git", "actions": ["push"], "resources": ["acme/*"]},
    {"service": "fs", "actions": ["write"]},
    {"service": "http", "actions": ["POST"]},
]
CONDITION = {"args.path": {"glob": "/srv/data/*"}}


def candidate(folder: Path, project: int, *, condition: bool) -> Path:
    """A policy that forgets Stripe."""
    rules = [rule | ({"when": CONDITION} if condition else {}) for rule in RULES]
    agents = {f"agent-{a:03d}": {"allow": rules} for a in range(AGENTS) if a % PROJECTS == project}
    file = folder / f"{project}.yaml"
    file.write_text(json.dumps({"project": f"project-{project}", "agents": agents}))
    return file


def backtest(file: Path) -> tuple[int, int]:
    """-> (decisions, how many would be other ones)."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main(["policy", "backtest", str(file), "--since", "31d", "--json"])
    assert code == 1, out.getvalue()
    told = json.loads(out.getvalue())
    return told["decisions"], sum(told["totals"].values())


def main(rows: int) -> None:
    log.hush_kafka()
    print(machine())
    with tempfile.TemporaryDirectory() as made, stack() as running:
        folder = Path(made)
        store = Store(running.clickhouse, reader=False, timeout=600)
        fill(store, rows, newest_ms=int(time.time() * 1000))
        store.close()
        token = asyncio.run(enrol(running))
        console = Console(running, token)
        console.start()
        os.environ |= {"BANKSMAN_CONSOLE_URL": console.base, "BANKSMAN_OPERATOR_TOKEN": token}
        print(f"{rows:,} rows of {AGENTS} agents in {PROJECTS} projects, 30 days\n")
        print(f"{'candidate':<28}{'decisions':>12}{'others':>10}{'seconds':>9}{'a second':>12}")
        for name, condition in (("without conditions", False), ("a condition on an argument", True)):
            began, decisions, others = time.perf_counter(), 0, 0
            for project in range(PROJECTS):
                one, other = backtest(candidate(folder, project, condition=condition))
                decisions, others = decisions + one, others + other
            took = time.perf_counter() - began
            print(f"{name:<28}{decisions:>12,}{others:>10,}{took:>9.1f}{decisions / took:>12,.0f}", flush=True)
        console.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
