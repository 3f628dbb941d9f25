"""Approvals on this replica: opened for a decision that waits for a human, used by the one request that wins, told when over.

approve ──► approval.opened in control, approval.requested in decisions, both acknowledged ──► the answer names it
asked again with it ──► does it fit? ──► claim in control ──► applied here: won? ──► allow, approval.used, last check
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from banksman import codec
from banksman.approvals import OPERATION
from banksman.enforcer.command import read_back
from banksman.enforcer.limits import Pending
from banksman.enforcer.record import stamp
from banksman.errors import Unavailable
from banksman.events import (
    ApprovalApproved,
    ApprovalDenied,
    ApprovalExpired,
    ApprovalOpened,
    ApprovalUsed,
    Claim,
    Voters,
    is_uuid,
)
from banksman.http_problem import problem
from banksman.policy.verdict import ASK, Reason
from banksman.stamps import rfc3339, rfc3339_ms, uuid7, uuid7_from
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Callable

    from banksman.approvals import Approval
    from banksman.enforcer.binding import Unshown
    from banksman.enforcer.callers import Caller
    from banksman.enforcer.replica import Replica
    from banksman.policy.verdict import Ruling

APPROVAL_S = 900
"""Seconds until a request that nobody answered is a no, where a rule says nothing else."""

MOST_SHOWN = 4 * 1024
"""Bytes of arguments and words that stand in `control`: what is longer is cut, with its hash; the decision has more of it."""

BEATS_APART_S = 0.025

SETTLE_MS = 5_000
"""After its end before an approval is told as expired: a vote in its last moment may be on its way."""

RETOLD_MS = 60_000
"""For so long an approval that ran out is remembered by those replicas that need not tell it."""

REQUESTED = frozenset(
    (
        *OPERATION,
        "v",
        "call",
        "project",
        "agent",
        "args",
        "rule",
        "policy",
        "policy_version",
        "reason",
        "asked",
        "redactions",
    )
)
_OPENED = frozenset((*OPERATION, "project", "agent", "args", "rule", "policy_version", "owner", "asked"))
_log = logging.getLogger("banksman")


class Approving:
    """What the hot path asks about approvals, and what is told of them."""

    def __init__(self, replica: Replica) -> None:
        self._replica, self._approvals = replica, replica.state.approvals
        self._beat = 0.0
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    # ── opened ──

    def pending(self, caller: Caller, record: dict[str, Any], ruling: Ruling, unshown: Unshown) -> Pending | Approval:
        """What a decision waits for: the approval that there is for the identical operation, or one that is still to be opened.
        Problem 429: too many are pending.
        """
        mine, clock, now = caller.limits.approvals, self._replica.lease.clock(), now_ms()
        operation = _operation(record, unshown)
        known = self._approvals.find(caller.name, operation, now)
        if known is not None and known.facts.voters == _voters(ruling):
            return known
        opening = mine.find(operation, clock)
        if opening is not None and not self._approvals.knows(opening.approval):
            return opening  # it is on its way to the log
        mine.room(clock, self._approvals.pending(caller.name, now), self._approvals.knows)
        seconds = min((wanted.expires for wanted in ruling.approvers), default=APPROVAL_S)
        event = {name: value for name, value in record.items() if name in REQUESTED} | {
            **stamp(self._replica.records.source),
            "kind": "approval.requested",
            "approval": uuid7(),  # 72 random bits: nobody guesses it, and it opens nothing by itself
            "expires_at": rfc3339(datetime.now(UTC) + timedelta(seconds=seconds)),
            "parent": record["id"],
        }
        return Pending(operation, clock + seconds, event, unshown)

    def open(self, caller: Caller, record: dict[str, Any], ruling: Ruling, pending: Pending) -> asyncio.Future[None]:
        """Ask for it -> done when the log has it; fails with Unavailable."""
        records = self._replica.records
        opened = msgspec.convert(
            _shown(record, records.digest)
            | stamp(records.source)
            | {
                "approval": pending.approval,
                "expires_at": pending.event["expires_at"],
                "voters": _voters(ruling),
            }
            | dict(pending.unshown),
            ApprovalOpened,
        )
        opening = asyncio.ensure_future(self._open(caller, opened, pending.event))
        caller.limits.approvals.open(pending, opening)
        return opening

    async def _open(self, caller: Caller, opened: ApprovalOpened, requested: dict[str, Any]) -> None:
        """First where votes are judged: nothing is told to be asked for that nobody can answer."""
        records = self._replica.records
        await records.control(opened)
        try:
            await records.put(records.decisions, caller.partition, caller.key, requested)
        except Unavailable:  # it is open; its session's story must say so
            records.keep(Topic.DECISIONS, requested, caller.name)

    # ── used ──

    async def named(self, caller: Caller, name: str) -> Approval | None:
        """The approval of this name, if it is the caller's, as far as the log says by now. Problem 503."""
        known = self._approvals.get(name)
        if is_uuid(name) and (known is None or known.status(now_ms()) == "pending"):
            await self.abreast()  # another replica may have heard of it, or of an answer, a moment ago
            known = self._approvals.get(name)
        return known if known is not None and known.facts.agent == caller.name else None

    async def use(
        self, known: Approval | None, record: dict[str, Any], ruling: Ruling, unshown: Unshown
    ) -> tuple[Ruling, Claim | None]:
        """What becomes of an `approve` whose question names this approval -> the ruling, and the claim that won, if one did.

        A pending one is an `approve` as before. Problem 503: it cannot be judged now.
        """
        if known is None or known.operation != _operation(record, unshown):
            return _no(ruling, Reason.APPROVAL_UNFIT), None
        if known.facts.voters != _voters(ruling):  # the policy wants other people's yes by now
            return _no(ruling, Reason.APPROVAL_UNFIT), None
        status = known.status(now_ms())
        if status == "pending":
            return ruling, None
        if status == "denied":
            return _no(ruling, Reason.APPROVAL_DENIED), None
        if status == "expired":
            return _no(ruling, Reason.APPROVAL_EXPIRED), None
        request = record["parent"]
        if known.use is not None and known.use.request != request:
            return _no(ruling, Reason.APPROVAL_USED), None
        claim = Claim(
            **stamp(self._replica.records.source), call=record.get("call"), approval=known.facts.approval,
            request=request, args_hash=known.facts.args_hash,
        )  # fmt: skip
        offset = -1
        try:
            offset = await self._replica.records.control_soon(claim, landed=partial(self._landed, claim))
            won = await self.outcome(offset)
        except Unavailable as error:
            self._landed(claim, offset)
            raise problem(503, f"the approval may or may not be taken: {error}; ask again", retry_after=1) from None
        if not won:
            late = known.status(now_ms()) == "expired"
            return _no(ruling, Reason.APPROVAL_EXPIRED if late else Reason.APPROVAL_USED), None
        won_claim = msgspec.structs.replace(claim, undoes=offset)
        return msgspec.structs.replace(ruling, decision="allow", tier=ASK, reason=Reason.APPROVED), won_claim

    def _landed(self, claim: Claim, offset: int) -> None:
        """It is on the log at `offset`, and its request was told that this cannot be said. -1: it may be there, nobody can say
        where. Then it cannot be undone, and stays its request's own, which gets its answer when it asks again.
        """
        if offset >= 0:
            self.undo(msgspec.structs.replace(claim, undoes=offset))

    def undo(self, claim: Claim) -> None:
        """Give an approval back that was claimed for an answer which was never given."""
        undone = Claim(
            **stamp(self._replica.records.source), approval=claim.approval, request=claim.request, undoes=claim.undoes
        )
        try:
            self._replica.records.control_soon(undone).add_done_callback(_noted)
        except Unavailable as error:
            _log.warning("approval %s stays taken by a request that got no answer: %s", claim.approval, error)

    def used(self, caller: Caller, record: dict[str, Any]) -> asyncio.Future[int]:
        """Tell, beside the decision, that it used its approval."""
        approval = self._approvals.get(record["approval"])
        event = ApprovalUsed(
            **stamp(self._replica.records.source), call=record.get("call"), parent=record["id"], project=caller.project,
            agent=caller.name, session=record["session"], approval=record["approval"],
            approver=approval.ended.by if approval is not None and approval.ended is not None else None,
        )  # fmt: skip
        records = self._replica.records
        return records.put(records.decisions, caller.partition, caller.key, msgspec.to_builtins(event))

    async def outcome(self, offset: int) -> bool:
        """Whether the vote or claim that was just acknowledged there counted. Unavailable: that cannot be said."""
        await read_back(self._replica, offset, self._replica.settings.record_deadline_s)
        try:
            return self._approvals.outcome(offset)
        except KeyError:  # nobody applied it: signed and written at times that are too far apart
            raise Unavailable("it was refused; is a clock wrong?") from None

    async def abreast(self) -> None:
        """Return when everything that was on the log of controls a moment ago is applied here. Problem 503."""
        lease, began = self._replica.lease, self._replica.lease.clock()
        until = began + self._replica.settings.record_deadline_s
        await asyncio.sleep(max(0.0, self._beat + BEATS_APART_S - began))  # no agent floods the log with heartbeats
        if lease.ends - lease.length < began and self._beat <= began:
            self._beat = lease.clock()
            self._replica.hurry.set()
        while lease.ends - lease.length < began:  # the last heartbeat that came back was begun before
            left = until - lease.clock()
            if left <= 0:
                raise problem(
                    503, "whether there is such an approval cannot be said: control is not read", retry_after=1
                )
            await self._replica.control.moved(left)

    # ── waited for ──

    async def settled(self, approval: Approval, seconds: float) -> None:
        """Return when humans have settled it, or after so many seconds."""
        waiting = self._waiting.setdefault(approval.facts.approval, set())
        future = asyncio.get_running_loop().create_future()
        waiting.add(future)
        try:
            await asyncio.wait({future}, timeout=seconds)
        finally:
            waiting.discard(future)
            if not waiting:
                self._waiting.pop(approval.facts.approval, None)

    def wake(self, approval: Approval) -> None:
        """It is settled: whoever waits for it hears of it."""
        for future in self._waiting.pop(approval.facts.approval, ()):
            if not future.done():
                future.set_result(None)

    # ── told ──

    def ended(self, approval: Approval) -> None:
        """Tell the session's story that humans have answered. Whoever tells it writes the same bytes."""
        vote = approval.ended
        assert vote is not None
        model = ApprovalApproved if vote.verdict == "approve" else ApprovalDenied
        facts = approval.facts
        told = model(
            v=1, id=uuid7_from(vote.at_ms, "ended", facts.approval), time=rfc3339_ms(vote.at_ms), source="enforcer",
            project=facts.project, agent=facts.agent, session=facts.session, approval=facts.approval, approver=vote.by,
            comment=vote.comment,
        )  # fmt: skip
        self._replica.records.later(told, facts.agent)

    async def watch(self) -> None:
        """Tell which approvals nobody has answered in time; one replica does. The others remember them for a while: that one
        may have died, and until its last lease is over none of them takes its place. Never returns.
        """
        await self._replica.control.caught_up.wait()
        over: list[Approval] = []
        while True:
            await asyncio.sleep(1)
            now = now_ms()
            over += self._approvals.run_out(now - SETTLE_MS)
            over = [approval for approval in over if now - approval.expires_ms < RETOLD_MS]
            live = self._replica.live()
            if live and self._replica.id == min(peer.replica for peer in live):
                for approval in over:
                    self._expired(approval)
                over = []

    def _expired(self, approval: Approval) -> None:
        facts = approval.facts
        expired = ApprovalExpired(
            v=1, id=uuid7_from(approval.expires_ms, "expired", facts.approval), time=rfc3339_ms(approval.expires_ms),
            source="enforcer", project=facts.project, agent=facts.agent, session=facts.session, approval=facts.approval,
        )  # fmt: skip
        self._replica.records.later(expired, facts.agent)


def _operation(record: dict[str, Any], unshown: Unshown) -> tuple[object, ...]:
    return tuple(unshown[name] if name in unshown else record.get(name) for name in OPERATION)


def _voters(ruling: Ruling) -> list[Voters]:
    return [Voters(any=list(one.any), min=one.min) for one in ruling.approvers]


def now_ms() -> float:
    """By the clock of this machine, which only foretells what the log will say by Kafka's."""
    return time.time() * 1000


def _shown(record: dict[str, Any], digest: Callable[[bytes], str]) -> dict[str, Any]:
    """Of a decision what humans see, and what a use has to fit. Only what agents say at length is cut, never the operation."""
    shown = {name: value for name, value in record.items() if name in _OPENED}
    said = {name: shown[name] for name in ("args", "asked") if name in shown}
    raw = codec.encode(said)
    if len(raw) > MOST_SHOWN:
        shown |= codec.cut(msgspec.json.decode(raw), digest, limit=MOST_SHOWN)
    return shown


def _no(ruling: Ruling, reason: Reason) -> Ruling:
    return msgspec.structs.replace(ruling, decision="deny", tier=ASK, reason=reason)


def _noted(sent: asyncio.Future[int]) -> None:
    error = None if sent.cancelled() else sent.exception()
    if error is not None:
        _log.warning("an approval may stay taken by a request that got no answer: %s", error)
