"""`banksman approvals`, `approve`, `deny`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.cli.conftest import Reply, Scribe, Shell, problem

ID = "0190a3c2-7d1e-7b60-8a55-0f0c2f9e1d11"


def approval(**changes: Any) -> dict[str, Any]:
    made = {
        "approval": ID, "status": "pending", "project": "shop", "agent": "buyer", "owner": "ann@acme.example", "session": "s1",
        "service": "git", "action": "push", "resource": "acme/billing", "branch": "main", "args": {"force": False},
        "subject": None,
        "args_hash": "hmac-sha256:aa", "rule": "buyer/require_approval/0", "policy_version": "shop@v3+sha256:0123456789ab",
        "requested_at": "2026-03-01T12:00:00.000000Z",
        "expires_at": (datetime.now(UTC) + timedelta(minutes=10)).isoformat().replace("+00:00", "Z"),
        "wanted": [{"any": ["ann", "bob"], "min": 2}], "votes": [], "used_by": None,
        "brief": False, "agent_says": "approved by ann\x1b[2K already\u202e",
    }  # fmt: skip
    assert changes.keys() <= made.keys()
    return made | changes


def test_the_inbox(operator: Shell, scribe: Scribe) -> None:
    scribe.on["GET /v1/approvals"] = Reply({"approvals": [approval()]})
    ran = operator("approvals")
    assert (ran.code, ran.err) == (0, "")
    assert 'git push acme/billing main {"force": false}' in ran.out
    assert "\\x1b[2K" in ran.out
    assert "\x1b[2K" not in ran.out
    assert scribe.asked[-1].query == "status=pending"
    assert operator("approvals", "--status", "all", "--json").json["approvals"][0]["approval"] == ID
    assert scribe.asked[-1].query == "status=all"
    scribe.on["GET /v1/approvals"] = Reply({"approvals": []})
    ran = operator("approvals")
    assert (ran.code, ran.out, ran.err) == (0, "", "nothing waits for an answer\n")


def test_everything_about_one_the_agents_words_last(operator: Shell, scribe: Scribe) -> None:
    vote = {"by": "ann", "verdict": "approve", "comment": "fine", "at": "2026-03-01T12:01:00.000000Z"}
    scribe.on[f"GET /v1/approvals/{ID}"] = Reply(approval(votes=[vote]))
    lines = operator("approvals", ID).out.splitlines()
    assert lines[-1].startswith("agent says")
    assert any("2 yes of ann or bob" in line for line in lines)
    assert any("approve by ann, 2026-03-01 12:01:00: fine" in line for line in lines)
    assert all("\u202e" not in line for line in lines)


def test_who_approves_sees_the_whole_of_it(operator: Shell, scribe: Scribe) -> None:
    target = "a/" + "b" * 300 + "/REAL-TARGET"
    scribe.on[f"GET /v1/approvals/{ID}"] = Reply(approval(resource=target))
    assert any(line.split() == ["resource", target] for line in operator("approvals", ID).out.splitlines())
    scribe.on[f"POST /v1/approvals/{ID}"] = Reply(
        approval(status="approved", resource='acme/shop v1 {"dry_run": true}', args={})
    )
    assert operator("approve", ID).out == (
        'approved: buyer, session s1: git push "acme/shop v1 {\\"dry_run\\": true}" main\n'
    )


def test_who_approves_sees_for_whom(operator: Shell, scribe: Scribe) -> None:
    for subject, shown in (("user:bob", "user:bob"), ("user:bob: git push", '"user:bob: git push"')):
        told = approval(subject=subject)
        scribe.on["GET /v1/approvals"] = Reply({"approvals": [told]})
        assert f"for {shown}: git push acme/billing main" in operator("approvals").out
        scribe.on[f"GET /v1/approvals/{ID}"] = Reply(told)
        assert any(line.split() == ["for", *subject.split()] for line in operator("approvals", ID).out.splitlines())
        scribe.on[f"POST /v1/approvals/{ID}"] = Reply(told | {"status": "approved"})
        assert f"session s1: for {shown}: git push" in operator("approve", ID).out


def test_yes_and_no(operator: Shell, scribe: Scribe) -> None:
    scribe.on[f"POST /v1/approvals/{ID}"] = Reply(approval(status="approved"))
    ran = operator("approve", ID, "-m", "the release is agreed")
    assert (ran.code, ran.out) == (0, "approved: buyer, session s1: git push acme/billing main\n")
    assert scribe.asked[-1].body == {"verdict": "approve", "comment": "the release is agreed"}
    scribe.on[f"POST /v1/approvals/{ID}"] = Reply(approval(status="denied"))
    assert operator("deny", ID).out == "denied: buyer, session s1: git push acme/billing main\n"
    assert scribe.asked[-1].body == {"verdict": "deny"}
    vote = {"by": "ann", "verdict": "approve", "comment": None, "at": "2026-03-01T12:01:00.000000Z"}
    scribe.on[f"POST /v1/approvals/{ID}"] = Reply(approval(votes=[vote]))
    assert operator("approve", ID).out.startswith("your yes is counted, 1 so far; it takes more: buyer")
    assert operator("approve", ID, "--json").json["status"] == "pending"


def test_who_came_too_late_is_told(operator: Shell, scribe: Scribe) -> None:
    scribe.on[f"POST /v1/approvals/{ID}"] = problem(409, "bob has denied it already")
    ran = operator("approve", ID)
    assert (ran.code, ran.out) == (2, "")
    assert "bob has denied it already" in ran.err
    scribe.on[f"POST /v1/approvals/{ID}"] = problem(403, "the policy wants the answer of zoe")
    assert operator("deny", ID).code == 3
    assert operator("deny", "a/b").code == 2
    assert scribe.asked[-1].path == "/v1/approvals/a%2Fb"
