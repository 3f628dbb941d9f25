"""What everybody above relies on when they store and ask: blocks that are there or not, values that come back as they were,
a reader that can do nothing else, errors that say whether trying again makes sense. On chDB, and on a ClickHouse server.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from tests.contracts.conftest import Place
from tests.servers import ClickHouseServer

from banksman.errors import BadDeployment, InvalidSetting, StoreAway
from banksman.processors.archiver.rows import COLUMNS
from banksman.stamps import uuid7
from banksman.store import native
from banksman.store.client import BadData, BadQuestion, Store
from banksman.store.migrate import migrate, migrations, pending

Row = dict[str, Any]
NOW_MS = time.time_ns() // 1_000_000
VIEWS = {
    "session_steps": "agent = 'ann', session = 's'",
    "sessions": "since = '2020-01-01 00:00:00'",
    "agents_now": "",
    "decisions": "since = '2020-01-01 00:00:00'",
    "approvals": "since = '2020-01-01 00:00:00'",
    "alerts": "since = '2020-01-01 00:00:00'",
    "spend_daily": "since = '2020-01-01 00:00:00', timezone = 'UTC'",
    "permissions_used": "since = '2020-01-01 00:00:00'",
}


@pytest.fixture
def migrated(place: Place) -> Place:
    migrate(place.settings)
    return place


def row(offset: int, **changes: Any) -> Row:
    """A note of ann's, as the archiver would store it: ticks for times."""
    return {
        "topic": "actions", "partition": 0, "offset": offset, "received": NOW_MS, "time": NOW_MS * 1000, "id": uuid7(),
        "kind": "note", "project": "p", "agent": "ann", "session": "s", "source": "test", "verified": 1, "raw": f"{offset}",
    } | changes  # fmt: skip


def block(rows: list[Row]) -> tuple[list[str], bytes]:
    """(columns, all of them in one block), the types as the archiver sends them."""
    names = list(dict.fromkeys(name for one in rows for name in one))
    columns = [(name, COLUMNS[name], [one.get(name) for one in rows]) for name in names]
    return names, native.block(columns, len(rows))


def insert(store: Store, *rows: Row) -> None:
    """All of them in one block."""
    types = {
        column["name"]: column["type"]
        for column in store.query(
            "SELECT name, type FROM system.columns WHERE database = {d:String} AND table = 'events'",
            {"d": store.database},
        )
    }
    names = list(dict.fromkeys(name for one in rows for name in one))
    columns = [(name, types[name], [one.get(name) for one in rows]) for name in names]
    store.insert("events", names, native.block(columns, len(rows)))


def ask(place: Place, sql: str, **parameters: Any) -> list[Row]:
    """As the analyst; `@` stands for the database."""
    with place.store(reader=True) as store:
        return store.query(sql.replace("@", f"`{store.database}`."), parameters)


# ── migrations ──


def test_migrations_run_once_and_in_order(place: Place) -> None:
    ran = migrate(place.settings)
    assert [one.number for one in ran] == list(range(1, len(ran) + 1))
    assert migrate(place.settings) == []
    assert [one["number"] for one in ask(place, "SELECT number FROM @migrations ORDER BY number")] == [
        one.number for one in ran
    ]


def test_two_migrating_at_once_do_no_harm(place: Place) -> None:
    start = threading.Barrier(3)

    def run(_: int) -> None:
        start.wait()
        migrate(place.settings)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, range(3)))
    with place.store() as store:
        assert pending(store, place.settings) == []
        insert(store, row(0))
    assert len(ask(place, "SELECT * FROM @events")) == 1


def test_what_ran_may_not_be_changed_and_a_newer_database_is_refused(migrated: Place) -> None:
    with migrated.store() as store:
        store.command(f"INSERT INTO `{store.database}`.migrations (number, name, sha256) VALUES (1, 'other', 'x')")
        with pytest.raises(BadDeployment, match="was changed after it ran"):
            pending(store, migrated.settings)
        store.command(f"INSERT INTO `{store.database}`.migrations (number, name, sha256) VALUES (9999, 'later', 'x')")
        with pytest.raises(BadDeployment):
            pending(store, migrated.settings)
    assert migrations(migrated.settings), "there is something to migrate"


# ── storing ──


def test_a_block_is_there_or_it_is_not(migrated: Place) -> None:
    """Rows of two days in one block, so that it makes two parts: the second is refused, and nothing of the first stays."""
    with migrated.store() as store:
        good = [row(n) for n in range(1000)]
        insert(store, *good)
        bad = native.block([("offset", "UInt64", [1, 2]), ("no_such_column", "String", ["a", "b"])], 2)
        with pytest.raises(StoreAway):
            store.insert("events", ["offset", "no_such_column"], bad)
        torn = native.block([("offset", "UInt64", list(range(5000, 6000)))], 1000)
        with pytest.raises(StoreAway):  # a connection that was cut says nothing about the rows
            store.insert("events", ["offset"], torn[:-100])
    assert ask(migrated, "SELECT count() AS n, max(offset) AS last FROM @events") == [{"n": 1000, "last": 999}]


def test_only_a_value_makes_rows_bad(migrated: Place) -> None:
    """Not a column of another type, which refuses every row alike, and not one that is missing."""
    with migrated.store() as store:
        store.command(f"ALTER TABLE `{store.database}`.events MODIFY COLUMN title FixedString(5)")
        for several in ([row(0), row(1, title="far too long")], [row(1, title="far too long")]):
            with pytest.raises(BadData, match="TOO_LARGE_STRING_SIZE"):
                store.insert("events", *block(several))
        store.insert("events", *block([row(0, title="short")]))
        wrong = native.block([("offset", "UInt64", [1]), ("call", "String", ["no uuid"])], 1)
        with pytest.raises((BadData, StoreAway)):
            store.insert("events", ["offset", "call"], wrong)
        missing = native.block([("offset", "UInt64", [1]), ("no_such_column", "UInt64", [1])], 1)
        with pytest.raises(StoreAway, match="no_such_column"):
            store.insert("events", ["offset", "no_such_column"], missing)
    assert ask(migrated, "SELECT count() AS n FROM @events") == [{"n": 1}]


def test_without_room_nothing_is_stored_and_that_is_said(migrated: Place) -> None:
    """An archiver that took this for a success would pass over what it has read."""
    with migrated.store() as store:
        table = f"`{store.database}`.events"
        store.command(f"ALTER TABLE {table} MODIFY SETTING min_free_disk_bytes_to_perform_insert = {10**17}")
        with pytest.raises(StoreAway, match="NOT_ENOUGH_SPACE"):
            insert(store, row(0))
        assert ask(migrated, "SELECT count() AS n FROM @events") == [{"n": 0}]
        store.command(f"ALTER TABLE {table} RESET SETTING min_free_disk_bytes_to_perform_insert")
        insert(store, row(0))
        assert ask(migrated, "SELECT count() AS n FROM @events") == [{"n": 1}]


def test_the_same_block_twice_is_shown_once(migrated: Place) -> None:
    """An archiver that does not know whether its insert arrived does it again."""
    rows = [row(n) for n in range(10)]
    with migrated.store() as store:
        insert(store, *rows)
        insert(store, *rows)
        assert [
            one["raw"] for one in ask(migrated, "SELECT raw FROM @session_steps(agent = 'ann', session = 's')")
        ] == [f"{n}" for n in range(10)]
        store.command(f"OPTIMIZE TABLE `{store.database}`.events FINAL")
    assert ask(migrated, "SELECT count() AS n FROM @events") == [{"n": 10}]


def test_only_kafkas_coordinates_make_two_rows_one(migrated: Place) -> None:
    """Same id, same time, same bytes at other places: all stay, whoever wrote them."""
    same = {"id": uuid7(), "raw": "same"}
    with migrated.store() as store:
        insert(store, row(0, **same), row(1, **same), row(0, **same, partition=1), row(0, **same, topic="decisions"))
        store.command(f"OPTIMIZE TABLE `{store.database}`.events FINAL")
    assert ask(migrated, "SELECT count() AS n FROM @events") == [{"n": 4}]
    assert len(ask(migrated, "SELECT id FROM @session_steps(agent = 'ann', session = 's')")) == 1


def test_retention_and_partitions_go_by_received_never_by_the_authors_clock(migrated: Place) -> None:
    day_ms = 86_400_000
    old = NOW_MS - (migrated.settings.retention_days + 2) * day_ms
    with migrated.store() as store:
        insert(store, row(0, time=0), row(1, time=4_000_000_000_000_000))
        insert(store, row(2, received=old))
        store.command(f"OPTIMIZE TABLE `{store.database}`.events FINAL")
    assert [one["offset"] for one in ask(migrated, "SELECT offset FROM @events ORDER BY offset")] == [0, 1]
    parts = ask(
        migrated,
        "SELECT DISTINCT partition FROM system.parts WHERE database = {d:String} AND table = 'events' AND active AND rows > 0",
        d=migrated.settings.clickhouse_database,
    )
    assert len(parts) == 1


def test_values_come_back_as_they_were(migrated: Place) -> None:
    texts = ["", "'", "\\", "\n\t\r\0", '"quoted"', "日本語 🏗️ é", "a" * 1_000_000, "{x:String}", "`", "NULL", "\\N"]
    moment = datetime(2262, 1, 1, 23, 59, 59, 999999, tzinfo=UTC)
    extreme = row(
        2**64 - 1, partition=65535, seq=2**63, input_tokens=2**53 - 1, cost_usd=999_999_999_123456789, tier=4,
        time=int(moment.timestamp()) * 1_000_000 + 999999, duration_ms=0.1, result_size=0, latency_us=None, verified=0,
    )  # fmt: skip
    with migrated.store() as store:
        insert(store, *[row(n, raw=text, session=text[:100], rule=text[:100]) for n, text in enumerate(texts)])
        insert(store, extreme)
    found = ask(migrated, "SELECT raw, session, rule FROM @events WHERE offset < 1000 ORDER BY offset")
    assert [(one["raw"], one["session"], one["rule"]) for one in found] == [(t, t[:100], t[:100]) for t in texts]
    last = ask(migrated, "SELECT * FROM @events WHERE offset = {o:UInt64}", o=2**64 - 1)[0]
    assert (last["partition"], last["seq"], last["input_tokens"]) == (65535, 2**63, 2**53 - 1)
    assert last["cost_usd"] == Decimal("999999999.123456789")
    assert (last["duration_ms"], last["result_size"], last["latency_us"]) == (0.1, 0, None)
    assert last["time"].replace(tzinfo=UTC) == moment
    assert (last["verified"], last["model"], str(last["call"])) == (False, "", "00000000-0000-0000-0000-000000000000")
    absent = ask(migrated, "SELECT cost_usd, result_size FROM @events WHERE offset = 0")
    assert absent == [{"cost_usd": None, "result_size": None}], "not known is not zero"


def test_many_at_once(migrated: Place) -> None:
    """One connection object, several threads: writers and readers."""
    with migrated.store() as store:

        def work(part: int) -> int:
            insert(store, *[row(n, partition=part) for n in range(500)])
            return int(
                store.query(f"SELECT count() AS n FROM `{store.database}`.events WHERE partition = {part}")[0]["n"]
            )

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(work, range(6))) == [500] * 6
    assert ask(migrated, "SELECT count() AS n FROM @events") == [{"n": 3000}]


# ── asking ──


@pytest.mark.parametrize("text", ["x' OR 1 = 1 --", "\\' OR 1 = 1", "{o:String}", "a\nb\tc\0d", "日本 🏗️", "%27"])
def test_parameters_are_bound_never_pasted(migrated: Place, text: str) -> None:
    with migrated.store() as store:
        insert(store, row(0, session=text), row(1, session="other"))
    assert [
        one["session"] for one in ask(migrated, "SELECT session FROM @events WHERE session = {s:String}", s=text)
    ] == [text]


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_answers_with_and_without_rows(migrated: Place, view: str) -> None:
    given = f"@{view}({VIEWS[view]})" if VIEWS[view] else f"@{view}"
    assert ask(migrated, f"SELECT * FROM {given}") == []
    decided = {"topic": "decisions", "kind": "decision", "decision": "approve", "rule": "r", "approval": "a", "tier": 3}
    with migrated.store() as store:
        insert(
            store,
            row(0),
            row(1, kind="model.call", model="m", input_tokens=10, output_tokens=5, cost_usd=1_500_000_000),
            row(0, **decided),
            row(1, topic="decisions", kind="approval.requested", approval="a"),
            row(0, topic="alerts", kind="finding", detector="d", severity="warn", title="t", fingerprint="f", raw="{}"),
        )
    found = ask(migrated, f"SELECT * FROM {given}")
    assert found
    assert len(found) == (4 if view == "session_steps" else 1)


def test_a_decision_that_was_voided_is_not_shown_as_one(migrated: Place) -> None:
    given, voided = uuid7(), uuid7()
    decision = {"topic": "decisions", "kind": "decision", "decision": "allow"}
    with migrated.store() as store:
        insert(
            store,
            row(0, id=given, **decision),
            row(1, id=voided, **decision),
            row(2, topic="decisions", kind="decision.void", parent=voided),
            row(3, topic="decisions", kind="decision.void", parent=given, verified=0),
        )
    assert [str(one["id"]) for one in ask(migrated, f"SELECT id FROM @decisions({VIEWS['decisions']})")] == [given]


def test_the_reader_can_only_read(migrated: Place) -> None:
    database = migrated.settings.clickhouse_database
    with migrated.store() as store:
        insert(store, row(0))
    with migrated.store(reader=True) as store:
        for sql in (
            f"INSERT INTO `{database}`.events (offset) VALUES (1)",
            f"ALTER TABLE `{database}`.events DELETE WHERE 1",
            f"DROP TABLE `{database}`.events",
            f"TRUNCATE TABLE `{database}`.events",
            f"CREATE TABLE `{database}`.mine (a Int8) ENGINE = Memory",
            "SET readonly = 0",
            "SELECT * FROM file('/etc/passwd', 'LineAsString')",
            "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
            "SELECT 1 INTO OUTFILE '/tmp/x'",
        ):
            with pytest.raises(BadQuestion):
                store.command(sql)
    assert ask(migrated, "SELECT count() AS n FROM @events") == [{"n": 1}]


# ── what an error means ──


def test_a_wrong_question_is_told_from_a_server_that_is_away(migrated: Place) -> None:
    with migrated.store(reader=True) as store:
        for sql in ("SELEC 1", "SELECT * FROM nowhere.nothing", "SELECT no_such_column", "SELECT 1 + 'a'"):
            with pytest.raises(BadQuestion) as wrong:
                store.query(sql)
            assert not wrong.value.too_much
        assert store.query("SELECT 1 AS one") == [{"one": 1}], "and the connection is good for the next"


def test_a_reader_may_make_its_limits_tighter_and_is_told_when_one_was_hit(migrated: Place) -> None:
    numbers = "SELECT number FROM numbers(100000)"
    with migrated.store(reader=True) as store:
        assert len(store.query(numbers, limits={"max_result_rows": 100_000})) == 100_000
        for ask in (
            lambda **more: store.query(numbers, **more),
            lambda **more: store.raw(numbers, {}, form="TSV", **more),
        ):
            with pytest.raises(BadQuestion) as wrong:
                ask(limits={"max_result_rows": 10})
            assert wrong.value.too_much
        with pytest.raises(BadQuestion) as wrong:
            store.query(
                "SELECT sleepEachRow(0.2) FROM numbers(100)", limits={"max_execution_time": 1, "max_block_size": 1}
            )
        assert wrong.value.too_much


def test_a_wrong_password_is_a_setting_that_cannot_be_used(migrated: Place) -> None:
    with migrated.store(clickhouse_password="wrong") as store, pytest.raises(InvalidSetting) as told:
        store.query("SELECT 1")
    assert "wrong" not in str(told.value).replace("wrong password", ""), "the password itself is never told"


def test_nobody_there_is_away(place: Place) -> None:
    with place.store(clickhouse="http://127.0.0.1:1") as store, pytest.raises(StoreAway, match=r"127\.0\.0\.1:1"):
        store.query("SELECT 1")


@pytest.mark.slow
def test_a_server_that_died_is_away_until_it_is_back(migrated: Place) -> None:
    """kill -9 in the middle of inserts: what was answered is there, and the same object goes on."""
    server = migrated.server
    if server is None:
        pytest.skip("an outside ClickHouse is not ours to kill")
    assert isinstance(server, ClickHouseServer)
    answered: list[int] = []
    failed: list[int] = []

    with migrated.store() as store:

        def write() -> None:
            for offset in range(10**6):
                try:
                    insert(store, row(offset))
                except StoreAway:
                    failed.append(offset)
                    return
                answered.append(offset)

        writing = threading.Thread(target=write)
        writing.start()
        try:
            while len(answered) < 20:
                assert writing.is_alive()
                time.sleep(0.005)  # between two looks
            server.kill()
            writing.join(60)
            with pytest.raises(StoreAway):
                store.query("SELECT 1")
        finally:
            server.start()
        assert len(failed) == 1
        insert(store, row(failed[0] + 1))
        stored = store.query(f"SELECT offset FROM `{store.database}`.events ORDER BY offset")
    offsets = [one["offset"] for one in stored]
    assert sorted({*offsets} - {*failed}) == [*answered, failed[0] + 1]
