"""Approvals as `control` says: opened, voted on, used. Every reader judges every record alike, in offset order.

    opened ──► votes, each by somebody who may, once ──► approved ──► claims: the first request wins, and wins again
                                                    └──► denied        (an undone claim lets a later one win, no loser)
           └► access requests: who asks for it in the words of AuthZEN, and says why

When is Kafka's append time: an approval is open before `expires_at`, for votes and for claims. What a record came to is fixed
when its own offset is applied, and not looked up later, when more may have been applied.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from banksman.events import AccessRequested, ApprovalOpened, Claim, Vote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from banksman.events import Event

    Status = Literal["pending", "approved", "denied", "expired", "used"]
    Operation = tuple[object, ...]

OPERATION = (
    "session", "service", "action", "resource", "resource_hash", "branch", "args_hash", "subject", "request_hash",
)  # fmt: skip
"""What an approval is for, besides its agent: to the letter. What is not shown whole is told apart by its hash."""

AGAIN_MS = 60_000
"""After its claim the same request may claim again for so long, also past the approval's end: its answer may have been lost."""

KEPT_MS = 86_400_000
"""After its end an approval is known for so long, by Kafka's clock."""

MOST_REQUESTS = 16
"""Different access requests about one approval that are kept, so that nobody fills the memory with them."""

OUTCOMES = 10_000
"""Votes, claims and access requests whose outcome can still be asked for: those that somebody waits for."""


@dataclass(frozen=True)
class Voted:
    """A vote that counted."""

    by: str
    verdict: str
    comment: str | None
    at_ms: int


class Use(msgspec.Struct, frozen=True):
    """The claim that holds. `sure`: the same request has claimed twice, so no writer of one of the two may undo it."""

    request: str
    call: str | None
    offset: int
    source: str | None
    at_ms: int
    sure: bool = False


class Requested(msgspec.Struct, frozen=True):
    """An access request, by the hashes of its key (if it had one) and its body."""

    key_hash: str | None
    body_hash: str


@dataclass
class Approval:
    """One question to humans about one exact operation."""

    facts: ApprovalOpened
    opened_ms: int
    expires_ms: int
    votes: dict[str, Voted] = field(default_factory=dict)
    """By voter."""
    verdict: Literal["approve", "deny"] | None = None
    ended: Voted | None = None
    """The vote that settled it."""
    use: Use | None = None
    lost: set[str] = field(default_factory=set)
    """Requests that came second. They never win, whatever becomes of the first."""
    requests: list[Requested] = field(default_factory=list)
    """The access requests about it."""

    @property
    def operation(self) -> Operation:
        """What it is for."""
        return tuple(getattr(self.facts, name) for name in OPERATION)

    def status(self, now_ms: float) -> Status:
        """How it stands. An approval that nobody used in time is expired, too."""
        if self.use is not None:
            return "used"
        if self.verdict == "deny":
            return "denied"
        if now_ms >= self.expires_ms:
            return "expired"
        return "approved" if self.verdict == "approve" else "pending"

    def slim(self) -> None:
        """Let go of what only people look at, once it is over: an agent must not fill the memory with words of its own."""
        if self.facts.args is not None or self.facts.asked is not None:
            self.facts = msgspec.structs.replace(self.facts, args=None, asked=None)

    def may_vote(self, name: str) -> bool:
        """Whether the policy wants this person's answer, and it is not about that person. That it takes the role approver comes
        on top.
        """
        if self.about(name):
            return False
        return not self.facts.voters or any(not one.any or name in one.any for one in self.facts.voters)

    def about(self, name: str) -> bool:
        """Whether a subject of this name would get what is asked for: nobody says yes to himself."""
        return self.facts.subject is not None and self.facts.subject.partition(":")[2] == name

    def satisfied(self) -> bool:
        """Whether everybody said yes whose yes it takes."""
        yes = [one.by for one in self.votes.values() if one.verdict == "approve"]
        return bool(yes) and all(
            sum(not wanted.any or name in wanted.any for name in yes) >= wanted.min for wanted in self.facts.voters
        )


class Approvals:
    """The state. Feed it every verified record in offset order, with Kafka's time of it."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Approval] = OrderedDict()
        self._newest: dict[tuple[str, Operation], str] = {}
        self._of_agent: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._unsettled: defaultdict[str, dict[str, Approval]] = defaultdict(dict)
        """By agent: those that have not ended, as far as anybody has looked."""
        self._ends: list[tuple[int, int, str]] = []
        """A heap of (end in ms, how many were opened before, approval)."""
        self._opened = 0
        self._outcomes: OrderedDict[int, bool] = OrderedDict()
        self._keys: dict[tuple[str, str], Requested] = {}
        """By (agent, hash of the key): the one access request that the key is for."""

    def apply(self, event: Event, offset: int, received_ms: int, may_approve: Callable[[str], bool]) -> bool:
        """Take in a record; True when it changed anything. `may_approve`: who has the role, at this place of the log."""
        if isinstance(event, ApprovalOpened):
            return self._open(event, received_ms)
        if isinstance(event, Vote):
            counted = self._vote(event, received_ms, may_approve)
        elif isinstance(event, AccessRequested):
            counted = self._request(event, received_ms)
        elif isinstance(event, Claim):
            counted = self._undo(event) if event.undoes is not None else self._claim(event, offset, received_ms)
        else:
            return False
        self._outcomes[offset] = counted
        while len(self._outcomes) > OUTCOMES:
            self._outcomes.popitem(last=False)
        return counted

    def get(self, approval: str) -> Approval | None:
        """One that is known."""
        return self._known.get(approval)

    def knows(self, approval: str) -> bool:
        """Whether it was opened, and not forgotten since."""
        return approval in self._known

    def outcome(self, offset: int) -> bool:
        """Whether the vote, claim or access request at this offset counted. KeyError: it was not applied lately."""
        return self._outcomes[offset]

    def requested(self, agent: str, key_hash: str) -> Requested | None:
        """What an agent has asked for under this key."""
        return self._keys.get((agent, key_hash))

    def all(self) -> Iterable[Approval]:
        """The newest first."""
        return reversed(self._known.values())

    def of(self, agent: str) -> Iterable[Approval]:
        """One agent's, the newest first."""
        return (self._known[name] for name in reversed(self._of_agent.get(agent, {})))

    def run_out(self, before_ms: float) -> list[Approval]:
        """Those that nobody had settled when they ran out, before that moment: each is given once."""
        every = [approval for mine in self._unsettled.values() for approval in mine.values()]
        found = [approval for approval in every if approval.expires_ms < before_ms]
        for approval in found:
            self._settle(approval)
        return found

    def find(self, agent: str, operation: Operation, now_ms: float) -> Approval | None:
        """The newest approval of an agent for this very operation, as long as it is pending or can still be used."""
        found = self._known.get(self._newest.get((agent, operation), ""))
        return found if found is not None and found.status(now_ms) in ("pending", "approved") else None

    def pending(self, agent: str, now_ms: float) -> int:
        """How many of an agent's approvals wait for an answer."""
        return sum(approval.status(now_ms) == "pending" for approval in self._unsettled.get(agent, {}).values())

    def _open(self, event: ApprovalOpened, received_ms: int) -> bool:
        self._forget(received_ms)
        if event.approval in self._known:
            return False
        expires_ms = int(datetime.fromisoformat(event.expires_at).timestamp() * 1000)
        made = self._known[event.approval] = Approval(event, received_ms, expires_ms)
        self._newest[event.agent, made.operation] = event.approval
        self._of_agent[event.agent][event.approval] = None
        self._unsettled[event.agent][event.approval] = made
        self._opened += 1
        heapq.heappush(self._ends, (expires_ms, self._opened, event.approval))
        return True

    def _vote(self, event: Vote, received_ms: int, may_approve: Callable[[str], bool]) -> bool:
        known, voter = self._known.get(event.approval), event.by
        if known is None or voter is None or known.status(received_ms) != "pending" or voter in known.votes:
            return False
        if not known.may_vote(voter) or not may_approve(voter):
            return False
        vote = known.votes[voter] = Voted(voter, event.verdict, event.comment, received_ms)
        if event.verdict == "deny" or known.satisfied():
            known.verdict, known.ended = event.verdict, vote
            self._settle(known)
        return True

    def _request(self, event: AccessRequested, received_ms: int) -> bool:
        known, asked = self._known.get(event.approval), Requested(event.key_hash, event.body_hash)
        if known is None or known.facts.agent != event.agent:
            return False
        if asked in known.requests:
            return True
        if event.key_hash is not None and (event.agent, event.key_hash) in self._keys:
            return False  # another request came first under this key
        if received_ms >= known.expires_ms or len(known.requests) >= MOST_REQUESTS:
            return False
        known.requests.append(asked)
        if event.key_hash is not None:
            self._keys[event.agent, event.key_hash] = asked
        if event.asked is not None and known.facts.asked is None and known.status(received_ms) == "pending":
            known.facts = msgspec.structs.replace(known.facts, asked=event.asked)
        return True

    def _claim(self, event: Claim, offset: int, received_ms: int) -> bool:
        known = self._known.get(event.approval)
        if known is None or event.args_hash != known.facts.args_hash:
            return False
        held = known.use
        if held is not None and held.request == event.request:
            if held.call != event.call or received_ms >= max(known.expires_ms, held.at_ms + AGAIN_MS):
                return False
            known.use = msgspec.structs.replace(held, sure=True)
            return True
        if held is not None or event.request in known.lost:
            known.lost.add(event.request)
            return False
        if known.status(received_ms) != "approved":
            return False
        known.use = Use(event.request, event.call, offset, event.source, received_ms)
        known.slim()
        return True

    def _undo(self, event: Claim) -> bool:
        known = self._known.get(event.approval)
        held = known.use if known is not None else None
        if known is None or held is None or held.sure or (held.offset, held.source) != (event.undoes, event.source):
            return False
        known.use = None
        return True

    def _forget(self, now_ms: int) -> None:
        """Those that ended a day ago. By the log's own clock: every reader forgets the same at the same place."""
        while self._ends and self._ends[0][0] + KEPT_MS <= now_ms:
            name = heapq.heappop(self._ends)[2]
            gone = self._known.pop(name)
            self._settle(gone)
            for asked in gone.requests:
                if asked.key_hash is not None:
                    del self._keys[gone.facts.agent, asked.key_hash]
            if self._newest.get((gone.facts.agent, gone.operation)) == name:
                del self._newest[gone.facts.agent, gone.operation]
            mine = self._of_agent[gone.facts.agent]
            del mine[name]
            if not mine:
                del self._of_agent[gone.facts.agent]

    def _settle(self, approval: Approval) -> None:
        """Nothing waits for it any more. Whoever has said no, or let it run out, has read what the agent said."""
        mine = self._unsettled.get(approval.facts.agent, {})
        mine.pop(approval.facts.approval, None)
        if not mine:
            self._unsettled.pop(approval.facts.agent, None)
        if approval.verdict != "approve":
            approval.slim()
