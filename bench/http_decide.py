"""HTTP decisions with acknowledged records on one core, beside a minimal uvicorn ASGI answer as the floor.

    .venv/bin/python bench/http_decide.py [--seconds 3] [--rounds 3] [--out bench/results/http_decide.txt]

Both servers run on core 0, never at the same time under load; the broker (real, embedded) and the load generator share
core 1. Bursts are interleaved, floor and ours in turn, so that a slow minute of the machine slows both; figures are
medians over the rounds; the load is that of http_load.py. The question is 230 bytes with arguments, the answer an `allow`;
its record is redacted, hashed, signed and acknowledged (acks=all) before the answer is sent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import platform
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from http_load import OTHER_CORE, SERVER_CORE, Burst, burst, generator, pinned

from banksman import bus, codec, provision, settings
from banksman.events import AgentEnrolled
from banksman.local import children, jars, java, kafka
from banksman.signing import Credential, create_secret, new_credential, service_signer
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic

QUESTION = {
    "session": "d97e2169",
    "service": "git",
    "action": "push",
    "resource": "acme/billing",
    "branch": "feature/invoices",
    "args": {"force": False, "commits": 3, "title": "Round invoice totals before they are summed"},
    "reason": "the tests pass and the change is small",
}
POLICY = """\
project: bench
version: 1
owner: payments-team
agents:
  buyer:
    allow:
      - {service: git, actions: [push, pull], resources: ["acme/billing", "acme/invoices"], branches: ["feature/*"]}
      - {service: aws, actions: ["s3:GetObject"], resources: ["arn:aws:s3:::invoice-data/*"]}
    require_approval:
      - {service: git, actions: [push], branches: ["main", "release/*"]}
    never:
      - {service: git, actions: [force_push]}
"""
ANSWER = json.dumps({
    "id": uuid7(), "decision": "allow", "tier": 2, "rule": "buyer/allow/0", "policy": "bench",
    "policy_version": "bench@v1+sha256:0123456789ab", "reason": "allowed", "valid_until": rfc3339(),
})  # fmt: skip
FLOOR = f"""
import sys
import uvicorn
BODY = {ANSWER.encode()!r}
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]
async def app(scope, receive, send):
    message = await receive()
    while message.get("more_body"):
        message = await receive()
    await send({{"type": "http.response.start", "status": 200, "headers": HEADERS}})
    await send({{"type": "http.response.body", "body": BODY}})
uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", lifespan="off", access_log=False,
            log_level="error", server_header=False)
"""


# ── the two servers ──


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str


@dataclass
class Servers:
    """The floor and the enforcer, both answering."""

    floor: Server
    ours: Server
    kafka: settings.Kafka
    headers: dict[str, str]


@contextlib.contextmanager
def servers(policy: str, project: str, agent: str, question: dict[str, Any]) -> Iterator[Servers]:
    """Both on one core, the broker on the other; `question` is one that `agent` is allowed."""
    folder = Path(tempfile.mkdtemp(prefix="banksman-bench-"))
    running: list[subprocess.Popen[bytes]] = []
    try:
        node = kafka.Node(
            folder / "kafka", java=java.find_java(), jars=jars.fetch(jars.cache_folder()), port=kafka.free_port(),
            users={"service": secrets.token_hex(8), "agent": secrets.token_hex(8)},
        )  # fmt: skip
        node.prepare()
        running.append(
            children.spawn(["taskset", "-c", str(OTHER_CORE), *node.argv()], log=node.log, env=dict(os.environ))
        )
        asyncio.run(node.ready())
        kafka_settings = node.settings()
        asyncio.run(provision.create_topics(kafka_settings))
        token = asyncio.run(enrol(kafka_settings, folder / "secret.json", project, agent)).token
        (folder / "policies").mkdir()
        (folder / "policies" / f"{project}.yaml").write_text(policy)
        ports = kafka.free_port(), kafka.free_port()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BANKSMAN_")} | {
            "BANKSMAN_KAFKA": kafka_settings.kafka,
            "BANKSMAN_KAFKA_SECURITY": kafka_settings.kafka_security,
            "BANKSMAN_KAFKA_USERNAME": kafka_settings.kafka_username,
            "BANKSMAN_KAFKA_PASSWORD": kafka_settings.kafka_password,
            "BANKSMAN_SECRET_FILE": str(folder / "secret.json"),
            "BANKSMAN_POLICIES": str(folder / "policies"),
            "BANKSMAN_ENFORCER_PORT": str(ports[1]),
            "BANKSMAN_AGENT_RATE": "1000000",
        }
        urls = [f"http://127.0.0.1:{port}/v1/decide" for port in ports]
        floor = Server(pinned([sys.executable, "-c", FLOOR, str(ports[0])], SERVER_CORE), urls[0])
        running.append(floor.process)
        ours = Server(pinned([sys.executable, "-m", "banksman.enforcer"], SERVER_CORE, env=environment), urls[1])
        running.append(ours.process)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        body = json.dumps(question).encode()
        for url in urls:
            wait_until(functools.partial(_allows, url, headers, body), url)
        yield Servers(floor, ours, kafka_settings, headers)
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait(20)
        shutil.rmtree(folder)


async def enrol(kafka_settings: settings.Kafka, secret_file: Path, project: str, agent: str) -> Credential:
    secret = create_secret(secret_file)
    credential, hashed = new_credential(secret, project, agent)
    event = AgentEnrolled(v=1, id=uuid7(), time=rfc3339(), source="bench", project=project, agent=agent, owner="bench",
                          token_id=credential.token_id, token_hash=hashed)  # fmt: skip
    topic, value, key = kafka_settings.topic(Topic.CONTROL), codec.encode(event), f"agent.enrolled/{event.id}".encode()
    headers = service_signer(secret, "up").headers(
        topic, key, value, id=event.id, kind="agent.enrolled", time=event.time, source=event.source
    )
    sender = bus.producer(kafka_settings)
    await sender.start()
    await sender.send_and_wait(topic, value, key=key, partition=0, headers=headers)
    await sender.stop()
    return credential


def ask(url: str, headers: dict[str, str], body: bytes) -> bytes:
    """One question by itself. OSError: no answer, or none that is a 200."""
    request = urllib.request.Request(url, body, headers, method="POST")
    with urllib.request.urlopen(request, timeout=5) as answer:
        return bytes(answer.read())


def _allows(url: str, headers: dict[str, str], body: bytes) -> bool:
    return bool(json.loads(ask(url, headers, body))["decision"] == "allow")


def wait_until(right: Callable[[], bool], url: str) -> None:
    """Until it answers, and that rightly."""
    until = time.monotonic() + 30
    while True:
        try:
            assert right(), f"{url} answers wrongly"
        except OSError:
            assert time.monotonic() < until, f"{url} does not answer"
            time.sleep(0.05)  # between two looks
        else:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="leave the enforcer under load and print its pid")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    body = json.dumps(QUESTION).encode()
    found: dict[tuple[str, int], list[Burst]] = {}
    with servers(POLICY, "bench", "buyer", QUESTION) as both:

        def load(one: Server, connections: int, seconds: float) -> Burst:
            return burst(one.url, both.headers, body, connections, seconds, one.process.pid)

        for one in (both.floor, both.ours):  # the JVM and the caches warm up
            load(one, 64, args.seconds)
        if args.profile:
            print(both.ours.process.pid, flush=True)
            load(both.ours, 64, 30)
            return
        for _ in range(args.rounds):
            for connections in (1, 16, 64):
                for name, one in (("floor", both.floor), ("ours", both.ours)):
                    found.setdefault((name, connections), []).append(load(one, connections, args.seconds))
    report(found, args)


def report(found: dict[tuple[str, int], list[Burst]], args: argparse.Namespace) -> None:
    lines = [
        f"HTTP decisions on one core, records acknowledged; {platform.machine()}, {os.cpu_count()} cores",
        f"Python {platform.python_version()}, load by {generator()}",
        f"medians of {args.rounds} interleaved bursts of {args.seconds:g} s",
        "",
        "connections  server   req/s    p50 ms   p99 ms   CPU us   of the floor",
    ]
    for connections in (1, 16, 64):
        floor = statistics.median(one.rate for one in found["floor", connections])
        for name in ("floor", "ours"):
            bursts = found[name, connections]
            rate = statistics.median(one.rate for one in bursts)
            lines.append(
                f"{connections:>11}  {name:<6} {rate:>7.0f}  {statistics.median(b.p50_ms for b in bursts):>8.2f} "
                f"{statistics.median(b.p99_ms for b in bursts):>8.2f} {statistics.median(b.cpu_us for b in bursts):>8.1f}"
                f"   {rate / floor:>6.0%}"
            )
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)


if __name__ == "__main__":
    main()
