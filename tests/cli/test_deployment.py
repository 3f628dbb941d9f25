"""A deployment made and used by commands alone, from nothing but settings: as a user would, on real servers."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import BANKSMAN, Ran, Shell
from tests.enforcer.conftest import ask, environment_of, until
from tests.servers import PARTITIONS, Broker, ClickHouseServer, child_environment, freeze

from banksman import settings
from banksman.local import children
from banksman.signing import create_secret
from banksman.stamps import rfc3339, uuid7

POLICY = """\
project: shop
version: 3
owner: payments-team
agents:
  buyer:
    owner: ann@acme.example
    allow:
      - {service: git, actions: [push, pull], resources: ["acme/billing"], branches: ["feature/*"]}
    require_approval:
      - {service: git, actions: [push], branches: ["main"]}
    budget: {daily_tokens: 500000}
  seller:
    allow:
      - {service: git, actions: [pull]}
"""


@dataclass
class Deployment(Shell):
    """Everything is in its folder; services are its children."""

    services: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    credentials: dict[str, str] = field(default_factory=dict)

    def __call__(self, *words: str, given: str = "", **env: str) -> Ran:
        """A real process, always."""
        return self.process(*words, given=given, **env)

    def serve(self, service: str, *, port: str = "0") -> None:
        environment = child_environment() | self.environment | {f"BANKSMAN_{service.upper()}_PORT": port}
        log = self.folder / f"{service}.log"
        offset = log.stat().st_size if log.exists() else 0
        process = children.spawn([str(BANKSMAN), "serve", service], log=log, env=environment)
        self.services[service] = process
        said = until(lambda: self._said(process, log, offset), 40)
        if service in ("enforcer", "console"):
            self.environment["BANKSMAN_URL" if service == "enforcer" else "BANKSMAN_CONSOLE_URL"] = said

    def _said(self, process: subprocess.Popen[bytes], log: Path, offset: int) -> str:
        assert process.poll() is None, children.last_lines(log)
        found = re.search(
            r"^(?:listening (http\S+)|(?:archiver|processors|notifier) ready)$", log.read_text()[offset:], re.MULTILINE
        )
        return (found[1] or "ready") if found else ""

    def stop(self, service: str) -> int:
        process = self.services.pop(service)
        process.send_signal(signal.SIGCONT)
        process.terminate()
        return process.wait(20)

    def acts(self, agent: str, *events: dict[str, Any]) -> None:
        """Events over HTTP."""
        sent = [{"id": uuid7(), "time": rfc3339(), "source": "test", **one} for one in events]
        answer = ask(self.environment["BANKSMAN_URL"], "POST", "/v1/events", sent, token=self.token(agent))
        assert answer.status == 200, answer.raw

    def decides(self, agent: str, **question: Any) -> dict[str, Any]:
        asked = {"id": uuid7(), "session": "s1", **question}
        answer = ask(self.environment["BANKSMAN_URL"], "POST", "/v1/decide", asked, token=self.token(agent))
        assert answer.status == 200, answer.raw
        decision: dict[str, Any] = answer.body
        return decision

    def token(self, agent: str) -> str:
        return self.credentials[agent].split(".")[0]


@pytest.fixture(scope="module")
def deployed(
    broker: Broker, clickhouse_server: ClickHouseServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """What an operator does on the first day, step by step, each with what it says."""
    folder = tmp_path_factory.mktemp("deployment")
    (folder / "policies").mkdir()
    (folder / "policies" / "shop.yaml").write_text(POLICY)
    kafka = broker.node.settings(topic_prefix=f"t{uuid.uuid4().hex[:8]}.", partitions=PARTITIONS)
    made = Deployment(
        folder,
        environment_of(kafka)
        | {
            "BANKSMAN_PARTITIONS": str(PARTITIONS),
            "BANKSMAN_CLICKHOUSE": f"http://127.0.0.1:{clickhouse_server.port}",
            "BANKSMAN_CLICKHOUSE_DATABASE": f"t{uuid.uuid4().hex[:8]}",
            "BANKSMAN_CLICKHOUSE_PASSWORD": clickhouse_server.passwords["admin"],
            "BANKSMAN_CLICKHOUSE_READER_PASSWORD": clickhouse_server.passwords["analyst"],
            "BANKSMAN_SECRET_FILE": str(folder / "secret.json"),
            "BANKSMAN_POLICIES": str(folder / "policies"),
            "BANKSMAN_OPERATOR_TOKEN_FILE": str(folder / "admin.token"),
        },
    )
    try:
        first_day(made, kafka)
        yield made
    finally:
        ended = {service: made.stop(service) for service in list(made.services)}
    assert set(ended.values()) <= {0}, ended


def first_day(made: Deployment, kafka: settings.Kafka) -> None:
    dry = made("migrate", "--dry-run")
    assert dry.code == 0, dry.err
    assert f"topics would be made: {kafka.topic_prefix}actions" in dry.out
    assert "0001_events.sql" in dry.out
    ran = made("migrate", "--json")
    assert ran.code == 0, ran.err
    assert len(ran.json["topics"]) == 6
    assert ran.json["migrations"][0] == "0001_events.sql"
    assert made("migrate", "--json").json == {"topics": [], "migrations": [], "dry_run": False}
    assert re.search(r"^0001_events.sql +yes$", made("migrate", "list").out, re.MULTILINE)

    add = ("operators", "add", "root@acme.example", "--role", "admin", "--bootstrap")
    assert "BANKSMAN_SECRET_FILE" in made(*add).err
    ran = made(*add, "--new-secret", "--out", "admin.token")
    assert ran.code == 0, ran.err
    again = made(*add)
    assert (again.code, again.out) == (2, "")
    assert "enrolled already" in again.err
    assert "not made again" in made(*add, "--new-secret").err

    for service in ("enforcer", "archiver", "processors", "notifier", "console"):
        made.serve(service)
    until(lambda: ask(made.environment["BANKSMAN_URL"], "GET", "/readyz").status == 200, 40)
    until(lambda: ask(made.environment["BANKSMAN_CONSOLE_URL"], "GET", "/readyz").status == 200, 40)
    for agent in ("buyer", "seller"):
        ran = made("agents", "add", agent, "--project", "shop", "--owner", "ann", "--json")
        assert ran.code == 0, ran.err
        made.credentials[agent] = ran.json["token"]


def shown(made: Deployment, *words: str, says: str) -> Ran:
    """The command's answer once it says so: what was acknowledged is in the audit log a moment later."""
    ran: Ran = until(lambda: (ran := made(*words)).code == 0 and says in ran.out and ran, 30)
    return ran


def a_session(deployed: Deployment, session: str) -> None:
    """What a real agent does in a run: it pushes, is stopped, fails, thinks."""
    push = {"service": "git", "action": "push", "resource": "acme/billing"}
    start = {"session": session, "kind": "session.started"}
    call, other = uuid7(), uuid7()
    deployed.acts("buyer", start, {"session": session, "kind": "prompt", "text": "push it\x1b[2J please"})
    deployed.acts(
        "buyer", {"session": session, "kind": "tool.call", "id": call, **push, "branch": "feature/a", "args": {"n": 1}}
    )
    assert (
        deployed.decides("buyer", session=session, call=call, **push, branch="feature/a", args={"n": 1})["decision"]
        == "allow"
    )
    deployed.acts(
        "buyer", {"session": session, "kind": "tool.result", "call": call, "status": "ok", "duration_ms": 120.5}
    )
    deployed.acts("buyer", {"session": session, "kind": "tool.call", "id": other, **push, "branch": "main"})
    assert deployed.decides("buyer", session=session, call=other, **push, branch="main")["decision"] == "approve"
    deployed.decides("buyer", session=session, service="aws", action="s3:DeleteObject", resource="arn:aws:s3:::b/k")
    deployed.acts(
        "buyer",
        {
            "session": session, "kind": "model.call", "model": "m-1", "input_tokens": 1000, "output_tokens": 200,
            "cost_usd": 0.25, "duration_ms": 3200,
        },
        {"session": session, "kind": "session.ended", "status": "ok"},
    )  # fmt: skip


def test_all_is_well(deployed: Deployment) -> None:
    ran = until(lambda: (ran := deployed("status")).code == 0 and ran, 30)
    assert ran.out.startswith("all is well\n")
    assert "shop@v3+sha256:" in ran.out
    ran = deployed("status", "--json")
    assert (ran.json["ok"], ran.json["wrong"], ran.json["away"]) == (True, [], {})
    assert ran.json["enforcer"]["enforcing"] is True
    ran = deployed("doctor")
    assert (ran.code, ran.err) == (0, "")
    assert "the whole path is open" in ran.out
    for secret in (
        deployed.environment["BANKSMAN_KAFKA_PASSWORD"],
        (deployed.folder / "admin.token").read_text().strip(),
    ):
        assert secret not in ran.out + deployed("status", "--json").out


def test_who_runs_and_what_stands_in_their_way(deployed: Deployment) -> None:
    deployed.acts("seller", {"session": "w1", "kind": "session.started"})
    ran = shown(deployed, "agents", says="w1")
    assert re.search(r"^seller +(running|idle) +shop +payments-team +w1 ", ran.out, re.MULTILINE)
    listed = deployed("agents", "--project", "shop", "--json").json["agents"]
    assert {"buyer", "seller"} <= {one["agent"] for one in listed}
    assert {one["project"] for one in listed} == {"shop"}
    assert deployed("agents", "--project", "other").err.startswith("no agent of other is enrolled")
    assert deployed("doctor", "seller").code == 0
    ran = deployed("doctor", "seler")
    assert ran.code == 1
    assert "did you mean 'seller'?" in ran.out
    ran = deployed("agents", "add", "lost", "--project", "nowhere", "--owner", "o", "--out", "lost.credential")
    assert ran.code == 0, ran.err
    assert "no policy in force" in deployed("doctor", "lost").out
    assert deployed("agents", "add", "stray", "--project", "shop", "--owner", "o").code == 0
    assert "does not name it" in deployed("doctor", "stray").out
    assert "never seen" in deployed("now", "stray").out


def test_a_session_is_told_whole(deployed: Deployment) -> None:
    session = f"run-{uuid.uuid4().hex[:6]}"
    a_session(deployed, session)
    shown(deployed, "session", session, says="arn:aws:s3:::b/k")  # the last decision, which comes by another topic
    ran = shown(deployed, "session", session, says="session ended")
    lines = [" ".join(line.split()) for line in ran.out.splitlines()]
    said = "\n".join(lines)
    assert f"session {session} of buyer" in lines[0]
    assert re.search(r"^policy shop@v3\+sha256:", said, re.MULTILINE)
    assert "owner ann@acme.example" in said
    assert "prompt: push it\\x1b[2J please" in said
    assert re.search(r'git push acme/billing feature/a \{"n": 1\} allow buyer/allow/0 ok 120 ms', said)
    assert re.search(r"git push acme/billing main approve buyer/require_approval/0", said)
    assert re.search(r"aws s3:deleteobject arn:aws:s3:::b/k deny default_deny", said)
    assert re.search(r"model m-1 3\.2 s 1,200 \$0\.25", said)
    assert "missing" not in said
    assert "unverified" not in said

    told = deployed("session", session, "--json").json
    assert told["header"]["actions"] == 3
    kinds = [step["kind"] for step in told["steps"]]
    assert kinds[0] == "session.started"
    assert kinds[-1] == "session.ended"
    exported = deployed("session", session, "--export", "ndjson", "--raw")
    steps = [json.loads(line) for line in exported.out.splitlines()]
    assert [step["id"] for step in steps] == [step["id"] for step in told["steps"]]
    assert all(json.loads(step["raw"])["kind"] == step["kind"] for step in steps)
    out = deployed.folder / f"{session}.csv"
    assert deployed("session", session, "--export", "csv", "--out", str(out)).err == f"{len(steps)} steps in {out}\n"
    assert [row["kind"] for row in csv.DictReader(io.StringIO(out.read_text()))] == kinds

    row = next(one for one in deployed("sessions", "buyer", "--json").json["sessions"] if one["session"] == session)
    assert (row["state"], row["allowed"], row["denied"], row["sent_to_approval"], row["tokens"]) == (
        "ended",
        1,
        1,
        1,
        1200,
    )
    assert session in deployed("sessions", "--since", "1h").out
    assert deployed("sessions", "--since", "yesterday").code == 2


def test_what_an_agent_does_right_now(deployed: Deployment) -> None:
    session = f"now-{uuid.uuid4().hex[:6]}"
    push = {"service": "git", "action": "push", "resource": "acme/billing", "branch": "feature/b"}
    call = uuid7()
    deployed.acts(
        "buyer",
        {"session": session, "kind": "session.started"},
        {"session": session, "kind": "tool.call", "id": call, **push},
    )
    deployed.decides("buyer", session=session, call=call, **push)
    shown(deployed, "now", "buyer", says=f"session        {session}")
    ran = shown(deployed, "now", "buyer", says="git push acme/billing feature/b, for")
    assert ran.out.startswith("buyer: running\n")
    assert "last decision  allow" in ran.out
    assert "of 500,000" in ran.out
    told = deployed("now", "buyer", "--json").json
    assert (told["state"], told["session"], told["open_call"]["call"]) == ("running", session, call)
    ran = deployed("now", "buyr")
    assert (ran.code, ran.out) == (2, "")
    assert "did you mean 'buyer'?" in ran.err


def test_a_session_id_that_two_agents_have(deployed: Deployment) -> None:
    session = f"both-{uuid.uuid4().hex[:6]}"
    for agent in ("buyer", "seller"):
        deployed.acts(agent, {"session": session, "kind": "note", "text": f"i am {agent}"})
        shown(deployed, "session", session, "--agent", agent, says=f"i am {agent}")
    ran = deployed("session", session)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"banksman session: session {session} is one of buyer and seller: say whose with --agent\n"
    ran = deployed("session", f"{session}x")
    assert (ran.code, ran.out) == (2, "")
    assert f"did you mean {session!r}?" in ran.err


def test_watching_outlives_the_console(deployed: Deployment) -> None:
    session = f"live-{uuid.uuid4().hex[:6]}"
    port = deployed.environment["BANKSMAN_CONSOLE_URL"].rpartition(":")[2]
    with deployed.start("watch", "buyer", "--session", session, "--json") as process:
        try:
            assert process.stdout is not None

            def read(text: str) -> None:
                assert process.stdout is not None
                assert json.loads(process.stdout.readline())["text"] == text

            def note(text: str) -> None:
                deployed.acts("buyer", {"session": session, "kind": "note", "text": text})

            until(lambda: _watchers(deployed) == 1, 30)
            note("one")
            read("one")
            assert deployed.stop("console") == 0
            note("two")
            note("three")
            deployed.serve("console", port=port)
            read("two")
            read("three")
            note("four")
            read("four")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, "")
    assert err.endswith("it is back\n")
    assert "trying again" in err


def _watchers(deployed: Deployment) -> int:
    told = deployed("status", "--json").json["console"]
    return int(told["watchers"]) if told else 0


def test_sql(deployed: Deployment) -> None:
    deployed.acts("seller", {"session": "q1", "kind": "note", "text": "q"})
    question = "SELECT agent, count() AS n FROM events WHERE agent = {a:String} AND session = 'q1' GROUP BY agent"
    ran = shown(deployed, "sql", question, "--param", "a=seller", says="seller")
    assert ran.out.splitlines()[2].split() == ["seller", "1"]
    assert deployed("sql", question, "--param", "a=seller", "--json").json["rows"] == [["seller", "1"]]
    assert deployed("sql", "--format", "csv", "--param", "a=seller", given=question).out == '"agent","n"\n"seller",1\n'
    for wrong in ("SELEC 1", "DROP TABLE events", "INSERT INTO events VALUES (1)", "SELECT nothing FROM events"):
        ran = deployed("sql", wrong)
        assert (ran.code, ran.out) == (2, ""), wrong
        assert ran.err.count("\n") == 1


def test_people_and_their_roles(deployed: Deployment) -> None:
    ran = deployed("operators", "add", "vera@acme.example", "--role", "viewer", "--out", "vera.token")
    assert ran.code == 0, ran.err
    vera = {"BANKSMAN_OPERATOR_TOKEN_FILE": "vera.token"}
    assert until(lambda: deployed("status", **vera).code == 0, 30)
    ran = deployed("agents", "add", "x", "--project", "shop", "--owner", "o", **vera)
    assert (ran.code, ran.out) == (3, "")
    assert "role admin" in ran.err
    assert deployed("operators", "add", "vera@acme.example", "--role", "admin").code == 2
    assert deployed("operators", "add", "not a name", "--role", "viewer").code == 2
    assert deployed("status", BANKSMAN_OPERATOR_TOKEN="bmo_0000_1234").code == 3
    ran = deployed("now", "buyer", BANKSMAN_OPERATOR_TOKEN=deployed.credentials["buyer"])
    assert ran.code == 3
    assert deployed.credentials["buyer"] not in ran.err


def test_a_rotated_credential_ends_the_old_one(deployed: Deployment) -> None:
    assert (
        deployed("agents", "add", "spinner", "--project", "shop", "--owner", "o", "--out", "spinner.credential").code
        == 0
    )
    file = deployed.folder / "spinner.credential"
    old = deployed.credentials["spinner"] = file.read_text().strip()
    deployed.acts("spinner", {"session": "r", "kind": "note", "text": "old"})
    ran = deployed("agents", "rotate", "spinner", "--out", "spinner.credential")
    assert (ran.code, ran.out) == (0, "")
    deployed.credentials["spinner"] = file.read_text().strip()
    assert old != deployed.credentials["spinner"]
    deployed.acts("spinner", {"session": "r", "kind": "note", "text": "new"})
    answer = ask(deployed.environment["BANKSMAN_URL"], "POST", "/v1/events", [], token=old.split(".")[0])
    assert answer.status == 401


def test_a_policy_that_does_not_load_is_a_red_line_until_it_does(deployed: Deployment) -> None:
    file = deployed.folder / "policies" / "shop.yaml"
    try:
        file.write_text(POLICY.replace("allow:", "alow:", 1))
        ran = until(lambda: (ran := deployed("status")).code == 1 and "was rejected" in ran.out and ran, 30)
        assert ran.out.startswith("policy: shop.yaml:")
        assert "stays in force" in ran.out
        assert deployed("doctor").code == 1
    finally:
        file.write_text(POLICY)
    assert until(lambda: deployed("status").code == 0, 30)
    assert "does not load" in json.dumps(deployed("status", "--json").json["findings"])


def test_an_archiver_that_stands_still_is_seen(deployed: Deployment) -> None:
    freeze(deployed.services["archiver"].pid)
    try:
        notes = [{"session": "frozen", "kind": "note", "text": str(n)} for n in range(50)]
        deployed.acts("seller", *notes)
        # whatever else is not ready yet, because another test ended it
        ran = until(lambda: "archiver: stands still" in (ran := deployed("status")).out and ran, 30)
        assert ran.code == 1
        ran = deployed("doctor", "--json")
        assert (ran.code, ran.json["stops_at"]) == (1, "archiver")
    finally:
        deployed.services["archiver"].send_signal(signal.SIGCONT)
    assert until(lambda: deployed("status").code == 0, 60)


def test_what_nobody_tells_is_seen_to_wait(deployed: Deployment) -> None:
    def waiting() -> Any:
        notifier = deployed("status", "--json").json["console"]["notifier"]
        return notifier if notifier["lag"] and notifier["waiting_s"] > 1 else None

    file = deployed.folder / "policies" / "shop.yaml"
    freeze(deployed.services["notifier"].pid)
    try:
        file.write_text(POLICY.replace("allow:", "allou:", 1))
        first = until(waiting, 30)
        assert until(lambda: (now := waiting()) and now["waiting_s"] > first["waiting_s"] and now, 30)
    finally:
        file.write_text(POLICY)
        deployed.services["notifier"].send_signal(signal.SIGCONT)
    told = {"lag": 0, "waiting_s": 0.0}
    assert until(lambda: deployed("status", "--json").json["console"]["notifier"].items() >= told.items(), 60)
    assert until(lambda: deployed("status").code == 0, 30)


def test_the_enforcer_away_does_not_hide_the_console(deployed: Deployment) -> None:
    port = deployed.environment["BANKSMAN_URL"].rpartition(":")[2]
    assert deployed.stop("enforcer") == 0
    try:
        ran = deployed("status")
        assert ran.code == 4
        assert ran.out.startswith("enforcer: nobody answers at")
        assert "records behind" in ran.out or "record behind" in ran.out
        ran = deployed("doctor", "--json")
        assert (ran.code, ran.json["stops_at"]) == (4, "enforcer")
        assert deployed("now", "buyer").code == 0
    finally:
        deployed.serve("enforcer", port=port)
    assert until(lambda: deployed("status").code == 0, 30)


def test_commands_against_servers_that_are_away(tmp_path: Path) -> None:
    nobody = {"BANKSMAN_KAFKA": "127.0.0.1:1", "BANKSMAN_CLICKHOUSE": "http://127.0.0.1:1"}
    there = Shell(tmp_path, nobody)
    ran = there.process("migrate", "--dry-run")
    assert (ran.code, ran.out) == (4, "")
    assert "ClickHouse at http://127.0.0.1:1" in ran.err
    ran = there.process(
        "operators", "add", "root", "--role", "admin", "--bootstrap", "--new-secret", BANKSMAN_SECRET_FILE="s.json"
    )
    assert (ran.code, ran.out) == (4, "")
    assert "no broker at 127.0.0.1:1" in ran.err
    assert not (tmp_path / "s.json").exists()
    assert ran.err.count("\n") == 1


def test_before_the_topics_are_there(broker: Broker, tmp_path: Path) -> None:
    bare = broker.node.settings(topic_prefix=f"t{uuid.uuid4().hex[:8]}.", partitions=PARTITIONS)
    there = Shell(tmp_path, environment_of(bare) | {"BANKSMAN_SECRET_FILE": "s.json"})
    ran = there.process("operators", "add", "root", "--role", "admin", "--bootstrap", "--new-secret")
    assert (ran.code, ran.out) == (4, "")
    assert "banksman migrate" in ran.err
    create_secret(tmp_path / "s.json")
    ran = there.process("serve", "enforcer", BANKSMAN_ENFORCER_PORT="0")
    assert ran.code == 4
    assert "banksman migrate" in ran.err
