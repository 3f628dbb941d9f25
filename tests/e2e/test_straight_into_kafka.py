"""Somebody has Kafka's password and not the secret, and writes by hand into every topic.

A real agent has worked under a real enforcer before. After everything that such a person can write, the public surfaces say
of it what they said before: nothing real is hidden, replaced, moved or aged out, nothing forged is applied or counted, also
after a restart of the services and a merge of the table; and each forged record is reported: stored unverified and in a
finding, or whole in the topic of dead letters.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError
from tests.console.conftest import Stand, stand
from tests.enforcer.conftest import PUSH, Enforcer, Tape, make_replica, until

from banksman import bus, codec
from banksman.events import ACTION_KINDS
from banksman.signing import Headers, Secret, Signer, new_credential, new_token, service_signer
from banksman.stamps import rfc3339, uuid7
from banksman.store.client import Store
from banksman.topics import Topic

__all__ = ["stand"]  # a fixture of another folder

POLICY = """\
project: shop
version: 3
owner: payments-team
agents:
  buyer:
    owner: ann@acme.example
    allow:
      - {service: git, actions: [push], resources: ["acme/billing"], branches: ["feature/*"]}
    require_approval:
      - {service: git, actions: [push], resources: ["acme/billing"], branches: ["main"]}
"""
OTHER = Secret({1: b"x" * 32}, 1)
OLD, FAR = "2020-01-01T00:00:00.000000Z", "2099-12-31T23:59:59.000000Z"
STAMPS_MS = (1_577_836_800_000, 4_102_444_799_000)
"""The same two as Kafka's own timestamps."""


@dataclass
class Record:
    """What somebody wrote by hand, and where Kafka put it."""

    topic: Topic
    key: bytes | None
    value: bytes | None
    headers: Any = ()
    stamp_ms: int | None = None
    partition: int = 0
    offset: int = -1


@dataclass
class Scene:
    stand: Stand
    enforcer: Enforcer
    tape: Tape
    real: list[dict[str, Any]] = field(default_factory=list)
    began: str = ""
    written: dict[tuple[str, int], int] = field(default_factory=dict)
    """Where the newest record of each partition lies."""

    def wrote(self, topic: Topic, partition: int, offset: int) -> None:
        where = topic.value, partition
        self.written[where] = max(offset, self.written.get(where, -1))

    def decide(self, **changes: Any) -> Any:
        asked = PUSH | {"session": "real"} | changes
        return self.enforcer("POST", "/v1/decide", asked, token=self.stand.desk.agents["buyer"].token)

    def kind(self, kind: str) -> dict[str, Any]:
        return next(record for record in self.real if record["kind"] == kind)

    def sql(self, query: str) -> list[list[Any]]:
        answer = self.stand("POST", "/v1/sql", {"query": query}, token=self.stand.desk.viewer)
        assert answer.status == 200, answer.raw
        rows: list[list[Any]] = answer.body["rows"]
        return rows

    def stored(self) -> None:
        """Return when the archiver is done with everything that was written here."""

        def done() -> bool:
            partitions = self.stand.get("/v1/status")["archiver"]["partitions"]
            behind = {(one["topic"], one["partition"]): one["next"] for one in partitions}
            return all(behind.get(where, 0) > offset for where, offset in self.written.items())

        until(done, 60, 0.1)

    def write(self, *records: Record) -> None:
        """With the service's own password: the first wall is down."""

        async def put() -> None:
            kafka = self.stand.desk.kafka
            sender = AIOKafkaProducer(**kafka.client(), acks="all", max_request_size=32 << 20)
            await sender.start()
            try:
                for one in records:
                    if one.topic in (Topic.ACTIONS, Topic.DECISIONS):
                        one.partition = bus.partition_of(one.key or b"", 2)
                    headers = list(one.headers)
                    where = await sender.send_and_wait(
                        kafka.topic(one.topic), one.value, one.key, one.partition, one.stamp_ms, headers
                    )
                    one.offset = where.offset
                    self.wrote(one.topic, one.partition, one.offset)
            finally:
                await sender.stop()

        asyncio.run(put())


@pytest.fixture(scope="module")
def scene(stand: Stand) -> Iterator[Scene]:
    """An agent that has worked: a prompt, a model call, a push that was allowed and done, one that waits for a human."""
    desk = stand.desk
    desk.policies.mkdir()
    (desk.policies / "shop.yaml").write_text(POLICY)
    replica = make_replica(desk)
    with Tape(desk.kafka) as tape:
        try:
            replica.start()
            made = Scene(stand, replica, tape, began=rfc3339())
            token, call = desk.agents["buyer"].token, uuid7()
            operation = {name: PUSH[name] for name in ("service", "action", "resource", "branch")}
            first = [
                {"kind": "session.started", "session": "real"},
                {"kind": "prompt", "session": "real", "text": "Push it."},
                {"kind": "model.call", "session": "real", "model": "m", "input_tokens": 10, "cost_usd": 0.5},
                {"kind": "tool.call", "id": call, "call": call, "session": "real", **operation},
            ]
            assert replica("POST", "/v1/events", first, token=token).status == 200
            allowed = made.decide(call=call)
            assert allowed.body["decision"] == "allow"
            result = {"kind": "tool.result", "session": "real", "call": call, "parent": call, "status": "ok"}
            assert replica("POST", "/v1/events", result, token=token).status == 200
            assert made.decide(branch="main").body["decision"] == "approve"
            for topic, count in ((Topic.ACTIONS, 5), (Topic.DECISIONS, 3)):
                found = tape.wait(topic, lambda one: one.get("session") == "real", count)
                made.real += [one | {"_topic": topic} for one in found]
            controls = tape.wait(Topic.CONTROL, lambda one: one.get("agent") == "buyer", 2)  # enrolled, approval opened
            made.real += [one | {"_topic": Topic.CONTROL} for one in controls]
            for one in made.real:
                made.wrote(Topic(one["_topic"]), one["_partition"], one["_offset"])
            made.stored()
            yield made
        finally:
            replica.end()


# ── what the public surfaces say ──


def without(told: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name not in names}


def picture(scene: Scene) -> dict[str, Any]:
    """What is said of the agent and its session; without what the clock changes, and without what counts the strange."""
    now = scene.stand.get("/v1/agents/buyer/now")
    assert now["state"] == "waiting", json.dumps(now)
    decided = without(now["last_decision"], "age_s")
    session = scene.stand.get("/v1/sessions/real")
    listed = scene.stand.get("/v1/sessions?agent=buyer")["sessions"]
    agents = scene.stand.get("/v1/agents")["agents"]
    mine = "agent = 'buyer' AND topic IN ('actions', 'decisions', 'control') AND verified"
    view = "SELECT {} FROM session_steps(agent = 'buyer', session = 'real') WHERE verified ORDER BY n"
    since = "since = '2000-01-01 00:00:00'"
    status = scene.enforcer("GET", "/v1/status", token=scene.stand.desk.viewer).body
    return {
        "now": without(now, "took_ms", "since", "last_seen") | {"last_decision": decided},
        "steps": [without(one, "n", "id_reused") for one in session["steps"] if one["verified"]],
        "header": without(session["header"], "steps", "unverified", "late", "id_reused", "state"),
        "gaps": (session["gaps"], session["repeats"]),
        "sessions": [without(one, "unverified", "state") for one in listed],
        "agents": [without(one, "state", "events_last_minute", "last_seen") for one in agents],
        "rows": scene.sql(
            f"SELECT id, kind, time, min(received), raw FROM events WHERE {mine} GROUP BY id, kind, time, raw ORDER BY id"
        ),
        "story": scene.sql(view.format("id, kind, time, received, verified")),
        "decisions": scene.sql(
            f"SELECT id, decision, received FROM decisions({since}) WHERE agent = 'buyer' ORDER BY id"
        ),
        "view": scene.sql(f"SELECT * FROM sessions({since}) WHERE agent = 'buyer'"),
        "approvals": scene.sql(f"SELECT approval, state, approver FROM approvals({since}) WHERE agent = 'buyer'"),
        "spent": scene.sql(f"SELECT * FROM spend_daily({since}, timezone = 'UTC') WHERE agent = 'buyer'"),
        "enrolled": scene.enforcer("GET", "/v1/agents", token=scene.stand.desk.viewer).body["agents"],
        "policies": [(one["policy_version"], one["since"]) for one in status["policies"]],
    }


# ── what is written ──


def headers_of(scene: Scene, signer: Signer, topic: Topic, key: bytes, event: dict[str, Any]) -> Headers:
    name = scene.stand.desk.kafka.topic(topic)
    return signer.headers(
        name, key, codec.encode(event), id=event["id"], kind=event["kind"], time=event["time"], source=event["source"]
    )


def event(kind: str, **fields: Any) -> dict[str, Any]:
    common = {"v": 1, "id": uuid7(), "time": rfc3339(), "kind": kind, "source": "by-hand"}
    if kind in ACTION_KINDS or kind.startswith(("decision", "approval")):
        common |= {"project": "shop", "agent": "buyer", "session": "real"}
    return common | fields


def bare(one: dict[str, Any]) -> dict[str, Any]:
    """A record of the tape as the event that it was."""
    return {name: value for name, value in one.items() if not name.startswith("_")}


def copy(one: dict[str, Any], topic: Topic, **changes: Any) -> Record:
    """Byte for byte, signature and all, but for `changes`."""
    made = Record(topic, one["_key"].encode(), one["_raw"], list(one["_headers"].items()))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def told(scene: Scene, topic: Topic, events: list[dict[str, Any]], signers: list[Signer | None]) -> list[Record]:
    """Each event under each signature: none, one of another secret, one of somebody who may not write this."""
    key = b"buyer"
    return [
        Record(topic, key, codec.encode(one), headers_of(scene, signer, topic, key, one) if signer else ())
        for one in events
        for signer in signers
    ]


def forged_actions(scene: Scene) -> list[Record]:
    call = bare(scene.kind("tool.call"))
    operation = {"service": "git", "action": "force_push", "resource": "acme/billing", "branch": "main"}
    made = [
        event(kind, time=time, **more)
        for time in (rfc3339(), OLD, FAR)
        for kind, more in (
            ("tool.call", operation | {"call": uuid7()}),
            ("tool.call", operation | {"call": call["call"]}),
            ("tool.result", {"call": call["call"], "parent": call["call"], "status": "error", "error": "forged"}),
            ("session.started", {}),
            ("session.ended", {"status": "error"}),
            ("model.call", {"model": "m", "input_tokens": 10**9, "cost_usd": 1e6}),
            ("note", {"text": "x", "verified": True, "received": OLD, "topic": "control", "offset": 0, "replay": "r"}),
            ("made.up", {"text": "a kind of another version"}),
        )
    ]
    # The ids of what is there, with other bytes, older, newer, from another source and with its number.
    made += [bare(one) | {"time": time, "text": "replaced", "action": "replaced", "source": source}
             for one in scene.real if one["kind"] in ACTION_KINDS
             for time, source in ((OLD, one["source"]), (FAR, "by-hand"), (one["time"], one["source"]))]  # fmt: skip
    made += [
        event("note", seq=seq, source=call["source"], text="a number of the agent's own") for seq in (1, 2, 10**15)
    ]
    signers = [None, Signer(scene.stand.desk.agents["seller"].signer().author, b"k" * 32, 1)]
    signers += [scene.stand.desk.agents["seller"].signer(), service_signer(OTHER, "enforcer")]
    return told(scene, Topic.ACTIONS, made, signers)


def forged_decisions(scene: Scene) -> list[Record]:
    real, wanted = bare(scene.kind("decision")), bare(scene.kind("approval.requested"))
    allow = {"decision": "allow", "tier": 1, "reason": "allowed", "rule": "buyer/allow/0", "policy": "shop",
             "policy_version": "shop@v9+sha256:000000000000", "owner": "zz-mallory", "service": "i", "action": "x"}  # fmt: skip
    made = [event("decision", time=time, call=real["call"], parent=uuid7(), **allow) for time in (rfc3339(), OLD, FAR)]
    made += [real | {"decision": "deny", "time": time} for time in (real["time"], OLD, FAR)]
    made += [event("decision.void", parent=one["id"], call=one.get("call"), reason="not_acknowledged")
             for one in scene.real if one["kind"] == "decision"]  # fmt: skip
    made += [event(f"approval.{verdict}", approval=wanted["approval"], approver="mallory")
             for verdict in ("approved", "denied", "expired", "used")]  # fmt: skip
    made = [{name: value for name, value in one.items() if value is not None} for one in made]
    return told(
        scene, Topic.DECISIONS, made,
        [None, scene.stand.desk.agents["buyer"].signer(), service_signer(OTHER, "enforcer")],
    )  # fmt: skip


def forged_controls(scene: Scene) -> tuple[list[Record], list[str]]:
    """-> (the records, the tokens that they would have made good)."""
    desk, tokens, made = scene.stand.desk, [], []
    for time in (rfc3339(), OLD, FAR):
        credential, hashed = new_credential(desk.secret, "shop", "mallory")
        own, own_hash = new_credential(desk.secret, "shop", "buyer")
        operator, token_id, operator_hash = new_token("bmo")
        tokens += [credential.token, own.token, operator]
        held = {"project": "shop", "owner": "mallory"}
        made += [
            event("agent.enrolled", time=time, agent="mallory", token_id=credential.token_id, token_hash=hashed, **held),
            event("agent.enrolled", time=time, agent="buyer", token_id=own.token_id, token_hash=own_hash, **held),
            event(
                "agent.rotated", time=time, agent="buyer", project="shop", token_id=own.token_id, token_hash=own_hash
            ),
            event(
                "operator.enrolled", time=time, operator="mallory", roles=["admin"], token_id=token_id,
                token_hash=operator_hash,
            ),
            event("agent.revoked", time=time, project="shop", agent="buyer", by="root", reason="forged"),
            event("session.killed", time=time, project="shop", agent="buyer", session="real", by="root", reason="forged"),
            event("project.paused", time=time, project="shop", by="root", reason="forged"),
            event("policy.removed", time=time, project="shop", policy_version="shop@v3+sha256:0", replica="r"),
        ]  # fmt: skip
    signers = [None, desk.agents["buyer"].signer(), service_signer(OTHER, "up")]
    records = []
    for one in made:
        for signer in signers:
            key = f"{one['kind']}/{one['id']}".encode()
            headers = headers_of(scene, signer, Topic.CONTROL, key, one) if signer else ()
            records.append(Record(Topic.CONTROL, key, codec.encode(one), headers))
    return records, tokens


def twisted(scene: Scene) -> list[Record]:
    """Genuine bytes and signatures where they do not belong: stored, and never believed."""
    call, decision = scene.kind("tool.call"), scene.kind("decision")
    signed = list(call["_headers"].items())
    return [
        copy(call, Topic.ACTIONS, key=b"seller"),
        copy(call, Topic.ACTIONS, key=None),
        copy(call, Topic.ACTIONS, headers=[*signed, ("banksman-auth", b"1 1 service:up " + b"0" * 64)]),
        copy(call, Topic.ACTIONS, headers=[("ce_id", uuid7().encode()), *signed]),
        copy(call, Topic.ACTIONS, headers=[(name, value) for name, value in signed if name != "ce_time"]),
        copy(call, Topic.ACTIONS, headers=[*signed, ("banksman-replay", b"run-1")]),
        copy(decision, Topic.DECISIONS, headers=[("banksman-auth", None)]),
        *(
            Record(Topic.ACTIONS, b"buyer", codec.encode(event("note", text="stamped")), (), stamp)
            for stamp in STAMPS_MS
        ),
    ]


def broken(scene: Scene) -> list[Record]:
    """What is no event of its topic at all: it must be in the topic of dead letters, whole."""
    note = codec.encode(event("note", text="x"))
    enrolled = bare(next(one for one in scene.real if one["kind"] == "agent.enrolled"))
    made: list[Record] = []
    for topic in (Topic.ACTIONS, Topic.DECISIONS):
        made += [
            Record(topic, b"buyer", None),
            Record(topic, b"buyer", b""),
            Record(topic, b"buyer", os.urandom(1 << 20)),
            Record(topic, b"buyer", note[:-1] + b',"text2":"\xff\xfe"}'),
            Record(topic, b"buyer", b"[" * 1_000_000),
            Record(topic, b"buyer", b'{"a":' * 200_000 + b"1" + b"}" * 200_000),
            Record(topic, b"buyer", note[:-1] + b',"args":{"a":' + b"[" * 5000 + b"]" * 5000 + b"}}"),
            Record(topic, b"buyer", codec.encode(enrolled)),
            Record(topic, b"buyer", codec.encode(event("note", text="x") | {"id": "1"})),
            Record(topic, b"\xff\xfe", b"null", [("\u0000", None), ("banksman-auth", b"\xff" * 1000)], STAMPS_MS[1]),
        ]
    other = codec.encode(bare(scene.kind("decision"))), codec.encode(bare(scene.kind("tool.call")))
    return [*made, Record(Topic.ACTIONS, b"buyer", other[0]), Record(Topic.DECISIONS, b"buyer", other[1])]


# ── and what comes of it ──


def letters(scene: Scene, count: int) -> dict[tuple[str, int, int], dict[str, Any]]:
    async def read() -> dict[tuple[str, int, int], dict[str, Any]]:
        kafka, found = scene.stand.desk.kafka, {}
        async with contextlib.aclosing(bus.read_from_start(kafka, kafka.topic(Topic.DEAD))) as batches:
            async for batch in batches:
                for record in batch:
                    letter = json.loads(record.value)
                    found[letter["topic"], letter["partition"], letter["offset"]] = letter
                if len(found) >= count:
                    return found
        raise AssertionError

    return asyncio.run(asyncio.wait_for(read(), 60))


def is_reported(scene: Scene, records: list[Record]) -> None:
    """Each is stored, unverified, received today; and each topic and agent has its finding."""
    rows = {
        (topic, int(partition), int(offset)): (verified, agent, author)
        for topic, partition, offset, verified, agent, author in scene.sql(
            "SELECT topic, partition, offset, verified, agent, author FROM events WHERE NOT verified LIMIT 1000"
        )
    }
    for one in records:
        assert (one.topic.value, one.partition, one.offset) in rows, one
    wanted = {f"forged/{topic}/{agent}" for (topic, _, _), (_, agent, _) in rows.items()}

    def told() -> set[str]:
        found = scene.stand.get("/v1/findings?detector=forged&limit=1000")["findings"]
        return {one["fingerprint"] for one in found}

    until(lambda: wanted <= told(), 30, 0.1)


def same(scene: Scene, before: dict[str, Any]) -> None:
    after = picture(scene)
    for name, value in before.items():
        assert after[name] == value, name


def test_nothing_that_is_written_by_hand_changes_what_is_said(scene: Scene) -> None:
    before = picture(scene)
    assert len(before["steps"]) == 8
    controls, tokens = forged_controls(scene)
    stored = [*forged_actions(scene), *forged_decisions(scene), *twisted(scene)]
    dead = broken(scene)
    scene.write(*stored, *controls, *dead)
    scene.stored()
    same(scene, before)

    # What was forged is marked, and there.
    is_reported(scene, [*stored, *controls])
    session = scene.stand.get("/v1/sessions/real")
    mine = [one for one in stored if b'"buyer"' in (one.value or b"") and b'"real"' in (one.value or b"")]
    assert session["header"]["unverified"] == len({(one.value, one.topic) for one in mine} - known(scene))
    assert session["header"]["id_reused"] > 0
    # It was received when it was written, whatever it says: no partition of 2020 that a retention would take away.
    assert scene.sql(
        f"SELECT count() FROM events WHERE received < '{scene.began[:19]}' AND agent = 'buyer' AND topic != 'control'"
    ) == [["0"]]
    assert scene.sql("SELECT count() FROM events WHERE received > now64(3) + 60") == [["0"]]

    # What could not be stored is in the topic of dead letters, whole.
    found = letters(scene, len(dead))
    for one in dead:
        letter = found[scene.stand.desk.kafka.topic(one.topic), one.partition, one.offset]
        assert base64.b64decode(letter["value"]) == (one.value or b"")
        assert letter["error"]
    assert scene.stand.get("/v1/status")["dead_letters"] >= len(dead)
    assert until(lambda: scene.stand.get("/v1/findings?detector=dead_letters")["findings"], 30, 0.1)

    # Nobody got in, and who was in still is.
    for token in tokens:
        assert scene.enforcer("POST", "/v1/decide", PUSH, token=token).status == 401
        assert scene.enforcer("GET", "/v1/agents", token=token).status == 401
        assert scene.stand("GET", "/v1/agents", token=token).status == 401
    # The first thirty at once, then one a second; the archiver's own count is whole.
    scene.tape.wait(Topic.ALERTS, lambda one: one.get("fingerprint") == "forged/control", 30)
    assert scene.stand.get("/v1/status")["kafka"]["control"]["refused"] >= len(controls)


def known(scene: Scene) -> set[tuple[bytes, Topic]]:
    """Bytes that are there genuinely too: a copy of them is shown as the genuine one."""
    return {(one["_raw"], topic) for one in scene.real for topic in (Topic.ACTIONS, Topic.DECISIONS)}


def test_a_copy_of_what_is_genuine_is_shown_once(scene: Scene) -> None:
    """Where it first lay. Only the list of all agents, which goes by the newest record, may say that one was heard again."""
    before = picture(scene)
    for topic, kinds in ((Topic.ACTIONS, ("tool.call", "session.started")), (Topic.DECISIONS, ("decision",))):
        scene.write(*(copy(scene.kind(kind), topic) for kind in kinds))
    scene.stored()
    same(scene, without(before, "agents"))


def test_forged_findings_and_limits_are_shown_to_nobody(scene: Scene) -> None:
    finding = event("finding", detector="calm", severity="info", title="all is well", fingerprint="calm")
    budget = event("budget", project="shop", agent="buyer", window="2026-11-24", unit="tokens", spent=0.0, limit=1e9,
                   fraction=0.0, burn=0.0, resets_at=FAR, offsets={})  # fmt: skip
    records = [
        Record(Topic.ALERTS, b"buyer", codec.encode(finding)),
        Record(Topic.LIMITS, b"buyer", codec.encode(budget)),
    ]
    before = picture(scene)
    scene.write(*records)
    scene.stored()
    assert scene.stand.get("/v1/findings?detector=calm")["findings"] == []
    is_reported(scene, records)
    same(scene, before)


def test_a_tombstone_over_an_enrolment_takes_nothing_away_and_is_told(scene: Scene) -> None:
    enrolled = scene.kind("agent.enrolled")
    before = picture(scene)
    record = Record(Topic.CONTROL, enrolled["_key"].encode(), None)
    scene.write(record)
    where = f"control/0/{record.offset}"
    scene.tape.wait(Topic.ALERTS, lambda one: one.get("evidence", {}).get("record") == where, 1, 60)
    same(scene, before)


def test_what_is_far_too_large_is_refused_by_the_broker(scene: Scene) -> None:
    for topic in (Topic.ACTIONS, Topic.DECISIONS, Topic.CONTROL):
        with pytest.raises(MessageSizeTooLargeError):
            scene.write(Record(topic, b"buyer", os.urandom(16 << 20)))


def test_after_a_restart_and_a_merge_it_is_the_same(scene: Scene) -> None:
    """Whoever reads the topics from the beginning comes to the same, and the table keeps its rows when it is merged."""
    before = picture(scene)
    clickhouse = scene.stand.archive.clickhouse
    store = Store(clickhouse, reader=False)
    store.command(f"OPTIMIZE TABLE `{clickhouse.clickhouse_database}`.events FINAL")
    store.close()
    scene.enforcer.stop()
    scene.stand.stop()
    scene.enforcer.start()
    scene.stand.start()
    same(scene, without(before, "policies"))
    tokens = scene.stand.desk.agents
    assert (
        scene.enforcer("POST", "/v1/decide", {}, token=tokens["buyer"].token).status == 422
    )  # let in, and told what is wrong
    asked = scene.enforcer("POST", "/v1/decide", PUSH, token=tokens["seller"].token)
    assert (asked.status, asked.body["reason"]) == (200, "unknown_agent"), asked.raw
