"""`banksman operators add`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from banksman.cli import agents, client, show

if TYPE_CHECKING:
    import argparse

HELP = """Give a person a token. Roles: viewer (sees), approver (answers approvals), operator (kills, revokes, pauses),
admin (all of it, enrols, replays). The very first one of a production deployment has nobody to ask: with --bootstrap the
record is signed with the server secret (BANKSMAN_SECRET_FILE) and written straight to Kafka (BANKSMAN_KAFKA)."""
EXAMPLES = """
  banksman operators add ann@acme.example --role approver
  banksman operators add oncall --role operator --role approver --out oncall.token
  BANKSMAN_SECRET_FILE=/etc/banksman/secret.json BANKSMAN_KAFKA=k1:9092 \\
    banksman operators add root@acme.example --role admin --bootstrap --out admin.token
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    verbs = parser.add_subparsers(dest="verb", metavar="add", required=True)
    add = verbs.add_parser("add", help="enrol an operator; the token is shown once", allow_abbrev=False)
    add.add_argument("name", help="the person's name, e.g. an e-mail address")
    add.add_argument(
        "--role", action="append", required=True, choices=("viewer", "approver", "operator", "admin"), help="repeatable"
    )
    add.add_argument("--bootstrap", action="store_true", help="sign with the server secret, write straight to Kafka")
    add.add_argument("--out", metavar="FILE", type=Path, help="write the token there (0600) instead of showing it")
    show.json_argument(add)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    agents.reserve(args.out)
    sentence = f"{args.name} is enrolled as {', '.join(dict.fromkeys(args.role))}"
    if args.bootstrap:
        return agents.hand_over(_bootstrap(args), args, sentence)
    answer = client.enforcer().post("/v1/operators", {"name": args.name, "roles": args.role})
    return agents.hand_over(answer, args, sentence)


def _bootstrap(args: argparse.Namespace) -> dict[str, str]:
    """Write the enrolment into `control` ourselves. InvalidInput: the name is taken."""
    import asyncio

    from banksman import log, settings
    from banksman.cli.bootstrap import enrol_operator, known_identities
    from banksman.errors import InvalidInput
    from banksman.identities import roles_from
    from banksman.signing import load_secret, new_token, service_signer

    log.hush_kafka()
    kafka = settings.load(settings.Kafka)
    secret = load_secret(Path(settings.load(settings.Secrets).secret_file))
    token, _, _ = new_token("bmo")
    roles = roles_from(args.role)

    async def write() -> None:
        if args.name in (await known_identities(kafka, secret)).operators:
            raise InvalidInput(f"{args.name} is enrolled already")
        signer = service_signer(secret, "cli")
        await enrol_operator(
            kafka,
            signer,
            name=args.name,
            roles=roles,
            token=token,
            source="cli",
            reason="bootstrap by the command line",
        )

    asyncio.run(write())
    return {"name": args.name, "token": token}
