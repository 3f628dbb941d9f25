"""The folder: what is in force after every kind of edit, and that nothing half-written ever is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from banksman.policy.folder import Change, PolicyFolder, Shelf, load_folder
from banksman.policy.reader import Bad, FolderReader, Good


def text(project: str, agent: str = "a", version: int = 1) -> str:
    return (
        f"project: {project}\nversion: {version}\nagents:\n  {agent}:\n    allow: [{{service: git, actions: [pull]}}]\n"
    )


class Desk:
    """A folder, its reader and its shelf, without the process in between."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reader, self.shelf = FolderReader(folder), Shelf(folder)
        self.look()

    def write(self, name: str, content: str) -> None:
        (self.folder / name).write_text(content)

    def look(self) -> Change:
        return self.shelf.apply(self.reader.scan())

    def in_force(self) -> dict[str, str]:
        return {project: version.split("+")[0] for project, version in self.shelf.bundle.versions().items()}

    def wrong(self) -> list[str]:
        return [str(rejection) for rejection in self.shelf.rejections]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_edit_add_delete(desk: Desk) -> None:
    desk.write("a.yaml", text("x"))
    desk.write("b.yaml", text("y"))
    change = desk.look()
    assert [(one.project, one.file) for one in change.loaded] == [("x", "a.yaml"), ("y", "b.yaml")]
    assert '"project":"x"' in change.loaded[0].text
    desk.write("a.yaml", text("x", version=2))
    change = desk.look()
    assert [one.policy_version.split("+")[0] for one in change.loaded] == ["x@v2"]
    assert change.bundle is desk.shelf.bundle
    (desk.folder / "b.yaml").unlink()
    change = desk.look()
    assert [(one.project, one.policy_version.split("+")[0]) for one in change.removed] == [("y", "y@v1")]
    assert desk.in_force() == {"x": "x@v2"}
    assert desk.shelf.bundle.decide("y", "a", "git", "pull").reason == "no_policy"
    assert desk.shelf.bundle.decide("x", "a", "git", "pull").decision == "allow"


def test_a_broken_file_leaves_what_was_in_force(desk: Desk) -> None:
    desk.write("a.yaml", text("x"))
    desk.look()
    before = desk.shelf.bundle.policies["x"]
    desk.write("a.yaml", "project: x\nagents:\n  a: {alow: []}\n")
    change = desk.look()
    assert (change.loaded, change.removed) == ((), ())
    (rejection,) = change.rejected
    assert (rejection.file, rejection.line, rejection.key, rejection.project) == ("a.yaml", 3, "agents.a.alow", "x")
    assert rejection.message == "is not a key of the format here; did you mean allow?"
    assert (rejection.attempted or "").startswith("sha256:")
    assert desk.shelf.bundle.policies["x"] is before
    # Said once; broken in another way, said again; deleted, gone after all.
    assert desk.look().rejected == ()
    desk.write("a.yaml", "")
    assert [str(one) for one in desk.look().rejected] == ["a.yaml:1: the file is empty"]
    assert desk.shelf.bundle.policies["x"] is before
    (desk.folder / "a.yaml").unlink()
    change = desk.look()
    assert [one.project for one in change.removed] == ["x"]
    assert change.rejections == ()


def test_mended_to_what_it_was_is_nothing_new(desk: Desk) -> None:
    desk.write("a.yaml", text("x"))
    desk.look()
    before = desk.shelf.bundle.policies["x"]
    desk.write("a.yaml", "project: [")
    assert len(desk.look().rejections) == 1
    desk.write("a.yaml", "# the same\n" + text("x"))
    change = desk.look()
    assert (change.loaded, change.rejections) == ((), ())
    assert desk.shelf.bundle.policies["x"] is before


def test_a_file_that_never_loaded(desk: Desk) -> None:
    desk.write("a.yaml", "project: x\nagents: {}\nwhen: {}\n")
    change = desk.look()
    assert (change.loaded, desk.in_force()) == ((), {})
    assert [one.key for one in change.rejected] == ["when"]


def test_two_files_for_one_project(desk: Desk) -> None:
    desk.write("a.yaml", text("x"))
    desk.look()
    desk.write("b.yaml", text("x", version=2))
    change = desk.look()
    assert desk.in_force() == {"x": "x@v1"}
    assert [(one.file, one.key) for one in change.rejected] == [("a.yaml", "project"), ("b.yaml", "project")]
    assert "project x is also in b.yaml" in change.rejected[0].message
    assert (change.rejected[1].attempted or "").startswith("x@v2+sha256:")
    desk.write("a.yaml", text("x", version=3))
    desk.look()
    assert desk.in_force() == {"x": "x@v1"}
    (desk.folder / "a.yaml").unlink()
    desk.look()
    assert desk.in_force() == {"x": "x@v2"}
    assert desk.wrong() == []


def test_two_new_files_for_one_project_put_nothing_in_force(desk: Desk) -> None:
    desk.write("a.yaml", text("x"))
    desk.write("b.yaml", text("x"))
    assert (desk.look().loaded, desk.in_force(), len(desk.wrong())) == ((), {}, 2)


def test_a_second_file_does_not_slip_in_while_the_first_is_broken(desk: Desk) -> None:
    desk.write("a.yaml", text("x"))
    desk.look()
    desk.write("a.yaml", "project: x\nagents: [")
    desk.write("b.yaml", text("x", version=2))
    desk.look()
    assert desk.in_force() == {"x": "x@v1"}
    assert [one.split(":")[0] for one in desk.wrong()] == ["a.yaml", "b.yaml"]


def test_a_project_that_changes_its_name(desk: Desk) -> None:
    desk.write("a.yaml", text("x"))
    desk.look()
    desk.write("a.yaml", text("y"))
    change = desk.look()
    assert ([one.project for one in change.loaded], [one.project for one in change.removed]) == (["y"], ["x"])


def test_a_file_that_is_renamed_changes_nothing(desk: Desk) -> None:
    desk.write("a.yaml", text("x"))
    desk.look()
    before = desk.shelf.bundle.policies["x"]
    (desk.folder / "a.yaml").rename(desk.folder / "z.yaml")
    change = desk.look()
    assert (change.loaded, change.removed, change.rejected) == ((), (), ())
    assert desk.shelf.bundle.policies["x"] is before
    (desk.folder / "z.yaml").unlink()
    assert [one.project for one in desk.look().removed] == ["x"]


def test_rename_over_the_file(desk: Desk) -> None:
    """How editors and deployment tools write; here with the same size and the old modification time."""
    desk.write("a.yaml", text("x"))
    status = (desk.folder / "a.yaml").stat()
    desk.look()
    desk.write(".a.yaml.tmp", text("x", version=2))
    os.utime(desk.folder / ".a.yaml.tmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    (desk.folder / ".a.yaml.tmp").rename(desk.folder / "a.yaml")
    desk.look()
    assert desk.in_force() == {"x": "x@v2"}


def test_written_twice_within_one_tick_of_the_clock(desk: Desk) -> None:
    desk.write("a.yaml", text("x"))
    desk.look()
    for version in range(2, 6):
        desk.write("a.yaml", text("x", version=version))
        desk.look()
        assert desk.in_force() == {"x": f"x@v{version}"}


def test_a_config_map(tmp_path: Path) -> None:
    """Kubernetes: files are links through `..data`, itself a link that is swapped for the whole folder at once."""
    volume = tmp_path / "volume"
    for release, version in (("..2026_1", 1), ("..2026_2", 2)):
        (volume / release).mkdir(parents=True)
        for project in ("x", "y"):
            (volume / release / f"{project}.yaml").write_text(text(project, version=version))
    (volume / "..data").symlink_to("..2026_1")
    for project in ("x", "y"):
        (volume / f"{project}.yaml").symlink_to(f"..data/{project}.yaml")
    desk = Desk(volume)
    assert desk.in_force() == {"x": "x@v1", "y": "y@v1"}
    (volume / "..data_tmp").symlink_to("..2026_2")
    (volume / "..data_tmp").rename(volume / "..data")
    change = desk.look()
    assert desk.in_force() == {"x": "x@v2", "y": "y@v2"}
    assert (change.removed, change.rejected) == ((), ())


def test_what_is_not_a_policy_file(desk: Desk) -> None:
    desk.write("x_test.yaml", "cases: []")
    desk.write(".hidden.yaml", "nonsense: [")
    desk.write("notes.md", "# notes")
    desk.write("x.yaml.swp", "nonsense: [")
    desk.write("x.yml", text("x"))
    (desk.folder / "nested").mkdir()
    desk.write("nested/x.yaml", text("x"))
    change = desk.look()
    assert (change.loaded, change.rejected, desk.in_force()) == ((), (), {})


def test_what_cannot_be_read(desk: Desk) -> None:
    (desk.folder / "dir.yaml").mkdir()
    os.mkfifo(desk.folder / "fifo.yaml")
    (desk.folder / "loop.yaml").symlink_to("loop.yaml")
    (desk.folder / "nowhere.yaml").symlink_to("missing.yaml")
    desk.write("x.yaml", text("x"))
    desk.look()
    assert desk.in_force() == {"x": "x@v1"}
    assert [one.split(":")[0] for one in desk.wrong()] == ["dir.yaml", "fifo.yaml", "loop.yaml"]
    assert desk.look().rejected == ()


def test_a_folder_that_is_not_there_denies_and_says_so(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "policies")
    assert "cannot be read: No such file" in desk.wrong()[0]
    (tmp_path / "policies").mkdir()
    desk.write("x.yaml", text("x"))
    desk.look()
    assert (desk.in_force(), desk.wrong()) == ({"x": "x@v1"}, [])
    (tmp_path / "policies").rename(tmp_path / "elsewhere")
    assert [one.project for one in desk.look().removed] == ["x"]
    assert len(desk.wrong()) == 1


def test_a_folder_that_cannot_be_listed_for_a_while_changes_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.write("x.yaml", text("x"))
    desk.look()

    def refuse(_path: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("banksman.policy.reader.os.scandir", refuse)
        desk.look()
        assert desk.in_force() == {"x": "x@v1"}
        assert "cannot be read: Permission denied" in desk.wrong()[0]
        # The same for a reader that was only just started.
        other = FolderReader(desk.folder)
        desk.shelf.apply(other.scan(), complete=True)
        assert desk.in_force() == {"x": "x@v1"}
    desk.look()
    assert (desk.in_force(), desk.wrong()) == ({"x": "x@v1"}, [])


def test_a_reader_that_starts_anew_notices_what_went_away_meanwhile(desk: Desk) -> None:
    desk.write("x.yaml", text("x"))
    desk.write("y.yaml", text("y"))
    desk.look()
    (desk.folder / "y.yaml").unlink()
    change = desk.shelf.apply(FolderReader(desk.folder).scan(), complete=True)
    assert [one.project for one in change.removed] == ["y"]
    assert (change.loaded, desk.in_force()) == ((), {"x": "x@v1"})


def test_a_slow_writer_is_waited_for(desk: Desk) -> None:
    """The first half of this file is a policy too: one without its `never`."""
    desk.write("a.yaml", text("x"))
    desk.look()
    whole = text("x", version=2) + "    never: [{service: git, actions: [pull]}]\n"

    def write() -> None:
        with (desk.folder / "a.yaml").open("w") as file:
            for at in range(0, len(whole), 8):
                file.write(whole[at : at + 8])
                file.flush()
                time.sleep(0.02)

    writer = threading.Thread(target=write)
    writer.start()
    seen: list[str] = []
    while writer.is_alive() or not seen:
        change = desk.look()
        seen += [one.policy_version for one in change.loaded]
        assert change.rejected == ()
    writer.join()
    assert desk.shelf.bundle.decide("x", "a", "git", "pull").reason == "never"
    assert len(seen) == 1


def test_one_edit_among_a_thousand_reads_one_file(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in range(1000):
        desk.write(f"p{at}.yaml", text(f"p{at}"))
    assert len(desk.look().loaded) == 1000
    read: list[str] = []
    real = FolderReader._read

    def noting(self: FolderReader, name: str, *rest: object) -> object:
        read.append(name)
        return real(self, name, *rest)  # type: ignore[arg-type]

    time.sleep(0.2)  # past the time in which a file counts as fresh
    desk.look()
    monkeypatch.setattr(FolderReader, "_read", noting)
    desk.write("p500.yaml", text("p500", version=2))
    before = dict(desk.shelf.bundle.policies)
    change = desk.look()
    assert read == ["p500.yaml"]
    assert [one.project for one in change.loaded] == ["p500"]
    kept = [project for project, policy in desk.shelf.bundle.policies.items() if policy is before[project]]
    assert len(kept) == 999


def test_touched_but_the_same_is_not_loaded_again(desk: Desk) -> None:
    desk.write("a.yaml", text("x"))
    desk.look()
    os.utime(desk.folder / "a.yaml")
    assert desk.reader.scan() == []


def test_load_folder(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text("x"))
    (tmp_path / "b.yaml").write_text("project: y\n")
    bundle, rejections = load_folder(tmp_path)
    assert bundle.decide("x", "a", "git", "pull").decision == "allow"
    assert [str(one) for one in rejections] == ["b.yaml:1: agents: is missing"]


def test_items_say_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text("x"))
    (tmp_path / "b.yaml").write_text("project: 'y'  # ours\nagents: 7\n")
    good, bad = FolderReader(tmp_path).scan()
    assert isinstance(good, Good)
    assert isinstance(bad, Bad)
    assert (good.policy.project, bad.project) == ("x", "y")


# ── with the process that reads ──


class Watcher:
    def __init__(self, folder: Path) -> None:
        self.folder = PolicyFolder(folder)
        self.changes: asyncio.Queue[Change] = asyncio.Queue()

    async def next(self) -> Change:
        return await asyncio.wait_for(self.changes.get(), 10)

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self.next()


@asynccontextmanager
async def watching(folder: Path) -> AsyncIterator[Watcher]:
    watcher = Watcher(folder)
    task = asyncio.create_task(watcher.folder.watch(watcher.changes.put))
    try:
        yield watcher
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_change_is_in_force_within_a_second_of_the_write(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text("x"))
    async with watching(tmp_path) as watcher:
        first = await watcher.next()
        assert [one.project for one in first.loaded] == ["x"]
        for version in range(2, 6):
            began = time.monotonic()
            (tmp_path / "a.yaml").write_text(text("x", version=version))
            change = await watcher.next()
            assert time.monotonic() - began < 1.0
            assert [one.policy_version.split("+")[0] for one in change.loaded] == [f"x@v{version}"]
            assert watcher.folder.bundle is change.bundle
        (tmp_path / "a.yaml").write_text("project: [")
        assert [one.file for one in (await watcher.next()).rejected] == ["a.yaml"]
        assert watcher.folder.bundle.decide("x", "a", "git", "pull").decision == "allow"
        assert [one.file for one in watcher.folder.rejections] == ["a.yaml"]
        (tmp_path / "a.yaml").unlink()
        assert [one.project for one in (await watcher.next()).removed] == ["x"]


async def test_an_empty_folder_is_reported_too(tmp_path: Path) -> None:
    async with watching(tmp_path) as watcher:
        change = await watcher.next()
        assert (change.loaded, change.rejections, change.bundle.versions()) == ((), (), {})


async def test_the_folder_is_a_link_that_is_turned_round(tmp_path: Path) -> None:
    for version in (1, 2):
        (tmp_path / f"release-{version}").mkdir()
        (tmp_path / f"release-{version}" / "x.yaml").write_text(text("x", version=version))
    (tmp_path / "current").symlink_to("release-1")
    async with watching(tmp_path / "current") as watcher:
        await watcher.next()
        (tmp_path / "next").symlink_to("release-2")
        began = time.monotonic()
        (tmp_path / "next").rename(tmp_path / "current")
        await watcher.until(lambda: watcher.folder.bundle.versions()["x"].startswith("x@v2"))
        assert time.monotonic() - began < 1.0
        # … and the new folder is the one that is watched.
        (tmp_path / "release-2" / "x.yaml").write_text(text("x", version=3))
        await watcher.until(lambda: watcher.folder.bundle.versions()["x"].startswith("x@v3"))


def readers() -> set[int]:
    """Our children that read policies."""
    me = os.getpid()
    found = {int(pid) for pid in Path(f"/proc/{me}/task/{me}/children").read_text().split()}
    return {pid for pid in found if b"policy.reader" in Path(f"/proc/{pid}/cmdline").read_bytes()}


async def test_the_reader_may_die(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text("x"))
    before = readers()
    async with watching(tmp_path) as watcher:
        await watcher.next()
        (reader,) = readers() - before
        os.kill(reader, signal.SIGKILL)
        change = await watcher.next()
        assert "the process that reads policies ended" in change.rejected[0].message
        assert watcher.folder.bundle.decide("x", "a", "git", "pull").decision == "allow"
        change = await watcher.next()
        assert (change.loaded, change.removed, change.rejections) == ((), (), ())
        (tmp_path / "a.yaml").write_text(text("x", version=2))
        assert (await watcher.next()).loaded
    assert not readers() - before


def test_the_reader_ends_with_its_parent(tmp_path: Path) -> None:
    """Also when the parent is killed: its end of the pipe closes."""
    program = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-m', 'banksman.policy.reader', {str(tmp_path)!r}],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.read(4)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        reader = int(parent.stdout.readline())
        assert alive(reader)
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while alive(reader):
        assert time.monotonic() < deadline, "the reader outlived its parent"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_large_folder_arrives_whole_while_other_tasks_go_on(tmp_path: Path) -> None:
    for at in range(300):
        agents = "".join(f"  agent-{n}: {{allow: [{{service: git, actions: [pull]}}]}}\n" for n in range(20))
        (tmp_path / f"p{at}.yaml").write_text(f"project: p{at}\nagents:\n{agents}")
    async with watching(tmp_path) as watcher:
        loading = asyncio.create_task(watcher.next())
        longest, last = 0.0, time.monotonic()
        while not loading.done():
            await asyncio.sleep(0)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        assert len((await loading).loaded) == 300
        assert longest < 0.25, "the loop stood still"
