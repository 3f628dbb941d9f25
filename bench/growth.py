"""How it grows: more enforcers, more workers, more agents, more projects, more rows.

usage: python bench/growth.py [enforcers] [workers] [agents] [projects] [rows]        all of them; some twelve minutes

Each table has one thing that grows, everything else as it is, and says of each figure how it stands to the first line's.
Enforcers, workers, broker and load share the machine, so more processes get no more of it than there is: what a decision or a
record costs in CPU says how they would grow on a machine of their own each. CPU is that of the measured processes alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from archive_stack import broker, cpu_seconds, end, machine, resident_mb, stack
from http_decide import QUESTION, ask, enrol
from http_load import spread
from processors import all_counted
from question_rows import ROWS_A_SESSION, fill
from questions import Console, questions, timed
from questions import enrol as enrol_viewer
from stream_log import AGENTS, Log, topics

from banksman import log, settings, signing
from banksman.local import children, kafka
from banksman.store.client import Store

CONNECTIONS, SECONDS = 64, 4.0
RECORDS = 60_000
TOKEN_OF = ("project-0", "agent-0")
MANY = [1, 100, 1_000, 10_000]


# ── enforcers ──


@dataclass
class Fleet:
    """Enforcers that are ready, and the agent that asks them."""

    processes: list[subprocess.Popen[bytes]]
    urls: list[str]
    headers: dict[str, str]
    started_s: float
    folder: Path

    def asked(self) -> tuple[float, float, float]:
        """-> (decisions a second, p50 ms, CPU us a decision of all enforcers together)."""
        before = sum(cpu_seconds(one.pid) for one in self.processes)
        urls = [f"{url}/v1/decide" for url in self.urls]
        count, rate, p50, _ = asyncio.run(
            spread(urls, self.headers, json.dumps(QUESTION).encode(), CONNECTIONS, SECONDS)
        )
        return rate, p50, (sum(cpu_seconds(one.pid) for one in self.processes) - before) / count * 1e6

    def resident(self) -> float:
        """MB of one of them."""
        return resident_mb(self.processes[0].pid)


def policy(project: str, agents: Sequence[str], title: str = "") -> str:
    rules = {
        "allow": [{"service": "git", "actions": ["push", "pull"], "resources": ["acme/*"], "branches": ["feature/*"]}]
    }
    return json.dumps(
        {"project": project, "version": 1, "owner": title or "bench", "agents": dict.fromkeys(agents, rules)}
    )


@contextlib.contextmanager
def enforcers(node: kafka.Node, prefix: str, count: int, policies: dict[str, str]) -> Iterator[Fleet]:
    """`policies`: file name -> text."""
    with tempfile.TemporaryDirectory() as made:
        folder, at = Path(made), topics(node, prefix)
        token = asyncio.run(enrol(at, folder / "secret.json", *TOKEN_OF)).token
        (folder / "policies").mkdir()
        for name, text in policies.items():
            (folder / "policies" / name).write_text(text)
        began, processes, urls = time.perf_counter(), [], []
        try:
            for number in range(count):
                port = kafka.free_port()
                environment = environment_of(at, folder) | {
                    "BANKSMAN_POLICIES": str(folder / "policies"), "BANKSMAN_ENFORCER_PORT": str(port),
                    "BANKSMAN_AGENT_RATE": "1000000",
                }  # fmt: skip
                argv = [sys.executable, "-m", "banksman.enforcer"]
                processes.append(children.spawn(argv, log=folder / f"enforcer{number}.log", env=environment))
                urls.append(f"http://127.0.0.1:{port}")
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            for url in urls:
                allows(url, headers)
            yield Fleet(processes, urls, headers, time.perf_counter() - began, folder)
        finally:
            for process in processes:
                end(process)


def environment_of(at: settings.Kafka, folder: Path) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("BANKSMAN_")} | {
        "BANKSMAN_KAFKA": at.kafka, "BANKSMAN_KAFKA_SECURITY": at.kafka_security,
        "BANKSMAN_KAFKA_USERNAME": at.kafka_username, "BANKSMAN_KAFKA_PASSWORD": at.kafka_password,
        "BANKSMAN_TOPIC_PREFIX": at.topic_prefix, "BANKSMAN_SECRET_FILE": str(folder / "secret.json"),
    }  # fmt: skip


def allows(url: str, headers: dict[str, str], wanted: str = "allow") -> None:
    """Return when it is what is answered."""
    until = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError):
            if json.loads(ask(f"{url}/v1/decide", headers, json.dumps(QUESTION).encode()))["decision"] == wanted:
                return
        assert time.monotonic() < until, f"{url} does not answer {wanted}"
        time.sleep(0.01)  # between two questions


def more_enforcers(node: kafka.Node) -> None:
    rows = []
    for count in (1, 2, 4):
        with enforcers(node, f"e{count}.", count, {"0.yaml": policy(*TOKEN_OF[:1], TOKEN_OF[1:])}) as fleet:
            rows.append((f"{count}", *fleet.asked()))
    table("enforcers", ("decisions/s", "p50 ms", "CPU us each"), rows)


def more_projects(node: kafka.Node) -> None:
    rows = []
    for count in (1, 100, 1_000):
        texts = {f"{n}.yaml": policy(f"project-{n}", [f"agent-{n}"]) for n in range(count)}
        with enforcers(node, f"p{count}.", 1, texts) as fleet:
            rate, p50, cpu = fleet.asked()
            edited = sorted(edit(fleet, number) for number in range(6))
            rows.append((f"{count:,}", rate, p50, cpu, edited[3] * 1000, fleet.started_s, fleet.resident()))
    table("projects", ("decisions/s", "p50 ms", "CPU us each", "edit ms", "start s", "MB"), rows)


def edit(fleet: Fleet, number: int) -> float:
    """Seconds from when a policy is written to when what it says is answered."""
    allowed = number % 2 == 1
    agents = [TOKEN_OF[1]] if allowed else ["somebody-else"]
    text, file = policy(TOKEN_OF[0], agents, f"edit {number}"), fleet.folder / "policies" / "0.yaml"
    other = file.with_suffix(".new")
    other.write_text(text)
    began = time.perf_counter()
    other.rename(file)
    allows(fleet.urls[0], fleet.headers, "allow" if allowed else "deny")
    return time.perf_counter() - began


# ── workers ──


def more_workers(node: kafka.Node) -> None:
    rows = []
    for count in (1, 2, 4):
        rate, cpu, resident = worked(node, f"w{count}.", count, AGENTS)
        rows.append((f"{count}", rate, cpu, resident))
    table("workers", ("records/s", "CPU us each", "MB of one"), rows)


def more_agents(node: kafka.Node) -> None:
    rows = []
    for count in MANY:
        names = [f"agent-{number}" for number in range(count)]
        with enforcers(node, f"a{count}.", 1, {"0.yaml": policy(TOKEN_OF[0], names)}) as fleet:
            decided, _, cpu = fleet.asked()
            line = decided, cpu, fleet.started_s, fleet.resident()
        counted, each, resident = worked(node, f"b{count}.", 1, count)
        rows.append((f"{count:,}", *line, counted, each, resident))
    table(
        "agents",
        ("decisions/s", "CPU us each", "start s", "MB", "records/s", "CPU us each", "MB"),
        rows,
    )


def worked(node: kafka.Node, prefix: str, count: int, agents: int) -> tuple[float, float, float]:
    """So many workers over RECORDS that lie there -> (records a second, CPU us a record of all together, MB of one)."""
    with tempfile.TemporaryDirectory() as made:
        folder, at = Path(made), topics(node, prefix)
        secret = signing.create_secret(folder / "secret.json")
        asyncio.run(Log(at, secret).fill(RECORDS, agents))
        filled, processes = time.time() * 1000, []
        try:
            for number in range(count):
                environment = environment_of(at, folder) | {
                    "BANKSMAN_WORKER": f"w{number}", "BANKSMAN_WORKER_SESSION_S": "6",
                }  # fmt: skip
                argv = [sys.executable, "-m", "banksman.processors.worker"]
                processes.append(children.spawn(argv, log=folder / f"w{number}.log", env=environment))
            logs = [folder / f"w{number}.log" for number in range(count)]
            while not any(b" are ours" in one.read_bytes() for one in logs if one.exists()):
                assert all(process.poll() is None for process in processes)
                time.sleep(0.01)  # between two looks
            began, cpu = time.perf_counter(), sum(cpu_seconds(process.pid) for process in processes)
            asyncio.run(all_counted(at, filled, processes))
            took = time.perf_counter() - began
            cpu = sum(cpu_seconds(process.pid) for process in processes) - cpu
            return RECORDS / took, cpu / RECORDS * 1e6, resident_mb(processes[0].pid)
        finally:
            for process in processes:
                process.kill()
                process.wait()


# ── rows ──


def more_rows() -> None:
    rows: list[tuple[str | float, ...]] = []
    chance, there = random.Random(1), 0
    with stack() as made:
        admin = Store(made.clickhouse, reader=False, timeout=600)
        console = Console(made, asyncio.run(enrol_viewer(made)))
        for millions in (1, 5, 20):
            admin.command(f"TRUNCATE TABLE `{admin.database}`.events")
            there = millions * 1_000_000
            began = time.perf_counter()
            fill(admin, there, newest_ms=int(time.time() * 1000))
            filled = there / (time.perf_counter() - began)
            console.start()
            asked = questions(console, there // 200 // ROWS_A_SESSION)
            for one in asked.values():
                one(chance)
            took = [sorted(timed(one, chance) for _ in range(40))[20] for one in asked.values()]
            console.stop()
            rows.append((f"{millions} million", *took, filled, resident_mb(made.pids["clickhouse"])))
        admin.close()
    names = [name.partition(":")[0].replace(" of an agent, last day", "") for name in asked]
    table("rows", (*(f"{name} ms" for name in names), "rows/s in", "MB"), rows)


# ── what is printed ──


def table(what: str, columns: Sequence[str], rows: Sequence[tuple[str | float, ...]]) -> None:
    """Figures, and behind each how it stands to the first line's."""
    print(f"\n{what:<12}" + "".join(f"{column:>20}" for column in columns), flush=True)
    for name, *figures in rows:
        line = f"{name:<12}"
        for figure, first in zip(figures, rows[0][1:], strict=True):
            assert isinstance(figure, float), figure
            assert isinstance(first, float), first
            shown = f"{figure:,.0f}" if figure >= 100 else f"{figure:.1f}"
            line += f"{shown:>12}{f'x{figure / first:.2f}':>8}"
        print(line, flush=True)


def main(wanted: Sequence[str]) -> None:
    log.hush_kafka()
    print(f"{machine()}; {CONNECTIONS} connections, bursts of {SECONDS:g} s; {RECORDS:,} records of {AGENTS} agents")
    with tempfile.TemporaryDirectory() as made, broker(Path(made)) as (node, _):
        for name, measure in (
            ("enforcers", more_enforcers), ("workers", more_workers), ("agents", more_agents), ("projects", more_projects),
        ):  # fmt: skip
            if not wanted or name in wanted:
                measure(node)
    if not wanted or "rows" in wanted:
        more_rows()


if __name__ == "__main__":
    main(sys.argv[1:])
