"""Lives and deaths of an agent's process: killed, frozen, forked, ended, started again, beside another, on a full disk."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.enforcer.conftest import until
from tests.producers.conftest import Agent
from tests.producers.fake_enforcer import FakeEnforcer, Reply, problem
from tests.servers import child_environment

from banksman.producers import Emitter
from banksman.signing import Credential

AGENT = """
import os, sys, time
from banksman.producers import Emitter
emitter = Emitter.from_settings()
session = emitter.session(os.environ.get("SESSION", "s1"))
print("ready", flush=True)
for line in sys.stdin:
    word, _, text = line.strip().partition(" ")
    if word == "note":
        session.note(text)
        print("noted", flush=True)
    elif word == "many":
        first, count = map(int, text.split())
        for n in range(first, first + count):
            session.note(str(n))
        print("noted", flush=True)
    elif word == "flush":
        print(emitter.flush(float(text)), flush=True)
    elif word == "steady":  # 200 a second, each told once it is 20 ms old
        told, n = [], int(text)
        while True:
            session.note(str(n))
            told.append((time.monotonic(), n))
            while told and time.monotonic() - told[0][0] > 0.02:
                print(told.pop(0)[1], flush=True)
            n += 1
            time.sleep(0.005)
    elif word == "stats":
        stats = emitter.stats()
        print(stats.source, stats.adopted, stats.dropped, stats.disk_errors, flush=True)
"""


def texts(fake: FakeEnforcer, session: str = "s1") -> list[str]:
    return [e["text"] for e in fake.events if e["kind"] == "note" and e["session"] == session]


def told(agent: Agent, *lines: str) -> str:
    for line in lines:
        agent.say(line)
    return agent.hear()


def in_order_by_source(fake: FakeEnforcer) -> bool:
    seen: dict[str, int] = {}
    for event in fake.events:
        if event["seq"] <= seen.get(event["source"], 0):
            return False
        seen[event["source"]] = event["seq"]
    return True


# ── killed ──


def test_what_was_reported_20_ms_before_a_kill_arrives(
    fake: FakeEnforcer, make_agent: Callable[..., Agent], make_emitter: Callable[..., Emitter]
) -> None:
    """Three lives that are killed while they report, nobody at the other end: what was 20 ms old is there, in order."""
    fake.stop()
    wanted: list[int] = []
    first = 0
    for _ in range(3):
        agent = make_agent(AGENT)
        assert agent.hear() == "ready"
        agent.say(f"steady {first}")
        wanted += [int(agent.hear()) for _ in range(40)]
        agent.kill()
        first += 1000
    fake.start()
    emitter = make_emitter()
    fake.until(lambda: len(fake.taken) >= len(wanted))
    assert emitter.flush(20)
    arrived = [int(text) for text in texts(fake)]
    assert set(wanted) <= set(arrived)
    assert arrived == sorted(arrived)
    assert len(set(arrived)) == len(arrived)
    assert [event["seq"] for event in fake.events] == list(range(1, len(arrived) + 1)), "one source, its numbers go on"


def test_killed_between_the_answer_and_its_cursor_sends_the_same_bytes_again(
    fake: FakeEnforcer, make_agent: Callable[..., Agent]
) -> None:
    """The other side has it, the agent does not know: dead in the moment before the answer."""
    agents: list[Agent] = []

    def kill_then_answer(_: Any) -> Reply:
        if len(fake.requests) == 1:
            agents[0].kill()
        return Reply()

    fake.on_events = kill_then_answer
    agents.append(make_agent(AGENT))
    assert agents[0].hear() == "ready"
    agents[0].say("many 0 20")
    fake.until(lambda: len(fake.taken) >= 1)
    before = list(fake.taken)
    again = make_agent(AGENT)
    assert again.hear() == "ready"
    assert told(again, "flush 20") == "True"
    until(lambda: len(fake.taken) >= 20 + len(before) or len(fake.taken) >= 2 * len(before))
    assert told(again, "note after") == "noted"
    assert told(again, "flush 20") == "True"
    assert fake.taken[len(before) : 2 * len(before)] == before, "the same bytes, so that it is shown once"
    assert list(dict.fromkeys(fake.taken))[:-1] == sorted(set(fake.taken[:-1]), key=lambda raw: json.loads(raw)["seq"])


def test_flush_means_that_it_is_there(fake: FakeEnforcer, make_agent: Callable[..., Agent]) -> None:
    agent = make_agent(AGENT)
    assert agent.hear() == "ready"
    assert told(agent, "many 0 500") == "noted"
    assert told(agent, "flush 20") == "True"
    agent.kill()
    assert texts(fake) == [str(n) for n in range(500)]


# ── more than one process ──


def test_a_second_process_has_a_source_of_its_own(fake: FakeEnforcer, make_agent: Callable[..., Agent]) -> None:
    one, two = make_agent(AGENT, SESSION="one"), make_agent(AGENT, SESSION="two")
    for agent in (one, two):
        assert agent.hear() == "ready"
        assert told(agent, "many 0 50") == "noted"
    for agent in (one, two):
        assert told(agent, "flush 20") == "True"
    assert texts(fake, "one") == texts(fake, "two") == [str(n) for n in range(50)]
    sources = {event["session"]: event["source"] for event in fake.events}
    assert sources["one"] != sources["two"]
    assert in_order_by_source(fake)


def test_the_spool_of_a_dead_process_is_sent_by_one_that_lives_and_before_its_own(
    fake: FakeEnforcer, make_agent: Callable[..., Agent], spool: Path
) -> None:
    fake.stop()
    dead, other = make_agent(AGENT, SESSION="dead"), make_agent(AGENT, SESSION="other")
    for agent in (dead, other):
        assert agent.hear() == "ready"
        assert told(agent, "many 0 30", "flush 0.2") == "noted"
        assert agent.hear() == "False"
        agent.kill()
    fake.start()
    heir = make_agent(AGENT, SESSION="heir")
    assert heir.hear() == "ready"
    assert told(heir, "many 0 30") == "noted"
    assert told(heir, "flush 20") == "True"
    assert texts(fake, "dead") == texts(fake, "other") == texts(fake, "heir") == [str(n) for n in range(30)]
    assert fake.events[-1]["session"] == "heir"
    assert in_order_by_source(fake)
    assert len(list((spool / "shop" / "buyer").iterdir())) == 2, "folders are used again, not piled up"


def test_a_frozen_process_keeps_its_spool(fake: FakeEnforcer, make_agent: Callable[..., Agent]) -> None:
    frozen = make_agent(AGENT, SESSION="frozen")
    assert frozen.hear() == "ready"
    fake.stop()
    assert told(frozen, "many 0 30", "flush 0.2") == "noted"
    assert frozen.hear() == "False"
    frozen.process.send_signal(signal.SIGSTOP)
    fake.start()
    other = make_agent(AGENT, SESSION="other")
    assert other.hear() == "ready"
    assert told(other, "many 0 30") == "noted"
    assert told(other, "flush 20") == "True"
    assert texts(fake, "frozen") == []
    frozen.process.send_signal(signal.SIGCONT)
    assert told(frozen, "flush 20") == "True"
    assert texts(fake, "frozen") == [str(n) for n in range(30)]
    assert len(set(fake.taken)) == len(fake.taken) == 60


def test_agents_of_other_names_do_not_share(
    fake: FakeEnforcer, make_emitter: Callable[..., Emitter], spool: Path, credential: Credential
) -> None:
    """What one agent left is never sent with another's token."""
    fake.on_events = lambda _: problem(503, "away")
    one = make_emitter()
    one.session("s1").note("left behind")
    one.flush(0.2)
    one.close(0)
    from dataclasses import replace

    fake.on_events = lambda _: Reply()
    other = Emitter(replace(credential, agent="seller"), url=fake.url, spool=spool)
    other.session("s1").note("mine")
    assert other.flush(10)
    assert other.stats().adopted == 0
    other.close(0)
    assert texts(fake) == ["mine"]


@pytest.mark.parametrize("host", ["another-boot another-host\n", None], ids=["another machine", "unknown"])
def test_a_spool_from_before_a_reboot_is_emptied_but_not_gone_on_with(
    fake: FakeEnforcer, make_emitter: Callable[..., Emitter], spool: Path, host: str | None
) -> None:
    """Its last numbers may have been sent and lost with the machine's memory: the same number must not mean two events."""
    fake.on_events = lambda _: problem(503, "away")
    one = make_emitter()
    one.session("s1").note("old")
    one.flush(0.2)
    one.close(0)
    folder = spool / "shop" / "buyer" / one.stats().source.partition("#")[2]
    if host is None:
        (folder / "host").unlink()
    else:
        (folder / "host").write_text(host)
    fake.on_events = lambda _: Reply()
    two = make_emitter()
    two.session("s1").note("new")
    assert two.flush(10)
    assert texts(fake) == ["old", "new"]
    assert one.stats().source != two.stats().source
    assert [event["seq"] for event in fake.events] == [1, 1]
    until(lambda: not folder.exists())


# ── fork ──

FORKING = """
import os, sys
from banksman.producers import Emitter
emitter = Emitter.from_settings()
with emitter.session("s1") as session:
    for n in range(100):
        session.note(f"parent {n}")
    pid = os.fork()
    if pid == 0:
        for n in range(100):
            session.note(f"child {n}")
        allowed = session.decide("git", "push").allowed
        os._exit(0 if emitter.flush(20) and allowed else 1)
    for n in range(100, 200):
        session.note(f"parent {n}")
    assert session.decide("git", "push").allowed
    assert os.waitpid(pid, 0)[1] == 0
    assert emitter.flush(20)
"""


def test_a_fork_has_a_source_of_its_own_and_sends_nothing_of_its_parent(
    fake: FakeEnforcer, make_agent: Callable[..., Agent]
) -> None:
    assert make_agent(FORKING).end() == 0
    for who, count in (("parent", 200), ("child", 100)):
        assert [text for text in texts(fake) if text.startswith(who)] == [f"{who} {n}" for n in range(count)]
    sources = {e["text"].split()[0]: e["source"] for e in fake.events if e["kind"] == "note"}
    assert sources["parent"] != sources["child"]
    assert in_order_by_source(fake)


PREFORKED = """
import os, sys, time
from banksman.producers import Emitter
emitter = Emitter.from_settings()
emitter.session("s1").note("before")
pid = os.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-c", "import time; print('exec', flush=True); time.sleep(60)"])
if os.fork() == 0:
    time.sleep(60)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_children_that_outlive_their_parent_do_not_hold_its_spool(
    fake: FakeEnforcer, make_agent: Callable[..., Agent], make_emitter: Callable[..., Emitter]
) -> None:
    """A lock is inherited by whoever inherits the file: a child must have let go of it."""
    fake.on_events = lambda _: problem(503, "away")
    agent = make_agent("import os; os.setpgid(0, 0)\n" + PREFORKED)
    lines = {agent.hear(), agent.hear()}
    assert "exec" in lines
    time.sleep(0.05)  # 20 ms from report to spool
    agent.kill()
    try:
        fake.on_events = lambda _: Reply()
        emitter = make_emitter()
        fake.until(lambda: len(fake.taken) == 1)
        assert texts(fake) == ["before"]
        assert emitter.flush(10)
    finally:
        os.killpg(agent.process.pid, signal.SIGKILL)


AT_ONCE = """
import os, random, time
from banksman.producers import Emitter
for _ in range(150):
    emitter = Emitter.from_settings()
    time.sleep(random.random() * 0.003)  # anywhere in the opening of the spool, which another thread does
    pid = os.fork()
    if pid == 0:
        links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        os._exit(sum(os.readlink(link).endswith("/lock") for link in links if os.path.islink(link)))
    assert os.waitpid(pid, 0)[1] == 0, "the child holds its parent's lock"
    emitter.close(0)
"""


def test_a_fork_right_after_the_start_does_not_hold_the_parents_spool(make_agent: Callable[..., Agent]) -> None:
    assert make_agent(AT_ONCE).end() == 0


POOL = """
import multiprocessing
from banksman.producers import Emitter
emitter = Emitter.from_settings()

def work(n):
    with emitter.session(f"w{n}") as session:
        session.note(str(n))

if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    workers = [multiprocessing.Process(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
"""


def test_workers_of_multiprocessing_send_what_they_reported_last(
    fake: FakeEnforcer, make_agent: Callable[..., Agent]
) -> None:
    """They end without `atexit`."""
    assert make_agent(POOL).end() == 0
    kinds = {n: [e["kind"] for e in fake.events if e["session"] == f"w{n}"] for n in range(4)}
    assert kinds == {n: ["session.started", "note", "session.ended"] for n in range(4)}


# ── the end ──

SHORT = """
from banksman.producers import Emitter
with Emitter.from_settings().session("s1") as session:
    session.note("the only one")
"""


def test_the_end_of_the_interpreter_waits_for_what_is_not_sent(
    fake: FakeEnforcer, make_agent: Callable[..., Agent]
) -> None:
    assert make_agent(SHORT).end() == 0
    assert [event["kind"] for event in fake.events] == ["session.started", "note", "session.ended"]


@pytest.mark.parametrize("how", ["nobody listens", "nobody answers"])
def test_but_not_for_long(
    fake: FakeEnforcer, make_agent: Callable[..., Agent], make_emitter: Callable[..., Emitter], how: str
) -> None:
    if how == "nobody listens":
        fake.stop()
    else:
        fake.on_events = lambda _: Reply(delay=20)
    agent = make_agent("print('imported', flush=True)\n" + SHORT)
    assert agent.hear() == "imported"
    began = time.monotonic()
    assert agent.end() == 0
    assert time.monotonic() - began < 15, "2 s are what it may wait; the rest is a slow machine"
    if how == "nobody listens":
        fake.start()
    fake.on_events = lambda _: Reply()
    emitter = make_emitter()
    fake.until(lambda: len(fake.taken) >= 3)
    assert emitter.flush(10)
    assert [event["kind"] for event in fake.events][:3] == ["session.started", "note", "session.ended"]


def test_reports_after_close_are_counted(fake: FakeEnforcer, emitter: Emitter) -> None:
    session = emitter.session("s1")
    session.note("before")
    assert emitter.close()
    session.note("after")
    assert texts(fake) == ["before"]
    assert emitter.stats().state == "closed"
    assert not emitter.close() or texts(fake) == ["before"]


def test_nothing_is_left_on_disk_of_what_was_sent(fake: FakeEnforcer, emitter: Emitter, spool: Path) -> None:
    emitter.session("s1").note("somebody's name")
    assert emitter.close()
    assert b"somebody" not in b"".join(path.read_bytes() for path in spool.rglob("*") if path.is_file())
    folders = [spool, *(path for path in spool.rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
    assert {path.stat().st_mode & 0o077 for path in spool.rglob("*")} == {0}


HURRIED = """
import threading
from banksman.producers import Emitter
from banksman.producers.spool import Spool

append, go_on = Spool.append, threading.Event()
Spool.append = lambda *given: go_on.wait() and append(*given)
emitter = Emitter.from_settings()
session = emitter.session("s1")
for n in range(60_000):
    session.note(str(n))
assert emitter.stats().waiting > 50_000
go_on.set()
"""


def test_a_full_queue_is_spooled_before_the_process_ends(
    fake: FakeEnforcer, make_agent: Callable[..., Agent], make_emitter: Callable[..., Emitter]
) -> None:
    """More than the end waits for the other side: what was reported goes to disk all the same, and out in the next life."""
    fake.stop()
    assert make_agent(HURRIED).end() == 0
    fake.start()
    emitter = make_emitter()
    assert emitter.flush(90)
    assert texts(fake) == [str(n) for n in range(60_000)]
    assert in_order_by_source(fake)


# ── folders that cannot be used ──


@pytest.mark.parametrize("what", ["lock", "segment", "cursor"])
def test_a_folder_that_cannot_be_used_does_not_stand_in_the_way(
    fake: FakeEnforcer, make_emitter: Callable[..., Emitter], spool: Path, what: str
) -> None:
    """Another user's, or a damaged one: this process has a spool all the same, and others' are found behind it."""
    fake.on_events = lambda _: problem(503, "away")
    left = make_emitter()
    left.session("s1").note("left behind")
    left.flush(0.2)
    left.close(0)
    home = spool / "shop" / "buyer"
    bad = home / "00000000"  # comes first
    bad.mkdir(mode=0o700)
    (bad / "host").write_bytes((home / left.stats().source.partition("#")[2] / "host").read_bytes())
    if what == "lock":
        (bad / "lock").symlink_to(bad / "host")
    else:
        (bad / ("cursor" if what == "cursor" else f"{1:020d}.log")).mkdir()
    fake.on_events = lambda _: Reply()
    emitter = make_emitter()
    emitter.session("s1").note("mine")
    assert emitter.flush(10)
    assert texts(fake) == ["left behind", "mine"]
    assert emitter.stats().disk_errors == 0
    assert emitter.stats().source == left.stats().source, "it went on with the one that can be used"
    assert make_emitter().flush(10)


# ── disk ──

LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n" + AGENT


def test_a_disk_that_is_full_costs_nothing_while_the_process_lives(
    fake: FakeEnforcer, make_agent: Callable[..., Agent]
) -> None:
    """No file of this process may be larger than 40 kB: the kernel writes a part, then refuses."""
    fake.stop()
    agent = make_agent(LIMITED)
    assert agent.hear() == "ready"
    assert told(agent, "many 0 1000", "flush 0.2") == "noted"
    assert agent.hear() == "False"
    *_, dropped, errors = told(agent, "stats").split()
    assert (dropped, int(errors) > 0) == ("0", True)
    fake.start()
    assert told(agent, "flush 20") == "True"
    assert told(agent, "note after") == "noted"
    assert told(agent, "flush 20") == "True"
    assert texts(fake) == [*(str(n) for n in range(1000)), "after"]
    assert len(set(fake.taken)) == len(fake.taken)
    assert in_order_by_source(fake)


def test_what_no_disk_took_is_told_as_lost_when_the_process_ends(
    fake: FakeEnforcer, make_emitter: Callable[..., Emitter], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.stop()
    (tmp_path / "file").write_text("")
    emitter = make_emitter(spool=tmp_path / "file")
    for n in range(30):
        emitter.session("s1").note(str(n))
    assert not emitter.close(0.2)
    stats = emitter.stats()
    assert (stats.dropped, stats.spooled_bytes, stats.waiting) == (30, 0, 0)
    assert "30 events that no disk took are lost" in caplog.text


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("full_at", ["start", "later"])
def test_a_file_system_that_is_full_and_then_is_not(
    fake: FakeEnforcer, make_agent: Callable[..., Agent], small: Path, full_at: str
) -> None:
    """Everything waits in memory meanwhile, and is on disk once there is room."""
    (small / "other").write_bytes(b"x" * (shutil.disk_usage(small).free if full_at == "start" else 150_000))
    fake.stop()
    agent = make_agent(AGENT, BANKSMAN_SPOOL=str(small / "spool"))
    assert agent.hear() == "ready"
    assert told(agent, "many 0 500", "flush 0.2") == "noted"
    assert agent.hear() == "False"
    assert int(told(agent, "stats").split()[3]) > 0
    (small / "other").unlink()
    assert told(agent, "note after", "flush 2") == "noted"  # appended: everything is on disk now
    assert agent.hear() == "False"
    agent.kill()
    fake.start()
    again = make_agent(AGENT, BANKSMAN_SPOOL=str(small / "spool"))
    assert again.hear() == "ready"
    assert told(again, "note last", "flush 20") == "noted"
    assert again.hear() == "True"
    arrived = texts(fake)
    assert arrived[-2:] == ["after", "last"]
    assert [int(text) for text in arrived[:-2]] == list(range(500))
    assert again.end() == 0


# ── light ──


def test_importing_is_light_and_kafka_comes_only_with_its_transport() -> None:
    script = """
import sys
import banksman.producers
assert "banksman.producers.emitter" not in sys.modules
from banksman.producers import Emitter, NotAllowed, govern
heavy = {"pydantic", "clickhouse_connect", "starlette", "uvicorn", "aiokafka", "asyncio", "yaml", "rich"} & set(sys.modules)
assert not heavy, heavy
from banksman.producers import KafkaTransport
assert "aiokafka" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=child_environment(), timeout=60)


def test_the_lock_is_the_file_that_it_is_said_to_be(emitter: Emitter, spool: Path) -> None:
    """Two processes agree on what a lock is: `flock` on the folder's file `lock`."""
    until(lambda: emitter.stats().source)
    path = spool / "shop" / "buyer" / emitter.stats().source.partition("#")[2] / "lock"
    with open(path) as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
