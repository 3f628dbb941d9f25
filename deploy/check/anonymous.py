"""Nobody gets in without a password: knocking at Kafka, ClickHouse, the enforcer and the console as a stranger would."""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from findings import TIMEOUT_S, Finding, Place, ask, why

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = b"banksman-check"
METADATA = struct.pack(">hhih", 3, 5, 7, len(NAME)) + NAME + struct.pack(">ib", -1, 0)
"""Kafka's own question "who is there, and which topics": version 5, correlation 7, all topics, and make none."""
TLS_ALERT = b"\x15\x03"
"""How a listener that speaks TLS begins its answer to whoever does not."""
WANTS_CERTIFICATE = ("CERTIFICATE_REQUIRED", "ALERT_BAD_CERTIFICATE")
"""What a listener says in TLS 1.3 and 1.2 to whoever shows no certificate, as we do."""
NOBODY = "bmo_0000000000000000_nobody"
"""An operator's token by its looks, and nobody's."""


Answered = Literal["its topics", "TLS", "nothing"]


def kafka_refuses(broker: str, *, tls: bool, ca: str | None) -> Iterator[Finding]:
    """Who does not log in is hung up on; where TLS is asked for, so is who does not speak it.

    Where TLS was not asked for and is spoken, nothing is known before it was knocked at over TLS, too.
    """
    name = f"kafka {broker}"
    host, _, port = broker.rpartition(":")
    host = host.strip("[]")
    if tls:
        context = ssl.create_default_context(cafile=ca)
        try:
            with (
                socket.create_connection((host, int(port)), TIMEOUT_S) as plain,
                context.wrap_socket(plain, server_hostname=host) as secured,
            ):
                spoken = secured.version()
                answered = _answers(secured)
        except OSError as error:
            if isinstance(error, ssl.SSLError) and (error.reason or "").endswith(WANTS_CERTIFICATE):
                yield Finding(name, "ok", "speaks TLS, with a certificate of its name, and wants one of whoever comes")
            else:
                yield Finding(name, "FAILED", f"no TLS connection: {why(error)}")
        else:
            yield Finding(name, "ok", f"speaks {spoken}, with a certificate of its name")
            yield _judged(name, answered)
    try:
        with socket.create_connection((host, int(port)), TIMEOUT_S) as plain:
            answered = _answers(plain)
    except OSError as error:
        yield Finding(name, "FAILED", f"nobody answers: {why(error)}")
        return
    if tls and answered == "its topics":
        yield Finding(name, "FAILED", "answers without TLS, too")
    elif not tls and answered == "TLS":
        yield from kafka_refuses(broker, tls=True, ca=ca)
    elif not tls:
        yield _judged(name, answered)


def _judged(name: str, answered: Answered) -> Finding:
    if answered == "its topics":
        return Finding(name, "FAILED", "tells its topics to whoever asks: its listener wants no login (SASL)")
    return Finding(name, "ok", "hangs up on whoever does not log in")


def _answers(connection: socket.socket) -> Answered:
    """What a stranger's question gets. OSError: nothing was said for some time."""
    try:
        connection.sendall(struct.pack(">i", len(METADATA)) + METADATA)
        said = b""
        while len(said) < 8:
            more = connection.recv(4096)
            if not more:
                break
            said += more
    except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
        return "nothing"
    if said.startswith(TLS_ALERT):
        return "TLS"
    return "its topics" if said[4:8] == METADATA[4:8] else "nothing"  # the correlation that was sent


def clickhouse_refuses(place: Place, users: list[str], ca: str | None) -> Iterator[Finding]:
    """No user, and no user without a password."""
    path = f"/?query={quote('SELECT 1')}"
    for user in ["", *dict.fromkeys(users)]:
        name = f"clickhouse {user or 'nobody'}"
        headers = {"X-ClickHouse-User": user, "X-ClickHouse-Key": ""} if user else {}
        try:
            answer = ask(place, "GET", path, ca=ca, headers=headers)
        except (OSError, http.client.HTTPException) as error:
            yield Finding(name, "FAILED", f"{place} does not answer: {why(error)}")
            return
        if answer.status in (401, 403):
            there = " if it is a user at all: ClickHouse does not say" if user else ""
            yield Finding(name, "ok", f"is refused without a password ({answer.status}){there and ','}{there}")
        elif answer.status == 200:
            text = "is answered without a password"
            yield Finding(
                name, "FAILED", text if user else "whoever names no user is answered: `default` has no password"
            )
        else:
            yield Finding(name, "FAILED", f"{place} answers {answer.status}: {answer.body[:200]!r}")


def http_refuses(place: Place, ca: str | None) -> Iterator[Finding]:
    """No token, a token of nobody, another site's name and another site's page."""
    told, asked = ("/v1/status", "/v1/decide") if place.name == "enforcer" else ("/v1/status", "/v1/sql")
    questions: tuple[tuple[str, str, str, dict[str, str], int], ...] = (
        ("without a token", "GET", told, {}, 401),
        ("without a token", "POST", asked, {"Content-Type": "application/json"}, 401),
        ("with nobody's token", "GET", told, {"Authorization": f"Bearer {NOBODY}"}, 401),
        ("under another name", "GET", "/healthz", {"Host": "rebound.example"}, 403),
        ("from another site's page", "GET", "/healthz", {"Origin": "https://rebound.example"}, 403),
    )
    wrong = []
    for how, method, path, headers, right in questions:
        try:
            answer = ask(place, method, path, ca=ca, headers=headers, body=b"{}" if method == "POST" else None)
        except (OSError, http.client.HTTPException) as error:
            yield Finding(place.name, "FAILED", f"{place} does not answer: {why(error)}")
            return
        if answer.status != right:
            wrong.append(f"{method} {path} {how} is answered {answer.status} instead of {right}")
    for text in wrong:
        yield Finding(place.name, "FAILED", f"{place}: {text}")
    if not wrong:
        yield Finding(place.name, "ok", f"{place} refuses strangers, other names and other sites' pages")
