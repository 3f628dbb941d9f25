"""Who wrote a record: the server secret, the keys that come from it, and the `banksman-auth` header.

Every record is signed with HMAC-SHA256 over topic, key, the CloudEvents and replay headers and the bytes. An agent
signs with an event key derived from the server secret, its project, its name and its token; a service with a service
key. So "verified" is a function of the record and the secret alone, and comes out the same on every replay of the log.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
import stat
import struct
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING

from banksman.errors import InvalidSetting
from banksman.events import ACTION_KINDS
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

Headers = list[tuple[str, bytes]]

AUTH = "banksman-auth"
REPLAY = "banksman-replay"
SENT = "banksman-sent"
"""When a record was sent, by its author's clock: a late event from a clock that is right.
Not signed: it only excuses an agent from being taken for stuck.
"""
_CE, _JSON = b"1.0", b"application/json"
_SIGNED = ("ce_specversion", "ce_id", "ce_source", "ce_type", "ce_time", "content-type", REPLAY)
_get_always = itemgetter(*_SIGNED[:-1])
_LENGTHS = struct.Struct(f">{2 + len(_SIGNED)}I").pack


@dataclass(frozen=True)
class Secret:
    """The server secret, in versions so that it can be rotated: new keys use `current`, old ones stay verifiable."""

    versions: dict[int, bytes] = field(repr=False)
    current: int

    def derive(self, version: int, *label: str) -> bytes:
        """A 32-byte key for one purpose: HMAC-SHA256 over the length-prefixed label. KeyError: no such version."""
        text = "".join(f"{len(part)}:{part}" for part in label)
        return hmac.digest(self.versions[version], text.encode(), "sha256")


def create_secret(path: Path) -> Secret:
    """Make a secret file (0600) unless there is one; return what it holds."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return load_secret(path)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"current": 1, "versions": {"1": base64.b64encode(secrets.token_bytes(32)).decode()}}, file)
        file.flush()
        os.fsync(file.fileno())
    return load_secret(path)


def load_secret(path: Path) -> Secret:
    """Read a secret file; InvalidSetting when it is missing, open to others, or not what `create_secret` writes.

    Open to its group it may be where it is not ours: Kubernetes and systemd hand out a file of root's that way.
    """
    name = "BANKSMAN_SECRET_FILE"
    try:
        found = path.stat()
        text = path.read_text()
    except OSError as error:
        raise InvalidSetting(f"cannot read {path}: {error.strerror}", field=name) from None
    if stat.S_IMODE(found.st_mode) & (0o077 if found.st_uid == os.geteuid() else 0o037):
        raise InvalidSetting(f"{path} can be read by others; `chmod 600 {path}`", field=name)
    try:
        data = json.loads(text)
        versions = {int(k): base64.b64decode(v, validate=True) for k, v in data["versions"].items()}
        current = int(data["current"])
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        raise InvalidSetting(f"{path} is not a banksman secret file", field=name) from None
    if current not in versions or any(len(key) < 32 for key in versions.values()):
        raise InvalidSetting(f"{path}: `current` names no version, or a key is shorter than 32 bytes", field=name)
    return Secret(versions, current)


@dataclass(frozen=True)
class Author:
    """Who signed: an agent (project, agent, token_id) or a service (name)."""

    service: str = ""
    project: str = ""
    agent: str = ""
    token_id: str = ""

    @cached_property
    def text(self) -> str:
        """As it stands in `banksman-auth`."""
        return f"service:{self.service}" if self.service else f"agent:{self.project}/{self.agent}/{self.token_id}"

    def __str__(self) -> str:
        return self.text


def parse_author(text: str) -> Author | None:
    """The reverse of `str(author)`; None when it is no author."""
    kind, _, rest = text.partition(":")
    if kind == "service" and rest:
        return Author(service=rest)
    parts = rest.split("/")
    if kind == "agent" and len(parts) == 3 and all(parts):
        return Author(project=parts[0], agent=parts[1], token_id=parts[2])
    return None


def key_of(secret: Secret, version: int, author: Author) -> bytes:
    """The key that `author` signs with. KeyError: no such version of the secret."""
    if author.service:
        return secret.derive(version, "service-key", author.service)
    return secret.derive(version, "event-key", author.project, author.agent, author.token_id)


class Mac:
    """HMAC-SHA256 (RFC 2104) under one key, with its two states after the key kept: half the cost of a one-shot."""

    __slots__ = ("inner", "outer")

    def __init__(self, key: bytes) -> None:
        block = (key if len(key) <= 64 else hashlib.sha256(key).digest()).ljust(64, b"\0")
        self.inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self.outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def hex(self, value: bytes) -> str:
        """Of a value."""
        inner, outer = self.inner.copy(), self.outer.copy()
        inner.update(value)
        outer.update(inner.digest())
        return outer.hexdigest()


class Signer:
    """Makes the headers of a record for one author. About 3 us a record."""

    def __init__(self, author: Author, key: bytes, version: int) -> None:
        self.author = author
        self._mac = Mac(key)
        self._prefix = f"1 {version} {author} ".encode()

    def headers(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        *,
        id: str,  # noqa: A002 - the field's own name
        kind: str,
        time: str,
        source: str,
        replay: str = "",
    ) -> Headers:
        """CloudEvents 1.0 binary-mode headers and the signature, for `value` at `key` in `topic` (its full name)."""
        where, a, b, c, d = topic.encode(), id.encode(), source.encode(), b"banksman." + kind.encode(), time.encode()
        run = replay.encode()
        lengths = _LENGTHS(len(where), len(key), len(_CE), len(a), len(b), len(c), len(d), len(_JSON), len(run))
        parts = (lengths, where, key, _CE, a, b, c, d, _JSON, run, value)
        made: Headers = [
            ("ce_specversion", _CE),
            ("ce_id", a),
            ("ce_source", b),
            ("ce_type", c),
            ("ce_time", d),
            ("content-type", _JSON),
        ]
        if replay:
            made.append((REPLAY, run))
        made.append((AUTH, self._prefix + self._mac.hex(b"".join(parts)).encode()))
        return made


def service_signer(secret: Secret, service: str) -> Signer:
    """The signer of a service of ours (`enforcer`, `archiver`, `up`, …)."""
    author = Author(service=service)
    return Signer(author, key_of(secret, secret.current, author), secret.current)


class Verifier:
    """Says who signed a record, or that nobody we know did."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret
        self._known: dict[bytes, tuple[Author, Mac]] = {}

    def author(
        self, topic: str, key: bytes | None, headers: Sequence[tuple[str, bytes | None]], value: bytes
    ) -> Author | None:
        """The author whose signature fits this record, or None. Says nothing yet about what the author may write.

        A header without a value, which Kafka lets anybody write, counts as one that is not there; of a record that has the
        same header twice nobody is the author.
        """
        found = dict(headers)
        return self.whose(topic.encode(), key, found, value) if len(found) == len(headers) else None

    def whose(
        self, topic: bytes, key: bytes | None, headers: Mapping[str, bytes | None], value: bytes
    ) -> Author | None:
        """The same for headers of which the caller knows that none is there twice. 3 us: written out, as nothing else costs
        an archiver as much.
        """
        who, _, given = (headers.get(AUTH) or b"").rpartition(b" ")
        known = self._known.get(who) or self._look_up(who)
        if known is None:
            return None
        author, mac = known
        key = key or b""
        try:
            a, b, c, d, e, f = _get_always(headers)
            g = headers.get(REPLAY) or b""
            lengths = _LENGTHS(len(topic), len(key), len(a), len(b), len(c), len(d), len(e), len(f), len(g))
        except (KeyError, TypeError):  # one is not there, or has no value
            a, b, c, d, e, f, g = parts = [headers.get(name) or b"" for name in _SIGNED]
            lengths = _LENGTHS(len(topic), len(key), *map(len, parts))
        inner, outer = mac.inner.copy(), mac.outer.copy()
        inner.update(b"".join((lengths, topic, key, a, b, c, d, e, f, g, value)))
        outer.update(inner.digest())
        return author if hmac.compare_digest(outer.hexdigest().encode(), given) else None

    def _look_up(self, who: bytes) -> tuple[Author, Mac] | None:
        try:
            form, version, text = who.decode().split(" ")
            author = parse_author(text)
            if form != "1" or author is None or not version.isascii():
                return None
            key = key_of(self._secret, int(version), author)
        except (ValueError, KeyError):
            return None
        if len(self._known) >= 100_000:  # forged authors must not fill the memory
            self._known.clear()
        self._known[who] = (author, Mac(key))
        return self._known[who]


def may_write(author: Author | None, topic: Topic, *, kind: str, project: str | None, agent: str | None) -> bool:
    """Whether what `author` signed counts: services write everything, an agent its own `actions` and nothing else."""
    if author is None:
        return False
    if author.service:
        return True
    return topic is Topic.ACTIONS and kind in ACTION_KINDS and (author.project, author.agent) == (project, agent)


def digest(key: bytes, value: bytes) -> str:
    """`hmac-sha256:…` of bytes under an event key: for args, results and cut texts. Plain hashes can be guessed."""
    return "hmac-sha256:" + hmac.digest(key, value, "sha256").hex()


def digest_by(mac: Mac, value: bytes) -> str:
    """The same for a key that is used again and again."""
    return "hmac-sha256:" + mac.hex(value)


# ── credentials ──


@dataclass(frozen=True)
class Credential:
    """What an agent is given once, as one string: its token (sent over HTTP) and its event key (never sent)."""

    token: str = field(repr=False)
    project: str
    agent: str
    version: int
    event_key: bytes = field(repr=False)

    @property
    def token_id(self) -> str:
        """The public part of the token."""
        return self.token.split("_")[1]

    def __str__(self) -> str:
        rest = {"p": self.project, "a": self.agent, "v": self.version, "k": base64.b64encode(self.event_key).decode()}
        return self.token + "." + base64.urlsafe_b64encode(json.dumps(rest).encode()).decode().rstrip("=")

    def signer(self) -> Signer:
        """The signer of this agent."""
        author = Author(project=self.project, agent=self.agent, token_id=self.token_id)
        return Signer(author, self.event_key, self.version)


def parse_credential(text: str) -> Credential:
    """The string that `agents add` showed -> its parts. InvalidSetting (never quoting the text) when it is not one."""
    token, dot, rest = text.strip().partition(".")
    try:
        if not dot or not token.startswith("bma_") or token.count("_") < 2:
            raise ValueError
        data = json.loads(base64.urlsafe_b64decode(rest + "=" * (-len(rest) % 4)))
        return Credential(token, str(data["p"]), str(data["a"]), int(data["v"]), base64.b64decode(data["k"]))
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise InvalidSetting("is not a credential that `banksman agents add` gave", field="BANKSMAN_TOKEN") from None


def new_token(prefix: str) -> tuple[str, str, str]:
    """-> (token, its id, its SHA-256). `prefix`: `bma` for agents, `bmo` for operators.

    256 random bits need no slow hash.
    """
    token_id = secrets.token_hex(8)
    token = f"{prefix}_{token_id}_{secrets.token_urlsafe(32)}"
    return token, token_id, token_hash(token)


def token_hash(token: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def new_credential(secret: Secret, project: str, agent: str) -> tuple[Credential, str]:
    """-> (a fresh credential for an agent, the hash of its token to be recorded)."""
    token, token_id, hashed = new_token("bma")
    key = key_of(secret, secret.current, Author(project=project, agent=agent, token_id=token_id))
    return Credential(token, project, agent, secret.current, key), hashed


def header_map(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    """Kafka headers as text, for display and dead letters; what is not UTF-8 is shown escaped."""
    return {name: (value or b"").decode("utf-8", "backslashreplace") for name, value in headers}
