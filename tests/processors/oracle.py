"""A row the plain way: one record, one dict, nothing shared with the code under test but the models and the signatures."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from banksman import codec, events
from banksman.errors import InvalidEvent
from banksman.events import kind_of
from banksman.processors.archiver.decoding import AnyKind
from banksman.signing import Verifier, may_write
from banksman.store.prices import load_prices
from banksman.topics import Topic

FIELDS = [
    "project", "agent", "session", "source", "seq", "call", "parent", "service", "action", "resource", "branch",
    "args_hash", "status", "error", "result_hash", "outcome_hash", "result_size", "duration_ms", "model",
    "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "decision", "tier", "rule", "policy",
    "policy_version", "reason", "approval", "approver", "shadow", "latency_us", "owner", "subject", "detector", "severity",
    "title", "fingerprint",
]  # fmt: skip
PRICES = load_prices()


def decoded(value: bytes, topic: Topic) -> tuple[Any, str]:
    """(the event, its kind). InvalidEvent."""
    import msgspec

    try:
        value.decode()
    except UnicodeDecodeError:
        raise InvalidEvent("not UTF-8") from None
    event: Any
    try:
        event = codec.decode(value, topic)
    except InvalidEvent as error:
        if error.field != "kind":
            raise
        try:
            event = msgspec.json.decode(value, type=AnyKind)
            datetime.fromisoformat(event.time)
        except (msgspec.DecodeError, RecursionError, ValueError) as second:
            raise InvalidEvent(str(second)) from None
        if event.kind in events.KINDS:
            raise InvalidEvent("of another topic") from None
        return event, event.kind
    return event, kind_of(event)


def row(record: Any, received_ms: int, topic: Topic, full_topic: str, verifier: Verifier) -> dict[str, Any]:
    """Columns that are not absent. InvalidEvent."""
    event, kind = decoded(record.value, topic)
    author = verifier.author(full_topic, record.key, record.headers, record.value)
    project, agent = getattr(event, "project", None), getattr(event, "agent", None)
    headers = dict(record.headers)
    verified = (
        may_write(author, topic, kind=kind, project=project, agent=agent)
        and (bool(author and author.service) or not headers.get("banksman-replay"))
        and headers.get("ce_id") == event.id.encode()
        and headers.get("ce_type") == f"banksman.{kind}".encode()
        and (topic not in (Topic.ACTIONS, Topic.DECISIONS) or record.key == (agent or "").encode())
    )
    replay = (headers.get("banksman-replay") or b"").decode() if verified else ""
    made = {name: getattr(event, name, None) for name in FIELDS}
    made["operator"] = getattr(event, "operator", None) or getattr(event, "by", None)
    moment = datetime.fromisoformat(event.time)
    earliest, latest = datetime(1900, 1, 1, tzinfo=UTC), datetime(2299, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    kept = min(max(moment, earliest), latest) - datetime(1970, 1, 1, tzinfo=UTC)
    cost = getattr(event, "cost_usd", None)
    priced = "" if cost is None else "given"
    if cost is None and isinstance(event, events.ModelCall):
        tokens = event.input_tokens, event.output_tokens, event.cache_write_tokens, event.cache_read_tokens
        cost = PRICES.cost(event.model, tokens)
        priced = "unpriced" if cost is None else f"table {PRICES.date}"
    made |= {
        "received": received_ms, "time": (kept.days * 86400 + kept.seconds) * 1_000_000 + kept.microseconds, "id": event.id,
        "kind": kind, "verified": verified, "author": str(author) if author else "", "replay": replay, "priced": priced,
        "late": "" if replay else late(topic, moment, received_ms, headers.get("banksman-sent")), "topic": topic.value,
        "partition": 3, "offset": record.offset, "raw": record.value,
        "cost_usd": None if cost is None else round(min(cost, 999_999_999.0) * 1e9),
    }  # fmt: skip
    return {name: value for name, value in made.items() if value is not None and value != ""}


def late(topic: Topic, moment: datetime, received_ms: int, sent: bytes | None) -> str:
    received = datetime.fromtimestamp(received_ms / 1000, UTC)
    if abs((moment - received).total_seconds()) <= 120:
        return ""
    if topic is not Topic.ACTIONS and moment < received:
        return "late"
    try:
        then = datetime.fromisoformat((sent or b"").decode())
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        return "late" if abs((then - received).total_seconds()) <= 120 else "skew"
    except (ValueError, OverflowError):
        return "skew"
