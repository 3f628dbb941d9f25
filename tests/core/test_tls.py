"""Listeners that speak TLS, and our own clients against them: whom they trust, what is refused, what is renewed."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from starlette.responses import JSONResponse
from starlette.routing import Route
from tests.secured import Papers, papers
from trustme import KeyType

from banksman import certificates, listener, settings
from banksman.cli.client import Client
from banksman.errors import InvalidSetting, Unavailable
from banksman.http_problem import routed
from banksman.producers.asking import Asker
from banksman.producers.connection import Connection, address, clock
from banksman.producers.http_transport import HttpTransport
from banksman.producers.transport import Away

EC, RSA = KeyType.ECDSA, KeyType.RSA
PLAIN = b"GET /v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture
def ours(tmp_path: Path) -> Papers:
    return papers(tmp_path)


@asynccontextmanager
async def listening(certificate: tuple[str, str]) -> AsyncIterator[str]:
    """-> `https://127.0.0.1:PORT` of a listener of ours with this certificate."""

    async def status(_request: object) -> JSONResponse:
        return JSONResponse({"ok": True})

    access = settings.Listener(tls_cert_file=certificate[0], tls_key_file=certificate[1])
    opened = listener.open_socket("127.0.0.1", 0, access, setting="BANKSMAN_ENFORCER_HOST")
    stop, said = asyncio.Event(), asyncio.get_running_loop().create_future()
    app = routed([Route("/v1/status", status), Route("/v1/events", status, methods=["POST"])])
    serving = asyncio.create_task(
        listener.serve(app, opened, host="127.0.0.1", listener=access, stop=stop, say=said.set_result)
    )
    try:
        yield await asyncio.wait_for(said, 10)
    finally:
        stop.set()
        await asyncio.wait_for(serving, 20)


def status(url: str, ca: str) -> bool:
    """As a command asks."""
    return bool(Client(url, "bmo_1_x", variable="BANKSMAN_URL", ca_file=ca).get("/v1/status")["ok"])


def report(url: str, ca: str) -> None:
    """As an emitter sends events."""
    transport = HttpTransport(url, "bma_1_x", timeout=10, ca_file=ca)
    try:
        transport.send([b"{}"], lambda _: None)
    finally:
        transport.close()


async def test_every_client_of_ours_comes_by_https(ours: Papers) -> None:
    async with listening(ours.issue("127.0.0.1")) as url:
        assert url.startswith("https://127.0.0.1:")
        assert await asyncio.to_thread(status, url, ours.ca)
        await asyncio.to_thread(report, url, ours.ca)
        connection = Connection(address(url, ours.ca))
        answer = await asyncio.to_thread(connection.get, "/v1/status", {}, until=clock() + 10)
        assert answer.status == 200
        connection.close()


async def test_a_certificate_that_is_not_trusted_is_refused_and_the_setting_named(ours: Papers, tmp_path: Path) -> None:
    stranger = papers(tmp_path / "stranger")
    for certificate, ca, why in (
        (ours.issue("127.0.0.1"), stranger.ca, "unable to get local issuer|self.signed"),
        (ours.issue("127.0.0.1"), "", "unable to get local issuer|self.signed"),
        (ours.issue("enforcer.acme.example"), ours.ca, "IP address mismatch"),
    ):
        async with listening(certificate) as url:
            with pytest.raises(InvalidSetting, match=f"BANKSMAN_CA_FILE: the certificate of .* ({why})"):
                await asyncio.to_thread(status, url, ca)
            with pytest.raises(Away, match=f"its certificate is not trusted: .*({why}).* .BANKSMAN_CA_FILE"):
                await asyncio.to_thread(report, url, ca)
            asker = Asker(url, "bma_1_x", ca_file=ca)
            heard = await asyncio.to_thread(
                asker.ask, {"id": "1", "session": "s", "service": "git", "action": "pull"}, 1
            )
            assert heard.decision.decision == "deny"
            assert "BANKSMAN_CA_FILE" in heard.decision.reason


async def test_plain_http_gets_no_answer_and_no_harm_is_done(ours: Papers, caplog: pytest.LogCaptureFixture) -> None:
    async with listening(ours.issue("127.0.0.1")) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(PLAIN)
        assert b"HTTP/1.1 200" not in await asyncio.wait_for(reader.read(), 10)
        writer.close()
        with pytest.raises(Unavailable):
            await asyncio.to_thread(status, url.replace("https:", "http:"), "")
        assert await asyncio.to_thread(status, url, ours.ca)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR and record.name == "banksman"]


def hello(url: str, authority: Papers, version: ssl.TLSVersion) -> str | None:
    """The version of TLS that is spoken."""
    context = ssl.create_default_context(cafile=authority.ca)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # so that it is the listener that refuses
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as wrapped,
    ):
        return wrapped.version()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
async def test_old_versions_of_tls_are_refused(ours: Papers) -> None:
    async with listening(ours.issue("127.0.0.1")) as url:
        for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await asyncio.to_thread(hello, url, ours, old)
        assert await asyncio.to_thread(hello, url, ours, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert await asyncio.to_thread(hello, url, ours, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"


async def said(log: pytest.LogCaptureFixture, what: str) -> None:
    async with asyncio.timeout(10):
        while what not in log.text:  # noqa: ASYNC110 - a log tells nobody
            await asyncio.sleep(0.01)  # between two looks


def served(url: str, authority: Papers) -> set[bytes]:
    """The certificates that clients are shown: by TLS 1.2 and 1.3, with and without a host's name."""
    context = ssl.create_default_context(cafile=authority.ca)
    context.check_hostname = False  # one that names no host has none to check
    shown = set()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context.minimum_version = context.maximum_version = version
        for name in ("localhost", None):
            with (
                socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as plain,
                context.wrap_socket(plain, server_hostname=name) as wrapped,
            ):
                shown.add(wrapped.getpeercert(binary_form=True) or b"")
    return shown


def in_it(certificate: str) -> set[bytes]:
    """The first certificate of a file."""
    text = Path(certificate).read_text()
    return {ssl.PEM_cert_to_DER_cert(text[: text.index("-----END") + len("-----END CERTIFICATE-----")])}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
@pytest.mark.parametrize("kinds", [(EC, RSA, EC), (RSA, EC, RSA)], ids=lambda kinds: "-".join(k.name for k in kinds))
async def test_a_renewed_certificate_of_another_kind_of_key_takes_the_place_of_the_old_one(
    kinds: tuple[KeyType, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every client sees the old one until the pair is whole, then the new one, and never both."""
    monkeypatch.setattr(certificates.follow, "__kwdefaults__", {"every": 0.02})
    caplog.set_level(logging.INFO, "banksman")
    authority = papers(tmp_path / "authority")
    certificate, key = authority.issue("127.0.0.1", "localhost", called="listener", kind=kinds[0])
    async with listening((certificate, key)) as url:
        for kind in kinds[1:]:
            before = in_it(certificate)
            new_certificate, new_key = authority.issue("127.0.0.1", "localhost", called="new", kind=kind)
            caplog.clear()
            shutil.copy(new_certificate, certificate)
            await said(caplog, "the one before stays")
            assert await asyncio.to_thread(served, url, authority) == before
            shutil.copy(new_key, key)
            await said(caplog, "the certificate was renewed")
            assert await asyncio.to_thread(served, url, authority) == in_it(new_certificate) != before
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await asyncio.to_thread(hello, url, authority, ssl.TLSVersion.TLSv1_1)


async def test_files_that_change_while_they_are_read_cost_the_listener_nothing(
    ours: Papers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The key is taken away as soon as the new pair was read once: what was read is served, what is left is told."""
    monkeypatch.setattr(certificates.follow, "__kwdefaults__", {"every": 0.02})
    caplog.set_level(logging.INFO, "banksman")
    certificate, key = ours.issue("127.0.0.1", "localhost", called="listener")
    new_certificate, new_key = ours.issue("127.0.0.1", "localhost", called="new")
    before = in_it(certificate)
    read = ssl.SSLContext.load_cert_chain

    def read_and_changed(context: ssl.SSLContext, certfile: str, keyfile: str) -> None:
        read(context, certfile, keyfile)
        Path(key).write_text("the next one is being written")

    async with listening((certificate, key)) as url:
        monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", read_and_changed)
        for old, new in ((certificate, new_certificate), (key, new_key)):
            shutil.copy(new, tmp_path / "whole")
            (tmp_path / "whole").replace(old)
        await said(caplog, "the one before stays")
        shown = await asyncio.to_thread(served, url, ours)
        assert len(shown) == 1
        assert shown <= before | in_it(new_certificate)


async def test_a_renewed_certificate_is_taken_without_a_restart(
    ours: Papers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One file after the other, as it is usually done: half of the new pair is told, and the old one stays."""
    monkeypatch.setattr(certificates.follow, "__kwdefaults__", {"every": 0.02})
    caplog.set_level(logging.INFO, "banksman")
    successor = papers(tmp_path / "successor")
    certificate, key = ours.issue("127.0.0.1")
    new_certificate, new_key = successor.issue("127.0.0.1")

    async with listening((certificate, key)) as url:
        assert await asyncio.to_thread(status, url, ours.ca)
        shutil.copy(new_certificate, certificate)
        await said(caplog, "the one before stays")
        assert await asyncio.to_thread(status, url, ours.ca)
        shutil.copy(new_key, key)
        await said(caplog, "the certificate was renewed")
        assert await asyncio.to_thread(status, url, successor.ca)
        with pytest.raises(InvalidSetting):
            await asyncio.to_thread(status, url, ours.ca)
    assert caplog.text.count("the one before stays") == 1


def test_beyond_loopback_without_tls_is_refused_without_the_flag(ours: Papers) -> None:
    plain, allowed = settings.Listener(), settings.Listener(allow_plain_http=True)
    certificate, key = ours.issue("127.0.0.1")
    with_tls = settings.Listener(tls_cert_file=certificate, tls_key_file=key)
    with pytest.raises(InvalidSetting, match=r"BANKSMAN_CONSOLE_HOST: 0\.0\.0\.0 is beyond loopback"):
        listener.open_socket("0.0.0.0", 0, plain, setting="BANKSMAN_CONSOLE_HOST")
    for access in (allowed, with_tls):
        listener.open_socket("0.0.0.0", 0, access, setting="BANKSMAN_CONSOLE_HOST").close()
    listener.open_socket("127.0.0.1", 0, plain, setting="BANKSMAN_CONSOLE_HOST").close()
