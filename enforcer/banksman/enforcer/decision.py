"""What a decision is, on the log and in its answer: made of who asked, the question, and the verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from banksman.canonical import canonical
from banksman.enforcer.answers import Answer
from banksman.policy.verdict import ASK, NEVER, Reason, Ruling
from banksman.signing import digest_by

if TYPE_CHECKING:
    from banksman.controls import InForce
    from banksman.enforcer.budgets import Exhausted
    from banksman.enforcer.callers import Caller
    from banksman.enforcer.question import Question
    from banksman.policy.verdict import Verdict


_HELD = {"session.killed": Reason.KILLED, "agent.revoked": Reason.REVOKED, "project.paused": Reason.PAUSED}


def held(verdict: Verdict, by: InForce) -> Verdict:
    """The verdict where a control is in force: it comes before policy, and no shadow mode covers it. The rule is where the
    control lies on the log.
    """
    said = verdict.ruling
    ruling = Ruling(
        "deny", NEVER, f"control/{by.offset}", _HELD[by.kind], policy=said.policy, policy_version=said.policy_version,
        owner=said.owner,
    )  # fmt: skip
    return msgspec.structs.replace(verdict, ruling=ruling)


def spent(verdict: Verdict, by: Exhausted) -> Verdict:
    """The verdict where a budget is spent. What the policy denies is denied as before; what it lets pass is denied, or waits
    for a human. In shadow mode that is only noted: a budget is the policy's.
    """
    said = verdict.ruling
    if said.decision == "deny":
        return verdict
    rule = f"budget/{by.unit}"
    if by.shadow:
        if said.shadow is None:
            return verdict  # a guardrail's word, which shadow does not cover
        worse = "deny" if by.then == "deny" or said.shadow == "deny" else "approve"
        ruling = msgspec.structs.replace(said, rule=rule, reason=Reason.EXHAUSTED, shadow=worse)
    elif by.then == "deny":
        ruling = msgspec.structs.replace(
            said, decision="deny", tier=NEVER, rule=rule, reason=Reason.EXHAUSTED, approvers=(), shadow=None
        )
    elif said.decision == "approve":
        return verdict  # a human is asked already
    else:
        noted = "deny" if said.shadow == "deny" else None  # by a rule that is in shadow alone
        ruling = msgspec.structs.replace(
            said, decision="approve", tier=ASK, rule=rule, reason=Reason.EXHAUSTED, shadow=noted
        )
    return msgspec.structs.replace(verdict, ruling=ruling)


def answer_of(record: dict[str, Any], ruling: Ruling) -> Answer:
    """What is said of a decision; `valid_until` is known when it is said."""
    return Answer(
        id=record["id"],
        decision=ruling.decision,
        tier=ruling.tier,
        rule=ruling.rule,
        policy=ruling.policy,
        policy_version=ruling.policy_version,
        reason=ruling.reason,
        valid_until="",
        approval=record.get("approval"),
        budget=record.get("budget"),
    )


def record_of(caller: Caller, question: Question, asked: str, verdict: Verdict, head: dict[str, Any]) -> dict[str, Any]:
    """The `decision`, redacted."""
    record = head
    if question.call is not None:
        record["call"] = question.call
    record["parent"] = asked
    record["project"], record["agent"], record["session"] = caller.project, caller.name, question.session
    record["service"], record["action"] = verdict.service, verdict.action
    if verdict.branch is not None:
        record["branch"] = verdict.branch
    told: dict[str, Any] = {}  # of all that an agent says, what may hold secrets
    if verdict.resource is not None:
        told["resource"] = verdict.resource
    if question.args is not None:
        told["args"] = question.args
        record["args_hash"] = digest_by(caller.mac, canonical(question.args))
    if question.reason is not None:
        told["asked"] = question.reason
    if told:
        record.update(caller.redactor.event(told))
    whom = question.whom()
    if whom is not None:
        found: list[str] = []
        record["subject"] = caller.redactor.text(whom, found, "/subject")
        if found:
            record["redactions"] = sorted({*record.get("redactions", ()), *found})
    ruling = verdict.ruling
    record["decision"], record["tier"], record["reason"] = ruling.decision, ruling.tier, ruling.reason
    if ruling.rule is not None:
        record["rule"] = ruling.rule
    if ruling.policy is not None:
        record["policy"], record["policy_version"] = ruling.policy, ruling.policy_version
    if ruling.shadow is not None:
        record["shadow"] = ruling.shadow
    if owner := ruling.owner or caller.owner:  # the policy's word, else that of whoever enrolled the agent
        record["owner"] = owner
    return record
