"""The policy file as it is written: pydantic models, strict, unknown keys refused.

Only what is enforced today stands here. What the format will have later (`when`, groups of agents, `use`, schedules)
is an unknown key, and a file that uses it is refused rather than half obeyed.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

from banksman.events import is_name
from banksman.policy.globs import Custom, bad_pattern
from banksman.policy.normal import MAX_ACTION, MAX_BRANCH, MAX_RESOURCE, MAX_SERVICE, bad_text
from banksman.policy.rules import GUARDRAILS, OnAlert

MAX_PATTERNS = 1000
_DURATION = re.compile(r"([1-9][0-9]{0,6})(s|m|h|d)").fullmatch
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = 30 * 86400


def _name(value: str) -> str:
    if not is_name(value):
        raise ValueError(
            "must begin with a letter or digit and hold up to 128 letters, digits and . _ @ : -"
            + ("; groups of agents are not supported yet" if "*" in value or "?" in value else "")
        )
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
    if value == GUARDRAILS:
        raise ValueError(f"no agent may be called {GUARDRAILS}: the ids of the project's guardrails begin with it")
    return _name(value)


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


Name = Annotated[str, AfterValidator(_name)]
AgentName = Annotated[str, AfterValidator(_agent_name)]
Text = Annotated[str, Field(max_length=256), AfterValidator(_text)]
Service = Annotated[str, Field(max_length=MAX_SERVICE), AfterValidator(_service)]
Duration = Annotated[int, BeforeValidator(_seconds), PlainSerializer(_duration)]
Zone = Annotated[str, Field(max_length=64), AfterValidator(_zone)]


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

    @model_validator(mode="after")
    def _patterns_are_right(self) -> NeverRule:
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

    never: list[NeverRule] = []
    require_approval: list[ApprovalRule] = []


class AgentPart(_Part):
    """One agent."""

    owner: Text | None = None
    allow: list[AllowRule] = []
    require_approval: list[ApprovalRule] = []
    never: list[NeverRule] = []
    budget: BudgetPart | None = None
    detect: DetectPart = DetectPart()


class PolicyFile(_Part):
    """A whole file."""

    project: Name
    version: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    owner: Text | None = None
    mode: Literal["enforce", "shadow"] = "enforce"
    guardrails: GuardrailsPart = GuardrailsPart()
    agents: dict[AgentName, AgentPart]
    notify: NotifyPart | None = None
