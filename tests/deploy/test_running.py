"""The services as the image and docker-compose.yml start them, and what `deploy/check` says of them from outside."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.deploy.conftest import DEPLOY, SERVICES
from tests.deploy.running import Running, certificate, make_secrets
from tests.exposition import metrics
from tests.servers import child_environment

CHECK = [sys.executable, str(DEPLOY / "check")]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("compose")
    made = Running(folder, make_secrets(folder))
    try:
        made.begin()
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def token(running: Running) -> str:
    """The first operator's, got as docs/deployment.md says."""
    ran = running.run("enforcer", "operators", "add", "ann@acme.example", "--role", "admin", "--bootstrap")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def check(running: Running, *words: str, token: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`deploy/check` against it, as the compose file calls it."""
    env = {
        "BANKSMAN_URL": running.url("enforcer"),
        "BANKSMAN_CONSOLE_URL": running.url("console"),
        "BANKSMAN_KAFKA": f"127.0.0.1:{running.ports['kafka']}",
        "BANKSMAN_CLICKHOUSE": running.url("clickhouse"),
        **({"BANKSMAN_OPERATOR_TOKEN": token} if token else {}),
        **environment,
    }
    others = [f"--health={name}={running.url(name)}" for name in ("archiver", "processors", "notifier")]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return subprocess.run(
        [*CHECK, *others, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env=child_environment() | env | {"PATH": path},
    )


def failures(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 1, ran.stdout + ran.stderr
    return "\n".join(line for line in ran.stdout.splitlines() if line.startswith("FAILED"))


def all_well(running: Running, token: str) -> subprocess.CompletedProcess[str]:
    """The first look finds somebody who has only just begun, or a probe that was sent a moment ago: look again."""
    end = time.monotonic() + 40
    while True:
        ran = check(running, token=token)
        if ran.returncode == 0 or time.monotonic() > end:
            return ran


def test_a_deployment_that_is_as_it_should_be(running: Running, token: str) -> None:
    ran = all_well(running, token)
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    for said in (
        r"ok +kafka 127\.0\.0\.1:\d+ .*hangs up on whoever does not log in",
        r"ok +clickhouse nobody .*refused",
        r"ok +clickhouse analyst .*refused",
        r"ok +enforcer .*refuses strangers",
        r"ok +console .*refuses strangers",
        *(rf"ok +{name} .*does its work" for name in SERVICES),
        r"ok +versions .*all are \d",
        r"ok +policies .*shop@v1",
        r"ok +doctor .*the whole path is open",
    ):
        assert re.search(said, ran.stdout), (said, ran.stdout)
    assert "nothing is wrong" in ran.stdout
    assert token not in ran.stdout


def test_without_a_token_it_says_what_is_left_out(running: Running) -> None:
    ran = check(running)
    assert ran.returncode == 0, ran.stdout
    assert re.search(r"skipped +replicas, doctor .*no token", ran.stdout)
    assert "1 were left out" in ran.stdout


def test_a_service_whose_address_is_not_given_is_named(running: Running) -> None:
    env = {"BANKSMAN_URL": running.url("enforcer"), "BANKSMAN_CONSOLE_URL": running.url("console")}
    ran = subprocess.run(CHECK, capture_output=True, text=True, timeout=120, env=child_environment() | env)
    assert ran.returncode == 0, ran.stdout
    for name in ("archiver", "processors", "notifier", "kafka", "clickhouse"):
        assert re.search(rf"skipped +{name} +no address: --\w+", ran.stdout), ran.stdout
    assert "6 were left out" in ran.stdout


def test_a_listener_of_kafka_that_wants_no_login_is_found(running: Running) -> None:
    ran = check(running, "--json", BANKSMAN_KAFKA=f"127.0.0.1:{running.ports['open']}")
    assert ran.returncode == 1
    wrong = [one for one in json.loads(ran.stdout)["findings"] if one["state"] == "FAILED"]
    assert [one["name"] for one in wrong] == [f"kafka 127.0.0.1:{running.ports['open']}"]
    assert "wants no login" in wrong[0]["text"]


class _Open(http.server.BaseHTTPRequestHandler):
    """A ClickHouse whose `default` has no password: the embedded one cannot be made to have such a user."""

    def do_GET(self) -> None:
        known = self.headers.get("X-ClickHouse-User", "default") in ("default", "root")
        self.send_response(200 if known else 403)
        self.end_headers()
        self.wfile.write(b"1\n" if known else b"Code: 516. DB::Exception: Authentication failed")

    def log_message(self, *_: object) -> None:
        pass


def test_a_clickhouse_user_without_a_password_is_found(running: Running) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Open) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            ran = check(
                running, "--clickhouse-user", "root", BANKSMAN_CLICKHOUSE=f"http://127.0.0.1:{server.server_port}",
                BANKSMAN_CLICKHOUSE_USER="writer", BANKSMAN_CLICKHOUSE_READER="reader",
            )  # fmt: skip
        finally:
            server.shutdown()
            thread.join()
    wrong = failures(ran)
    assert wrong.count("\n") == 2, ran.stdout
    for name in ("writer", "reader"):  # as the settings name them
        assert re.search(rf"ok +clickhouse {name} .*refused .*if it is a user at all", ran.stdout), ran.stdout
    assert "clickhouse nobody" in wrong
    assert "clickhouse default" in wrong
    assert "clickhouse root" in wrong


def test_a_service_that_is_away_is_found(running: Running, token: str) -> None:
    assert running.stop("archiver") == 0
    try:
        wrong = failures(check(running))
        assert re.search(r"FAILED +archiver +\S+ does not answer", wrong), wrong
        assert wrong.count("\n") == 0, wrong
    finally:
        running.start("archiver")


def test_replicas_that_do_not_agree_are_found(running: Running, token: str, tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text((running.folder / "policies" / "shop.yaml").read_text().replace("pull", "push"))
    running.ports["enforcer-2"] = running.ports["enforcer"] + 1
    own = {"BANKSMAN_ENFORCER_PORT": str(running.ports["enforcer-2"]), "BANKSMAN_POLICIES": str(tmp_path)}
    running.start("enforcer", kept_as="enforcer-2", **own)
    try:
        both = ["--enforcer", running.url("enforcer"), "--enforcer", running.url("enforcer-2")]
        wrong = failures(check(running, *both, token=token))
        assert re.search(r"FAILED +policies .*different ones in force", wrong), wrong
        aliased = ["--enforcer", both[1], "--enforcer", both[1].replace("127.0.0.1", "localhost")]
        twice = failures(check(running, *aliased, token=token))
        assert "one and the same replica" in twice
    finally:
        assert running.stop("enforcer-2") == 0


def test_plain_http_is_found_where_tls_was_asked_for(running: Running) -> None:
    wrong = failures(check(running, "--tls"))
    for name in (*SERVICES, "clickhouse"):
        assert re.search(rf"FAILED +{name} .*plain HTTP, and TLS was asked for", wrong), wrong
    assert re.search(r"FAILED +kafka .*no TLS connection", wrong)


def test_kafka_over_tls(running: Running) -> None:
    """That it speaks it, with its name, to nobody without a login, and nothing else on that port."""
    broker = f"localhost:{running.ports['tls']}"
    own = {"BANKSMAN_KAFKA_SECURITY": "SASL_SSL", "BANKSMAN_KAFKA_CA_FILE": str(running.folder / "tls.pem.crt")}
    ran = check(running, BANKSMAN_KAFKA=broker, **own)
    assert ran.returncode == 0, ran.stdout
    assert re.search(rf"ok +kafka {broker} +speaks TLSv1\.3, with a certificate of its name", ran.stdout), ran.stdout
    assert re.search(rf"ok +kafka {broker} +hangs up on whoever does not log in", ran.stdout)
    wrong = failures(check(running, BANKSMAN_KAFKA=broker, BANKSMAN_KAFKA_SECURITY="SASL_SSL"))
    assert re.search(r"FAILED +kafka .*ertificate", wrong), wrong  # of an authority that is not known
    wrong = failures(check(running, BANKSMAN_KAFKA=f"127.0.0.1:{running.ports['open']}", **own))
    assert "no TLS connection" in wrong
    assert "answers without TLS, too" in wrong


def test_a_listener_of_kafka_that_is_open_over_tls_is_found(running: Running) -> None:
    """Also by whoever did not know that it speaks TLS: it hangs up on plain words, and that says nothing."""
    own = {"BANKSMAN_KAFKA": f"localhost:{running.ports['opentls']}"}
    own["BANKSMAN_KAFKA_CA_FILE"] = str(running.folder / "tls.pem.crt")
    for security in ("", "SSL"):
        wrong = failures(check(running, **own, **({"BANKSMAN_KAFKA_SECURITY": security} if security else {})))
        assert re.search(r"FAILED +kafka .*wants no login", wrong), wrong
        assert wrong.count("\n") == 0, wrong
    closed = check(running, **own | {"BANKSMAN_KAFKA": f"localhost:{running.ports['tls']}"})
    assert closed.returncode == 0, closed.stdout


def test_a_listener_of_kafka_that_wants_a_certificate_is_not_open(running: Running) -> None:
    broker = f"localhost:{running.ports['mutual']}"
    own = {"BANKSMAN_KAFKA_SECURITY": "SSL", "BANKSMAN_KAFKA_CA_FILE": str(running.folder / "tls.pem.crt")}
    ran = check(running, BANKSMAN_KAFKA=broker, **own)
    assert ran.returncode == 0, ran.stdout
    assert re.search(rf"ok +kafka {broker} .*wants one of whoever comes", ran.stdout), ran.stdout


def test_tls_with_a_certificate_of_another_name_is_found(running: Running, tmp_path: Path) -> None:
    port = running.ports["archiver-tls"] = running.ports["archiver"] + 1
    said = {}
    for name in ("localhost", "elsewhere.example"):
        cert = str(tmp_path / f"{name}.pem")
        certificate(Path(cert), f"DNS:{name}")
        own = {"BANKSMAN_TLS_CERT_FILE": cert, "BANKSMAN_TLS_KEY_FILE": cert, "BANKSMAN_HEALTH_PORT": str(port)}
        running.start("archiver", kept_as="archiver-tls", BANKSMAN_WORKER="archiver-tls", **own)
        try:
            said[name] = check(running, f"--health=archiver=https://localhost:{port}", "--ca", cert).stdout
            assert health(running, "archiver", **own).returncode == 0
        finally:
            assert running.stop("archiver-tls") == 0
    assert re.search(
        r"ok +archiver .*speaks TLSv1\.3, with a certificate of its name, and nothing else", said["localhost"]
    )
    assert re.search(r"FAILED +archiver .*no TLS connection: .*ertificate", said["elsewhere.example"])


def test_what_it_is_called_with(running: Running) -> None:
    for words in (
        ["--enforcer", "nowhere"],
        ["--kafka", "nowhere"],
        ["--health", "archiver"],
        ["--clickhouse", "ftp://x"],
    ):
        ran = subprocess.run([*CHECK, *words], capture_output=True, text=True, timeout=30, env=child_environment())
        assert ran.returncode == 2, ran.stdout
        assert words[0] in ran.stderr


def health(running: Running, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The image's HEALTHCHECK beside a service."""
    argv = [sys.executable, str(DEPLOY / "image" / "healthcheck.py")]
    env = running.environment(name) | environment
    ports = {"BANKSMAN_HEALTH_PORT": "1", "BANKSMAN_ENFORCER_PORT": "1", "BANKSMAN_CONSOLE_PORT": "1"}
    own = f"BANKSMAN_{name.upper() if name in ('enforcer', 'console') else 'HEALTH'}_PORT"
    env |= {
        port: number for port, number in ports.items() if port != own
    }  # in a container of its own nobody else listens
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, env=env)


@pytest.mark.parametrize("name", SERVICES)
def test_the_images_health_check_finds_every_service(running: Running, name: str) -> None:
    ran = health(running, name)
    assert (ran.returncode, ran.stdout) == (0, f"port {running.ports[name]}: 200\n"), ran.stderr
    nobody = {"BANKSMAN_HEALTH_PORT": "1", "BANKSMAN_ENFORCER_PORT": "1", "BANKSMAN_CONSOLE_PORT": "1"}
    ran = health(running, name, **nobody)
    assert (ran.returncode, ran.stderr) == (1, "nobody listens on 1, 1, 1\n")


def test_no_service_writes_but_to_tmp(running: Running, token: str) -> None:
    """The root file system can be read-only. Their logs are what they print, and the audit of what they open is in there."""
    assert all_well(running, token).returncode == 0
    tmp = str(running.folder / "tmp")
    for name in SERVICES:
        written = re.findall(r"^WRITES (?:os\.\w+ )?(.*)$", running.log(name).read_text(), re.MULTILINE)
        assert [path for path in written if not path.startswith(tmp)] == [], name
    code = "open('kept', 'w').close()"
    argv = [sys.executable, "-c", code]
    env = running.environment("enforcer")
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=30, env=env, cwd=running.folder)
    assert "WRITES kept" in ran.stderr  # the audit does see it


def test_every_metric_of_an_alert_is_told(running: Running, token: str) -> None:
    """By the services themselves, with those labels."""
    from tests.deploy.test_alerts import labels_of, metrics_of, rules

    assert all_well(running, token).returncode == 0
    told: dict[str, set[str]] = {}
    for name in SERVICES:
        for metric, pairs in metrics(running.url(name)):
            told.setdefault(metric, set()).update(label for label, _ in pairs)
    asked = {metric: labels_of(rule) for rule in rules() for metric in metrics_of(rule)}
    assert asked
    for metric, labels in asked.items():
        assert metric in told, metric
        assert labels <= told[metric] | {"instance"}, (metric, labels, told[metric])
