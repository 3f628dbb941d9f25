"""A disk that fills up under merges: nothing that was acknowledged is lost, and nobody has to come and help."""

from __future__ import annotations

import http.client
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.local.chdb.conftest import Own, Start
from tests.local.conftest import until
from tests.servers import fill_up

from banksman.local.chdb import full_disk
from banksman.local.chdb.full_disk import STARTS_AGAIN, FullDisk, empty

TABLE = "CREATE TABLE t (k UInt64, v String) ENGINE = MergeTree ORDER BY k"
ROUNDS = 60
"""A fill that catches no merge leaves nothing empty; one in a few does."""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """The folder of `start`'s data on a file system of 200 MB."""
    folder = tmp_path / "data"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "none", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"needs the right to mount: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class Inserting:
    """Small inserts without a pause, so that merges always run. `acknowledged`: how many rows of a clerk were."""

    def __init__(self, own: Own) -> None:
        self.own, self.acknowledged, self._stop = own, [0, 0, 0], threading.Event()
        self._threads = [threading.Thread(target=self._insert, args=(clerk,)) for clerk in range(3)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _insert(self, clerk: int) -> None:
        while not self._stop.is_set():
            first = clerk * 10**9 + self.acknowledged[clerk]
            with suppress(OSError, http.client.HTTPException):  # it is away: the same again, as an archiver does
                sql = f"INSERT INTO t SELECT number + {first}, randomPrintableASCII(1000) FROM numbers(20)"
                if self.own.admin(sql).status == 200:
                    self.acknowledged[clerk] += 20
                    continue
            self._stop.wait(0.05)


@pytest.mark.slow
def test_a_merge_that_ran_out_of_disk_takes_nothing_with_it(small: Path, start: Start) -> None:
    own = start()
    assert own.admin(TABLE).status == 200
    inserting = Inserting(own)
    try:
        for _ in range(ROUNDS):
            before = sum(inserting.acknowledged)
            until(lambda: sum(inserting.acknowledged) > before + 300 or own.process.poll() is not None)  # noqa: B023
            ballast = small / "ballast"
            fill_up(ballast)
            with suppress(subprocess.TimeoutExpired):
                own.process.wait(0.3)  # so long there is no room
            ballast.unlink()
            if own.process.poll() is not None:
                break
        with suppress(subprocess.TimeoutExpired):
            own.process.wait(2 * full_disk.LOOK_S)
    finally:
        inserting.end()
    assert own.process.poll() == STARTS_AGAIN, "no merge met the full disk"
    assert "starting again, with what it was made of" in own.log
    again = start()
    for clerk, acknowledged in enumerate(inserting.acknowledged):
        stored = again.admin(
            f"SELECT uniqExact(k), sum(length(v)) FROM t WHERE intDiv(k, {10**9}) = {clerk}"
        ).text.split()
        assert int(stored[0]) - acknowledged in (0, 20), "at most the insert that was under way besides"
    assert again.admin("SELECT reason FROM system.detached_parts").text.split()[0] == "broken-on-start"
    assert again.stop() == 0


def test_what_is_empty(tmp_path: Path) -> None:
    for name, size in (("whole", 10), ("hollow", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checksums.txt").write_bytes(bytes(size))
    parts = [f"{tmp_path / name}/" for name in ("whole", "hollow", "merged-meanwhile")]
    assert empty(parts) == [parts[1]]


def test_it_is_looked_at_once_something_found_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disk, "LOOK_S", 0.01)
    (tmp_path / "checksums.txt").touch()
    refused, found, looks = [0], list[list[str]](), [0]

    def parts() -> list[str]:
        looks[0] += 1
        return [str(tmp_path)]

    def count() -> int:
        looks.append(0)
        return refused[0]

    watching = FullDisk(count, parts, found.append)
    try:
        until(lambda: len(looks) > 5)
        assert looks[0] == 0
        refused[0] = 1
        until(lambda: found)
        assert found[0] == [str(tmp_path)]
    finally:
        watching.close()
