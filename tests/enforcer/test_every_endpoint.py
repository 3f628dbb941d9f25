"""Every call of `/openapi.json` with every wrong token, Host, Origin, method, type, encoding and body: what the contract says,
as problem details, never a 5xx, never a token in the answer.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from typing import Any

import pytest
from tests.enforcer.conftest import PUSH, Answer, Shop, raw_request, until
from tests.exposition import is_documented

from banksman.enforcer.openapi import document
from banksman.topics import Topic

DOCUMENT = document()
AGENT, OPERATOR, ANYONE = "agent", "operator", ""
ACTS = ("revokeAgent", "restoreAgent", "killSession", "pauseProject", "resumeProject")
EVALUATIONS = ("accessEvaluation", "accessEvaluations")
AUTHZEN = (*EVALUATIONS, "requestAccess")
"""Whose protocols have one word, 400, for whatever is wrong with a body."""
ACCESS = {
    "subject": {"type": "agent", "id": "buyer"},
    "action": {"name": "pull"},
    "resource": {"type": "git", "id": "a/b"},
}
BODIES: dict[str, Any] = {
    "decide": PUSH,
    "events": {"kind": "note", "session": "s", "text": "x"},
    "explain": {"agent": "buyer", "service": "git", "action": "pull"},
    "addAgent": {"agent": "never-made", "project": "shop", "owner": "ann"},
    "addOperator": {"name": "never-made", "roles": ["viewer"]},
    "answerApproval": {"verdict": "deny"},
    **{act: {"reason": "never done"} for act in ACTS},
    **dict.fromkeys(EVALUATIONS, ACCESS),
    "requestAccess": ACCESS | {"denial": {"evaluation_id": "none", "expires_at": "2099-01-01T00:00:00Z"}},
}
NOT_FOR_VIEWERS = {"addAgent", "addOperator", "rotateAgent", "answerApproval", "probe", *ACTS}
FOR_BOTH = {"listApprovals", "getApproval"}
"""An agent sees its own."""
NAMED = {"agent": "stranger", "session": "s", "project": "nowhere", "approval": "none", "task": "none"}
LIMITS = {
    "decide": 1 << 20, "explain": 1 << 20, "events": 8 << 20, **dict.fromkeys(AUTHZEN, 1 << 20),
    **dict.fromkeys(("addAgent", "addOperator", "answerApproval", *ACTS), 64 << 10),
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    name: str
    method: str
    path: str
    who: str

    @property
    def body(self) -> Any:
        return BODIES.get(self.name)

    @property
    def wrong(self) -> int:
        """What a wrong field gets."""
        return 400 if self.name in AUTHZEN else 422

    def token(self, shop: Shop) -> str | None:
        """One that may make this call."""
        return {AGENT: shop.desk.agents["buyer"].token, OPERATOR: shop.desk.admin, ANYONE: None}[self.who]

    def __call__(self, shop: Shop, body: Any = ..., **more: Any) -> Answer:
        return shop(self.method, self.path, self.body if body is ... else body, **more)


def operations() -> list[Operation]:
    return [
        Operation(call["operationId"], method.upper(), path.format_map(NAMED),
                  next(iter(call["security"][0]), ANYONE) if call["security"] else ANYONE)
        for path, methods in DOCUMENT["paths"].items()
        for method, call in methods.items()
    ]  # fmt: skip


ALL = pytest.mark.parametrize("operation", operations(), ids=lambda one: one.name)
GUARDED = pytest.mark.parametrize("operation", [one for one in operations() if one.who], ids=lambda one: one.name)
WITH_BODY = pytest.mark.parametrize("operation", [one for one in operations() if one.body], ids=lambda one: one.name)


def problem(answer: Answer, status: int, field: str | None = None, *, secret: str = "") -> None:
    """It is a problem of this status, whole, and holds nothing that it should not."""
    assert answer.status == status, answer.raw
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    told = answer.body
    assert {"type", "title", "status", "detail"} <= set(told)
    assert told["status"] == status
    assert ("www-authenticate" in answer.headers) == (status == 401)
    if field is not None:
        assert told.get("field", "") == field
    assert not secret or secret.encode() not in answer.raw
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "server" not in answer.headers


def test_the_table_knows_every_call() -> None:
    """A new call without a row here would not be looked at."""
    names = {one.name for one in operations()}
    assert names == {
        "decide", "events", "explain", "listAgents", "addAgent", "rotateAgent", "addOperator", "status", "healthz",
        "readyz", "metrics", "openapi", "listApprovals", "getApproval", "answerApproval", "probe", *ACTS,
        *AUTHZEN, "accessRequestTask", "authzenConfiguration",
    }  # fmt: skip
    described = {
        call["operationId"]
        for methods in DOCUMENT["paths"].values()
        for call in methods.values()
        if "requestBody" in call
    }
    assert described == set(BODIES) == set(LIMITS)


# ── tokens ──


@GUARDED
def test_without_a_good_token(shop: Shop, operation: Operation) -> None:
    problem(operation(shop), 401)
    agent, admin = shop.desk.agents["buyer"].token, shop.desk.admin
    wrong = [
        "", "Bearer", "Bearer ", "Bearer x", "Basic dTpw", agent, f"Token {agent}", f"Bearer  {agent[:-1]}",
        f"Bearer {agent}x", f"Bearer {agent} {agent}", f"Bearer {agent}, Bearer {admin}",
        f"Bearer {agent.replace('bma_', 'bmo_')}", f"Bearer {admin.replace('bmo_', 'bma_')}",
        f"Bearer bma_{'0' * 16}_{'x' * 43}", f"Bearer {agent.split('_')[0]}_{agent.split('_')[1]}_", "Bearer \xff\xfe",
        f"Bearer {agent.upper()}", "Bearer " + "x" * 20_000,
    ]  # fmt: skip
    for header in wrong:
        answer = operation(shop, headers={"Authorization": header})
        problem(answer, 401, secret=header[-20:] if len(header) > 40 else "")


@GUARDED
def test_with_the_token_of_somebody_else(shop: Shop, operation: Operation) -> None:
    other = shop.desk.admin if operation.who == AGENT else shop.desk.agents["buyer"].token
    if operation.name in FOR_BOTH:
        assert operation(shop, token=other).status in (200, 404)
    else:
        problem(operation(shop, token=other), 403, secret=other)
    if operation.name in NOT_FOR_VIEWERS:
        problem(operation(shop, token=shop.desk.viewer), 403, secret=shop.desk.viewer)


def test_an_agent_may_not_speak_for_another(shop: Shop) -> None:
    for agent, body in (
        ("seller", {"agent": "buyer"}),
        ("buyer", {"agent": "seller"}),
        ("tester", {"project": "shop"}),
    ):
        token = shop.desk.agents[agent].token
        (field,) = body
        problem(shop("POST", "/v1/events", BODIES["events"] | body, token=token), 403, field)
        problem(shop("POST", "/v1/decide", PUSH | body, token=token), 422, field)


# ── Host, Origin ──


@ALL
def test_foreign_hosts_and_origins(shop: Shop, operation: Operation) -> None:
    port = shop.enforcer.base.rpartition(":")[2]
    token = operation.token(shop)
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "",
        "[::2]",
        "a b",
    ):
        problem(operation(shop, token=token, headers={"Host": host}), 403)
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{int(port) + 1}", "", "file://"):
        problem(operation(shop, token=token, headers={"Origin": origin}), 403)
    for mine in (f"localhost:{port}", "127.0.0.1", f"[::1]:{port}", "LOCALHOST"):
        answer = operation(shop, {"x": 1} if operation.body else None, token=shop.desk.viewer, headers={"Host": mine})
        assert answer.status != 403 or operation.who == AGENT or operation.name in NOT_FOR_VIEWERS
    same = operation(
        shop, {"x": 1} if operation.body else None, token=token,
        headers={"Origin": f"http://127.0.0.1:{port}", "Host": f"127.0.0.1:{port}"},
    )  # fmt: skip
    wanted = {404} if "/none" in operation.path else {200, 429} if operation.name == "probe" else {200}
    assert same.status in ({operation.wrong} if operation.body else wanted), (
        same.raw
    )  # 429: there was a probe a moment ago


def test_the_one_header_that_decides_must_be_there_once(shop: Shop) -> None:
    token = shop.desk.agents["buyer"].token
    head = f"POST /v1/decide HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    body = json.dumps(PUSH)
    encodings = "Content-Encoding: gzip\r\nContent-Encoding: br"
    for twice in ("Host: evil", f"Authorization: Bearer {token}", "Content-Type: text/plain", encodings):
        sent = f"{head}{twice}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        answer = raw_request(shop.enforcer.base, sent)
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert b"is there twice" in answer


# ── methods, addresses ──


@ALL
def test_other_methods(shop: Shop, operation: Operation) -> None:
    there = {one.method for one in operations() if one.path == operation.path}
    there |= {"HEAD"} if "GET" in there else set()
    token = operation.token(shop) if operation.who == AGENT else shop.desk.viewer
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        answer = shop(method, operation.path, token=token)
        if method not in there:
            assert answer.status == 405, (method, answer.raw)
            assert set(answer.headers["allow"].split(", ")) == there
            if method != "HEAD":
                problem(answer, 405)
        elif method == "HEAD":
            assert (answer.status, answer.raw) == (404 if "/none" in operation.path else 200, b"")


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/decide/", "//v1/decide", "/v1/Decide", "/v1/decide%00", "/v1/decide;x", "/v1/agents/", "/.git/config",
     "/v1/agents/a/b/rotate", "/v1/agents/../status", "/%2e%2e/etc/passwd", "/v1/agents/%2Fx/rotate",
     "/\u00e4".encode().decode("latin-1")],
)  # fmt: skip
def test_there_is_nothing_else(shop: Shop, path: str) -> None:
    for method in ("GET", "POST"):
        answer = raw_request(
            shop.enforcer.base,
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {shop.desk.admin}\r\n"
            "Content-Length: 0\r\nConnection: close\r\n\r\n".encode("latin-1"),
        )
        assert answer.split(b" ", 2)[1] in (b"404", b"400", b"405"), answer
        assert b"application/problem+json" in answer


# ── bodies ──


@WITH_BODY
def test_types_and_encodings(shop: Shop, operation: Operation) -> None:
    token = operation.token(shop)
    raw = json.dumps({"x": 1}).encode()
    types = [
        "text/plain",
        "",
        "application/jsonx",
        "application/json; charset=latin-1",
        "multipart/form-data; boundary=x",
    ]
    for kind in [*types, *(() if operation.name == "events" else ("application/x-ndjson",))]:
        wrong = 400 if operation.name in AUTHZEN else 415
        problem(operation(shop, raw, token=token, headers={"Content-Type": kind}), wrong)
    for kind in ("application/json; charset=utf-8", 'APPLICATION/JSON ;charset="UTF-8"', "application/json;"):
        problem(operation(shop, raw, token=token, headers={"Content-Type": kind}), operation.wrong)
    for encoding in ("br", "zstd", "gzip, gzip", "x"):
        problem(operation(shop, raw, token=token, headers={"Content-Encoding": encoding}), 415)
    for encoding in ("gzip", "deflate"):
        problem(operation(shop, raw, token=token, headers={"Content-Encoding": encoding}), 400)
        packed = gzip.compress(raw) if encoding == "gzip" else zlib.compress(raw)
        problem(operation(shop, packed, token=token, headers={"Content-Encoding": encoding}), operation.wrong)
        problem(operation(shop, packed[:-1], token=token, headers={"Content-Encoding": encoding}), 400)
        problem(operation(shop, packed + b"x", token=token, headers={"Content-Encoding": encoding}), 400)
    problem(operation(shop, raw, token=token, headers={"Content-Encoding": "identity"}), operation.wrong)
    members = gzip.compress(raw[:4]) + gzip.compress(raw[4:])
    problem(operation(shop, members, token=token, headers={"Content-Encoding": "gzip"}), operation.wrong)
    problem(operation(shop, gzip.compress(b"") * 1000, token=token, headers={"Content-Encoding": "gzip"}), 400)


@WITH_BODY
def test_what_is_too_large(shop: Shop, operation: Operation) -> None:
    """Also when it says that it is small, when it does not say, and when it only becomes large unpacked."""
    token, limit = operation.token(shop), LIMITS[operation.name]
    problem(operation(shop, b" " * (limit + 1), token=token), 413)
    problem(operation(shop, b" " * limit, token=token), 400)
    # The bomb is half a MiB on the wire and half a GiB unpacked.
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(64)) + packer.flush()
    assert len(bomb) < 128 << 10
    problem(operation(shop, bomb, token=token, headers={"Content-Encoding": "gzip"}), 413)
    deflated = zlib.compress(b" " * (64 << 20), 9)
    problem(operation(shop, deflated, token=token, headers={"Content-Encoding": "deflate"}), 413)
    chunk = b"%x\r\n%b\r\n" % (65536, b" " * 65536)
    head = (
        f"POST {operation.path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    answer = raw_request(shop.enforcer.base, head.encode() + chunk * (limit // 65536 + 1) + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 "), answer


VALID_FIELD = {
    "decide": "reason", "events": "text", "explain": "reason", "addAgent": "owner", "addOperator": "name",
    "answerApproval": "comment", **dict.fromkeys(ACTS, "reason"), **dict.fromkeys(AUTHZEN, "unheard_of"),
}  # fmt: skip


@WITH_BODY
def test_what_is_no_json_of_ours(shop: Shop, operation: Operation) -> None:
    token = operation.token(shop)
    good = json.dumps(operation.body)[:-1]
    name = VALID_FIELD[operation.name]
    deep = "[" * 5000 + "]" * 5000
    for raw in (
        "", " ", "{", "}", "nonsense", "{'a': 1}", good, good + ",}", good + "}}", good + "} {}", good + "}\x00", "\ufeff{}",
        good + ', "x": NaN}', good + ', "x": Infinity}', good + ', "x": -Infinity}', good + ', "x": 1e999}',
        good + ', "x": 01}',
        good + ', "x": 9007199254740992}', good + ', "x": -9007199254740992}', good + ', "x": ' + "9" * 5000 + "}",
        good + f', "{name}": "a", "{name}": "b"}}', good + ', "x": {"a": 1, "\\u0061": 2}}', good + ', "x": "\\ud800"}',
        good + ', "x": "\\udc00\\ud800"}', good + f', "x": {deep}}}', good + ', "x": ' + '{"a":' * 40 + "1" + "}" * 41,
        good + ', "x": "\t"}', good + ', "x": "\\x41"}', "/*" + good + "*/}", deep,
    ):  # fmt: skip
        answer = operation(shop, raw.encode(), token=token)
        assert answer.status in (400, 422), (raw[:100], answer.raw)
        problem(answer, answer.status)
        assert len(answer.raw) < 10_000
    for raw_bytes in (
        b"\xff",
        b"\x00",
        b'{"a": "\xc3"}',
        b'{"\xed\xa0\x80": 1}',
        "{}".encode("utf-16"),
        b"\x1f\x8b\x08",
    ):
        answer = operation(shop, raw_bytes, token=token)
        assert answer.status == 400, (raw_bytes, answer.raw)
    values: list[Any] = [None, True, 1, 1.5, "x", [None], [[]], [True]]
    for value in values:
        answer = operation(shop, json.dumps(value).encode(), token=token)
        assert answer.status == operation.wrong, (value, answer.raw)


@WITH_BODY
def test_unknown_fields(shop: Shop, operation: Operation) -> None:
    """Events keep what they do not know, AuthZEN wants it ignored; a question, an explanation and an enrolment must be
    understood whole.
    """
    answer = operation(shop, operation.body | {"unheard_of": {"a": [1]}}, token=operation.token(shop))
    if operation.name in ("events", *EVALUATIONS):
        assert answer.status == 200
    elif operation.name == "requestAccess":
        problem(answer, 400, "denial.evaluation_id")  # as without it: this one is about no denial of ours
    else:
        problem(answer, 422, "unheard_of")


@WITH_BODY
@pytest.mark.parametrize("wrong", [None, 1, True, [], {}, "", "a b", "\x00", "é" * 200, "x" * 5000])
def test_every_field_of_every_wrong_type(shop: Shop, operation: Operation, wrong: Any) -> None:
    for field in operation.body:
        answer = operation(shop, operation.body | {field: wrong}, token=operation.token(shop))
        assert answer.status < 500, answer.raw
        if isinstance(wrong, (int, list, dict, type(None))):
            if wrong is None and field in ("resource", "branch") and operation.name not in AUTHZEN:
                assert answer.status == 200
            else:
                problem(answer, operation.wrong)
                assert answer.body["field"].startswith(field)


def test_what_anyone_on_the_inside_may_see(shop: Shop) -> None:
    assert shop("GET", "/healthz").body == {"status": "ok"}
    assert shop("GET", "/readyz").body == {"status": "ready"}
    metrics = shop("GET", "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    for name in (
        "answers_total",
        "problems_total",
        "decision_seconds_bucket",
        "lease_seconds",
        "undelivered",
        "replicas",
    ):
        assert f"banksman_enforcer_{name}".encode() in metrics.raw
    for text in (b"buyer", b"shop", b"root"):
        assert text not in metrics.raw
    is_documented(shop.enforcer.base, "enforcer")


def test_a_probe_is_on_record_and_one_at_a_time_is_enough(shop: Shop) -> None:
    answers = until(lambda: (told := [shop("POST", "/v1/probe", token=shop.desk.admin) for _ in range(2)]) and (
        told if told[0].status == 200 else None
    ))  # fmt: skip
    assert [answer.status for answer in answers] == [200, 429]
    assert answers[1].headers["retry-after"] == "5"
    probe = answers[0].body
    (found,) = shop.tape.wait(Topic.ALERTS, lambda one: one.get("id") == probe["id"])
    assert (found["_offset"], found["severity"], found["detector"]) == (probe["offset"], "info", "probe")


def test_problems_are_counted(shop: Shop) -> None:
    def count(status: int) -> float:
        lines = shop("GET", "/metrics").raw.decode().splitlines()
        found = [line for line in lines if line.startswith(f'banksman_enforcer_problems_total{{status="{status}"}}')]
        return float(found[0].split()[1]) if found else 0.0

    before = count(401), count(404), count(422)
    shop("POST", "/v1/decide", PUSH)
    shop("GET", "/v1/status")
    shop("GET", "/nowhere")
    shop.decide({"session": 1})
    assert (count(401), count(404), count(422)) == (before[0] + 2, before[1] + 1, before[2] + 1)
