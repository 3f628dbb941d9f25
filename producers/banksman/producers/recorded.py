"""The emitter of a replay: recorded events in many agents' names, with an operator's right, through the same outbox.

The events carry everything themselves (id, time, project, agent, source) and must be the same bytes in every run: nothing is
stamped, numbered or redacted here. Redaction and hashes are the enforcer's, which has the key of the replayed agent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from banksman import codec
from banksman.errors import InvalidEvent, Unavailable
from banksman.producers import snapshot
from banksman.producers.http_transport import HttpTransport
from banksman.producers.outbox import Bounds, Outbox
from banksman.producers.record import Unrecordable
from banksman.topics import Topic

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

PATIENCE_S = 60.0


class RecordedEmitter:
    """Sends to `POST /v1/events` with `Banksman-Replay: RUN`. Unlike an agent's, it waits when there is no room."""

    def __init__(self, run: str, url: str, token: str, *, spool: Path, ca_file: str = "") -> None:
        """`spool`: a folder for this run, where a run that was killed left what it had not sent."""
        transport = HttpTransport(url, token, ca_file=ca_file, headers={"Banksman-Replay": run})
        self._outbox = Outbox(spool, run, _as_it_is, transport, Bounds(keep=True))
        self._outbox.start()

    def emit(self, event: dict[str, Any]) -> None:
        """Take a whole event; waits for room when there is none. Unavailable: not in time."""
        if self._outbox.full or not self._outbox.put(snapshot.take(event)):
            self.flush()
            if not self._outbox.put(snapshot.take(event)):
                raise Unavailable("the emitter is closed")

    def flush(self) -> None:
        """Return when everything that was taken is durable. Unavailable: not in time, or the enforcer refused an event."""
        sent = self._outbox.flush(PATIENCE_S)
        stats = self._outbox.stats()
        if stats.refused:
            raise Unavailable(f"{stats.refused} events were refused; they are in `refused` under {self._outbox.home}")
        if not sent:
            raise Unavailable(stats.why or f"events were not acknowledged within {PATIENCE_S:g} s")

    def close(self) -> bool:
        """Send what is left, if that goes quickly. Whether nothing is left."""
        return self._outbox.close(5.0) and not self._outbox.stats().refused

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_it_is(taken: bytes, _source: str, _seq: int) -> bytes:
    raw = codec.encode(snapshot.give(taken))
    try:
        codec.decode(raw, Topic.ACTIONS)
    except InvalidEvent as error:
        raise Unrecordable(str(error), raw) from None
    return raw
