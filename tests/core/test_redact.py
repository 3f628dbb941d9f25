"""Redaction: what is found, what is not, that it cannot be made slow, and that a second entrance changes nothing."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banksman import redact
from banksman.redact import Redactor

KEY = b"k" * 32
R = Redactor(KEY)
PLANTED = {
    "aws-access-key": "AKIAIOSFODNN7EXAMPLE",
    "github-token": "ghp_" + "a1B2" * 9,
    "slack-token": "xoxb-123456789012-abcdefGHIJ",
    "anthropic-key": "sk-ant-" + "a1b2" * 8,
    "openai-key": "sk-proj-" + "Z9y8" * 8,
    "google-api-key": "AIza" + "a1B2c" * 7,
    "stripe-key": "sk_live_" + "4eC39Hq" * 3,
    "gitlab-pat": "glpat-" + "x1Y2" * 5,
    "npm-token": "npm_" + "a1B2" * 9,
    "banksman-token": "bma_" + "0123456789abcdef" + "_" + "Ab1-" * 11,
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
    "url-password": "hunter2hunter2",
    "bearer": "abcdefghijklmnop1234",
    "assigned-secret": "correcthorsebattery",
    "flag-secret": "correct-horse-battery",
    "private-key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7bq\n-----END RSA PRIVATE KEY-----",
    "email": "ann.lee@acme.example",
    "iban": "DE89 3704 0044 0532 0130 00",
    "card": "4111 1111 1111 1111",
    "ssn": "078-05-1120",
}
AROUND = {
    "url-password": "postgres://app:{}@db/x",
    "bearer": "Authorization: Bearer {}",
    "assigned-secret": "password={}",
    "flag-secret": "deploy --db-password {}",
}
TRAPS = [
    "git@github.com:acme/billing.git",
    "commit 4a5b6c7d8e9f00112233445566778899aabbccdd",
    "order 4111 1111 1111 1112 was shipped",  # the Luhn digit is wrong
    "DE89 3704 0044 0532 0130 01 is no account",  # the check digits are wrong
    "id 0199c3f2-7d5a-7cc3-98c4-dc0c0c07398f",
    "2026-10-01T08:00:00.123456Z took 1234567890123 ns",
    "arn:aws:s3:::acme-data/2026/10/01/report.csv",
    "the password was changed yesterday",
    "000-12-3456 and 900-12-3456 are no numbers of people",
    "tokens: 123456, basic auth is off",
    "deploy --token --verbose and --password -v",
    "http://10.0.0.1:8080/x@y",
]


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("inside", ["{}", "see {} there", '{{"a": "{}"}}'])
def test_what_is_planted_is_found_and_gone(kind: str, inside: str) -> None:
    secret = PLANTED[kind]
    text = inside.format(AROUND.get(kind, "{}").format(secret))
    made, found = R.value({"deep": [{"text": text}]})
    assert secret not in json.dumps(made, ensure_ascii=False).replace("\\n", "\n")
    assert found == [f"/deep/0/text {kind}"], made


@pytest.mark.parametrize(
    "value",
    [
        {"clientSecret": "hunter2x"},
        {"dbPassword": "hunter2x"},
        {"passphrase": "hunter2x"},
        {"token": "hunter2x"},
        {"env": [{"name": "DB_PASSWORD", "value": "hunter2x"}]},
        {"headers": [{"key": "Authorization", "value": "hunter2x"}]},
        {"url": "redis://:hunter2x@cache:6379/0"},
        {"body": r"{\"password\":\"hunter2x\"}"},
        {"cmd": "login --user ann --password hunter2x"},
    ],
    ids=str,
)
def test_secrets_by_their_place(value: object) -> None:
    made, found = R.value(value)
    assert "hunter2x" not in json.dumps(made)
    assert len(found) == 1
    assert R.value(made) == (made, [])
    event = {"kind": "note", "text": "x", "args": value}
    assert "hunter2x" not in json.dumps(R.event(event))


@pytest.mark.parametrize(
    "value",
    [{"max_tokens": 12}, {"tokens": "many"}, {"broken": "x" * 9}, {"name": "region", "value": "eu-west-1"}],
    ids=str,
)
def test_names_that_only_look_like_it(value: object) -> None:
    assert R.value(value) == (value, [])


@pytest.mark.parametrize("text", TRAPS)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert R.value({"text": text}) == ({"text": text}, [])


def test_equal_values_have_equal_marks_under_one_key_and_others_under_another() -> None:
    token = PLANTED["github-token"]
    one, two, other = R.value(f"a {token}")[0], R.value(f"b {token}")[0], Redactor(b"x" * 32).value(f"a {token}")[0]
    assert one[2:] == two[2:] != other[2:]


@pytest.mark.parametrize(
    "name", ["password", "db_password", "Authorization", "api-key", "set-cookie", "x.refresh_token"]
)
def test_sensitive_keys_hide_what_they_hold(name: str) -> None:
    made, found = R.value({name: {"any": "thing"}, "other": 1})
    assert made[name].startswith("[field:")
    assert found == [f"/{name} field"]
    assert R.value(made) == (made, [])


def test_a_value_that_looks_like_a_mark_is_not_trusted() -> None:
    assert "user:deadbeef" not in json.dumps(R.value({"password": "user:deadbeef"})[0])


def test_names_operations_and_decisions_are_never_touched() -> None:
    event = {
        "kind": "tool.call", "agent": "ann.lee@acme.example", "session": "s1", "action": "078-05-1120",
        "resource": "mailbox/ann.lee@acme.example", "args": {"to": "ann.lee@acme.example"},
    }  # fmt: skip
    made = R.event(event)
    assert {k: v for k, v in made.items() if k not in ("args", "redactions")} == {
        k: v for k, v in event.items() if k != "args"
    }
    assert made["redactions"] == ["/args/to email"]
    assert "[github-token:" in R.event({"resource": f"x/{PLANTED['github-token']}"})["resource"]


def test_what_an_earlier_entrance_found_stays_listed() -> None:
    made = R.event({"kind": "note", "text": PLANTED["ssn"], "redactions": ["/args/to email"]})
    assert made["redactions"] == ["/args/to email", "/text ssn"]


def test_a_redactor_that_fails_keeps_the_header_and_lets_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bool:
        raise RuntimeError("broken")

    event = {"kind": "note", "agent": "a", "text": "what was said"}
    monkeypatch.setattr(redact, "_certainly_clean", broken)
    assert R.event(event) == {"kind": "note", "agent": "a", "redactions": ["/ dropped"]}
    monkeypatch.undo()
    monkeypatch.setattr(redact, "_certainly_clean", lambda _: False)
    monkeypatch.setattr(Redactor, "_walk", broken)
    assert R.event(event) == {
        "kind": "note", "agent": "a", "text": "[dropped: redaction failed]", "redactions": ["/text dropped"],
    }  # fmt: skip


def test_what_cannot_be_read_is_dropped() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert R.event({"kind": "note", "text": deep})["redactions"] in (["/ dropped"], ["/text dropped"])
    assert "\ud800" not in json.dumps(R.event({"kind": "note", "text": "lone \ud800 surrogate"}), ensure_ascii=False)


def test_a_text_that_was_cut_is_not_cut_again() -> None:
    """Also when marks in it, longer than what they stand for, made it longer than the bound."""
    once, found = R.value((PLANTED["ssn"] + " " + "a" * 50 + " ") * 5000)
    assert " cut" in found
    assert len(once) > redact.MAX_TEXT + 100
    assert R.value(once) == (once, [])
    pretender = "a" * (3 * redact.MAX_TEXT) + "…[cut: 1 characters]"
    assert len(R.value(pretender)[0]) < redact.MAX_TEXT + 100


def test_long_texts_are_cut() -> None:
    made, found = R.value("a" * (redact.MAX_TEXT + 10) + PLANTED["ssn"])
    assert found == [" cut"]
    assert len(made) < redact.MAX_TEXT + 100


def test_very_many_secrets_are_dropped_unread_rather_than_marked_one_by_one() -> None:
    """An agent's megabyte of addresses took seven seconds, in which nobody else was answered."""
    many = {str(n): "ann@acme.example" for n in range(20_000)} | {"clean": "nothing in here"}
    began = time.process_time()
    made, found = R.value(many)
    assert time.process_time() - began < 2
    assert "ann@acme.example" not in json.dumps(made)
    assert made["0"].startswith("[email:")
    assert made["19999"] == "[dropped: more secrets than are looked for]"
    assert made["clean"] == "nothing in here"
    assert found[-1] == "/19999 dropped"
    assert R.value(made) == (made, [])


@pytest.mark.parametrize(
    "seed",
    [
        "-----BEGIN PRIVATE KEY-----",
        "password=",
        "a@a.",
        "4111 ",
        "://a:",
        "eyJ",
        "DE89 ",
        "sk-ant-",
        "078-05-",
        "Bearer ",
    ],
)
def test_no_text_makes_a_rule_slow(seed: str) -> None:
    """Linear: eight times the text takes about eight times as long (a quadratic rule would take 64)."""

    def took(size: int) -> float:
        text = (seed * (size // len(seed) + 1))[:size]
        best = 1e9
        for _ in range(3):
            began = time.thread_time()  # not the wall clock: what else the machine does is no matter
            R.value(text)
            best = min(best, time.thread_time() - began)
        return best

    small, large = took(8_000), took(64_000)
    assert large < 32 * small + 0.002


ALPHABET = st.text(st.sampled_from(list("abAB019-_.@:/ =[]\n\"'")), max_size=40)
PIECE = st.one_of(ALPHABET, st.sampled_from([AROUND.get(k, "{}").format(v) for k, v in PLANTED.items()]))
TEXT = st.lists(PIECE, max_size=6).map("".join)
JSON = st.recursive(
    TEXT, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)


@given(JSON)
def test_a_second_entrance_finds_nothing_new(value: object) -> None:
    once, _ = R.value(value)
    assert R.value(once) == (once, [])


@given(TEXT)
def test_the_gate_opens_wherever_a_rule_would_find_something(text: str) -> None:
    for gate, rules in ((redact._GATE, redact.SECRETS + redact.PERSONAL), (redact._SECRET_GATE, redact.SECRETS)):
        if any(rule.pattern.search(text) for rule in rules):
            assert gate.search(text)


@given(st.dictionaries(st.sampled_from(["text", "args", "error", "result", "resource"]), JSON, max_size=4))
def test_the_fast_way_hides_nothing(event: dict[str, object]) -> None:
    made = R.event(event)
    assert made == (R._event(event) if made != event else event)
    if made == event:
        assert R._event(event) == event
