"""An agent in any language: two calls over HTTP, nothing of banksman imported.

BANKSMAN_TOKEN=$(cat buyer.credential) python examples/plain_http.py

What the emitter adds to it: a spool that keeps events while the enforcer is away, redaction before anything leaves the
process, and a signature on every event.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
import uuid
from typing import Any

URL = os.environ.get("BANKSMAN_URL", "http://127.0.0.1:7700")


def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A POST with the agent's credential. Whatever is not a 200 raises: for `decide` that means no."""
    token = os.environ["BANKSMAN_TOKEN"].strip()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}{path}", json.dumps(body).encode(), headers)  # noqa: S310 - our own setting
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - as above
        found: dict[str, Any] = json.load(answer)
        return found


def report(session: str, kind: str, **fields: Any) -> None:
    """One event. Agent and project come from the credential."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
    head = {"v": 1, "id": uuid7(now), "time": stamp, "kind": kind, "source": "plain-http/1", "session": session}
    post("/v1/events", head | fields)


def uuid7(now: float) -> str:
    """RFC 9562: 48 bits of milliseconds, then chance."""
    number = int(now * 1000) << 80 | 0x7 << 76 | uuid.uuid4().int & (1 << 76) - 1
    return str(uuid.UUID(int=number & ~(0b11 << 62) | 0b10 << 62))


def main() -> None:
    """Ask, act, report."""
    session, call = f"plain-{uuid.uuid4().hex[:8]}", uuid7(time.time())
    operation = {"service": "git", "action": "push", "resource": "acme/shop", "branch": "feature/search"}
    report(session, "session.started")
    report(session, "tool.call", call=call, **operation)
    answer = post("/v1/decide", {"id": uuid7(time.time()), "call": call, "session": session, **operation})
    print(f"{answer['decision']}: {answer['reason']} ({answer['rule']}, {answer['policy_version']})")
    status = "ok" if answer["decision"] == "allow" else "denied"
    report(session, "tool.result", call=call, parent=call, status=status)
    report(session, "session.ended", status="ok")


if __name__ == "__main__":
    main()
