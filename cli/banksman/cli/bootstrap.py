"""The first operator: written straight into `control`, signed with the server secret, because nobody could ask for it yet."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiokafka import TopicPartition

from banksman import codec
from banksman.bus import consumer, goodbye, producer
from banksman.errors import BrokerAway, InvalidInput
from banksman.events import OperatorEnrolled, is_name
from banksman.identities import Identities, Operator
from banksman.provision import PATIENCE_S
from banksman.service_events import service_event
from banksman.signing import Signer, Verifier, service_signer, token_hash
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic

if TYPE_CHECKING:
    from banksman.settings import Kafka
    from banksman.signing import Secret

FIRST = "admin"


async def known_identities(kafka: Kafka, secret: Secret) -> Identities:
    """Who `control` says is known, up to its end as it is now. Only verified records count."""
    where = TopicPartition(kafka.topic(Topic.CONTROL), 0)
    reading = consumer(kafka, auto_offset_reset="earliest")
    identities, verifier = Identities(), Verifier(secret)
    try:
        await reading.start()
        reading.assign([where])
        await reading.seek_to_beginning(where)
        end = (await reading.end_offsets([where]))[where]
        while await reading.position(where) < end:
            for record in (await reading.getmany(timeout_ms=500)).get(where, []):
                told = service_event(record, Topic.CONTROL, record.topic, verifier)
                if told is not None:
                    identities.apply(told[0])
    finally:
        await reading.stop()
    return identities


async def enrol_operator(
    kafka: Kafka, signer: Signer, *, name: str, roles: list[str], token: str, source: str, reason: str
) -> None:
    """Append a signed `operator.enrolled`. Returns when it is acknowledged."""
    if not is_name(name):
        raise InvalidInput("is not a name (letters, digits and . _ @ : -, at most 128)", field=name)
    event = OperatorEnrolled(
        v=1, id=uuid7(), time=rfc3339(), source=source, operator=name, roles=list(roles),  # type: ignore[arg-type]
        token_id=token.split("_")[1], token_hash=token_hash(token), reason=reason,
    )  # fmt: skip
    topic, key, value = kafka.topic(Topic.CONTROL), f"operator.enrolled/{event.id}".encode(), codec.encode(event)
    headers = signer.headers(topic, key, value, id=event.id, kind="operator.enrolled", time=event.time, source=source)
    sender = producer(kafka)
    try:
        await sender.start()
        async with asyncio.timeout(PATIENCE_S):  # the producer itself never gives up
            await sender.send_and_wait(topic, value, key=key, partition=0, headers=headers)
    except TimeoutError:
        raise BrokerAway(
            f"{topic}: not acknowledged within {PATIENCE_S:g} s: {name} may or may not be enrolled"
        ) from None
    finally:
        await goodbye(sender.stop())


async def ensure_admin(kafka: Kafka, secret: Secret, token: str, *, source: str) -> str | None:
    """See to it that `token` is an admin's -> the name of one who was enrolled now, or None.

    The token's file is written before the record: whoever is killed in between finds the file and enrols that token.
    When another `admin` is known already (its token file was lost), the next is called admin-2.
    """
    identities = await known_identities(kafka, secret)
    known = identities.by_token(token)
    if isinstance(known, Operator) and known.may("admin"):
        return None
    number, name = 1, FIRST
    while name in identities.operators:
        number += 1
        name = f"{FIRST}-{number}"
    signer = service_signer(secret, "up")
    reason = "first admin of this machine"
    await enrol_operator(kafka, signer, name=name, roles=["admin"], token=token, source=source, reason=reason)
    return name
