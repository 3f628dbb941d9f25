"""`banksman doctor`: says where the path of an action stops."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tests.cli import canned
from tests.cli.conftest import TOKEN, Ran, Reply, Scribe, Shell, problem

from banksman.cli import doctor

UP_TO = {"lag": 0, "waiting_s": 0.0}
HEALTHY = {"status": "ok"}
PROBE = {
    "id": "the-probe",
    "topic": "alerts",
    "partition": 0,
    "offset": 42,
    "time": "2026-03-01T12:00:00.0Z",
    "took_ms": 3.1,
}


def explained(reason: str) -> Reply:
    return Reply({"verdict": {"ruling": {"decision": "deny", "reason": reason}}})


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scribe's second answer is there at once."""
    monkeypatch.setattr(doctor, "LOOK_AGAIN_S", 0)
    monkeypatch.setattr(doctor, "PROBE_S", 0.8)
    monkeypatch.setattr(doctor, "PROBE_AGAIN_S", 0.05)


@pytest.fixture
def well(operator: Shell, scribe: Scribe) -> Any:
    """Two services that are well: the scribe is the console."""
    decides = Scribe()
    operator.environment["BANKSMAN_URL"] = decides.url
    decides.on |= {
        "GET /healthz": Reply(HEALTHY), "GET /readyz": Reply(HEALTHY), "GET /v1/status": Reply(canned.enforcer()),
        "GET /v1/agents": Reply({"agents": [{"agent": "buyer", "project": "shop"}, {"agent": "lost", "project": "nowhere"}]}),
        "POST /v1/explain": explained("default_deny"), "POST /v1/probe": Reply(PROBE),
    }  # fmt: skip
    scribe.on |= {
        "GET /v1/status": Reply(canned.console()), "GET /v1/agents/buyer/now": Reply(canned.now()),
        "GET /v1/findings": Reply({"findings": [{"id": "another"}, {"id": PROBE["id"]}], "took_ms": 1.0}),
    }  # fmt: skip
    yield decides
    decides.close()


def states(ran: Ran) -> dict[str, str]:
    return {one["name"]: one["state"] for one in ran.json["steps"]}


def stop_of(operator: Shell, *words: str, **env: str) -> tuple[int, str, str, str]:
    """(exit code, step, text, advice) of the first step that failed."""
    ran = operator("doctor", "--json", *words, **env)
    told = ran.json
    step = next(one for one in told["steps"] if one["name"] == told["stops_at"] and one["state"] == "failed")
    return ran.code, step["name"], step["text"], step["do"] or ""


def test_an_open_path(operator: Shell, well: Scribe) -> None:
    ran = operator("doctor")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.endswith("\nthe whole path is open\n")
    assert all(line.startswith("ok ") for line in ran.out.split("\n\n", maxsplit=1)[0].splitlines())
    told = operator("doctor", "buyer", "--json")
    assert told.code == 0
    assert told.json["ok"] is True
    assert {"agent", "seen"} <= states(told).keys()
    assert not {"agent", "seen"} & states(operator("doctor", "--json")).keys()


def test_nobody_is_there(shell: Shell) -> None:
    ran = shell("doctor", "--json", BANKSMAN_OPERATOR_TOKEN=TOKEN)
    assert ran.code == 4
    assert ran.json["stops_at"] == "enforcer"
    assert states(ran)["console"] == "failed"
    assert states(ran)["ready"] == states(ran)["clickhouse"] == "skipped"


def test_settings_and_token(operator: Shell, well: Scribe) -> None:
    assert stop_of(operator, BANKSMAN_SPOOL_BYTES="x")[:2] == (2, "settings")
    del operator.environment["BANKSMAN_OPERATOR_TOKEN"]
    code, step, text, advice = stop_of(operator)
    assert (code, step) == (3, "token")
    assert ".banksman/admin.token" in text
    assert "BANKSMAN_OPERATOR_TOKEN" in advice
    file = operator.folder / "token"
    file.write_text(TOKEN)
    file.chmod(0o644)
    code, step, text, advice = stop_of(operator, BANKSMAN_OPERATOR_TOKEN_FILE=str(file))
    assert (code, step, advice) == (1, "token file", f"chmod 600 {file}")
    file.chmod(0o600)
    assert operator("doctor", BANKSMAN_OPERATOR_TOKEN_FILE=str(file)).code == 0


@pytest.mark.parametrize(
    ("call", "reply", "expected"),
    [
        ("GET /healthz", Reply(b"hi", kind="text/plain"), (4, "enforcer", "no banksman", "")),
        (
            "GET /readyz",
            problem(503, "Kafka has not been reached yet"),
            (1, "ready", "decides nothing: Kafka", "BANKSMAN_KAFKA"),
        ),
        ("GET /v1/status", problem(401, "not known"), (3, "operator", "401", "operator's token")),
        ("GET /v1/status", problem(403, "for operators"), (3, "operator", "403", "operator's token")),
        ("GET /v1/status", problem(503, "no lease"), (4, "operator", "503", "")),
        ("GET /v1/status", Reply(canned.enforcer(policies=[])), (1, "policies", "no policy", "BANKSMAN_POLICIES")),
        ("GET /v1/status", Reply(canned.enforcer(undelivered=3)), (1, "records", "not on record", "Kafka")),
    ],
)
def test_where_the_enforcers_side_stops(
    operator: Shell, well: Scribe, call: str, reply: Reply, expected: tuple[int, str, str, str]
) -> None:
    well.on[call] = reply
    code, step, text, advice = stop_of(operator)
    assert (code, step) == expected[:2]
    assert expected[2] in text
    assert expected[3] in advice
    assert states(operator("doctor", "--json"))["archiver"] == "ok"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (problem(503, "x"), (4, "console")),
        (Reply(canned.console(ready=False, reason="x")), (1, "console")),
        (Reply(canned.console(clickhouse={"reachable": False, "error": "x", "rows": None})), (1, "clickhouse")),
        (Reply(canned.console(kafka={"reachable": False, "error": "x"}, archiver=None)), (1, "kafka")),
        (Reply(canned.console(lag=500)), (1, "archiver")),
        (Reply(canned.console(notifier={"lag": 3, "waiting_s": 181.0})), (1, "notifier")),
    ],
)
def test_where_the_read_side_stops(
    operator: Shell, well: Scribe, scribe: Scribe, reply: Reply, expected: tuple[int, str]
) -> None:
    scribe.on["GET /v1/status"] = reply
    assert stop_of(operator)[:2] == expected


@pytest.mark.parametrize(
    ("call", "reply", "step", "advice"),
    [
        ("GET /v1/findings", Reply({"findings": [{"id": "another"}], "took_ms": 1.0}), "archived", "serve archiver"),
        ("GET /v1/status", Reply(canned.console(notifier=UP_TO | {"next": 42})), "told", "serve notifier"),
        ("GET /v1/status", Reply(canned.console(notifier=UP_TO | {"next": None})), "told", "serve notifier"),
    ],
)  # fmt: skip
def test_where_a_probe_is_lost(
    operator: Shell, well: Scribe, scribe: Scribe, call: str, reply: Reply, step: str, advice: str
) -> None:
    scribe.on[call] = reply
    code, stops_at, text, do = stop_of(operator)
    assert (code, stops_at) == (1, step)
    assert text == "not within 0.8 s"
    assert advice in do


def test_a_probe_that_is_not_counted(operator: Shell, well: Scribe) -> None:
    began = time.monotonic()

    def stands_still(_handler: Any) -> Reply:
        """Its marks get older by the second."""
        counted = [{"partition": 0, "counted_s_ago": 12.0 + time.monotonic() - began, "known": True}]
        return Reply(canned.enforcer(budgets=canned.enforcer()["budgets"] | {"counted": counted}))

    well.on["GET /v1/status"] = stands_still
    assert stop_of(operator)[1] == "counted"
    well.on["GET /v1/status"] = Reply(
        canned.enforcer(
            budgets=canned.enforcer()["budgets"] | {"counted": [{"partition": 0, "counted_s_ago": 29.0, "known": True}]}
        )
    )
    assert operator("doctor").code == 0, "a clock that is behind is no reason"


def test_a_probe_takes_a_role(operator: Shell, well: Scribe) -> None:
    well.on["POST /v1/probe"] = problem(403, "this needs the role operator")
    ran = operator("doctor")
    assert ran.code == 0
    assert "skipped  probe       it takes a token with the role operator" in ran.out
    assert states(operator("doctor", "--json"))["told"] == "skipped"
    well.on["POST /v1/probe"] = problem(503, "the probe is not on record")
    assert stop_of(operator)[:2] == (4, "probe")


def test_what_stands_in_an_agents_way(operator: Shell, well: Scribe, scribe: Scribe) -> None:
    code, step, text, advice = stop_of(operator, "buyr")
    assert (code, step) == (1, "agent")
    assert "did you mean 'buyer'?" in text
    assert "banksman agents add buyr" in advice
    assert "no policy in force" in stop_of(operator, "lost")[2]
    well.on["POST /v1/explain"] = explained("unknown_agent")
    assert "does not name it" in stop_of(operator, "buyer")[2]
    well.on["POST /v1/explain"] = explained("default_deny")
    scribe.on["GET /v1/agents/buyer/now"] = Reply(canned.never_seen())
    code, step, text, advice = stop_of(operator, "buyer")
    assert (code, step) == (1, "seen")
    assert "BANKSMAN_TOKEN" in advice
    control = {"kind": "project.paused", "by": "root", "reason": "incident", "at": "2026-03-01T12:00:00.000000Z"}
    scribe.on["GET /v1/agents/buyer/now"] = Reply(canned.now(controls=[control]))
    assert stop_of(operator, "buyer")[1:3] == ("seen", "project.paused by root: incident")


def test_an_agents_name_cannot_repaint_the_terminal(operator: Shell, well: Scribe) -> None:
    ran = operator("doctor", "\x1b[2Jx")
    assert ran.code == 1
    assert "\x1b" not in ran.out + ran.err
