"""ClickHouse is away, full, out of memory, cut off or frozen: the archiver waits. Afterwards everything is shown once, and no
sound record is a dead letter.
"""

from __future__ import annotations

import base64
import json
import signal
import time
from collections.abc import Callable

import pytest
from tests.processors.between import (
    Between,
    Fault,
    answer_lost,
    cut_in_the_middle,
    refuses,
    says,
    torn,
)
from tests.processors.conftest import Archive
from tests.processors.test_hostile import letters
from tests.servers import ClickHouseServer, freeze

from banksman import signing, stamps
from banksman.bus import CLOSE_S
from banksman.processors.archiver.patience import GRACE_S
from banksman.store.client import Store
from banksman.topics import Topic

Record = tuple[Topic, bytes, bytes, signing.Headers]
TIMES = 4
"""Inserts that a fault spoils: the archiver's first try of a single row and its next ones, so that a row is refused alone."""

FAULTS: dict[str, list[tuple[str, Fault]]] = {
    "the connection": [("cut", cut_in_the_middle), ("torn", torn), ("answer lost", answer_lost)],
    "ClickHouse is out of something": [
        ("MEMORY_LIMIT_EXCEEDED", refuses(241, "MEMORY_LIMIT_EXCEEDED")),
        ("NOT_ENOUGH_SPACE", refuses(243, "NOT_ENOUGH_SPACE")),
        ("TOO_MANY_PARTS", refuses(252, "TOO_MANY_PARTS")),
        ("TIMEOUT_EXCEEDED", refuses(159, "TIMEOUT_EXCEEDED", 408)),
    ],
    "ClickHouse is not as it should be": [
        ("TABLE_IS_READ_ONLY", refuses(242, "TABLE_IS_READ_ONLY")),
        ("UNKNOWN_TABLE", refuses(60, "UNKNOWN_TABLE", 404)),
        ("TYPE_MISMATCH", refuses(53, "TYPE_MISMATCH", 400)),
        ("nobody foresaw it", refuses(999, "KEEPER_EXCEPTION")),
    ],
    "somebody else answers": [
        ("500 with garbage", says(500, bytes(range(256)) * 40)),
        ("502 that quotes ClickHouse", says(502, b"Code: 469. DB::Exception: it said. (VIOLATED_CONSTRAINT)")),
        ("200 of a stranger", says(200, b"<html>welcome</html>")),
    ],
}


def texts(archive: Archive) -> list[int]:
    """What is shown of the session, sorted."""
    rows = archive.ask("SELECT raw FROM @session_steps(agent = 'a', session = 's')")
    return sorted(int(json.loads(row["raw"])["text"]) for row in rows)


def places(archive: Archive) -> int:
    found = archive.ask("SELECT uniqExact(partition, offset) AS n FROM @events WHERE topic = 'actions'")
    return int(found[0]["n"])


def publish(archive: Archive, numbers: range) -> None:
    archive.publish(*[archive.action(text=str(n)) for n in numbers])


def waited(archive: Archive, log: int = 0) -> Callable[[], bool]:
    return lambda: "waiting" in (archive.folder / f"archiver{log}.log").read_text()


@pytest.mark.parametrize("kind", FAULTS)
def test_a_spoilt_insert_is_made_again_and_no_record_is_blamed(
    archive: Archive, clickhouse_server: ClickHouseServer, kind: str
) -> None:
    with Between(clickhouse_server.port) as between:
        archive.start(clickhouse=between.url)
        publish(archive, range(1))
        archive.until(lambda: places(archive) == 1)
        there = 1
        for name, fault in FAULTS[kind]:
            between.spoil(fault, TIMES)
            publish(archive, range(there, there + 1))  # alone in its block
            archive.until(lambda: between.left <= TIMES - 2)
            publish(archive, range(there + 1, there + 50))
            there += 50
            archive.until(lambda: between.left == 0 and places(archive) == there)  # noqa: B023 - asked at once
            assert texts(archive) == list(range(there)), name
        assert between.spoilt == TIMES * len(FAULTS[kind])
    assert archive.ends(Topic.DEAD) == 0, letters(archive, 1)


def push(archive: Archive, text: int, branch: str) -> Record:
    return archive.action(
        kind="tool.call", service="git", action="push", branch=branch, call=stamps.uuid7(), text=str(text)
    )


def test_one_row_that_is_refused_for_a_value_is_a_dead_letter_and_only_that(archive: Archive) -> None:
    """Refused by ClickHouse itself: among others, alone, and at a start."""
    change(archive, "ALTER TABLE @events MODIFY COLUMN branch FixedString(8)")
    among = push(archive, -1, "longer than eight")
    archive.publish(push(archive, 0, "main"), *[push(archive, n, "main") for n in range(1, 40)], among)
    publish(archive, range(40, 80))
    archive.start()
    archive.until(lambda: places(archive) == 80 and archive.ends(Topic.DEAD) == 1)
    alone = push(archive, -2, "longer than eight")
    archive.publish(alone)
    archive.until(lambda: archive.ends(Topic.DEAD) == 2)
    found = letters(archive, 2)
    assert [base64.b64decode(letter["value"]) for letter in found] == [among[2], alone[2]]
    assert all("ClickHouse refused the row" in letter["error"] for letter in found)
    assert all("TOO_LARGE_STRING_SIZE" in letter["error"] for letter in found)
    assert texts(archive) == list(range(80))


def change(archive: Archive, sql: str) -> None:
    store = Store(archive.clickhouse, reader=False)
    try:
        store.command(sql.replace("@", f"`{store.database}`."))
    finally:
        store.close()


@pytest.mark.parametrize(
    ("spoil", "mend"),
    [
        (
            "ALTER TABLE @events MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1",
            "ALTER TABLE @events RESET SETTING parts_to_throw_insert, parts_to_delay_insert",
        ),
        ("ALTER TABLE @events RENAME COLUMN branch TO twig", "ALTER TABLE @events RENAME COLUMN twig TO branch"),
        ("RENAME TABLE @events TO @others", "RENAME TABLE @others TO @events"),
    ],
    ids=["too many parts", "a column is gone", "the table is gone"],
)
def test_what_the_engine_itself_says_when_it_cannot(archive: Archive, spoil: str, mend: str) -> None:
    archive.start()
    publish(archive, range(2))
    archive.until(lambda: places(archive) == 2)
    change(archive, spoil)
    archive.publish(push(archive, 2, "main"))
    archive.until(waited(archive))
    publish(archive, range(3, 20))
    change(archive, mend)
    archive.until(lambda: places(archive) == 20)
    assert texts(archive) == list(range(20))
    assert archive.ends(Topic.DEAD) == 0


@pytest.mark.slow
def test_frozen_and_told_to_stop(archive: Archive, clickhouse_server: ClickHouseServer) -> None:
    """It stops in time; what it left, and what ClickHouse may have stored of it after all, is shown once."""
    assert clickhouse_server.process is not None
    process = archive.start()
    publish(archive, range(5))
    archive.until(lambda: places(archive) == 5)
    freeze(clickhouse_server.process.pid)
    try:
        publish(archive, range(5, 505))
        consumed = archive.folder / "archiver0.log"
        time.sleep(1)  # it has begun an insert by then, or the poll before: in both states it has to stop in time
        told = time.monotonic()
        process.terminate()
        assert process.wait(30) == 0, consumed.read_text()
        assert time.monotonic() - told < GRACE_S + 2 * CLOSE_S + 2
    finally:
        clickhouse_server.process.send_signal(signal.SIGCONT)
    archive.start()
    publish(archive, range(505, 510))
    archive.until(lambda: places(archive) == 510)
    assert texts(archive) == list(range(510))
    assert archive.ends(Topic.DEAD) == 0


@pytest.mark.slow
def test_frozen_for_a_while_and_killed_under_load(archive: Archive, clickhouse_server: ClickHouseServer) -> None:
    archive.start()
    there = 0
    for spoil in (signal.SIGSTOP, signal.SIGKILL) * 2:
        publish(archive, range(there, there + 1000))
        assert clickhouse_server.process is not None
        clickhouse_server.process.send_signal(spoil)
        try:
            publish(archive, range(there + 1000, there + 2000))
        finally:
            if spoil == signal.SIGSTOP:
                clickhouse_server.process.send_signal(signal.SIGCONT)
            else:
                clickhouse_server.process.wait()
                clickhouse_server.start()
        there += 2000
    archive.until(lambda: places(archive) == there)
    assert texts(archive) == list(range(there))
    assert archive.ends(Topic.DEAD) == 0
