"""One golden file per kind fixes the wire format: field names, their order, what is left out when absent."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from banksman.codec import decode, encode
from banksman.events import KINDS, Event

COMMON: dict[str, Any] = {
    "v": 1,
    "id": "019a0000-0000-7000-8000-000000000001",
    "time": "2026-11-24T15:30:00.000001Z",
    "source": "emitter-python/1.0#1",
    "seq": 7,
    "call": "019a0000-0000-7000-8000-000000000002",
    "parent": "019a0000-0000-7000-8000-000000000003",
}
SAMPLES: dict[str, Any] = {
    "project": "billing-automation", "agent": "claude-invoice-01", "session": "d97e2169", "owner": "ann@acme.example",
    "status": "ok", "error": "card declined", "text": "Pay invoice 7", "model": "claude-opus-4-1", "input_tokens": 1200,
    "output_tokens": 80, "cache_read_tokens": 900, "cache_write_tokens": 100, "cost_usd": 0.25, "duration_ms": 12.5,
    "service": "git", "action": "push", "resource": "acme/billing", "branch": "main", "args": {"force": False},
    "args_hash": "hmac-sha256:" + "a" * 64, "batch": 1, "result": {"lines": 3},
    "result_hash": "hmac-sha256:" + "b" * 64, "outcome_hash": "hmac-sha256:" + "c" * 64, "result_size": 42,
    "decision": "approve", "tier": 3,
    "rule": "claude-invoice-01/require_approval/0", "policy": "billing-automation",
    "policy_version": "billing-automation@v2+sha256:0123456789ab", "reason": "approval_required",
    "asked": "the release is due", "approval": "019a0000-0000-7000-8000-00000000000a", "shadow": "deny",
    "latency_us": 900, "expires_at": "2026-11-24T15:45:00.000001Z", "approver": "ann", "comment": "go ahead",
    "by": "ann", "token_id": "00112233aabbccdd", "token_hash": "d" * 64, "lifts": 12, "operator": "ann",
    "roles": ["viewer", "approver"], "replica": "e1b2", "file": "billing-automation.yaml", "line": 3, "key": "agents",
    "resource_hash": "hmac-sha256:" + "e" * 64, "voters": [{"any": ["ann", "bob"], "min": 2}, {}],
    "request_hash": "hmac-sha256:" + "f" * 64, "counted": ["context.ip"], "body_hash": "hmac-sha256:" + "1" * 64,
    "key_hash": "hmac-sha256:" + "2" * 64,
    "verdict": "approve", "request": "019a0000-0000-7000-8000-00000000000b", "undoes": 11,
    "address": "127.0.0.1:7700", "applied": 12, "policies": {"billing-automation": "billing-automation@v2+sha256:0123456789ab"},
    "lease_s": 3.0, "ended": True,
    "window": "2026-11-24", "unit": "tokens", "spent": 400000.0, "limit": 500000.0, "fraction": 0.8,
    "burn": 2.5, "exhausted_at": "2026-11-24T18:00:00.000000Z", "resets_at": "2026-11-25T00:00:00.000000Z",
    "budget": {"unit": "tokens", "spent": 500001, "limit": 500000, "resets_at": "2026-11-25T00:00:00.000000Z"},
    "offsets": {"actions/0": 12}, "detector": "forged", "severity": "warn", "title": "an event nobody signed",
    "fingerprint": "forged/claude-invoice-01", "evidence": {"topic": "actions"}, "suggestion": "banksman session d97e2169",
    "count": 2, "first_seen": "2026-11-24T15:29:00.000000Z", "last_seen": "2026-11-24T15:30:00.000000Z",
    "subject": "user:bob", "over": True, "partition": 1, "lag_ms": 12.5, "worker": "processors-1",
}  # fmt: skip


def sample(kind: str) -> Event:
    model = KINDS[kind]
    fields = {name: SAMPLES[name] for name in model.__struct_fields__ if name not in COMMON}
    if kind == "policy.loaded":
        fields["text"] = "{}"
    return msgspec.convert({"kind": kind, **COMMON, **fields}, model)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_wire_format(kind: str, golden: Any) -> None:
    raw = encode(sample(kind))
    golden(f"events/{kind}.json", json.dumps(json.loads(raw), indent=2, ensure_ascii=False) + "\n")
    assert encode(decode(raw, KINDS[kind].topic)) == raw


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_unknown_fields_are_no_error(kind: str) -> None:
    value = msgspec.to_builtins(sample(kind)) | {"a_field_of_the_future": {"x": 1}}
    assert decode(encode(value), KINDS[kind].topic) == sample(kind)
