"""`banksman policy backtest`, `suggest` and `show` against a real audit log: what counts as history, and what is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.console.conftest import Policy, Stand
from tests.enforcer.conftest import until

from banksman import stamps
from banksman.events import PolicyLoaded
from banksman.signing import service_signer

CANDIDATE = """project: shop
agents:
  backtested:
    allow:
      - {service: git, actions: [push], resources: ["acme/*"], branches: ["feature/*"]}
      - {service: stripe, actions: ["refunds:create"], when: {args.amount: {lt: 500}}}
    require_approval:
      - {service: git, actions: [push], resources: ["acme/*"], branches: [main]}
    never:
      - {service: git, actions: [push], resources: [acme/old]}
"""


@pytest.fixture
def backtest(policy: Policy) -> Callable[..., tuple[int, Any]]:
    def run(text: str, *more: str) -> tuple[int, Any]:
        Path("candidate.yaml").write_text(text)
        code, out, err = policy("backtest", "candidate.yaml", "--since", "1d", "--json", *more)
        return code, json.loads(out) if out else err

    return run


def asked(
    stand: Stand, branch: str | None, decision: str = "allow", *, agent: str = "backtested", **more: Any
) -> dict[str, Any]:
    call = stand.action(
        "tool.call", agent, "s-backtest", service="git", action="push", resource="acme/web", args={"force": False}
    )
    made = stand.decision(call, decision, **more)
    return made | ({"branch": branch} if branch else {})


def test_what_would_be_another_answer(stand: Stand, backtest: Any) -> None:
    voided = asked(stand, "main")
    void = {
        "v": 1, "id": stamps.uuid7(), "time": stamps.rfc3339(), "kind": "decision.void", "source": "enforcer#1",
        "project": "shop", "agent": "backtested", "session": "s-backtest", "parent": voided["id"], "reason": "lease_ended",
    }  # fmt: skip
    stand.publish(
        *(asked(stand, "feature/a") for _ in range(3)),  # stays
        *(asked(stand, "feature/a", resource="acme/old") for _ in range(4)),  # newly denied
        asked(stand, "main"),  # now asked about
        asked(stand, "main", "approve", reason="approval_required"),  # stays
        asked(stand, "main", reason="approved"),  # a human had said yes: the policy asked, and still does
        asked(stand, "release/1", "deny", reason="default_deny"),  # stays
        asked(stand, "feature/b", "deny", reason="default_deny"),  # newly allowed
        asked(stand, "feature/c", shadow="deny"),  # enforced it would have been denied, and now allowed
        # none of these is history of what a policy said
        asked(stand, "feature/d", "deny", reason="killed"),
        asked(stand, "feature/e", "deny", reason="exhausted"),
        voided, void,
    )  # fmt: skip
    stand.publish(asked(stand, "feature/f", "deny", reason="default_deny"), replay="march")
    stand.publish(asked(stand, "feature/g", "deny", reason="default_deny"), signed=False)
    code, told = backtest(CANDIDATE, "--agent", "backtested")
    assert code == 1
    assert told["decisions"] == 13
    assert told["totals"] == {"allow->deny": 4, "allow->approve": 1, "deny->allow": 2}
    first = told["moved"][0]
    assert (first["times"], first["rule"], first["operations"]) == (4, "backtested/never/0", 1)
    assert first["examples"] == [{"resource": "acme/old", "branch": "feature/a", "session": "s-backtest"}]
    code, told = backtest(CANDIDATE, "--agent", "somebody-else")
    assert (code, told["decisions"]) == (0, 0)


def test_diff_counts_what_was_really_asked(stand: Stand, policy: Policy) -> None:
    stand.publish(*(asked(stand, "main", "approve", agent="differs", reason="approval_required") for _ in range(3)))
    old = CANDIDATE.replace("backtested", "differs")
    Path("old.yaml").write_text(old)
    Path("new.yaml").write_text(old.replace("branches: [main]", "branches: [trunk]"))
    code, out, _ = policy("diff", "old.yaml", "new.yaml", "--history", "1d", "--json")
    assert code == 1
    assert json.loads(out)["history"]["totals"] == {"approve->deny": 3}
    assert "3 approve -> deny" in policy("diff", "old.yaml", "new.yaml", "--history", "1d")[1]


def test_conditions_look_at_recorded_arguments(stand: Stand, backtest: Any) -> None:
    def refund(amount: Any) -> dict[str, Any]:
        call = stand.action("tool.call", "refunder", "s-refund", service="stripe", action="refunds:create")
        return stand.decision(call) | {"args": {"amount": amount}}

    stand.publish(*map(refund, [5, 5, 499, 500, "5"]))
    code, told = backtest(CANDIDATE.replace("backtested", "refunder"), "--agent", "refunder")
    assert code == 1
    assert told["decisions"] == 5
    assert told["totals"] == {"allow->deny": 2}


def test_more_operations_than_one_answer_holds(stand: Stand, backtest: Any) -> None:
    """The read side answers with at most 1,000 rows here: the time is cut until each part has fewer."""
    several = [asked(stand, f"feature/{n}", agent="busy") for n in range(2500)]
    for first in range(0, 2500, 250):
        stand.publish(*several[first : first + 250])
    code, told = backtest(CANDIDATE.replace("backtested", "busy"), "--agent", "busy")
    assert (code, told["decisions"], told["moved"]) == (0, 2500, [])


def test_what_is_wrong_is_told(backtest: Any) -> None:
    assert backtest("project: shop\n")[0] == 2
    code, told = backtest(CANDIDATE, "--since", "yesterday")
    assert code == 2
    assert "--since" in told


def test_suggest_lint_and_backtest_go_round(stand: Stand, policy: Policy, backtest: Any) -> None:
    stand.publish(
        *(asked(stand, f"feature/{n}", agent="suggested") for n in range(12)),
        *(asked(stand, "main", "approve", agent="suggested", reason="approval_required") for _ in range(2)),
        *(asked(stand, "release/1", "deny", agent="suggested", reason="default_deny") for _ in range(3)),
    )
    code, text, told = policy("suggest", "--agent", "suggested", "--since", "1d")
    assert code == 0, told
    assert "branches: [feature/*]" in text
    assert "not in it, as it was denied 3 times: git push acme/web release/1" in told
    Path("suggested.yaml").write_text(text)
    assert policy("lint", "suggested.yaml")[0] == 0
    code, report = backtest(text, "--agent", "suggested")
    assert (code, report["decisions"], report["moved"]) == (0, 17, [])
    assert policy("suggest", "--agent", "suggested", "--out", "x.yaml")[0] == 0
    assert Path("x.yaml").read_text() == text


def test_an_agent_cannot_teach_its_own_policy(stand: Stand, policy: Policy) -> None:
    """What it reports of itself, or signs as somebody else, is no decision; what it was denied is none that counts."""
    wanted = asked(stand, "main", agent="sly")
    stand.publish(wanted, signed=False)
    stand.publish(asked(stand, "main", agent="sly"), replay="made-up")
    stand.publish(*(asked(stand, "main", "deny", agent="sly", reason="default_deny") for _ in range(50)))
    code, text, told = policy("suggest", "--agent", "sly")
    assert (code, text) == (1, "")
    assert "sly was allowed nothing" in told


def _is_shown(policy: Policy, version: str) -> bool:
    return version in policy("show", "--project", "shown")[1]


def test_show_prints_what_was_in_force(stand: Stand, policy: Policy) -> None:
    texts = [f'{{"agents":{{"a":{{}}}},"project":"shown","version":{n}}}' for n in (1, 2)]
    moments = []
    for number, text in enumerate(texts, 1):
        stand.desk.write(
            PolicyLoaded(
                v=1, id=stamps.uuid7(), time=stamps.rfc3339(), source="enforcer#1", project="shown", text=text,
                policy_version=f"shown@v{number}+sha256:{number:012d}", replica="r1", file="shown.yaml",
            ),
            signer=service_signer(stand.archive.secret, "enforcer"),
        )  # fmt: skip
        wanted = f"shown@v{number}+"
        until(partial(_is_shown, policy, wanted), 20)
        moments.append(stamps.rfc3339())
    code, out, _ = policy("show", "--project", "shown", "--at", moments[0], "--json")
    assert code == 0
    assert json.loads(out)["text"] == texts[0]
    assert json.loads(policy("show", f"shown@v2+sha256:{2:012d}", "--json")[1])["text"] == texts[1]
    assert "version: 2" in policy("show", "--project", "shown")[1]
    assert policy("show", "--project", "shown", "--at", "2020-01-01T00:00:00Z")[0] == 1
    assert policy("show", "shown@v9+sha256:000000000009")[0] == 2
    assert policy("show")[0] == 2
