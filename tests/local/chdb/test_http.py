"""ClickHouse's HTTP interface as curl and other clients use it: who gets in, what may be sent, what comes back."""

from __future__ import annotations

import gzip
import http.client
import json
import shutil
import socket
import subprocess
import zlib
from base64 import b64encode
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
from tests.local.chdb.conftest import Caller
from tests.servers import ClickHouseServer

from banksman.local.chdb.bodies import zstandard

PLAIN = "CREATE TABLE t (k UInt32, v String) ENGINE = MergeTree ORDER BY k"
curl_is_there = pytest.mark.skipif(shutil.which("curl") is None, reason="this machine has no curl")


def curl(caller: Caller, *arguments: str, path: str = "/", body: bytes = b"") -> tuple[int, bytes]:
    """(status, body). The password stands in no argument: curl reads it as a line of its configuration."""
    ran = subprocess.run(
        ["curl", "-sS", "--config", "-", "-w", "%{stderr}%{http_code}", *arguments, f"http://127.0.0.1:{caller.port}{path}"],
        input=f'user = "{caller.user}:{caller.password}"\n'.encode() + body,
        capture_output=True,
        timeout=30,
        check=True,
    )  # fmt: skip
    return int(ran.stderr.decode()[-3:]), ran.stdout


def raw(port: int, request: bytes) -> bytes:
    """Bytes in, bytes out, until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
        connection.sendall(request)
        got = b""
        while piece := connection.recv(1 << 16):
            got += piece
        return got


# --- curl


@curl_is_there
def test_curl_creates_inserts_and_reads(admin: Caller, tmp_path: Path) -> None:
    where = f"/?database={admin.database}"
    assert curl(admin, "-d", PLAIN, path=where) == (200, b"")
    data = tmp_path / "data.csv"
    data.write_bytes(b'1,"one"\n2,"two"\n')
    into = f"{where}&query=INSERT+INTO+t+FORMAT+CSV"
    assert curl(admin, "--data-binary", f"@{data}", path=into) == (200, b"")
    assert curl(admin, "--data-binary", f"@{data}", "-H", "Transfer-Encoding: chunked", path=into) == (200, b"")
    assert curl(admin, path=f"{where}&query=SELECT+k,count()+FROM+t+GROUP+BY+k+ORDER+BY+k") == (200, b"1\t2\n2\t2\n")
    assert curl(admin, "--compressed", "-d", "SELECT count() FROM numbers(10)") == (200, b"10\n")


@curl_is_there
def test_curl_sees_an_error_and_its_status(admin: Caller) -> None:
    status, said = curl(admin, "-d", "SELECT * FROM nowhere")
    assert status == 404
    assert said.startswith(b"Code: 60. DB::Exception: ")
    assert said.endswith(b"(official build))\n")


@curl_is_there
def test_curl_streams_a_long_result(admin: Caller) -> None:
    status, said = curl(admin, "-d", "SELECT number FROM numbers(1000000)")
    assert status == 200
    assert said.count(b"\n") == 1_000_000


@curl_is_there
def test_curl_does_not_take_a_broken_result_for_a_whole_one(admin: Caller) -> None:
    with pytest.raises(subprocess.CalledProcessError) as broken:
        curl(admin, "-d", "SELECT throwIf(number = 3000000, 'too far') FROM numbers(4000000)")
    assert broken.value.returncode == 18  # transfer closed with data outstanding
    assert b"__exception__" in broken.value.stdout[-500:]
    assert b"too far" in broken.value.stdout[-500:]


# --- who gets in


@pytest.mark.parametrize(
    ("headers", "parameters", "status"),
    [
        ({}, "", 401),
        ({}, "&user=admin", 403),
        ({}, "&user=admin&password=wrong", 403),
        ({}, "&user=nobody&password=wrong", 403),
        ({"X-ClickHouse-User": "analyst"}, "", 403),
        ({"X-ClickHouse-User": "analyst", "X-ClickHouse-Key": "wrong"}, "", 403),
        ({"Authorization": "Basic " + b64encode(b"default:").decode()}, "", 403),
        ({"Authorization": "Basic " + b64encode(b"admin").decode()}, "", 403),
        ({"Authorization": "Basic !!!"}, "", 400),
        ({"Authorization": "Bearer abc"}, "", 401),
    ],
)
def test_nobody_gets_in_without_a_password(
    clickhouse_server: ClickHouseServer, headers: dict[str, str], parameters: str, status: int
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", clickhouse_server.port, timeout=10)
    connection.request("POST", f"/?default_format=CSV{parameters}", b"SELECT 'secret'", headers)
    answer = connection.getresponse()
    said = answer.read()
    connection.close()
    assert answer.status == status
    assert b"secret" not in said
    assert answer.headers["X-ClickHouse-Exception-Code"] == ("36" if status == 400 else "516")
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)


def test_a_user_may_be_named_in_three_ways(admin: Caller) -> None:
    ask = "SELECT 1"
    by_headers = {"X-ClickHouse-User": "admin", "X-ClickHouse-Key": admin.password, "Authorization": ""}
    assert admin(ask).text == "1\n"
    assert admin(ask, headers=by_headers).text == "1\n"
    assert admin(ask, headers={"Authorization": ""}, user="admin", password=admin.password).text == "1\n"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Host": "127.0.0.1.example:8123"},
        {"Origin": "https://site.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
def test_pages_of_other_sites_get_nothing(admin: Caller, headers: dict[str, str]) -> None:
    answer = admin("SELECT 1", headers=headers)
    assert (answer.status, answer.code) == (403, 516)


def test_ping_needs_no_user_and_other_paths_are_not_there(clickhouse_server: ClickHouseServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", clickhouse_server.port, timeout=10)
    for path, status in {"/ping": 200, "/replicas_status": 200, "/": 200, "/play": 404, "/dashboard": 404}.items():
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert (path, answer.status) == (path, status)
    connection.close()


# --- what may be asked, and how


def test_what_is_too_long_or_no_request_is_refused(admin: Caller) -> None:
    head = f"Host: localhost\r\nAuthorization: {admin.authorization}\r\nConnection: close\r\n".encode()
    assert raw(admin.port, b"GET /?query=" + b"x" * (1 << 20) + b" HTTP/1.1\r\n").startswith(b"HTTP/1.1 414 ")
    assert raw(admin.port, b"GET / HTTP/1.1\r\nX: " + b"x" * (1 << 17)).startswith(b"HTTP/1.1 431 ")
    assert raw(admin.port, b"OPTIONS / HTTP/1.1\r\n" + head + b"\r\n").startswith(b"HTTP/1.1 501 ")
    assert b"Bad request" in raw(admin.port, b"\x16\x03\x01\x02\x00\x01\x00\n")  # TLS, say
    assert raw(admin.port, b"POST / HTTP/1.1\r\n" + head + b"Content-Length: 8\r\n\r\nSELECT 1").endswith(
        b"\r\n\r\n1\n"
    )


def test_an_address_may_have_a_mebibyte_as_with_a_server(admin: Caller) -> None:
    many = list(range(60_000))
    assert admin("SELECT arraySum({a:Array(UInt32)})", param_a=str(many).replace(" ", "")).text == f"{sum(many)}\n"


@curl_is_there
def test_curl_waits_for_leave_to_send_much(admin: Caller, tmp_path: Path) -> None:
    """Expect: 100-continue, which curl sends ahead of a megabyte or more."""
    admin(PLAIN)
    data = tmp_path / "data.csv"
    data.write_bytes(b"".join(b"%d,value %d\n" % (k, k) for k in range(200_000)))
    where = f"/?database={admin.database}&query=INSERT+INTO+t+FORMAT+CSV"
    assert curl(admin, "-H", "Expect: 100-continue", "--data-binary", f"@{data}", path=where) == (200, b"")
    assert admin("SELECT count() FROM t").text == "200000\n"


def test_a_get_reads_and_does_not_write(admin: Caller) -> None:
    assert admin("SELECT 1", method="GET").text == "1\n"
    assert admin(PLAIN, method="GET").code == 164
    assert admin(PLAIN, method="GET", session_id="s").code == 164
    assert admin("EXISTS t", method="GET").text == "0\n"


def test_a_head_has_no_body(admin: Caller) -> None:
    answer = admin("SELECT number FROM numbers(1000)", method="HEAD")
    assert answer.status == 200
    assert answer.body == b""


def test_the_query_may_be_in_the_address_the_body_or_both(admin: Caller) -> None:
    assert admin("SELECT 1 +", body=b"1").text == "2\n"
    assert admin("SELECT 2", body=b"").text == "2\n"
    assert admin("").code == 62


def test_parameters_are_bound(admin: Caller) -> None:
    answer = admin("SELECT {s:String}, {n:UInt8}, {a:Array(Int8)}", param_s="it's", param_n=7, param_a="[1,-2]")
    assert answer.text == "it\\'s\t7\t[1,-2]\n"
    assert admin("SELECT {s:String}").code == 456
    assert admin("SELECT {n:UInt8}", param_n="many").status == 400


@pytest.mark.parametrize(
    ("form", "kind", "begins"),
    [
        ("TabSeparated", "text/tab-separated-values; charset=UTF-8", b"0\t"),
        ("CSVWithNames", "text/csv; charset=UTF-8", b'"n","s"\n'),
        ("JSON", "application/json; charset=UTF-8", b"{"),
        ("JSONEachRow", "application/x-ndjson; charset=UTF-8", b'{"n":'),
        ("Native", "application/octet-stream", b"\x02\x03"),
        ("Parquet", "text/plain; charset=UTF-8", b"PAR1"),
    ],
)
def test_formats_and_their_headers(admin: Caller, form: str, kind: str, begins: bytes) -> None:
    sql = "SELECT number AS n, toString(n) AS s FROM numbers(3)"
    plain: dict[str, Any] = {"output_format_write_statistics": 0}
    by_clause, by_parameter = admin(f"{sql} FORMAT {form}", **plain), admin(sql, default_format=form, **plain)
    by_header = admin(sql, headers={"X-ClickHouse-Format": form}, **plain)
    for answer in (by_clause, by_parameter, by_header):
        assert answer.body == by_clause.body
        assert answer.body.startswith(begins)
        assert answer.headers["X-ClickHouse-Format"] == form
        assert answer.headers["Content-Type"] == kind


@pytest.mark.parametrize("form", ["ArrowTable", "DataFrame", "No", "x'; DROP", "../x"])
def test_formats_that_a_server_does_not_have(admin: Caller, form: str) -> None:
    assert admin("SELECT 1", default_format=form).code == 73


def test_every_answer_tells_its_query_and_what_it_took(admin: Caller) -> None:
    answer = admin("SELECT number % 2 AS n FROM numbers(1000) GROUP BY n", query_id="mine-1", wait_end_of_query=1)
    assert answer.headers["X-ClickHouse-Query-Id"] == "mine-1"
    assert answer.headers["X-ClickHouse-Timezone"]
    took = answer.summary
    assert (took["read_rows"], took["read_bytes"], took["result_rows"], took["result_bytes"]) == (1000, 8000, 2, 4)
    split = admin("SELECT 1", query_id="a\r\nSet-Cookie: x=1")
    assert "Set-Cookie" not in split.headers


def test_a_role_that_is_not_there_is_refused(admin: Caller) -> None:
    """Roles are no part of this server; a client that asks for a narrower one must not be given everything."""
    answer = admin("SELECT 1", role="narrow")
    assert (answer.status, answer.code) == (404, 511)


def test_native_compression_is_refused_with_what_to_use(admin: Caller) -> None:
    answer = admin("SELECT 1", compress=1)
    assert (answer.status, answer.code) == (501, 48)
    assert "Content-Encoding" in answer.text


@pytest.mark.parametrize("name", ["max threads", "1x", "x'", "max_threads, readonly"])
def test_what_is_no_settings_name_is_none(admin: Caller, name: str) -> None:
    given: dict[str, Any] = {name: 1}
    assert admin("SELECT 1", **given).code == 115
    assert admin("SELECT 1", no_such_setting=1).code == 115


def test_a_session_is_its_users_own(admin: Caller, analyst: Caller) -> None:
    assert admin("CREATE TEMPORARY TABLE mine (x UInt8)", session_id="shared").status == 200
    assert admin("EXISTS TEMPORARY TABLE mine", session_id="shared").text == "1\n"
    assert analyst("SELECT * FROM mine", session_id="shared").code == 60
    assert admin("SELECT 1", session_id="never", session_check=1).code == 372
    assert admin("SELECT 1", session_id="long", session_timeout=4000).code == 374


# --- bodies


def packed(data: bytes, encoding: str) -> bytes:
    """`data` in a Content-Encoding."""
    if encoding == "zstd":
        return bytes(zstandard().compress(data))
    return bytes(
        {"gzip": gzip.compress, "deflate": zlib.compress, "lz4": lz4.frame.compress, "identity": bytes}[encoding](data)
    )


def unpacked(data: bytes, encoding: str) -> bytes:
    if encoding == "zstd":
        return bytes(zstandard().decompress(data))
    return bytes({"gzip": gzip.decompress, "deflate": zlib.decompress, "lz4": lz4.frame.decompress}[encoding](data))


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "lz4", "zstd", "identity"])
@pytest.mark.parametrize("chunked", [True, False])
def test_bodies_come_in_every_encoding(admin: Caller, encoding: str, chunked: bool) -> None:
    admin(PLAIN)
    data = packed(b"".join(b"%d,value %d\n" % (k, k) for k in range(50_000)), encoding)
    body = (data[at : at + 9999] for at in range(0, len(data), 9999)) if chunked else data
    answer = admin("INSERT INTO t FORMAT CSV", body=body, chunked=chunked, headers={"Content-Encoding": encoding} | (
        {"Transfer-Encoding": "chunked"} if chunked else {}
    ))  # fmt: skip
    assert answer.status == 200, answer.text
    assert answer.summary["written_rows"] == 50_000
    assert admin("SELECT count(), uniqExact(v) FROM t").text == "50000\t50000\n"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "lz4", "zstd"])
@pytest.mark.parametrize("rows", [300, 300_000])
def test_answers_come_in_the_encoding_that_is_asked_for(admin: Caller, encoding: str, rows: int) -> None:
    answer = admin(f"SELECT number FROM numbers({rows})", headers={"Accept-Encoding": encoding})
    assert answer.headers["Content-Encoding"] == encoding
    assert unpacked(answer.body, encoding).count(b"\n") == rows


@pytest.mark.parametrize(
    ("encoding", "body", "code"),
    [
        ("gzip", b"no gzip at all", 271),
        ("gzip", gzip.compress(b"1,one\n" * 100, mtime=0)[:-12], 271),
        ("zstd", b"(\xb5/\xfd....", 271),
        ("lz4", lz4.frame.compress(b"1,one\n" * 100)[:-6], 271),
        ("br", b"xxxx", 89),
    ],
)
def test_a_body_that_is_not_what_it_says_stores_nothing(admin: Caller, encoding: str, body: bytes, code: int) -> None:
    admin(PLAIN)
    answer = admin("INSERT INTO t FORMAT CSV", body=body, headers={"Content-Encoding": encoding})
    assert (answer.status, answer.code) == (400, code)
    assert admin("SELECT count() FROM t").text == "0\n"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 8\r\nContent-Length: 9\r\n",
        b"Content-Length: 8\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: +8\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Content-Length : 8\r\n",
    ],
)
def test_a_request_that_two_could_read_in_two_ways_is_refused(admin: Caller, head: bytes) -> None:
    got = raw(
        admin.port,
        b"POST / HTTP/1.1\r\nHost: localhost\r\nAuthorization: " + admin.authorization.encode() + b"\r\n" + head
        + b"\r\nSELECT 1GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    )  # fmt: skip
    assert got.startswith(b"HTTP/1.1 400 ")
    assert got.count(b"HTTP/1.1") == 1


def test_an_insert_that_breaks_off_stores_nothing(admin: Caller) -> None:
    admin(PLAIN)
    with socket.create_connection(("127.0.0.1", admin.port), timeout=10) as connection:
        connection.sendall(
            f"POST /?database={admin.database}&query=INSERT+INTO+t+FORMAT+CSV HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: {admin.authorization}\r\nContent-Length: 1000\r\n\r\n1,one\n2,two\n".encode()
        )
    # The lock of the table is free again when the insert has ended.
    assert admin("TRUNCATE TABLE t SYNC").status == 200
    assert admin("SELECT count() FROM t").text == "0\n"


def test_an_insert_that_selects_from_its_data(admin: Caller) -> None:
    admin(PLAIN)
    sql = "INSERT INTO t SELECT a * 2, upper(b) FROM input('a UInt32, b String') FORMAT JSONEachRow"
    answer = admin(sql, body=b'{"a":1,"b":"one"}\n{"a":2,"b":"two"}')
    assert answer.summary["written_rows"] == 2
    assert admin("SELECT * FROM t ORDER BY k").text == "2\tONE\n4\tTWO\n"


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES (1, 'a'), (2, 'b')",
        'INSERT INTO t (v, k) FORMAT JSONEachRow {"k":1,"v":"a"}\n{"k":2,"v":"b"}',
        "/* says FORMAT CSV */ INSERT INTO t -- VALUES\nFORMAT TSV\n1\ta\n2\tb\n",
        "INSERT INTO t SELECT number + 1, ['a', 'b'][number + 1] FROM numbers(2)",
        "INSERT INTO t WITH 1 AS one SELECT number + one, ['a', 'b'][number + 1] FROM numbers(2)",
        "WITH x AS (SELECT number + 1 AS k FROM numbers(2)) INSERT INTO t SELECT k, char(96 + k) FROM x",
        "INSERT INTO t SETTINGS max_insert_block_size = 10 FORMAT CSV 1,a\n2,b\n",
    ],
)  # fmt: skip
def test_every_spelling_of_an_insert(admin: Caller, sql: str) -> None:
    admin(PLAIN)
    answer = admin(sql)
    assert answer.status == 200, answer.text
    assert admin("SELECT * FROM t ORDER BY k").text == "1\ta\n2\tb\n"


def test_an_insert_with_parameters(admin: Caller) -> None:
    admin(PLAIN)
    values = "INSERT INTO {t:Identifier} VALUES ({k:UInt32}, {v:String})"
    assert admin(values, param_t="t", param_k=1, param_v="a").status == 200
    assert admin("INSERT INTO {t:Identifier} FORMAT CSV", body=b"2,b\n", param_t="t").status == 200
    assert admin("SELECT * FROM t ORDER BY k").text == "1\ta\n2\tb\n"


def test_an_insert_that_selects_may_be_long_and_in_two_places(admin: Caller) -> None:
    admin(PLAIN)
    long = "a" * 200_000
    assert admin(f"INSERT INTO t SELECT 1, '{long}'").status == 200
    assert admin("INSERT INTO t SELECT 2, v FROM t WHERE", body=b"k = 1").status == 200
    assert admin("SELECT k, length(v), uniqExact(v) OVER () FROM t ORDER BY k").text == "1\t200000\t1\n2\t200000\t1\n"


def test_an_insert_of_nothing_is_no_error(admin: Caller) -> None:
    admin(PLAIN)
    answer = admin("INSERT INTO t FORMAT CSV", body=b"")
    assert (answer.status, answer.summary["written_rows"]) == (200, 0)


@pytest.mark.parametrize(
    ("table", "data", "code"),
    [
        ("t (k UInt8, CONSTRAINT small CHECK k < 10) ENGINE = MergeTree ORDER BY k", "20", 469),
        ("t (k UInt8) ENGINE = MergeTree ORDER BY k PARTITION BY k", "\n".join(map(str, range(200))), 252),
        (
            f"t (k UInt8) ENGINE = MergeTree ORDER BY k SETTINGS min_free_disk_bytes_to_perform_insert = {10**17}",
            "1",
            243,
        ),
        ("t (k UInt8, v UInt8 DEFAULT throwIf(k = 5, 'no')) ENGINE = MergeTree ORDER BY k", "5", 395),
    ],
)
@pytest.mark.parametrize("how", ["FORMAT TSV", "VALUES", "SELECT * FROM input('k UInt8') FORMAT TSV"])
def test_an_insert_that_fails_after_parsing_is_no_success(
    admin: Caller, table: str, data: str, code: int, how: str
) -> None:
    admin(f"CREATE TABLE {table}")
    rows = "".join(f"({k})" for k in data.split()) if how == "VALUES" else data
    answer = admin(f"INSERT INTO t (k) {how}", body=rows.encode())
    assert answer.code == code, answer.text
    assert admin("SELECT count() FROM t").text == "0\n"


def test_an_insert_whose_view_fails_is_no_success(admin: Caller) -> None:
    admin(PLAIN)
    admin("CREATE MATERIALIZED VIEW w ENGINE = MergeTree ORDER BY k AS SELECT throwIf(k = 5, 'no') + k AS k FROM t")
    assert admin("INSERT INTO t FORMAT CSV", body=b"5,five\n").code == 395
    assert admin("SELECT count() FROM w").text == "0\n"
    assert admin("INSERT INTO t FORMAT CSV", body=b"6,six\n").status == 200
    assert admin("SELECT k FROM w").text == "6\n"


def test_an_insert_into_nothing_is_an_error_also_without_data(admin: Caller) -> None:
    assert admin("INSERT INTO nowhere FORMAT Native", body=b"").code == 60


def test_a_form_with_parameters_and_a_table(admin: Caller) -> None:
    parts = {
        'name="query"': "SELECT name, {n:UInt8} FROM people WHERE id = {n:UInt8}",
        'name="param_n"': "2",
        'name="people"; filename="people"': "1,ann\n2,bob\n",
    }
    body = "".join(f"--b\r\nContent-Disposition: form-data; {head}\r\n\r\n{text}\r\n" for head, text in parts.items())
    answer = admin(
        "", body=f"{body}--b--\r\n".encode(), headers={"Content-Type": "multipart/form-data; boundary=b"},
        people_structure="id UInt8, name String", people_format="CSV",
    )  # fmt: skip
    assert answer.text == "bob\t2\n"


def test_json_is_a_document(admin: Caller) -> None:
    document = json.loads(admin("SELECT number FROM numbers(200000) FORMAT JSON").body)
    assert document["rows"] == 200_000


def test_a_connection_serves_one_request_after_the_other(admin: Caller) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", admin.port, timeout=10)
    head = {"Authorization": admin.authorization}
    for sql, status in [("SELECT 1", 200), ("SELEKT", 400), ("SELECT * FROM nowhere", 404), ("SELECT 1", 200)]:
        connection.request("POST", "/", sql.encode(), head)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status
    connection.close()
