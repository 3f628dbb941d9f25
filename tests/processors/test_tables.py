"""What a worker believes of its changelogs: what a processor has signed, where it was put, and the state that counts more."""

from __future__ import annotations

from typing import Any
from unittest import mock

import msgspec
import pytest
from aiokafka.structs import ConsumerRecord
from faust.types import TP

from banksman.control_log import DETECTORS
from banksman.processors.worker.tables import Store
from banksman.processors.worker.transport import Fetch
from banksman.signing import Secret, Verifier, service_signer
from banksman.stamps import rfc3339_ms, uuid7

SECRET = Secret({1: b"k" * 32}, 1)
NOW_S = 1_795_600_800.0
TOPIC = "t.processors-budgets-changelog"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(Store, "verifier", Verifier(SECRET))
    return Store("banksman://", mock.Mock(), mock.Mock())


def state(offset: int, partition: int = 0) -> bytes:
    return msgspec.msgpack.encode(({"actions": offset}, partition, ("p", "a", ""), None, offset))


def written(value: bytes | None, *, partition: int = 0, at_s: float = NOW_S, signed_s: float = NOW_S) -> Any:
    """A record of the changelog. `at_s`: when the broker received it."""
    headers = service_signer(SECRET, DETECTORS).headers(
        TOPIC, b"a", value or b"", id=uuid7(), kind="state", time=rfc3339_ms(int(signed_s * 1000)), source=DETECTORS
    )
    return ConsumerRecord(TOPIC, partition, 0, int(at_s * 1000), 0, b"a", value, None, 1, 1, tuple(headers))


def recovered(store: Store, *records: Any) -> bytes | None:
    store.apply_changelog_batch([mock.Mock(message=Fetch(TP(TOPIC, 0), records, 1))], None, None)  # type: ignore[arg-type]  # keys and values are bytes as they are
    return store.data.get(b"a")


def test_the_state_that_counts_more_wins_until_it_is_forgotten(store: Store) -> None:
    assert recovered(store, written(state(5)), written(state(3))) == state(5)
    assert recovered(store, written(None)) is None
    assert recovered(store, written(state(9))) == state(9)


def test_a_copy_of_a_tombstone_forgets_nothing(store: Store) -> None:
    assert recovered(store, written(state(5)), written(None, at_s=NOW_S + 600)) == state(5)
    late = written(None, at_s=NOW_S + 600, signed_s=NOW_S + 570)  # waited for Kafka
    assert recovered(store, late) is None


def test_a_copy_in_another_partition_counts_for_nothing(store: Store) -> None:
    assert recovered(store, written(state(5)), written(state(5), partition=1)) == state(5)
    assert store._key_partition[b"a"] == 0
