"""Approvals, judged record by record: whatever order and whatever repeats, one request wins, and every reader says which."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banksman.approvals import AGAIN_MS, KEPT_MS, MOST_REQUESTS, Approvals
from banksman.events import AccessRequested, ApprovalOpened, Claim, Event, Vote, Voters
from banksman.stamps import rfc3339, uuid7

T0 = 1_800_000_000_000
LASTS = 60_000
APPROVERS = {"ann", "bob", "eve"}


def opened(
    name: str = "a1", *, agent: str = "buyer", voters: list[Voters] | None = None, **changes: Any
) -> ApprovalOpened:
    return ApprovalOpened(
        v=1, id=uuid7(), time=rfc3339(), source="enforcer#1", project="shop", agent=agent, session="s1", approval=name,
        service="git", action="push", branch="main", args_hash="hmac-sha256:aa", voters=voters or [],
        expires_at=rfc3339(datetime.fromtimestamp((T0 + LASTS) / 1000, UTC)), **changes,
    )  # fmt: skip


def vote(by: str, verdict: Any = "approve", name: str = "a1") -> Vote:
    return Vote(v=1, id=uuid7(), time=rfc3339(), source="enforcer#1", by=by, approval=name, verdict=verdict)


def claim(
    request: str, *, source: str = "enforcer#1", args_hash: str = "hmac-sha256:aa", undoes: int | None = None
) -> Claim:
    return Claim(
        v=1,
        id=uuid7(),
        time=rfc3339(),
        source=source,
        approval="a1",
        request=request,
        args_hash=args_hash,
        undoes=undoes,
    )


class Log:
    """A log of controls and one who reads it."""

    def __init__(self) -> None:
        self.reader, self.offset, self.now = Approvals(), 0, T0

    def __call__(self, event: Event) -> bool:
        self.offset += 1
        return self.reader.apply(event, self.offset, self.now, APPROVERS.__contains__)

    @property
    def status(self) -> str:
        known = self.reader.get("a1")
        assert known is not None
        return known.status(self.now)


def started(*events: Event) -> Log:
    log = Log()
    assert log(opened())
    for event in events:
        log(event)
    return log


def test_one_yes_is_enough_where_the_policy_says_nothing_else() -> None:
    log = started()
    assert log.status == "pending"
    assert log(vote("ann"))
    assert log.status == "approved"
    assert not log(vote("bob", "deny"))  # too late
    assert log(claim("r1"))
    assert log.status == "used"


def test_one_no_is_enough() -> None:
    log = started(vote("ann", "deny"))
    assert log.status == "denied"
    assert not log(vote("bob"))
    assert not log(claim("r1"))
    log.now += LASTS
    assert log.status == "denied"


def test_who_may_not_answer_does_not() -> None:
    log = started()
    assert not log(vote("mallory"))
    assert not log(Vote(v=1, id=uuid7(), time=rfc3339(), source="x", approval="a1", verdict="approve"))  # by nobody
    assert not log(vote("ann", name="a2"))
    assert log.status == "pending"


def test_everybody_is_asked_whom_the_policy_names() -> None:
    log = Log()
    log(opened(voters=[Voters(any=["ann", "bob"], min=2), Voters(any=["eve"])]))
    assert log(vote("ann"))
    assert not log(vote("ann"))  # twice is not two
    assert log(vote("eve"))
    assert log.status == "pending"
    assert log(vote("bob"))
    assert log.status == "approved"
    log = Log()
    log(opened(voters=[Voters(any=["zoe"])]))
    assert not log(vote("ann"))  # an approver, but not theirs
    assert not log(vote("zoe"))  # theirs, but no approver
    assert log.status == "pending"


def test_after_its_end_nothing_counts() -> None:
    log = started()
    log.now = T0 + LASTS
    assert log.status == "expired"
    assert not log(vote("ann"))
    log = started(vote("ann"))
    log.now = T0 + LASTS
    assert log.status == "expired"
    assert not log(claim("r1"))
    log = started(vote("ann"), claim("r1"))
    log.now = T0 + LASTS
    assert log.status == "used"
    assert not log(claim("r1"))  # it has won, and long ago: what it was good for is over
    log = started(vote("ann"))
    log.now = T0 + LASTS - 1
    assert log(claim("r1"))
    log.now += AGAIN_MS - 1
    assert log(claim("r1"))  # the answer may have been lost on its way
    log.now += 1
    assert not log(claim("r1"))


def test_the_first_request_wins_and_wins_again_and_no_other_does() -> None:
    log = started(claim("early"), vote("ann"))
    assert log(claim("r1", source="enforcer#1"))
    assert not log(claim("r2", source="enforcer#2"))
    assert log(claim("r1", source="enforcer#3"))
    assert not log(claim("r2", source="enforcer#2"))
    assert not log(claim("r1", args_hash="hmac-sha256:bb"))


def test_the_same_request_is_about_the_same_call() -> None:
    log = started(vote("ann"))
    assert log(msgspec.structs.replace(claim("r1"), call=(call := uuid7())))
    assert log(msgspec.structs.replace(claim("r1"), call=call))
    assert not log(msgspec.structs.replace(claim("r1"), call=uuid7()))
    assert not log(claim("r1"))


def test_what_lasts_long_keeps_nothing_else_from_being_forgotten() -> None:
    log = Log()
    long = rfc3339(datetime.fromtimestamp((T0 + 30 * KEPT_MS) / 1000, UTC))
    log(msgspec.structs.replace(opened("long"), expires_at=long))
    for day in range(5):
        log.now = T0 + day * KEPT_MS
        ends = rfc3339(datetime.fromtimestamp((log.now + LASTS) / 1000, UTC))
        log(msgspec.structs.replace(opened(f"d{day}"), expires_at=ends))
    assert [one.facts.approval for one in log.reader.all()] == ["d4", "d3", "long"]


def test_what_is_undone_can_be_taken_again_but_not_by_who_lost() -> None:
    log = started(vote("ann"), claim("r1"))
    won = log.offset
    assert not log(claim("r2"))
    assert not log(claim("r1", source="enforcer#2", undoes=won))  # not the one who wrote it
    assert not log(claim("r1", undoes=won - 1))
    assert log(claim("r1", undoes=won))
    assert log.status == "approved"
    assert not log(claim("r2"))
    assert log(claim("r3"))
    assert not log(claim("r1", undoes=won))  # of another one's claim it says nothing


def test_nobody_undoes_what_another_replica_has_answered_the_same_request() -> None:
    log = started(vote("ann"), claim("r1", source="enforcer#1"))
    first = log.offset
    assert log(claim("r1", source="enforcer#2"))
    second = log.offset
    assert not log(claim("r1", source="enforcer#1", undoes=first))
    assert not log(claim("r1", source="enforcer#2", undoes=second))
    assert log.status == "used"


def test_it_is_found_by_its_operation_as_long_as_it_is_of_use() -> None:
    log = started()
    known = log.reader.get("a1")
    assert known is not None
    assert log.reader.find("buyer", known.operation, log.now) is known
    assert log.reader.find("seller", known.operation, log.now) is None
    assert log.reader.pending("buyer", log.now) == 1
    log(vote("ann"))
    assert log.reader.find("buyer", known.operation, log.now) is known
    assert log.reader.pending("buyer", log.now) == 0
    log(claim("r1"))
    assert log.reader.find("buyer", known.operation, log.now) is None
    log(opened("a2"))
    newer = log.reader.find("buyer", known.operation, log.now)
    assert newer is not None
    assert newer.facts.approval == "a2"


def test_the_first_of_two_with_one_name_holds() -> None:
    log = started()
    assert not log(opened(agent="mallory"))
    known = log.reader.get("a1")
    assert known is not None
    assert known.facts.agent == "buyer"


def test_a_day_after_its_end_it_is_forgotten() -> None:
    log = started(vote("ann"), claim("r1"))
    log.now = T0 + LASTS + KEPT_MS
    log(opened("a2"))
    assert log.reader.get("a1") is None
    assert [one.facts.approval for one in log.reader.all()] == ["a2"]
    assert log.reader.pending("buyer", T0) == 1
    assert not log(claim("r1"))


def test_what_ran_out_is_given_once() -> None:
    log = Log()
    for name in ("a1", "a2", "a3"):
        log(opened(name, asked="please", args={"n": 1}))
    log(vote("ann", name="a2"))
    assert log.reader.run_out(T0 + LASTS) == []
    assert [one.facts.approval for one in log.reader.run_out(T0 + LASTS + 1)] == ["a1", "a3"]
    assert log.reader.run_out(T0 + 2 * LASTS) == []


@pytest.mark.parametrize("how", ["denied", "used", "expired"])
def test_an_agents_words_go_when_it_is_over(how: str) -> None:
    log = Log()
    log(opened(asked="please", args={"n": 1}))
    known = log.reader.get("a1")
    assert known is not None
    if how == "denied":
        log(vote("ann", "deny"))
    elif how == "used":
        log(vote("ann"))
        assert known.facts.args == {"n": 1}  # who says yes still sees to what
        log(claim("r1"))
    else:
        log.now = T0 + LASTS
        log.reader.run_out(log.now + 1)
    assert log.status == how
    assert (known.facts.args, known.facts.asked, known.facts.args_hash) == (None, None, "hmac-sha256:aa")


def test_one_agents_are_told_the_newest_first() -> None:
    log = started()
    log(opened("b1", agent="seller"))
    log(opened("a2"))
    assert [one.facts.approval for one in log.reader.of("buyer")] == ["a2", "a1"]
    assert list(log.reader.of("nobody")) == []


EVENTS = st.one_of(
    st.tuples(
        st.just("vote"), st.sampled_from(["ann", "bob", "mallory"]), st.sampled_from(["approve", "approve", "deny"])
    ),
    st.tuples(st.just("claim"), st.sampled_from(["r1", "r2", "r3"]), st.sampled_from(["enforcer#1", "enforcer#2"])),
    st.tuples(st.just("undo"), st.integers(0, 40), st.sampled_from(["enforcer#1", "enforcer#2"])),
    st.tuples(st.just("wait"), st.integers(0, LASTS // 3), st.just("")),
)


@settings(max_examples=400)
@given(st.lists(EVENTS, max_size=40))
def test_at_no_moment_do_two_requests_hold_it(steps: list[tuple[str, Any, Any]]) -> None:
    """A claim that counted is answered `allow`, unless its own writer undoes it; nobody else is ever answered so meanwhile."""
    log, other = Log(), Log()
    claims: dict[int, tuple[str, str]] = {}
    answered: set[tuple[int, str]] = set()  # claims that won, and were not undone by their writer
    first = opened()
    assert log(first)
    assert other(first)
    for what, one, two in steps:
        if what == "wait":
            log.now += one
            other.now += one
            continue
        event: Event
        if what == "vote":
            event = vote(one, two)
        elif what == "claim":
            event = claim(one, source=two)
        else:
            event = claim(claims.get(one, ("r1", ""))[0], source=two, undoes=one)
        counted = log(event)
        assert other(event) == counted  # every reader says the same
        if what == "claim":
            claims[log.offset] = one, two
            if counted:
                answered.add((log.offset, one))
        elif what == "undo" and claims.get(one, ("", ""))[1] == two and counted:
            answered = {(offset, request) for offset, request in answered if offset != one}
        assert len({request for _, request in answered}) <= 1
        known = log.reader.get("a1")
        assert known is not None
        if known.verdict == "deny" or known.verdict is None:
            assert known.use is None


# ── access requests ──


def request(body: str, key: str | None = None, **changes: Any) -> AccessRequested:
    fields = {"agent": "buyer", "approval": "a1"} | changes
    return AccessRequested(
        v=1, id=uuid7(), time=rfc3339(), source="enforcer#1", project="shop", session="s1", body_hash=body, key_hash=key,
        **fields,
    )  # fmt: skip


def test_under_one_key_there_is_one_request() -> None:
    log = started()
    assert log(request("b1", "k1"))
    assert log(request("b1", "k1"))  # the same again
    assert not log(request("b2", "k1"))
    assert log(request("b2"))
    assert log(request("b2"))
    assert log(request("b2", "k2"))
    log(opened("a2"))
    assert not log(request("b1", "k1", agent="seller"))  # it is not theirs
    assert not log(request("b3", "k1", approval="a2"))
    assert not log(request("b3", "k3", approval="a3"))
    assert log.reader.requested("seller", "k1") is None
    known = log.reader.get("a1")
    assert known is not None
    assert [(one.key_hash, one.body_hash) for one in known.requests] == [("k1", "b1"), (None, "b2"), ("k2", "b2")]


def test_a_request_counts_while_the_approval_is_open() -> None:
    log = started(vote("ann"))
    assert log(request("b1", "k1"))  # settled, and not over
    log.now += LASTS
    assert log(request("b1", "k1"))
    assert not log(request("b2", "k2"))
    log.now += KEPT_MS
    log(opened("a9"))
    assert log.reader.get("a1") is None
    assert log.reader.requested("buyer", "k1") is None  # the key is free again


def test_there_is_a_bound_on_requests() -> None:
    log = started()
    assert [log(request(f"b{n}", f"k{n}")) for n in range(MOST_REQUESTS + 2)] == [True] * MOST_REQUESTS + [False] * 2
    assert log(request("b0", "k0"))


def test_the_first_words_are_those_that_people_read() -> None:
    def words(log: Log) -> str | None:
        known = log.reader.get("a1")
        assert known is not None
        return known.facts.asked

    log = started()
    log(request("b1"))
    assert words(log) is None
    log(request("b2", asked="please"))
    log(request("b3", asked="never mind"))
    assert words(log) == "please"
    log(vote("ann", "deny"))
    assert words(log) is None  # nobody reads it any more
    log(request("b4", asked="why not?"))
    assert words(log) is None


def test_nobody_says_yes_to_himself() -> None:
    log = Log()
    log(opened(subject="user:ann"))
    assert not log(vote("ann"))
    assert not log(vote("ann", "deny"))
    assert log.status == "pending"
    assert log(vote("bob"))
    assert log.status == "approved"
    log = Log()
    log(opened(subject="urn%3Auser:x:bob"))
    assert log(vote("bob"))  # `x:bob` is another one
