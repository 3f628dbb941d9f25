"""Numbered, forward-only SQL files are the only DDL. Each runs once; what ran is written down with its digest."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from banksman.errors import BadDeployment, InvalidSetting
from banksman.store import cluster
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
        statements = [part.strip().rstrip(";") for part in ready.split(";\n") if part.strip(" ;\n")]
        if name := settings.clickhouse_cluster:
            statements = [made for one in statements for made in cluster.on_cluster(one, name)]
        found.append(Migration(int(match[1]), file.name, text, tuple(statements)))
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
        if settings.clickhouse_cluster:
            _know_cluster(store, settings.clickhouse_cluster)
        todo = pending(store, settings)
        _same_form(_engines(store), settings)
        for migration in todo:
            for statement in migration.statements:
                store.command(statement)
            store.command(
                f"INSERT INTO `{store.database}`.migrations (number, name, sha256) "  # noqa: S608
                "VALUES ({number:UInt16}, {name:String}, {sha256:String})",
                {"number": migration.number, "name": migration.name, "sha256": migration.sha256},
            )
        _keep_as_set(store, settings)
        return todo
    finally:
        store.close()


def _know_cluster(store: Store, name: str) -> None:
    """InvalidSetting, BadDeployment: the server has no such cluster, or would itself write to every replica of a shard."""
    shards = store.query(
        "SELECT internal_replication AS replicates FROM system.clusters WHERE cluster = {c:String}", {"c": name}
    )
    if not shards:
        raise InvalidSetting(
            f"the server's configuration names no cluster {name!r}", field="BANKSMAN_CLICKHOUSE_CLUSTER"
        )
    if not all(shard["replicates"] for shard in shards):
        raise BadDeployment(
            f"internal_replication has to be true for every shard of the cluster {name}: the tables replicate"
        )


def _keep_as_set(store: Store, settings: ClickHouse) -> None:
    """The migration that made the table took the setting of its time; it may have been changed since."""
    engines = _engines(store)
    table, days = cluster.local("events") if settings.clickhouse_cluster else "events", settings.retention_days
    if f"toIntervalDay({days})" not in engines[table]:
        change = f"ALTER TABLE `{store.database}`.events MODIFY TTL toDateTime(received) + INTERVAL {days:d} DAY"
        for statement in cluster.on_cluster(change, name) if (name := settings.clickhouse_cluster) else [change]:
            store.command(statement)


def _engines(store: Store) -> dict[str, str]:
    """Table -> its engine, as it was made. Nothing where there is no database yet."""
    sql = "SELECT name, engine_full FROM system.tables WHERE database = {d:String}"
    return {row["name"]: row["engine_full"] for row in store.query(sql, {"d": store.database})}


def _same_form(engines: dict[str, str], settings: ClickHouse) -> None:
    """BadDeployment: the tables were made for one server and a cluster is set, or the other way round. Before anything runs."""
    if "events" in engines and engines["events"].startswith("Distributed") != bool(settings.clickhouse_cluster):
        raise BadDeployment(
            f"the tables in `{settings.clickhouse_database}` were made "
            f"{'without' if settings.clickhouse_cluster else 'for'} a cluster, which cannot be changed: set "
            "BANKSMAN_CLICKHOUSE_CLUSTER as it was, or a new BANKSMAN_CLICKHOUSE_DATABASE, which the archiver fills from Kafka"
        )
