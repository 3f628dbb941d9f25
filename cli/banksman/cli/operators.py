"""`banksman operators add`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from banksman.cli import client, credential
from banksman.errors import BadDeployment, BrokerAway, InvalidInput, InvalidSetting

if TYPE_CHECKING:
    import argparse

    from banksman.settings import Kafka
    from banksman.signing import Secret

HELP = """Give a person a token. Roles: viewer (sees), approver (answers approvals), operator (kills, revokes, pauses),
admin (all of it, enrols, replays). The very first one of a production deployment has nobody to ask: with --bootstrap the
record is signed with the server secret (BANKSMAN_SECRET_FILE) and written straight to Kafka (BANKSMAN_KAFKA); --new-secret
makes that file before (0600; copy it to every service, it is what all signing keys come from)."""
EXAMPLES = """
  banksman operators add ann@acme.example --role approver
  banksman operators add oncall --role operator --role approver --out oncall.token
  BANKSMAN_SECRET_FILE=/etc/banksman/secret.json BANKSMAN_KAFKA=k1:9092 \\
    banksman operators add root@acme.example --role admin --bootstrap --new-secret --out admin.token
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    verbs = parser.add_subparsers(dest="verb", metavar="add", required=True)
    add = credential.subcommand(verbs, "add", "enrol an operator; the token is shown once")
    add.add_argument("name", help="the person's name, e.g. an e-mail address")
    add.add_argument(
        "--role", action="append", required=True, choices=("viewer", "approver", "operator", "admin"), help="repeatable"
    )
    add.add_argument("--bootstrap", action="store_true", help="sign with the server secret, write straight to Kafka")
    add.add_argument("--new-secret", action="store_true", help="make the secret file first; it may not be there yet")
    credential.out_argument(add, "token")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    if args.new_secret and not args.bootstrap:
        raise InvalidInput("goes with --bootstrap only", field="--new-secret")
    sentence = f"{args.name} is enrolled as {', '.join(dict.fromkeys(args.role))}"
    if args.bootstrap:
        return credential.hand_over(lambda: _bootstrap(args), args, sentence)
    enforcer, body = client.enforcer(), {"name": args.name, "roles": args.role}
    return credential.hand_over(lambda: enforcer.post("/v1/operators", body), args, sentence)


def _bootstrap(args: argparse.Namespace) -> dict[str, Any]:
    """Write the enrolment into `control` ourselves. InvalidInput: the name is taken; BrokerAway."""
    import asyncio

    from aiokafka.errors import KafkaError

    from banksman import log, settings
    from banksman.cli.bootstrap import enrol_operator, known_identities
    from banksman.events import is_name
    from banksman.identities import roles_from
    from banksman.signing import new_token, service_signer

    if not is_name(args.name):
        raise InvalidInput("must be a name of at most 128 letters, digits and . _ @ : -", field="name")
    log.hush_kafka()
    kafka = settings.load(settings.Kafka)
    token, _, _ = new_token("bmo")
    roles = roles_from(args.role)

    async def write() -> None:
        await _control_is_there(kafka)
        secret = _secret(args)  # a secret that nothing is signed with yet would only be in the way
        if args.name in (await known_identities(kafka, secret)).operators:
            raise InvalidInput(f"{args.name} is enrolled already", field="name")
        await enrol_operator(
            kafka,
            service_signer(secret, "cli"),
            name=args.name,
            roles=roles,
            token=token,
            source="cli",
            reason="bootstrap by the command line",
        )

    try:
        asyncio.run(write())
    except (KafkaError, OSError) as error:
        raise BrokerAway(f"Kafka at {kafka.kafka} did not take it: {error} (BANKSMAN_KAFKA says where)") from None
    return {"name": args.name, "roles": roles, "token": token}


async def _control_is_there(kafka: Kafka) -> None:
    """BadDeployment: `migrate` has not run yet. BrokerAway: nobody there."""
    from banksman.provision import connect_admin
    from banksman.topics import Topic

    admin = await connect_admin(kafka, patience=0)
    try:
        there = await admin.list_topics()
    finally:
        await admin.close()
    if kafka.topic(Topic.CONTROL) not in there:
        raise BadDeployment(f"{kafka.topic(Topic.CONTROL)} is not there (`banksman migrate` makes it)")


def _secret(args: argparse.Namespace) -> Secret:
    from banksman import settings
    from banksman.signing import create_secret, load_secret

    file = Path(settings.load(settings.Secrets).secret_file)
    if not args.new_secret:
        return load_secret(file)
    if file.exists():
        raise InvalidInput(
            f"{file} is there already; every key comes from it, it is not made again", field="--new-secret"
        )
    try:
        return create_secret(file)
    except OSError as error:
        raise InvalidSetting(f"cannot make {file}: {error.strerror}", field="BANKSMAN_SECRET_FILE") from None
