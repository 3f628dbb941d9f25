"""Asking the enforcer: one question, one answer, and no for everything that is not a clear yes.

The question keeps its id over tries, so that asking again is the same question. An allow that comes after the time-out, or
after its own `valid_until`, is thrown away: whoever gave it may since have been told otherwise.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from banksman import codec
from banksman.errors import Refused
from banksman.producers.connection import Connection, address, clock, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from banksman.producers.connection import Answer

FIRST_PAUSE_S, LAST_PAUSE_S = 0.05, 1.0
LONG_POLL_S = 25.0
KEPT = 32
"""Connections that stay open between questions."""


@dataclass(frozen=True)
class Decision:
    """An answer; its truth is `allowed`. Where nobody decided, `decision` is `deny`, `id` None, and `reason` says why."""

    decision: str
    reason: str
    id: str | None = None
    """Of the decision's record."""
    tier: int | None = None
    rule: str | None = None
    policy: str | None = None
    policy_version: str | None = None
    approval: str | None = None
    """Where a human is asked: which approval this waits for."""
    valid_until: str | None = None

    @property
    def allowed(self) -> bool:
        """Whether it may be done, now."""
        return self.decision == "allow"

    def __bool__(self) -> bool:
        return self.allowed


class NotAllowed(Refused):
    """What was asked for is not allowed. `decision` is the answer."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(f"{decision.decision}: {decision.reason}")
        self.decision = decision


@dataclass(frozen=True)
class Heard:
    """A decision, and until when it may be used: on the clock that counts suspended time, and by its own word."""

    decision: Decision
    until: float

    def now(self) -> Decision:
        """The decision, unless it is an allow whose time is over by now: look at it right before it is used."""
        if not self.decision.allowed:
            return self.decision
        if clock() > self.until:
            return nobody("no_answer: the answer came after the time-out")
        if _passed(self.decision.valid_until):
            return nobody(
                f"no_answer: the answer was valid until {self.decision.valid_until}, which is past by this clock"
            )
        return self.decision


def nobody(reason: str) -> Decision:
    """The no that stands where there is no decision."""
    return Decision("deny", reason)


class Asker:
    """Puts questions, from any thread; each has a connection for itself meanwhile."""

    def __init__(self, url: str, token: str, *, ca_file: str = "") -> None:
        """InvalidSetting: the address or the certificates cannot be used."""
        self._where, self._url = address(url, ca_file), url
        self._headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "Accept": "application/json",
        }
        self._lock = threading.Lock()
        self._idle: list[Connection] = []

    def ask(self, question: dict[str, Any], timeout: float) -> Heard:
        """The answer to a question that has its `id`. Never raises, and ends after `timeout` seconds."""
        until = clock() + timeout
        body = codec.encode(question)
        pause, why = FIRST_PAUSE_S, "there was no time to ask"
        while clock() < until:
            try:
                with self._connection() as connection:
                    answer = connection.post("/v1/decide", body, self._headers, until=until)
            except (OSError, HTTPException) as error:
                why, wait = f"{self._url}: {reason(error)}", pause
            else:
                if answer.status == 200:
                    return Heard(_decision(answer), until)
                if answer.status not in (429, 502, 503, 504):
                    return Heard(nobody(f"refused: {answer.text}"), until)
                why, wait = answer.text, max(pause, answer.retry_after or 0.0)
            pause = min(pause * 2, LAST_PAUSE_S)
            if clock() + wait >= until:
                break
            time.sleep(wait)
        return Heard(nobody(f"no_answer: {why}"), until)

    def settled(self, approval: str, wait: float) -> bool:
        """Wait for humans to answer -> whether they have, or the approval ran out, within so many seconds. Never raises."""
        until = clock() + wait
        pause = FIRST_PAUSE_S
        while (left := until - clock()) > 0:
            path = f"/v1/approvals/{quote(approval, safe='')}?wait={min(left, LONG_POLL_S):.3f}"
            try:
                with self._connection() as connection:
                    answer = connection.get(path, self._headers, until=until + FIRST_PAUSE_S)
                if answer.status == 200:
                    if _status(answer) != "pending":
                        return True
                    continue  # it waited as long as it was told to
                if answer.status not in (429, 502, 503, 504):
                    return False
                pause = max(pause, answer.retry_after or 0.0)
            except (OSError, HTTPException):
                pass  # asked again, as long as there is time
            time.sleep(min(pause, max(0.0, until - clock())))
            pause = min(pause * 2, LAST_PAUSE_S)
        return False

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """One that nobody else uses meanwhile. What goes wrong over it closes it."""
        with self._lock:
            connection = self._idle.pop() if self._idle else Connection(self._where)
        yield connection
        with self._lock:
            if len(self._idle) < KEPT:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def forked(self) -> None:
        """In a child: the parent's connections are not ours."""
        idle, self._idle = self._idle, []
        self._lock = threading.Lock()
        for connection in idle:
            connection.close()


def _decision(answer: Answer) -> Decision:
    """What a 200 says, to the letter; anything that is not exactly a decision is a no."""
    try:
        said = json.loads(answer.raw)
    except ValueError:
        return nobody("no_answer: a 200 that is not JSON")
    if not isinstance(said, dict):
        return nobody("no_answer: a 200 that is not a decision")
    made: dict[str, Any] = {name: said.get(name) for name in Decision.__dataclass_fields__}
    if made["decision"] not in ("allow", "deny", "approve") or not isinstance(made["id"], str):
        return nobody("no_answer: a 200 that is not a decision")
    made["reason"] = str(made["reason"])
    return Decision(**made)


def _status(answer: Answer) -> object:
    try:
        said = json.loads(answer.raw)
    except ValueError:
        return None
    return said.get("status") if isinstance(said, dict) else None


def _passed(valid_until: str | None) -> bool:
    try:
        return datetime.fromisoformat(valid_until or "") < datetime.now(UTC)
    except (ValueError, TypeError):
        return True
