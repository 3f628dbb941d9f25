"""The tables on a cluster of ClickHouse servers, made from the same migrations as on one.

The log is sharded by the number of the Kafka partition. So all rows of one Kafka partition in an insert are one part on one
shard, there or not there, and below the highest offset of a partition nothing is missing: what the archiver goes by. Copies of
a record lie on one shard, where merges find them, and an agent's actions and decisions beside each other.

`events` is the Distributed table over `events_local`: questions, views and inserts go there, and need not know. A subquery
about it is asked once and its answer sent to all shards (GLOBAL): else each would ask each, which ClickHouse refuses.
"""

from __future__ import annotations

import re

from banksman.errors import BadDeployment

SHARDED = {"events": "partition"}
"""Table -> what it is sharded by."""
EVERYWHERE = ("migrations",)
"""Tables that every server has all of."""
INSERT = {
    "distributed_foreground_insert": 1,  # what is answered is on its shard, not in a queue for it
    "insert_quorum": "auto",  # and on most of that shard's replicas: the archiver would not look at it again
}
"""Settings of an insert into a sharded table."""

_DATABASE = re.compile(r"CREATE DATABASE IF NOT EXISTS `\w+`")
_TABLE = re.compile(
    r"CREATE TABLE IF NOT EXISTS `(\w+)`\.(\w+)(\s*\(.*\)\s*ENGINE = )(\w*MergeTree)\b(?!\s*\()(.*)", re.DOTALL
)
_VIEW = re.compile(r"(CREATE (?:OR REPLACE VIEW|VIEW IF NOT EXISTS) `\w+`\.\w+)(\s+AS\b.*)", re.DOTALL)
_ALTER = re.compile(r"ALTER TABLE `(\w+)`\.(\w+)\s+(.*)", re.DOTALL)
_COLUMNS = re.compile(r"(ADD|DROP|MODIFY|RENAME|COMMENT) COLUMN\b")
_LOCAL = re.compile(r"(?:ADD|DROP) INDEX\b|MODIFY (?:SETTING|TTL)\b")
_SUBQUERY = re.compile(r"(?<!GLOBAL )(?<!GLOBAL NOT )\b((?:NOT )?IN)(\s*\(\s*SELECT\b)")


def on_cluster(statement: str, cluster: str) -> list[str]:
    """A statement for one server -> those that do the same on a cluster, in order. BadDeployment: it has no such form yet."""
    on = f" ON CLUSTER `{cluster}`"
    if _DATABASE.fullmatch(statement):
        return [statement + on]
    if view := _VIEW.fullmatch(statement):
        return [view[1] + on + globally(view[2])]
    if table := _TABLE.fullmatch(statement):
        database, name, columns, engine, rest = table.groups()
        if name in EVERYWHERE:
            replicated = f"Replicated{engine}('/clickhouse/tables/{database}/{name}', '{{shard}}-{{replica}}')"
            return [f"CREATE TABLE IF NOT EXISTS `{database}`.{name}{on}{columns}{replicated}{rest}"]
        if name in SHARDED:
            replicated = f"Replicated{engine}('/clickhouse/tables/{{shard}}/{database}/{name}', '{{replica}}')"
            over = f"Distributed('{cluster}', '{database}', '{local(name)}', {SHARDED[name]})"
            return [
                f"CREATE TABLE IF NOT EXISTS `{database}`.{local(name)}{on}{columns}{replicated}{rest}",
                f"CREATE TABLE IF NOT EXISTS `{database}`.{name}{on} AS `{database}`.{local(name)}\nENGINE = {over}",
            ]
    if (alter := _ALTER.fullmatch(statement)) and alter[2] in SHARDED:
        database, name, change = alter.groups()
        below = f"ALTER TABLE `{database}`.{local(name)}{on} {change}"
        if _COLUMNS.match(change):
            return [below, f"ALTER TABLE `{database}`.{name}{on} {change}"]
        if _LOCAL.match(change):
            return [below]
    raise BadDeployment(
        f"banksman.store.cluster knows no form of this for a cluster: {' '.join(statement.split())[:200]}"
    )


def globally(sql: str) -> str:
    """A question of ours, with its subqueries asked once for all shards. On one server that changes nothing."""
    return _SUBQUERY.sub(r"GLOBAL \1\2", sql)


def local(table: str) -> str:
    """The name of a shard's part of a table."""
    return f"{table}_local"
