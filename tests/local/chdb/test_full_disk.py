"""A disk that fills up under merges and inserts: nothing that was acknowledged is lost, and nobody has to come and help."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.local.chdb.conftest import Answer, Own, Start
from tests.local.conftest import until
from tests.servers import fill_up

from banksman.local.chdb import full_disk
from banksman.local.chdb.full_disk import STARTS_AGAIN, FullDisk, Part, lacks

TABLE = "CREATE TABLE t (k UInt64, v String) ENGINE = MergeTree ORDER BY k"
ROUNDS = 60
"""A fill that catches no merge and no insert leaves nothing empty; one in a few does."""


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
    assert own.process.poll() == STARTS_AGAIN, "nothing met the full disk"
    assert "lacks what could not be written: starting again without it" in own.log
    again = start()
    for clerk, acknowledged in enumerate(inserting.acknowledged):
        stored = again.admin(
            f"SELECT uniqExact(k), sum(length(v)) FROM t WHERE intDiv(k, {10**9}) = {clerk}"
        ).text.split()
        assert int(stored[0]) - acknowledged in (0, 20), "at most the insert that was under way besides"
    assert again.admin("SELECT reason FROM system.detached_parts").text.split()[0] == "broken-on-start"
    assert again.stop() == 0


@pytest.mark.parametrize("begins", ["INSERT INTO t", "WITH 700 AS size INSERT INTO t"])
def test_an_insert_that_ran_out_of_disk_is_not_acknowledged(small: Path, start: Start, begins: str) -> None:
    """chDB calls it a success. The disk fills while the part is written, which is slow here: there was room when it began."""
    own, answers = start(), list[Answer]()
    assert own.admin(TABLE.replace("String", "String CODEC(ZSTD(19))")).status == 200
    assert own.admin("INSERT INTO t SELECT number, 'before' FROM numbers(10)").status == 200
    ballast = small / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 130 << 20)

    def insert() -> None:
        one_block = "max_block_size = 50000, min_insert_block_size_rows = 50000, max_insert_threads = 1"
        sql = f"{begins} SELECT number, randomPrintableASCII(700) FROM numbers(50000) SETTINGS {one_block}"
        with suppress(OSError, http.client.HTTPException):
            answers.append(own.admin(sql))

    inserting = threading.Thread(target=insert)
    inserting.start()
    until(lambda: any(map(str, small.glob("store/*/*/tmp_insert_*/v.bin"))))
    fill_up(small / "more")
    inserting.join()
    assert [answer for answer in answers if answer.status == 200] == []
    assert own.process.wait(10) == STARTS_AGAIN
    assert "lacks what could not be written: starting again without it" in own.log
    ballast.unlink()
    (small / "more").unlink()
    again = start()
    assert again.admin("SELECT count(), sum(length(v)) FROM t").text.split() == ["10", "60"]
    assert again.admin("SELECT reason FROM system.detached_parts").text.split() == ["broken-on-start"]
    assert again.stop() == 0


def part(folder: Path, size: int, **files: int) -> Part:
    folder.mkdir()
    for name, written in files.items():
        (folder / name.replace("_", ".")).write_bytes(bytes(written))
    return Part(f"{folder}/", size)


def test_what_a_part_lacks(tmp_path: Path) -> None:
    whole = {"data_bin": 100, "count_txt": 2, "checksums_txt": 272, "columns_txt": 69}
    assert not lacks(part(tmp_path / "whole", 102, **whole))
    for number, less in enumerate(({"data_bin": 99}, {"count_txt": 0}, {"checksums_txt": 0}, {"columns_txt": 0})):
        assert lacks(part(tmp_path / str(number), 102, **(whole | less))), less
    assert lacks(Part(f"{tmp_path}/away/", 102))


def test_each_part_is_looked_at_once_and_what_was_dropped_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_disk, "LOOK_S", 3600.0)
    whole = part(tmp_path / "whole", 100, data_bin=100)
    hollow = part(tmp_path / "hollow", 100, data_bin=0)
    dropped = Part(f"{tmp_path}/dropped/", 100)
    old = part(tmp_path / "old", 100)  # there when it began: ClickHouse has looked at it
    first = [[old, whole, dropped], [old, whole], [old, whole]]
    looks = [[old], *first, [whole, hollow], [whole], [whole], *[[whole, hollow]] * 3]
    found: list[list[str]] = []
    watching = FullDisk(lambda: looks.pop(0), found.append)
    try:
        watching.look()
        watching.look()  # the hollow one is not there any more when it is looked for again
        assert found == []
        looked_at: list[Part] = []

        def lacking(one: Part) -> bool:
            looked_at.append(one)
            return one == hollow

        monkeypatch.setattr(full_disk, "lacks", lacking)
        watching.look()
        assert (found, set(looked_at)) == ([[hollow.path]], {hollow})
    finally:
        watching.close()


def test_parts_are_found_wherever_they_are(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from banksman.local.chdb.engine import Engine
engine = Engine(Path(sys.argv[1]), memory=1 << 30)
with engine.handle(reader=False) as handle:
    handle.run("CREATE TABLE t (k UInt64) ENGINE = MergeTree ORDER BY k")
    handle.run("INSERT INTO t SELECT number FROM numbers(10)")
engine.check_written()
print([Path(part.path).is_dir() for part in engine._parts()])
engine.close(10)
"""
    folder = tmp_path / "an'other da\tta"
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[True]"]


def test_it_is_looked_though_nobody_inserts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disk, "LOOK_S", 0.01)
    hollow, found, tries = part(tmp_path / "hollow", 100), list[list[str]](), [0]

    def parts() -> list[Part]:
        tries[0] += 1
        if tries[0] == 2:
            raise MemoryError  # the next look comes all the same
        return [hollow] if tries[0] > 1 else []

    watching = FullDisk(parts, found.append)
    try:
        until(lambda: found)
        assert found[0] == [hollow.path]
    finally:
        watching.close()
