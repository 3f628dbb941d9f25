"""`banksman migrate`: the Kafka topics, their ACLs, and the ClickHouse tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from banksman.cli import acls, show
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    import argparse

HELP = """Make what is missing: the Kafka topics (and check those that are there), then the numbered migrations of ClickHouse
that have not run yet. What is done is never undone or changed; running it again does nothing.

`acls` has nothing to do with the tables: it prints the kafka-acls.sh commands that let every service and agent do what it has
to and nothing else (docs/security.md), or makes them with --apply."""
EXAMPLES = """
  banksman migrate --dry-run        what would be made
  banksman migrate
  banksman migrate list             every migration and whether it has run
  banksman migrate acls             commands for one Kafka user a service, named banksman-enforcer and so on
  banksman migrate acls --user agents=agent-1 --user agents=agent-2 --apply
  banksman migrate acls --user bootstrap=banksman-bootstrap --apply      for the first operator; never by default
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "verb",
        nargs="?",
        choices=("list", "acls"),
        help="list the migrations, or print ACLs, instead of running anything",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be made, make nothing")
    acls.arguments(parser)
    show.json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    if args.verb == "acls":
        return acls.run(args)
    if args.user or args.apply:
        raise InvalidInput("goes with `migrate acls` only", field="--user" if args.user else "--apply")
    import asyncio

    from banksman import log, provision, settings
    from banksman.store.client import Store
    from banksman.store.migrate import migrate, migrations, pending

    log.hush_kafka()
    kafka, clickhouse = settings.load(settings.Kafka), settings.load(settings.ClickHouse)
    store = Store(clickhouse, reader=False)
    try:
        waiting = {migration.number for migration in pending(store, clickhouse)}
    finally:
        store.close()
    if args.verb == "list":
        every = [
            {"number": one.number, "name": one.name, "sha256": one.sha256, "ran": one.number not in waiting}
            for one in migrations(clickhouse)
        ]
        if args.json:
            show.emit({"migrations": every})
        else:
            show.table(("migration", "has run"), [(one["name"], "yes" if one["ran"] else "no") for one in every])
        return 0
    if args.dry_run:
        topics = asyncio.run(provision.missing_topics(kafka))
        tables = [one.name for one in migrations(clickhouse) if one.number in waiting]
    else:
        topics = asyncio.run(_topics())
        tables = [one.name for one in migrate(clickhouse)]
    if args.json:
        show.emit({"topics": topics, "migrations": tables, "dry_run": args.dry_run})
        return 0
    verb = "would be made" if args.dry_run else "made"
    show.say(f"topics {verb}: {', '.join(topics) or 'none, all are there'}")
    show.say(f"migrations {'that would run' if args.dry_run else 'run'}: {', '.join(tables) or 'none, all have run'}")
    return 0


async def _topics() -> list[str]:
    """Make what is missing, then refuse what is there and wrong (BadDeployment)."""
    from banksman import provision, settings

    kafka = settings.load(settings.Kafka)
    made = await provision.create_topics(kafka)
    await provision.check_topics(kafka)
    return made
