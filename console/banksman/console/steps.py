"""A row of the audit log as a step: what a session, `now` and the watch have in common (docs/reference/http-console.md)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from banksman.stamps import rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping

NIL = "00000000-0000-0000-0000-000000000000"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

COLUMNS = """
    toString(id) AS id_, kind, toUnixTimestamp64Micro(time) AS time_us, toUnixTimestamp64Milli(received) AS received_ms,
    project, agent, session, source, seq, toString(call) AS call_, toString(parent) AS parent_, service, action, resource,
    branch, subject, status, error, result_size, duration_ms, model, input_tokens, output_tokens, cache_read_tokens,
    cache_write_tokens, priced, cost_usd, decision, tier, rule, policy_version, reason, approval, approver, shadow, latency_us,
    owner, verified, author, replay, late, topic, partition, offset, body_hash"""
"""What `step` needs of a row of `events`, besides `raw`."""

_TEXTS = (
    "source", "service", "action", "resource", "branch", "decision", "rule", "policy_version", "reason", "shadow",
    "approval", "approver", "subject", "status", "error", "model", "priced", "author", "late",
)  # fmt: skip
_NUMBERS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_FROM_RAW = ("args", "asked", "expires_at", "result")


def step(row: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a record says by itself; what is absent is None."""
    try:
        body = json.loads(row["raw"])
    except (ValueError, RecursionError):  # not here, or nested too deeply: the rest of the row still says what it was
        body = {}
    body = body if isinstance(body, dict) else {}
    made: dict[str, Any] = {
        "id": row["id_"],
        "kind": row["kind"],
        "time": moment_us(row["time_us"]),
        "received": moment_ms(row["received_ms"]),
        "seq": row["seq"] or None,
        "call": known(row["call_"]),
        "parent": known(row["parent_"]),
        "tier": row["tier"] or None,
        "latency_us": row["latency_us"],
        "result_size": row["result_size"],
        "duration_ms": row["duration_ms"],
        "tokens": tokens_of(row),
        "cost_usd": usd(row["cost_usd"]),
        "verified": bool(row["verified"]),
        "topic": row["topic"],
        "partition": row["partition"],
        "offset": row["offset"],
        "text": body.get("text", body.get("comment")),
    }
    made |= {name: row[name] or None for name in _TEXTS}
    made |= {name: row[name] for name in _NUMBERS}
    made |= {name: body.get(name) for name in _FROM_RAW}
    return made


def encoded(value: Any) -> bytes:
    """JSON, whatever a record held: lone surrogates and integers of any size go out as they came in."""
    try:
        return msgspec.json.encode(value)
    except (ValueError, OverflowError, RecursionError):  # UnicodeEncodeError is a ValueError
        return json.dumps(value, separators=(",", ":")).encode()


def tokens_of(row: Mapping[str, Any]) -> int:
    """Input + output + cache writes: what budgets count."""
    return int(row["input_tokens"] + row["output_tokens"] + row["cache_write_tokens"])


def known(text: str) -> str | None:
    """A UUID, or None for the one that stands for none."""
    return None if text == NIL else text


def usd(value: Any) -> float | None:
    """A Decimal, or None where the cost is not known."""
    return None if value is None else float(value)


def moment_us(us: int) -> str:
    """Microseconds since 1970 -> RFC 3339."""
    return rfc3339(EPOCH + timedelta(microseconds=us))


def moment_ms(ms: int) -> str:
    """Milliseconds since 1970 -> RFC 3339."""
    return moment_us(ms * 1000)


def add_usd(total: float | None, cost: float | None) -> float | None:
    """A sum of costs of which some are not known."""
    return total if cost is None else round((total or 0.0) + cost, 9)
