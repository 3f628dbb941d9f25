"""What a model call costs when its author does not say: a dated table, prices.json, to be edited when prices change."""

from __future__ import annotations

import json
from importlib import resources
from typing import NamedTuple


class Price(NamedTuple):
    """USD per million tokens."""

    input: float
    output: float
    cache_write: float
    cache_read: float


class PriceTable:
    """Prices by model name; a dated name (`claude-opus-4-1-20250805`) is looked up without its date."""

    def __init__(self, date: str, models: dict[str, Price]) -> None:
        self.date = date
        self._models = models

    def cost(self, model: str, tokens: tuple[int, int, int, int]) -> float | None:
        """USD for (input, output, cache write, cache read) tokens; None for a model that is not in the table."""
        price = self._models.get(model)
        if price is None and model[-9:-8] == "-" and model[-8:].isdigit():
            price = self._models.get(model[:-9])
        if price is None:
            return None
        return round(sum(count * each for count, each in zip(tokens, price, strict=True)) / 1e6, 9)


def load_prices() -> PriceTable:
    """The table that ships with banksman."""
    data = json.loads(resources.files(__package__).joinpath("prices.json").read_text())
    return PriceTable(data["date"], {name: Price(*row) for name, row in data["models"].items()})
