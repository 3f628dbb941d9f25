"""How many requests one approval allows when many use it at once on three replicas, and replicas are killed meanwhile.

usage: python bench/approvals.py [APPROVALS]        default 200

Each approval is asked for on one replica and answered on another. Then 20 requests use it at once, spread over all three; each
asks again, under its own id and wherever somebody answers, until it has a decision. Meanwhile replicas are killed (-9) and
started again, one at a time. Exactly one request of each approval must be allowed. Floor: a decision without an approval.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from archive_stack import broker, machine
from control import REPLICAS, Client, Replica, enforcers, prepare, ready, start

from banksman import settings
from banksman.stamps import uuid7

USES, AT_ONCE, BETWEEN_KILLS_S = 20, 4, 0.5


class Fleet:
    """Three replicas, one of which may be dead."""

    def __init__(self, where: settings.Kafka, folder: Path, replicas: list[Replica]) -> None:
        self._where, self._folder, self.replicas = where, folder, replicas
        self.kills = 0

    def ask(self, path: str, body: Any, token: str, *, at: int) -> Any:
        """The first answer that is no 5xx, of whichever replica gives one, beginning with `at`."""
        until = time.monotonic() + 60
        while True:
            try:
                status, told = Client(self.replicas[at % REPLICAS].port).ask(path, body, token)
                if status < 500:
                    return status, told
            except (OSError, http.client.HTTPException):
                pass  # it was killed
            assert time.monotonic() < until, f"nobody answers {path}"
            at += 1
            time.sleep(0.02)  # between two tries

    def kill_while(self, racing: threading.Thread) -> None:
        """One at a time: the next when the last is back. In the main thread, whose end is the end of its children."""
        while racing.is_alive():
            racing.join(BETWEEN_KILLS_S)
            if racing.is_alive():
                number = random.randrange(REPLICAS)
                self.replicas[number].process.kill()
                self.replicas[number].process.wait()
                self.replicas[number] = start(self._where, self._folder, number)
                ready(self.replicas[number])
                self.kills += 1


def main() -> None:
    approvals = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as made, broker(Path(made)) as (node, _):
        where = node.settings(topic_prefix="bench.", partitions=4)
        tokens, operator, _ = asyncio.run(prepare(where, Path(made)))
        with enforcers(where, Path(made)) as replicas:
            race(Fleet(where, Path(made), replicas), tokens["anna"], operator, approvals)


def race(fleet: Fleet, agent: str, approver: str, approvals: int) -> None:
    """The whole of it."""
    print(f"{machine()}, load {os.getloadavg()[0]:.1f} at the start")
    print(
        f"{REPLICAS} enforcers, one broker; {approvals} approvals, {USES} uses of each, {AT_ONCE} approvals at once\n"
    )
    floor = [timed(lambda: fleet.ask("/v1/decide", question("floor", "pull"), agent, at=0)) for _ in range(200)]
    took: list[float] = []
    allowed: list[int] = []
    racing = threading.Thread(target=use_all, args=(fleet, agent, approver, approvals, took, allowed))
    racing.start()
    fleet.kill_while(racing)
    for name, figures in (
        ("floor: a decision, alone", floor),
        (f"a use, {AT_ONCE * USES} at once, kills included", took),
    ):
        p50, p99 = statistics.median(figures), sorted(figures)[len(figures) * 99 // 100]
        ratio = p50 / statistics.median(floor)
        print(f"{name:44s} p50 {p50:8.1f} ms   p99 {p99:8.1f} ms   {ratio:6.1f}x")
    print(
        f"\n{len(allowed)} approvals, {len(took)} uses, {fleet.kills} replicas killed meanwhile: "
        f"allowed once {allowed.count(1)}, twice or more {sum(one > 1 for one in allowed)}, never {allowed.count(0)}"
    )
    assert allowed == [1] * approvals


def use_all(fleet: Fleet, agent: str, approver: str, approvals: int, took: list[float], allowed: list[int]) -> None:
    """-> `took`: ms of each use; `allowed`: of each approval how many requests were."""
    with ThreadPoolExecutor(AT_ONCE * USES) as pool:
        for first in range(0, approvals, AT_ONCE):
            some = [f"s{number}" for number in range(first, min(approvals, first + AT_ONCE))]
            given = dict(zip(some, pool.map(lambda name: opened(fleet, name, agent, approver), some), strict=True))
            uses = [(session, number) for session in some for number in range(USES)]
            random.shuffle(uses)

            def use(one: tuple[str, int], given: dict[str, str] = given) -> tuple[str, str]:
                session, number = one
                asked = question(session, "push") | {"approval": given[session], "id": uuid7()}
                answers: list[Any] = []
                took.append(timed(lambda: answers.append(fleet.ask("/v1/decide", asked, agent, at=number)[1])))
                return session, answers[0]["decision"] + "/" + answers[0]["reason"]

            answers = list(pool.map(use, uses))
            said = {answer for _, answer in answers}
            assert said <= {"allow/approved", "deny/approval_used"}, said
            allowed += [sum(one == (name, "allow/approved") for one in answers) for name in some]


def question(session: str, action: str) -> dict[str, Any]:
    return {"session": session, "service": "git", "action": action, "args": {"n": 1}}


def opened(fleet: Fleet, session: str, agent: str, approver: str) -> str:
    """An approval that was asked for on one replica and given on another."""
    status, told = fleet.ask("/v1/decide", question(session, "push"), agent, at=random.randrange(REPLICAS))
    assert (status, told["decision"]) == (200, "approve"), told
    approval: str = told["approval"]
    path = f"/v1/approvals/{approval}"
    status, told = fleet.ask(path, {"verdict": "approve"}, approver, at=random.randrange(REPLICAS))
    assert status == 200 or "approved it already" in told["detail"], told  # its answer may have been lost
    return approval


def timed(what: Any) -> float:
    began = time.perf_counter()
    what()
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
