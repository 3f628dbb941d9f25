"""A file of recorded actions: what a line may hold, and the events it stands for. docs/reference/replay.md describes it.

Everything here is a function of the file's content alone: the run's name, the names that are used, every id. So a second
run of the same file makes the same records, and nothing is there twice.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, BinaryIO

from banksman import codec
from banksman.canonical import parse
from banksman.errors import InvalidInput
from banksman.events import is_name
from banksman.stamps import rfc3339
from banksman.topics import Topic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ALIASES = {
    "ts": "time",
    "timestamp": "time",
    "agent_id": "agent",
    "session_id": "session",
    "tool": "action",
    "result_digest": "result_hash",
    "result_norm_digest": "outcome_hash",
    "batch_index": "batch",
    "seq": "recorded_seq",
    "args_digest": "recorded_args_digest",
}
"""Other names that a field may have, and ours. The last two are kept beside ours: `seq` counts what a source sends, and
`args_hash` is keyed."""

DROPPED = frozenset(("label", "kind", "v", "id", "call", "parent", "source"))
"""What a line may hold that is not part of the action, or that replaying makes anew."""

CALL_FIELDS = ("service", "action", "resource", "branch", "args", "batch")
QUESTION_FIELDS = ("service", "action", "resource", "branch", "args", "reason")
RESULT_FIELDS = (
    "status", "error", "result", "result_hash", "outcome_hash", "result_size", "duration_ms",
    "input_tokens", "output_tokens", "cost_usd",
)  # fmt: skip
_SOME_EVENT = {
    "v": 1, "id": "01a00000-0000-7000-8000-000000000000", "time": "2026-01-01T00:00:00.000000Z", "source": "replay",
    "project": "p", "agent": "a", "session": "s",
}  # fmt: skip
WHO = ("time", "project", "agent", "session")
TICK = timedelta(microseconds=1)
MAX_LINE = 1_000_000
"""Bytes: what a line becomes must fit into an event, which is at most 1 MiB."""


@dataclass(frozen=True)
class Recorded:
    """One line: where it stands (from 1) and what it says, in our names. `when`: its time."""

    line: int
    when: datetime
    project: str
    agent: str
    session: str
    fields: dict[str, Any]


@dataclass
class Survey:
    """What a first reading of the file found. Names are as in the file; `first` and `last` are line numbers."""

    sha256: str = ""
    lines: int = 0
    actions: int = 0
    begins: dict[tuple[str, str], Recorded] = field(default_factory=dict)
    ends: dict[tuple[str, str], Recorded] = field(default_factory=dict)
    agents: dict[str, str] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """The name of the replay, in every record's `banksman-replay` header."""
        return f"replay-{self.sha256[:12]}"


def survey(path: Path) -> Survey:
    """Read the whole file once. InvalidInput names the first line that is not an action, before anything is sent.

    The digest is that of the uncompressed content: a recording and its .gz are the same recording.
    """
    found, digest = Survey(), hashlib.sha256()
    for number, raw in _lines(path):
        digest.update(raw)
        found.lines = number
        if not raw.strip():
            continue
        action = parse_line(number, raw)
        found.actions += 1
        owner = found.agents.setdefault(action.agent, action.project)
        if owner != action.project:
            raise InvalidInput(f"{action.agent} is in {owner} and in {action.project}", field=f"line {number}: project")
        key = (action.agent, action.session)
        found.begins.setdefault(key, action)
        found.ends[key] = action
    if not found.actions:
        raise InvalidInput(f"{path} holds no action")
    found.sha256 = digest.hexdigest()
    return found


def read(path: Path) -> Iterator[Recorded]:
    """The actions again, one by one."""
    for number, raw in _lines(path):
        if raw.strip():
            yield parse_line(number, raw)


def parse_line(number: int, raw: bytes) -> Recorded:
    """One line -> an action. InvalidInput: the line and the field that is wrong."""
    where = f"line {number}"
    try:
        given = parse(raw)
    except InvalidInput as error:
        raise InvalidInput(str(error), field=where) from None
    if not isinstance(given, dict):
        raise InvalidInput("is not a JSON object", field=where)
    fields: dict[str, Any] = {}
    for name, value in given.items():
        ours = str(ALIASES.get(name, name))
        if ours in fields:
            raise InvalidInput(f"is there as {name} and under another name", field=f"{where}: {ours}")
        if ours not in DROPPED and value is not None and not (ours in ("resource", "branch") and value == ""):
            fields[ours] = value
    for name in (*WHO, "service", "action"):
        value = fields.get(name)
        if not isinstance(value, str) or not value:
            problem = "is missing" if value is None else "must be a text that is not empty"
            raise InvalidInput(problem, field=f"{where}: {name}")
    fields.setdefault("status", "ok")
    if fields["status"] not in ("ok", "error", "denied"):
        raise InvalidInput("must be ok, error or denied", field=f"{where}: status")
    project, agent, session = (fields.pop(name) for name in WHO[1:])
    when = _time(fields.pop("time"), where)
    _check(fields, where)
    return Recorded(number, when, project, agent, session, fields)


def _check(fields: dict[str, Any], where: str) -> None:
    """InvalidInput: a field that the events of this line could not have, so that it is said before anything is sent."""
    intent, outcome, extra = _parts(fields)
    for kind, own in (("tool.call", extra | intent), ("tool.result", outcome)):
        try:
            codec.validate(_SOME_EVENT | {"kind": kind} | own, Topic.ACTIONS)
        except InvalidInput as error:
            raise InvalidInput(error.message, field=f"{where}: {error.field}") from None


def _parts(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What belongs to the intent, what to the outcome, and what is nobody's: it is kept with the intent."""
    known = {*CALL_FIELDS, *RESULT_FIELDS, "reason"}
    return (
        {name: fields[name] for name in CALL_FIELDS if name in fields},
        {name: fields[name] for name in RESULT_FIELDS if name in fields},
        {name: value for name, value in fields.items() if name not in known},
    )


def _time(text: str, where: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is not an ISO 8601 time", field=f"{where}: time") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with open(path, "rb") as file, _unpacked(file) as text:
            number = 0
            while raw := text.readline(MAX_LINE + 1):
                number += 1
                if len(raw) > MAX_LINE:
                    raise InvalidInput(f"is longer than {MAX_LINE:,} bytes", field=f"line {number}")
                yield number, raw
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from None


def _unpacked(file: BinaryIO) -> BinaryIO:
    """What is in a gzip file, or the file itself when it is none."""
    start = file.read(2)
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if start == b"\x1f\x8b" else file  # type: ignore[return-value]  # it is one


# ── ids ──


def record_id(sha256: str, line: int, kind: str, when: datetime) -> str:
    """A UUIDv7 (RFC 9562) of the event's own millisecond, then the line (32 bits), then 42 bits of a digest of file, line and
    kind. So ids of one recording sort as its lines do, also where two have the same time.
    """
    ms = int((when - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1))
    told = int.from_bytes(hashlib.sha256(f"{sha256} {line} {kind}".encode()).digest()[:8], "big") >> 22
    tail = (line & 0xFFFFFFFF) << 42 | told
    number = max(ms, 0) << 80 | 0x7 << 76 | (tail >> 62) << 64 | 0b10 << 62 | tail & (1 << 62) - 1
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


# ── names ──


def map_names(names: set[str]) -> dict[str, str]:
    """Names that are not allowed -> names that are. Two that would become the same get a digest of their own each."""
    changed = {name: _allowed(name) for name in names if not is_name(name)}
    counted = Counter([name for name in names if name not in changed] + list(changed.values()))
    twice = {name for name, times in counted.items() if times > 1}
    return {
        name: f"{made[:119]}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
        if made in twice
        else made
        for name, made in sorted(changed.items())
    }


def _allowed(name: str) -> str:
    """`/` becomes `:`, everything else that is not allowed `_`; what does not begin with a letter or digit gets an `x`."""
    made = re.sub(r"[^A-Za-z0-9._@:-]", "_", name.replace("/", ":"))[:128]
    return made if made[:1].isalnum() and made.isascii() else f"x{made}"[:128]


# ── events ──


@dataclass(frozen=True)
class Names:
    """What the names of a recording are called when it is replayed; names that are allowed stay."""

    projects: dict[str, str]
    agents: dict[str, str]
    sessions: dict[tuple[str, str], str]

    @classmethod
    def of(cls, found: Survey) -> Names:
        """The names of a whole recording. A session belongs to its agent: two agents may use the same id."""
        sessions: dict[tuple[str, str], str] = {}
        by_agent: dict[str, set[str]] = {}
        for agent, session in found.begins:
            by_agent.setdefault(agent, set()).add(session)
        for agent, ids in by_agent.items():
            sessions.update({(agent, old): new for old, new in map_names(ids).items()})
        return cls(map_names(set(found.agents.values())), map_names(set(found.agents)), sessions)

    def who(self, action: Recorded) -> dict[str, str]:
        """`project`, `agent` and `session` of an action."""
        return {
            "project": self.projects.get(action.project, action.project),
            "agent": self.agents.get(action.agent, action.agent),
            "session": self.sessions.get((action.agent, action.session), action.session),
        }


@dataclass(frozen=True)
class Script:
    """What one line becomes: events before the question, the question to `decide`, events after it."""

    before: list[dict[str, Any]]
    question: dict[str, Any]
    after: list[dict[str, Any]]


def script(action: Recorded, found: Survey, names: Names) -> Script:
    """The events of a line. A session's first line opens it, its last one closes it.

    The result says what the recording says happened, whatever is decided now: the decision is what would have been
    answered, not what was enforced then.
    """
    who = names.who(action)
    ended = action.when + timedelta(milliseconds=_number(action.fields.get("duration_ms")))
    call = _id(found, action, "tool.call")

    def event(kind: str, when: datetime, /, **more: Any) -> dict[str, Any]:
        head = {"v": 1, "id": _id(found, action, kind), "time": rfc3339(when), "kind": kind, **who}
        return head | {"source": f"replay#{found.run[7:]}"} | more

    intent, outcome, extra = _parts(action.fields)
    question = {
        "id": _id(found, action, "decision"),
        "call": call,
        "time": rfc3339(action.when),
        **who,
        **{name: action.fields[name] for name in QUESTION_FIELDS if name in action.fields},
    }
    key = (action.agent, action.session)
    # The two that are not in the recording stand a microsecond outside of it, so that sorting by time keeps them there.
    opens = [event("session.started", action.when - TICK)] if found.begins[key].line == action.line else []
    closes = [event("session.ended", ended + TICK)] if found.ends[key].line == action.line else []
    return Script(
        [*opens, event("tool.call", action.when, call=call, **extra, **intent)],
        question,
        [event("tool.result", ended, call=call, parent=call, **outcome), *closes],
    )


def _id(found: Survey, action: Recorded, kind: str) -> str:
    return record_id(found.sha256, action.line, kind, action.when)


def _number(value: Any) -> float:
    return (
        float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12 else 0.0
    )
