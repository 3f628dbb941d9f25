"""ClickHouse's own Python client against the embedded server: what its users do with a server."""

from __future__ import annotations

import gzip
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from ipaddress import IPv4Address

import lz4.frame
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError
from clickhouse_connect.driver.external import ExternalData
from tests.local.chdb.conftest import Caller, Client

COLUMNS = """
    n UInt64, i Int64, f Float64, s String, b Bool, d Date, t DateTime('UTC'), t64 DateTime64(6, 'UTC'), u UUID,
    e Enum8('deny' = 0, 'allow' = 1), l LowCardinality(String), o Nullable(Int32), a Array(String),
    m Map(String, UInt32), p Tuple(Int8, String), dec Decimal(18, 6), ip IPv4, fs FixedString(3)
"""
ROW = [
    2**64 - 1, -(2**63), 0.1, "ümlaut\t\n'\\\0😀", True, date(2026, 11, 28), datetime(2026, 11, 28, 12, 0, 1, tzinfo=UTC),
    datetime(2026, 11, 28, 12, 0, 1, 123456, tzinfo=UTC), uuid.UUID(int=7), "allow", "low", None, ["a", "", "b'"],
    {"x": 1, "y": 2}, (-1, "t"), Decimal("123456.789012"), IPv4Address("127.0.0.1"), b"abc",
]  # fmt: skip
PLAIN = "CREATE TABLE t (k UInt32, v String) ENGINE = MergeTree ORDER BY k"


def test_a_row_of_every_type_comes_back_as_it_was(admin: Caller) -> None:
    with admin.client(tz_mode="aware") as client:
        client.command(f"CREATE TABLE every ({COLUMNS}) ENGINE = MergeTree ORDER BY n")
        client.insert("every", [ROW, ROW])
        got = client.query("SELECT * FROM every")
    assert [list(row) for row in got.result_rows] == [ROW, ROW]
    assert got.column_names[:3] == ("n", "i", "f")


def test_an_insert_tells_how_much_was_written(client: Client) -> None:
    client.command(PLAIN)
    done = client.insert("t", [[k, "x" * 10] for k in range(1000)], column_names=["k", "v"])
    assert done.written_rows == 1000
    assert client.query("SELECT count(), sum(k) FROM t").first_row == (1000, 499500)


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("CSV", b'1,"one"\n2,"t,wo"\n'),
        ("CSVWithNames", b'v,k\n"one",1\n"t,wo",2\n'),
        ("TabSeparated", b"1\tone\n2\tt,wo\n"),
        ("JSONEachRow", b'{"k":1,"v":"one"}\n{"k":2,"v":"t,wo"}'),
        ("JSONCompactEachRow", b'[1,"one"][2,"t,wo"]'),
        ("Values", b"(1, 'one'), (2, 't,wo')"),
        ("RowBinary", b"\x01\0\0\0\x03one\x02\0\0\0\x04t,wo"),
        ("Native", b"\x02\x02\x01k\x06UInt32\x01\0\0\0\x02\0\0\0\x01v\x06String\x03one\x04t,wo"),
    ],
)
def test_raw_inserts_in_the_formats_of_the_engine(client: Client, form: str, data: bytes) -> None:
    client.command(PLAIN)
    client.raw_insert("t", insert_block=data, fmt=form)
    assert client.query("SELECT k, v FROM t ORDER BY k").result_rows == [(1, "one"), (2, "t,wo")]


@pytest.mark.parametrize("form", ["Parquet", "ArrowStream", "Native", "JSON", "CSVWithNames"])
def test_what_comes_out_in_a_format_goes_in_again(client: Client, form: str) -> None:
    client.command(PLAIN)
    client.command("INSERT INTO t SELECT number, toString(number) FROM numbers(5000)")
    out = client.raw_query("SELECT k, v FROM t ORDER BY k", fmt=form)
    client.command("CREATE TABLE again AS t")
    client.raw_insert("again", insert_block=out, fmt=form)
    assert client.query("SELECT count(), sum(k), countIf(v = toString(k)) FROM again").first_row == (
        5000,
        12497500,
        5000,
    )


@pytest.mark.parametrize("compression", ["gzip", "lz4", None])
def test_raw_inserts_may_be_compressed(client: Client, compression: str | None) -> None:
    client.command(PLAIN)
    data = b"".join(b"%d,v%d\n" % (k, k) for k in range(10_000))
    packed = {"gzip": gzip.compress, "lz4": lz4.frame.compress, None: bytes}[compression](data)
    client.raw_insert("t", insert_block=packed, fmt="CSV", compression=compression)
    assert client.query("SELECT count(), uniqExact(v) FROM t").first_row == (10_000, 10_000)


@pytest.mark.parametrize("compress", ["lz4", "zstd", "gzip", False])
def test_results_and_inserts_are_compressed_as_the_client_asks(admin: Caller, compress: str | bool) -> None:
    with admin.client(compress=compress) as client:
        client.command(PLAIN)
        client.insert("t", [[k, f"v{k}"] for k in range(20_000)], column_names=["k", "v"])
        got = client.query("SELECT k, v FROM t ORDER BY k").result_rows
    assert got == [(k, f"v{k}") for k in range(20_000)]


def test_a_result_streams_in_blocks(client: Client) -> None:
    rows = blocks = 0
    with client.query_row_block_stream("SELECT number, toString(number) FROM numbers(1000000)") as stream:
        for block in stream:
            blocks += 1
            assert block[0][0] == rows
            rows += len(block)
    assert rows == 1_000_000
    assert blocks > 5


def test_a_stream_that_is_left_early_leaves_the_client_usable(client: Client) -> None:
    with client.query_rows_stream("SELECT number FROM numbers(100000000)") as stream:
        assert next(iter(stream)) == (0,)
    assert client.command("SELECT 1") == 1


def test_parameters_are_bound_by_the_server(client: Client) -> None:
    hostile = "'; DROP TABLE t; -- \\ \t\n{k:UInt8}"
    got = client.query(
        "SELECT {s:String}, {n:UInt64}, {a:Array(String)}, {d:Date}, {o:Nullable(String)}",
        parameters={"s": hostile, "n": 2**63, "a": ["x", hostile], "d": date(2026, 1, 2), "o": None},
    )
    assert got.result_rows == [(hostile, 2**63, ["x", hostile], date(2026, 1, 2), None)]


def test_there_is_room_for_many_parameters(client: Client) -> None:
    many = list(range(60_000))
    got = client.query("SELECT arraySum({a:Array(UInt32)})", parameters={"a": many})
    assert got.first_row == (sum(many),)


def test_an_identifier_may_be_a_parameter(client: Client) -> None:
    client.command(PLAIN)
    client.command("INSERT INTO {t:Identifier} VALUES ({k:UInt32}, 'v')", parameters={"t": "t", "k": 3})
    assert client.query("SELECT {c:Identifier} FROM t", parameters={"c": "k"}).result_rows == [(3,)]


def test_settings_hold_for_their_query_only(client: Client) -> None:
    show = "SELECT getSetting('max_block_size')"
    assert client.query(show, settings={"max_block_size": 123}).first_row == (123,)
    assert client.query(show).first_row != (123,)


def test_a_session_keeps_temporary_tables_and_settings(admin: Caller) -> None:
    with admin.client(session_id=uuid.uuid4().hex) as client:
        client.command("CREATE TEMPORARY TABLE mine (x UInt8)")
        client.command("SET max_block_size = 321")
        client.insert("mine", [[1], [2]])
        assert client.query("SELECT sum(x), getSetting('max_block_size') FROM mine").first_row == (3, 321)
    with admin.client(session_id=uuid.uuid4().hex) as another, pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        another.query("SELECT * FROM mine")


def test_external_tables(client: Client) -> None:
    data = ExternalData(file_name="people", data=b"1,ann\n2,bob\n", fmt="CSV", structure=["id UInt8", "name String"])
    got = client.query("SELECT name FROM people ORDER BY id DESC", external_data=data)
    assert got.result_rows == [("bob",), ("ann",)]
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        client.query("SELECT * FROM people")


@pytest.mark.parametrize(
    ("sql", "name", "code"),
    [
        ("SELECT * FROM nowhere", "UNKNOWN_TABLE", 60),
        ("SELECT nothing", "UNKNOWN_IDENTIFIER", 47),
        ("SELEKT 1", "SYNTAX_ERROR", 62),
        ("SELECT 1; SELECT 2", "SYNTAX_ERROR", 62),
        ("SELECT unheard(1)", "UNKNOWN_FUNCTION", 46),
        ("SELECT throwIf(1, 'no')", "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO", 395),
        ("SELECT * FROM nodatabase.t", "UNKNOWN_DATABASE", 81),
    ],
)
def test_errors_have_clickhouses_codes_and_names(client: Client, sql: str, name: str, code: int) -> None:
    with pytest.raises(DatabaseError) as told:
        client.query(sql)
    assert f"Code: {code}. DB::Exception: " in str(told.value)
    assert f"({name})" in str(told.value)
    assert client.command("SELECT 1") == 1


def test_an_error_in_the_middle_of_a_result_is_no_short_result(client: Client) -> None:
    with (
        pytest.raises((DatabaseError, OperationalError), match="too far"),
        client.query_rows_stream("SELECT throwIf(number = 3000000, 'too far') FROM numbers(4000000)") as stream,
    ):
        assert sum(1 for _ in stream) < 0  # not reached


def test_an_insert_of_wrong_values_stores_nothing(client: Client) -> None:
    client.command(PLAIN)
    with pytest.raises(DatabaseError):
        client.raw_insert("t", insert_block=b'1,"one"\n"no number","two"\n', fmt="CSV")
    assert client.command("SELECT count() FROM t") == 0


def test_dataframes_go_in_and_come_out(client: Client) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    client.command(PLAIN)
    client.insert_df("t", pandas.DataFrame({"k": [1, 2], "v": ["one", "two"]}))
    frame = client.query_df("SELECT k, v FROM t ORDER BY k")
    assert list(frame["v"]) == ["one", "two"]


def test_a_reader_reads_with_the_same_client(client: Client, analyst: Caller) -> None:
    client.command(PLAIN)
    client.insert("t", [[1, "one"]])
    with analyst.client() as reader:
        assert reader.query("SELECT v FROM t WHERE k = {k:UInt32}", parameters={"k": 1}).result_rows == [("one",)]
        with pytest.raises(DatabaseError, match="READONLY"):
            reader.insert("t", [[2, "two"]], column_names=["k", "v"])
        with pytest.raises(DatabaseError, match="READONLY"):
            reader.command("DROP TABLE t")
    assert client.command("SELECT count() FROM t") == 1
