"""Child processes, all of them real: they die with their parent, are started again, stop in order, are never left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.local.conftest import runs, until

from banksman.errors import BadDeployment, BrokerAway
from banksman.local import child as launcher
from banksman.local import children
from banksman.local.children import Child, Supervisor

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)",
]


async def at_once() -> None:
    """Ready."""


async def never() -> None:
    await asyncio.Event().wait()


def write(path: Path, program: str) -> list[str]:
    path.write_text(textwrap.dedent(program))
    return [sys.executable, str(path)]


class Desk:
    """A supervisor and what it reported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.told: list[tuple[str, str]] = []
        self.news = asyncio.Event()
        self.supervisor = Supervisor(self.run, self.report, ready_within=5, stop_within=1)

    def report(self, name: str, text: str) -> None:
        self.told.append((name, text))
        self.news.set()

    def child(self, name: str, argv: list[str], **more: object) -> Child:
        given = {"ready": at_once, "env": dict(os.environ)}
        return Child(name, argv, self.folder / f"{name}.log", **{**given, **more})  # type: ignore[arg-type]

    async def heard(self, name: str, part: str) -> None:
        async with asyncio.timeout(20):
            while not any(who == name and part in text for who, text in self.told):
                self.news.clear()
                await self.news.wait()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    made = Desk(tmp_path)
    yield made
    await made.supervisor.stop()


# --- the parent's death


PARENT = """
    import os, sys, time
    from pathlib import Path
    from banksman.local import children
    made = children.spawn(sys.argv[2:], log=Path(sys.argv[1]), env=dict(os.environ))
    print(made.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("deaf", [False, True], ids=["ordinary", "deaf and frozen"])
def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path, deaf: bool) -> None:
    log = tmp_path / "child.log"
    argv = [*write(tmp_path / "parent.py", PARENT), str(log), *(DEAF if deaf else SLEEPER)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until(lambda: "child.py" not in Path(f"/proc/{child}/cmdline").read_text())  # it has become the program
        if deaf:
            until(lambda: "deaf" in log.read_text())
            os.kill(child, signal.SIGSTOP)
        assert runs(child)
        parent.kill()
    until(lambda: not runs(child), 5)


def test_a_child_whose_parent_died_before_it_could_ask_does_not_start(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    log = tmp_path / "started"
    argv = [sys.executable, launcher.__file__, str(gone.pid), "touch", str(log)]
    ran = subprocess.run(argv, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (1, "the parent is gone\n")
    assert not log.exists()


def test_another_thread_may_not_start_children(tmp_path: Path) -> None:
    """They would be killed when it ends."""
    caught: list[Exception] = []

    def work() -> None:
        try:
            children.spawn(SLEEPER, log=tmp_path / "log", env={})
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


def test_a_program_that_is_not_there_is_said_in_the_log(tmp_path: Path) -> None:
    process = children.spawn(["/no/such/program"], log=tmp_path / "log", env={})
    assert process.wait(10) == 1
    assert "/no/such/program: No such file or directory" in (tmp_path / "log").read_text()


def test_the_environment_is_exactly_what_was_given_and_the_log_is_private(tmp_path: Path) -> None:
    process = children.spawn(["/usr/bin/env"], log=tmp_path / "logs" / "log", env={"ONLY": "this"})
    assert process.wait(10) == 0
    lines = (tmp_path / "logs" / "log").read_text().splitlines()
    assert "ONLY=this" in lines
    assert not [line for line in lines if line.startswith(("HOME=", "PATH=", "PYTEST"))]
    assert stat.S_IMODE((tmp_path / "logs" / "log").stat().st_mode) == 0o600


# --- the folder


def test_a_folder_belongs_to_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    claim = children.claim_folder(data)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    program = """if True:
        import sys
        from pathlib import Path
        from banksman.local import children
        children.claim_folder(Path(sys.argv[1]))
    """
    other = subprocess.run([sys.executable, "-c", program, str(data)], capture_output=True, text=True)
    assert f"{data} is in use by another `banksman up` (pid {os.getpid()})" in other.stderr
    claim.close()
    assert subprocess.run([sys.executable, "-c", program, str(data)]).returncode == 0


def test_a_claim_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    parent = write(
        tmp_path / "holder.py",
        """
        import os, sys, time
        from pathlib import Path
        from banksman.local import children
        claim = children.claim_folder(Path(sys.argv[1]))
        children.spawn([sys.executable, "-c", "import time; time.sleep(600)"], log=Path(sys.argv[1], "log"), env={})
        print("claimed", flush=True)
        time.sleep(600)
        """,
    )
    with subprocess.Popen([*parent, str(tmp_path / "data")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(BadDeployment, match=rf"another `banksman up` \(pid {holder.pid}\)"):
            children.claim_folder(tmp_path / "data")
        holder.kill()
    children.claim_folder(tmp_path / "data").close()


# --- what an earlier `up` left


def leave(run: Path, name: str, argv: list[str]) -> subprocess.Popen[bytes]:
    """A process that no parent's death ends, with its note, as after a crash of everything else."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
    run.mkdir(exist_ok=True)
    (run / f"{name}.json").write_text(json.dumps({"pid": process.pid, "started": children.started(process.pid)}))
    return process


def test_what_was_left_running_is_ended(tmp_path: Path) -> None:
    with leave(tmp_path / "run", "kafka", SLEEPER) as plain, leave(tmp_path / "run", "enforcer", DEAF) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        frozen = leave(tmp_path / "run", "archiver", SLEEPER)
        frozen.send_signal(signal.SIGSTOP)
        assert children.reclaim(tmp_path / "run", within=0.5) == ["archiver", "enforcer", "kafka"]
        assert not any(runs(process.pid) for process in (plain, deaf, frozen))
        assert not list((tmp_path / "run").iterdir())
        assert frozen.stdout is not None
        frozen.stdout.close()
        frozen.wait()


def test_a_process_that_only_has_the_same_pid_is_left_alone(tmp_path: Path) -> None:
    with leave(tmp_path / "run", "kafka", SLEEPER) as stranger:
        boot, ticks = children.started(stranger.pid).split("/")
        for started in (f"{boot}/{int(ticks) - 1}", f"{boot[::-1]}/{ticks}"):
            (tmp_path / "run" / "kafka.json").write_text(json.dumps({"pid": stranger.pid, "started": started}))
            assert children.reclaim(tmp_path / "run") == []
            assert runs(stranger.pid)
        stranger.kill()


def test_one_that_ended_and_was_never_waited_for_is_not_left_running(tmp_path: Path) -> None:
    """A container's first process need not reap orphans: they would be there, and unkillable, for ever."""
    ended = leave(tmp_path / "run", "kafka", SLEEPER)
    ended.kill()
    until(lambda: not runs(ended.pid))
    assert Path(f"/proc/{ended.pid}/stat").exists()
    assert children.reclaim(tmp_path / "run") == []
    assert not list((tmp_path / "run").iterdir())
    assert ended.stdout is not None
    ended.stdout.close()
    ended.wait()


@pytest.mark.parametrize("note", ["", "{", "{}", '{"pid": 4194304, "started": "x/1"}'])
def test_a_note_that_says_nothing_is_thrown_away(tmp_path: Path, note: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kafka.json").write_text(note)
    assert children.reclaim(tmp_path / "run") == []
    assert not list((tmp_path / "run").iterdir())


def test_the_start_of_a_process_is_its_own() -> None:
    first = subprocess.Popen(SLEEPER)
    time.sleep(0.02)  # two ticks: the kernel counts starts in hundredths of a second
    second = subprocess.Popen(SLEEPER)
    assert children.started(first.pid) == children.started(first.pid) != children.started(second.pid)
    for process in (first, second):
        process.kill()
        process.wait()
    assert children.started(first.pid) == ""


# --- the supervisor


async def test_start_returns_when_the_child_is_ready_and_notes_it(desk: Desk) -> None:
    argv = [sys.executable, "-c", "import time; print('hello', flush=True); time.sleep(600)"]
    log = desk.folder / "one.log"

    async def ready() -> None:
        await asyncio.to_thread(until, lambda: log.exists() and "hello" in log.read_text())

    await desk.supervisor.start(desk.child("one", argv, ready=ready))
    note = desk.run / "one.json"
    assert json.loads(note.read_text()) == {
        "pid": desk.supervisor.pid("one"),
        "started": children.started(desk.supervisor.pid("one")),
    }
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    assert os.getsid(desk.supervisor.pid("one")) == desk.supervisor.pid("one")  # Ctrl-C does not reach it


async def test_a_child_that_was_killed_is_started_again(desk: Desk) -> None:
    await desk.supervisor.start(desk.child("one", SLEEPER))
    first = desk.supervisor.pid("one")
    os.kill(first, signal.SIGKILL)
    await desk.heard("one", "is back after")
    second = desk.supervisor.pid("one")
    assert second != first
    assert runs(second)
    assert json.loads((desk.run / "one.json").read_text())["pid"] == second
    assert desk.told[0] == ("one", "was killed by signal 9 (Killed); started again in 0.2 s")


async def test_one_that_dies_again_and_again_is_given_more_time_each_time(desk: Desk) -> None:
    await desk.supervisor.start(desk.child("one", [sys.executable, "-c", "import time; time.sleep(0.05); exit(3)"]))
    await desk.heard("one", "ended with 3; started again in 0.8 s")
    waits = [text.rpartition(" in ")[2] for _, text in desk.told if "started again in" in text]
    assert waits == ["0.2 s", "0.4 s", "0.8 s"]


async def test_what_a_dead_child_had_started_is_gone_before_it_starts_again(desk: Desk) -> None:
    argv = write(
        desk.folder / "mother.py",
        """
        import subprocess, sys, time
        print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
        time.sleep(600)
        """,
    )
    log = desk.folder / "one.log"
    await desk.supervisor.start(desk.child("one", argv))
    until(lambda: log.read_text().endswith("\n"))
    grandchild = int(log.read_text())
    os.kill(desk.supervisor.pid("one"), signal.SIGKILL)
    await desk.heard("one", "started again")
    until(lambda: not runs(grandchild), 5)


async def test_the_watch_goes_on_when_a_restart_fails(desk: Desk) -> None:
    """`ready` raises what it likes; the next death is still noticed."""
    calls = 0

    async def ready() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ZeroDivisionError("of all things")
        if calls == 3:
            raise BrokerAway("nobody there")

    await desk.supervisor.start(desk.child("one", SLEEPER, ready=ready))
    for said in ("of all things", "is not ready: nobody there", "is back after"):
        os.kill(desk.supervisor.pid("one"), signal.SIGKILL)
        await desk.heard("one", said)


async def test_a_log_that_cannot_be_written_is_told_and_tried_again(desk: Desk) -> None:
    child = desk.child("one", SLEEPER)
    await desk.supervisor.start(child)
    child.log.unlink()
    child.log.mkdir()
    os.kill(desk.supervisor.pid("one"), signal.SIGKILL)
    await desk.heard("one", "Is a directory")
    child.log.rmdir()
    await desk.heard("one", "is back after")


async def test_one_that_dies_at_once_is_an_error_with_the_end_of_its_own_log(desk: Desk) -> None:
    child = desk.child("one", [sys.executable, "-c", "import sys; sys.exit('no such thing')"], ready=never)
    child.log.write_text("what an earlier run had to say\n")
    with pytest.raises(BadDeployment, match=r"one ended with 1; the end of .*one\.log:\nno such thing") as caught:
        await desk.supervisor.start(child)
    assert "earlier" not in str(caught.value)


async def test_one_that_never_gets_ready_is_an_error(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "run", lambda *_: None, ready_within=0.3, stop_within=1)
    child = Child("one", SLEEPER, tmp_path / "log", never)
    with pytest.raises(BadDeployment, match=r"one is not ready after 0\.3 s"):
        await supervisor.start(child)
    pid = supervisor.pid("one")
    await supervisor.stop()
    assert not runs(pid)


async def test_stop_is_in_reverse_order_and_may_be_repeated(desk: Desk) -> None:
    order = desk.folder / "order"
    for name in ("first", "second", "third"):
        argv = [
            sys.executable,
            "-c",
            textwrap.dedent("""
                import signal, sys, time
                def bye(*_):
                    open(sys.argv[1], "a").write(sys.argv[2] + " ")
                    sys.exit()
                signal.signal(15, bye)
                print("set", flush=True)
                time.sleep(600)
            """),
            str(order),
            name,
        ]
        await desk.supervisor.start(desk.child(name, argv))
        log = desk.folder / f"{name}.log"
        until(lambda log=log: "set" in log.read_text())  # type: ignore[misc]
    await desk.supervisor.stop()
    await desk.supervisor.stop()
    assert order.read_text().split() == ["third", "second", "first"]
    assert not list(desk.run.iterdir())
    assert desk.told == []  # a child that was told to stop has not died


async def test_one_that_does_not_stop_is_killed(desk: Desk) -> None:
    await desk.supervisor.start(desk.child("deaf", DEAF))
    until(lambda: "deaf" in (desk.folder / "deaf.log").read_text())
    pid = desk.supervisor.pid("deaf")
    await desk.supervisor.stop()
    assert not runs(pid)
    assert desk.told == [("deaf", "did not stop within 1 s, killed")]


async def test_whoever_is_in_a_hurry_waits_for_nobody(desk: Desk) -> None:
    desk.supervisor = Supervisor(desk.run, lambda name, text: desk.told.append((name, text)), stop_within=600)
    for name in ("one", "two"):
        await desk.supervisor.start(desk.child(name, DEAF))
        log = desk.folder / f"{name}.log"
        until(lambda log=log: "deaf" in log.read_text())  # type: ignore[misc]
    pids = [desk.supervisor.pid(name) for name in ("one", "two")]
    stopping = asyncio.create_task(desk.supervisor.stop())
    await asyncio.sleep(0.1)
    assert not stopping.done()
    desk.supervisor.hurry()
    async with asyncio.timeout(20):
        await stopping
    assert not any(map(runs, pids))
    assert desk.told == []


async def test_stop_while_a_child_waits_to_be_started_again(desk: Desk) -> None:
    await desk.supervisor.start(desk.child("one", [sys.executable, "-c", "import time; time.sleep(0.05)"]))
    await desk.heard("one", "started again in 0.4 s")
    await desk.supervisor.stop()
    told = len(desk.told)
    await asyncio.sleep(0.6)  # past the moment at which it would have come back
    assert len(desk.told) == told


def test_a_log_that_grew_too_long_is_cut_while_its_child_goes_on_writing(tmp_path: Path) -> None:
    log, older = tmp_path / "log", tmp_path / "log.1"
    talker = write(
        tmp_path / "talker.py", "import sys\nfor line in open(sys.argv[1]): print('line', line, end='', flush=True)"
    )
    os.mkfifo(tmp_path / "words")
    process = children.spawn([*talker, str(tmp_path / "words")], log=log, env=dict(os.environ))
    with open(tmp_path / "words", "w") as words:
        for number in range(3):
            words.write(f"{number}\n" * 1000)
            words.flush()
            until(lambda number=number: log.read_text().count(f"line {number}\n") == 1000)  # type: ignore[misc]
            if number == 0:
                assert not children.bound_log(log, 10_000)
            if number == 1:
                assert children.bound_log(log, 10_000)
    assert process.wait(10) == 0
    assert older.read_text() == "line 0\n" * 1000 + "line 1\n" * 1000
    assert log.read_text() == "line 2\n" * 1000
    assert stat.S_IMODE(older.stat().st_mode) == 0o600


async def test_the_supervisor_keeps_logs_short(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "LOOK_AT_LOGS", 0.02)
    talk = f"import time; print('x' * {children.LOG_BYTES + 1}, flush=True); time.sleep(600)"
    await desk.supervisor.start(desk.child("one", [sys.executable, "-c", talk]))
    older, log = desk.folder / "one.log.1", desk.folder / "one.log"
    await asyncio.to_thread(until, lambda: older.exists() and log.stat().st_size == 0)
    assert desk.told == []


def test_a_port_that_one_of_ours_holds_is_called_that(tmp_path: Path) -> None:
    """By its module; arguments may hold a stranger's secret."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = f"import socket, time; s = socket.socket(); s.bind(('127.0.0.1', {port})); s.listen(); time.sleep(600)"
    argv = [sys.executable, "-c", program, "banksman.enforcer", "--password=geheim"]
    with subprocess.Popen(argv) as other:
        until(lambda: children.port_holder(port))
        assert children.port_holder(port) == f"pid {other.pid} (banksman.enforcer, of another `banksman up`?)"
        other.kill()


def test_the_holder_of_a_port_is_named() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert children.port_holder(taken.getsockname()[1]) == ""  # bound, but nobody listens
        taken.listen()
        assert children.port_holder(taken.getsockname()[1]).startswith(f"pid {os.getpid()} (")
