"""HTTP decisions with acknowledged records on one core, beside a minimal uvicorn ASGI answer as the floor.

    .venv/bin/python bench/http_decide.py [--seconds 3] [--rounds 3] [--out bench/results/http_decide.txt]

Both servers run on core 0, never at the same time under load; the broker (real, embedded) and the load generator share
core 1. Bursts are interleaved, floor and ours in turn, so that a slow minute of the machine slows both; figures are
medians over the rounds. The load comes from wrk where it is installed, else from a generator of our own, which is
slower and takes more of the broker's core. The question is 230 bytes with arguments, the answer an `allow`; its record is
redacted, hashed, signed and acknowledged (acks=all) before the answer is sent.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import os
import platform
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from banksman import bus, codec, provision, settings
from banksman.events import AgentEnrolled
from banksman.local import children, jars, java, kafka
from banksman.signing import Credential, create_secret, new_credential, service_signer
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic

SERVER_CORE, OTHER_CORE = 0, 1
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


@dataclass
class Burst:
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


def pinned(argv: list[str], core: int, **more: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["taskset", "-c", str(core), *argv], **more)  # type: ignore[call-overload,no-any-return]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ── load ──


def burst(url: str, headers: dict[str, str], body: bytes, connections: int, seconds: float, pid: int) -> Burst:
    before = cpu_seconds(pid)
    if shutil.which("wrk"):
        count, rate, p50, p99 = _wrk(url, headers, body, connections, seconds)
    else:
        count, rate, p50, p99 = asyncio.run(_own(url, headers, body, connections, seconds))
    return Burst(rate, p50, p99, (cpu_seconds(pid) - before) / count * 1e6)


def _wrk(
    url: str, headers: dict[str, str], body: bytes, connections: int, seconds: float
) -> tuple[int, float, float, float]:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method = 'POST'\nwrk.body = {json.dumps(body.decode())}\n")
        script.writelines(f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}\n" for k, v in headers.items())
        script.write(
            "done = function(s, l) io.write(string.format('RESULT %d %d %d %d %d\\n', s.requests, s.duration,"
            " l:percentile(50), l:percentile(99), s.errors.status + s.errors.connect + s.errors.read + s.errors.timeout))"
            " end\n"
        )
        script.flush()
        argv = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", script.name, url]
        out = subprocess.run(
            ["taskset", "-c", str(OTHER_CORE), *argv], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+)", out)
    assert found, out
    count, duration, p50, p99, errors = map(int, found.groups())
    assert errors == 0, f"{errors} of {count} answers were errors: {out}"
    return count, count / (duration / 1e6), p50 / 1000, p99 / 1000


class _Asker(asyncio.Protocol):
    def __init__(self, request: bytes, took: list[float], until: float, done: asyncio.Future[None]) -> None:
        self._request, self._took, self._until, self._done = request, took, until, done
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found or len(rest) < int(re.search(rb"content-length: (\d+)", head)[1]):  # type: ignore[index]
            return
        assert head.startswith(b"HTTP/1.1 200"), self._buffer
        self._buffer = b""
        now = time.perf_counter()
        self._took.append(now - self._at)
        if now < self._until:
            self._ask()
        else:
            self._transport.close()
            self._done.set_result(None)


async def _own(
    url: str, headers: dict[str, str], body: bytes, connections: int, seconds: float
) -> tuple[int, float, float, float]:
    where = urlsplit(url)
    lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    head = f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    loop, took = asyncio.get_running_loop(), list[float]()
    began = time.perf_counter()
    ended = [loop.create_future() for _ in range(connections)]
    for done in ended:
        asker = functools.partial(_Asker, head.encode() + body, took, began + seconds, done)
        await loop.create_connection(asker, str(where.hostname), where.port or 80)
    await asyncio.gather(*ended)
    took.sort()
    return (
        len(took),
        len(took) / (time.perf_counter() - began),
        took[len(took) // 2] * 1e3,
        took[len(took) * 99 // 100] * 1e3,
    )


# ── the two servers ──


async def enrol(kafka_settings: settings.Kafka, secret_file: Path) -> Credential:
    secret = create_secret(secret_file)
    credential, hashed = new_credential(secret, "bench", "buyer")
    event = AgentEnrolled(v=1, id=uuid7(), time=rfc3339(), source="bench", project="bench", agent="buyer", owner="bench",
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


def wait_for(url: str, token: str) -> None:
    import urllib.error
    import urllib.request

    body = json.dumps(QUESTION).encode()
    request = urllib.request.Request(
        url, body, {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}, method="POST"
    )
    until = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                assert json.load(answer)["decision"] == "allow"
                return
        except (OSError, urllib.error.HTTPError):
            assert time.monotonic() < until, f"{url} does not answer"
            time.sleep(0.05)  # between two looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="leave the enforcer under load and print its pid")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
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
        token = asyncio.run(enrol(kafka_settings, folder / "secret.json")).token
        (folder / "policies").mkdir()
        (folder / "policies" / "bench.yaml").write_text(POLICY)
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
        floor = pinned([sys.executable, "-c", FLOOR, str(ports[0])], SERVER_CORE)
        ours = pinned([sys.executable, "-m", "banksman.enforcer"], SERVER_CORE, env=environment)
        running += [floor, ours]
        urls = [f"http://127.0.0.1:{port}/v1/decide" for port in ports]
        for url in urls:
            wait_for(url, token)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        body = json.dumps(QUESTION).encode()
        found: dict[tuple[str, int], list[Burst]] = {}
        for url, server in zip(urls, (floor, ours), strict=True):  # the JVM and the caches warm up
            burst(url, headers, body, 64, args.seconds, server.pid)
        if args.profile:
            print(ours.pid, flush=True)
            burst(urls[1], headers, body, 64, 30, ours.pid)
            return
        for _ in range(args.rounds):
            for connections in (1, 16, 64):
                for name, url, server in (("floor", urls[0], floor), ("ours", urls[1], ours)):
                    found.setdefault((name, connections), []).append(
                        burst(url, headers, body, connections, args.seconds, server.pid)
                    )
        report(found, args)
    finally:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait(20)
        shutil.rmtree(folder)


def report(found: dict[tuple[str, int], list[Burst]], args: argparse.Namespace) -> None:
    lines = [
        f"HTTP decisions on one core, records acknowledged; {platform.machine()}, {os.cpu_count()} cores",
        f"Python {platform.python_version()}, load by {'wrk' if shutil.which('wrk') else 'our own generator'}",
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
