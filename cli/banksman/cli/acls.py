"""`banksman migrate acls`: what every service and agent may do in Kafka, as commands, as JSON, or made at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from banksman.cli import show
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--user", action="append", default=[], metavar="KIND=USER",
        help="acls: only these; a Kafka user of that kind, repeatable (default: banksman-KIND of every kind but bootstrap)",
    )  # fmt: skip
    parser.add_argument("--apply", action="store_true", help="acls: make them, as the user of BANKSMAN_KAFKA_USERNAME")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    import asyncio

    from banksman import acls, log, settings

    log.hush_kafka()
    kafka = settings.load(settings.Kafka)
    principals = acls.principals_of(
        _given(args.user) or [(kind, f"banksman-{kind}") for kind, needs in acls.KINDS.items() if not needs.once]
    )
    if args.apply:
        asyncio.run(acls.make(kafka, principals))
    if args.json:
        made = [
            {"kind": kind, "principal": principal, "resource": acl.resource, "name": acl.name,
             "pattern": "prefixed" if acl.prefixed else "literal", "operation": acl.operation}
            for kind, several in principals.items() for principal in several for acl in acls.needed(kind, kafka)
        ]  # fmt: skip
        show.emit({"acls": made, "applied": args.apply})
    elif args.apply:
        for kind, several in principals.items():
            show.say(f"{kind}: {', '.join(several)} may do what it has to, {len(acls.needed(kind, kafka))} ACLs")
    else:
        print("\n".join(acls.commands(kafka, principals)))  # to be run, not read: no line may be wrapped
    return 0


def _given(words: list[str]) -> list[tuple[str, str]]:
    from banksman.acls import KINDS

    found = []
    for word in words:
        kind, _, user = word.partition("=")
        if kind not in KINDS or not user:
            raise InvalidInput(f"{word!r} is not KIND=USER, with KIND one of {', '.join(KINDS)}", field="--user")
        found.append((kind, user))
    return found
