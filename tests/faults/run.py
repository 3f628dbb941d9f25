"""One fault run: a load, one thing after another that is done to what serves it, and what came of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from tests.e2e import checker
from tests.e2e.load import Load, read_journal
from tests.e2e.stack import AGENTS, Shape, Stack, make
from tests.faults import judge
from tests.faults.crowd import EMITTERS, Crowd, policies
from tests.processors import fake_slack
from tests.servers import fill_up

from banksman.topics import Topic

KINDS = (*checker.Kind, *judge.Kind)
QUIET_S = 90.0
"""So long after the last fault everything may take to be counted and told."""
BACK_S, ENDS_S = 60.0, 30.0
DUPLICATES = 40
SLACK = (
    fake_slack.limited(1), fake_slack.fails(500), fake_slack.fails(500, accepted=True), fake_slack.drops(accepted=True),
    fake_slack.drops(accepted=False),
)  # fmt: skip

Say = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """What is done to whom, after how many more decisions, for how many seconds."""

    what: str
    whom: tuple[str, ...]
    after: int
    seconds: float


@dataclass
class Outcome:
    """What came of it."""

    seed: int
    steps: Counter[str]
    faults: list[checker.Fault]
    counts: dict[str, int]
    longest_s: float
    """The longest that one agent was not answered."""

    def rows(self) -> Iterator[tuple[str, int]]:
        """Every kind of fault with how often it was found."""
        found = Counter(fault.kind for fault in self.faults)
        for kind in KINDS:
            yield kind, found[kind]


def schedule(shape: Shape, names: tuple[str, ...], chance: random.Random) -> list[Step]:
    """Every fault once, in an order of the seed's. `names`: what runs."""
    brokers = shape.names("brokers")
    steps: list[tuple[str, tuple[str, ...]]] = [("kill", (name,)) for name in (*names, *EMITTERS)]
    steps += [("freeze", (name,)) for name in names]
    steps += [("kill", (*brokers, *(name for name in names if name not in brokers)))] if shape.brokers == 1 else []
    gates = (*brokers, *shape.names("enforcers"), "clickhouse", "slack")
    steps += [(what, (gate,)) for gate in gates for what in ("cut", "silence", "slow", "swallow")]
    steps += [("fill", ("clickhouse",))]
    steps += [("duplicate", (topic,)) for topic in ("actions", "decisions")] + [("spoil", ("slack",))] * 2
    return [
        Step(what, whom, chance.randrange(5, 60), chance.uniform(0.5, 4.0))
        for what, whom in chance.sample(steps, len(steps))
    ]


def rolling(names: tuple[str, ...], chance: random.Random) -> list[Step]:
    """Each is asked to end, and started again when it has, one after the other, as for a new version."""
    return [Step("restart", (name,), chance.randrange(20, 60), 0.0) for name in names]


class Run:
    """`with Run(...) as run: outcome = run.through(steps)`."""

    def __init__(self, folder: Path, shape: Shape, *, seed: int, say: Say = print) -> None:
        self._folder, self._seed, self._say = folder, seed, say
        self._journal = folder / "journal.jsonl"
        self._slack = fake_slack.FakeSlack()
        self._shape, self._steps = shape, Counter[str]()
        self._ended = Counter[tuple[str, int]]()

    def __enter__(self) -> Self:
        self._slack.__enter__()
        (self._folder / "slack.token").write_text(fake_slack.TOKEN)
        port = int(self._slack.url.split(":")[2].partition("/")[0])
        more = {
            "BANKSMAN_SLACK_TOKEN_FILE": str(self._folder / "slack.token"), "BANKSMAN_SLACK_TIMEOUT_S": "3",
            "BANKSMAN_AGENT_APPROVALS": "10000",
        }  # fmt: skip
        self.full = _small(self._folder / "chdb")
        self.stack = make(self._folder, replace(self._shape, slack=port, gates=True), policies(), **more)
        try:
            self.stack.begin()
        except BaseException:
            self.__exit__()
            raise
        self.names = tuple(self.stack.programs)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.end()
        self._slack.__exit__()
        if self.full:
            subprocess.run(["umount", str(self._folder / "chdb")], check=True)

    def through(self, steps: Iterator[Step] | list[Step]) -> Outcome:
        """All of them under load -> what came of it."""
        load = Load(self.stack.replicas(), self.stack.tokens, self._journal, seed=self._seed, pause=0.05)
        Crowd(self.stack, load, self._journal, seed=self._seed)
        with load:
            for step in steps:
                if step.what == "fill" and not self.full:
                    self._say(
                        "         ClickHouse has no disk of its own that could be filled: this user may not mount one"
                    )
                    continue
                load.tally.wait(step.after, seconds=BACK_S)
                self._say(f"{time.strftime('%H:%M:%S')} {step.what} {', '.join(step.whom)} for {step.seconds:.1f} s")
                self._steps[step.what] += 1
                began = time.monotonic()
                self._do(step, load)
                over = time.monotonic()
                for replica in self.stack.replicas():
                    load.tally.wait(1, replica, seconds=BACK_S)
                self._say(
                    f"         over after {over - began:.1f} s, all answer after {time.monotonic() - over:.1f} s more"
                )
        self._quiet()
        return self._outcome()

    def _do(self, step: Step, load: Load) -> None:
        began = time.time()
        getattr(self, f"_{step.what}")(step, load)
        self._supervise()
        for name in step.whom:
            load.journal.write("away", who=name, **{"from": began, "to": time.time()})

    def _supervise(self) -> None:
        """Whoever ended by itself (a worker that stood still for longer than its session does) is started again."""
        ended = {name: self.stack.process(name).poll() for name in self.stack.programs}
        for name, code in ended.items():
            if code is not None:
                self._say(f"         {name} ended by itself, with {code}")
                self._ended[name.partition("-")[0], code] += 1
                self.stack.start(name)

    # ── what is done ──

    def _kill(self, step: Step, load: Load) -> None:
        for name in step.whom:
            if name in EMITTERS:
                load.journal.write("killed", name=name, at=time.time())
        self.stack.kill(*step.whom)
        time.sleep(step.seconds)  # so long it is away
        self.stack.start(*step.whom)

    def _restart(self, step: Step, _load: Load) -> None:
        for name in step.whom:
            self.stack.process(name).terminate()
            ended = self.stack.process(name).wait(ENDS_S)
            assert ended in (0, 143), f"{name} ended with {ended}"  # 143: a broker's own way to end at SIGTERM
        self.stack.start(*step.whom)

    def _freeze(self, step: Step, load: Load) -> None:
        stood_still = self.stack.freeze(step.whom[0])
        time.sleep(step.seconds)  # so long it stands still
        load.journal.write("frozen", replica=step.whom[0], **{"from": stood_still, "to": self.stack.thaw(step.whom[0])})

    def _cut(self, step: Step, _load: Load) -> None:
        gate = self.stack.gates[step.whom[0]]
        gate.away()
        time.sleep(step.seconds)  # so long every connection is cut
        gate.back()

    def _silence(self, step: Step, _load: Load) -> None:
        gate = self.stack.gates[step.whom[0]]
        gate.silence()
        time.sleep(step.seconds)  # so long nothing comes through
        gate.speak()

    def _slow(self, step: Step, _load: Load) -> None:
        gate = self.stack.gates[step.whom[0]]
        gate.delay = 0.05
        time.sleep(step.seconds)  # so long it is slow
        gate.delay = 0.0

    def _swallow(self, step: Step, _load: Load) -> None:
        """What was asked is done, and the answer is cut off: every third piece of what comes back."""
        gate, seen = self.stack.gates[step.whom[0]], [0]

        def swallow(data: bytes) -> bytes | None:
            seen[0] += 1
            return None if seen[0] % 3 == 0 else data

        gate.on_answer = swallow
        time.sleep(min(step.seconds, 1.5))  # so long it is so
        gate.on_answer = lambda data: data

    def _fill(self, step: Step, _load: Load) -> None:
        """The disk of ClickHouse."""
        ballast = self._folder / "chdb" / "ballast"
        fill_up(ballast)
        time.sleep(step.seconds)  # so long there is no room
        ballast.unlink()

    def _duplicate(self, step: Step, load: Load) -> None:
        """The last records of a topic come a second time, as they are."""
        for agent, id_ in asyncio.run(_again(self.stack, Topic(step.whom[0]))):
            load.journal.write("duplicated", topic=step.whom[0], agent=agent, id=id_)

    def _spoil(self, step: Step, _load: Load) -> None:
        chance = random.Random(step.seconds)
        self._slack.spoil("chat.postMessage", *(chance.choice(SLACK) for _ in range(3)))

    # ── what came of it ──

    def _quiet(self) -> None:
        """Return when everything that was promised has been sent, stored, counted and told, or the time for it is over."""
        self._supervise()
        for name in EMITTERS:
            process = self.stack.process(name)
            process.terminate()
            ended = process.wait(120)
            assert ended == 0, f"{name} ended with {ended}: {self.stack.programs[name].log.read_text()[-2000:]}"
        self.ends = self.stack.settled()
        end = time.monotonic() + QUIET_S
        while judge.judge(self._world(checker.rows_of(self.stack.reading()))) and time.monotonic() < end:
            time.sleep(1.0)  # between two looks
        self.ends = self.stack.settled()  # what was told meanwhile, too

    def _world(self, rows: list[checker.Row]) -> judge.World:
        once = {(row["topic"], row["partition"], row["offset"]): row for row in rows}
        messages = [message.payload for message in self._slack.parents()]
        return judge.World(read_journal(self._journal), [once[place] for place in sorted(once)], messages, self._ended)

    def _outcome(self) -> Outcome:
        shown = checker.read(self.stack.reading(), self.ends)
        world = self._world(shown.rows)
        verdict = checker.judge(world.journal, shown)
        faults = [*verdict.faults, *judge.judge(world)]
        counts = verdict.counts | judge.counts(world) | {"ended by themselves": self._ended.total()}
        if faults:  # for whoever looks for the reason
            (self._folder / "seen.json").write_text(json.dumps({"rows": world.rows, "messages": world.messages}))
        return Outcome(self._seed, self._steps, faults, counts, longest_silence(world.journal))


def longest_silence(journal: list[dict[str, Any]]) -> float:
    """Seconds: the longest that one agent of the load, whose records are in one partition, had no question answered."""
    asked = {line["id"] for line in journal if line["what"] == "asked"}
    answered: defaultdict[str, list[float]] = defaultdict(list)
    for line in journal:
        if line["what"] == "answer" and line["status"] == 200 and line["agent"] in AGENTS and line["id"] in asked:
            answered[line["agent"]].append(line["received"])
    gaps = (after - before for times in answered.values() for before, after in itertools.pairwise(sorted(times)))
    return max(gaps, default=float("inf"))


def _small(folder: Path) -> bool:
    """A file system of its own for ClickHouse, that can be filled; False: this user may not make one."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "none", str(folder)], capture_output=True)
    return made.returncode == 0


async def _again(stack: Stack, topic: Topic) -> list[tuple[str, str]]:
    """Appends the last records of each partition once more -> (agent, id) of each."""
    consumer = AIOKafkaConsumer(**stack.kafka.client(), enable_auto_commit=False)
    producer = AIOKafkaProducer(**stack.kafka.client(), acks="all", enable_idempotence=True)
    await consumer.start()
    await producer.start()
    try:
        name, sent = stack.kafka.topic(topic), []
        for partition in range(stack.shape.partitions):
            where = TopicPartition(name, partition)
            consumer.assign([where])
            [end] = (await consumer.end_offsets([where])).values()
            consumer.seek(where, max(0, end - DUPLICATES))
            records: list[Any] = []
            while await consumer.position(where) < end:
                records += (await consumer.getmany(timeout_ms=500)).get(where, [])
            for record in records:
                event = json.loads(record.value)
                await producer.send_and_wait(
                    name, record.value, key=record.key, partition=partition, headers=list(record.headers)
                )
                sent.append((str(event["agent"]), str(event["id"])))
        return sent
    finally:
        await consumer.stop()
        await producer.stop()
