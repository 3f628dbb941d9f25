"""What an AuthZEN question is here: a decision about the caller, on record with whom it was about, under the same controls."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.enforcer.authzen_desk import EVALUATION, EVALUATIONS, Gateway, open_gateway
from tests.enforcer.conftest import Answer, Desk, Tape, until
from tests.enforcer.inside import inside
from tests.servers import Broker

from banksman.events import ProjectPaused
from banksman.http_problem import problem
from banksman.stamps import rfc3339, uuid7
from banksman.topics import Topic

POLICY = """
project: desk
version: 4
subjects:
  user:
    ann: {team: payments, seats: 3}
    odd: {id: ann, type: robot}
claims: [subject.team, subject.org.unit, resource.owner, context.ip]
agents:
  gate:
    owner: the-platform
    allow:
      - {service: docs, actions: [read], when: {subject.team: payments}}
      - {service: docs, actions: [open], when: {resource.owner: {is: {attr: subject.id}}}}
      - {service: docs, actions: [enter], when: {context.ip: {glob: 10.0.0.*}}}
      - {service: docs, actions: [list], when: {subject.org.unit: north}}
      - {service: docs, actions: [guess], when: {subject.level: high}}
      - {service: docs, actions: [peek], when: {resource.secret: "no"}}
      - {service: docs, actions: [be], when: {subject.type: agent, subject.id: gate}}
      - {service: docs, actions: [seem], when: {subject.id: ann, subject.type: user}}
      - {service: git, actions: [push], branches: ["feature/*"], when: {args.force: false}}
    require_approval:
      - {service: docs, actions: [shred]}
    never:
      - {service: docs, actions: [burn]}
  other:
    allow: [{service: docs, actions: [read]}]
  "spare-*":
    allow: [{service: docs, actions: [read]}]
"""
AGENTS = ("gate", "other", "spare-1", "spare-2", "spare-3")


@pytest.fixture(scope="module")
def gate(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with open_gateway(broker, tmp_path_factory.mktemp("desk"), POLICY, "desk", *AGENTS) as made:
        yield made


def asked(action: str, who: str = "user:ann", /, **properties: dict[str, Any]) -> dict[str, Any]:
    """About a document. `properties`: of subject, action, resource; `context` is the context."""
    kind, _, name = who.partition(":")
    made: dict[str, Any] = {
        "subject": {"type": kind, "id": name}, "action": {"name": action}, "resource": {"type": "docs", "id": "d1"},
    }  # fmt: skip
    for key, value in properties.items():
        if key == "context":
            made[key] = value
        else:
            made[key]["properties"] = value
    return made


def said(answer: Answer) -> tuple[bool, str]:
    assert answer.status == 200, answer.raw
    return answer.body["decision"], answer.body["context"]["reason"]


def record(gate: Gateway, told: dict[str, Any]) -> dict[str, Any]:
    (found,) = gate.tape.wait(Topic.DECISIONS, lambda one: one["id"] == told["context"]["id"])
    return found


# ── on record ──


def test_a_decision_is_on_record_with_whom_it_was_about(gate: Gateway) -> None:
    answer = gate.one(asked("read", action={"page": 3}, context={"session": "s-7"}))
    assert said(answer) == (True, "allowed")
    context, found = answer.body["context"], record(gate, answer.body)
    assert found["kind"] == "decision"
    assert (found["project"], found["agent"], found["session"], found["subject"]) == ("desk", "gate", "s-7", "user:ann")
    assert (found["service"], found["action"], found["resource"], found["args"]) == ("docs", "read", "d1", {"page": 3})
    assert found["args_hash"].startswith("hmac-sha256:")
    assert (found["decision"], found["rule"], found["owner"]) == ("allow", "gate/allow/0", "the-platform")
    assert found["policy_version"] == context["policy_version"]
    assert context["policy_version"].startswith("desk@v4+sha256:")
    assert (context["rule"], context["tier"]) == (found["rule"], found["tier"])
    assert context["valid_until"] > found["time"]
    assert gate.one(asked("read")).body["context"]["id"] != context["id"]


def test_every_item_of_a_batch_is_on_record(gate: Gateway) -> None:
    people = ["user:ann", "user:bob", "robot:r2", "user:ann"]
    items = [{"subject": {"type": who.split(":")[0], "id": who.split(":")[1]}} for who in people]
    answer = gate.several({**asked("read"), "evaluations": [*items, {"subject": {}}]})
    assert answer.status == 200, answer.raw
    told = answer.body["evaluations"]
    assert [one["decision"] for one in told] == [True, False, False, True, False]
    assert [record(gate, one)["subject"] for one in told[:-1]] == people
    assert "id" not in told[-1]["context"]


def test_large_questions(gate: Gateway) -> None:
    """What takes long to read, hash and redact is done beside the loop; the answers are the same."""
    large = asked("read", action={"text": "x" * 50_000}, subject={"note": "y" * 50_000})
    answer = gate.one(large)
    assert said(answer) == (True, "allowed")
    assert len(record(gate, answer.body)["args"]["text"]) == 50_000
    items: list[dict[str, Any]] = [{}, {"action": {"name": "burn"}}, {"subject": {"type": "user", "id": "bob"}}]
    told = gate.several(large | {"evaluations": items}).body["evaluations"]
    assert [one["decision"] for one in told] == [True, False, False]
    assert [record(gate, one)["subject"] for one in told] == ["user:ann", "user:ann", "user:bob"]


def test_what_is_not_executed_is_not_recorded(gate: Gateway) -> None:
    items = [{"action": {"name": name}} for name in ("burn", "read", "read")]
    asks = asked("read", context={"session": "short"}) | {"evaluations": items}
    answer = gate.several(asks | {"options": {"evaluations_semantic": "deny_on_first_deny"}})
    (only,) = answer.body["evaluations"]
    assert (only["decision"], only["context"]["reason"]) == (False, "never")
    record(gate, only)
    gate.one(asked("read", context={"session": "after"}))
    gate.tape.wait(Topic.DECISIONS, lambda one: one.get("session") == "after")
    assert len(gate.tape.records(Topic.DECISIONS, lambda one: one.get("session") == "short")) == 1


def test_how_a_subject_is_written(gate: Gateway) -> None:
    """No two are written alike, secrets are not written at all, people stay readable."""
    secret = "sk-ant-api03-" + "a1B2" * 20
    for who, wanted in (("user:a:b", "user:a:b"), ("user:rick@the-citadel.com", "user:rick@the-citadel.com")):
        assert record(gate, gate.one(asked("read", who)).body)["subject"] == wanted
    odd = asked("read") | {"subject": {"type": "urn:user%", "id": "a:b"}}
    assert record(gate, gate.one(odd).body)["subject"] == "urn%3Auser%25:a:b"
    hidden = record(gate, gate.one(asked("read", f"user:{secret}")).body)
    assert secret not in hidden["_raw"].decode()
    assert hidden["redactions"] == ["/subject anthropic-key"]


def test_where_everything_comes_from(gate: Gateway) -> None:
    asks = asked("push", "agent:gate", action={"force": False}) | {
        "resource": {"type": "git", "id": "acme/web", "properties": {"branch": "feature/a"}}
    }
    answer = gate.one(asks)
    assert said(answer) == (True, "allowed")
    found = record(gate, answer.body)
    assert (found["service"], found["resource"], found["branch"]) == ("git", "acme/web", "feature/a")
    assert "subject" not in found  # it is the agent itself
    assert found["session"] == "authzen"
    asks["action"]["properties"] = {"force": True}
    assert said(gate.one(asks)) == (False, "default_deny")
    asks["resource"] = {"type": "git", "id": "acme/web.git"}
    assert said(gate.one(asks)) == (False, "not_canonical")


# ── whom it is about ──


@pytest.mark.parametrize(
    ("asks", "decision"),
    [
        (asked("read"), True),
        (asked("read", "user:bob"), False),
        (asked("read", "user:bob", subject={"team": "payments"}), True),
        (asked("read", "user:ann", subject={"team": "sales"}), True),  # the policy's own word goes first
        (asked("read", "robot:ann"), False),
        (asked("open", "user:bob", resource={"owner": "bob"}), True),
        (asked("open", "user:bob", resource={"owner": "ann"}), False),
        (asked("open", "user:bob", subject={"id": "ann"}, resource={"owner": "ann"}), False),
        (asked("open", "user:odd", resource={"owner": "ann"}), False),  # nor can a policy rename anybody
        (asked("open", "user:bob"), False),
        (asked("enter", context={"ip": "10.0.0.7"}), True),
        (asked("enter", context={"ip": "10.0.1.7"}), False),
        (asked("enter", subject={"ip": "10.0.0.7"}), False),
        (asked("list", subject={"org": {"unit": "north"}}), True),
        (asked("list", subject={"org.unit": "north"}), False),
        (asked("list", subject={"org": ["north"]}), False),
        (asked("guess", subject={"level": "high"}), False),  # not among the claims
        (asked("peek", resource={"secret": "no"}), False),
        (asked("be", "agent:gate"), True),
        (asked("be", "user:gate"), False),
        (asked("seem"), True),
        (asked("seem", "user:odd"), False),
        (asked("seem", "user:bob", subject={"id": "ann", "type": "user"}), False),
    ],
)
def test_claims_and_what_the_policy_says(gate: Gateway, asks: dict[str, Any], decision: bool) -> None:
    answer = gate.one(asks)
    assert said(answer)[0] is decision, answer.body


def test_an_agent_cannot_ask_for_another(gate: Gateway) -> None:
    for name in ("other", "GATE", "nobody", ""):
        for path in (EVALUATION, EVALUATIONS):
            answer = gate.enforcer("POST", path, asked("read", f"agent:{name}"), token=gate.token)
            assert (answer.status, answer.body["field"]) == (403, "subject.id")
        assert gate.several(asked("read", f"agent:{name}") | {"evaluations": [{}]}).status == 403
    mixed = [{"subject": {"type": "agent", "id": name}} for name in ("gate", "other")]
    answer = gate.several(asked("be") | {"evaluations": mixed})
    mine, theirs = answer.body["evaluations"]
    assert mine["decision"] is True
    assert theirs == {
        "decision": False,
        "context": {
            "error": {"status": 403, "message": "an agent may not ask for another agent", "field": "subject.id"}
        },
    }


def test_the_rules_are_the_callers(gate: Gateway) -> None:
    """`other` may read whoever it is about; what `gate` may is nothing to it."""
    asks = asked("read", "user:nobody")
    assert said(gate.one(asks)) == (False, "default_deny")
    assert said(gate.one(asks, token=gate.tokens["other"])) == (True, "allowed")
    assert said(gate.one(asked("enter", context={"ip": "10.0.0.7"}), token=gate.tokens["other"]))[0] is False


def test_a_claim_counts_from_the_next_request_on(gate: Gateway) -> None:
    file = gate.desk.policies / "desk.yaml"
    asks = asked("guess", subject={"level": "high"})
    assert said(gate.one(asks))[0] is False
    file.write_text(POLICY.replace("claims: [", "claims: [subject.level, "))
    try:
        until(lambda: said(gate.one(asks))[0])
    finally:
        file.write_text(POLICY)
        until(lambda: not said(gate.one(asks))[0])


# ── approvals, controls, limits ──


def test_what_waits_for_a_human_is_a_no(gate: Gateway) -> None:
    """And an approval is for whom it was asked."""
    told = gate.one(asked("shred")).body
    context = told["context"]
    assert (told["decision"], context["reason"]) == (False, "approval_required")
    approval = context["approval"]["id"]
    assert record(gate, told)["decision"] == "approve"
    requested = lambda one: one.get("kind") == "approval.requested" and one["approval"] == approval  # noqa: E731
    (asks,) = gate.tape.wait(Topic.DECISIONS, requested)
    assert asks["subject"] == "user:ann"
    same, other = gate.one(asked("shred")), gate.one(asked("shred", "user:bob"))
    assert same.body["context"]["approval"] == context["approval"]
    assert other.body["context"]["approval"] != context["approval"]
    shown = gate.enforcer("GET", f"/v1/approvals/{approval}", token=gate.desk.viewer)
    assert shown.body["subject"] == "user:ann"
    yes = gate.enforcer("POST", f"/v1/approvals/{approval}", {"verdict": "approve"}, token=gate.desk.admin)
    assert yes.status == 200, yes.raw
    assert said(gate.one(asked("shred"))) == (False, "approval_required")
    question = {"session": "authzen", "service": "docs", "action": "shred", "resource": "d1"}
    used = gate.enforcer("POST", "/v1/decide", question | {"approval": approval}, token=gate.token)
    assert (used.body["decision"], used.body["reason"]) == ("deny", "approval_unfit")


def test_two_alike_in_a_batch_wait_for_one_approval(gate: Gateway) -> None:
    answer = gate.several(asked("shred", "user:carl") | {"evaluations": [{}, {}, {}]})
    assert len({one["context"]["approval"]["id"] for one in answer.body["evaluations"]}) == 1


def test_controls_come_first(gate: Gateway) -> None:
    def act(path: str) -> None:
        answer = gate.enforcer("POST", path, {"reason": "test"}, token=gate.desk.admin, timeout=30)
        assert answer.status == 200, answer.raw

    asks = asked("read", context={"session": "doomed"})
    token = gate.tokens["spare-1"]
    assert said(gate.one(asks, token=token)) == (True, "allowed")
    act("/v1/sessions/doomed/kill?agent=spare-1")
    told = gate.one(asks, token=token)
    assert said(told) == (False, "killed")
    assert record(gate, told.body)["reason"] == "killed"
    assert said(gate.one(asked("read"), token=token)) == (True, "allowed")
    items = [{"context": {"session": name}} for name in ("doomed", "fine")]
    batch = gate.several(asked("read") | {"evaluations": items}, token=token)
    assert [one["decision"] for one in batch.body["evaluations"]] == [False, True]
    act("/v1/agents/spare-2/revoke")
    assert said(gate.one(asks, token=gate.tokens["spare-2"])) == (False, "revoked")
    act("/v1/projects/desk/pause")
    try:
        for name in ("gate", "other", "spare-3"):
            assert said(gate.one(asked("read"), token=gate.tokens[name])) == (False, "paused")
    finally:
        act("/v1/projects/desk/resume")
    assert said(gate.one(asked("read"))) == (True, "allowed")


def test_replays_are_not_for_this_call(gate: Gateway) -> None:
    for token in (gate.token, gate.desk.admin):
        assert gate.one(asked("read"), token=token, headers={"Banksman-Replay": "run"}).status == 400


def test_a_batch_pays_for_every_item(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("slow")
    with open_gateway(
        broker, folder, POLICY, "desk", "gate", BANKSMAN_AGENT_RATE="20", BANKSMAN_AGENT_SESSIONS="2"
    ) as slow:
        items: list[Any] = [{"context": {"session": name}} for name in ("a", "b", "c", "a")]
        told = slow.several(asked("read") | {"evaluations": items}).body["evaluations"]
        assert [one["decision"] for one in told] == [True, True, False, True]
        assert told[2]["context"]["error"]["status"] == 429
        assert slow.several(asked("read", context={"session": "a"}) | {"evaluations": [{}] * 40}).status == 200
        late = slow.one(asked("read", context={"session": "a"}), headers={"X-Request-ID": "r"})
        assert (late.status, late.headers["x-request-id"]) == (429, "r")
        assert int(late.headers["retry-after"]) >= 1


# ── between the record and the answer ──

BATCH = {
    "subject": {"type": "user", "id": "ann"}, "action": {"name": "pull"}, "resource": {"type": "git", "id": "a/b"},
    "evaluations": [{}, {"action": {"name": "push"}}, {}],
}  # fmt: skip


@pytest.mark.parametrize(("path", "count"), [(EVALUATION, 1), (EVALUATIONS, 3)])
@pytest.mark.parametrize("why", ["controlled", "not_answered"])
async def test_an_answer_that_is_overtaken_is_taken_back_whole(desk: Desk, path: str, count: int, why: str) -> None:
    """The project is paused, or the last item cannot be decided: a 503, and no record stands as if it had been answered."""
    recorded: list[str] = []
    with Tape(desk.kafka) as tape:
        async with inside(desk) as made:
            token, replica = desk.agents["seller"].token, made.replica
            pause = ProjectPaused(v=1, id=uuid7(), time=rfc3339(), source="test", project="shop")

            async def then(decision: str) -> None:
                recorded.append(decision)
                if len(recorded) == count:
                    if why == "controlled":
                        await replica.control.applied(await replica.records.control(pause))
                    else:
                        raise problem(503, "as if its record was lost")

            made.decider.acknowledged = then
            answer = await made.ask("POST", path, BATCH, token=token, headers={"X-Request-ID": "r1"})
            made.decider.acknowledged = None
            assert answer.status == 503, answer.raw
            assert answer.headers["x-request-id"] == "r1"
            wanted = set(recorded) if why == "controlled" else set(recorded[:-1])
            if wanted:
                voids = await asyncio.to_thread(
                    tape.wait, Topic.DECISIONS, lambda one: one.get("kind") == "decision.void", len(wanted)
                )
                assert {void["parent"] for void in voids} == wanted
                assert {void["reason"] for void in voids} == {why}
            assert made.replica.callers.limits["seller"].waiting == 0


async def test_an_answer_waits_for_the_acknowledgement(desk: Desk) -> None:
    async with inside(desk) as made:
        go, reached = asyncio.Event(), threading.Event()

        async def stop(_: str) -> None:
            reached.set()
            await go.wait()

        made.decider.acknowledged = stop
        asking = asyncio.create_task(made.ask("POST", EVALUATIONS, BATCH, token=desk.agents["seller"].token))
        await asyncio.to_thread(reached.wait, 10)
        await asyncio.sleep(0.05)
        assert not asking.done()
        assert made.replica.callers.limits["seller"].waiting == 3
        go.set()
        answer = await asking
        assert [one["decision"] for one in answer.body["evaluations"]] == [True, False, True]
