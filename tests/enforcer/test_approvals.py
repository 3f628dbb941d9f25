"""Approvals on two replicas: asked for on one, answered on the other, used once, by one request, wherever it asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from tests.enforcer.conftest import PUSH, Answer, Desk, Enforcer, Tape, two_replicas, until
from tests.enforcer.inside import eventually, inside
from tests.servers import Broker

from banksman.events import ApprovalOpened, Event
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic

ROOM = {"BANKSMAN_AGENT_RATE": "100000", "BANKSMAN_AGENT_SESSIONS": "10000", "BANKSMAN_AGENT_APPROVALS": "1000"}
STRICT = """\
project: strict
agents:
  clerk:
    require_approval:
      - {service: git, actions: [push], branches: [main], approvers: {any: [ann, bob], min: 2}}
      - {service: git, actions: [tag], approvers: {any: [release-managers]}}
      - {service: git, actions: [merge], approvers: {expires: 2s}}
      - {service: git, actions: [tag2]}
      - {service: files, actions: [tag2]}
"""
MAIN = PUSH | {"branch": "main"}


@dataclass
class Pair:
    desk: Desk
    tape: Tape
    one: Enforcer
    two: Enforcer
    people: dict[str, str]

    def ask(self, at: Enforcer | None = None, *, agent: str = "buyer", token: str = "", **changes: Any) -> Answer:
        asked = {name: value for name, value in (MAIN | changes).items() if value is not None}
        return (at or self.one)("POST", "/v1/decide", asked, token=token or self.desk.agents[agent].token, timeout=30)

    def opened(self, **changes: Any) -> str:
        answer = self.ask(**changes)
        assert answer.body["decision"] == "approve", answer.raw
        approval: str = answer.body["approval"]
        return approval

    def answer(
        self, approval: str, verdict: str = "approve", *, by: str = "ann", at: Enforcer | None = None, **more: Any
    ) -> Answer:
        body = {"verdict": verdict} | more
        return (at or self.two)("POST", f"/v1/approvals/{approval}", body, token=self.people[by], timeout=30)

    def shows(self, approval: str, *, at: Enforcer | None = None, token: str | None = None, query: str = "") -> Answer:
        return (at or self.one)(
            "GET", f"/v1/approvals/{approval}{query}", token=token or self.people["ann"], timeout=70
        )

    def told(self, kind: str, approval: str) -> list[dict[str, Any]]:
        return self.tape.wait(Topic.DECISIONS, lambda one: one.get("kind") == kind and one.get("approval") == approval)


@pytest.fixture(scope="module")
def pair(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with two_replicas(broker, tmp_path_factory.mktemp("approvals"), **ROOM) as (desk, tape, one, two):
        (desk.policies / "strict.yaml").write_text(STRICT)
        people, events = {"root": desk.admin, "vera": desk.viewer}, list[Event]()
        for name, role in (("ann", "approver"), ("bob", "approver"), ("carl", "approver"), ("opal", "operator")):
            people[name], event = desk.operator(name, role)
            events.append(event)
        desk.agents["clerk"], event = desk.agent("clerk", "strict")
        desk.write(*events, event)
        made = Pair(desk, tape, one, two, people)
        for at in (one, two):
            until(lambda at=at: made.ask(at, agent="clerk", action="none").body.get("reason") == "default_deny")  # type: ignore[misc]
        yield made


def policy_version(pair: Pair) -> set[str]:
    """Of the strict project, as both replicas have it in force."""
    asked = [pair.ask(at, agent="clerk", session="probe", action="none") for at in (pair.one, pair.two)]
    return {answer.body["policy_version"] for answer in asked}


@pytest.fixture
def session() -> str:
    return f"s-{uuid7()[-12:]}"


def test_asked_on_one_answered_on_the_other_used_once(pair: Pair, session: str) -> None:
    args, call = {"force": False}, uuid7()
    approval = pair.opened(session=session, args=args, reason="the release is due", call=call)
    listed = until(
        lambda: [
            one
            for one in pair.two("GET", "/v1/approvals", token=pair.people["vera"]).body["approvals"]
            if one["approval"] == approval
        ]
    )
    (shown,) = listed
    assert {name: shown[name] for name in ("status", "agent", "project", "owner", "session", "args", "rule", "agent_says")} == {
        "status": "pending", "agent": "buyer", "project": "shop", "owner": "ann@acme.example", "session": session, "args": args,
        "rule": "buyer/require_approval/0", "agent_says": "the release is due",
    }  # fmt: skip
    assert list(shown)[-1] == "agent_says"  # what the enforcer knows comes first
    waiting = pair.ask(pair.two, session=session, args=args, approval=approval).body
    assert (waiting["decision"], waiting["reason"], waiting["approval"]) == ("approve", "approval_required", approval)

    given = pair.answer(approval, comment="go ahead")
    assert given.status == 200, given.raw
    assert (given.body["status"], given.body["votes"][0]["by"], given.body["votes"][0]["comment"]) == (
        "approved", "ann", "go ahead",
    )  # fmt: skip
    mine = pair.shows(approval, token=pair.desk.agents["buyer"].token, query="?wait=20").body
    assert mine["status"] == "approved"
    unnamed = pair.ask(session=session, args=args).body
    assert (unnamed["decision"], unnamed["approval"]) == ("approve", approval)  # it is there, and has to be named

    question = uuid7()
    used = pair.ask(session=session, args=args, approval=approval, id=question)
    assert used.status == 200, used.raw
    assert (used.body["decision"], used.body["tier"], used.body["reason"], used.body["approval"]) == (
        "allow", 3, "approved", approval,
    )  # fmt: skip
    (record,) = pair.tape.wait(Topic.DECISIONS, lambda one: one["id"] == used.body["id"])
    assert (record["approval"], record["rule"]) == (approval, "buyer/require_approval/0")
    (approved,) = {one["id"]: one for one in pair.told("approval.approved", approval)}.values()
    assert (approved["approver"], approved["comment"], approved["session"]) == ("ann", "go ahead", session)
    (done,) = pair.told("approval.used", approval)
    assert (done["parent"], done["approver"]) == (used.body["id"], "ann")

    again = pair.ask(pair.two, session=session, args=args, approval=approval, id=question).body  # the answer was lost
    assert (again["decision"], again["reason"]) == ("allow", "approved")
    other = pair.ask(pair.two, session=session, args=args, approval=approval).body
    assert (other["decision"], other["reason"]) == ("deny", "approval_used")
    assert pair.shows(approval).body["used_by"] == question
    assert pair.opened(session=session, args=args) != approval  # the next one is asked for anew


def test_a_no_is_a_no(pair: Pair, session: str) -> None:
    approval = pair.opened(session=session)
    assert pair.answer(approval, "deny", comment="not on a Friday").body["status"] == "denied"
    late = pair.answer(approval, by="bob", at=pair.one)
    assert (late.status, late.body["detail"]) == (409, "ann has denied it already")
    told = pair.ask(session=session, approval=approval).body
    assert (told["decision"], told["reason"]) == ("deny", "approval_denied")
    assert {one["comment"] for one in pair.told("approval.denied", approval)} == {"not on a Friday"}
    assert pair.opened(session=session) != approval


def test_it_is_good_for_exactly_what_was_asked(pair: Pair, session: str) -> None:
    args = {"n": 1}
    approval = pair.opened(session=session, args=args)
    assert pair.answer(approval).status == 200
    others: list[dict[str, Any]] = [
        {"session": f"{session}x"}, {"args": {"n": 2}}, {"args": None}, {"resource": "acme/other"}, {"approval": uuid7()},
        {"service": "stripe", "action": "refunds:create", "branch": None},
    ]  # fmt: skip
    for other in others:
        told = pair.ask(**{"session": session, "args": args, "approval": approval} | other).body
        assert (told["decision"], told["reason"]) == ("deny", "approval_unfit"), other
        assert "approval" not in told
    assert pair.ask(session=session, args=args, approval=approval).body["decision"] == "allow"


def test_another_agent_neither_sees_nor_uses_it(pair: Pair, session: str) -> None:
    approval = pair.opened(session=session)
    for other in ("seller", "clerk"):
        token = pair.desk.agents[other].token
        assert pair.shows(approval, token=token).status == 404
        listed = pair.one("GET", "/v1/approvals?status=all", token=token).body["approvals"]
        assert approval not in [one["approval"] for one in listed]
    assert pair.answer(approval).status == 200
    told = pair.ask(agent="clerk", session=session, approval=approval).body
    assert (told["decision"], told["reason"]) == ("deny", "approval_unfit")
    mine = pair.one("GET", "/v1/approvals?status=approved", token=pair.desk.agents["buyer"].token).body["approvals"]
    assert approval in [one["approval"] for one in mine]


def test_who_may_answer(pair: Pair, session: str) -> None:
    approval = pair.opened(session=session)
    for token, status in (
        (pair.people["vera"], 403), (pair.people["opal"], 403), (pair.desk.agents["buyer"].token, 403), ("bmo_0_0", 401),
    ):  # fmt: skip
        answer = pair.one("POST", f"/v1/approvals/{approval}", {"verdict": "approve"}, token=token)
        assert answer.status == status
    assert pair.one("GET", f"/v1/approvals/{approval}").status == 401
    for body, field in (({}, "verdict"), ({"verdict": "yes"}, "verdict"), ({"verdict": "deny", "by": "bob"}, "by")):
        answer = pair.one("POST", f"/v1/approvals/{approval}", body, token=pair.people["ann"])
        assert (answer.status, answer.body["field"]) == (422, field)
    assert pair.answer(uuid7()).status == 404
    assert pair.shows(approval).body["status"] == "pending"
    assert pair.answer(approval, by="root").body["status"] == "approved"  # an admin is everything


def test_whom_the_policy_names_and_how_many(pair: Pair, session: str) -> None:
    approval = pair.opened(agent="clerk", session=session)
    stranger = pair.answer(approval, by="carl")
    assert (stranger.status, stranger.body["detail"]) == (403, "the policy wants the answer of ann, bob")
    assert pair.answer(approval, by="ann").body["status"] == "pending"
    twice = pair.answer(approval, by="ann", at=pair.one)
    assert (twice.status, twice.body["detail"]) == (409, "you have answered already; others have to agree")
    assert pair.ask(agent="clerk", session=session, approval=approval).body["decision"] == "approve"
    assert pair.answer(approval, by="bob", at=pair.one).body["status"] == "approved"
    assert pair.ask(pair.two, agent="clerk", session=session, approval=approval).body["decision"] == "allow"
    group = pair.opened(agent="clerk", session=session, action="tag", branch=None)
    assert pair.answer(group, by="ann").status == 403  # groups are not known yet: nobody can say yes for one


def test_of_two_who_answer_at_once_one_is_heard(pair: Pair) -> None:
    with ThreadPoolExecutor(2) as pool:
        for number in range(20):
            approval = pair.opened(session=f"both-{uuid7()[-12:]}")
            until(lambda approval=approval: pair.shows(approval, at=pair.two).status == 200)  # type: ignore[misc]
            barrier = threading.Barrier(2)

            def say(by: str, at: Enforcer, verdict: str, approval: str = approval, barrier: Any = barrier) -> Answer:
                barrier.wait()
                return pair.answer(approval, verdict, by=by, at=at)

            pair_of = (("ann", pair.one, "approve"), ("bob", pair.two, "deny" if number % 2 else "approve"))
            answers = [one.result() for one in [pool.submit(say, *who) for who in pair_of]]
            assert sorted(answer.status for answer in answers) == [200, 409]
            (winner,) = [who for who, answer in zip(pair_of, answers, strict=True) if answer.status == 200]
            for at in (pair.one, pair.two):
                until(lambda at=at, approval=approval: pair.shows(approval, at=at).body["status"] != "pending")  # type: ignore[misc]
                shown = pair.shows(approval, at=at).body
                assert [(vote["by"], vote["verdict"]) for vote in shown["votes"]] == [(winner[0], winner[2])]


def test_who_waits_hears_of_the_answer_at_once(pair: Pair, session: str) -> None:
    approval = pair.opened(session=session)
    began = time.monotonic()
    assert pair.shows(approval, query="?wait=0.3").body["status"] == "pending"
    assert 0.3 <= time.monotonic() - began < 3
    heard: list[tuple[str, float]] = []

    def wait() -> None:
        answer = pair.shows(approval, token=pair.desk.agents["buyer"].token, query="?wait=30")
        heard.append((answer.body["status"], time.monotonic()))

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: pair.answer(approval).status in (200, 409))
    voted = time.monotonic()
    waiting.join()
    assert heard[0][0] == "approved"
    assert heard[0][1] - voted < 3
    for wrong in ("-1", "61", "x", "nan", "inf"):
        answer = pair.shows(approval, query=f"?wait={wrong}")
        assert (answer.status, answer.body["field"]) == (422, "wait")
    unknown = pair.one("GET", "/v1/approvals?status=maybe", token=pair.people["ann"])
    assert (unknown.status, unknown.body["field"]) == (422, "status")


def test_what_nobody_answers_in_time_is_a_no_and_told_once(pair: Pair, session: str) -> None:
    approval = pair.opened(agent="clerk", session=session, action="merge")
    shown = pair.shows(approval, query="?wait=30").body
    assert shown["status"] == "expired"
    late = pair.answer(approval, by="carl")
    assert late.status == 409
    assert "ran out at" in late.body["detail"]
    told = pair.ask(agent="clerk", session=session, action="merge", approval=approval).body
    assert (told["decision"], told["reason"]) == ("deny", "approval_expired")
    (expired,) = pair.told("approval.expired", approval)
    assert (expired["session"], expired["agent"]) == (session, "clerk")


def test_a_yes_that_is_not_used_in_time_is_over(pair: Pair, session: str) -> None:
    approval = pair.opened(agent="clerk", session=session, action="merge")
    assert pair.answer(approval, by="carl").body["status"] == "approved"
    until(lambda: pair.shows(approval).body["status"] == "expired")
    told = pair.ask(agent="clerk", session=session, action="merge", approval=approval).body
    assert (told["decision"], told["reason"]) == ("deny", "approval_expired")


def test_policy_and_controls_come_before_any_yes(pair: Pair, session: str) -> None:
    approval = pair.opened(session=session)
    assert pair.answer(approval).status == 200
    kill = {"reason": "changed our minds"}
    assert pair.one("POST", f"/v1/sessions/{session}/kill?agent=buyer", kill, token=pair.people["opal"]).status == 200
    told = pair.ask(pair.two, session=session, approval=approval).body
    assert (told["decision"], told["reason"]) == ("deny", "killed")

    other = f"{session}-2"
    approval = pair.opened(agent="clerk", session=other, action="tag2", branch=None)
    assert pair.answer(approval, by="carl").status == 200
    file = pair.desk.policies / "strict.yaml"
    file.write_text(STRICT + "    never: [{service: git, actions: [tag2]}]\n")
    try:
        until(
            lambda: all(
                pair.ask(at, agent="clerk", session="probe", action="tag2", branch=None).body["reason"] == "never"
                for at in (pair.one, pair.two)
            )
        )
        told = pair.ask(agent="clerk", session=other, action="tag2", branch=None, approval=approval).body
        assert (told["decision"], told["reason"]) == ("deny", "never")
    finally:
        file.write_text(STRICT)
        until(
            lambda: all(
                pair.ask(at, agent="clerk", session="probe", action="tag2", branch=None).body["reason"] != "never"
                for at in (pair.one, pair.two)
            )
        )


def test_when_the_policy_wants_others_their_yes_is_asked_for(pair: Pair, session: str) -> None:
    approval = pair.opened(agent="clerk", session=session, action="tag2", branch=None)
    assert pair.answer(approval, by="carl").body["status"] == "approved"
    file = pair.desk.policies / "strict.yaml"
    file.write_text(STRICT.replace("actions: [tag2]}", "actions: [tag2], approvers: {any: [ann]}}"))
    try:
        until(lambda: pair.opened(agent="clerk", session=session, action="tag2", branch=None) != approval)
        told = pair.ask(agent="clerk", session=session, action="tag2", branch=None, approval=approval).body
        assert (told["decision"], told["reason"]) == ("deny", "approval_unfit")
    finally:
        before = policy_version(pair)
        file.write_text(STRICT)
        until(lambda: len(policy_version(pair)) == 1 and policy_version(pair) != before)


def test_two_resources_that_look_the_same_once_redacted_are_two(pair: Pair, session: str) -> None:
    secret: dict[str, Any] = {
        "agent": "clerk",
        "session": session,
        "service": "files",
        "action": "tag2",
        "branch": None,
        "resource": "a/AKIA" + "Q" * 16,
    }
    approval = pair.opened(**secret)
    shown = pair.shows(approval).body["resource"]
    assert shown.startswith("a/[aws-access-key:")
    assert pair.opened(**secret) == approval
    assert pair.opened(**secret | {"resource": shown}) != approval
    assert pair.answer(approval, by="carl").status == 200
    told = pair.ask(**secret | {"resource": shown, "approval": approval}).body
    assert (told["decision"], told["reason"]) == ("deny", "approval_unfit")
    assert pair.ask(**secret | {"approval": approval}).body["decision"] == "allow"


def test_what_an_agent_says_at_length_is_shown_with_one_and_not_in_the_list(pair: Pair, session: str) -> None:
    approval = pair.opened(session=session, args={"text": "x" * 3000}, reason="y" * 2000)
    assert pair.shows(approval).status == 200  # it waits until the replica has read it from the log; the list does not
    (listed,) = [
        one
        for one in pair.one("GET", "/v1/approvals", token=pair.people["ann"]).body["approvals"]
        if one["approval"] == approval
    ]
    assert (listed["brief"], listed["args"], listed["agent_says"]) == (True, None, None)
    shown = pair.shows(approval).body
    assert shown["brief"] is False
    assert shown["args"]["text"].startswith("xxx")
    assert len(pair.shows(approval).raw) < 8000


def test_of_many_uses_at_once_on_two_replicas_one_is_allowed(pair: Pair) -> None:
    approvals = [(session := f"race-{uuid7()[-12:]}", pair.opened(session=session)) for _ in range(10)]
    for _, approval in approvals:
        until(lambda approval=approval: pair.shows(approval, at=pair.two).status == 200)  # type: ignore[misc]
        assert pair.answer(approval).status == 200
    uses = [(session, approval, at) for session, approval in approvals for at in (pair.one, pair.two) * 6]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda use: pair.ask(use[2], session=use[0], approval=use[1]), uses))
    allowed = [use[1] for use, answer in zip(uses, answers, strict=True) if answer.body["decision"] == "allow"]
    assert sorted(allowed) == sorted(approval for _, approval in approvals)
    refused = {answer.body["reason"] for answer in answers if answer.body["decision"] != "allow"}
    assert refused == {"approval_used"}


def test_it_outlives_every_replica(pair: Pair, session: str) -> None:
    waiting, given, used = (pair.opened(session=session, args={"n": n}) for n in range(3))
    for approval in (given, used):
        assert pair.answer(approval).status == 200
    question = uuid7()
    assert pair.ask(session=session, args={"n": 2}, approval=used, id=question).body["decision"] == "allow"
    for replica in (pair.one, pair.two):
        replica.kill()
    for replica in (pair.one, pair.two):
        replica.start()
    assert [pair.shows(one, at=pair.two).body["status"] for one in (waiting, given, used)] == [
        "pending",
        "approved",
        "used",
    ]
    assert pair.opened(at=pair.two, session=session, args={"n": 0}) == waiting
    assert pair.ask(pair.two, session=session, args={"n": 1}, approval=given).body["decision"] == "allow"
    assert pair.ask(pair.two, session=session, args={"n": 2}, approval=used).body["reason"] == "approval_used"
    again = pair.ask(pair.two, session=session, args={"n": 2}, approval=used, id=question).body
    assert again["decision"] == "allow"


async def test_a_use_that_got_no_answer_gives_the_approval_back(desk: Desk) -> None:
    """The lease ends between the acknowledgement and the answer: nobody was allowed, so the yes is still good."""
    token = desk.agents["buyer"].token
    ann, enrolled = desk.operator("ann", "approver")
    async with inside(desk) as made:
        await made.replica.control.applied(await made.replica.records.control(enrolled))
        approval = (await made.decide(token, branch="main", session="given")).body["approval"]
        known = made.replica.state.approvals.get
        await eventually(lambda: known(approval) is not None)
        assert (await made.ask("POST", f"/v1/approvals/{approval}", {"verdict": "approve"}, token=ann)).status == 200
        lease = made.replica.lease

        async def freeze(_: str) -> None:
            lease.ends = lease.clock()

        made.decider.acknowledged = freeze
        answer = await made.decide(token, branch="main", session="given", approval=approval, id=(question := uuid7()))
        made.decider.acknowledged = None
        assert answer.status == 503
        await eventually(lambda: known(approval).use is None)  # type: ignore[union-attr]
        await eventually(lambda: lease.valid)
        other = await made.decide(token, branch="main", session="given", approval=approval)
        assert other.body["decision"] == "allow"
        lost = await made.decide(token, branch="main", session="given", approval=approval, id=question)
        assert (lost.body["decision"], lost.body["reason"]) == ("deny", "approval_used")


async def test_what_a_long_list_costs_its_agent_pays(desk: Desk) -> None:
    """Else one agent that asks for its approvals all the time has the replica for itself."""
    async with inside(desk) as made:
        account = made.replica.callers.of(made.replica.state.identities.agents["buyer"]).limits
        token, approvals = desk.agents["buyer"].token, made.replica.state.approvals
        for number in range(500):
            opened = ApprovalOpened(
                v=1, id=uuid7(), time=rfc3339(), source="test", project="shop", agent="buyer", session=f"s{number}",
                approval=uuid7(), service="git", action="push", args={"n": list(range(100))},
                expires_at="2099-01-01T00:00:00.000000Z",
            )  # fmt: skip
            approvals.apply(opened, number, 0, bool)
        account._rate = 0.001  # nothing to speak of is earned meanwhile
        before = account._allowance
        answer = await made.ask("GET", "/v1/approvals", token=token)
        assert len(answer.body["approvals"]) == 500
        assert before - account._allowance > 3
