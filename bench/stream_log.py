"""The records of bench/processors.py, and the engine that every frame runs over them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from banksman import bus, codec, provision, settings, signing, stamps
from banksman.local import kafka
from banksman.processors.worker.engine import Engine
from banksman.processors.worker.main import found
from banksman.store.prices import load_prices
from banksman.topics import Topic

PARTITIONS, AGENTS, STEPS = 4, 200, 10


def story(agent: str, number: int) -> Iterator[tuple[Topic, dict[str, Any]]]:
    """One step of a session: the model is asked, a call is intended, decided and made."""
    call = stamps.uuid7()
    about = {
        "service": "git",
        "action": "push",
        "resource": f"acme/repo-{number % 7}",
        "branch": f"feature/{number % 11}",
    }
    args = {"path": f"/srv/data/{number}", "flags": ["-l", "-a"], "note": "n" * 100}
    head = {
        "project": "bench",
        "agent": agent,
        "session": f"s{number // STEPS}",
        "source": f"emitter-python/1.0#{agent}",
    }
    yield Topic.ACTIONS, head | {
        "kind": "model.call", "model": "claude-sonnet-4-5", "input_tokens": 900 + number % 100, "output_tokens": 80,
    }  # fmt: skip
    marks = {"args": args, "args_hash": f"hmac-sha256:{number:064x}"}
    yield Topic.ACTIONS, head | about | marks | {"kind": "tool.call", "id": call, "call": call}
    yield Topic.DECISIONS, head | about | {
        "kind": "decision", "source": "enforcer#bench", "call": call, "decision": "allow", "tier": 2,
        "rule": f"{agent}/allow/0", "reason": "allowed", "args_hash": f"hmac-sha256:{number:064x}",
    }  # fmt: skip
    yield Topic.ACTIONS, head | {
        "kind": "tool.result", "call": call, "parent": call, "status": "ok", "outcome_hash": f"hmac-sha256:{number:064x}",
    }  # fmt: skip


class Log:
    """Signed records, made in the order that they are published in."""

    def __init__(self, to: settings.Kafka, secret: signing.Secret) -> None:
        self.kafka, self._secret = to, secret
        self._signers: dict[str, signing.Signer] = {}
        self._seq: dict[str, int] = {}
        self._enforcer = signing.service_signer(secret, "enforcer")

    def records(self, count: int, agents: int) -> Iterator[tuple[Topic, bytes, bytes, signing.Headers]]:
        number = made = 0
        while True:
            name = f"agent-{number % agents:05d}"
            for topic, event in story(name, number // agents):
                yield self._signed(topic, name, event)
                made += 1
                if made == count:
                    return
            number += 1

    def _signed(self, topic: Topic, name: str, event: dict[str, Any]) -> tuple[Topic, bytes, bytes, signing.Headers]:
        event = {"v": 1, "id": stamps.uuid7(), "time": stamps.rfc3339(), **event}
        signer = self._enforcer
        if topic is Topic.ACTIONS:
            event["seq"] = self._seq[name] = self._seq.get(name, 0) + 1
            if name not in self._signers:
                author = signing.Author(project="bench", agent=name, token_id="t1")
                self._signers[name] = signing.Signer(author, signing.key_of(self._secret, 1, author), 1)
            signer = self._signers[name]
        value, key = codec.encode(event), name.encode()
        marks = {mark: str(event[mark]) for mark in ("id", "kind", "time", "source")}
        return topic, key, value, signer.headers(self.kafka.topic(topic), key, value, **marks)

    async def fill(self, count: int, agents: int) -> None:
        producer = bus.producer(self.kafka)
        await producer.start()
        to = {
            topic: bus.Publisher(producer, self.kafka.topic(topic), bound=10**7, deadline=600)
            for topic in (Topic.ACTIONS, Topic.DECISIONS)
        }
        waiting: list[Any] = []
        for topic, key, value, headers in self.records(count, agents):
            waiting.append(to[topic].put(bus.partition_of(key, PARTITIONS), key, value, headers))
            if len(waiting) == 10_000:
                await asyncio.gather(*waiting)
                waiting = []
        await asyncio.gather(*waiting)
        await producer.stop()


def engine_of(secret: signing.Secret, tables: Any) -> Engine:
    return Engine(signing.Verifier(secret), load_prices(), lambda _project, _agent: None, found(), tables, PARTITIONS)


def topics(node: kafka.Node, prefix: str) -> settings.Kafka:
    made = node.settings(topic_prefix=prefix, partitions=PARTITIONS)
    asyncio.run(provision.create_topics(made))
    return made
