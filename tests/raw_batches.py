"""Records as no client of ours writes them: whoever may write to Kafka can."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c

from banksman import settings

UNREADABLE: list[tuple[bytes, bytes | None, list[Any]]] = [(b"x", b"{}", [("a[[b", b"")])]
"""One whose header's name is not UTF-8."""


async def put(
    kafka: settings.Kafka, topic: str, partition: int, records: list[tuple[bytes, bytes | None, list[Any]]]
) -> None:
    """One batch of (key, value, headers), in which every `[[` became bytes that are not UTF-8, also in a header's name."""
    producer = AIOKafkaProducer(**kafka.client(), acks="all")
    await producer.start()
    batch = producer.create_batch()
    for key, value, headers in records:
        assert batch.append(timestamp=None, key=key, value=value, headers=headers) is not None
    batch.close()
    made = bytearray(bytes(batch._builder.build()).replace(b"[[", b"\xff\xfe"))
    made[17:21] = calc_crc32c(bytes(made[21:])).to_bytes(4, "big")
    batch._buffer = made
    await (await producer.send_batch(batch, topic, partition=partition))
    await producer.stop()


def send(
    kafka: settings.Kafka, topic: str, partition: int, records: list[tuple[bytes, bytes | None, list[Any]]]
) -> None:
    """The same from plain code."""
    asyncio.run(put(kafka, topic, partition, records))
