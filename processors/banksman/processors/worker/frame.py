"""The Faust app that a worker runs in, and its tables."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

import faust

from banksman.processors.worker import tables, transport

if TYPE_CHECKING:
    from banksman.settings import Kafka
    from banksman.settings import Worker as Settings

FETCHES, IN_STREAM = 40, 400
"""Messages that are taken at once, and those that wait."""
REQUEST_S = 4.0
"""Longer than a rebalance may take, that an answer of the broker is waited for."""


class Laid(NamedTuple):
    """How `actions` and `decisions` are laid out in Kafka. The changelogs are laid out like them: what counts what happened
    must not be lost more easily than what happened.
    """

    partitions: int
    copies: int


def app(kafka: Kafka, settings: Settings, name: str, laid: Laid) -> transport.App:
    """Faust as a worker wants it. `name`: of the worker."""
    options = kafka.client()
    credentials: Any = None
    if kafka.kafka_security.startswith("SASL"):
        credentials = faust.SASLCredentials(
            username=options["sasl_plain_username"], password=options["sasl_plain_password"],
            mechanism=options["sasl_mechanism"], ssl_context=options.get("ssl_context"),
        )  # fmt: skip
    elif kafka.kafka_security == "SSL":
        credentials = faust.SSLCredentials(context=options["ssl_context"])
    return transport.App(
        f"{kafka.topic_prefix}processors",
        datadir=tempfile.mkdtemp(prefix="banksman-"),  # Faust wants one, and keeps nothing there
        broker=f"{transport.SCHEME}://" + ";".join(options["bootstrap_servers"]),
        broker_credentials=credentials,
        store=f"{tables.SCHEME}://",
        topic_partitions=laid.partitions,
        topic_replication_factor=laid.copies,
        key_serializer="raw",
        value_serializer="raw",
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=name,
        broker_session_timeout=settings.worker_session_s,
        broker_heartbeat_interval=settings.worker_session_s / 4,
        broker_rebalance_timeout=(rebalance_s := max(6.0, settings.worker_session_s)),
        broker_request_timeout=rebalance_s + REQUEST_S,  # joining a group is a request that waits for the others
        consumer_metadata_max_age_ms=options["metadata_max_age_ms"],
        broker_commit_interval=1.0,
        broker_max_poll_records=8000,
        consumer_max_fetch_size=1 << 20,
        stream_buffer_maxsize=IN_STREAM,
        stream_wait_empty=False,
        topic_disable_leader=True,
        web_enabled=False,
        TableManager=transport.Tables,
        cython_optimizations=True,
    )


def table(of: transport.App, name: str, laid: Laid) -> Any:
    """A table of states, with the topic that it is read back from."""
    return of.Table(
        name, partitions=laid.partitions, key_type=bytes, value_type=bytes, recovery_buffer_size=FETCHES,
        extra_topic_configs={
            "cleanup.policy": "compact",
            "message.timestamp.type": "LogAppendTime", "segment.ms": "600000", "segment.bytes": str(16 << 20),
            "min.cleanable.dirty.ratio": "0.1", "unclean.leader.election.enable": "false",
            "min.insync.replicas": "2" if laid.copies >= 3 else "1",
        },
    )  # fmt: skip
