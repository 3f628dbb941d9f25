"""How long from an agent's action to a person: the record on the log, a worker's finding, the notifier, Slack.

usage: python bench/alerts.py [ALERTS]        default 100

A broker, a worker, a notifier and a Slack that answers at once, all on this machine; beside them a load of other agents. An
agent spends its budget in one call: the time from just before that call is sent to when Slack has the message. Each has a
channel of its own, since Slack takes one post a second. Then the worker is killed (kill -9) the moment that a call is
acknowledged, and started again, as its supervisor would: the longest that somebody is kept waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from archive_stack import broker, end, machine

from banksman import bus, codec, provision, settings, signing
from banksman.cli.demo.slack import Message, Slack
from banksman.events import PolicyLoaded
from banksman.local import children
from banksman.policy.load import load
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic

PARTITIONS, OTHERS, LOAD, KILLS, WITHIN_S = 4, 50, 200, 5, 30.0


class Heard:
    """When Slack got a message about which agent."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._news = threading.Condition()

    def told(self, what: str, message: Message) -> None:
        if what == "post":
            name = next(word for word in message.text.split() if word.startswith("spender-"))
            with self._news:
                self._at.setdefault(name, time.perf_counter())
                self._news.notify_all()

    def wait(self, agent: str) -> float:
        with self._news:
            assert self._news.wait_for(lambda: agent in self._at, WITHIN_S), f"nobody was told of {agent}"
            return self._at[agent]


class Agents:
    """Write straight into `actions`, as the Kafka transport does."""

    def __init__(self, at: settings.Kafka, secret: signing.Secret) -> None:
        self._kafka, self._secret, self._seq = at, secret, 0

    async def start(self) -> None:
        self._producer = bus.producer(self._kafka)
        await self._producer.start()
        self._to = bus.Publisher(self._producer, self._kafka.topic(Topic.ACTIONS), bound=10**6, deadline=60)

    async def stop(self) -> None:
        await self._producer.stop()

    async def call(self, agent: str, project: str, tokens: int) -> None:
        """A model call, acknowledged."""
        self._seq += 1
        event = {
            "v": 1, "kind": "model.call", "id": uuid7(), "time": rfc3339(), "source": "bench", "seq": self._seq,
            "project": project, "agent": agent, "session": "s", "model": "m", "input_tokens": tokens,
        }  # fmt: skip
        author = signing.Author(project=project, agent=agent, token_id="t1")
        signer = signing.Signer(author, signing.key_of(self._secret, 1, author), 1)
        key, value = agent.encode(), codec.encode(event)
        marks = {name: str(event[name]) for name in ("id", "kind", "time", "source")}
        headers = signer.headers(self._kafka.topic(Topic.ACTIONS), key, value, **marks)
        await self._to.put(bus.partition_of(key, PARTITIONS), key, value, headers)

    async def others(self) -> None:
        """A steady load, until cancelled."""
        while True:
            await asyncio.gather(*(self.call(f"other-{n % OTHERS}", "busy", 10) for n in range(LOAD // 10)))
            await asyncio.sleep(0.1)


def main(alerts: int) -> None:
    with tempfile.TemporaryDirectory() as made, broker(Path(made)) as (node, _):
        folder, heard = Path(made), Heard()
        slack = Slack(folder / "slack.json", heard.told)
        at = node.settings(topic_prefix="bench.", partitions=PARTITIONS)
        secret = signing.create_secret(folder / "secret.json")
        names = [f"spender-{n:03d}" for n in range(alerts + KILLS)]
        asyncio.run(prepare(at, secret, names))
        print(f"{machine()}, load {os.getloadavg()[0]:.1f} at the start")
        print(f"one broker, worker and notifier; {LOAD} records a second of {OTHERS} other agents meanwhile\n")
        with services(at, folder, slack.url) as (running, start):
            asyncio.run(measure(Agents(at, secret), names, heard, running, start))
        slack.close()


async def measure(
    agents: Agents, names: list[str], heard: Heard, running: dict[str, subprocess.Popen[bytes]], start: Any
) -> None:
    await agents.start()
    load = asyncio.create_task(agents.others())
    took = [await one(agents, name, heard) for name in names[:-KILLS]]
    killed = []
    for name in names[-KILLS:]:
        began = time.perf_counter()
        await agents.call(name, f"p-{name}", 1_000_000)
        running["worker"].kill()
        running["worker"].wait()
        start("worker")
        killed.append((await asyncio.to_thread(heard.wait, name) - began) * 1000)
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)
    await agents.stop()
    took.sort()
    print(f"action to Slack ({len(took)})".ljust(34), "p50 ms   p99 ms   max ms")
    print(f"{'steady':<34}{statistics.median(took):>7.0f}{took[int(len(took) * 0.99) - 1]:>9.0f}{took[-1]:>9.0f}")
    print(f"{f'the worker killed ({KILLS})':<34}{statistics.median(killed):>7.0f}{'':>9}{max(killed):>9.0f}")


async def one(agents: Agents, name: str, heard: Heard) -> float:
    began = time.perf_counter()
    await agents.call(name, f"p-{name}", 1_000_000)
    return (await asyncio.to_thread(heard.wait, name) - began) * 1000


async def prepare(at: settings.Kafka, secret: signing.Secret, names: list[str]) -> None:
    await provision.create_topics(at)
    signer, sender = signing.service_signer(secret, "enforcer"), bus.producer(at)
    await sender.start()
    for name in names:
        text = (
            f'project: p-{name}\nversion: 1\nnotify: {{channel: "#{name}"}}\nagents:\n'
            f"  {name}: {{budget: {{daily_tokens: 1000, on_exhausted: alert}}}}\n"
        )
        policy = load(text.encode(), f"{name}.yaml")
        event = PolicyLoaded(
            v=1, id=uuid7(), time=rfc3339(), source="bench", project=f"p-{name}", replica="bench",
            policy_version=policy.policy.version, text=policy.text, file=f"{name}.yaml",
        )  # fmt: skip
        key, value, topic = f"policy.loaded/{event.id}".encode(), codec.encode(event), at.topic(Topic.CONTROL)
        headers = signer.headers(topic, key, value, id=event.id, kind="policy.loaded", time=event.time, source="bench")
        await sender.send_and_wait(topic, value, key=key, partition=0, headers=headers)
    await sender.stop()


@contextlib.contextmanager
def services(at: settings.Kafka, folder: Path, slack: str) -> Iterator[tuple[dict[str, subprocess.Popen[bytes]], Any]]:
    environment = dict(os.environ) | {
        "BANKSMAN_KAFKA": at.kafka, "BANKSMAN_KAFKA_SECURITY": at.kafka_security,
        "BANKSMAN_KAFKA_USERNAME": at.kafka_username, "BANKSMAN_KAFKA_PASSWORD": at.kafka_password,
        "BANKSMAN_TOPIC_PREFIX": at.topic_prefix, "BANKSMAN_SECRET_FILE": str(folder / "secret.json"),
        "BANKSMAN_SLACK_URL": slack, "BANKSMAN_SLACK_TOKEN": "xoxb-bench", "BANKSMAN_WORKER": "bench",
        "BANKSMAN_WORKER_SESSION_S": "2",
    }  # fmt: skip
    running: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str) -> None:
        log = folder / f"{name}.log"
        argv = [sys.executable, "-m", f"banksman.processors.{name}"]
        running[name] = children.spawn(argv, log=log, env=environment)

    try:
        for name, line in (("worker", b"processors ready"), ("notifier", b"notifier ready")):
            start(name)
            while line not in ((folder / f"{name}.log").read_bytes() if (folder / f"{name}.log").exists() else b""):
                assert running[name].poll() is None, children.last_lines(folder / f"{name}.log", 30)
                time.sleep(0.02)  # between two looks
        yield running, start
    finally:
        for process in running.values():
            process.send_signal(signal.SIGCONT)
            end(process)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
