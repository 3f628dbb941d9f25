"""What ties an approval to all that was asked, and an access request to the denial that it is about.

Everything is under a key of this service's own, which outlives the agents' tokens and is the same on every replica: nothing
has to be remembered for it, and no agent can make one of these, or have one made of a text of its choice.
"""

from __future__ import annotations

import time
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, NamedTuple

from banksman.canonical import canonical
from banksman.events import is_uuid
from banksman.signing import Mac, digest_by

if TYPE_CHECKING:
    from collections.abc import Mapping

    from banksman.enforcer.aside import Aside
    from banksman.enforcer.callers import Caller
    from banksman.enforcer.question import Question
    from banksman.policy.verdict import Verdict
    from banksman.signing import Secret

    Unshown = Mapping[str, Any]
    """Of an operation what its record does not show: `resource_hash`, `request_hash`, and what the latter `counted`."""


class Denied(NamedTuple):
    """What an evaluation id stands for: a decision that waits for an approval."""

    decision: str
    approval: str


class Binding:
    """The key."""

    def __init__(self, secret: Secret, aside: Aside) -> None:
        self._aside = aside
        self._mac = Mac(secret.derive(secret.current, "access-request"))

    async def unshown(
        self,
        caller: Caller,
        question: Question,
        record: Mapping[str, Any],
        verdict: Verdict,
        counted: list[str],
        *,
        heavy: bool,
    ) -> Unshown:
        """What tells an operation from others that look the same on record. `heavy`: it is too much for the loop."""
        said = (verdict.resource, record.get("resource")), (question.whom(), record.get("subject"))
        hidden = [asked for asked, shown in said if asked is not None and asked != shown]
        secret = "\0".join(hidden).encode("utf-8", "surrogatepass")
        whole = question.whole(counted)
        request = await self.hashed(caller, whole, heavy=heavy) if whole is not None else None
        return {
            "resource_hash": digest_by(caller.mac, secret) if hidden else None, "request_hash": request, "counted": counted,
        }  # fmt: skip

    async def hashed(self, caller: Caller, whole: Any, *, heavy: bool) -> str:
        """`request`, paid for. `heavy`: it is too much for the loop; a megabyte of numbers takes a fifth of a second."""
        if heavy:
            return await self._aside(caller.limits, self.request, whole)
        began = time.thread_time_ns()
        found = self.request(whole)
        caller.limits.charge(time.thread_time_ns() - began)
        return found

    def request(self, whole: Any) -> str:
        """The hash of everything that was asked (`Question.whole`)."""
        return self._of("request", canonical(whole))

    def body(self, body: Any) -> str:
        """The hash of an access request: of equal JSON, whatever its spelling, it is the same."""
        return self._of("body", canonical(body))

    def key(self, agent: str, key: bytes) -> str:
        """The hash of an `Idempotency-Key`."""
        return self._of("key", agent.encode() + b"\0" + key)

    def evaluation(self, agent: str, denied: Denied) -> str:
        """The evaluation id: it says itself what it stands for, to whoever has the key."""
        return f"{denied.decision}.{denied.approval}.{self._seal(agent, denied)}"

    def denied(self, agent: str, evaluation: str) -> Denied | None:
        """What an evaluation id stands for; None: it is none that was given to this agent."""
        decision, _, rest = evaluation.partition(".")
        approval, _, seal = rest.partition(".")
        if not (is_uuid(decision) and is_uuid(approval) and seal.isascii()):
            return None
        found = Denied(decision, approval)
        return found if compare_digest(seal, self._seal(agent, found)) else None

    def _seal(self, agent: str, denied: Denied) -> str:
        return self._mac.hex("\0".join(("evaluation", agent, *denied)).encode())[:32]

    def _of(self, what: str, value: bytes) -> str:
        return digest_by(self._mac, what.encode() + b"\0" + value)
