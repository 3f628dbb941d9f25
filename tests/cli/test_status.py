"""`banksman status`: red lines first, and neither of the two hides the other."""

from __future__ import annotations

from typing import Any

import pytest
from tests.cli import canned
from tests.cli.conftest import Reply, Scribe, Shell, free_port, problem

from banksman.cli import health, status


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scribe's second answer is there at once."""
    monkeypatch.setattr(status, "LOOK_AGAIN_S", 0)


@pytest.fixture
def well(scribe: Scribe) -> Scribe:
    """The scribe is the console, and all is well."""
    scribe.on["GET /v1/status"] = Reply(canned.console())
    scribe.on["GET /v1/findings"] = Reply({"findings": []})
    return scribe


@pytest.fixture
def decides(operator: Shell, well: Scribe) -> Any:
    """The enforcer, another scribe."""
    made = Scribe()
    made.on["GET /v1/status"] = Reply(canned.enforcer())
    operator.environment["BANKSMAN_URL"] = made.url
    yield made
    made.close()


def test_all_is_well(operator: Shell, well: Scribe, decides: Scribe) -> None:
    ran = operator("status")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("all is well\n")
    assert "shop@v3+sha256:0123456789ab" in ran.out
    assert "0 records behind" in ran.out
    told = operator("status", "--json").json
    assert told["ok"] is True
    assert (told["wrong"], told["away"], told["notes"]) == ([], {}, [])
    assert told["enforcer"]["replica"] == "r1"
    assert told["console"]["archiver"]["lag"] == 0


def wrong_with(**changes: Any) -> list[str]:
    return [one.text for one in health.of_enforcer(canned.enforcer(**changes))]


REJECTED = {
    "file": "shop.yaml", "error": "must be a mapping", "line": 7, "key": "agents", "project": "shop", "attempted": "…",
    "since": "2026-03-01T11:00:00.000000Z",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"enforcing": False, "reason": "no lease: no heartbeat came back"},
            "NOT ENFORCING, every question gets a 503: no lease",
        ),
        (
            {"rejected": [REJECTED]},
            "shop.yaml:7 was rejected at 2026-03-01 11:00:00, shop@v3+sha256:0123456789ab stays in force: agents: must be",
        ),
        (
            {"rejected": [REJECTED | {"project": "new", "line": 0}]},
            "shop.yaml was rejected at 2026-03-01 11:00:00, nothing of it",
        ),
        ({"policies": []}, "no policy is in force: everything is denied"),
        ({"disagreements": ["shop"]}, "enforcers disagree on the policy of shop"),
        ({"disagreements": ["*"]}, "enforcers disagree on their policies"),
        ({"replicas": [{"replica": "r2", "lag": 400}]}, "r2 is 400 records of control behind"),
        ({"queue": {"waiting": 4000, "bound": 4096}}, "4000 of 4096 decisions wait for their record"),
        ({"undelivered": 2}, "2 findings or voids are not on record yet"),
        ({"dropped": 1}, "1 finding had no room"),
    ],
)
def test_what_is_wrong_with_an_enforcer(changes: dict[str, Any], says: str) -> None:
    found = wrong_with(**changes)
    assert len(found) == 1
    assert says in found[0]


def test_an_enforcer_that_is_well_has_nothing_wrong() -> None:
    assert wrong_with() == []
    busy = {"replica": "r1", "address": "x", "lag": 3, "heard_s_ago": 0.3}
    assert wrong_with(replicas=[busy], queue={"waiting": 900, "bound": 4096}) == []


def test_what_is_on_purpose_is_a_note(operator: Shell, well: Scribe, decides: Scribe) -> None:
    told = canned.enforcer()
    told["policies"][0]["mode"] = "shadow"
    told["decisions"]["unrecorded"] = 3
    decides.on["GET /v1/status"] = Reply(told)
    ran = operator("status")
    assert ran.code == 0
    assert "not enforced on purpose (mode shadow): shop" in ran.out
    assert "3 questions got a 503" in ran.out


AWAY = {"reachable": False, "error": "no answer within 5 s"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"clickhouse": canned.console()["clickhouse"] | AWAY}, "clickhouse: away"),
        ({"kafka": canned.console()["kafka"] | AWAY, "archiver": None, "dead_letters": None}, "kafka: away"),
        ({"ready": False, "reason": "reading control"}, "console: not ready: reading control"),
        (
            {"archiver": {"lag": 200_000, "waiting_s": 3.0, "partitions": []}},
            "archiver: 200,000 records behind: answers",
        ),
        (
            {"archiver": {"lag": 7, "waiting_s": 240.0, "partitions": []}},
            "archiver: 7 records behind, for 4 min: answers",
        ),
        ({"notifier": {"lag": 3, "waiting_s": 181.0}}, "notifier: for 3 min something that was found waits to be told"),
    ],
)
def test_what_is_wrong_with_the_read_side(
    operator: Shell, well: Scribe, decides: Scribe, changes: dict[str, Any], says: str
) -> None:
    well.on["GET /v1/status"] = Reply(canned.console(**changes))
    ran = operator("status")
    assert ran.code == 1
    assert ran.out.startswith(says)


def test_an_archiver_that_stands_still_is_not_one_that_is_busy(operator: Shell, well: Scribe, decides: Scribe) -> None:
    well.on["GET /v1/status"] = [Reply(canned.console(lag=500)), Reply(canned.console(lag=505))]
    ran = operator("status")
    assert ran.code == 1
    assert "archiver: stands still, 505 records behind" in ran.out
    well.on["GET /v1/status"] = [Reply(canned.console(lag=500)), Reply(canned.console(lag=505, at=130))]
    assert operator("status").code == 0


def test_findings_are_told_once_each_until_they_are_over(operator: Shell, well: Scribe, decides: Scribe) -> None:
    well.on["GET /v1/findings"] = Reply(
        {
            "findings": [
                canned.finding(count=41),
                canned.finding(id="f0"),
                canned.finding(fingerprint="clock", severity="info", title="a clock"),
                canned.finding(fingerprint="gone", kind="alert.resolved", severity="page", title="over"),
                canned.finding(fingerprint="gone", kind="alert", severity="page", title="over"),
                canned.finding(
                    fingerprint="policy_rejected/shop.yaml", detector="policy_rejected", severity="page", title="mended"
                ),
                canned.finding(fingerprint="policy_disagreement/shop", detector="policy_disagreement", title="agreed"),
            ]
        }
    )
    told = operator("status", "--json")
    assert told.code == 1
    assert [one["text"] for one in told.json["wrong"]] == [
        canned.finding()["title"] + " (at 2026-03-01 11:59:00, 41 times)"
    ]
    decides.on["GET /v1/status"] = Reply(canned.enforcer(rejected=[REJECTED], disagreements=["shop"]))
    texts = [one["text"] for one in operator("status", "--json").json["wrong"]]
    assert [text for text in texts if "mended" in text or "agreed" in text] == []  # the enforcer's own words are enough
    assert len([text for text in texts if "shop.yaml:7 was rejected" in text or "enforcers disagree" in text]) == 2
    decides.on["GET /v1/status"] = Reply({"status": 503}, 503)
    texts = [one["text"] for one in operator("status", "--json").json["wrong"]]
    assert len([text for text in texts if "mended" in text or "agreed" in text]) == 2  # nobody says how it is now


@pytest.mark.parametrize("which", ["BANKSMAN_URL", "BANKSMAN_CONSOLE_URL"])
def test_one_of_them_away_does_not_hide_the_other(operator: Shell, well: Scribe, decides: Scribe, which: str) -> None:
    decides.on["GET /v1/status"] = Reply(canned.enforcer(rejected=[REJECTED]))
    well.on["GET /v1/status"] = Reply(canned.console(lag=200_000, at=0))
    ran = operator("status", **{which: f"http://127.0.0.1:{free_port()}"})
    assert ran.code == 4
    assert "nobody answers" in ran.out.splitlines()[0]
    assert ("shop.yaml:7 was rejected" in ran.out) is (which == "BANKSMAN_CONSOLE_URL")
    assert ("200,000 records behind" in ran.out) is (which == "BANKSMAN_URL")
    told = operator("status", "--json", **{which: f"http://127.0.0.1:{free_port()}"}).json
    assert told["ok"] is False
    assert list(told["away"]) == ["enforcer" if which == "BANKSMAN_URL" else "console"]
    assert (told["enforcer"] is None, told["console"] is None) == (which == "BANKSMAN_URL", which != "BANKSMAN_URL")


def test_both_away_and_no_token(shell: Shell) -> None:
    assert shell("status", BANKSMAN_OPERATOR_TOKEN="bmo_1_x").code == 4
    ran = shell("status")
    assert (ran.code, ran.out) == (3, "")


def test_a_token_that_one_of_them_refuses(operator: Shell, well: Scribe, decides: Scribe) -> None:
    decides.on["GET /v1/status"] = problem(401, "this token is not known, or was rotated out")
    ran = operator("status")
    assert ran.code == 3
    assert "this token is not known" in ran.out
    assert "0 records behind" in ran.out


def test_an_enforcer_that_hangs(
    operator: Shell, well: Scribe, decides: Scribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "TIMEOUT_S", 0.5)

    def hang(handler: Any) -> None:
        handler.rfile.read(1)

    decides.on["GET /v1/status"] = hang
    ran = operator("status")
    assert ran.code == 4
    assert "did not answer in time" in ran.out
    assert "archiver" in ran.out


def test_a_status_of_another_version(operator: Shell, well: Scribe, decides: Scribe) -> None:
    told = canned.enforcer()
    del told["queue"]
    decides.on["GET /v1/status"] = Reply(told)
    ran = operator("status")
    assert ran.code == 4
    assert "'queue'" in ran.err + ran.out


def test_status_says_what_stands_still_and_how_to_lift_it(operator: Shell, well: Scribe, decides: Scribe) -> None:
    held = {
        "kind": "project.paused",
        "by": "opal",
        "reason": "invoices\x1b[2J went out twice",
        "at": "2026-03-01T12:00:00.000000Z",
    }
    controls = {
        "paused": [held | {"project": "shop"}],
        "revoked": [held | {"kind": "agent.revoked", "agent": f"a{n}"} for n in range(7)],
        "killed": 3,
    }
    decides.on["GET /v1/status"] = Reply(canned.enforcer(controls=controls))
    ran = operator("status")
    assert ran.code == 0  # somebody wanted it so
    assert "project shop is paused by opal since 2026-03-01 12:00:00: invoices\\x1b[2J went out twice" in ran.out
    assert "banksman resume shop" in ran.out
    assert "banksman restore a4" in ran.out
    assert "and 2 more agents" in ran.out
