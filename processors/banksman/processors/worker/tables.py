"""Faust's tables in memory, read back from changelogs as a worker believes them.

Only what a processor has signed counts, in the table and under the key that it was signed for. And what counts more wins: a
worker that was away may write a state after another one has taken its place, so the last record of a key need not be the best.
"""

from __future__ import annotations

import logging
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec
from faust.stores import STORES, memory

from banksman.control_log import DETECTORS
from banksman.processors.worker.states import decode_head
from banksman.signing import header_map
from banksman.stamps import moment_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from faust.types import EventT

    from banksman.signing import Verifier

SCHEME = "banksman"
MOST_APART_MS = 120_000
"""Between signing a tombstone and its arrival."""
_log = logging.getLogger("banksman")


class Store(memory.Store[bytes, bytes]):
    """Key -> bytes of a state, as `States.bytes_of` makes them."""

    verifier: Verifier | None = None
    """Who says what counts; set before the first recovery."""

    def put(self, key: bytes, value: bytes | None, partition: int) -> None:
        """Keep what was just written to the changelog."""
        if value is None:
            self.data.pop(key, None)
            self._key_partition.pop(key, None)
        else:
            self.data[key] = value
            self._key_partition[key] = partition

    def apply_changelog_batch(
        self,
        batch: Iterable[EventT[Any]],
        to_key: Callable[[Any], Any],  # noqa: ARG002 - keys and values are bytes as they are
        to_value: Callable[[Any], Any],  # noqa: ARG002
    ) -> None:
        """Recovery: records of the changelog in their order."""
        fetches: Iterable[Any] = (event.message for event in batch)
        for record in chain.from_iterable(fetch.records for fetch in fetches):
            key, value = record.key, record.value
            why = self._doubt(record)
            if why:
                place = f"{record.topic}/{record.partition}/{record.offset}"
                _log.error("the state at %s does not count: %s", place, why)
                continue
            held = self.data.get(key)
            if held is None or value is None or counts_as_much(value, held):
                self.put(key, value, record.partition)

    def _doubt(self, record: Any) -> str:
        """Why one does not count, or ""."""
        key, value, pairs = record.key, record.value, record.headers
        author = self.verifier.author(record.topic, key, pairs, value or b"") if self.verifier is not None else None
        if key is None or author is None or author.service != DETECTORS:
            return "no processor has signed it"
        if value is None:
            # To believe one less only keeps a state for longer. To believe a copy would forget what was spent since.
            apart_ms = abs(record.timestamp - moment_ms(header_map(pairs)["ce_time"]))
            return "it was signed at another time: a copy, or a clock is wrong" if apart_ms > MOST_APART_MS else ""
        try:
            partition = decode_head(value)[1]
        except msgspec.DecodeError as error:
            return f"it is no state: {error}"
        return "" if partition == record.partition else f"it is a copy of one in partition {partition}"


def counts_as_much(value: bytes, held: bytes) -> bool:
    """Whether a state has everything in it that another one has."""
    offsets = decode_head(value)[0]
    return all(offsets.get(topic, -1) >= offset for topic, offset in decode_head(held)[0].items())


STORES[SCHEME] = f"{__name__}:Store"
