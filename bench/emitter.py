"""What a report costs the agent's thread, and what an outage costs: nothing lost, nothing twice, in order.

    .venv/bin/python bench/emitter.py [--outage 60] [--only calls|outage] [--out bench/results/emitter.txt]

calls: the time of one `tool_call` with arguments (about 450 bytes), in a burst and paced at 200 a second, with the other
side there (a process of its own that takes everything) and away. Beside each stands what anybody would pay, measured in
turn with it: reading the clock, and putting a dict into a `queue.SimpleQueue`. Paced, the thread comes out of a sleep into
cold caches, and so does the floor. Figures are medians over the fifths of a run. The emitter's threads share the interpreter
meanwhile: where they get in the way it is in these numbers. Then what the process costs: CPU while it reports (the emitter's
threads and this script together), and, once nothing is reported any more, how often the emitter's threads wake up.

outage: a broker and an enforcer, an agent that reports 200 times a second; both are killed with -9 and stay away, in the
middle the agent is killed with -9 and started again. The agent writes down every report once its call has returned, with
the time. What was 20 ms old at the kill is promised, what was younger is counted apart; the second life ends with a
`flush()`, so all of it is promised. Then `actions` is read from Kafka. Exit code 1: a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import logging
import os
import platform
import queue
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from http_decide import enrol

from banksman import bus, provision, settings
from banksman.local import children, jars, java, kafka
from banksman.producers import Emitter
from banksman.signing import Secret, new_credential
from banksman.topics import Topic

ARGS = {"path": "/srv/data/17", "flags": ["-l", "-a"], "query": "select * from t where id = 3", "note": "n" * 100}
RATE = 200
PACED, BURST, ROUND, PARTS = 10_000, 20_000, 1000, 5
LIMIT_US = 50
IDLE_S = 5.0
PROMISED_S = 0.020
PARTITIONS = 4

# ── what a call costs ──

SINK = """
import http.server
class Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@contextmanager
def sink() -> Iterator[str]:
    """A process that takes everything -> its address."""
    with subprocess.Popen([sys.executable, "-c", SINK], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


@dataclass
class Call:
    """Something that is measured: `took` nanoseconds each."""

    name: str
    do: Callable[[], object]
    took: list[int] = field(default_factory=list)

    def __call__(self) -> None:
        before = time.perf_counter_ns()
        self.do()
        self.took.append(time.perf_counter_ns() - before)

    def parts(self, share: float) -> list[float]:
        """The percentile in each fifth of the calls, in the order in which they were made, us."""
        size = len(self.took) // PARTS
        several = (sorted(self.took[at * size : (at + 1) * size]) for at in range(PARTS))
        return [ordered[int(size * share)] / 1000 for ordered in several]

    def us(self, share: float) -> float:
        """The median of these: what a neighbour does on this machine for ten seconds is not what a call costs."""
        return statistics.median(self.parts(share))


def paced(calls: list[Call]) -> None:
    """Each so many times a second, in turn, with a sleep before every one of them."""
    began, tick = time.perf_counter(), 1 / RATE / len(calls)
    for n in range(PACED * len(calls)):
        time.sleep(max(0.0, began + n * tick - time.perf_counter()))
        calls[n % len(calls)]()


def burst(calls: list[Call]) -> None:
    """As fast as it goes, a round of each in turn."""
    for _ in range(BURST // ROUND):
        for call in calls:
            for _ in range(ROUND):
                call()


def wakes() -> int:
    """How often threads of this process but this one have gone to sleep so far."""
    tasks = (
        path.read_text() for path in Path("/proc/self/task").glob("*/status") if path.parent.name != str(os.getpid())
    )
    return sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in tasks)


def idle() -> str:
    """What a quiet emitter costs."""
    time.sleep(1.0)  # the last of the reports are on their way
    woken, used = wakes(), time.process_time()
    time.sleep(IDLE_S)
    return f"{(wakes() - woken) / IDLE_S:.1f} wake-ups/s and {(time.process_time() - used) / IDLE_S:.2%} of a core when idle"


def costs() -> list[str]:
    lines = [f"{'microseconds':36} {'':>8} {'p50':>8} {'p99':>8} {'p99.9':>8}   of SimpleQueue.put"]
    credential, _ = new_credential(Secret({1: b"b" * 32}, 1), "bench", "buyer")
    event = {"kind": "tool.call", "service": "git", "action": "push", "resource": "acme/billing", "args": ARGS}
    within = []
    with tempfile.TemporaryDirectory() as folder, sink() as url:
        for there, address in (("there", url), ("away", f"http://127.0.0.1:{kafka.free_port()}")):
            for how, run in (("burst", burst), (f"{RATE}/s", paced)):
                emitter = Emitter(credential, url=address, spool=Path(folder) / f"{there}-{run.__name__}")
                session = emitter.session("bench")
                plain: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

                def report(session: Any = session) -> None:
                    session.tool_call("git", "push", resource="acme/billing", branch="feature/x", args=ARGS)

                def put(plain: Any = plain) -> None:
                    plain.put(dict(event))

                clock, floor = Call("floor: time.time_ns", time.time_ns), Call("floor: SimpleQueue.put(dict)", put)
                ours = Call(f"tool_call, the other side {there}", report)
                for _ in range(200):  # both sides know each other, the interpreter its code
                    report()
                emitter.flush(5 if there == "there" else 0.5)
                used, began = time.process_time(), time.monotonic()
                run([clock, floor, ours])
                used, lasted = time.process_time() - used, time.monotonic() - began
                for call in (clock, floor, ours):
                    ratios = " ".join(f"{call.us(share) / floor.us(share):.1f}" for share in (0.5, 0.99))
                    told = f"   {ratios} at p50 p99" if call is ours else ""
                    figures = " ".join(f"{call.us(share):8.1f}" for share in (0.5, 0.99, 0.999))
                    lines.append(f"{call.name:36} {how:>8} {figures}{told}")
                if run is paced:
                    lines.append(f"  {used / lasted:.1%} of a core at {RATE}/s; {idle()}")
                if dropped := emitter.stats().dropped:
                    lines.append(f"  {dropped:,} of them were dropped and counted: 100,000 wait in memory at most")
                lines.append("  p99 of each fifth: " + " ".join(f"{one:.1f}" for one in ours.parts(0.99)))
                within.append(ours.us(0.99) <= LIMIT_US)
                emitter.flush(60 if there == "there" else 0)
                emitter.close(0)
    said = "yes" if all(within) else f"no, {sum(within)} of {len(within)} were"
    return [*lines, f"p99 <= {LIMIT_US} us (medians): {said}"]


# ── what an outage costs ──

STEADY = """
import os, signal, sys, time
from banksman.producers import Emitter
emitter = Emitter.from_settings()
session, n, rate = emitter.session("outage"), int(sys.argv[1]), float(sys.argv[2])
going = [True]
signal.signal(signal.SIGTERM, lambda *_: going.clear())
began, tick = time.monotonic(), 0
while going:
    session.note(str(n + tick))
    os.write(1, b"%d %d\\n" % (n + tick, time.monotonic_ns()))  # one write: a line is whole or not there
    tick += 1
    time.sleep(max(0.0, began + tick / rate - time.monotonic()))
stats = emitter.stats()
sys.exit(0 if emitter.flush(120) and stats.dropped == stats.refused == 0 else 1)
"""


class Agent:
    """A life of an agent that reports steadily. `returned`: number -> when its call had returned, monotonic seconds."""

    def __init__(self, first: int, environment: dict[str, str]) -> None:
        self.returned: dict[int, float] = {}
        self.process = subprocess.Popen(
            [sys.executable, "-c", STEADY, str(first), str(RATE)], stdout=subprocess.PIPE, env=environment
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                number, at = line.split()
                self.returned[int(number)] = int(at) / 1e9

    def kill(self) -> float:
        """-9 -> when, or the moment before."""
        at = time.monotonic()
        self.process.kill()
        self.process.wait()
        self._reader.join()
        return at

    def end(self) -> int:
        """It flushes and goes -> its exit code."""
        self.process.terminate()
        code = self.process.wait(150)
        self._reader.join()
        return code


class Stack:
    """A broker and an enforcer in a folder, and what kills and starts them."""

    def __init__(self, folder: Path) -> None:
        self.node = kafka.Node(
            folder / "kafka", java=java.find_java(), jars=jars.fetch(jars.cache_folder()), port=kafka.free_port(),
            users={"service": secrets.token_hex(8), "agent": secrets.token_hex(8)},
        )  # fmt: skip
        self.node.prepare()
        self.folder, self.processes = folder, list[subprocess.Popen[bytes]]()
        self.kafka: settings.Kafka = self.node.settings(topic_prefix="bench.", partitions=PARTITIONS)
        (folder / "policies").mkdir()
        self.port = kafka.free_port()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BANKSMAN_")}
        self.clean, self.environment = clean, clean | {
            "BANKSMAN_KAFKA": self.kafka.kafka,
            "BANKSMAN_KAFKA_SECURITY": self.kafka.kafka_security,
            "BANKSMAN_KAFKA_USERNAME": self.kafka.kafka_username,
            "BANKSMAN_KAFKA_PASSWORD": self.kafka.kafka_password,
            "BANKSMAN_TOPIC_PREFIX": self.kafka.topic_prefix,
            "BANKSMAN_SECRET_FILE": str(folder / "secret.json"),
            "BANKSMAN_POLICIES": str(folder / "policies"),
            "BANKSMAN_ENFORCER_PORT": str(self.port),
        }  # fmt: skip

    def start(self) -> None:
        """Return when both are there."""
        self.processes.append(children.spawn(self.node.argv(), log=self.node.log, env=self.clean))
        asyncio.run(self.node.ready())
        if not (self.folder / "agent").exists():
            asyncio.run(provision.create_topics(self.kafka))
            credential = asyncio.run(enrol(self.kafka, self.folder / "secret.json", "bench", "buyer"))
            (self.folder / "agent").write_text(str(credential))
        log = self.folder / "enforcer.log"
        self.processes.append(
            children.spawn([sys.executable, "-m", "banksman.enforcer"], log=log, env=self.environment)
        )

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        self.processes.clear()

    def agent(self, first: int) -> Agent:
        known = {
            "BANKSMAN_URL": f"http://127.0.0.1:{self.port}",
            "BANKSMAN_TOKEN": (self.folder / "agent").read_text(),
            "BANKSMAN_SPOOL": str(self.folder / "spool"),
        }
        return Agent(first, self.clean | known)

    async def until(self, numbers: set[int], seconds: float, *, to_the_end: bool = False) -> list[dict[str, Any]]:
        """The records of `actions`, once all of these numbers are there or the time is over; up to the end of the log."""
        end, found, missing = time.monotonic() + seconds, list[dict[str, Any]](), set(numbers)
        where = self.kafka.topic(Topic.ACTIONS), bus.partition_of(b"buyer", PARTITIONS)
        async with contextlib.aclosing(bus.read_from_start(self.kafka, *where)) as batches:
            async for batch in batches:
                found += [json.loads(record.value) | {"raw": record.value} for record in batch]
                missing -= {int(record["text"]) for record in found[len(found) - len(batch) :]}
                if (not missing or time.monotonic() > end) and not (batch and to_the_end):
                    return found
        raise AssertionError("unreachable: the log is read until somebody stops")


def outage(away: float) -> tuple[list[str], bool]:
    """-> what is told, and whether every promise was kept."""
    with tempfile.TemporaryDirectory(prefix="bench-emitter-") as name:
        stack = Stack(Path(name))
        agents: list[Agent] = []
        try:
            stack.start()
            return _outage(stack, agents, away)
        finally:
            for agent in agents:
                agent.kill()
            stack.kill()


def _outage(stack: Stack, agents: list[Agent], away: float) -> tuple[list[str], bool]:
    quiet = min(5.0, away / 2)
    agents.append(stack.agent(0))
    one = agents[0]
    while len(one.returned) < quiet * RATE:
        assert one.process.poll() is None, "the agent ended by itself"
        time.sleep(0.1)  # between two looks
    asyncio.run(stack.until(set(range(RATE // 2)), 30))  # it reports, and it arrives
    cut = time.monotonic()
    stack.kill()
    time.sleep(away / 2)
    killed = one.kill()
    agents.append(stack.agent(10_000_000))
    two = agents[1]
    time.sleep(max(0.0, cut + away - time.monotonic()))
    stack.start()
    waiting, back = set(two.returned), time.monotonic()
    asyncio.run(stack.until(waiting, 300))
    caught_up, lasted = time.monotonic() - back, back - cut
    time.sleep(quiet)
    ended = two.end()
    promised = {n for n, at in one.returned.items() if at <= killed - PROMISED_S} | set(two.returned)
    young = set(one.returned) - promised
    records = asyncio.run(stack.until(promised, 60, to_the_end=True))
    return judged(records, promised, young, lasted, caught_up, ended)


def judged(
    records: list[dict[str, Any]], promised: set[int], young: set[int], lasted: float, caught_up: float, ended: int
) -> tuple[list[str], bool]:
    shown: dict[str, dict[str, Any]] = {}
    for record in records:  # as people see it: an id with the same bytes once, where it stands first
        known = shown.setdefault(record["id"], record)
        if known["raw"] != record["raw"]:
            shown[f"{record['id']} again"] = record
    numbers = [int(record["text"]) for record in shown.values()]
    lost, twice = promised - set(numbers), len(numbers) - len(set(numbers))
    disorder = sum(after < before for before, after in itertools.pairwise(numbers))
    by_source: dict[str, list[int]] = {}
    for record in shown.values():
        by_source.setdefault(record["source"], []).append(record["seq"])
    gaps = sum(seqs != list(range(1, len(seqs) + 1)) for seqs in by_source.values())
    good = not (lost or twice or disorder or gaps or ended)
    lines = [
        f"broker and enforcer killed with -9, back after {lasted:.0f} s; {RATE} reports/s; the agent killed in the middle",
        f"  promised (20 ms old at the kill, or flushed) {len(promised):,}   in Kafka {len(promised - lost):,}",
        f"  lost {len(lost)}   twice {twice}   out of order {disorder}   sources with gaps in seq {gaps} of {len(by_source)}",
        f"  younger than 20 ms at the kill {len(young)}, of which {len(young & set(numbers))} arrived",
        f"  sent again as the same bytes under the same id, which is shown once {len(records) - len(shown)}",
        f"  flush at the end {'ok' if not ended else 'FAILED'}; what waited had arrived {caught_up:.1f} s after both were back",
        f"0 lost, 0 twice, order kept: {'yes' if good else 'NO'}",
    ]
    return lines, good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outage", type=float, default=60, help="seconds of the outage (60)")
    parser.add_argument("--only", choices=("calls", "outage"))
    parser.add_argument("--out", type=Path, help="write it there too")
    args = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # a broker that is away is the point
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ":unknown")
    load = os.getloadavg()[0]
    lines = [
        f"{os.cpu_count()} cores ({model.partition(':')[2].strip()}), Python {platform.python_version()}, load {load:.1f}", ""
    ]  # fmt: skip
    good = True
    if args.only != "outage":
        lines += [*costs(), ""]
    if args.only != "calls":
        told, good = outage(args.outage)
        lines += told
    print("\n".join(lines))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
