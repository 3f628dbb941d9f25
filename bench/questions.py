"""The two questions, and the lists around them, over a log of 20 million rows: cold and warm, as a client sees them.

    .venv/bin/python bench/questions.py [ROWS]        20,000,000; about 15 GB of disk while it runs, gone afterwards

Rows: 200 agents over 30 days (question_rows.py); the newest were received when the log was made, so that "now" has something
to tell. Cold: ClickHouse and the read side were started anew and what the system cached of files was dropped, where it lets us
(the table says). Warm: another agent, or another session, each time; only what ClickHouse keeps of its own accord is warm.
The floor: `SELECT 1` over `/v1/sql`, the same way through the read side without any data.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from archive_stack import Stack, end, machine, stack
from question_rows import AGENTS, ROWS_A_SESSION, fill

from banksman import bus, codec, log
from banksman.events import OperatorEnrolled
from banksman.local.kafka import free_port
from banksman.signing import new_token, service_signer
from banksman.stamps import rfc3339, uuid7
from banksman.store.client import Store
from banksman.topics import Topic

COLD, WARM = 3, 200


async def enrol(made: Stack) -> str:
    """A viewer's token."""
    token, token_id, hashed = new_token("bmo")
    event = OperatorEnrolled(
        v=1, id=uuid7(), time=rfc3339(), source="bench", operator="vera", roles=["viewer"], token_id=token_id, token_hash=hashed
    )  # fmt: skip
    topic, value = made.kafka.topic(Topic.CONTROL), codec.encode(event)
    key = f"operator.enrolled/{event.id}".encode()
    signer = service_signer(made.secret, "up")
    headers = signer.headers(
        topic, key, value, id=event.id, kind="operator.enrolled", time=event.time, source=event.source
    )
    sender = bus.producer(made.kafka)
    await sender.start()
    await sender.send_and_wait(topic, value, key=key, partition=0, headers=headers)
    await sender.stop()
    return token


class Console:
    """The read side, and a client that opens a connection a question, as a command does."""

    def __init__(self, made: Stack, token: str) -> None:
        self._made, self._token = made, token
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._process = self._made.service("banksman.console", BANKSMAN_CONSOLE_PORT=str(self._port))
        until = time.monotonic() + 30
        while True:
            try:
                self.ask("/readyz")
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.02)  # between two looks
            else:
                return

    def stop(self) -> None:
        assert self._process is not None
        end(self._process)

    def ask(self, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            raw = answer.read()
        return json.loads(raw) if raw[:1] in b"{[" else raw


def questions(console: Console, sessions: int) -> dict[str, Callable[[random.Random], object]]:
    """Name -> ask it once, about anybody."""

    def agent(chance: random.Random) -> str:
        return f"agent-{chance.randrange(AGENTS):03d}"

    def now(chance: random.Random) -> None:
        told = console.ask(f"/v1/agents/{agent(chance)}/now")
        assert told["session"] is not None
        assert len(told["last_actions"]) == 5

    def session(chance: random.Random) -> None:
        told = console.ask(f"/v1/sessions/s{chance.randrange(sessions)}?agent={agent(chance)}")
        assert len(told["steps"]) == ROWS_A_SESSION

    def listed(chance: random.Random) -> None:
        assert console.ask(f"/v1/sessions?agent={agent(chance)}&limit=20")["sessions"]

    def one(_: random.Random) -> None:
        assert console.ask("/v1/sql", {"query": "SELECT 1"})["rows"] == [[1]]

    return {
        "now: what is an agent doing": now,
        "session: what exactly happened": session,
        "sessions of an agent, last day": listed,
        "agents: everybody": lambda _: console.ask("/v1/agents"),
        "status": lambda _: console.ask("/v1/status"),
        "floor: SELECT 1": one,
    }


def dropped() -> bool:
    """Forget what the system cached of files -> whether it let us."""
    subprocess.run(["sync"], check=True)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def timed(ask: Callable[[random.Random], object], chance: random.Random) -> float:
    began = time.perf_counter()
    ask(chance)
    return (time.perf_counter() - began) * 1000


def main() -> None:
    log.hush_kafka()
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000_000
    chance = random.Random(1)
    with stack() as made:
        began = time.monotonic()
        admin = Store(made.clickhouse, reader=False, timeout=600)
        fill(admin, rows, newest_ms=int(time.time() * 1000))
        size = admin.query(
            "SELECT sum(bytes_on_disk) AS n, count() AS parts FROM system.parts WHERE active AND table = 'events'"
        )
        admin.close()
        filled = time.monotonic() - began
        console = Console(made, asyncio.run(enrol(made)))
        asked = questions(console, rows // AGENTS // ROWS_A_SESSION)
        cold: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(COLD):
            for name, ask in asked.items():
                end(made.running["clickhouse"])
                forgotten = dropped()
                made.start_engine()
                console.start()
                cold[name].append(timed(ask, chance))
                console.stop()
        console.start()
        for ask in asked.values():
            ask(chance)
        warm = {name: sorted(timed(ask, chance) for _ in range(WARM)) for name, ask in asked.items()}
        console.stop()
    print(machine())
    print(
        f"{rows:,} rows in {size[0]['parts']} parts, {size[0]['n'] / 1e9:.1f} GB, made in {filled:.0f} s; {AGENTS} agents"
    )
    print(
        f"cold: worst of {COLD}, everything started anew, the system's file cache {'dropped' if forgotten else 'NOT dropped'}"
    )
    print(f"warm: {WARM} each, one at a time, a new connection each\n")
    print(f"{'milliseconds':34}{'cold':>8}{'warm p50':>10}{'p99':>8}{'max':>8}{'of the floor':>14}")
    floor = warm["floor: SELECT 1"][WARM // 2]
    for name, took in warm.items():
        median = took[WARM // 2]
        print(
            f"{name:34}{max(cold[name]):8.0f}{median:10.1f}{took[WARM * 99 // 100]:8.1f}{took[-1]:8.1f}"
            f"{median / floor:13.1f}x"
        )


if __name__ == "__main__":
    main()
