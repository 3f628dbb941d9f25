"""Why no broker lets us in. A Kafka client hides it behind "unable to bootstrap", so who cannot get in knocks once more, alone.

What a broker says for certain is about a setting, and asking again does not help. One that only closes the connection may be
going down as well: then the setting is named as a question.
"""

from __future__ import annotations

import ssl
from asyncio import IncompleteReadError, gather, wait
from typing import TYPE_CHECKING, Any

from aiokafka.conn import AIOKafkaConnection, collect_hosts
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from banksman.errors import BrokerAway, InvalidSetting

if TYPE_CHECKING:
    from banksman.settings import Kafka

ANSWER_MS = 2000
GOODBYE_S = 0.1
HOST_MISMATCH, ADDRESS_MISMATCH = 62, 64  # OpenSSL's X509_V_ERR_…
TLS_ALERT = 0x1503
"""How a TLS server begins its answer to somebody who does not speak TLS; taken for the length of an answer of Kafka's."""


async def why_not(kafka: Kafka) -> InvalidSetting | BrokerAway:
    """Why a client of these settings cannot get in: what the first broker with a reason says, else that nobody answers."""
    options = kafka.client() | {"request_timeout_ms": ANSWER_MS}
    del options["metadata_max_age_ms"]
    servers = collect_hosts(options.pop("bootstrap_servers"), randomize=False)
    answers = await gather(*(_knock(host, port, kafka, options) for host, port, _ in servers))
    certain = next((one for one in answers if isinstance(one, InvalidSetting)), None)
    said = "; ".join(one for one in answers if isinstance(one, str) and one)
    return certain or BrokerAway(f"no broker at {kafka.kafka}: {said or 'it let us in a moment later'}")


async def _knock(host: str, port: int, kafka: Kafka, options: dict[str, Any]) -> InvalidSetting | str:
    """What one broker says, "" where it lets us in."""
    server = f"{host}:{port}"
    connection = AIOKafkaConnection(host, port, **options)
    try:
        await connection.connect()
        await connection.send(MetadataRequest([]))  # who wants SASL says so only now
    except (KafkaError, OSError, TimeoutError, EOFError) as error:
        said = _said(error, kafka)
        if isinstance(said, InvalidSetting):
            return InvalidSetting(f"{server}: {said.message}", field=said.field)
        return f"{server}: {said or f'{type(error).__name__}: {error}'}"
    else:
        return ""
    finally:
        await wait({connection.close()}, timeout=GOODBYE_S)


def _said(error: BaseException, kafka: Kafka) -> InvalidSetting | str:
    """What a broker said, as an error of ours where it is certain, as a question where it is not, "" where it said nothing."""
    if isinstance(error, KafkaConnectionError) and error.__cause__ is not None:
        error = error.__cause__  # it was reading that failed
    security, field = kafka.kafka_security, "BANKSMAN_KAFKA_SECURITY"
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in (HOST_MISMATCH, ADDRESS_MISMATCH):
            return InvalidSetting(
                f"its certificate is for another host: {error.verify_message}", field="BANKSMAN_KAFKA"
            )
        about = f"{kafka.kafka_ca_file or 'the authorities of this system'}: {error.verify_message}"
        return InvalidSetting(f"its certificate is not signed by {about}", field="BANKSMAN_KAFKA_CA_FILE")
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
            what = "refuses our certificate" if kafka.kafka_cert_file else "wants a certificate of ours"
            return InvalidSetting(f"{what} ({reason})", field="BANKSMAN_KAFKA_CERT_FILE")
        return InvalidSetting(f"{security} is not what is spoken there ({reason})", field=field)
    if isinstance(error, (AuthenticationFailedError, SaslAuthenticationFailed)):
        return InvalidSetting(
            f"user {kafka.kafka_username!r} is not let in: {error}",
            field="BANKSMAN_KAFKA_USERNAME or BANKSMAN_KAFKA_PASSWORD",
        )
    if isinstance(error, UnsupportedSaslMechanismError):
        return InvalidSetting(
            f"{kafka.kafka_sasl_mechanism} is not offered there", field="BANKSMAN_KAFKA_SASL_MECHANISM"
        )
    if isinstance(error, IllegalSaslStateError):
        return InvalidSetting(f"{security} is not what is spoken there: it wants no SASL", field=field)
    if isinstance(error, IncompleteReadError) and (error.expected or 0) >> 16 == TLS_ALERT:
        return InvalidSetting(f"{security} is not what is spoken there: it speaks TLS", field=field)
    if isinstance(error, (IncompleteReadError, ConnectionResetError)):
        return f"it closes the connection without a word: does it want another {field} than {security}?"
    return ""
