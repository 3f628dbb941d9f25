"""The tables on a cluster. No cluster can run here: what is made for one is in a golden file and parsed by the real engine, and
runs on one shard without replicas. Questions are planned for two shards that nobody answers at.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from tests.conftest import Golden
from tests.contracts.test_store import VIEWS, block, row
from tests.servers import ClickHouseServer

from banksman import console, settings
from banksman.errors import BadDeployment, InvalidSetting, StoreAway
from banksman.local import kafka
from banksman.local.chdb.users import write_users
from banksman.processors.archiver import positions
from banksman.store import cluster
from banksman.store.client import BadQuestion, Store
from banksman.store.migrate import migrate, migrations

DENIED = 288
"""DISTRIBUTED_IN_JOIN_SUBQUERY_DENIED: every shard would ask every shard."""
UNREACHED = {210, 279}
HERE, NOWHERE = (f"<replica><host>127.0.0.1</host><port>{port}</port></replica>" for port in (9000, 1))
OURS = "<internal_replication>true</internal_replication>"
CONFIGURATION = f"""\
<clickhouse>
  <tcp_port>9000</tcp_port>
  <remote_servers>
    <one><shard>{OURS}{HERE}</shard></one>
    <two><shard>{OURS}{NOWHERE}</shard><shard>{OURS}{NOWHERE}</shard></two>
    <copying><shard>{HERE}</shard></copying>
  </remote_servers>
</clickhouse>
"""
"""`one` shard is this server itself; of `two` none is there; `copying` writes to every replica by itself."""
QUESTIONS = {
    f"{module.name}.{name}": value
    for module in pkgutil.iter_modules(console.__path__, f"{console.__name__}.")
    if not module.name.endswith("__main__")
    for name, value in vars(importlib.import_module(module.name)).items()
    if name.endswith("_SQL") and "@events" in value
}
GIVEN: dict[str, Any] = {
    "String": "x", "Int64": 0, "UInt32": 1, "UInt64": 1, "Array(String)": ["x"],
    "Array(UUID)": ["00000000-0000-0000-0000-000000000000"], "Array(Tuple(String, UInt16, UInt64))": [("actions", 0, 0)],
}  # fmt: skip


def statements(name: str = "audit") -> list[str]:
    made = migrations(settings.ClickHouse(clickhouse_cluster=name))
    return [statement for migration in made for statement in migration.statements]


whole = cluster.on_cluster


def by_one_server(statement: str, name: str) -> list[str]:
    """What a cluster is given, without what takes a Keeper: replicas, and statements that go to all servers."""
    made = whole(statement, name)
    return [re.sub(r" ON CLUSTER `\w+`|Replicated(?=\w*MergeTree)|(?<=MergeTree)\([^)]*\)", "", one) for one in made]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseServer]:
    """Our own ClickHouse, which knows two clusters."""
    folder = tmp_path_factory.mktemp("shards")
    (folder / "data" / "config" / "config.d").mkdir(parents=True)
    (folder / "data" / "config" / "config.d" / "clusters.xml").write_text(CONFIGURATION)
    passwords = {"admin": secrets.token_urlsafe(16), "analyst": secrets.token_urlsafe(16)}
    write_users(folder / "users.json", {"admin": (passwords["admin"], False), "analyst": (passwords["analyst"], True)})
    made = ClickHouseServer(folder, kafka.free_port(), passwords)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def make_settings(server: ClickHouseServer) -> Any:
    def make(database: str, name: str = "") -> settings.ClickHouse:
        return settings.ClickHouse(
            clickhouse=f"http://127.0.0.1:{server.port}", clickhouse_database=database, clickhouse_cluster=name,
            clickhouse_password=server.passwords["admin"], clickhouse_reader_password=server.passwords["analyst"],
        )  # fmt: skip

    return make


def test_the_form_of_every_migration_for_a_cluster(golden: Golden) -> None:
    golden("cluster.sql", ";\n\n".join(statements()) + ";\n")


def test_the_digest_of_a_migration_is_its_files(golden: Golden) -> None:
    """Of a database that was made before there was this setting, no migration has changed."""
    alone, clustered = migrations(settings.ClickHouse()), migrations(settings.ClickHouse(clickhouse_cluster="audit"))
    assert [one.sha256 for one in alone] == [one.sha256 for one in clustered]
    first = "".join(f"{one.sha256}  {one.name}\n" for one in alone if one.number <= 4)
    golden("migrations.sha256", first)


def test_the_engine_can_read_it(clickhouse_server: ClickHouseServer) -> None:
    asking = Store(
        settings.ClickHouse(
            clickhouse=f"http://127.0.0.1:{clickhouse_server.port}",
            clickhouse_password=clickhouse_server.passwords["admin"],
        ),
        reader=False,
    )
    try:
        for one in statements():
            [read] = asking.query("SELECT formatQuery({text:String}) AS text", {"text": one})
            assert "ON CLUSTER" in read["text"]
        with pytest.raises(BadQuestion):
            asking.query("SELECT formatQuery({text:String}) AS text", {"text": "CREATE TABLE x ON CLUSTER (a Int)"})
    finally:
        asking.close()


def test_a_statement_that_has_no_form_for_a_cluster_is_refused() -> None:
    for unknown in (
        "DROP TABLE `b`.events", "CREATE TABLE IF NOT EXISTS `b`.another\n(a Int8) ENGINE = MergeTree ORDER BY a",
        "ALTER TABLE `b`.migrations ADD COLUMN a Int8", "ALTER TABLE `b`.events DELETE WHERE agent = 'a'",
        "CREATE TABLE IF NOT EXISTS `b`.events\n(a Int8) ENGINE = ReplacingMergeTree(a) ORDER BY a",
    ):  # fmt: skip
        with pytest.raises(BadDeployment, match="knows no form of this"):
            cluster.on_cluster(unknown, "audit")


def test_a_new_column_comes_to_the_shards_and_then_to_what_lies_over_them() -> None:
    assert cluster.on_cluster("ALTER TABLE `b`.events ADD COLUMN IF NOT EXISTS a Int8", "audit") == [
        "ALTER TABLE `b`.events_local ON CLUSTER `audit` ADD COLUMN IF NOT EXISTS a Int8",
        "ALTER TABLE `b`.events ON CLUSTER `audit` ADD COLUMN IF NOT EXISTS a Int8",
    ]


def test_one_shard_answers_as_one_server_does(make_settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Migrations, inserts, offsets and views, all through the Distributed table; also when it is done again."""
    monkeypatch.setattr("banksman.store.migrate.cluster.on_cluster", by_one_server)
    plain, sharded = make_settings("plain"), make_settings("sharded", "one")
    for one in (plain, sharded):
        assert migrate(one)
        assert migrate(one) == []
    call = {"session": "s", "service": "git", "action": "pull"}
    rows = [
        row(0, kind="tool.call", **call), row(1, kind="tool.call", partition=1, agent="bob", **call),
        row(2, kind="model.call", input_tokens=7, cost_usd=1), row(2, kind="note", verified=0),
        row(0, topic="decisions", kind="decision", decision="allow", rule="r", **call),
        row(1, topic="decisions", kind="decision", decision="deny", rule="r", **call),
        row(3, topic="decisions", kind="approval.requested", approval="a", **call),
        row(5, topic="alerts", kind="finding", detector="loops", severity="warn", title="t", fingerprint="f"),
    ]  # fmt: skip
    rows.append(row(2, topic="decisions", kind="decision.void", parent=rows[5]["id"], session="s"))
    rows.append(rows[0])  # stored twice
    answers: list[dict[str, Any]] = []
    for one in (plain, sharded):
        writing, asking = Store(one, reader=False), Store(one, reader=True)
        writing.insert("events", *block(rows))
        views: dict[str, Any] = {
            view: asking.query(f"SELECT * FROM {view}({given}) ORDER BY ALL") for view, given in VIEWS.items() if given
        }
        last = positions.stored(writing).last
        views["offsets"] = sorted((place, highest) for place, (highest, _) in last.items())
        answers.append(views)
        for store in (writing, asking):
            store.close()
    assert answers[0] == answers[1]
    assert all(answers[1].values())
    assert len(answers[1]["decisions"]) == 1, (
        "the one that was made void is not there, the one that was stored twice is once"
    )


def test_what_was_made_for_one_server_is_no_cluster_and_the_reverse(
    make_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("banksman.store.migrate.cluster.on_cluster", by_one_server)
    migrate(make_settings("first_plain"))
    with pytest.raises(BadDeployment, match=r"were made without a cluster.*BANKSMAN_CLICKHOUSE_DATABASE"):
        migrate(make_settings("first_plain", "one"))
    migrate(make_settings("first_sharded", "one"))
    monkeypatch.setattr(
        "banksman.store.migrate.pending", lambda _, settings: migrations(settings)
    )  # a newer version of ours
    ran: list[str] = []
    monkeypatch.setattr(Store, "command", lambda _, sql, *_more: ran.append(sql))
    for name, set_ in (("first_sharded", ""), ("first_plain", "one")):
        with pytest.raises(BadDeployment, match="were made"):
            migrate(make_settings(name, set_))
    assert ran == [], "it is refused before anything runs"


def test_a_cluster_that_is_none_of_ours_is_refused(make_settings: Any) -> None:
    with pytest.raises(InvalidSetting, match=r"BANKSMAN_CLICKHOUSE_CLUSTER: .* no cluster 'another'"):
        migrate(make_settings("elsewhere", "another"))
    with pytest.raises(
        BadDeployment, match="internal_replication has to be true for every shard of the cluster copying"
    ):
        migrate(make_settings("elsewhere", "copying"))


@pytest.fixture
def far(make_settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The tables over two shards of which none answers: questions can be planned, and not asked."""
    monkeypatch.setattr("banksman.store.migrate.cluster.on_cluster", by_one_server)
    migrate(make_settings("far", "two"))
    store = Store(make_settings("far", "two"), reader=True)
    yield store
    store.close()


def planned(store: Store, sql: str) -> int:
    """-> the code of what ClickHouse says to it, 0 for a plan."""
    given = {name: GIVEN[type_] for name, type_ in re.findall(r"\{(\w+):([^}]+)\}", sql)}
    try:
        store.raw(f"EXPLAIN {sql}", given, form="TSV")
    except BadQuestion as error:
        return error.code
    except StoreAway as error:  # says its code in words
        return int(re.findall(r"[Cc]ode: (\d+)", str(error))[0])
    return 0


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_of_the_console_can_be_planned_for_several_shards(far: Store, name: str) -> None:
    sql = re.sub(r"@(?!events)[A-Z]+", "1", QUESTIONS[name]).replace("@events", "events")
    assert planned(far, cluster.globally(sql)) in {0, *UNREACHED}
    if cluster.globally(sql) != sql:
        assert planned(far, sql) == DENIED


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_can_be_planned_for_several_shards(far: Store, view: str) -> None:
    given = f"({VIEWS[view]})" if VIEWS[view] else ""
    assert planned(far, f"SELECT * FROM {view}{given}") in {0, *UNREACHED}
