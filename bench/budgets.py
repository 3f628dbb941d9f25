"""How far a runaway agent gets beyond its budget before it is stopped, and whether what is counted is the log.

usage: python bench/budgets.py [AGENTS]        default 12

An enforcer, a worker and a broker on this machine. Each agent in turn reports model calls of 1,000 tokens and asks before each,
over HTTP, until it is denied: ten times a second, without a pause, and from eight threads at once. What it has spent beyond its
limit by then is what was under way and not counted yet. Then a load of all of them at once, while the worker, the enforcer and
the broker are killed (kill -9) and started again: what `limits` says at the end must be the sum of what was acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer
from archive_stack import broker, end, machine
from control import Client, ready

from banksman import bus, codec, provision, settings, signing
from banksman.events import AgentEnrolled, Budget
from banksman.local import children, kafka
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic

TOKENS, LIMIT = 1000, 50_000
LOAD_S, KILLS = 25.0, ("worker", "enforcer", "kafka", "worker")
SHAPES = {"ten a second": (1, 0.1), "without a pause": (1, 0.0), "eight threads": (8, 0.0)}


@dataclass
class Place:
    kafka: settings.Kafka
    folder: Path
    tokens: dict[str, str]
    port: int
    running: dict[str, subprocess.Popen[bytes]]

    def environment(self) -> dict[str, str]:
        return dict(os.environ) | {
            "BANKSMAN_KAFKA": self.kafka.kafka, "BANKSMAN_KAFKA_SECURITY": self.kafka.kafka_security,
            "BANKSMAN_KAFKA_USERNAME": self.kafka.kafka_username, "BANKSMAN_KAFKA_PASSWORD": self.kafka.kafka_password,
            "BANKSMAN_TOPIC_PREFIX": self.kafka.topic_prefix, "BANKSMAN_SECRET_FILE": str(self.folder / "secret.json"),
            "BANKSMAN_POLICIES": str(self.folder / "policies"), "BANKSMAN_ENFORCER_PORT": str(self.port),
            "BANKSMAN_AGENT_RATE": "100000", "BANKSMAN_WORKER": "bench", "BANKSMAN_WORKER_SESSION_S": "2",
        }  # fmt: skip

    def start(self, name: str) -> None:
        module = {"worker": "banksman.processors.worker", "enforcer": "banksman.enforcer"}[name]
        log = self.folder / f"{name}.log"
        self.running[name] = children.spawn([sys.executable, "-m", module], log=log, env=self.environment())


def main(agents: int) -> None:
    with tempfile.TemporaryDirectory() as made, broker(Path(made)) as (node, process):
        folder = Path(made)
        names = [f"{shape}-{n}".replace(" ", "-") for shape in SHAPES for n in range(agents // len(SHAPES))]
        place = asyncio.run(prepare(node, folder, [*names, *(f"load-{n}" for n in range(8))]))
        place.running["kafka"] = process
        with services(place):
            print(f"{machine()}, load {os.getloadavg()[0]:.1f} at the start")
            print(f"one enforcer, one worker, one broker; a call costs {TOKENS:,} tokens, the limit is {LIMIT:,}\n")
            print(f"{'':<18}{'calls/s':>9}{'tokens beyond':>15}{'most':>9}{'stopped after ms':>18}{'most':>7}")
            for shape, (threads, pause) in SHAPES.items():
                ran = [
                    runaway(place, name, threads, pause) for name in names if name.startswith(shape.replace(" ", "-"))
                ]
                rates, beyond, after = zip(*ran, strict=True)
                print(
                    f"{shape:<18}{statistics.median(rates):>9.0f}{statistics.median(beyond):>15,.0f}{max(beyond):>9,}"
                    f"{statistics.median(after):>18.0f}{max(after):>7.0f}"
                )
            spent = load(place, node)
            told = asyncio.run(last_told(place.kafka, spent))
            wrong = {name: (told.get(name, 0), sum_) for name, sum_ in spent.items() if told.get(name, 0) != sum_}
            print(
                f"\nunder load, {', '.join(KILLS)} killed: {sum(spent.values()):,} tokens of {len(spent)} agents acknowledged, "
                f"{sum(told[name] for name in spent):,} counted; wrong sums: {len(wrong)}"
            )
            assert not wrong, wrong


def runaway(place: Place, agent: str, threads: int, pause: float) -> tuple[float, int, float]:
    """-> (calls a second, tokens beyond the limit, ms from crossing the limit to the first deny)."""
    spent, crossed, stopped = 0, 0.0, 0.0
    lock, began = threading.Lock(), time.monotonic()

    def run(number: int) -> None:
        nonlocal spent, crossed, stopped
        client = Client(place.port)
        question = {"session": f"s{number}", "service": "git", "action": "pull"}
        while not stopped:
            status, answer = client.ask("/v1/decide", question, place.tokens[agent])
            if status == 200 and answer["decision"] == "deny":
                assert answer["reason"] == "exhausted", answer
                stopped = stopped or time.monotonic()
                return
            assert status == 200, answer
            assert client.ask("/v1/events", model_call(f"s{number}"), place.tokens[agent])[0] == 200
            with lock:
                spent += TOKENS
                if spent >= LIMIT and not crossed:
                    crossed = time.monotonic()
            time.sleep(pause)

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return spent / TOKENS / (stopped - began), spent - LIMIT, (stopped - crossed) * 1000


def model_call(session: str) -> dict[str, Any]:
    return {
        "v": 1, "kind": "model.call", "id": uuid7(), "time": rfc3339(), "source": "bench", "session": session, "model": "m",
        "input_tokens": TOKENS,
    }  # fmt: skip


def load(place: Place, node: kafka.Node) -> Counter[str]:
    """All at once, while everything is killed in turn -> what was acknowledged. Who gets no answer sends the same again."""
    spent: Counter[str] = Counter()
    stop = threading.Event()

    def run(agent: str) -> None:
        client, head = None, {"Content-Type": "application/json", "Authorization": f"Bearer {place.tokens[agent]}"}
        while not stop.is_set():
            body = json.dumps(model_call("s"))
            while True:
                try:
                    client = client or http.client.HTTPConnection("127.0.0.1", place.port, timeout=15)
                    client.request("POST", "/v1/events", body, head)
                    answer = client.getresponse()
                    answer.read()
                    if answer.status == 200:
                        break
                except (OSError, http.client.HTTPException):
                    client = None
                time.sleep(0.05)  # before the same is sent again
            spent[agent] += TOKENS
            time.sleep(0.01)

    agents = [name for name in place.tokens if name.startswith("load-")]
    running = [threading.Thread(target=run, args=(name,)) for name in agents]
    for thread in running:
        thread.start()
    for victim in KILLS:
        time.sleep(LOAD_S / (len(KILLS) + 1))
        place.running[victim].kill()
        place.running[victim].wait()
        if victim == "kafka":
            place.running["kafka"] = children.spawn(node.argv(), log=node.log, env=dict(os.environ))
            asyncio.run(node.ready())
        else:
            place.start(victim)
    time.sleep(LOAD_S / (len(KILLS) + 1))
    stop.set()
    for thread in running:
        thread.join()
    return spent


async def last_told(at: settings.Kafka, wanted: Counter[str]) -> dict[str, float]:
    """What `limits` says of each agent, once it says what is wanted, or after a minute."""
    consumer = AIOKafkaConsumer(
        at.topic(Topic.LIMITS), **at.client(), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    told: dict[str, float] = {}
    until = time.monotonic() + 60
    while time.monotonic() < until and any(told.get(name) != spent for name, spent in wanted.items()):
        for records in (await consumer.getmany(timeout_ms=500)).values():
            for record in records:
                event = codec.decode(record.value, Topic.LIMITS)
                if isinstance(event, Budget) and event.unit == "tokens":
                    told[event.agent] = event.spent
    await consumer.stop()
    return told


async def prepare(node: kafka.Node, folder: Path, names: list[str]) -> Place:
    at = node.settings(topic_prefix="bench.", partitions=4)
    (folder / "policies").mkdir()
    allow = "allow: [{service: git, actions: [pull]}]"
    (folder / "policies" / "bench.yaml").write_text(
        "project: bench\nagents:\n"
        + "".join(
            f"  {name}: {{{allow}, budget: {{daily_tokens: {10**9 if name.startswith('load') else LIMIT}}}}}\n"
            for name in names
        )
    )
    secret = signing.create_secret(folder / "secret.json")
    await provision.create_topics(at)
    signer, sender, tokens = signing.service_signer(secret, "up"), bus.producer(at), {}
    await sender.start()
    for name in names:
        credential, hashed = signing.new_credential(secret, "bench", name)
        tokens[name] = credential.token
        event = AgentEnrolled(
            v=1, id=uuid7(), time=rfc3339(), source="bench", project="bench", agent=name, owner="ann",
            token_id=credential.token_id, token_hash=hashed,
        )  # fmt: skip
        key, value = f"agent.enrolled/{event.id}".encode(), codec.encode(event)
        topic = at.topic(Topic.CONTROL)
        headers = signer.headers(topic, key, value, id=event.id, kind="agent.enrolled", time=event.time, source="bench")
        await sender.send_and_wait(topic, value, key=key, partition=0, headers=headers)
    await sender.stop()
    return Place(at, folder, tokens, kafka.free_port(), {})


@contextlib.contextmanager
def services(place: Place) -> Iterator[None]:
    """Both, and counted up to now."""
    try:
        place.start("enforcer")
        place.start("worker")
        ready(place)  # type: ignore[arg-type]  # it has a port
        client, until = Client(place.port), time.monotonic() + 30
        agent = next(iter(place.tokens))
        while (
            client.ask("/v1/decide", {"session": "s", "service": "git", "action": "pull"}, place.tokens[agent])[0]
            != 200
        ):
            assert time.monotonic() < until, "nobody counts"
            time.sleep(0.1)  # between two looks
        yield
    finally:
        for name in ("worker", "enforcer"):
            process = place.running.get(name)
            if process is not None:
                process.send_signal(signal.SIGCONT)
                end(process)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
