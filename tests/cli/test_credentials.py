"""`banksman agents`, `operators add`: a credential exists once, and is handed over once."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Reply, Scribe, Shell, problem

CREDENTIAL = "bma_1a2b_c3d4.shop.buyer.1.ZXZlbnQta2V5"
ADD = ("agents", "add", "buyer", "--project", "shop", "--owner", "ann")
LISTED: dict[str, Any] = {
    "agent": "buyer", "project": "shop", "owner": "ann", "token_id": "1a2b", "enrolled_at": "2026-03-01T12:00:00.000000Z",
    "rotated_at": None,
}  # fmt: skip


@pytest.fixture
def enrols(scribe: Scribe) -> Scribe:
    answer = {"agent": "buyer", "project": "shop", "owner": "ann", "token": CREDENTIAL}
    scribe.on["POST /v1/agents"] = Reply(answer, 201)
    scribe.on["POST /v1/agents/buyer/rotate"] = Reply(answer)
    scribe.on["POST /v1/operators"] = Reply({"name": "ann", "roles": ["viewer"], "token": "bmo_1_2"}, 201)
    return scribe


def test_a_credential_is_shown_once(operator: Shell, enrols: Scribe) -> None:
    ran = operator(*ADD)
    assert (ran.code, ran.out) == (0, f"{CREDENTIAL}\n")
    assert ran.err == "buyer is enrolled in shop. Its credential, shown this once:\n"
    assert enrols.asked[0].body == {"agent": "buyer", "project": "shop", "owner": "ann"}
    assert operator(*ADD, "--json").json["token"] == CREDENTIAL
    assert operator("agents", "rotate", "buyer").out == f"{CREDENTIAL}\n"
    ran = operator("operators", "add", "ann", "--role", "viewer", "--role", "approver")
    assert ran.out == "bmo_1_2\n"
    assert enrols.asked[-1].body == {"name": "ann", "roles": ["viewer", "approver"]}


def test_into_a_file_that_nobody_else_can_read(operator: Shell, enrols: Scribe) -> None:
    out = operator.folder / "buyer.credential"
    before = os.umask(0)
    try:
        ran = operator(*ADD, "--out", str(out))
    finally:
        os.umask(before)
    assert (ran.code, ran.out) == (0, "")
    assert CREDENTIAL not in ran.err
    assert out.read_text() == f"{CREDENTIAL}\n"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert [file.name for file in operator.folder.iterdir()] == ["buyer.credential"]
    out.write_text("older")
    assert operator("agents", "rotate", "buyer", "--out", str(out), "--json").json == {
        "agent": "buyer", "project": "shop", "owner": "ann", "out": str(out),
    }  # fmt: skip
    assert out.read_text() == f"{CREDENTIAL}\n"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_a_credential_that_is_there_is_not_replaced_by_another(operator: Shell, enrols: Scribe) -> None:
    out = operator.folder / "other.credential"
    out.write_text("somebody else's")
    for words in (ADD, ("operators", "add", "ann", "--role", "admin")):
        ran = operator(*words, "--out", str(out))
        assert ran.code == 2
        assert "is there already" in ran.err
    assert out.read_text() == "somebody else's"
    assert enrols.asked == []


@pytest.mark.parametrize("out", ["/nowhere/x", "/dev/null", "/", "."])
def test_nobody_is_enrolled_whose_credential_has_no_place(operator: Shell, enrols: Scribe, out: str) -> None:
    ran = operator(*ADD, "--out", out)
    assert (ran.code, ran.out) == (2, "")
    assert "--out" in ran.err
    assert enrols.asked == []
    assert not Path("/dev/null").is_file()


def test_a_disk_that_is_full(operator: Shell, enrols: Scribe, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    ran = operator(*ADD, "--out", "x")
    assert (ran.code, ran.err) == (2, "banksman agents: --out: x cannot be written: No space left on device\n")
    assert enrols.asked == []
    assert list(operator.folder.iterdir()) == []


def test_a_refusal_leaves_nothing_behind(operator: Shell, enrols: Scribe) -> None:
    enrols.on["POST /v1/agents"] = problem(
        409, "buyer is enrolled already; `rotate` gives it a new credential", field="agent"
    )
    ran = operator(*ADD, "--out", "x")
    assert ran.code == 2
    assert "enrolled already" in ran.err
    assert list(operator.folder.iterdir()) == []
    enrols.on["POST /v1/agents"] = problem(403, "this needs the role admin")
    assert operator(*ADD).code == 3
    assert operator("operators", "add", "x", "--role", "god").code == 2
    assert operator("operators", "add", "x", "--role", "viewer", "--new-secret").code == 2


# ── who runs ──

RUNS: dict[str, Any] = {
    "agent": "buyer", "project": "shop", "owner": "ann", "enrolled": True, "state": "running", "session": "s1",
    "last_seen": "2026-03-01T12:00:00.000000Z", "last_kind": "tool.call", "last_decision": "allow",
    "last_rule": "buyer/allow/0", "events_last_minute": 7, "replay": None,
}  # fmt: skip


def test_the_agents_and_what_they_do(operator: Shell, scribe: Scribe) -> None:
    scribe.on["GET /v1/agents"] = Reply(
        {"agents": [RUNS, RUNS | {"agent": "ghost", "enrolled": False, "project": None}]}
    )
    ran = operator("agents", "--project", "shop")
    assert (ran.code, ran.err) == (0, "")
    assert scribe.asked[0].query == "project=shop"
    row = " ".join(ran.out.splitlines()[2].split())
    assert row == "buyer running shop ann s1 2026-03-01 12:00:00 allow buyer/allow/0 7"
    assert "ghost (not enrolled)" in ran.out
    assert operator("agents", "--json").json["agents"][0] == RUNS


def test_the_agents_while_the_read_side_is_away(operator: Shell, scribe: Scribe) -> None:
    decides = Scribe()
    try:
        decides.on["GET /v1/agents"] = Reply({"agents": [LISTED, LISTED | {"agent": "x", "project": "y"}]})
        scribe.on["GET /v1/agents"] = problem(503, "ClickHouse is away")
        operator.environment["BANKSMAN_URL"] = decides.url
        ran = operator("agents", "--project", "shop")
        assert ran.code == 4
        assert "ClickHouse is away" in ran.err
        assert ran.out.splitlines()[2].split() == ["buyer", "shop", "ann"]
        assert len(ran.out.splitlines()) == 3
        told = operator("agents", "--json").json
        assert told["agents"][0] == dict.fromkeys(RUNS) | {
            "agent": "buyer",
            "project": "shop",
            "owner": "ann",
            "enrolled": True,
        }
        scribe.on["GET /v1/agents"] = problem(401, "not known")
        assert operator("agents").code == 3
    finally:
        decides.close()


def test_no_agents(operator: Shell, scribe: Scribe) -> None:
    scribe.on["GET /v1/agents"] = Reply({"agents": []})
    assert "banksman agents add NAME" in operator("agents").err
    assert "no agent of shop" in operator("agents", "--project", "shop").err
