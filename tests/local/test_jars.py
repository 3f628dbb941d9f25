"""The broker's jars: fetched whole or not at all, checked each time, shared. A Maven repository on loopback stands in for
Central.
"""

from __future__ import annotations

import functools
import gc
import http.server
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from banksman.errors import BadDeployment
from banksman.local import jars

FETCH = """\
import sys
from pathlib import Path
from banksman.local import jars
jars.fetch(Path(sys.argv[1]), mirror=sys.argv[2])
"""


class Maven:
    """A repository in Maven's layout that counts what is asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: Counter[str] = Counter()
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                asked[self.path] += 1
                super().do_GET()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(root)))
        self.server = server
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def path(self, name: str) -> Path:
        group, artifact, version = jars.locked()[name][0].split(":")
        return self.root / group.replace(".", "/") / artifact / version / f"{artifact}-{version}.jar"

    def jars_served(self) -> int:
        return sum(count for path, count in self.asked.items() if path.endswith(".jar"))


@pytest.fixture
def maven(tmp_path: Path, real_jars: Path) -> Iterator[Maven]:
    made = Maven(tmp_path / "maven")
    for name in jars.locked():
        file = made.path(name)
        file.parent.mkdir(parents=True)
        file.symlink_to(real_jars / name)
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


@pytest.fixture
def _jgo_reads_to_its_end() -> Iterator[None]:
    """jgo lets go of an answer that it did not read only when the garbage is collected: here, and not in another test."""
    yield
    gc.collect()


def half_read(test: Callable[..., None]) -> Callable[..., None]:
    """For a test in which jgo leaves an answer unread."""
    quiet = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
    return quiet(pytest.mark.usefixtures("_jgo_reads_to_its_end")(test))  # type: ignore[no-any-return]


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_the_lock_names_46_jars_with_a_digest_each() -> None:
    locked = jars.locked()
    assert len(locked) == 46
    assert all(len(digest) == 64 and len(coordinate.split(":")) == 3 for coordinate, digest in locked.values())
    assert f"kafka_2.13-{jars.KAFKA}.jar" in locked


def test_a_mirror_fills_an_empty_cache_and_a_full_one_asks_nobody(maven: Maven, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    cache = tmp_path / "cache"
    assert jars.fetch(cache, mirror=maven.url, progress=lambda n, of: seen.append((n, of))) == cache
    assert names_in(cache) == set(jars.locked())
    assert seen == [(n, 46) for n in range(47)]
    assert maven.jars_served() == 46

    maven.asked.clear()
    seen.clear()
    jars.fetch(cache, mirror=maven.url, progress=lambda n, of: seen.append((n, of)))
    assert not maven.asked
    assert seen == [(46, 46)]


def test_a_jar_that_was_changed_or_cut_is_fetched_again(maven: Maven, tmp_path: Path) -> None:
    cache = jars.fetch(tmp_path / "cache", mirror=maven.url)
    maven.asked.clear()
    changed, cut = sorted(jars.locked())[:2]
    (cache / changed).write_bytes((cache / changed).read_bytes() + b"x")
    (cache / cut).write_bytes((cache / cut).read_bytes()[:100])
    jars.fetch(cache, mirror=maven.url)
    assert maven.jars_served() == 2
    assert names_in(cache) == set(jars.locked())


@half_read
def test_a_wrong_digest_is_refused_by_name_and_leaves_no_file(maven: Maven, tmp_path: Path) -> None:
    victim = "kafka-clients-4.3.1.jar"
    maven.path(victim).unlink()
    maven.path(victim).write_bytes(b"PK\x03\x04 not what was locked")
    with pytest.raises(
        BadDeployment, match=r"org\.apache\.kafka:kafka-clients:4\.3\.1 is not the file that was locked"
    ):
        jars.fetch(tmp_path / "cache", mirror=maven.url)
    assert victim not in names_in(tmp_path / "cache")
    assert not [name for name in names_in(tmp_path / "cache") if name.startswith(".")]


@half_read
def test_a_jar_that_is_not_there_is_named(maven: Maven, tmp_path: Path) -> None:
    maven.path("slf4j-api-1.7.36.jar").unlink()
    with pytest.raises(BadDeployment, match=r"org\.slf4j:slf4j-api:1\.7\.36 could not be fetched"):
        jars.fetch(tmp_path / "cache", mirror=maven.url)


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(BadDeployment, match="could not be fetched"):
        jars.fetch(tmp_path / "cache", mirror="http://127.0.0.1:9")


def test_two_processes_that_fetch_at_once_both_end_well(maven: Maven, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", FETCH, str(tmp_path / "cache"), maven.url]
    both = [subprocess.Popen(argv) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert names_in(tmp_path / "cache") == set(jars.locked())


def test_a_fetch_that_was_killed_hurts_nobody(maven: Maven, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = subprocess.Popen([sys.executable, "-c", FETCH, str(cache), maven.url])
    until = time.monotonic() + 30
    while maven.jars_served() < 5:
        assert time.monotonic() < until
        time.sleep(0.001)  # between two looks at the condition
    process.kill()
    process.wait()
    locked = jars.locked()
    assert all(jars._is_right(file, locked[file.name][1]) for file in cache.glob("*.jar"))
    for left in cache.glob(f"{jars.SCRATCH}*"):
        os.utime(left, (0, 0))  # as if it had happened long ago
    jars.fetch(cache, mirror=maven.url)
    assert names_in(cache) == set(locked)


@half_read
def test_a_full_disk_is_called_that(maven: Maven, tmp_path: Path) -> None:
    """A file system of 4 MB; only root can make one."""
    small = tmp_path / "small"
    small.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(small)], capture_output=True)
    if made.returncode:
        pytest.skip(f"needs the right to mount: {made.stderr.decode().strip()}")
    try:
        with pytest.raises(BadDeployment, match="the disk is full"):
            jars.fetch(small / "cache", mirror=maven.url)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadDeployment, match="Kafka's jars cannot be kept in"):
        jars.fetch(tmp_path / "file" / "cache")


def test_the_cache_is_shared_by_all_folders_of_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert jars.cache_folder() == tmp_path / "banksman" / f"kafka-{jars.KAFKA}"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ann")
    assert jars.cache_folder() == Path(f"/home/ann/.cache/banksman/kafka-{jars.KAFKA}")
    assert jars.cache_folder("~/jars") == Path(f"/home/ann/jars/kafka-{jars.KAFKA}")


def test_only_locked_jars_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "evil-1.0.jar").touch()
    assert {Path(part).name for part in jars.class_path(tmp_path).split(os.pathsep)} == set(jars.locked())
    with pytest.raises(BadDeployment, match="BANKSMAN_CACHE"):
        jars.class_path(tmp_path / "a:b")
