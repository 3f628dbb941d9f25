"""One suite for every place that the same promise must hold in: the embedded servers, and outside ones when they are named.

    BANKSMAN_TEST_KAFKA=k1:9092 BANKSMAN_TEST_KAFKA_SECURITY=… BANKSMAN_TEST_CLICKHOUSE=https://ch:8443 \
    BANKSMAN_TEST_CLICKHOUSE_USER=… BANKSMAN_TEST_CLICKHOUSE_PASSWORD=… .venv/bin/pytest tests/contracts

Every setting of the two concerns can be given so, with TEST_ behind BANKSMAN_. Topics and databases are the test's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from tests.servers import PARTITIONS, Broker, ClickHouseServer

from banksman import provision, settings
from banksman.store.client import Store

# Read now: no test sees the environment (tests/conftest.py).
_OUTSIDE = {
    name.replace("BANKSMAN_TEST_", "BANKSMAN_"): value
    for name, value in os.environ.items()
    if name.startswith("BANKSMAN_TEST_")
}


def _places(setting: str, what: str) -> list[object]:
    """Embedded, and outside where one is named: else that half is left out, and says so."""
    named = f"BANKSMAN_TEST_{setting} names no {what} outside of the tests"
    return [
        "embedded",
        pytest.param("outside", marks=() if f"BANKSMAN_{setting}" in _OUTSIDE else pytest.mark.skip(named)),
    ]


@dataclass
class Bus:
    """A Kafka with topics of the test's own. `broker`: the embedded one, which a test may freeze and kill; None outside."""

    settings: settings.Kafka
    broker: Broker | None

    def own(self) -> Broker:
        """The broker, for a test that hurts it."""
        if self.broker is None:
            pytest.skip("an outside broker is not ours to freeze or kill")
        return self.broker


@dataclass
class Place:
    """A ClickHouse with a database of the test's own. `server`: the embedded one; None outside."""

    settings: settings.ClickHouse
    server: ClickHouseServer | None

    @contextlib.contextmanager
    def store(self, *, reader: bool = False, **changes: str) -> Iterator[Store]:
        """A connection."""
        made = Store(settings.ClickHouse(**{**self._given(), **changes}), reader=reader)  # type: ignore[arg-type]
        try:
            yield made
        finally:
            made.close()

    def _given(self) -> dict[str, object]:
        return {name: getattr(self.settings, name) for name in self.settings.__struct_fields__}


@pytest.fixture(params=_places("KAFKA", "Kafka"))
def bus_place(request: pytest.FixtureRequest) -> Iterator[Bus]:
    """The bus, in both places."""
    prefix = f"contract{uuid.uuid4().hex[:8]}."
    broker: Broker | None = None
    if request.param == "embedded":
        broker = request.getfixturevalue("broker")
        assert broker is not None
        made = broker.node.settings(topic_prefix=prefix, partitions=PARTITIONS)
    else:
        given = settings.load(settings.Kafka, _OUTSIDE)
        made = settings.Kafka(
            **{name: getattr(given, name) for name in given.__struct_fields__}
            | {"topic_prefix": prefix, "partitions": PARTITIONS}
        )
    asyncio.run(provision.create_topics(made))
    yield Bus(made, broker)
    if broker is None:
        asyncio.run(_delete_topics(made))


async def _delete_topics(made: settings.Kafka) -> None:
    admin: AIOKafkaAdminClient = await provision.connect_admin(made)
    try:
        await admin.delete_topics([name for name in await admin.list_topics() if name.startswith(made.topic_prefix)])
    finally:
        await admin.close()


@pytest.fixture(params=_places("CLICKHOUSE", "ClickHouse"))
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """The store, in both places."""
    if request.param == "embedded":
        yield Place(request.getfixturevalue("clickhouse_settings"), request.getfixturevalue("clickhouse_server"))
        return
    given = settings.load(settings.ClickHouse, _OUTSIDE)
    database = f"contract{uuid.uuid4().hex[:8]}"
    made = Place(given, None)
    made.settings = settings.ClickHouse(**made._given() | {"clickhouse_database": database})  # type: ignore[arg-type]
    yield made
    everywhere = f" ON CLUSTER `{given.clickhouse_cluster}`" if given.clickhouse_cluster else ""
    with made.store() as store:
        store.command(f"DROP DATABASE IF EXISTS `{database}`{everywhere}")


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Brokers are killed here: what the Kafka clients of the test have to say about it is known."""
    caplog.set_level("CRITICAL", "aiokafka")
