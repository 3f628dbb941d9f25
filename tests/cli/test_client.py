"""What commands make of answers: of those that say no, of those that are none, and of nobody there."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import TOKEN, Handler, Reply, Scribe, free_port, problem

from banksman import settings
from banksman.cli import client
from banksman.cli.main import exit_code
from banksman.errors import BanksmanError, InvalidSetting, Refused, Unavailable


def asking(url: str, **more: Any) -> client.Client:
    return client.Client(url, TOKEN, variable="BANKSMAN_URL", **more)


@pytest.fixture
def asks(scribe: Scribe) -> client.Client:
    return asking(scribe.url)


def failure(work: Any) -> BanksmanError:
    with pytest.raises(BanksmanError) as caught:
        work()
    assert TOKEN not in str(caught.value)
    return caught.value


def test_what_is_asked(scribe: Scribe, asks: client.Client) -> None:
    scribe.on["GET /v1/agents/a b/now"] = Reply({"x": 1})
    scribe.on["GET /v1/agents/a%2Fb/now"] = Reply({"x": {"y": 2}})
    answer = asks.get(f"/v1/agents/{client.part('a/b')}/now", {"since": "1 h", "until": None})
    assert answer["x"]["y"] == 2
    (asked,) = scribe.asked
    assert asked.query == "since=1+h"
    assert asked.headers["authorization"] == f"Bearer {TOKEN}"
    scribe.on["POST /v1/agents"] = Reply({}, 201)
    assert asks.post("/v1/agents", {"owner": "ü"}) == {}
    assert scribe.asked[-1].body == {"owner": "ü"}


@pytest.mark.parametrize(
    ("reply", "code", "says"),
    [
        (problem(401, "this token is not known"), 3, "this token is not known (401 Unauthorized)"),
        (problem(403, "this needs the role admin"), 3, "this needs the role admin (403 Forbidden)"),
        (problem(404, "no agent x"), 2, "no agent x (404 Not Found)"),
        (problem(409, "x is enrolled already", field="agent"), 2, "agent: x is enrolled already (409 Conflict)"),
        (problem(422, "is no time", field="since"), 2, "since: is no time (422 Unprocessable Entity)"),
        (problem(429, "too many", retry_after=7), 4, "too many (429 Too Many Requests); try again in 7 s"),
        (problem(503, "no lease", retry_after=1), 4, "no lease (503 Service Unavailable); try again in 1 s"),
        (Reply(b"<html>", 502, "text/html"), 4, "502 Bad Gateway"),
        (Reply(b"{", 500), 4, "500 Internal Server Error"),
        (Reply(b"[1]", 500), 4, "500 Internal Server Error"),
        (Reply(b"", 302, headers={"Location": "https://login.example/"}), 2, "302 Found"),
    ],
)
def test_an_answer_that_says_no(scribe: Scribe, asks: client.Client, reply: Reply, code: int, says: str) -> None:
    scribe.on["GET /v1/status"] = reply
    error = failure(lambda: asks.get("/v1/status"))
    assert isinstance(error, client.Problem)
    assert (str(error), exit_code(error)) == (says, code)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(b"<html>It works!</html>", kind="text/html"),
        Reply(b"{broken"),
        Reply(b"\xff\xfe"),
        Reply(["a list"]),
        Reply(b"null"),
        Reply(b""),
    ],
)
def test_somebody_who_is_no_banksman(scribe: Scribe, asks: client.Client, reply: Reply) -> None:
    scribe.on["GET /v1/status"] = reply
    error = failure(lambda: asks.get("/v1/status"))
    assert isinstance(error, Unavailable)
    assert f"{scribe.url} is no banksman" in str(error)
    assert "BANKSMAN_URL" in str(error)


def test_an_answer_of_another_version(scribe: Scribe, asks: client.Client) -> None:
    scribe.on["GET /v1/agents"] = Reply({"agents": [{"agent": "a"}]})
    error = failure(lambda: asks.get("/v1/agents")["agents"][0]["project"])
    assert exit_code(error) == 4
    assert "'project'" in str(error)


def test_nobody_there() -> None:
    error = failure(lambda: asking(f"http://127.0.0.1:{free_port()}").get("/v1/status"))
    assert isinstance(error, Unavailable)
    assert "nobody answers" in str(error)
    assert "Connection refused" in str(error)


def test_a_name_that_nobody_has() -> None:
    assert "nobody answers" in str(failure(lambda: asking("http://nobody.invalid").get("/v1/status")))


def test_somebody_who_hangs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        error = failure(lambda: asking(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2).get("/v1/status"))
        assert time.monotonic() - began < 5
    assert exit_code(error) == 4
    assert "did not answer in time" in str(error)


def cut(raw: bytes) -> Any:
    """Sends so much of an answer and goes away."""

    def script(handler: Handler) -> None:
        handler.wfile.write(raw)

    return script


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{",
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
        b"SSH-2.0-OpenSSH_9.6\r\n",
    ],
)
def test_an_answer_that_is_cut_off(scribe: Scribe, asks: client.Client, raw: bytes) -> None:
    scribe.on["GET /v1/status"] = cut(raw)
    error = failure(lambda: asks.get("/v1/status"))
    assert isinstance(error, Unavailable)
    assert exit_code(error) == 4


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:7700", "not an http"),
        ("ftp://x", "not an http"),
        ("http://", "not an http"),
        ("http://x:y", "BANKSMAN_URL"),
        ("http://[::1", "BANKSMAN_URL"),
        ("http://ann:hunter2@x", "may not hold a user or password"),
    ],
)
def test_addresses_that_are_none(url: str, says: str) -> None:
    error = failure(lambda: asking(url))
    assert isinstance(error, InvalidSetting)
    assert says in str(error)
    assert "hunter2" not in str(error)


def test_a_path_before_the_calls_of_a_proxied_service(scribe: Scribe) -> None:
    scribe.on["GET /enforcer/v1/status"] = Reply({"ok": 1})
    assert asking(f"{scribe.url}/enforcer/").get("/v1/status") == {"ok": 1}


def test_tls_against_somebody_without_it(scribe: Scribe) -> None:
    error = failure(lambda: asking(scribe.url.replace("http:", "https:"), timeout=5).get("/v1/status"))
    assert isinstance(error, Unavailable)
    error = failure(lambda: asking("https://127.0.0.1:1", ca_file=__file__))
    assert isinstance(error, InvalidSetting)
    assert "BANKSMAN_CA_FILE" in str(error)


def test_a_kept_connection_is_used_again_and_made_again(scribe: Scribe) -> None:
    ports: list[int] = []

    def script(handler: Handler) -> Reply:
        ports.append(handler.client_address[1])
        return Reply({}, headers={"Connection": "close"} if len(ports) == 2 else {})

    scribe.on["GET /x"] = script
    asks = asking(scribe.url, keep=True)
    for _ in range(3):
        asks.get("/x")
    asks.close()
    assert ports[0] == ports[1] != ports[2]


# ── the token ──


def token_in(file: Path) -> client.Token:
    return client.find_token(settings.Client(operator_token_file=str(file)))


def test_where_a_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert token_in(file) == client.Token(TOKEN, str(file))
    both = settings.Client(operator_token=f" {TOKEN} ", operator_token_file="/nowhere")
    assert client.find_token(both) == client.Token(TOKEN, "BANKSMAN_OPERATOR_TOKEN")
    monkeypatch.setenv("BANKSMAN_DATA", str(tmp_path))
    (tmp_path / "admin.token").write_text(TOKEN)
    assert client.find_token(settings.Client()).origin == str(tmp_path / "admin.token")
    assert TOKEN not in repr(token_in(file))


@pytest.mark.parametrize("held", [b"", b" \n", b"\xff\xfe\x00", b"two words", b"line\nbreak", "böse".encode()])
def test_a_file_that_holds_no_token(tmp_path: Path, held: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(held)
    with pytest.raises(Refused) as caught:
        token_in(file)
    assert str(file) in str(caught.value)
    assert exit_code(caught.value) == 3


def test_an_agents_credential_is_no_operators_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("bma_1_secret.more")
    with pytest.raises(Refused, match="agent's credential") as caught:
        token_in(file)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_no_token_at_all(tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match="no operator token"):
        token_in(tmp_path / name)


# ── streams ──


def streamed(*parts: bytes) -> Any:
    def script(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for part in parts:
            handler.wfile.write(part)

    return script


def test_a_stream(scribe: Scribe, asks: client.Client) -> None:
    scribe.on["GET /v1/watch"] = streamed(
        b"retry: 1000\n: watching\n\nid: 7\n\nid: 8\nevent: act",
        b"ion\ndata: {\ndata: }\n\n",
        b"data:x\r\n\r\ndata: cut",
    )
    found: list[client.Message] = []
    with pytest.raises(Unavailable, match="ended the stream"):
        found.extend(asks.stream("/v1/watch", last_id="3"))
    assert found == [
        client.Message("3", "message", ""), client.Message("7", "message", ""),
        client.Message("8", "action", "{\n}"), client.Message("8", "message", "x"),
    ]  # fmt: skip
    assert scribe.asked[0].headers["last-event-id"] == "3"


def test_a_stream_that_falls_silent(scribe: Scribe, asks: client.Client) -> None:
    def script(handler: Handler) -> None:
        streamed(b"data: 1\n\n")(handler)
        handler.connection.settimeout(10)
        assert handler.rfile.read(1) == b""  # until the reader has had enough

    scribe.on["GET /v1/watch"] = script
    messages = asks.stream("/v1/watch", silence=0.3)
    assert next(messages).data == "1"
    with pytest.raises(Unavailable, match="in time"):
        next(messages)


def test_a_stream_that_is_none(scribe: Scribe, asks: client.Client) -> None:
    scribe.on["GET /v1/watch"] = Reply({"not": "a stream"})
    with pytest.raises(Unavailable, match="no banksman"):
        next(asks.stream("/v1/watch"))
