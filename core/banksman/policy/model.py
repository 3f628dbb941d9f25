"""The policy file as it is written: pydantic models, strict, unknown keys refused."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from banksman.events import is_name
from banksman.policy import cel
from banksman.policy.conditions import Condition, ConditionError, Expr, bad_attribute, both, one_number, parse, plain
from banksman.policy.expr import never_an_action, strict
from banksman.policy.expr_text import MAX_EXPR
from banksman.policy.globs import Custom, bad_pattern, has_wildcard
from banksman.policy.nearest import nearest
from banksman.policy.normal import MAX_ACTION, MAX_BRANCH, MAX_RESOURCE, MAX_SERVICE, bad_text
from banksman.policy.rules import FREEZE, GUARDRAILS, USE, Mode, OnAlert
from banksman.policy.schedules import DAYS

MAX_PATTERNS = 1000
MAX_NAME, MAX_NAME_WILDCARDS = 128, 4
DAY_MINUTES = 24 * 60
CONDITION = "a condition"
"""Stands in the schema that pydantic makes for what `policy.schema` puts there."""
RESERVED = frozenset({GUARDRAILS, FREEZE, USE})
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}").fullmatch
_CLOCK = re.compile(r"([0-2][0-9]):([0-5][0-9])").fullmatch
_DURATION = re.compile(r"([1-9][0-9]{0,6})(s|m|h|d)").fullmatch
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = 30 * 86400


def _name(value: str) -> str:
    if not is_name(value):
        raise ValueError("must begin with a letter or digit and hold up to 128 letters, digits and . _ @ : -")
    return value


def _text(value: str) -> str:
    wrong = bad_text(value)
    if wrong:
        raise ValueError(wrong)
    return value


def _service(value: str) -> str:
    if "*" in value or "?" in value:
        raise ValueError("a service is named exactly; wildcards stand in actions, resources and branches")
    return _text(value)


def _agent_name(value: str) -> str:
    if value in RESERVED:
        raise ValueError(f"no agent may be called {value}: ids of rules begin with it")
    if has_wildcard(value):
        if not is_name(value.replace("*", "x").replace("?", "x")) or len(value) > MAX_NAME:
            raise ValueError("must be a name with * or ? in it, such as claude-invoice-*")
        if "**" in value or value.count("*") + value.count("?") > MAX_NAME_WILDCARDS:
            raise ValueError(f"holds ** or more than {MAX_NAME_WILDCARDS} wildcards")
        return value
    return _name(value)


def _schedule_name(value: str) -> str:
    if not _WORD(value):
        raise ValueError("must be a word of letters, digits, - and _, such as office-hours")
    return value


def _minute(value: object) -> object:
    found = _CLOCK(value) if isinstance(value, str) else None
    if found is None or (minute := int(found[1]) * 60 + int(found[2])) > DAY_MINUTES:
        raise ValueError('must be a time of the day in quotes, from "00:00" to "24:00"')
    return minute


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _local(value: object) -> object:
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        found = None
    if found is None or found.tzinfo is not None:
        raise ValueError(
            'must be a day or a moment by the schedule\'s own clock, in quotes: "2026-12-19", "2026-12-19T18:00"'
        )
    return found


def _day(value: str) -> str:
    if value not in DAYS:
        raise ValueError(f"must be one of {', '.join(DAYS)}{nearest(value, DAYS)}")
    return value


def _claim(value: str) -> str:
    wrong = bad_attribute(value)
    root, dot, _ = value.partition(".")
    if not wrong and (root not in {"subject", "resource", "context"} or not dot):
        wrong = "is nothing that can be claimed: subject.…, resource.… and context.… are"
    if wrong:
        raise ValueError(wrong)
    return value


def _condition(value: object) -> object:
    """Only its form; the service that it belongs to is known to the rule."""
    if not isinstance(value, dict):
        raise ConditionError("must be a mapping such as {args.amount: {lt: 500}}", ())
    return value


def _expression(value: str) -> str:
    cel.compiled(value.strip())
    return value.strip()


def _seconds(value: object) -> object:
    found = _DURATION(value) if isinstance(value, str) else None
    if found is None or int(found[1]) * _SECONDS[found[2]] > _LONGEST:
        raise ValueError("must be a duration of at most 30 days, such as 90s, 15m, 2h or 1d")
    return int(found[1]) * _SECONDS[found[2]]


def _duration(seconds: int) -> str:
    for unit in "dhm":
        if seconds % _SECONDS[unit] == 0:
            return f"{seconds // _SECONDS[unit]}{unit}"
    return f"{seconds}s"


def _zone(value: str) -> str:
    if value == "UTC":  # the one zone that needs no time zone data on the machine
        return value
    try:
        ZoneInfo(value)
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise ValueError("is not a time zone that this machine knows, such as Europe/Berlin") from None
    return value


def _as_set(values: list[str]) -> list[str]:
    """Order and repetition in these lists mean nothing, so they are not part of the policy's version."""
    return sorted(set(values))


def _in_one_form(value: Any) -> Any:
    return None if value is None else plain(parse(value, None))


def _attribute(value: Any) -> Any:
    several = value if isinstance(value, list) else [value]
    if not all(isinstance(one, bool | int | float | str) for one in several) or len(several) > MAX_PATTERNS:
        raise ValueError(f"must be text, a number, true or false, or a list of at most {MAX_PATTERNS} of these")
    made = [one if isinstance(one, bool | str) else one_number(one) for one in several]
    return made if isinstance(value, list) else made[0]


Name = Annotated[str, AfterValidator(_name)]
SetName = Annotated[str, AfterValidator(_schedule_name)]
AgentName = Annotated[str, AfterValidator(_agent_name)]
Text = Annotated[str, Field(max_length=256), AfterValidator(_text)]
Service = Annotated[str, Field(max_length=MAX_SERVICE), AfterValidator(_service)]
Duration = Annotated[
    int,
    BeforeValidator(_seconds),
    PlainSerializer(_duration),
    WithJsonSchema({"type": "string", "pattern": "^[1-9][0-9]{0,6}[smhd]$"}),
]
Zone = Annotated[str, Field(max_length=64), AfterValidator(_zone)]
Minute = Annotated[
    int,
    BeforeValidator(_minute),
    PlainSerializer(_clock),
    WithJsonSchema({"type": "string", "pattern": "^[0-2][0-9]:[0-5][0-9]$"}),
]
Local = Annotated[
    datetime, BeforeValidator(_local), PlainSerializer(datetime.isoformat), WithJsonSchema({"type": "string"})
]
Day = Annotated[str, AfterValidator(_day), WithJsonSchema({"enum": list(DAYS)})]
_SCALAR = {"type": ["string", "number", "boolean"]}
Attribute = Annotated[
    Any, AfterValidator(_attribute), WithJsonSchema({"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR}]})
]
Claim = Annotated[str, AfterValidator(_claim)]
When = Annotated[
    Any, BeforeValidator(_condition), PlainSerializer(_in_one_form), WithJsonSchema({"$comment": CONDITION})
]
Expression = Annotated[
    str,
    Field(
        max_length=MAX_EXPR,
        description="A condition in CEL: args.amount * 2 < 500. Needs the extra `cel`.",
    ),
    AfterValidator(_expression),
]

_PATTERNS = (Field(min_length=1, max_length=MAX_PATTERNS), AfterValidator(_as_set))
Actions = Annotated[list[Annotated[str, Field(max_length=MAX_ACTION)]], *_PATTERNS]
Resources = Annotated[list[Annotated[str, Field(max_length=MAX_RESOURCE)]], *_PATTERNS]
Branches = Annotated[list[Annotated[str, Field(max_length=MAX_BRANCH)]], *_PATTERNS]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ApproversPart(_Part):
    """`approvers: {any: [release-managers], min: 1, expires: 15m}`."""

    any: Annotated[list[Name], Field(min_length=1, max_length=100), AfterValidator(_as_set)] | None = None
    min: Annotated[int, Field(ge=1, le=100)] = 1
    expires: Duration = 900


class NeverRule(_Part):
    """A rule under `never`: what it names and nothing else."""

    service: Service
    actions: Actions
    resources: Resources | None = None
    branches: Branches | None = None
    when: When = None
    expr: Expression | None = None
    mode: Mode = "enforce"

    @property
    def condition(self) -> Condition | None:
        """What `when` and `expr` say."""
        when = None if self.when is None else parse(self.when, self.service)
        return both(when, None if self.expr is None else Expr(self.expr, strict(self.expr).attributes))

    @model_validator(mode="after")
    def _patterns_are_right(self) -> NeverRule:
        if self.when is not None:
            try:
                parse(self.when, self.service)
            except ConditionError as error:
                raise ConditionError(str(error), ("when", *error.path)) from None
        if self.expr is not None and (never := never_an_action(self.expr, self.service)) is not None:
            raise ConditionError(never, ("expr",))
        for custom, key in ((Custom.ACTION, "actions"), (Custom.RESOURCE, "resources"), (Custom.BRANCH, "branches")):
            for pattern in getattr(self, key) or ():
                wrong = bad_pattern(custom, self.service, pattern)
                if wrong:
                    raise PatternError(key, pattern, wrong)
        return self


class ApprovalRule(NeverRule):
    """A rule under `require_approval`."""

    approvers: ApproversPart | None = None


class AllowRule(NeverRule):
    """A rule under `allow`."""

    tier: Literal[1, 2] | None = None


class Guard(NeverRule):
    """A guardrail under `never`. No shadow covers it."""

    mode: Literal["enforce"] = "enforce"


class ApprovalGuard(ApprovalRule):
    """A guardrail under `require_approval`."""

    mode: Literal["enforce"] = "enforce"


class PatternError(ValueError):
    """A pattern that cannot be used, with the key of the list that it stands in."""

    def __init__(self, key: str, pattern: str, wrong: str) -> None:
        super().__init__(f"{pattern!r} {wrong}")
        self.key, self.pattern = key, pattern


class BudgetPart(_Part):
    """`budget: {daily_tokens: 500000, daily_cost_usd: 40, …}`."""

    daily_tokens: Annotated[int, Field(ge=1, le=2**53 - 1)] | None = None
    daily_cost_usd: Annotated[float, Field(ge=0.01, le=1e9)] | None = None
    alert_threshold: Annotated[float, Field(ge=0.01, le=1)] = 0.8
    on_exhausted: Literal["deny", "approve", "alert"] = "deny"
    timezone: Zone = "UTC"

    @model_validator(mode="after")
    def _limits_something(self) -> BudgetPart:
        if self.daily_tokens is None and self.daily_cost_usd is None:
            raise ValueError("limits nothing: give daily_tokens or daily_cost_usd")
        return self


class OnAlertPart(_Part):
    """`{on_alert: alert}`: what a detector's alert does besides telling a human."""

    on_alert: OnAlert = "alert"


class DetectPart(_Part):
    """`detect: {loops: …, anomalies: …}`."""

    loops: OnAlertPart = OnAlertPart()
    anomalies: OnAlertPart = OnAlertPart()


class NotifyPart(_Part):
    """`notify: {channel: "#payments-agents"}`."""

    channel: Text


class GuardrailsPart(_Part):
    """Rules for every agent of the project, which no rule of an agent can lift."""

    never: list[Guard] = []
    require_approval: list[ApprovalGuard] = []


class RulesPart(_Part):
    """A set of rules that agents share by `use`."""

    allow: list[AllowRule] = []
    require_approval: list[ApprovalRule] = []
    never: list[NeverRule] = []


class AgentPart(RulesPart):
    """One agent, or all whose names a pattern matches."""

    owner: Text | None = None
    mode: Mode | None = None
    use: Annotated[list[SetName], Field(max_length=100), AfterValidator(_as_set)] = []
    budget: BudgetPart | None = None
    detect: DetectPart = DetectPart()


class SchedulePart(_Part):
    """`{days: [mon, fri], from: "09:00", to: "18:00", begins: "2026-12-19", ends: "2027-01-04", timezone: Europe/Berlin}`."""

    days: Annotated[list[Day], Field(min_length=1), AfterValidator(_as_set)] | None = None
    since: Annotated[Minute | None, Field(alias="from")] = None
    until: Annotated[Minute | None, Field(alias="to")] = None
    begins: Local | None = None
    ends: Local | None = None
    timezone: Zone = "UTC"

    @model_validator(mode="after")
    def _bounds_something(self) -> SchedulePart:
        if (
            self.days is None
            and self.since is None
            and self.until is None
            and self.begins is None
            and self.ends is None
        ):
            raise ValueError("bounds nothing: give days, from, to, begins or ends")
        if self.begins is not None and self.ends is not None and self.begins >= self.ends:
            raise ValueError("ends before it begins")
        if self.since == DAY_MINUTES:
            raise ValueError('from is the end of the day: write "00:00", and the next day')
        if self.since is not None and self.since == (self.until or 0):
            raise ValueError("from and to are the same: leave both out for the whole day")
        return self


class FreezePart(_Part):
    """`{during: [christmas], services: [git], then: deny}`: meanwhile nothing is changed, by no agent."""

    during: Annotated[list[SetName], Field(min_length=1, max_length=100), AfterValidator(_as_set)]
    services: Annotated[list[Service], Field(min_length=1, max_length=100), AfterValidator(_as_set)] | None = None
    then: Literal["deny", "approve"] = "deny"
    approvers: ApproversPart | None = None

    @model_validator(mode="after")
    def _asks_whom(self) -> FreezePart:
        if self.approvers is not None and self.then == "deny":
            raise ValueError("approvers are asked only with `then: approve`")
        return self


class PolicyFile(_Part):
    """A whole file."""

    project: Name
    version: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    owner: Text | None = None
    mode: Mode = "enforce"
    schedules: dict[SetName, SchedulePart] = {}
    freeze: Annotated[list[FreezePart], Field(max_length=100)] = []
    rules: dict[SetName, RulesPart] = {}
    guardrails: GuardrailsPart = GuardrailsPart()
    agents: dict[AgentName, AgentPart]
    subjects: dict[Text, dict[Text, dict[Text, Attribute]]] = {}
    claims: Annotated[list[Claim], Field(max_length=100), AfterValidator(_as_set)] = []
    notify: NotifyPart | None = None
