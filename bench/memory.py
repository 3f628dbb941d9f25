"""Resident memory of every process of `banksman up`, after each quarter of a million records: that it stays.

    .venv/bin/python bench/memory.py [RECORDS]        1,000,000

Of every 20 records 11 are actions straight into Kafka, 5 are events over HTTP in batches of 500, 4 are decisions over HTTP,
each with an id of its own; 50 agents, a new session every 100 records, and the last one says that it is over, as the
emitter's `with` does. After each quarter archiver and processors catch up, both questions are asked, and what is resident is
read.

Why a million: everything that is kept by count is full long before the last quarter begins. The enforcer keeps 100,000
answers (passed at half a million records), the archiver 300,000 ids in two generations, the broker's heap and ClickHouse's
caches have fixed bounds; the processors forget a session a minute after its end (and hold 1,000 of an agent that ends none,
for a day). What still grows in the last quarter grows without a bound.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from archive_stack import machine

from banksman import bus, codec, log, settings, stamps
from banksman.local.kafka import free_port
from banksman.signing import Signer, parse_credential
from banksman.topics import Topic

AGENTS, CONNECTIONS, BATCH, QUARTERS = 50, 32, 500, 4
SESSION = 100 * AGENTS
"""Records until all agents begin new ones."""
OF_TWENTY = {"straight": 11, "events": 5, "decisions": 4}
POLICY = """\
project: bench
agents:
"""
RULE = '  "{}":\n    allow: [{{service: git, actions: [push], resources: ["acme/billing"], branches: ["feature/*"]}}]\n'


@dataclass
class Stack:
    """One `up` in a folder that goes away."""

    folder: Path
    ports: dict[str, int] = field(
        default_factory=lambda: {n: free_port() for n in ("kafka", "clickhouse", "enforcer", "console")}
    )
    credentials: list[str] = field(default_factory=list)
    """Of agent-00, agent-01, …"""
    tokens: list[str] = field(default_factory=list)
    signers: list[Signer] = field(default_factory=list)
    sent: int = 0
    ended: int = 0
    """Records that end sessions of questions, on top."""

    def start(self) -> subprocess.Popen[bytes]:
        """Return when everything answers and the agents are enrolled."""
        (self.folder / "policies").mkdir()
        names = [f"agent-{n:02d}" for n in range(AGENTS)]
        (self.folder / "policies" / "bench.yaml").write_text(POLICY + "".join(map(RULE.format, names)))
        ports = [word for name, port in self.ports.items() for word in (f"--{name}-port", str(port))]
        argv = [sys.executable, "-P", "-m", "banksman.cli.main", "up", "--data", str(self.data)]
        said_to = open(self.folder / "up.log", "wb")  # noqa: SIM115 - as long as the process
        up = subprocess.Popen(
            [*argv, "--policies", str(self.folder / "policies"), *ports], stdout=said_to, stderr=said_to
        )
        end = time.monotonic() + 180
        while b"banksman is up" not in (said := (self.folder / "up.log").read_bytes()):
            if up.poll() is not None or time.monotonic() > end:
                sys.exit(said.decode())
            time.sleep(0.1)  # between two looks
        for name in names:
            credential = self.ask("enforcer", "/v1/agents", {"agent": name, "project": "bench", "owner": "ann"})[
                "token"
            ]
            self.credentials.append(credential)
            self.tokens.append(credential.partition(".")[0])
            self.signers.append(parse_credential(credential).signer())
        return up

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def ask(self, service: str, path: str, body: Any = None) -> Any:
        """As the admin."""
        token = (self.data / "admin.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[service]}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def stored(self) -> int:
        """Actions and decisions in ClickHouse."""
        password = (self.data / "clickhouse-reader.password").read_text().strip()
        sql = b"SELECT count() FROM banksman.events WHERE topic IN ('actions', 'decisions')"
        headers = {"X-ClickHouse-User": "analyst", "X-ClickHouse-Key": password}
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports['clickhouse']}/", sql, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.read())

    def resident(self) -> dict[str, float]:
        """MB by service, its own child processes included."""
        found = {}
        for file in sorted((self.data / "run").glob("*.json")):
            process = psutil.Process(json.loads(file.read_text())["pid"])
            every = [process, *process.children(recursive=True)]
            found[file.stem] = sum(one.memory_info().rss for one in every) / 1e6
        return found

    def action(self, number: int, *, last: bool = False) -> tuple[int, dict[str, Any]]:
        """(whose, a tool.call of about 500 bytes, or what ends the session)."""
        agent = number % AGENTS
        told: dict[str, Any] = {
            "v": 1, "id": stamps.uuid7(), "time": stamps.rfc3339(), "source": f"bench/1.0#{agent}",
            "seq": number + 1, "project": "bench", "agent": f"agent-{agent:02d}", "session": f"s{number // SESSION}",
        }  # fmt: skip
        if last:
            return agent, told | {"kind": "session.ended", "status": "ok"}
        return agent, told | {
            "kind": "tool.call", "service": "git", "action": "push", "resource": "acme/billing", "branch": "feature/x",
            "args": {"path": f"/srv/data/{number}", "flags": ["-l", "-a"], "note": "n" * 100},
        }  # fmt: skip


# ── load ──


async def straight(stack: Stack, numbers: range) -> None:
    """Into Kafka, as an emitter with the Kafka transport does."""
    kafka = settings.Kafka(
        kafka=f"127.0.0.1:{stack.ports['kafka']}", kafka_security="SASL_PLAINTEXT", kafka_username="service",
        kafka_password_file=str(stack.data / "kafka.password"),
    )  # fmt: skip
    producer, topic = bus.producer(kafka), kafka.topic(Topic.ACTIONS)
    await producer.start()
    to = bus.Publisher(producer, topic, bound=10**6, deadline=600)
    try:
        for first in range(numbers.start, numbers.stop, 5000):
            waiting = []
            for number in range(first, min(numbers.stop, first + 5000)):
                agent, event = stack.action(number, last=number % SESSION >= SESSION - AGENTS)
                key, value = event["agent"].encode(), codec.encode(event)
                marks = {name: event[name] for name in ("id", "kind", "time", "source")}
                headers = stack.signers[agent].headers(topic, key, value, **marks)
                waiting.append(to.put(bus.partition_of(key, kafka.partitions), key, value, headers))
            await asyncio.gather(*waiting)
    finally:
        await producer.stop()


def batches(stack: Stack, numbers: range) -> Iterator[tuple[int, str, bytes]]:
    """(whose, path, body) of events: a batch is one agent's."""
    for first in range(numbers.start, numbers.stop, BATCH):
        agent = first // BATCH % AGENTS
        several = [
            stack.action(number, last=number % BATCH == BATCH - 1)[1]
            | {"agent": f"agent-{agent:02d}", "source": f"bench/1.0#{agent}"}
            for number in range(first, min(numbers.stop, first + BATCH))
        ]
        yield agent, "/v1/events", codec.encode(several)


def questions(numbers: range) -> Iterator[tuple[int, str, bytes]]:
    """(whose, path, body) of decisions."""
    for number in numbers:
        question = {
            "id": stamps.uuid7(), "session": f"s{number // SESSION}", "service": "git", "action": "push",
            "resource": "acme/billing", "branch": "feature/x", "args": {"commits": number},
        }  # fmt: skip
        yield number % AGENTS, "/v1/decide", codec.encode(question)


def ends(stack: Stack, numbers: range) -> Iterator[tuple[int, str, bytes]]:
    """(whose, path, body) of what ends the sessions in which there were questions alone."""
    for agent in range(AGENTS):
        several = [
            stack.action(agent, last=True)[1] | {"session": f"s{number}", "seq": 10**9 + number}
            for number in range(numbers.start // SESSION, (numbers.stop - 1) // SESSION + 1)
        ]
        yield agent, "/v1/events", codec.encode(several)


async def over_http(stack: Stack, requests: Iterator[tuple[int, str, bytes]]) -> None:
    """Every request over one of so many connections. RuntimeError: an answer that is not 200."""

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.ports["enforcer"])
        for agent, path, body in requests:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {stack.tokens[agent]}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(line for line in answer.lower().split("\r\n") if line.startswith("content-length:"))
            told = await reader.readexactly(int(length.partition(":")[2]))
            if " 200 " not in answer.partition("\r\n")[0]:
                raise RuntimeError(f"{path}: {told.decode()}")
        writer.close()

    await asyncio.gather(*[connection() for _ in range(CONNECTIONS)])


def quarter(stack: Stack, records: int) -> None:
    """A share of the records, then what follows of them: all stored, both questions asked."""
    shares = {how: records * share // 20 for how, share in OF_TWENTY.items()}
    first = stack.sent
    for how, count in shares.items():
        numbers = range(first, first + count)
        if how == "straight":
            asyncio.run(straight(stack, numbers))
        else:
            asyncio.run(over_http(stack, batches(stack, numbers) if how == "events" else questions(numbers)))
        if how == "decisions":
            asyncio.run(over_http(stack, ends(stack, numbers)))
            stack.ended += AGENTS * ((numbers.stop - 1) // SESSION + 1 - numbers.start // SESSION)
        first += count
    stack.sent = first
    end = time.monotonic() + 600
    while (stored := stack.stored()) < stack.sent + stack.ended:
        if time.monotonic() > end:
            sys.exit(f"{stored:,} of {stack.sent:,} are stored after ten minutes")
        time.sleep(0.2)  # between two looks
    while stack.ask("console", "/v1/status")["processors"]["lag"]:
        if time.monotonic() > end:
            sys.exit("the processors are behind after ten minutes")
        time.sleep(0.5)  # between two looks
    for agent in range(AGENTS):
        now = stack.ask("console", f"/v1/agents/agent-{agent:02d}/now")
        stack.ask("console", f"/v1/sessions/{now['session']}?agent=agent-{agent:02d}")
    time.sleep(5)  # merges and collectors come to rest


def main() -> None:
    log.hush_kafka()
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(prefix="banksman-memory-") as made:
        stack = Stack(Path(made))
        up = stack.start()
        try:
            seen = [stack.resident()]
            for _ in range(QUARTERS):
                quarter(stack, records // QUARTERS)
                seen.append(stack.resident())
        finally:
            up.terminate()
            up.wait(60)
    columns = ["before", *(f"{records // QUARTERS * (n + 1):,}" for n in range(QUARTERS)), "last quarter"]
    print(machine())
    print(f"{stack.sent:,} records: 11 of 20 straight into Kafka, 5 events over HTTP, 4 decisions; resident MB\n")
    print(f"{'':12}" + "".join(f"{column:>14}" for column in columns))
    for name in seen[0]:
        row = [at[name] for at in seen]
        print(f"{name:12}" + "".join(f"{value:14.0f}" for value in row) + f"{row[-1] / row[-2] - 1:>+14.1%}")


if __name__ == "__main__":
    main()
