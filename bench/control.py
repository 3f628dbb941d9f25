"""How fast a control is in force on three enforcer replicas under load, and whether anything is allowed afterwards.

usage: python bench/control.py [ACTS]        default 200

Three enforcers and a broker on this machine; a client a replica asks without a pause, about sessions of three agents. Acts are
kills, revocations with their restore, pauses with their resume, in turn and on every replica in turn. What was asked after a
command had returned must not be allowed. Then replicas are frozen (SIGSTOP), one at a time: the command must say so within
their lease, and whoever was frozen must allow nothing once it goes on. Floor: one record acknowledged by the broker.
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
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archive_stack import broker, end, machine

from banksman import bus, codec, provision, settings, signing
from banksman.events import AgentEnrolled, Note, OperatorEnrolled, kind_of
from banksman.local import children, kafka
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic

REPLICAS, FREEZES, AGENTS = 3, 6, ("anna", "bert", "cleo")
PROJECT = "bench"
POLICY = f"project: {PROJECT}\nagents:\n" + "".join(
    f"  {name}:\n    allow: [{{service: git, actions: [pull]}}]\n    require_approval: [{{service: git, actions: [push]}}]\n"
    for name in AGENTS
)


@dataclass
class Replica:
    process: subprocess.Popen[bytes]
    port: int


@dataclass
class Load:
    """One client a replica. `allowed`: (agent, session) -> when the last question that was allowed had been asked."""

    replicas: list[Replica]
    tokens: dict[str, str]
    session: str = "s"
    stop: threading.Event = field(default_factory=threading.Event)
    allowed: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    asked: int = 0
    threads: list[threading.Thread] = field(default_factory=list)
    under_way: dict[int, str] = field(default_factory=dict)
    """By client: the session that it asks about."""
    turn: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        self.threads = [threading.Thread(target=self._ask, args=(one,)) for one in self.replicas]
        for thread in self.threads:
            thread.start()

    def go_on_to(self, session: str) -> None:
        """Return when nobody asks about the session before any more: what is lifted then was not asked for before."""
        with self.turn:
            before, self.session = self.session, session
        while before in self.under_way.values():
            time.sleep(0.001)  # between two looks

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _ask(self, replica: Replica) -> None:
        client, number = Client(replica.port), 0
        while not self.stop.is_set():
            agent, number = AGENTS[number % len(AGENTS)], number + 1
            with self.turn:
                session = self.under_way[replica.port] = self.session
            began = time.monotonic()
            status, body = client.ask(
                "/v1/decide", {"session": session, "service": "git", "action": "pull"}, self.tokens[agent]
            )
            self.asked += 1
            if status == 200 and body["decision"] == "allow":
                self.allowed[agent, session] = max(self.allowed[agent, session], began)


class Client:
    """A connection that stays open."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(self, path: str, body: Any, token: str) -> tuple[int, Any]:
        head = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        self._connection.request("POST", path, json.dumps(body), head)
        answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())


def main() -> None:
    acts = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as made, broker(Path(made)) as (node, _):
        where = node.settings(topic_prefix="bench.", partitions=4)
        tokens, operator, floor = asyncio.run(prepare(where, Path(made)))
        with enforcers(where, Path(made)) as replicas:
            print(f"{machine()}, load {os.getloadavg()[0]:.1f} at the start")
            print(f"{REPLICAS} enforcers, one broker, {REPLICAS} clients that ask without a pause\n")
            load = Load(replicas, tokens)
            load.start()
            try:
                in_force(load, operator, acts, floor)
            finally:
                load.end()
            frozen(replicas, tokens, operator)


@contextlib.contextmanager
def enforcers(where: settings.Kafka, folder: Path) -> Iterator[list[Replica]]:
    """REPLICAS of them, ready. Whoever replaces one puts the new one into its place in the list."""
    replicas: list[Replica] = []
    try:
        replicas.extend(start(where, folder, number) for number in range(REPLICAS))
        for replica in replicas:
            ready(replica)
        yield replicas
    finally:
        for replica in replicas:
            replica.process.send_signal(signal.SIGCONT)
            end(replica.process)


async def prepare(where: settings.Kafka, folder: Path) -> tuple[dict[str, str], str, list[float]]:
    """Topics, policy, agents, an operator -> (tokens of the agents, the operator's, ms for one acknowledged record each)."""
    (folder / "policies").mkdir()
    (folder / "policies" / "bench.yaml").write_text(POLICY)
    secret = signing.create_secret(folder / "secret.json")
    await provision.create_topics(where)
    signer, sender = signing.service_signer(secret, "up"), bus.producer(where)
    await sender.start()

    async def write(event: AgentEnrolled | OperatorEnrolled | Note, topic: Topic) -> float:
        value, kind, name = codec.encode(event), kind_of(event), where.topic(topic)
        key = f"{kind}/{event.id}".encode()
        headers = signer.headers(name, key, value, id=event.id, kind=kind, time=event.time, source="bench")
        began = time.perf_counter()
        await sender.send_and_wait(name, value, key=key, partition=0, headers=headers)
        return (time.perf_counter() - began) * 1000

    head: dict[str, Any] = {"v": 1, "time": rfc3339(), "source": "bench"}
    tokens: dict[str, str] = {}
    for name in AGENTS:
        credential, hashed = signing.new_credential(secret, PROJECT, name)
        tokens[name] = credential.token
        await write(
            AgentEnrolled(
                **head,
                id=uuid7(),
                project=PROJECT,
                agent=name,
                owner="ann",
                token_id=credential.token_id,
                token_hash=hashed,
            ),
            Topic.CONTROL,
        )
    operator, token_id, hashed = signing.new_token("bmo")
    enrolled = OperatorEnrolled(
        **head, id=uuid7(), operator="opal", roles=["operator", "approver"], token_id=token_id, token_hash=hashed
    )
    await write(enrolled, Topic.CONTROL)
    note = Note(**head, id=uuid7(), project=PROJECT, agent="anna", session="s", text="x")
    floor = [await write(note, Topic.ACTIONS) for _ in range(300)]
    await sender.stop()
    return tokens, operator, floor[100:]


def start(where: settings.Kafka, folder: Path, number: int) -> Replica:
    port = kafka.free_port()
    environment = dict(os.environ) | {
        "BANKSMAN_KAFKA": where.kafka, "BANKSMAN_KAFKA_SECURITY": where.kafka_security,
        "BANKSMAN_KAFKA_USERNAME": where.kafka_username, "BANKSMAN_KAFKA_PASSWORD": where.kafka_password,
        "BANKSMAN_TOPIC_PREFIX": where.topic_prefix, "BANKSMAN_SECRET_FILE": str(folder / "secret.json"),
        "BANKSMAN_POLICIES": str(folder / "policies"), "BANKSMAN_ENFORCER_PORT": str(port),
        "BANKSMAN_AGENT_RATE": "100000", "BANKSMAN_AGENT_SESSIONS": "100000", "BANKSMAN_AGENT_APPROVALS": "10000",
    }  # fmt: skip
    argv = [sys.executable, "-m", "banksman.enforcer"]
    return Replica(children.spawn(argv, log=folder / f"enforcer{number}.log", env=environment), port)


def ready(replica: Replica) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=2)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        assert time.monotonic() < until, "an enforcer is not ready"
        time.sleep(0.02)  # between two looks


def in_force(load: Load, operator: str, acts: int, floor: list[float]) -> None:
    """The acts under load."""
    clients = [Client(replica.port) for replica in load.replicas]
    took: dict[str, list[float]] = defaultdict(list)
    returned: dict[tuple[str, str], float] = {}
    began, asked_before = time.monotonic(), load.asked

    def act(number: int, path: str, word: str) -> None:
        at = time.perf_counter()
        status, told = clients[number % REPLICAS].ask(path, {"reason": "bench"}, operator)
        took[word].append((time.perf_counter() - at) * 1000)
        assert status == 200, told
        assert (told["in_force"], told["fenced"]) == (REPLICAS, []), told

    for number in range(acts):
        load.go_on_to(session := f"s{number}")
        agent = AGENTS[number % len(AGENTS)]
        while not load.allowed.get((agent, session)):
            time.sleep(0.001)  # until it is allowed, so that there is something to end
        if number % 4 < 2:
            act(number, f"/v1/sessions/{session}/kill?agent={agent}", "kill")
            returned[agent, session] = time.monotonic()
        elif number % 4 == 2:
            act(number, f"/v1/agents/{agent}/revoke", "revoke")
            returned[agent, session] = time.monotonic()
        else:
            act(number, f"/v1/projects/{PROJECT}/pause", "pause")
            returned.update({(name, session): time.monotonic() for name in AGENTS})
        still = time.monotonic() + 0.05
        while time.monotonic() < still:
            time.sleep(0.001)  # the clients go on asking about it
        load.go_on_to(f"between{number}")
        if number % 4 == 2:
            act(number + 1, f"/v1/agents/{agent}/restore", "restore")
        elif number % 4 == 3:
            act(number + 1, f"/v1/projects/{PROJECT}/resume", "resume")
    rate = (load.asked - asked_before) / (time.monotonic() - began)
    late = [where for where, moment in returned.items() if load.allowed.get(where, 0.0) > moment]
    print(f"{'milliseconds':44s} {'p50':>8s} {'p99':>8s} {'max':>8s}  of the floor (p50)")
    floor_p50 = statistics.median(floor)
    rows = {
        "floor: one record, acknowledged, no load": floor,
        "act in force on 3 replicas": [ms for all_ in took.values() for ms in all_],
    }
    for name, figures in {**rows, **{f"  {word}": took[word] for word in sorted(took)}}.items():
        p50, p99 = statistics.median(figures), sorted(figures)[len(figures) * 99 // 100]
        print(f"{f'{name} ({len(figures)})':44s} {p50:8.1f} {p99:8.1f} {max(figures):8.1f}  {p50 / floor_p50:8.1f}x")
    print(
        f"\n{rate:,.0f} questions/s meanwhile; of {len(returned)} sessions, allowed something that was asked after the "
        f"command had returned: {len(late)}"
    )
    assert not late, late


def frozen(replicas: list[Replica], tokens: dict[str, str], operator: str) -> None:
    """One of them stands still while a session is killed, and goes on afterwards."""
    took, allowed, said = [], 0, 0
    for number in range(FREEZES):
        still, other = replicas[number % REPLICAS], replicas[(number + 1) % REPLICAS]
        question = {"session": f"f{number}", "service": "git", "action": "pull"}
        ready(still)
        client = Client(still.port)
        assert client.ask("/v1/decide", question, tokens["anna"])[1]["decision"] == "allow"
        still.process.send_signal(signal.SIGSTOP)
        at = time.perf_counter()
        status, told = Client(other.port).ask(f"/v1/sessions/f{number}/kill?agent=anna", {"reason": "bench"}, operator)
        took.append((time.perf_counter() - at) * 1000)
        assert status == 200, told
        said += len(told["fenced"]) == 1
        still.process.send_signal(signal.SIGCONT)
        answers = [client.ask("/v1/decide", question, tokens["anna"]) for _ in range(50)]
        allowed += sum(status == 200 and body["decision"] == "allow" for status, body in answers)
    print(
        f"one replica frozen, {FREEZES} times: the command returns after {min(took):,.0f} to {max(took):,.0f} ms and names it "
        f"{said} times; allowed by it afterwards: {allowed} of {FREEZES * 50}"
    )
    assert (allowed, said) == (0, FREEZES)


if __name__ == "__main__":
    main()
