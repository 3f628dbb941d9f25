"""Workers of the processors as processes of their own, on the session's broker, with topics of the test's own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.enforcer.conftest import Tape, environment_of
from tests.publishing import publish
from tests.servers import PARTITIONS, Broker, child_environment

from banksman import codec, provision, settings, signing, stamps
from banksman.events import PolicyLoaded, kind_of
from banksman.local import children
from banksman.policy.load import load
from banksman.topics import Topic

POLICY = """\
project: shop
version: 1
owner: payments-team
agents:
  buyer:
    allow: [{service: git, actions: [pull]}]
    budget: {daily_tokens: 1000}
"""

RUN = "from banksman.processors.worker import main; main.run()"


@dataclass
class Floor:
    """Topics, a secret, policies on the log, workers."""

    kafka: settings.Kafka
    secret: signing.Secret
    folder: Path
    tape: Tape
    more: dict[str, str] = field(default_factory=dict)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _seq: dict[str, int] = field(default_factory=dict)

    def start(self, name: str = "one", *, program: str = RUN, **more: str) -> subprocess.Popen[bytes]:
        """`program`: what runs it, for a fault that is put into it."""
        environment = child_environment() | environment_of(self.kafka) | {
            "BANKSMAN_SECRET_FILE": str(self.folder / "secret.json"),
            "BANKSMAN_WORKER": name,
            "BANKSMAN_WORKER_SESSION_S": "2",
            "PYTHONUNBUFFERED": "1",
        } | self.more | more  # fmt: skip
        process = children.spawn([sys.executable, "-c", program], log=self.log(name), env=environment)
        self.running.append(process)
        return process

    def log(self, name: str = "one") -> Path:
        return self.folder / f"{name}.log"

    def ready(self, process: subprocess.Popen[bytes], name: str = "one", *, times: int = 1) -> None:
        def there() -> bool:
            assert process.poll() is None, children.last_lines(self.log(name), 30)
            return self.log(name).read_bytes().count(b"processors ready") >= times

        self.until(there, 30)

    def policy(self, text: str = POLICY) -> str:
        """Load one. -> its version."""
        loaded = load(text.encode(), "shop.yaml")
        event = PolicyLoaded(
            v=1, id=stamps.uuid7(), time=stamps.rfc3339(), source="enforcer#1", project=loaded.policy.project,
            policy_version=loaded.policy.version, text=loaded.text, replica="r1", file="shop.yaml",
        )  # fmt: skip
        self.put(self.service(Topic.CONTROL, f"policy.loaded/{event.id}", event))
        return loaded.policy.version

    def service(
        self, topic: Topic, key: str, event: Any, name: str = "enforcer", signer: signing.Signer | None = None
    ) -> tuple[Any, ...]:
        """An event of a service, or of whoever `signer` is."""
        value = codec.encode(event)
        kind = kind_of(event)
        headers = (signer or signing.service_signer(self.secret, name)).headers(
            self.kafka.topic(topic), key.encode(), value, id=event.id, kind=kind, time=event.time, source=event.source
        )
        return topic, key.encode(), value, headers

    def action(self, agent: str = "buyer", kind: str = "model.call", **fields: Any) -> tuple[Any, ...]:
        """An event of an agent, signed by it. `headers_`: more of them."""
        more = fields.pop("headers_", [])
        source = fields.get("source", f"test#{agent}")
        self._seq[source] = self._seq.get(source, 0) + 1
        event = {
            "v": 1, "kind": kind, "id": stamps.uuid7(), "time": stamps.rfc3339(), "source": source,
            "seq": self._seq[source], "project": "shop", "agent": agent, "session": "s1",
        } | ({"model": "m"} if kind == "model.call" else {}) | fields  # fmt: skip
        event = {name: value for name, value in event.items() if value is not None}
        key = event["agent"].encode()
        value = codec.encode(event)
        author = signing.Author(project=event["project"], agent=event["agent"], token_id="t1")
        signer = signing.Signer(author, signing.key_of(self.secret, 1, author), 1)
        marks = {name: event[name] for name in ("id", "kind", "time", "source")}
        return Topic.ACTIONS, key, value, [*signer.headers(self.kafka.topic(Topic.ACTIONS), key, value, **marks), *more]

    def put(self, *records: tuple[Any, ...]) -> None:
        """(topic, key, value, headers), in this order, all acknowledged when this returns."""
        publish(self.kafka, *records)

    def records(self, topic: Topic, **wanted: Any) -> list[dict[str, Any]]:
        """What was recorded so far with these fields."""
        return self.tape.records(topic, lambda one: all(one.get(name) == value for name, value in wanted.items()))

    def spent(self, agent: str = "buyer", unit: str = "tokens") -> float | None:
        """What was last told of a budget."""
        told = self.records(Topic.LIMITS, kind="budget", agent=agent, unit=unit)
        return float(told[-1]["spent"]) if told else None

    def until(self, condition: Callable[[], Any], seconds: float = 20) -> Any:
        end = time.monotonic() + seconds
        while True:
            if found := condition():
                return found
            if time.monotonic() > end:
                logs = "\n".join(children.last_lines(log, 20) for log in self.folder.glob("*.log"))
                raise AssertionError(f"not within {seconds} s\n{logs}")
            time.sleep(0.03)  # between two looks at the condition

    def end(self) -> None:
        for process in self.running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.running:
            process.wait(20)


@contextmanager
def a_floor(broker: Broker, folder: Path, **more: str) -> Iterator[Floor]:
    """`more`: settings of its workers."""
    kafka = broker.node.settings(topic_prefix=f"t{os.urandom(4).hex()}.", partitions=PARTITIONS)
    asyncio.run(provision.create_topics(kafka))
    with Tape(kafka) as tape:
        made = Floor(kafka, signing.create_secret(folder / "secret.json"), folder, tape, more)
        try:
            yield made
        finally:
            made.end()
