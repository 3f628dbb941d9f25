"""`banksman now`, `sessions`, `session`: the two questions, as a person and as a program reads the answers."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli import canned
from tests.cli.conftest import Handler, Reply, Scribe, Shell, problem

NOW = "GET /v1/agents/buyer/now"
STORY = "GET /v1/sessions/s1"


# ── now ──


def test_now(operator: Shell, scribe: Scribe) -> None:
    scribe.on[NOW] = Reply(canned.now())
    ran = operator("now", "buyer")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("buyer: running\n")
    for text in (
        "shop, owner ann@acme.example", "s1, since 2026-03-01 12:00:01.000", "git push acme/billing feature/a, for 3.2 s",
        "allow by buyer/allow/0, tier 2, 3.1 s ago", "120,000 of 500,000 (24%) this day (UTC)", "$3.20 of $40.00",
        "shop@v3+sha256:0123456789ab",
    ):  # fmt: skip
        assert text in ran.out, text
    assert operator("now", "buyer", "--json").json == canned.now()
    assert operator("now", "buyer", "--replay", "r1").code == 0
    assert scribe.asked[-1].query == "replay=r1"


def test_now_of_one_that_does_nothing(operator: Shell, scribe: Scribe) -> None:
    scribe.on[NOW] = Reply(canned.never_seen())
    ran = operator("now", "buyer")
    assert ran.out.startswith("buyer: never seen\n")
    assert ran.code == 0
    scribe.on[NOW] = Reply(
        canned.now(
            state="waiting", open_call=None, replay="r1",
            approval={"approval": "a-1", "requested": "x", "expires_at": "2026-03-01T12:15:00.000000Z"},
            controls=[{"kind": "agent.revoked", "by": "root", "reason": "leaked", "at": "2026-03-01T12:00:00.000000Z"}],
            tokens=canned.now()["tokens"] | {"limit": None, "limit_usd": None, "cost_usd": None, "unpriced_calls": 2},
        )
    )  # fmt: skip
    out = operator("now", "buyer").out
    assert out.startswith("buyer: waiting in the replay r1\n")
    assert "approval a-1, until 2026-03-01 12:15:00" in out
    assert "by root at 2026-03-01 12:00:00.000: leaked" in out
    assert "not known, 2 calls unpriced" in out


def test_an_agent_that_nobody_knows(operator: Shell, scribe: Scribe) -> None:
    scribe.on["GET /v1/agents"] = Reply({"agents": [{"agent": "buyer"}, {"agent": "seller"}]})
    for words in (("now", "buyr"), ("watch", "buyr")):
        ran = operator(*words)
        assert (ran.code, ran.out) == (2, "")
        assert "there is no agent 'buyr'; did you mean 'buyer'?" in ran.err
    scribe.on["GET /v1/agents"] = problem(503, "ClickHouse is away")
    assert operator("now", "buyr").err == "banksman now: there is no agent 'buyr'; `banksman agents` lists them\n"
    scribe.on["GET /v1/agents/a%2F..%2Fb/now"] = Reply(canned.now(agent="a/../b"))
    assert operator("now", "a/../b").code == 0


# ── sessions ──


def listed(session: str = "s1", **changes: Any) -> dict[str, Any]:
    return {
        "project": "shop", "agent": "buyer", "session": session, "replay": None, "owner": "ann", "state": "ended",
        "status": "ok", "started": "2026-03-01T12:00:00.000000Z", "last_seen": "2026-03-01T12:02:04.200000Z",
        "duration_s": 124.2, "actions": 12,
        "allowed": 9, "denied": 1, "sent_to_approval": 0, "tokens": 120_000, "cost_usd": 3.2, "unpriced_calls": 1,
        "policy_versions": ["shop@v3+sha256:0"], "unverified": 0,
    } | changes  # fmt: skip


def test_sessions(operator: Shell, scribe: Scribe) -> None:
    scribe.on["GET /v1/sessions"] = Reply(
        {"sessions": [listed(), listed("s2", status="error")], "next": None, "took_ms": 1}
    )
    ran = operator("sessions", "buyer", "--project", "shop", "--since", "7d", "--until", "1h")
    assert (ran.code, ran.err) == (0, "")
    assert scribe.asked[0].query == "agent=buyer&project=shop&since=7d&until=1h&limit=50"
    lines = ran.out.splitlines()
    assert len(lines) == 4
    row = "s1 buyer shop ended 2026-03-01 12:02:04 2 min 4 s 12 9 1 120,000 $3.20 +1 unpriced"
    assert " ".join(lines[2].split()) == row
    assert "ended (error)" in lines[3]
    assert "replay" not in ran.out
    assert operator("sessions", "--json").json["sessions"][0] == listed()


def test_who_goes_on_after_the_end_is_not_called_an_error(operator: Shell, scribe: Scribe) -> None:
    """A session that ended with an error and wrote again: `running (error)` said neither."""
    scribe.on["GET /v1/sessions"] = Reply(
        {"sessions": [listed(state="running", status="error")], "next": None, "took_ms": 1}
    )
    assert "running (error)" not in operator("sessions").out
    told = canned.session(*canned.story())
    told["header"] |= {"state": "running", "status": "error", "error": "ValueError: no"}
    scribe.on[STORY] = Reply(told)
    assert "running, again after it had ended (error): ValueError: no" in operator("session", "s1").out


def test_sessions_by_the_page(operator: Shell, scribe: Scribe) -> None:
    def page(handler: Handler) -> Reply:
        number = handler.path.count("cursor=c")
        limit = int(handler.path.split("limit=")[1].split("&")[0])
        return Reply({"sessions": [listed(f"{number}-{n}", replay="r1") for n in range(limit)], "next": "c"})

    scribe.on["GET /v1/sessions"] = page
    ran = operator("sessions", "--limit", "1500", "--json", "--replay", "*")
    assert len(ran.json["sessions"]) == 1500
    assert ran.json["more"] is True
    assert [asked.query for asked in scribe.asked] == ["replay=%2A&limit=1000", "replay=%2A&limit=500&cursor=c"]
    ran = operator("sessions", "--limit", "2")
    assert "there are more: --limit" in ran.err
    assert "replay" in ran.out
    assert operator("sessions", "--limit", "0").code == 2


def test_no_sessions(operator: Shell, scribe: Scribe) -> None:
    scribe.on["GET /v1/sessions"] = Reply({"sessions": [], "next": None})
    ran = operator("sessions")
    assert (ran.code, ran.out) == (0, "")
    assert "no session since 24h" in ran.err
    assert "there is no agent 'buyer'" in operator("sessions", "buyer").err
    scribe.on[NOW] = Reply(canned.never_seen())
    assert operator("sessions", "buyer").code == 0


# ── session ──


def table_of(out: str) -> list[str]:
    """The lines of the steps."""
    lines = out.splitlines()
    rule = next(n for n, line in enumerate(lines) if line.startswith("───"))
    return [" ".join(line.split()) for line in lines[rule + 1 :]]


def test_a_session_for_people(operator: Shell, scribe: Scribe) -> None:
    scribe.on[STORY] = Reply(canned.session(*canned.story()))
    ran = operator("session", "s1")
    assert (ran.code, ran.err) == (0, "")
    head = ran.out.split("\n\n")[0]
    for text in (
        "session s1 of buyer", "buyer, project shop, owner ann@acme.example", "shop@v3+sha256:0123456789ab", "ended (ok)",
        "2026-03-01 12:00:01.000, took 2 min 4 s", "1 allow, 1 deny, 0 approve of 2 actions", "1,200", "$3.20",
    ):  # fmt: skip
        assert text in head, text
    assert table_of(ran.out) == [
        "1 12:00:01.500 session started",
        "2 12:00:02.500 prompt: please push",
        "3 12:00:03.500 model claude-x 3.2 s 1,200 $3.20",
        '4 12:00:04.500 git push acme/billing feature/a {"force": false} allow buyer/allow/0 ok 120 ms',
        "7 12:00:07.500 aws s3:DeleteObject arn:aws:s3:::b/k deny default_deny",
        "9 12:00:09.500 session ended ok",
    ]
    assert "missing" not in ran.out
    assert "marks" not in ran.out


def test_a_session_for_programs(operator: Shell, scribe: Scribe) -> None:
    scribe.on[STORY] = Reply(canned.session(*canned.story()))
    told = operator("session", "s1", "--json", "--agent", "buyer", "--project", "shop", "--replay", "r").json
    assert told["steps"] == canned.story()
    assert told["header"] == canned.header(steps=9)
    assert (told["gaps"], told["repeats"]) == ([], [])
    assert scribe.asked[0].query == "agent=buyer&project=shop&replay=r&limit=5000"
    operator("session", "s1", "--json", "--raw")
    assert scribe.asked[-1].query == "limit=5000&raw=1"


def test_what_is_not_as_it_should_be_is_marked(operator: Shell, scribe: Scribe) -> None:
    steps = [
        canned.step(1, "tool.call", **canned.PUSH, decision="allow"),
        canned.step(2, "decision", call="id-1", decision="allow", rule="buyer/allow/0", voided=True),
        canned.step(3, "decision", call="id-1", decision="deny", reason="killed"),
        canned.step(
            4, "tool.result", call="id-1", status="error", error="rejected\nby remote", duration_ms=5.0, verified=False
        ),
        canned.step(5, "note", text="\x1b[2Jhello\u202e", late="skew", gap=2),
        canned.step(6, "note", text="again", id_reused=True, late="late"),
        canned.step(7, "model.call", model="m", priced="unpriced"),
    ]
    gap = {"source": "emitter-python/1.0#1c2d", "after": 17, "before": 20, "missing": 2, "n": 5}
    scribe.on[STORY] = Reply(
        canned.session(
            *steps, gaps=[gap, gap | {"n": 99, "missing": 1, "after": 30, "before": 32}],
            repeats=[{"source": "x", "seq": 3, "ids": []}],
            missing=3, unverified=1, late=2, id_reused=1, voided=1, unpriced_calls=1, replay="r1", cost_usd=None,
            controls=[{"kind": "session.killed", "by": "root", "reason": "loop", "at": "2026-03-01T12:00:00.000000Z"}],
        )
    )  # fmt: skip
    ran = operator("session", "s1")
    assert ran.code == 0
    assert table_of(ran.out) == [
        "1 12:00:01.500 git push acme/billing feature/a deny killed".replace("deny killed", "deny killed"),
        "12:00:02.500 · decision allow buyer/allow/0 voided",
        "12:00:04.500 · result: rejected\\nby remote error 5 ms unverified",
        "… 2 records missing here: emitter-python/1.0#1c2d numbered 18 to 19",
        "5 12:00:05.500 note: \\x1b[2Jhello\\u202e clock skew",
        "6 12:00:06.500 note: again late, id reused",
        "7 12:00:07.500 model m unpriced",
        "… 1 record missing here: emitter-python/1.0#1c2d numbered 31 to 31",
    ]
    for text in (
        ", in the replay r1", "session.killed by root at 2026-03-01 12:00:00.000: loop", "3 records are missing",
        "1 step unverified",
        "1 step with an id", "1 number used for two", "1 decision recorded but never answered", "2 steps late",
        "not known, 1 call unpriced",
    ):  # fmt: skip
        assert text in ran.out, text


def test_a_result_with_an_error_and_an_approval_are_lines_below_their_call(operator: Shell, scribe: Scribe) -> None:
    scribe.on[STORY] = Reply(
        canned.session(
            canned.step(1, "tool.call", **canned.PUSH, decision="approve"),
            canned.step(
                2,
                "decision",
                call="id-1",
                decision="approve",
                rule="buyer/require_approval/0",
                reason="approval_required",
            ),
            canned.step(3, "approval.requested", call="id-1", approval="a1", expires_at="2026-03-01T12:15:00.000000Z"),
            canned.step(4, "approval.approved", call="id-1", approval="a1", approver="ann", text="fine"),
            canned.step(5, "tool.result", call="id-1", status="error", error="remote: no", duration_ms=9.0),
            canned.step(6, "tool.result", call="other", status="ok"),
        )
    )
    assert table_of(operator("session", "s1").out) == [
        "1 12:00:01.500 git push acme/billing feature/a approve buyer/require_approval/0 error 9 ms",
        "12:00:03.500 · approval requested until 2026-03-01 12:15:00",
        "12:00:04.500 · approval approved by ann: fine",
        "12:00:05.500 · result: remote: no",
        "6 12:00:06.500 result ok",
    ]


@pytest.mark.parametrize("call", [None, "id-1", "another"])
def test_a_call_is_joined_by_the_name_that_it_goes_by(operator: Shell, scribe: Scribe, call: str | None) -> None:
    named = call or "id-1"
    scribe.on[STORY] = Reply(
        canned.session(
            canned.step(1, "tool.call", call=call, **canned.PUSH),
            canned.step(2, "decision", call=named, decision="allow", rule="buyer/allow/0", reason="allowed"),
            canned.step(3, "tool.result", call=named, status="ok", duration_ms=9.0),
        )
    )
    assert table_of(operator("session", "s1").out) == [
        "1 12:00:01.500 git push acme/billing feature/a allow buyer/allow/0 ok 9 ms"
    ]


def test_on_a_narrow_terminal(operator: Shell, scribe: Scribe) -> None:
    scribe.on[STORY] = Reply(canned.session(*canned.story()))
    ran = operator.on_terminal("session", "s1", columns=110, NO_COLOR="1")
    assert max(map(len, ran.out.splitlines())) <= 110
    assert "buyer/allow/0" in ran.out
    ran = operator.on_terminal("session", "s1", columns=40)
    assert "\x1b[1mdecision" in ran.out
    assert "\x1b[31mdeny\x1b[0m" in ran.out


def test_all_pages_of_one_moment(operator: Shell, scribe: Scribe) -> None:
    first, second = canned.session(*canned.story()[:4], next_="c"), canned.session(*canned.story()[4:])
    moved = problem(409, "what was received meanwhile changed the story; begin again")
    scribe.on[STORY] = [Reply(first), moved, Reply(first), Reply(second)]
    assert operator("session", "s1", "--json").json["steps"] == canned.story()
    assert [asked.query for asked in scribe.asked] == ["limit=5000", "limit=5000&cursor=c"] * 2
    scribe.on[STORY] = [Reply(first), moved] * 3
    ran = operator("session", "s1", "--export", "csv")
    assert (ran.code, ran.out) == (4, "")
    assert "try again" in ran.err


CANDIDATES = [
    {"agent": "seller", "project": "shop", "replay": None, "last_seen": "x", "records": 2},
    {"agent": "buyer", "project": "shop", "replay": None, "last_seen": "x", "records": 9},
]


@pytest.mark.parametrize(
    ("candidates", "says"),
    [
        (CANDIDATES, "session s1 is one of buyer and seller: say whose with --agent"),
        (
            [one | {"agent": "buyer", "replay": run} for one, run in zip(CANDIDATES, "ab", strict=True)],
            "session s1 of buyer is in the replays a and b: say which with --replay",
        ),
        (
            [one | {"agent": "buyer", "project": name} for one, name in zip(CANDIDATES, "pq", strict=True)],
            "session s1 of buyer is in p and q: say which with --project",
        ),
    ],
)
def test_an_id_of_several_sessions(operator: Shell, scribe: Scribe, candidates: Any, says: str) -> None:
    scribe.on[STORY] = problem(409, "more than one session has this id", candidates=candidates)
    for more in ((), ("--json",), ("--export", "ndjson")):
        ran = operator("session", "s1", *more)
        assert (ran.code, ran.out, ran.err) == (2, "", f"banksman session: {says}\n")


def test_a_session_that_is_not_there(operator: Shell, scribe: Scribe) -> None:
    scribe.on["GET /v1/sessions"] = Reply({"sessions": [listed("d97e2169")], "next": None})
    ran = operator("session", "d97e2168", "--agent", "buyer")
    assert ran.code == 2
    assert "there is no session 'd97e2168' of buyer; did you mean 'd97e2169'?" in ran.err
    scribe.on["GET /v1/sessions"] = problem(503, "away")
    assert "there is no session 'x'; `banksman sessions`" in operator("session", "x").err


# ── exports ──


def test_ndjson_is_every_step(operator: Shell, scribe: Scribe) -> None:
    scribe.on[STORY] = [
        Reply(canned.session(*canned.story()[:4], next_="c")),
        Reply(canned.session(*canned.story()[4:])),
    ]
    ran = operator("session", "s1", "--export", "ndjson")
    own = {"project": "shop", "agent": "buyer", "session": "s1", "owner": "ann@acme.example", "replay": None}
    assert [json.loads(line) for line in ran.out.splitlines()] == [own | step for step in canned.story()]


def test_csv_is_for_spreadsheets(operator: Shell, scribe: Scribe) -> None:
    scribe.on[STORY] = Reply(
        canned.session(
            canned.step(1, "note", text='=HYPERLINK("http://x";"y")', raw="{}"),
            canned.step(2, "note", text='two\nlines, "quoted"\x1b[2J', args={"a": [1]}, tokens=-5, raw="{}"),
            canned.step(3, "note", resource="@sum", branch="-1", verified=False, cost_usd=0.25, raw="{}"),
        )
    )
    ran = operator("session", "s1", "--export", "csv")
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert [row["text"] for row in rows] == ['\'=HYPERLINK("http://x";"y")', 'two\nlines, "quoted"\\x1b[2J', ""]
    assert (rows[1]["args"], rows[1]["tokens"]) == ('{"a":[1]}', "-5")
    assert [rows[2][name] for name in ("agent", "resource", "branch", "verified", "cost_usd")] == [
        "buyer",
        "'@sum",
        "'-1",
        "false",
        "0.25",
    ]
    assert "raw" not in rows[0]
    assert set(canned.ABSENT) - {"raw"} <= set(rows[0])
    raw = operator("session", "s1", "--export", "csv", "--raw").out
    assert next(csv.DictReader(io.StringIO(raw)))["raw"] == "{}"


def test_an_export_into_a_file_is_whole_or_not_there(operator: Shell, scribe: Scribe) -> None:
    out = operator.folder / "s1.ndjson"
    scribe.on[STORY] = [Reply(canned.session(*canned.story()[:4], next_="c")), problem(503, "ClickHouse is away")]
    out.write_text("older")
    assert operator("session", "s1", "--export", "ndjson", "--out", str(out)).code == 4
    assert [file.name for file in operator.folder.iterdir()] == ["s1.ndjson"]
    assert out.read_text() == "older"
    scribe.on[STORY] = Reply(canned.session(*canned.story()))
    ran = operator("session", "s1", "--export", "ndjson", "--out", str(out))
    assert (ran.code, ran.out, ran.err) == (0, "", f"9 steps in {out}\n")
    assert len(out.read_text().splitlines()) == 9
    assert [file.name for file in operator.folder.iterdir()] == ["s1.ndjson"]


@pytest.mark.parametrize(
    "words",
    [
        ("--export", "csv", "--out", "/nowhere/x"), ("--export", "csv", "--out", "/"),
        ("--export", "csv", "--out", "/dev/null"),
        ("--out", "x"), ("--raw",), ("--json", "--export", "csv"),
    ],
)  # fmt: skip
def test_exports_that_cannot_be(operator: Shell, scribe: Scribe, words: tuple[str, ...]) -> None:
    scribe.on[STORY] = Reply(canned.session(*canned.story()))
    ran = operator("session", "s1", *words)
    assert (ran.code, ran.out) == (2, "")
    assert not Path("/dev/null").is_file()
