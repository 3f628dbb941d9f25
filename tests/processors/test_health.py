"""What archiver, processors and notifier answer where they are told to listen."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.enforcer.conftest import ask, until
from tests.exposition import is_documented, metrics
from tests.processors.conftest import Archive
from tests.processors.fake_slack import FakeSlack
from tests.processors.notifying import Notifying, finding
from tests.processors.working import Floor, a_floor
from tests.servers import Broker, ClickHouseServer

PORT = {"BANKSMAN_HEALTH_PORT": "0"}


def address(log: Path) -> str:
    """Where it says that it answers."""
    found = until(
        lambda: re.search(r"^health (http://\S+)$", log.read_text() if log.exists() else "", re.MULTILINE), 30
    )
    return str(found[1])


def test_an_archiver(archive: Archive, clickhouse_server: ClickHouseServer) -> None:
    archive.start(**PORT)
    base = address(archive.folder / "archiver0.log")
    assert ask(base, "GET", "/healthz").body == {"status": "ok"}
    archive.publish(*(archive.action(seq=n) for n in range(1, 8)))
    archive.until(lambda: archive.count() == 7)
    until(lambda: ask(base, "GET", "/readyz").status == 200)
    until(lambda: metrics(base)["banksman_archiver_records_total", ()] >= 7)
    found = metrics(base)
    is_documented(base, "archiver")
    assert found["banksman_archiver_clickhouse_away_seconds", ()] == 0
    assert {labels for name, labels in found if name == "banksman_archiver_lag"} >= {
        (("partition", "0"), ("topic", "actions")), (("partition", "0"), ("topic", "control")),
    }  # fmt: skip
    clickhouse_server.kill()
    try:
        archive.publish(*(archive.action(seq=n) for n in range(8, 11)))
        until(lambda: ask(base, "GET", "/readyz").status == 503, 30)
        assert "ClickHouse is away" in ask(base, "GET", "/readyz").body["detail"]
        until(lambda: metrics(base)["banksman_archiver_waiting_seconds", ()] > 1, 30)
        assert metrics(base)["banksman_archiver_clickhouse_away_seconds", ()] > 0
        lag = sum(value for (name, labels), value in metrics(base).items() if name == "banksman_archiver_lag")
        assert lag == 3
    finally:
        clickhouse_server.start()
    archive.until(lambda: archive.count() == 10)
    until(lambda: metrics(base)["banksman_archiver_waiting_seconds", ()] == 0, 30)
    assert ask(base, "GET", "/readyz").status == 200
    assert ask(base, "GET", "/metrics", headers={"Host": "evil.example"}).status in (400, 403, 421)
    assert ask(base, "GET", "/v1/status").status == 404


@pytest.fixture
def floor(broker: Broker, tmp_path: Path) -> Iterator[Floor]:
    with a_floor(broker, tmp_path) as made:
        yield made


def test_a_worker(floor: Floor) -> None:
    floor.policy()
    process = floor.start(**PORT)
    base = address(floor.log())
    floor.ready(process)
    until(lambda: ask(base, "GET", "/readyz").status == 200)
    floor.put(*(floor.action(input_tokens=400) for _ in range(3)))  # the budget is 1,000
    floor.until(lambda: floor.spent() == 1200)
    found = until(lambda: (now := metrics(base))["banksman_processors_counted_total", ()] == 3 and now)
    assert found["banksman_processors_findings_total", (("detector", "budgets"),)] >= 1
    assert found["banksman_processors_findings_total", (("detector", "loops"),)] == 0
    until(lambda: metrics(base)["banksman_processors_states", (("detector", "budgets"),)] == 1)  # once it is written
    assert found["banksman_processors_partitions", ()] == 2
    is_documented(base, "processors")
    until(lambda: metrics(base)["banksman_processors_lag", ()] == 0)
    until(lambda: metrics(base)["banksman_processors_waiting_seconds", ()] == 0)


async def test_a_notifier(notifying: Notifying, slack: FakeSlack) -> None:
    notifying.process(BANKSMAN_HEALTH_PORT="0")
    base = address(notifying.log(0))
    until(lambda: ask(base, "GET", "/readyz").status == 200, 30)
    await notifying.publish(finding())
    await notifying.until(slack.parents)
    found = until(lambda: (now := metrics(base))["banksman_notifier_pending", ()] == 0 and now)
    is_documented(base, "notifier")
    assert found["banksman_notifier_reigns", ()] == 1
    assert found["banksman_notifier_incidents", ()] == 1
    slack.away()
    await notifying.publish(finding("loops/b/s"))
    until(lambda: metrics(base)["banksman_notifier_waiting_seconds", ()] > 1, 30)
    assert metrics(base)["banksman_notifier_pending", ()] == 1


def test_a_port_that_is_taken_and_a_certificate_that_cannot_be_read_are_said_at_once(floor: Floor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = floor.start(BANKSMAN_HEALTH_PORT=str(taken.getsockname()[1]))
        assert process.wait(30) == 4
    assert "cannot listen on 127.0.0.1" in floor.log().read_text()
    nowhere = {"BANKSMAN_TLS_CERT_FILE": "/nowhere/cert.pem", "BANKSMAN_TLS_KEY_FILE": "/nowhere/key.pem"}
    assert floor.start("two", BANKSMAN_HEALTH_PORT="0", **nowhere).wait(30) == 2
    assert "BANKSMAN_TLS_CERT_FILE" in floor.log("two").read_text()
