"""docs/reference/sql.md: every column and view stands there, and ClickHouse knows what its questions ask."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from banksman import settings
from banksman.store.client import Store
from banksman.store.migrate import migrate

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "sql.md").read_text()
QUESTIONS = re.findall(r"^```sql\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def store(clickhouse_settings: settings.ClickHouse) -> Iterator[Store]:
    migrate(clickhouse_settings)
    store = Store(clickhouse_settings, reader=True)
    yield store
    store.close()


def test_every_column_and_view_has_its_place(store: Store) -> None:
    named = set(re.findall(r"`([a-z_]+)[`(]", PAGE))
    columns = {
        row["name"]
        for row in store.query(
            "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = 'events'", {}
        )
    }
    views = {
        row["name"]
        for row in store.query(
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'View'", {}
        )
    }
    assert len(columns) > 50
    assert len(views) == 8
    assert sorted((columns | views) - named) == []


@pytest.mark.parametrize("question", QUESTIONS, ids=range(len(QUESTIONS)))
def test_a_question_of_the_page_is_answered(store: Store, question: str) -> None:
    assert store.query(question, {}) == []


@pytest.mark.parametrize(
    ("view", "parameters"),
    [
        (view, parameters or "")
        for view, parameters in re.findall(r"^\| `(\w+)(\([^)`]*\))?` \| (?:a|an) ", PAGE, re.MULTILINE)
    ],
    ids=str,
)
def test_a_view_has_the_columns_and_parameters_that_the_page_says(store: Store, view: str, parameters: str) -> None:
    values = {"since": "2026-11-25 00:00:00", "timezone": "Europe/Berlin"}
    filled = re.sub(r"(\w+) = '…'", lambda found: f"{found[1]} = '{values.get(found[1], 'x')}'", parameters)
    row = re.search(rf"^\| `{view}\W.*\|([^|]*)\|$", PAGE, re.MULTILINE)
    assert row is not None
    columns = ", ".join(re.findall(r"`(\w+)`", row[1])) or "*"
    assert store.query(f"SELECT {columns} FROM {view}{filled} LIMIT 1", {}) == []
