"""`banksman policy backtest` against a real audit log: what counts as history, and what a candidate makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.console.conftest import Stand

from banksman import stamps
from banksman.cli import main

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
def backtest(stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("BANKSMAN_CONSOLE_URL", stand.base)
    monkeypatch.setenv("BANKSMAN_OPERATOR_TOKEN", stand.desk.viewer)
    monkeypatch.chdir(tmp_path)

    def run(text: str, *more: str) -> tuple[int, Any]:
        (tmp_path / "candidate.yaml").write_text(text)
        capsys.readouterr()
        code = main.main(["policy", "backtest", "candidate.yaml", "--since", "1d", "--json", *more])
        out, err = capsys.readouterr()
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
