"""Blocks that we write in ClickHouse's Native format, read back by ClickHouse itself."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banksman.settings import ClickHouse
from banksman.store import native
from banksman.store.client import Store

texts = st.text(st.characters(codec="utf-8"), max_size=40)
TYPES: dict[str, st.SearchStrategy[Any]] = {
    "String": st.one_of(texts, st.none(), st.integers(100, 40_000).map(lambda n: "é" * n)),
    "LowCardinality(String)": st.one_of(texts, st.none(), st.sampled_from(["", "a", "b"])),
    "UUID": st.one_of(st.uuids().map(str), st.none()),
    "Bool": st.booleans(),
    "UInt8": st.one_of(st.integers(0, 255), st.none()),
    "UInt16": st.integers(0, 65535),
    "UInt64": st.one_of(st.integers(0, 2**64 - 1), st.none()),
    "Nullable(UInt64)": st.one_of(st.integers(0, 2**64 - 1), st.none()),
    "Nullable(Float64)": st.one_of(st.floats(allow_nan=False), st.none()),
    "Nullable(Decimal(18, 9))": st.one_of(st.integers(-(10**18) + 1, 10**18 - 1), st.none()),
    "DateTime64(6, 'UTC')": st.integers(-2_208_988_800_000_000, 10_413_791_999_999_999),
}
ABSENT: dict[str, Any] = {"UUID": str(uuid.UUID(int=0)), "String": "", "LowCardinality(String)": ""}


@pytest.fixture
def store(clickhouse_settings: ClickHouse) -> Iterator[Store]:
    made = Store(clickhouse_settings, reader=False)
    made.command(f"CREATE DATABASE `{made.database}`")
    columns = ", ".join(f"c{number} {type_}" for number, type_ in enumerate(TYPES))
    made.command(f"CREATE TABLE `{made.database}`.t (n UInt64, {columns}) ENGINE = MergeTree ORDER BY n")
    yield made
    made.command(f"DROP DATABASE `{made.database}`")
    made.close()


def read_back(store: Store, type_: str, values: list[Any]) -> list[Any]:
    """What ClickHouse says of them, as plain values."""
    store.command(f"TRUNCATE TABLE `{store.database}`.t")
    name = f"c{list(TYPES).index(type_)}"
    block = native.block([("n", "UInt64", list(range(len(values)))), (name, type_, values)], len(values))
    store.insert("t", ["n", name], block)
    shown = {"UUID": f"toString({name})", "DateTime64(6, 'UTC')": f"toUnixTimestamp64Micro({name})"}.get(type_, name)
    return [row["v"] for row in store.query(f"SELECT {shown} AS v FROM `{store.database}`.t ORDER BY n")]


@pytest.mark.parametrize("type_", TYPES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_type(store: Store, type_: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(TYPES[type_], min_size=1, max_size=30))
    expected: list[Any] = values
    if "Nullable" not in type_:
        expected = [ABSENT.get(type_, 0) if value is None else value for value in values]
    if "Decimal" in type_:
        expected = [None if value is None else Decimal(value).scaleb(-9) for value in values]
    found = read_back(store, type_, values)
    assert found == expected or ("Float" in type_ and all(map(_near, found, expected)))


def _near(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and math.isclose(one, other, rel_tol=1e-15))


@pytest.mark.parametrize("distinct", [1, 255, 256, 257, 65_535, 65_536, 70_000])
def test_words_of_every_width(store: Store, distinct: int) -> None:
    """The numbers of the words take one, two or four bytes."""
    values = [f"word {number % distinct}" for number in range(70_000)] + [None, ""]
    assert read_back(store, "LowCardinality(String)", values) == [value or "" for value in values]


def test_bytes_and_lengths_of_every_width(store: Store) -> None:
    values = [b"x" * size for size in (0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152)]
    assert read_back(store, "String", values) == [value.decode() for value in values]


@pytest.mark.parametrize(
    ("type_", "value"),
    [("UInt64", -1), ("UInt64", 2**64), ("UInt8", 256), ("UUID", "no uuid"), ("Nullable(Float64)", "x"), ("Date", 1)],
)
def test_what_a_type_cannot_hold_is_an_error_here(type_: str, value: Any) -> None:
    with pytest.raises((OverflowError, ValueError, TypeError, KeyError)):
        native.block([("c", type_, [value])], 1)
