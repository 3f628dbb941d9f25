"""From a snapshot to the bytes that are spooled, sent and stored: everything that takes time, away from the agent's thread.

In this order: what JSON cannot say with one meaning becomes text; args and results get their hashes, under the agent's event
key and over the originals; secrets are redacted; `source` and `seq` are added; what is larger than 1 MiB is cut; the
model has the last word.
"""

from __future__ import annotations

import base64
from datetime import datetime
from typing import TYPE_CHECKING, Any

from banksman import codec
from banksman.canonical import MAX_DEPTH, MAX_INT, canonical, masked
from banksman.errors import BanksmanError, InvalidEvent
from banksman.producers import snapshot
from banksman.redact import Redactor
from banksman.signing import Mac, digest_by
from banksman.stamps import rfc3339_ns
from banksman.topics import Topic

if TYPE_CHECKING:
    from banksman.signing import Credential

UNRECORDED = "_result"
"""A result of which only size and hashes are recorded."""


class Unrecordable(BanksmanError):
    """The model refuses it. `redacted`: the bytes it would have had."""

    def __init__(self, message: str, redacted: bytes) -> None:
        super().__init__(message)
        self.redacted = redacted


STEP_NS = 10_000_000_000
"""A clock that is set back by less than this does not turn the order of a session around: it stands still meanwhile."""


class Recorder:
    """Makes the records of one agent. For one thread."""

    def __init__(self, credential: Credential) -> None:
        self._who = {"project": credential.project, "agent": credential.agent}
        self._mac = Mac(credential.event_key)
        self._redactor = Redactor(credential.event_key)
        self._latest = 0

    def __call__(self, taken: bytes, source: str, seq: int) -> bytes:
        """The bytes of an event, from a snapshot of (its id, nanoseconds since 1970, its fields).

        Unrecordable says which field makes it one that can never be stored.
        """
        name, nanoseconds, fields = snapshot.give(taken)
        if not 0 < self._latest - nanoseconds < STEP_NS:
            self._latest = nanoseconds
        event: dict[str, Any] = {"v": 1, "id": name, "time": rfc3339_ns(self._latest), **self._who, "source": source}
        event |= {key: item for key, item in jsonable(fields).items() if item is not None or key == UNRECORDED}
        event["id"] = name
        if event.get("kind") == "tool.call":
            event.setdefault("call", name)
        args = event.get("args")
        if args is not None:
            if not isinstance(args, dict):
                args = event["args"] = {"value": args}
            if "args_hash" not in event:
                event["args_hash"] = self._digest(canonical(args))
        if "result" in event or UNRECORDED in event or isinstance(event.get("error"), str):
            self._outcome(event)
        event = self._redactor.event(event)
        event["seq"] = seq
        raw = codec.encode(event)
        if len(raw) > codec.MAX_EVENT_BYTES:
            raw = codec.encode(codec.cut(event, self._digest))
        try:
            codec.decode(raw, Topic.ACTIONS)
        except InvalidEvent as error:
            raise Unrecordable(str(error), raw) from None
        return raw

    def _digest(self, raw: bytes) -> str:
        return digest_by(self._mac, raw)

    def _outcome(self, event: dict[str, Any]) -> None:
        """`result_hash`, `result_size` and `outcome_hash`, where the agent did not give its own."""
        known = "result" in event or UNRECORDED in event
        result = event.pop(UNRECORDED, event.get("result"))
        if known:
            raw = canonical(result)
            event.setdefault("result_hash", self._digest(raw))
            event.setdefault("result_size", len(result.encode()) if isinstance(result, str) else len(raw))
        error = event.get("error")
        if event.get("kind") in ("tool.result", "api.request") and "outcome_hash" not in event:
            if isinstance(error, str):
                event["outcome_hash"] = self._digest(masked(error).encode())
            elif known:
                event["outcome_hash"] = event["result_hash"]


def refused_line(payload: bytes, why: str) -> bytes:
    """A line of the spool's file `refused`: the reason, then the event."""
    return b'{"refused":%b,"event":%b}' % (codec.encode(why), payload)


def jsonable(value: Any, depth: int = 0) -> Any:
    """The value in what JSON can say with one meaning. Containers are changed in place: they are a snapshot's own."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -MAX_INT <= value <= MAX_INT else str(value)
    if kind is float:
        return value if value - value == 0 else str(value)  # NaN and the infinities differ from themselves
    if kind is dict:
        if depth >= MAX_DEPTH:
            return _text(value)
        for key, item in value.items():
            value[key] = jsonable(item, depth + 1)
        if not all(type(key) is str for key in value):
            return {key if isinstance(key, str) else _text(key): item for key, item in value.items()}
        return value
    if kind is list:
        if depth >= MAX_DEPTH:
            return _text(value)
        value[:] = [jsonable(item, depth + 1) for item in value]
        return value
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return f"base64:{base64.b64encode(value).decode()}"
    if isinstance(value, (dict, list)):
        try:
            return codec.encode(value).decode()
        except Exception as error:  # noqa: BLE001 - keys of any type, bytes that are no text: said, not lost silently
            return f"[nested deeper than {MAX_DEPTH}: {type(error).__name__}]"
    return value.isoformat() if isinstance(value, datetime) else str(value)
