"""A head that is known without a parser means what the parser would have said: held against the parser itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from banksman.http_shortcuts import MAX_DIRECT_BYTES, MAX_KNOWN_HEAD, MOST_KNOWN_HEADS, Exchange, Shortcuts

PLAIN = ("POST /v1/decide HTTP/1.1", "Host: localhost", "Authorization: Bearer x", "Content-Length: {}")


@dataclass
class Message:
    """What the parser finds in one request."""

    method: bytes = b""
    url: bytes = b""
    version: str = ""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    keep: bool = False
    whole: bool = False


class Parsed:
    """Everything that llhttp, as uvicorn sets it up, finds in some bytes."""

    def __init__(self, data: bytes) -> None:
        self.messages: list[Message] = []
        self.in_head = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.refused = False
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.refused = True

    def on_message_begin(self) -> None:
        self.messages.append(Message())
        self.in_head = True

    def on_url(self, url: bytes) -> None:
        self.messages[-1].url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:
            self.messages[-1].headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.in_head = False
        message = self.messages[-1]
        message.method, message.version = self.parser.get_method(), self.parser.get_http_version()
        message.keep = self.parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self.messages[-1].body += body

    def on_message_complete(self) -> None:
        self.messages[-1].whole = True


def here(_exchange: Exchange) -> bool:
    return True


def unseen(fields: dict[bytes, bytes], count: int) -> bool:
    """As the guard's: no header twice."""
    return len(fields) == count


def shortcuts() -> Shortcuts:
    return Shortcuts({b"/v1/decide": here}, unseen)


def request(lines: tuple[str, ...], body: bytes, end: str = "\r\n") -> bytes:
    return (end.join(lines).replace("{}", str(len(body))) + end * 2).encode("latin-1") + body


LINES = st.sampled_from(
    [
        "Host: localhost", "Authorization: Bearer x", "Content-Type: application/json", "Content-Length: {}",
        "content-length: {}", "CONTENT-LENGTH:  {}", "Content-Length:{}", "Content-Length: {} ", "Content-Length: +{}",
        "Content-Length: 0{}", "X: a\r\n b", "X: a\r\n\tContent-Length: 5", "X: a\nContent-Length: 3", "X: a\r",
        "X: a\rContent-Length: 4", "Transfer-Encoding: chunked", "Transfer-Encoding: identity", "Expect: 100-continue",
        "Connection: close", "Connection: keep-alive", "Connection: Keep-Alive", "Connection: upgrade",
        "Connection: keep-alive, close", "Upgrade: h2c", "Content-Encoding: gzip", "Accept: */*", "X-Content-Length: 7",
        "X: \xe9", "X:", ": x", "X", "", "X: content-length: 9", "Y: {}", "Trailer: content-length: 3",
    ]
)  # fmt: skip
FIRST = st.sampled_from(
    [
        "POST /v1/decide HTTP/1.1", "POST /v1/decide HTTP/1.0", "POST /v1/decide HTTP/2.0", "GET /v1/decide HTTP/1.1",
        "POST /v1/decide?x=1 HTTP/1.1", "POST  /v1/decide HTTP/1.1", "post /v1/decide HTTP/1.1", "POST /v1/decide HTTP/1.1 ",
        "POST /v1/events HTTP/1.1", "POST http://localhost/v1/decide HTTP/1.1", "\r\nPOST /v1/decide HTTP/1.1",
        "POST /v1/decide HTTP/1.1\nX: y",
    ]
)  # fmt: skip
BODIES = st.sampled_from([b"", b"{}", b"x" * 300, b"\r\n\r\n", b"content-length: 1\r\n\r\n", b"0\r\n\r\n"])


@given(
    first=FIRST,
    lines=st.lists(LINES, max_size=6),
    bodies=st.tuples(BODIES, BODIES),
    end=st.sampled_from(["\r\n", "\r\n", "\n"]),
)
@example(first=PLAIN[0], lines=list(PLAIN[1:]), bodies=(b"{}", b"x" * 300), end="\r\n")
def test_what_is_found_is_what_the_parser_finds(
    first: str, lines: list[str], bodies: tuple[bytes, bytes], end: str
) -> None:
    known = shortcuts()
    before, now = (request((first, *lines), body, end) for body in bodies)
    seen = Parsed(before)
    if not seen.messages or seen.in_head:
        return  # the head was never whole: a connection remembers nothing then
    known.remember(before, seen.messages[0].headers)
    found = known.find(now)
    assert known.find(now + b"x") is None
    assert known.find(now[:-1]) is None
    if found is None:
        return
    direct, fields, body = found
    parsed = Parsed(now)
    assert not parsed.refused
    (message,) = parsed.messages
    assert (message.method, message.url, message.version) == (b"POST", b"/v1/decide", "1.1")
    assert message.whole
    assert message.keep
    assert direct is here
    assert message.body == body
    named = dict(message.headers)
    assert len(named) == len(message.headers)
    assert int(named.pop(b"content-length")) == len(body)
    assert fields == named


def test_the_usual_head_is_known_from_the_second_time_on_whatever_its_length() -> None:
    known = shortcuts()
    first = request(PLAIN, b"{}")
    assert known.find(first) is None
    known.remember(first, Parsed(first).messages[0].headers)
    for size in (0, 2, 99, MAX_DIRECT_BYTES):
        found = known.find(request(PLAIN, b"x" * size))
        assert found is not None
        assert found[1] == {b"host": b"localhost", b"authorization": b"Bearer x"}
        assert found[2] == b"x" * size
    other = request((*PLAIN[:2], "Authorization: Bearer y", PLAIN[3]), b"{}")
    assert known.find(other) is None


@pytest.mark.parametrize(
    "lines",
    [
        (*PLAIN, "Expect: 100-continue"),
        (*PLAIN, "Connection: close"),
        (*PLAIN, "Content-Encoding: gzip"),
        (*PLAIN, "X: a\r\n b"),
        (*PLAIN, "X: " + "x" * MAX_KNOWN_HEAD),
        ("POST /v1/decide HTTP/1.0", *PLAIN[1:]),
        ("POST /v1/events HTTP/1.1", *PLAIN[1:]),
        PLAIN[:3],
    ],
)
def test_what_is_unusual_is_never_known(lines: tuple[str, ...]) -> None:
    known = shortcuts()
    sent = request(lines, b"{}")
    for message in Parsed(sent).messages:
        known.remember(sent, message.headers)
    assert known.find(sent) is None
    assert known._known == {}


def test_there_is_a_bound_on_what_is_remembered() -> None:
    known = shortcuts()
    for number in range(MOST_KNOWN_HEADS + 10):
        sent = request((*PLAIN, f"X: {number}"), b"{}")
        known.remember(sent, Parsed(sent).messages[0].headers)
        assert known.find(sent) is not None
        assert len(known._known) <= MOST_KNOWN_HEADS
