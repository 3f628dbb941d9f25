"""Numbered, forward-only SQL files are the only DDL. Each runs once; what ran is written down with its digest."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from banksman.errors import BadDeployment
from banksman.store.client import Store

if TYPE_CHECKING:
    from banksman.settings import ClickHouse

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
_PLACE = re.compile(r"@(\w+)@")


@dataclass(frozen=True)
class Migration:
    """One file. `text` still has its places (`@database@`), `statements` are ready to run."""

    number: int
    name: str
    text: str
    statements: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Digest of the file, not of what a setting made of it."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def migrations(settings: ClickHouse) -> list[Migration]:
    """All of them, in order, with the settings filled in."""
    places = {"database": settings.clickhouse_database, "retention_days": str(settings.retention_days)}
    found = []
    for file in resources.files(__package__).joinpath("migrations").iterdir():
        match = _NAME.fullmatch(file.name)
        if not match:
            continue
        text = file.read_text()
        bare = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))
        ready = _PLACE.sub(lambda place: places[place[1]], bare)
        statements = tuple(part.strip() for part in ready.split(";\n") if part.strip(" ;\n"))
        found.append(Migration(int(match[1]), file.name, text, tuple(s.rstrip(";") for s in statements)))
    found.sort(key=lambda migration: migration.number)
    return found


def pending(store: Store, settings: ClickHouse) -> list[Migration]:
    """What has not run yet. BadDeployment: a file that ran was changed, or the database is newer than this version."""
    known = store.query("SELECT count() AS n FROM system.databases WHERE name = {d:String}", {"d": store.database})
    there = known[0]["n"] and store.query(
        "SELECT count() AS n FROM system.tables WHERE database = {d:String} AND name = 'migrations'",
        {"d": store.database},
    )
    every = migrations(settings)
    if not (there and there[0]["n"]):
        return every
    ran = {
        row["number"]: row
        for row in store.query(f"SELECT number, name, sha256 FROM `{store.database}`.migrations ORDER BY number, at")  # noqa: S608
    }
    ours = {migration.number: migration for migration in every}
    for number, row in ran.items():
        if number not in ours:
            raise BadDeployment(f"the database knows migration {row['name']}, this version of banksman does not")
        if ours[number].sha256 != row["sha256"]:
            raise BadDeployment(f"migration {row['name']} was changed after it ran; add a new one instead")
    return [migration for migration in every if migration.number not in ran]


def migrate(settings: ClickHouse) -> list[Migration]:
    """Run what is pending, then see that the log is kept for as long as the setting says -> what was run. Every statement
    can be repeated, so two at once, or one cut off, do no harm.
    """
    store = Store(settings, reader=False, timeout=300)
    try:
        todo = pending(store, settings)
        for migration in todo:
            for statement in migration.statements:
                store.command(statement)
            store.command(
                f"INSERT INTO `{store.database}`.migrations (number, name, sha256) "  # noqa: S608
                "VALUES ({number:UInt16}, {name:String}, {sha256:String})",
                {"number": migration.number, "name": migration.name, "sha256": migration.sha256},
            )
        _keep_as_set(store, settings.retention_days)
        return todo
    finally:
        store.close()


def _keep_as_set(store: Store, days: int) -> None:
    """The migration that made the table took the setting of its time; it may have been changed since."""
    [table] = store.query(
        "SELECT engine_full FROM system.tables WHERE database = {d:String} AND name = 'events'", {"d": store.database}
    )
    if f"toIntervalDay({days})" not in table["engine_full"]:
        store.command(f"ALTER TABLE `{store.database}`.events MODIFY TTL toDateTime(received) + INTERVAL {days:d} DAY")
