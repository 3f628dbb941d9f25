"""Writes a recording of two support agents at work, in the format that `banksman replay` reads (docs/reference/replay.md).

    python examples/make_recording.py > recorded.jsonl

The bundled sample of `banksman up --demo` is made by it. Everything comes from one seed, so it is the same every time.
"""

from __future__ import annotations

import json
import random
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

SESSIONS = 48
TOPICS = ("double charge", "lost parcel", "login fails", "invoice address", "refund status", "cancel plan")

Step = tuple[str, str, str | None, dict[str, Any]]


def triage(choose: random.Random, ticket: int) -> list[Step]:
    """Read a ticket, look the answer up, tag it, hand it on. Now and then it goes where it should not."""
    topic = choose.choice(TOPICS)
    resource = f"ticket/{ticket}"
    steps: list[Step] = [
        ("tickets", "list", None, {"queue": "new"}),
        ("tickets", "read", resource, {}),
        ("kb", "search", None, {"query": topic}),
    ]
    steps += [("kb", "read", f"article/{choose.randint(10, 60)}", {}) for _ in range(choose.randint(0, 3))]
    steps.append(("tickets", "tag", resource, {"tags": [topic.replace(" ", "-")]}))
    if choose.random() < 0.12:
        steps.append(("customers", "export", "all", {"format": "csv"}))
    if choose.random() < 0.2:
        steps.append(("tickets", "close", resource, {"reason": "duplicate"}))
    steps.append(("tickets", "assign", resource, {"to": choose.choice(["refunds", "logistics", "accounts"])}))
    return steps


def refund(choose: random.Random, ticket: int) -> list[Step]:
    """Check a charge and pay it back."""
    charge = f"charge/ch_{ticket:06d}"
    amount = choose.choice([1900, 2900, 4900, 12900])
    steps: list[Step] = [
        ("tickets", "read", f"ticket/{ticket}", {}),
        ("stripe", "charges:read", charge, {}),
        ("stripe", "refunds:create", charge, {"amount": amount, "currency": "eur"}),
    ]
    if choose.random() < 0.15:
        steps.append(("stripe", "payouts:create", "account/main", {"amount": amount}))
    steps.append(("tickets", "comment", f"ticket/{ticket}", {"text": f"We paid back {amount / 100:.2f} EUR."}))
    return steps


def recording() -> list[dict[str, Any]]:
    """All actions, in the order of their times."""
    choose = random.Random(20_261_001)
    lines: list[dict[str, Any]] = []
    start = datetime(2026, 10, 1, 8, 0, tzinfo=UTC)
    for number in range(SESSIONS):
        refunds = choose.random() < 0.4
        agent, work = ("support-refunds-02", refund) if refunds else ("support-triage-01", triage)
        now = start + timedelta(seconds=choose.uniform(0, 9 * 3600))
        session = f"{choose.getrandbits(32):08x}"
        for service, action, resource, args in work(choose, 4100 + number):
            now += timedelta(seconds=choose.uniform(0.4, 12))
            failed = choose.random() < 0.03
            line: dict[str, Any] = {
                "time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "project": "support-desk",
                "agent": agent,
                "session": session,
                "service": service,
                "action": action,
                "resource": resource,
                "args": args,
                "input_tokens": choose.randint(400, 3000),
                "output_tokens": choose.randint(20, 300),
                "status": "error" if failed else "ok",
                "error": "the service did not answer" if failed else None,
                "duration_ms": round(choose.uniform(30, 900), 1),
            }
            lines.append({name: value for name, value in line.items() if value not in (None, {})})
    return sorted(lines, key=lambda line: str(line["time"]))


def main() -> None:
    """Print it, a line an action."""
    for line in recording():
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
