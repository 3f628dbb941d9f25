"""The read side as a service: who may ask, what it says when others are away, the stream, SQL, its schema."""

from __future__ import annotations

import http.client
import json
import signal
import time
from typing import Any

import pytest
from tests.console.conftest import Stand
from tests.enforcer.conftest import until
from tests.exposition import is_documented
from tests.servers import Broker, ClickHouseServer, freeze

from banksman.events import Finding
from banksman.stamps import rfc3339, uuid7
from banksman.store.client import Store
from banksman.topics import Topic

GETS = (
    "/v1/agents", "/v1/agents/buyer/now", "/v1/sessions", "/v1/sessions/s1", "/v1/watch", "/v1/findings",
    "/v1/status", "/openapi.json",
)  # fmt: skip


@pytest.mark.parametrize("path", GETS)
def test_tokens_hosts_and_origins(stand: Stand, path: str) -> None:
    token = stand.desk.viewer
    assert stand("GET", path).status == 401
    assert stand("GET", path, token="bmo_0123_wrong").status == 401
    assert stand("GET", path, token=token[:-1] + ("a" if token[-1] != "a" else "b")).status == 401
    assert stand("GET", path, token=stand.desk.agents["buyer"].token).status == 403
    assert stand("GET", path, token=token, headers={"Host": "evil.example"}).status == 403
    assert stand("GET", path, token=token, headers={"Origin": "https://evil.example"}).status == 403
    assert stand("DELETE", path, token=token).status == 405


def test_tables_from_before_a_migration_are_named_as_what_is_wrong(stand: Stand) -> None:
    """A service that was upgraded before `banksman migrate` was run."""
    call = stand.action("tool.call", "buyer", "s-older", service="git", action="pull")
    stand.publish(call, stand.decision(call))
    table = f"`{stand.archive.clickhouse.clickhouse_database}`.events"
    store = Store(stand.archive.clickhouse, reader=False)
    try:
        store.command(f"ALTER TABLE {table} DROP COLUMN subject")
        answer = stand("GET", "/v1/sessions/s-older", token=stand.desk.viewer)
        assert answer.status == 503
        assert "run `banksman migrate`" in answer.body["detail"]
    finally:
        store.command(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS subject String AFTER owner")
        store.close()
    stand.get("/v1/sessions/s-older")


def test_what_needs_no_token_says_nothing(stand: Stand) -> None:
    assert stand("GET", "/healthz").body == {"status": "ok"}
    assert stand("GET", "/readyz").status == 200
    text = stand("GET", "/metrics").raw.decode()
    assert 'banksman_console_requests_total{path="/healthz",status="200"}' in text
    stand.get("/v1/agents/a-name-that-is-a-secret/now", 404)
    assert "a-name-that-is-a-secret" not in stand("GET", "/metrics").raw.decode()
    is_documented(stand.base, "console")


def test_every_call_is_in_the_schema(stand: Stand) -> None:
    paths = stand.get("/openapi.json")["paths"]
    assert {path.replace("buyer", "{agent}").replace("s1", "{session}") for path in GETS} <= set(paths)
    assert "post" in paths["/v1/sql"]


def test_status(stand: Stand) -> None:
    stand.publish(stand.action("note", "buyer", "st", text="x"))
    told = until(lambda: (s := stand.get("/v1/status")) and s["archiver"]["lag"] == 0 and s)
    assert (told["ready"], told["clickhouse"]["reachable"], told["kafka"]["reachable"]) == (True, True, True)
    assert {one["topic"] for one in told["archiver"]["partitions"]} == {topic.value for topic in Topic} - {"dead"}
    assert told["kafka"]["control"]["refused"] == 0
    assert told["agents"] == len(stand.desk.agents)


def test_findings(stand: Stand) -> None:
    found = Finding(
        v=1, id=uuid7(), time=rfc3339(), source="test", detector="forged", severity="page", title="somebody lies",
        fingerprint="forged/x", agent="buyer", project="shop", evidence={"record": "actions/0/1"},
    )  # fmt: skip
    stand.desk.write(found, topic=Topic.ALERTS)
    (told,) = until(lambda: stand.get("/v1/findings?detector=forged&agent=buyer")["findings"])
    assert (told["id"], told["severity"], told["title"]) == (found.id, "page", "somebody lies")
    assert told["evidence"] == {"record": "actions/0/1"}
    assert stand.get("/v1/findings?severity=info&detector=forged")["findings"] == []
    stand.get("/v1/findings?severity=loud", 422)


# ── watching ──


class Stream:
    """A reader of server-sent events."""

    def __init__(self, stand: Stand, query: str = "", last: str = "") -> None:
        host, port = stand.base.removeprefix("http://").split(":")
        self.connection = http.client.HTTPConnection(host, int(port), timeout=20)
        headers = {"Authorization": f"Bearer {stand.desk.viewer}"} | ({"Last-Event-ID": last} if last else {})
        self.connection.request("GET", f"/v1/watch{query}", headers=headers)
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200, self.answer.read()
        self.last = last
        retry, *id_, comment = self._block()
        assert (retry, comment) == ("retry: 1000", ": watching")
        if not last:
            (self.last,) = (line.removeprefix("id: ") for line in id_)

    def _block(self) -> list[str]:
        lines = []
        while line := self.answer.readline().decode().rstrip("\n"):
            lines.append(line)
        return lines

    def next(self) -> dict[str, Any]:
        while True:
            lines = self._block()
            assert lines, "the stream ended"
            if not lines[0].startswith(":"):
                break
        fields = dict(line.split(": ", 1) for line in lines)
        self.last = fields.get("id", self.last)
        return {"event": fields["event"], **json.loads(fields["data"])}

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


def test_a_watcher_sees_everything_once_also_after_coming_back(stand: Stand) -> None:
    stand.publish(stand.action("note", "seen", "before", text="before"))
    stream = Stream(stand, "?agent=seen")
    stand.publish(*(stand.action("note", "seen", "w", text=str(n)) for n in range(3)))
    stand.publish(stand.action("note", "unseen", "w", text="another agent"))
    assert [stream.next()["text"] for _ in range(3)] == ["0", "1", "2"]
    last = stream.last
    stream.close()
    stand.publish(*(stand.action("note", "seen", "w", text=str(n)) for n in range(3, 6)))
    again = Stream(stand, "?agent=seen", last)
    stand.publish(stand.action("note", "seen", "w", text="6", args={"big": "x" * 20_000}))
    told = [again.next() for _ in range(4)]
    again.close()
    assert [one["text"] for one in told] == ["3", "4", "5", "6"]
    assert (told[3]["args"], told[3]["cut"]) == (None, True)
    assert stand("GET", "/v1/watch", token=stand.desk.viewer, headers={"Last-Event-ID": "; DROP"}).status == 422


def test_a_watcher_that_is_cut_before_anything_happened_misses_nothing(stand: Stand) -> None:
    stand.publish(stand.action("note", "early", "w", text="before"))
    stream = Stream(stand, "?agent=early")
    stream.close()
    stand.publish(stand.action("note", "early", "w", text="meanwhile"))
    again = Stream(stand, "?agent=early", stream.last)
    assert again.next()["text"] == "meanwhile"
    again.close()


def test_a_watcher_goes_on_over_a_restart_of_the_read_side(stand: Stand) -> None:
    stream = Stream(stand, "?agent=patient")
    stand.publish(stand.action("note", "patient", "w", text="1"))
    assert stream.next()["text"] == "1"
    last = stream.last
    stand.stop()
    stream.close()
    stand.publish(stand.action("note", "patient", "w", text="2"))
    stand.start()
    again = Stream(stand, "?agent=patient", last)
    assert again.next()["text"] == "2"
    again.close()


# ── SQL ──


def sql(stand: Stand, query: str, **more: Any) -> Any:
    return stand("POST", "/v1/sql", {"query": query, **more}, token=stand.desk.viewer)


def test_analysts_sql(stand: Stand) -> None:
    stand.publish(stand.action("note", "counted", "c1", text="x"))
    told = sql(
        stand,
        "-- how many?\nSELECT agent, count() AS n FROM events WHERE agent = {a:String} GROUP BY agent;",
        parameters={"a": "counted"},
    )
    assert told.status == 200, told.raw
    assert told.body["columns"] == [
        {"name": "agent", "type": "LowCardinality(String)"},
        {"name": "n", "type": "UInt64"},
    ]
    assert told.body["rows"] == [["counted", "1"]]
    assert sql(stand, "SELECT 1 AS a, 'x,y' AS b", format="csv").raw == b'"a","b"\n1,"x,y"\n'
    assert sql(stand, "SELECT 1 AS a", format="ndjson").raw == b'{"a":1}\n'
    assert sql(stand, "SELECT * FROM session_steps(agent = 'counted', session = 'c1')").status == 200


@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO events SELECT * FROM events", "DROP TABLE events",
        "CREATE TABLE x (a Int8) ENGINE = Memory", "SET max_execution_time = 0",
        "SELECT * FROM file('/etc/passwd', 'LineAsString')", "SELECT * FROM url('http://127.0.0.1/', 'LineAsString')",
        "SELECT 1 INTO OUTFILE '/tmp/x'", "SELECT nothing FROM events", "SELECT 1; SELECT 2",
        "", "SELECT", "SELECT 1 FORMAT JSON",
        "SELECT 1 SETTINGS readonly = 0",
    ],
)  # fmt: skip
def test_what_sql_may_not_do(stand: Stand, query: str) -> None:
    told = sql(stand, query)
    assert told.status == 422, told.raw
    assert "Traceback" not in told.raw.decode()


def test_limits_of_sql(stand: Stand) -> None:
    slow = sql(stand, "SELECT sum(sleepEachRow(0.01)) FROM numbers(100000) SETTINGS max_block_size = 1")
    assert slow.status == 422
    many = sql(stand, "SELECT number FROM numbers(2000)")
    assert (many.status, many.body["too_much"]) == (422, True)
    for body in (b"{", b'{"query": 1}', b'{"query": "SELECT 1", "x": 1}', b'{"query": "a", "query": "b"}'):
        answer = stand("POST", "/v1/sql", body, token=stand.desk.viewer, headers={"Content-Type": "application/json"})
        assert answer.status in (400, 422)


# ── others are away ──


@pytest.mark.slow
def test_clickhouse_frozen_killed_and_back(stand: Stand, clickhouse_server: ClickHouseServer) -> None:
    assert clickhouse_server.process is not None
    freeze(clickhouse_server.process.pid)
    try:
        began = time.monotonic()
        assert stand("GET", "/v1/sessions", token=stand.desk.viewer, timeout=30).status == 503
        assert time.monotonic() - began < 15
        assert stand("GET", "/healthz").status == 200
    finally:
        clickhouse_server.process.send_signal(signal.SIGCONT)
    clickhouse_server.kill()
    try:
        answer = until(
            lambda: (a := stand("GET", "/v1/sessions", token=stand.desk.viewer, timeout=30)).status == 503 and a
        )
        assert "ClickHouse is away" in answer.body["detail"]
        assert "retry-after" in answer.headers
        told = stand.get("/v1/status", timeout=30)
        assert (told["clickhouse"]["reachable"], told["kafka"]["reachable"]) == (False, True)
    finally:
        clickhouse_server.start()
    until(lambda: stand("GET", "/v1/sessions", token=stand.desk.viewer).status == 200, 30)


@pytest.mark.slow
def test_kafka_away_and_back(stand: Stand, broker: Broker) -> None:
    broker.kill()
    try:
        told = until(lambda: (s := stand.get("/v1/status")) and not s["kafka"]["reachable"] and s, 30)
        assert told["archiver"] is None
        assert stand("GET", "/v1/sessions", token=stand.desk.viewer).status == 200
        assert stand("GET", "/v1/sessions", token="bmo_0123456789abcdef_unknown").status == 503
    finally:
        broker.start()
    until(lambda: stand.get("/v1/status")["kafka"]["reachable"], 60)
    until(lambda: stand("GET", "/v1/sessions", token="bmo_0123456789abcdef_unknown").status == 401, 30)


def test_it_is_stopped_at_once_while_somebody_watches(stand: Stand) -> None:
    stream = Stream(stand)
    began = time.monotonic()
    stand.stop()
    assert time.monotonic() - began < 10
    stream.close()
    stand.start()
