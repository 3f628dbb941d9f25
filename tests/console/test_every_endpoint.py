"""Every call of the read side's `/openapi.json` with every wrong token, Host, Origin, method, parameter, type, encoding and
body: what the contract says, as problem details, never a 5xx, never a token in the answer.
"""

from __future__ import annotations

import gzip
import json
import urllib.parse
import zlib
from dataclasses import dataclass
from typing import Any

import pytest
from tests.console.conftest import Stand
from tests.enforcer.conftest import Answer, raw_request
from tests.enforcer.test_every_endpoint import problem

from banksman.console.openapi import document
from banksman.console.sql import MAX_BODY

DOCUMENT = document()
SQL = {"query": "SELECT 1 AS a"}
STREAM = "/v1/watch"
"""Answers a good request for as long as somebody listens: only bad ones are sent here."""


@dataclass(frozen=True)
class Operation:
    method: str
    template: str
    guarded: bool
    parameters: tuple[str, ...]

    @property
    def path(self) -> str:
        return self.template.replace("{agent}", "buyer").replace("{session}", "s1")

    @property
    def body(self) -> Any:
        return SQL if self.method == "POST" else None

    def __call__(self, stand: Stand, **more: Any) -> Answer:
        return stand(self.method, self.path, more.pop("body", self.body), **more)


def operations() -> list[Operation]:
    return [
        Operation(
            method.upper(), path, call.get("security") != [],
            tuple(one["name"] for one in call.get("parameters", ()) if one["in"] == "query"),
        )
        for path, methods in DOCUMENT["paths"].items()
        for method, call in methods.items()
    ]  # fmt: skip


EVERY = operations()
ALL = pytest.mark.parametrize("operation", EVERY, ids=lambda one: one.template)
GUARDED = pytest.mark.parametrize("operation", [one for one in EVERY if one.guarded], ids=lambda one: one.template)
STRICT = pytest.mark.parametrize(
    "operation",
    [one for one in EVERY if one.method == "GET" and one.template.startswith("/v1/")],
    ids=lambda one: one.template,
)


def test_the_table_knows_every_call() -> None:
    assert {(one.method, one.template, one.guarded) for one in EVERY} == {
        ("GET", "/v1/agents", True), ("GET", "/v1/agents/{agent}/now", True), ("GET", "/v1/sessions", True),
        ("GET", "/v1/sessions/{session}", True), ("GET", STREAM, True), ("GET", "/v1/findings", True),
        ("GET", "/v1/status", True), ("POST", "/v1/sql", True), ("GET", "/openapi.json", True),
        ("GET", "/healthz", False), ("GET", "/readyz", False), ("GET", "/metrics", False),
    }  # fmt: skip


# ── tokens ──


@GUARDED
def test_without_a_good_token(stand: Stand, operation: Operation) -> None:
    problem(operation(stand), 401)
    good, agent = stand.desk.viewer, stand.desk.agents["buyer"].token
    wrong = [
        "", "Bearer", "Bearer ", "Bearer x", "Basic dTpw", good, f"Token {good}", f"Bearer {good}x", f"Bearer {good[:-1]}",
        f"Bearer {good} {good}", f"Bearer {good}, Bearer {agent}", f"Bearer {good.replace('bmo_', 'bma_')}",
        f"Bearer {agent.replace('bma_', 'bmo_')}", f"Bearer bmo_{'0' * 16}_{'x' * 43}", "Bearer \xff\xfe",
        f"Bearer {good.upper()}", "Bearer " + "x" * 20_000,
    ]  # fmt: skip
    for header in wrong:
        answer = operation(stand, headers={"Authorization": header})
        problem(answer, 401, secret=header[-20:] if len(header) > 40 else "")


@GUARDED
def test_an_agent_may_not_ask(stand: Stand, operation: Operation) -> None:
    """Neither another agent, nor about itself; and a token in the address is none."""
    for name in ("buyer", "seller"):
        token = stand.desk.agents[name].token
        problem(operation(stand, token=token), 403, secret=token)
    token = stand.desk.viewer
    problem(
        stand(operation.method, f"{operation.path}?access_token={token}&token={token}", operation.body),
        401,
        secret=token,
    )


# ── Host, Origin ──


@ALL
def test_foreign_hosts_and_origins(stand: Stand, operation: Operation) -> None:
    port = int(stand.base.rpartition(":")[2])
    token = stand.desk.viewer
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "", "a b"):
        problem(operation(stand, token=token, headers={"Host": host}), 403)
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{port + 1}", "", "file://"):
        problem(operation(stand, token=token, headers={"Origin": origin}), 403)
    if operation.template != STREAM:
        for mine in ({"Host": f"localhost:{port}"}, {"Host": "[::1]"}, {"Origin": f"http://127.0.0.1:{port}"}):
            assert operation(stand, token=token, headers=mine).status in (200, 404)


@ALL
def test_the_one_header_that_decides_must_be_there_once(stand: Stand, operation: Operation) -> None:
    head = f"{operation.method} {operation.path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {stand.desk.viewer}\r\n"
    for twice in ("Host: evil", "Authorization: Bearer x"):
        answer = raw_request(stand.base, f"{head}{twice}\r\nContent-Length: 0\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert b"is there twice" in answer


# ── methods, addresses, parameters ──


@ALL
def test_other_methods(stand: Stand, operation: Operation) -> None:
    there = {"POST"} if operation.method == "POST" else {"GET", "HEAD"}
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        if method not in there:
            answer = stand(method, operation.path, token=stand.desk.viewer)
            assert answer.status == 405, (method, answer.raw)
            assert set(answer.headers["allow"].split(", ")) == there


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/agents/", "/v1/agents/buyer", "/v1/agents/buyer/now/", "/v1/agents/a/b/now", "/v1/Sessions",
     "/v1/sessions/", "//v1/sessions", "/v1/sessions/a/b", "/v1/sql/x", "/.git/config", "/%2e%2e/etc/passwd",
     "/v1/agents//now"],
)  # fmt: skip
def test_there_is_nothing_else(stand: Stand, path: str) -> None:
    for method in ("GET", "POST"):
        problem(stand(method, path, token=stand.desk.viewer), 404)


@pytest.mark.parametrize(
    "text", ["a b", "%00", "..", "é", "x" * 129, "'; DROP TABLE events --", "{a:String}", "\U0001f600", "%25"]
)
def test_names_that_are_none(stand: Stand, text: str) -> None:
    quoted = urllib.parse.quote(text, safe="%")
    problem(stand("GET", f"/v1/agents/{quoted}/now", token=stand.desk.viewer), 404)
    problem(stand("GET", f"/v1/sessions/{quoted}", token=stand.desk.viewer), 404)
    for raw in (b"\xff\xfe", b"%ff%fe", b"%ed%a0%80"):
        for path in (b"/v1/agents/" + raw + b"/now", b"/v1/sessions/" + raw, b"/v1/sessions?agent=" + raw):
            sent = (
                b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + stand.desk.viewer.encode()
            )
            answer = raw_request(stand.base, sent + b"\r\nConnection: close\r\n\r\n")
            assert answer.split(b" ", 2)[1] in (b"400", b"404", b"422"), (path, answer)


WRONG_VALUES = {
    "agent": ["a b", "é", "x" * 129, "'"], "project": ["a b", "\x00", "../x"], "session": ["a b", "%"],
    "since": ["yesterday", "2026-11-24", "1", "-1h", "1e9s", "99999999999d", "2026-13-01T00:00:00Z", "9999999d1"],
    "until": ["tomorrow", "0000-01-01T00:00:00Z"], "limit": ["0", "-1", "1.5", "x", "1e3", "99999999999999999999", "\u0661"],
    "cursor": ["x", "....", "1.1.1", "999999999999999999.1.123456789012", "W10", "\x00", "%%%"], "replay": ["a b", "**"],
    "severity": ["loud", "PAGE"], "raw": ["2", "yes"], "last_event_id": ["x", "1.2", "; DROP", "-1", "\x00"],
    "detector": [],
}  # fmt: skip


@STRICT
def test_parameters(stand: Stand, operation: Operation) -> None:
    """Wrong, unknown, empty, twice: each is a 422 that names it, whether or not what is asked for is there."""

    def asked(*pairs: tuple[str, str]) -> Answer:
        return stand("GET", f"{operation.path}?{urllib.parse.urlencode(pairs)}", token=stand.desk.viewer)

    problem(asked(("unheard_of", "1")), 422, "unheard_of")
    problem(asked(("é'\"<script>", "1")), 422)
    for name in operation.parameters:
        problem(asked((name, "")), 422, name)
        problem(asked((name, "1"), (name, "1")), 422, name)
        for value in WRONG_VALUES[name]:
            problem(asked((name, value)), 422, "Last-Event-ID" if name == "last_event_id" else name)
    for name in WRONG_VALUES.keys() - set(operation.parameters):
        problem(asked((name, "1")), 422, name)


def test_a_long_query_is_refused_by_its_length(stand: Stand) -> None:
    answer = raw_request(
        stand.base,
        f"GET /v1/sessions?agent={'x' * 70_000} HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {stand.desk.viewer}\r\nConnection: close\r\n\r\n".encode(),
    )
    assert answer.startswith(b"HTTP/1.1 431 "), answer[:200]


# ── the one body ──


def sql(stand: Stand, body: Any, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return stand("POST", "/v1/sql", body, token=stand.desk.viewer, headers=named)


def test_types_and_encodings(stand: Stand) -> None:
    raw, wrong = json.dumps(SQL).encode(), json.dumps({"x": 1}).encode()
    for kind in ("text/plain", "", "application/jsonx", "application/json; charset=latin-1", "application/x-ndjson"):
        problem(sql(stand, raw, Content_Type=kind), 415, "" if "charset" in kind else "Content-Type")
    assert sql(stand, raw, Content_Type='APPLICATION/JSON ;charset="UTF-8"').status == 200
    for encoding in ("br", "zstd", "gzip, gzip", "x"):
        problem(sql(stand, raw, Content_Encoding=encoding), 415)
    for encoding, packed in (("gzip", gzip.compress(raw)), ("deflate", zlib.compress(raw))):
        assert sql(stand, packed, Content_Encoding=encoding).status == 200
        problem(sql(stand, packed[:-1], Content_Encoding=encoding), 400)
        problem(sql(stand, packed + b"x", Content_Encoding=encoding), 400)
        problem(sql(stand, raw, Content_Encoding=encoding), 400)
    problem(sql(stand, gzip.compress(wrong), Content_Encoding="gzip"), 422)
    problem(sql(stand, gzip.compress(b"") * 1000, Content_Encoding="gzip"), 400)


def test_what_is_too_large(stand: Stand) -> None:
    problem(sql(stand, b" " * (MAX_BODY + 1)), 413)
    problem(sql(stand, b" " * MAX_BODY), 400)
    problem(sql(stand, zlib.compress(b" " * (64 << 20), 9), Content_Encoding="deflate"), 413)
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(64)) + packer.flush()
    assert len(bomb) < 128 << 10
    problem(sql(stand, bomb, Content_Encoding="gzip"), 413)


def test_what_is_no_json_of_ours(stand: Stand) -> None:
    good, deep = json.dumps(SQL)[:-1], "[" * 5000 + "]" * 5000
    for raw in (
        "", " ", "{", "}", "nonsense", "{'a': 1}", good, good + ",}", good + "}}", good + "} {}", good + "}\x00", "\ufeff{}",
        good + ', "x": NaN}', good + ', "x": 1e999}', good + ', "x": 9007199254740992}', good + ', "x": ' + "9" * 5000 + "}",
        good + ', "query": "SELECT 2"}', good + ', "parameters": {"a": 1, "\\u0061": 2}}', good + ', "x": "\\ud800"}',
        good + f', "parameters": {{"a": {deep}}}}}', good + ', "x": "\t"}', deep, '{"query": ' + '{"a":' * 40 + "1" + "}" * 41,
    ):  # fmt: skip
        problem(sql(stand, raw.encode()), 400)
    for raw_bytes in (
        b"\xff",
        b"\x00",
        b'{"query": "\xc3"}',
        b'{"\xed\xa0\x80": 1}',
        "{}".encode("utf-16"),
        b"\x1f\x8b\x08",
    ):
        problem(sql(stand, raw_bytes), 400)
    values: list[Any] = [None, True, 1, "x", [], [SQL], {}]
    for value in values:
        problem(sql(stand, json.dumps(value).encode()), 422)


@pytest.mark.parametrize("wrong", [None, 1, True, [], "", "x", {"a": {"b": 1}}])
def test_every_field_of_every_wrong_type(stand: Stand, wrong: Any) -> None:
    problem(sql(stand, SQL | {"unheard_of": wrong}), 422, "unheard_of")
    for field in ("query", "format", "parameters"):
        problem(sql(stand, SQL | {field: wrong}), 422)


def test_values_that_clickhouse_must_not_choke_on(stand: Stand) -> None:
    """Parameters are bound by the server: whatever they hold, they are values, and what does not fit is told."""
    for value, status in (
        ("'; DROP TABLE events; --", 200), ("\x00\\'\n\t", 200), ("\U0001f600", 200), ("x" * 200_000, 200),
    ):  # fmt: skip
        answer = sql(stand, {"query": "SELECT {a:String} AS a", "parameters": {"a": value}})
        assert answer.status == status, answer.raw[:500]
        assert answer.body["rows"] == [[value]]
    for query, parameters in (
        ("SELECT {a:String}", {}), ("SELECT {a:UInt8}", {"a": -1}), ("SELECT {a:UInt8}", {"a": [1, [2]]}),
        ("SELECT {a:Nothing}", {"a": 1}), ("SELECT {", {}), ("SELECT '" + "x" * 500_000, {}), ("SELECT \x00", {}),
        ("SELECT " + "(" * 5000 + "1" + ")" * 5000, {}), ("SELECT 1 AS a, 2 AS a WHERE \ufffd", {}),
        ("SELECT {a b:String}", {"a b": "x"}), ("SELECT {:String}", {"": "x"}), ("(" * 100, {}),
    ):  # fmt: skip
        answer = sql(stand, {"query": query, "parameters": parameters})
        problem(answer, 422)
        assert len(answer.raw) < 20_000
    assert sql(stand, SQL).status == 200
