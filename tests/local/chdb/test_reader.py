"""A read-only user of the embedded ClickHouse: what it reads, and everything that it is refused. Through HTTP, because there
both walls stand one behind the other; and each wall alone.
"""

from __future__ import annotations

import http.client
import re
from pathlib import Path
from typing import Any

import pytest
from tests.local.chdb.conftest import Caller, Start

from banksman.local.chdb.read_only import _OUTSIDE, _SAFE_TABLE_FUNCTIONS, _SYSTEM

REFUSED = {164, 497}
PLAIN = "CREATE TABLE t (k UInt32, v String) ENGINE = MergeTree ORDER BY k"


@pytest.fixture
def reader(admin: Caller, analyst: Caller) -> Caller:
    """Who reads a table with one row."""
    assert admin(PLAIN).status == 200
    assert admin("INSERT INTO t VALUES (1, 'one')").status == 200
    return analyst


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("SELECT v FROM t", "one"),
        ("WITH 1 AS one SELECT one", "1"),
        ("with x as (select k from t) select k from x -- a comment", "1"),
        ("FROM t SELECT v", "one"),
        ("(SELECT 1) UNION ALL (SELECT 1)", "1\n1"),
        ("SELECT 'DROP TABLE t; file(''x'')'", "DROP TABLE t; file(\\'x\\')"),
        ("SELECT /* a comment */ 1 -- file('x')", "1"),
        ('SELECT `k` AS "the name" FROM t;', "1"),
        ("EXISTS t", "1"),
        ("SHOW TABLES", "t"),
        ("SELECT count() FROM numbers(5)", "5"),
        ("SELECT sum(x) FROM values('x UInt8', 1, 2)", "3"),
        ("SELECT name FROM system.tables WHERE database = currentDatabase()", "t"),
        ("SELECT count() FROM system.columns WHERE database = currentDatabase()", "2"),
        ("SELECT arrayMap(x -> x + 1, [1, 2])", "[2,3]"),
        ("SELECT -1e-3, 0x1F, 1.5", "-0.001\t31\t1.5"),
        ("SELECT 'ü😀' LIKE '%😀'", "1"),
        ("SELECT k::String || '!' FROM t", "1!"),
        ("SELECT multiIf(k = 1, 'a', 'b') FROM t PREWHERE k < 5 LIMIT 1 BY k", "a"),
        ("EXPLAIN SYNTAX SELECT k FROM t", "SELECT k\\nFROM t"),
    ],
)
def test_a_reader_reads(reader: Caller, sql: str, text: str) -> None:
    answer = reader(sql)
    assert (answer.status, answer.text.strip()) == (200, text)


def test_a_reader_reads_by_get_in_a_session_and_with_parameters(reader: Caller) -> None:
    assert reader("SELECT v FROM t", method="GET").text == "one\n"
    assert reader("SELECT v FROM t", session_id="a").text == "one\n"
    assert reader("SELECT {s:String}, {n:UInt8}", param_s="it's", param_n=1).text == "it\\'s\t1\n"
    assert reader("SELECT {c:Identifier} FROM {t:Identifier}", param_c="v", param_t="t").text == "one\n"
    assert (
        reader("SELECT 1 AS x", default_format="JSONEachRow", output_format_json_quote_64bit_integers=1).status == 200
    )


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES (2, 'two')",
        "INSERT INTO t SELECT 2, 'two'",
        "insert into function file('x.csv') select 1",
        "/* SELECT */ INSERT INTO t VALUES (2, 'two')",
        "WITH 2 AS k INSERT INTO t SELECT k, 'two'",
        "CREATE TABLE mine (k UInt8) ENGINE = Memory",
        "CREATE TEMPORARY TABLE mine (k UInt8)",
        "CREATE DATABASE mine",
        "CREATE FUNCTION f AS x -> x",
        "DROP TABLE t",
        "TRUNCATE TABLE t",
        "RENAME TABLE t TO u",
        "EXCHANGE TABLES t AND t",
        "ALTER TABLE t DELETE WHERE 1",
        "ALTER TABLE t ADD COLUMN x UInt8",
        "DELETE FROM t WHERE 1",
        "UPDATE t SET v = 'x' WHERE 1",
        "OPTIMIZE TABLE t",
        "DETACH TABLE t",
        "ATTACH TABLE t",
        "BACKUP TABLE t TO Disk('backups', 'x')",
        "RESTORE TABLE t FROM Disk('backups', 'x')",
        "SYSTEM SHUTDOWN",
        "SYSTEM RELOAD CONFIG",
        "KILL QUERY WHERE 1",
        "GRANT ALL ON *.* TO default",
        "SET readonly = 0",
        "SET ROLE writer",
        "USE system",
        "CHECK TABLE t",
        "EXECUTE AS default SELECT 1",
        "PARALLEL WITH SELECT 1",
        "SELECT 1; DROP TABLE t",
        "SELECT 1 SETTINGS readonly = 0",
        "EXPLAIN CREATE TABLE mine (k UInt8) ENGINE = Memory",
    ],
)
def test_a_reader_changes_nothing(reader: Caller, admin: Caller, sql: str) -> None:
    answer = reader(sql)
    assert answer.status != 200
    assert answer.code in REFUSED | {62, 80}, answer.text  # 62, 80: the parser knows no such statement
    assert admin("SELECT * FROM t").text == "1\tone\n"
    assert admin("SHOW TABLES").text == "t\n"


SECRET = "a-secret-of-the-machine"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT file('{path}')",
        "SELECT FILE ('{path}')",
        "SELECT `file`('{path}')",
        "SELECT \"file\"('{path}')",
        "SELECT `fi\\x6ce`('{path}')",
        "SELECT fi/**/le('{path}')",
        "SELECT file/* */('{path}')",
        "SELECT arrayMap(file, ['{path}'])",
        "SELECT '{path}' AS p, * APPLY file FROM t",
        "SELECT * APPLY(x -> file('{path}')) FROM t",
        "WITH (SELECT file('{path}')) AS x SELECT x",
        "SELECT * FROM file('{path}', 'LineAsString')",
        "SELECT * FROM file('{path}', 'LineAsString', 's String')",
        "SELECT * FROM `file`('{path}', 'LineAsString')",
        "SELECT * FROM fileCluster('default', '{path}', 'LineAsString')",
        "SELECT * FROM '{path}'",
        "SELECT * FROM `{path}`",
        'SELECT * FROM "{path}"',
        "SELECT * FROM url('file://{path}', 'LineAsString')",
        "SELECT * FROM python('x')",
        "SELECT * FROM executable('cat {path}', 'LineAsString', 's String')",
        "SELECT * FROM merge(system, 'stack_trace')",
        "SELECT * FROM {t:Identifier}('{path}', 'LineAsString')",
        "DESCRIBE TABLE file('{path}', 'LineAsString')",
        "DESCRIBE file('{path}')",
        "EXPLAIN SELECT file('{path}')",
        "SELECT 1 // 1, file('{path}')",
        "SELECT $$x$$, file('{path}')",
        "SELECT x'27', file('{path}')",
        "SELECT 1 FROM t WHERE v = file('{path}')",
        "SELECT catboostEvaluate('{path}', 1)",
        "SELECT * FROM t INTO OUTFILE '{out}'",
        "SELECT * FROM t INTO OUTFILE '{out}' FORMAT CSV",
        "SELECT * FROM t FORMAT Template SETTINGS format_template_row = '{path}'",
    ],
)
def test_a_reader_sees_and_writes_no_file(reader: Caller, tmp_path: Path, sql: str) -> None:
    path, out = tmp_path / "secret.txt", tmp_path / "out"
    path.write_text(SECRET + "\n")
    answer = reader(sql.replace("{path}", str(path)).replace("{out}", str(out)), param_t="file")
    assert answer.status != 200, answer.text
    assert SECRET not in answer.text
    assert not out.exists()


@pytest.mark.parametrize(
    "source",
    [
        "url('http://127.0.0.1:1/', 'LineAsString')",
        "urlCluster('default', 'http://127.0.0.1:1/', 'LineAsString')",
        "s3('http://127.0.0.1:1/b/k', 'LineAsString')",
        "s3Cluster('default', 'http://127.0.0.1:1/b/k', 'LineAsString')",
        "gcs('http://127.0.0.1:1/b/k')",
        "azureBlobStorage('x', 'y', 'z')",
        "hdfs('hdfs://127.0.0.1:1/x')",
        "iceberg('http://127.0.0.1:1/x')",
        "deltaLake('http://127.0.0.1:1/x')",
        "remote('127.0.0.1:1', 'system', 'one')",
        "remoteSecure('127.0.0.1:1', 'system', 'one')",
        "cluster('default', 'system', 'one')",
        "mysql('127.0.0.1:1', 'd', 't', 'u', 'p')",
        "postgresql('127.0.0.1:1', 'd', 't', 'u', 'p')",
        "mongodb('127.0.0.1:1', 'd', 't', 'u', 'p', 's String')",
        "redis('127.0.0.1:1', 'k', 'k String')",
        "sqlite('x.db', 't')",
        "jdbc('x', 'y')",
        "odbc('x', 'y')",
        "dictionary('x')",
        "loop(t)",
        "executable('true', 'CSV', 's String')",
    ],
)
def test_a_reader_reaches_no_other_place(reader: Caller, source: str) -> None:
    answer = reader(f"SELECT * FROM {source}")
    assert answer.code in REFUSED, answer.text


@pytest.mark.parametrize(
    "name", ["processes", "query_cache", "errors", "stack_trace", "users", "grants", "server_settings"]
)
def test_a_reader_sees_nothing_about_others(reader: Caller, name: str) -> None:
    for sql in (
        f"SELECT * FROM system.{name}",
        f"SELECT * FROM SYSTEM . {name}",
        f"SELECT * FROM `system`.`{name}`",
        f'SELECT * FROM "system".{name}',
        f"SELECT * FROM system/**/./**/{name}",
        f"DESCRIBE system.{name}",
    ):
        assert reader(sql).code == 164, sql
    assert reader(f"SELECT * FROM {name}", database="system").code == 164
    assert reader("SELECT * FROM {d:Identifier}.{t:Identifier}", param_d="system", param_t=name).status != 200
    assert reader("SELECT * FROM {t:Identifier}", param_t=f"system.{name}").code == 164
    assert reader("SHOW PROCESSLIST").code == 164


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allow_ddl", 1),
        ("max_rows_to_read", 0),
        ("allow_introspection_functions", 1),
        ("log_queries", 0),
        ("format_schema", "/etc/passwd"),
        ("output_format_schema", "x"),
        ("format_template_row", "/etc/passwd"),
        ("input_format_allow_errors_num", "x'"),
        ("max_memory_usage_for_user", 0),
        ("sql_dialect", "prql"),
        ("dialect", "kusto"),
    ],
)
def test_a_reader_chooses_only_how_a_result_looks(reader: Caller, name: str, value: object) -> None:
    given: dict[str, Any] = {name: value}
    assert reader("SELECT 1", **given).status != 200


def test_what_clients_send_unasked_is_let_pass_and_has_no_effect(reader: Caller) -> None:
    assert reader("SELECT getSetting('readonly')", readonly=0).text == "1\n"
    assert reader("SELECT getSetting('readonly')", readonly=2).text == "1\n"


def test_limits_of_a_reader_can_be_made_tighter_only(reader: Caller) -> None:
    show = "SELECT getSetting('max_execution_time'), getSetting('max_result_rows')"
    assert reader(show).text == "60\t1000000\n"
    assert reader(show, max_execution_time=5, max_result_rows=10).text == "5\t10\n"
    for wider in ("0", "-1", "1000000000"):
        assert reader(show, max_execution_time=wider, max_result_rows=wider).text == "60\t1000000\n"


def test_a_readers_result_time_and_memory_have_bounds(reader: Caller) -> None:
    assert reader("SELECT number FROM numbers(100)", max_result_rows=10).code == 396
    slow = reader(
        "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(sipHash64(number))", max_execution_time=1
    )
    assert slow.code == 159, slow.text
    big = reader("SELECT groupArray(number) FROM numbers(100000000)", max_memory_usage=10_000_000)
    assert big.code == 241, big.text
    assert reader("SELECT 1, '" + "x" * (3 << 20) + "'").code == 307


def test_a_long_result_that_goes_over_a_bound_is_no_whole_result(reader: Caller) -> None:
    with pytest.raises(http.client.IncompleteRead) as broken:
        reader("SELECT number FROM numbers(3000000)")
    assert b"Code: 396. " in broken.value.partial[-500:]
    with pytest.raises(http.client.IncompleteRead) as broken:
        reader("SELECT number FROM numbers(100000000000) WHERE sipHash64(number) % 1000 = 1", max_execution_time=1)
    assert b"Code: 159. " in broken.value.partial[-500:]


def test_external_data_and_files_by_the_form_are_refused(reader: Caller) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="x"; filename="x"\r\n\r\n1\r\n--b--\r\n'
    answer = reader(
        "SELECT * FROM x", body=body, headers={"Content-Type": "multipart/form-data; boundary=b"},
        x_structure="k UInt8 DEFAULT file('/etc/passwd')",
    )  # fmt: skip
    assert answer.code == 164


def test_what_looks_for_a_file_finds_the_empty_working_folder(admin: Caller, reader: Caller) -> None:
    for caller in (admin, reader):
        assert caller("SELECT * FROM `server.lock`").code in {60, 164}
        assert caller(f"SELECT * FROM `{Path.cwd()}`").status != 200


# --- the lists are held to the engine that is installed


def test_what_is_listed_is_what_the_engine_has(admin: Caller) -> None:
    """A name that is misspelt here would refuse nothing, or allow nothing."""
    functions = set(admin("SELECT lower(name) FROM system.functions").text.split())
    tables = set(admin("SELECT name FROM system.tables WHERE database = 'system'").text.split())
    sources = set(admin("SELECT lower(name) FROM system.table_functions").text.split())
    assert sorted(_SAFE_TABLE_FUNCTIONS - sources) == []
    assert sorted(_SYSTEM - tables) == []
    assert "file" in _OUTSIDE & functions


def test_a_new_engine_brings_no_function_that_reaches_outside(admin: Caller) -> None:
    """By their names: whoever upgrades the engine looks at what is new here."""
    names = admin("SELECT DISTINCT lower(name) FROM system.functions WHERE NOT is_aggregate").text.split()
    outside = re.compile(
        r"ai[a-z]+|(?!.*profile|filesystem).*file.*|.*(dns|certificate|http|model|secret|python|exec|shell).*"
    )
    assert sorted(name for name in names if outside.fullmatch(name) and name not in _OUTSIDE) == []


def test_the_engine_refuses_on_its_own_too(start: Start, tmp_path: Path) -> None:
    """The second wall, with the first one out of the way: a handle in the reader's role, and nothing that looks at the text."""
    from banksman.local.chdb import roles

    assert "GRANT SELECT" in roles._USERS
    (tmp_path / "secret.txt").write_text(SECRET)
    own = start()
    ask = own.admin
    ask("CREATE TABLE t (k UInt8) ENGINE = MergeTree ORDER BY k")
    assert ask(f"SET ROLE {roles.READER}", session_id="s").status == 200
    for sql in (
        "INSERT INTO t VALUES (1)",
        "INSERT INTO t SELECT 1",
        "CREATE TABLE u (k UInt8) ENGINE = Memory",
        "DROP TABLE t",
        f"SELECT * FROM file('{tmp_path}/secret.txt', 'LineAsString')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString', 's String')",
        "SELECT * FROM remote('127.0.0.1:1', 'system', 'one')",
    ):
        answer = ask(sql, session_id="s")
        assert answer.code == 497, f"{sql}: {answer.text}"
        assert SECRET not in answer.text
    assert ask("SELECT count() FROM t", session_id="s").text == "0\n"
