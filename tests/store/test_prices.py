"""The price table: exact names, dated names, unknown ones, and that the shipped file makes sense."""

from __future__ import annotations

import json
from datetime import date
from importlib import resources

import pytest

from banksman.store.prices import Price, PriceTable, load_prices

TABLE = PriceTable("2025-12-01", {"m-1": Price(3, 15, 3.75, 0.3)})


def test_input_output_cache_writes_and_cache_reads_each_have_their_price() -> None:
    million = 1_000_000
    assert TABLE.cost("m-1", (million, 0, 0, 0)) == 3
    assert TABLE.cost("m-1", (0, million, 0, 0)) == 15
    assert TABLE.cost("m-1", (0, 0, million, 0)) == 3.75
    assert TABLE.cost("m-1", (0, 0, 0, million)) == 0.3
    assert TABLE.cost("m-1", (1, 1, 1, 1)) == pytest.approx(22.05e-6)
    assert TABLE.cost("m-1", (0, 0, 0, 0)) == 0


@pytest.mark.parametrize("name", ["m-1-20250805", "m-1"])
def test_a_dated_name_is_looked_up_without_its_date(name: str) -> None:
    assert TABLE.cost(name, (1_000_000, 0, 0, 0)) == 3


@pytest.mark.parametrize(
    "name", ["", "m", "m-2", "m-1-2025", "m-1-2025080x", "M-1", "m-1-20250805-20250805", "-20250805"]
)
def test_what_is_not_in_the_table_has_no_price(name: str) -> None:
    assert TABLE.cost(name, (1, 1, 1, 1)) is None


def test_the_shipped_table() -> None:
    data = json.loads(resources.files("banksman.store").joinpath("prices.json").read_text())
    date.fromisoformat(data["date"])
    for name, prices in data["models"].items():
        assert len(prices) == 4, name
        assert 0 < prices[3] < prices[0] < prices[1], (
            f"{name}: cache reads cost less than input, input less than output"
        )
    assert load_prices().date == data["date"]
