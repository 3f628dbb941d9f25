"""Replicas whose leases are set differently: who fences one waits for that one's lease, not for its own."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from tests.enforcer.conftest import PUSH, Desk, Enforcer, until
from tests.servers import freeze

LONG_S, SHORT_S = 5, 2


def test_a_frozen_replica_with_a_longer_lease_is_waited_for(desk: Desk, make_enforcer: Callable[..., Enforcer]) -> None:
    short = make_enforcer(BANKSMAN_LEASE_S=str(SHORT_S))
    long = make_enforcer(BANKSMAN_LEASE_S=str(LONG_S))
    token = desk.agents["buyer"].token
    until(lambda: len(short("GET", "/v1/status", token=desk.admin).body["replicas"]) == 2, 20)
    until(lambda: long("POST", "/v1/decide", PUSH, token=token).status == 200, 20)
    assert long.process is not None
    freeze(long.process.pid)
    try:
        began = time.monotonic()
        rotated = short("POST", "/v1/agents/buyer/rotate", token=desk.admin, timeout=30)
        took = time.monotonic() - began
    finally:
        long.process.send_signal(signal.SIGCONT)
    assert rotated.status == 200, rotated.raw
    assert took >= LONG_S  # its last lease may have begun right before the rotation
    assert "did not answer and were fenced" in short.log.read_text()
    assert long("POST", "/v1/decide", PUSH, token=token).status in (401, 503)
