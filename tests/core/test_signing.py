from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banksman.errors import InvalidSetting
from banksman.signing import (
    Author,
    Headers,
    Secret,
    Verifier,
    create_secret,
    load_secret,
    may_write,
    new_credential,
    parse_author,
    parse_credential,
    service_signer,
    token_hash,
)
from banksman.topics import Topic

SECRET = Secret({1: b"1" * 32, 2: b"2" * 32}, 2)
VALUE = b'{"kind":"note"}'
MARKS = {"id": "019a", "kind": "note", "time": "2026-11-24T15:30:00.000001Z", "source": "emitter#1"}


def signed(*, replay: str = "") -> tuple[str, Headers]:
    credential, _ = new_credential(SECRET, "p", "a")
    return str(credential), credential.signer().headers("t.actions", b"a", VALUE, replay=replay, **MARKS)


@pytest.mark.parametrize("replay", ["", "replay-0123"])
def test_a_signature_names_its_author(replay: str) -> None:
    text, headers = signed(replay=replay)
    author = Verifier(SECRET).author("t.actions", b"a", headers, VALUE)
    assert author == Author(project="p", agent="a", token_id=parse_credential(text).token_id)


@given(st.data())
def test_any_change_breaks_it(data: st.DataObject) -> None:
    _, headers = signed(replay="replay-1")
    record: list[bytes] = [b"t.actions", b"a", VALUE, *(value for _, value in headers)]
    at = data.draw(st.integers(0, len(record) - 1))
    before = record[at]
    record[at] = data.draw(st.binary(max_size=40))
    topic, key, value, *rest = record
    named = list(zip((name for name, _ in headers), rest, strict=True))
    author = Verifier(SECRET).author(topic.decode("latin-1"), key, named, value)
    assert (author is not None) == (record[at] == before)


def test_a_header_moved_between_fields_breaks_it() -> None:
    """The parts are framed by length: shifting a byte from one to the next is another record."""
    _, headers = signed()
    moved = dict(headers)
    moved["ce_id"], moved["ce_source"] = b"019", b"a" + moved["ce_source"]
    assert Verifier(SECRET).author("t.actions", b"a", list(moved.items()), VALUE) is None


def test_added_removed_and_doubled_headers() -> None:
    verify = Verifier(SECRET).author
    _, headers = signed()
    assert verify("t.actions", b"a", [*headers, ("banksman-replay", b"r")], VALUE) is None
    assert verify("t.actions", b"a", [*headers, headers[0]], VALUE) is None
    assert verify("t.actions", b"a", [h for h in headers if h[0] != "ce_time"], VALUE) is None
    assert verify("t.actions", b"a", [], VALUE) is None
    assert verify("t.actions", b"a", [*headers, ("traceparent", b"00-1")], VALUE) is not None  # not ours, not signed


@pytest.mark.parametrize(
    "who", [b"", b"1", b"1 9 service:enforcer x", b"1 2 nobody x", b"2 2 service:x y", b"\xff \xff"]
)
def test_nonsense_authors(who: bytes) -> None:
    assert Verifier(SECRET).author("t", b"k", [("banksman-auth", who)], b"") is None


def test_old_versions_of_the_secret_stay_verifiable() -> None:
    old = service_signer(Secret({1: b"1" * 32}, 1), "enforcer").headers("t", b"k", VALUE, **MARKS)
    assert Verifier(SECRET).author("t", b"k", old, VALUE) == Author(service="enforcer")


def test_who_may_write_what() -> None:
    agent, service = Author(project="p", agent="a", token_id="t"), Author(service="enforcer")
    assert may_write(agent, Topic.ACTIONS, kind="note", project="p", agent="a")
    assert not may_write(agent, Topic.ACTIONS, kind="note", project="p", agent="b")
    assert not may_write(agent, Topic.ACTIONS, kind="note", project="q", agent="a")
    assert not may_write(agent, Topic.ACTIONS, kind="decision", project="p", agent="a")
    assert not may_write(agent, Topic.CONTROL, kind="agent.enrolled", project="p", agent="a")
    assert not may_write(None, Topic.ACTIONS, kind="note", project="p", agent="a")
    assert may_write(service, Topic.CONTROL, kind="agent.enrolled", project="p", agent="a")


def test_credentials_round_trip_and_hide() -> None:
    credential, hashed = new_credential(SECRET, "p", "a")
    assert parse_credential(str(credential)) == credential
    assert token_hash(credential.token) == hashed
    shown = repr(credential) + repr(SECRET)
    assert credential.token not in shown
    assert "1111" not in shown
    for wrong in ("", "x", credential.token, credential.token + ".x", "bmo_1_2." + str(credential).partition(".")[2]):
        with pytest.raises(InvalidSetting) as caught:
            parse_credential(wrong)
        assert credential.token not in str(caught.value)


def test_authors_round_trip() -> None:
    for author in (Author(service="x"), Author(project="p", agent="a", token_id="t")):
        assert parse_author(str(author)) == author
    assert parse_author("agent:p//t") is None


def test_a_secret_of_somebody_else_may_come_by_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Kubernetes (`fsGroup`) and systemd (`LoadCredential`) hand it to a service that is not root."""
    path = tmp_path / "secret.json"
    made = create_secret(path)
    path.chmod(0o440)
    with pytest.raises(InvalidSetting, match="can be read by others"):
        load_secret(path)
    monkeypatch.setattr("os.geteuid", lambda: path.stat().st_uid + 1)
    assert load_secret(path) == made
    for mode in (0o460, 0o444, 0o441):
        path.chmod(mode)
        with pytest.raises(InvalidSetting, match="can be read by others"):
            load_secret(path)


def test_secret_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.json"
    made = create_secret(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert create_secret(path) == load_secret(path) == made
    path.chmod(0o644)
    with pytest.raises(InvalidSetting, match="can be read by others"):
        load_secret(path)
    path.chmod(0o600)
    for wrong in ("", "{}", '{"current":2,"versions":{"1":"AAAA"}}', '{"current":1,"versions":{"1":"AAAA"}}'):
        path.write_text(wrong)
        with pytest.raises(InvalidSetting, match="BANKSMAN_SECRET_FILE"):
            load_secret(path)
