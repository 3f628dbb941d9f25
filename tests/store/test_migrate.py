"""What migrations do beyond running once (tests/contracts/test_store.py): the retention that is a setting."""

from __future__ import annotations

import msgspec
import pytest

from banksman import settings
from banksman.errors import InvalidSetting
from banksman.store.client import Store
from banksman.store.migrate import migrate


def kept_days(clickhouse: settings.ClickHouse) -> str:
    store = Store(clickhouse, reader=False)
    try:
        return str(
            store.query(
                "SELECT extract(engine_full, 'toIntervalDay\\\\((\\\\d+)\\\\)') AS days FROM system.tables "
                "WHERE database = {d:String} AND name = 'events'",
                {"d": store.database},
            )[0]["days"]
        )
    finally:
        store.close()


def test_a_changed_retention_is_applied_by_the_next_migrate(clickhouse_settings: settings.ClickHouse) -> None:
    migrate(clickhouse_settings)
    assert kept_days(clickhouse_settings) == "365"
    assert migrate(msgspec.structs.replace(clickhouse_settings, retention_days=30)) == []
    assert kept_days(clickhouse_settings) == "30"
    migrate(msgspec.structs.replace(clickhouse_settings, retention_days=30))
    assert kept_days(clickhouse_settings) == "30"


@pytest.mark.parametrize("days", ["0", "-1", "10001", "x"])
def test_a_retention_that_clickhouse_cannot_count_is_refused(days: str) -> None:
    """Beyond 2106 its times of expiry begin anew, and everything would be gone at once."""
    with pytest.raises(InvalidSetting, match="RETENTION_DAYS"):
        settings.load(settings.ClickHouse, {"BANKSMAN_RETENTION_DAYS": days})
