"""The embedded ClickHouse as a process: killed and started again, stopped, started wrongly, crowded, left in the middle."""

from __future__ import annotations

import gzip
import http.client
import json
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from tests.local.chdb.conftest import Answer, Caller, Own, Start, argv
from tests.local.conftest import until
from tests.servers import ClickHouseServer, child_environment

from banksman.errors import InvalidSetting
from banksman.local.chdb.users import load_users

PLAIN = "CREATE TABLE t (k UInt32, v String) ENGINE = MergeTree ORDER BY k"
ENDLESS = "SELECT count() FROM numbers(1000000000000000) WHERE NOT ignore(sipHash64(number))"


def begin(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A server that is expected to end at once."""
    return subprocess.run(
        arguments, env=child_environment(), capture_output=True, text=True, timeout=30, check=False
    )  # fmt: skip


def running(caller: Caller) -> int:
    """How many queries run, besides this one."""
    return int(caller("SELECT count() - 1 FROM system.processes").text)


def ask_and_leave(caller: Caller, sql: str, path: str = "/") -> socket.socket:
    """Send a query and read nothing of its answer."""
    connection = socket.create_connection(("127.0.0.1", caller.port), timeout=10)
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {caller.authorization}\r\n"
        f"Content-Length: {len(sql)}\r\n\r\n{sql}".encode()
    )
    return connection


# --- killed, stopped


def test_acknowledged_rows_outlive_kill_9_under_load(start: Start) -> None:
    own = start()
    assert own.admin(PLAIN).status == 200
    acknowledged: list[int] = []
    gone = threading.Event()

    def insert(first: int) -> None:
        for k in range(first, 1_000_000, 3):
            try:
                answer = own.admin("INSERT INTO t FORMAT CSV", body=f"{k},v\n".encode())
            except (OSError, http.client.HTTPException):
                return
            assert answer.status == 200, answer.text
            acknowledged.append(k)

    def kill() -> None:
        until(lambda: len(acknowledged) > 60)
        own.kill()
        gone.set()

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(insert, first) for first in range(3)] + [pool.submit(kill)]
        for job in jobs:
            job.result(60)
    assert gone.is_set()
    again = start()
    stored = [int(k) for k in again.admin("SELECT k FROM t").text.split()]
    assert set(acknowledged) <= set(stored)
    assert len(stored) == len(set(stored))
    assert len(set(stored) - set(acknowledged)) <= 3  # one a client may be there that nobody was told of
    assert again.stop() == 0


def test_a_stop_ends_reads_waits_for_writes_and_leaves_everything(start: Start) -> None:
    own = start()
    own.admin(PLAIN)
    with ThreadPoolExecutor(2) as pool:
        read = pool.submit(own.admin, ENDLESS)
        slow = "INSERT INTO t SELECT number, sleepEachRow(0.2) FROM numbers(5) SETTINGS max_block_size = 1"
        write = pool.submit(own.admin, slow)
        until(lambda: running(own.admin) == 2)
        assert own.stop() == 0  # 1: something did not end in time
        ended = ended_with(read.result)
        assert ended is None or ended.code in {394, 236}, ended
        assert write.result().status == 200
    again = start()
    assert again.admin("SELECT count() FROM t").text == "5\n"


def ended_with(result: Callable[[], Answer]) -> Answer | None:
    """The answer, or None when the connection broke off."""
    try:
        return result()
    except (OSError, http.client.HTTPException):
        return None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_has_nothing_to_do_stops_at_once(start: Start, number: int) -> None:
    own = start()
    began = time.monotonic()
    own.process.send_signal(number)
    assert own.process.wait(10) == 0
    assert time.monotonic() - began < 8  # what it grants a query that does not end
    assert "Traceback" not in own.log


# --- started wrongly


def test_a_folder_has_one_owner(start: Start) -> None:
    own = start()
    second = begin(*argv(own.folder, 0))
    assert second.returncode == 4
    assert second.stderr == f"{own.folder}/data is in use by another ClickHouse server (pid {own.process.pid})\n"
    assert own.admin("SELECT 1").text == "1\n"


def test_a_port_that_is_taken_is_said(clickhouse_server: ClickHouseServer, start: Start, tmp_path: Path) -> None:
    ended = begin(*argv(tmp_path, clickhouse_server.port))
    assert ended.returncode == 4
    assert ended.stderr == f"cannot listen on 127.0.0.1:{clickhouse_server.port}: Address already in use\n"


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (None, 0o600, "is not a users file"),
        ("not json", 0o600, "is not a users file"),
        ("[]", 0o600, "is not a users file"),
        ('{"a": {}}', 0o600, "is not a users file"),
        ('{"a": {"sha256": "", "readonly": true}}', 0o600, "user a has no password"),
        ('{"a": {"sha256": "EMPTY", "readonly": true}}', 0o600, "user a has no password"),
        ("{}", 0o644, "can be read by others"),
    ],
)
def test_a_users_file_that_is_none_is_refused(tmp_path: Path, content: str | None, mode: int, says: str) -> None:
    if content is not None:
        users = tmp_path / "users.json"
        empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        users.write_text(content.replace("EMPTY", empty))
        users.chmod(mode)
    with pytest.raises(InvalidSetting, match=says):
        load_users(tmp_path / "users.json")


def test_without_users_it_does_not_start(tmp_path: Path) -> None:
    ended = begin(*argv(tmp_path, 0))
    assert ended.returncode == 4
    assert ended.stderr.count("\n") == 1
    assert "users.json is not a users file: " in ended.stderr


def test_the_folder_is_its_owners_and_holds_no_password(start: Start) -> None:
    own = start()
    data = own.folder / "data"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    users = json.loads((own.folder / "users.json").read_text())
    assert set(users) == {"admin", "analyst"}
    own.admin(f"SELECT '{own.analyst.password}'")
    own.stop()
    for password in (own.admin.password, own.analyst.password):
        holding = [path for path in own.folder.rglob("*") if path.is_file() and password.encode() in path.read_bytes()]
        assert holding == []


def test_it_listens_on_loopback_only(clickhouse_server: ClickHouseServer) -> None:
    assert clickhouse_server.process is not None
    listening = [
        one for one in psutil.Process(clickhouse_server.process.pid).net_connections("inet") if one.status == "LISTEN"
    ]
    assert {(one.laddr.ip, one.laddr.port) for one in listening} == {("127.0.0.1", clickhouse_server.port)}


# --- limits


def test_bodies_beyond_the_limit_are_refused_and_a_bomb_is_not_unpacked(start: Start) -> None:
    own = start("--max-body", str(4 << 20))
    own.admin(PLAIN)
    into = "INSERT INTO t FORMAT CSV"
    line = b"1," + b"x" * 1000 + b"\n"
    assert own.admin(into, body=line * 4000).status == 200
    plain = own.admin(into, body=line * 5000)
    assert (plain.status, plain.code) == (413, 307)
    chunks = own.admin(
        into, body=(line * 100 for _ in range(50)), chunked=True, headers={"Transfer-Encoding": "chunked"}
    )
    assert (chunks.status, chunks.code) == (413, 307)
    before = psutil.Process(own.process.pid).memory_info().rss
    bomb = own.admin(into, body=gzip.compress(bytes(300 << 20), 1), headers={"Content-Encoding": "gzip"})
    assert (bomb.status, bomb.code) == (413, 307)
    assert psutil.Process(own.process.pid).memory_info().rss - before < 100 << 20
    assert own.admin("SELECT count() FROM t").text == "4000\n"
    assert own.admin("SELECT 1").text == "1\n"


def test_memory_has_a_bound_and_what_is_over_it_is_told(start: Start) -> None:
    own = start("--memory", str(600 << 20))
    greedy = own.admin("SELECT length(groupArray(number)) FROM numbers(200000000)")
    assert greedy.code == 241
    assert own.admin("SELECT 1").text == "1\n"


@pytest.mark.slow
def test_a_crowd_waits_and_readers_leave_room_for_writers(start: Start) -> None:
    own = start("--queries", "4")
    own.admin(PLAIN)
    left = [ask_and_leave(own.analyst, ENDLESS) for _ in range(8)]
    until(lambda: running(own.admin) == 3)  # three quarters of four; the others wait
    assert own.admin("INSERT INTO t VALUES (1, 'v')").status == 200
    refused = own.analyst("SELECT 1")  # waits for 10 s in vain
    assert (refused.status, refused.code) == (503, 202)
    for connection in left:
        connection.close()
    until(lambda: own.analyst("SELECT 1").status == 200)


# --- many at once, and clients that go away


def test_many_readers_beside_inserts_see_whole_blocks(admin: Caller, analyst: Caller) -> None:
    admin(PLAIN)
    done = threading.Event()

    def read() -> int:
        looks = 0
        while not done.is_set():
            answer = analyst("SELECT count(), countIf(v = 'v') FROM t")
            assert answer.status == 200, answer.text
            count, same = map(int, answer.text.split())
            assert count == same
            assert count % 1000 == 0, "a part of a block was seen"
            looks += 1
        return looks

    with ThreadPoolExecutor(10) as pool:
        readers = [pool.submit(read) for _ in range(10)]
        try:
            block = b"".join(b"%d,v\n" % k for k in range(1000))
            for _ in range(30):
                assert admin("INSERT INTO t FORMAT CSV", body=block).status == 200
        finally:
            done.set()
        looks = [reader.result(30) for reader in readers]
    assert min(looks) > 0
    assert admin("SELECT count() FROM t").text == "30000\n"


@pytest.mark.parametrize("sql", [ENDLESS, "SELECT number FROM numbers(1000000000000)", f"{ENDLESS} FORMAT JSON"])
def test_a_read_whose_client_went_away_ends(admin: Caller, sql: str) -> None:
    connection = ask_and_leave(admin, sql)
    until(lambda: running(admin) >= 1)
    connection.close()
    until(lambda: running(admin) == 0)


def test_a_client_that_leaves_in_the_middle_of_a_result_harms_nobody(admin: Caller) -> None:
    for _ in range(5):
        connection = ask_and_leave(admin, "SELECT number, repeat('x', 100) FROM numbers(100000000)")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, no farewell
        connection.close()
    until(lambda: running(admin) == 0)
    assert admin("SELECT 1").text == "1\n"


def test_a_busy_session_is_locked(admin: Caller) -> None:
    busy = ask_and_leave(admin, ENDLESS, "/?session_id=one")
    until(lambda: running(admin) == 1)
    second = admin("SELECT 1", session_id="one")
    assert (second.status, second.code) == (423, 373)
    busy.close()
    until(lambda: admin("SELECT 1", session_id="one").text == "1\n")


def test_connections_beyond_the_limit_are_told(start: Start) -> None:
    own = start()
    idle = [socket.create_connection(("127.0.0.1", own.port), timeout=5) for _ in range(256)]
    beyond = socket.create_connection(("127.0.0.1", own.port), timeout=5)
    assert beyond.recv(100).startswith(b"HTTP/1.1 503 ")
    for connection in [*idle, beyond]:
        connection.close()
    until(lambda: answers(own))


def answers(own: Own) -> bool:
    try:
        return own.admin("SELECT 1").status == 200
    except (OSError, http.client.HTTPException):
        return False
