"""Answers of the enforcer and the console as docs/reference/http-console.md says, to be changed by tests."""

from __future__ import annotations

from typing import Any

ABSENT = dict.fromkeys(
    (
        "seq", "call", "parent", "service", "action", "resource", "branch", "args", "text", "decision", "tier", "rule",
        "policy_version", "reason", "asked", "shadow", "latency_us", "approval", "approver", "expires_at", "status", "error",
        "subject", "result", "result_size", "duration_ms", "model", "input_tokens", "output_tokens", "cache_read_tokens",
        "cache_write_tokens", "priced", "tokens", "cost_usd", "tokens_total", "cost_usd_total", "late", "raw",
    )
)  # fmt: skip


def step(n: int, kind: str, **changes: Any) -> dict[str, Any]:
    """A step of a session."""
    made = ABSENT | {
        "n": n, "id": f"id-{n}", "kind": kind, "time": f"2026-03-01T12:00:{n:02d}.500000Z",
        "received": f"2026-03-01T12:00:{n:02d}.600000Z", "source": "emitter-python/1.0#1c2d", "verified": True,
        "author": "agent:shop/buyer/1", "id_reused": False, "voided": False, "gap": 0, "topic": "actions", "partition": 0,
        "offset": n,
    }  # fmt: skip
    assert changes.keys() <= made.keys(), changes.keys() - made.keys()
    return made | changes


def header(**changes: Any) -> dict[str, Any]:
    """A session's header."""
    made = {
        "agent": "buyer", "session": "s1", "project": "shop", "owner": "ann@acme.example", "replay": None,
        "policy_versions": ["shop@v3+sha256:0123456789ab"], "sources": ["emitter-python/1.0#1c2d"], "state": "ended",
        "status": "ok", "error": None, "started": "2026-03-01T12:00:01.000000Z", "ended": "2026-03-01T12:02:05.200000Z",
        "last_seen": "2026-03-01T12:02:05.200000Z", "duration_s": 124.2, "steps": 0, "actions": 2, "allowed": 1, "denied": 1,
        "sent_to_approval": 0, "voided": 0, "tokens": 1200, "cost_usd": 3.2, "unpriced_calls": 0, "unverified": 0, "late": 0,
        "id_reused": 0, "missing": 0, "controls": [],
    }  # fmt: skip
    assert changes.keys() <= made.keys()
    return made | changes


def session(
    *steps: dict[str, Any], next_: str | None = None, gaps: Any = (), repeats: Any = (), **changes: Any
) -> dict[str, Any]:
    """`GET /v1/sessions/{session}`."""
    told = header(**{"steps": len(steps)} | changes)
    return {
        "header": told,
        "steps": list(steps),
        "gaps": list(gaps),
        "repeats": list(repeats),
        "next": next_,
        "took_ms": 1.0,
    }


PUSH = {"service": "git", "action": "push", "resource": "acme/billing", "branch": "feature/a"}


def story() -> list[dict[str, Any]]:
    """A short session: a prompt, a model call, a push that was allowed and done, a delete that was denied."""
    return [
        step(1, "session.started"),
        step(2, "prompt", text="please push"),
        step(3, "model.call", model="claude-x", tokens=1200, cost_usd=3.2, duration_ms=3200.0, priced="given"),
        step(4, "tool.call", **PUSH, args={"force": False}, decision="allow"),
        step(
            5,
            "decision",
            **PUSH,
            call="id-4",
            decision="allow",
            tier=2,
            rule="buyer/allow/0",
            reason="allowed",
            topic="decisions",
        ),
        step(6, "tool.result", call="id-4", status="ok", duration_ms=120.0),
        step(7, "tool.call", service="aws", action="s3:DeleteObject", resource="arn:aws:s3:::b/k", decision="deny"),
        step(
            8, "decision", service="aws", action="s3:DeleteObject", call="id-7", decision="deny", reason="default_deny"
        ),
        step(9, "session.ended", status="ok"),
    ]


def now(**changes: Any) -> dict[str, Any]:
    """`GET /v1/agents/{agent}/now` of an agent that works."""
    operation: dict[str, Any] = {**PUSH}
    made = {
        "agent": "buyer", "project": "shop", "owner": "ann@acme.example", "replay": None, "state": "running",
        "since": "2026-03-01T12:00:04.000000Z", "session": "s1", "session_started": "2026-03-01T12:00:01.000000Z",
        "last_seen": "2026-03-01T12:00:04.000000Z",
        "open_call": {"call": "id-4", **operation, "started": "2026-03-01T12:00:04.000000Z", "age_s": 3.2}, "open_calls": 1,
        "last_decision": {
            "id": "id-5", "decision": "allow", "tier": 2, "rule": "buyer/allow/0", "reason": "allowed",
            "policy_version": "shop@v3+sha256:0123456789ab", **operation, "approval": None,
            "at": "2026-03-01T12:00:04.000000Z", "age_s": 3.1,
        },
        "approval": None,
        "tokens": {
            "used": 120_000, "limit": 500_000, "cost_usd": 3.2, "limit_usd": 40.0, "unpriced_calls": 0, "window": "day",
            "timezone": "UTC", "since": "2026-03-01T00:00:00.000000Z", "resets_at": "2026-03-02T00:00:00.000000Z",
        },
        "last_actions": [
            {
                "time": "2026-03-01T12:00:04.000000Z", "kind": "tool.call", "id": "id-4", "call": "id-4", "session": "s1",
                **operation, "model": None, "decision": "allow", "rule": "buyer/allow/0", "reason": "allowed", "status": None,
                "error": None, "duration_ms": None, "tokens": 0, "cost_usd": None, "open": True,
            },
        ],
        "controls": [], "took_ms": 12.4,
    }  # fmt: skip
    return made | changes


def never_seen() -> dict[str, Any]:
    """The same of an agent that is enrolled, no more."""
    nothing = dict.fromkeys(
        ("session", "session_started", "since", "last_seen", "open_call", "last_decision", "approval")
    )
    return now(state="never_seen", **nothing, open_calls=0, last_actions=[])


def enforcer(**changes: Any) -> dict[str, Any]:
    """`GET /v1/status` of an enforcer that is well."""
    made = {
        "replica": "r1", "address": "http://127.0.0.1:7700", "version": "0.1.0", "started": "2026-03-01T00:00:00.000000Z",
        "enforcing": True, "reason": None, "lease": {"valid": True, "seconds_left": 1.2},
        "policies": [
            {
                "project": "shop", "policy_version": "shop@v3+sha256:0123456789ab", "file": "shop.yaml", "mode": "enforce",
                "owner": "payments-team", "since": "2026-03-01T00:00:00.000000Z", "age_s": 43_200.0,
            },
        ],
        "rejected": [],
        "replicas": [
            {"replica": "r1", "address": "http://127.0.0.1:7700", "applied": 44, "lag": 0, "heard_s_ago": 0.1, "policies": {}},
        ],
        "disagreements": [], "control": {"applied": 44}, "queue": {"waiting": 0, "bound": 4096}, "undelivered": 0, "dropped": 0,
        "decisions": {"allow": 10, "deny": 2, "approve": 1, "unrecorded": 0, "voids": 0}, "agents": 1, "operators": 2,
        "controls": {"revoked": [], "paused": [], "killed": 0},
        "budgets": {"counted": [{"partition": 0, "counted_s_ago": 0.4, "known": True}], "unknown": 0, "limited": True},
    }  # fmt: skip
    return made | changes


def console(lag: int = 0, at: int = 100, **changes: Any) -> dict[str, Any]:
    """`GET /v1/status` of a console that is well; its archiver goes on at offset `at`, `lag` behind."""
    partition = {"topic": "actions", "partition": 0, "end": at + lag, "stored": at - 1, "next": at, "lag": lag}
    made = {
        "version": "0.1.0", "started": "2026-03-01T00:00:00.000000Z", "ready": True, "reason": None,
        "clickhouse": {"reachable": True, "error": None, "version": "26.9", "rows": 1234, "newest": None, "newest_age_s": 0.4},
        "kafka": {
            "reachable": True, "error": None, "heard_s_ago": 0.8, "control": {"applied": 44, "caught_up": True, "refused": 0},
        },
        "archiver": {"lag": lag, "waiting_s": 0.0, "partitions": [partition]},
        "processors": {"lag": 0, "waiting_s": 0.0}, "notifier": {"lag": 0, "waiting_s": 0.0, "next": 43},
        "findings_last_hour": {"page": 0, "warn": 0, "info": 0}, "dead_letters": 0, "watchers": 0, "agents": 1, "operators": 2,
    }  # fmt: skip
    return made | changes


def finding(**changes: Any) -> dict[str, Any]:
    """One of `GET /v1/findings`."""
    made = {
        "id": "f1", "at": "2026-03-01T11:59:00.000000Z", "kind": "finding", "detector": "forged", "severity": "warn",
        "title": "a note in actions claims to be buyer and is signed by nobody we know", "project": "shop", "agent": "buyer",
        "session": "s1", "fingerprint": "forged/actions/buyer", "count": 1, "first_seen": None, "last_seen": None,
        "evidence": {}, "suggestion": "find out who can write to Kafka",
    }  # fmt: skip
    return made | changes
