"""A policy for one agent, from what it really did: least privilege, generalised only where there is reason to.

    recorded operations ─► those that were allowed, or that a human was asked about ─► per service, action and the rule that let
      them pass: where ─► few values are listed, many under one parent become `parent/*` ─► the same places share a rule ─► YAML

Only what a policy let pass is suggested: an agent that asks for something again and again does not get it by that. And nothing
is lost of what holds it: conditions, tiers and approvers of the rules that it was let pass by, `never`, guardrails, freezes.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from banksman.policy.catalogue import SERVICES, is_read_only
from banksman.policy.compile import names_action
from banksman.policy.conditions import apart, plain
from banksman.policy.globs import MAX_WILDCARDS, Custom, compile_patterns
from banksman.policy.match import allow_tier, verb_tier
from banksman.policy.verdict import ASK

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from banksman.policy.backtest import Recorded
    from banksman.policy.rules import AgentPolicy, Policy, Rule

LISTED = 8
"""So many values are listed as they are."""
ENOUGH = 5
"""So many distinct values under one parent make a pattern of it."""

_WILD = re.compile(r"[\[\]{}!*?]")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./@*?-]*").fullmatch
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
_DATE = re.compile(r"(?<=/)(?:19|20)\d\d(?:[-_/]?\d\d){0,2}(?=/)")
_STEM = re.compile(r"[A-Za-z]{2,}[_-]").match


class Grant(NamedTuple):
    """A rule to be, as it is written, and what speaks for it."""

    effect: str
    rule: dict[str, Any]
    times: int
    operations: int
    days: int

    @property
    def confidence(self) -> str:
        """How much there is to go by: `high`, `medium`, `low`."""
        if self.days >= 5 and self.times >= 20:
            return "high"
        return "medium" if self.days >= 2 or self.times >= 20 else "low"


class Suggestion(NamedTuple):
    """The policy as YAML, and what it was made of. `unused`: rules of the policy in force that nothing was asked under;
    `denied`: (operation, times) of what was asked and is not in it.
    """

    text: str
    grants: tuple[Grant, ...]
    unused: tuple[Rule, ...]
    denied: tuple[tuple[str, int], ...]


def suggest(
    project: str, agent: str, recorded: Sequence[Recorded], current: Policy | None = None,
    document: Mapping[str, Any] | None = None,
) -> Suggestion:  # fmt: skip
    """`current`: the policy that is in force, and the `document` that it was made of."""
    known = current.of(agent) if current is not None else None
    rules = [rule for rule in known.rules if not rule.shadow] if known is not None else []
    rules += current.guardrails if current is not None else ()
    by = [_by(one, rules) for one in recorded]
    grants = tuple(
        grant
        for effect, said in (("allow", "allow"), ("require_approval", "approve"))
        for grant in _grants(
            effect,
            [(one, rule) for one, several in zip(recorded, by, strict=True) if one.said == said for rule in several],
        )
    )
    used = {rule.id for several in by for rule in several if rule is not None}
    unused = tuple(rule for rule in rules if rule.effect != "never" and not rule.guardrail and rule.id not in used)
    refused: dict[str, int] = defaultdict(int)
    for one in recorded:
        if one.said == "deny":
            refused[" ".join(part for part in (one.service, one.action, one.resource, one.branch) if part)] += one.times
    denied = tuple(sorted(refused.items(), key=lambda item: (-item[1], item[0])))
    if current is not None and current.owner is not None:
        document = {"owner": current.owner} | dict(document or {})
    never = [written(rule) for rule in rules if rule.effect == "never" and not rule.guardrail]
    return Suggestion(_text(project, agent, grants, never, unused, known, document or {}), grants, unused, denied)


def _by(one: Recorded, rules: Sequence[Rule]) -> Sequence[Rule | None]:
    """The rule that let it pass; one without a condition if there is any, and of such the one whose tier counted, which is the
    highest. Of those that had humans asked all, since each may want others' yes. None: nobody knows of any.
    """
    effect = {"allow": "allow", "approve": "require_approval", "deny": "never"}[one.said]
    found = [rule for rule in rules if rule.effect == effect and rule.service == one.service and _covers(rule, one)]
    found.sort(key=lambda rule: (rule.when is not None, -allow_tier(rule, one.service, one.action)))
    if effect == "require_approval" and found:
        return tuple({json.dumps(_held(rule), sort_keys=True): rule for rule in reversed(found)}.values())
    return found[:1] or (None,)


def _covers(rule: Rule, one: Recorded) -> bool:
    """Whatever its condition says."""
    if not names_action(rule, one.action):
        return False
    for custom, patterns, value in (
        (Custom.RESOURCE, rule.resources, one.resource), (Custom.BRANCH, rule.branches, one.branch),
    ):  # fmt: skip
        if patterns is not None and (value is None or not compile_patterns(custom, one.service, patterns)(value)):
            return False
    return True


def written(rule: Rule) -> dict[str, Any]:
    """A rule as it stands in a file."""
    said: dict[str, Any] = {"service": rule.service, "actions": list(rule.actions)}
    said |= {"resources": list(rule.resources)} if rule.resources is not None else {}
    said |= {"branches": list(rule.branches)} if rule.branches is not None else {}
    return said | _held(rule)


def _held(rule: Rule | None) -> dict[str, Any]:
    """What of a rule goes over to whatever is made of it."""
    if rule is None:
        return {}
    when, expr = apart(rule.when)
    said: dict[str, Any] = {"when": plain(when)} if when is not None else {}
    said |= {"expr": expr.text} if expr is not None else {}
    said |= {"tier": rule.tier} if rule.tier is not None else {}
    if rule.approvers is not None:
        asked = {"any": list(rule.approvers.any)} if rule.approvers.any else {}
        said["approvers"] = asked | {"min": rule.approvers.min, "expires": f"{rule.approvers.expires}s"}
    return said


def generalised(values: Iterable[str]) -> tuple[str, ...]:
    """Patterns for values: themselves where they are few; else one pattern for many under the same parent, whatever the date
    is where that is a part of it.
    """
    distinct = set(values)
    if len(distinct) <= LISTED:
        return tuple(sorted(set(map(_literal, distinct))))
    by_parent: dict[str, set[str]] = defaultdict(set)
    for value in distinct:
        by_parent[_parent(value)].add(value)
    of_any_day: dict[str, set[str]] = defaultdict(set)
    for parent in by_parent:
        of_any_day[_undated(parent)].add(parent)
    patterns: set[str] = set()
    for undated, parents in of_any_day.items():
        several = set[str]().union(*(by_parent[parent] for parent in parents))
        if not undated or len(several) < ENOUGH:
            patterns |= set(map(_literal, several))
        elif len(parents) > 1 and len(_WILD.findall(undated)) < MAX_WILDCARDS:  # several dates: there will be others
            patterns |= _of_any_day(undated, {parent: by_parent[parent] for parent in parents})
        else:
            for parent in parents:
                few = len(by_parent[parent]) < ENOUGH
                patterns |= set(map(_literal, by_parent[parent])) if few else {f"{_literal(parent)}*"}
    if len(patterns) > LISTED:
        patterns = _lifted(patterns)
    return tuple(sorted(patterns))


def _of_any_day(undated: str, by_day: Mapping[str, set[str]]) -> set[str]:
    """`reports/20??-??-??/*` for many names; of few, those that were there on several days."""
    days = Counter(value.removeprefix(parent) for parent, several in by_day.items() for value in several)
    if len(days) >= ENOUGH:
        return {f"{undated}*"}
    found: set[str] = set()
    for parent, several in by_day.items():
        for value in several:
            name = value.removeprefix(parent)
            pattern = f"{undated}{_literal(name)}"
            found.add(pattern if days[name] > 1 and len(_WILD.findall(pattern)) <= MAX_WILDCARDS else _literal(value))
    return found


def _lifted(patterns: set[str]) -> set[str]:
    """`a/b/*`, `a/c/*`, `a/d/x` …: where many share all but their last two segments, everything below that."""
    above: dict[str, set[str]] = defaultdict(set)
    for pattern in patterns:
        head, slash, _ = pattern.removesuffix("/*").rpartition("/")
        above[head if slash and not _WILD.search(head) and _is_below_a_host(pattern, head) else ""].add(pattern)
    found: set[str] = set()
    for head, several in above.items():
        found |= {f"{head}/**"} if head and len(several) >= ENOUGH else several
    return found


def _parent(value: str) -> str:
    """What a pattern for it and its like would begin with; "": it has no like."""
    head, slash, _ = value.rpartition("/")
    if slash and head:
        return f"{head}/" if _is_below_a_host(value, head) else ""
    stem = _STEM(value)
    return stem[0] if stem else ""


def _undated(parent: str) -> str:
    """A pattern for it and the same of another date in its century: `?` for each digit. Not `*`, which `etc` is, too."""
    date = _DATE.search(parent)
    if date is None:
        return _literal(parent)
    said = date[0][:2] + re.sub(r"\d", "?", date[0][2:])
    return f"{_literal(parent[: date.start()])}{said}{_literal(parent[date.end() :])}"


def _is_below_a_host(value: str, head: str) -> bool:
    """Whether what is left of a URL still names its host."""
    return "://" not in value or "://" in head


def _literal(value: str) -> str:
    """A pattern that matches the value: `?` stands for what would be read as more than itself."""
    return _WILD.sub("?", value)


def _can_be_named(one: Recorded) -> bool:
    """Whether a pattern can: one that holds more than so many `?` is none."""
    return all(len(_WILD.findall(value)) <= MAX_WILDCARDS for value in (one.action, one.resource, one.branch) if value)


def _grants(effect: str, recorded: Sequence[tuple[Recorded, Rule | None]]) -> Iterable[Grant]:
    by_action: dict[tuple[str, str, tuple[str, ...], str], list[Recorded]] = defaultdict(list)
    for one, rule in recorded:
        left_out = tuple(
            name
            for name, value in (("resource", one.resource), ("branch", one.branch))
            if value is None and _minds(one.service, one.action, name)
        )
        if _can_be_named(one):
            by_action[one.service, one.action, left_out, json.dumps(_held(rule), sort_keys=True)].append(one)
    by_place: dict[str, list[tuple[str, list[Recorded]]]] = defaultdict(list)
    for (service, action, left_out, held), several in sorted(by_action.items()):
        place = {"service": service} | _place(several) | _when(json.loads(held), left_out)
        by_place[json.dumps(place, sort_keys=True)].append((action, several))
    for place_, actions in by_place.items():
        every = [one for _, several in actions for one in several]
        rule_ = json.loads(place_) | {"actions": sorted({_literal(action) for action, _ in actions})}
        days = frozenset[str]().union(*(one.days for one in every))
        yield Grant(effect, rule_, sum(one.times for one in every), len(every), len(days))


def _when(held: dict[str, Any], left_out: tuple[str, ...]) -> dict[str, Any]:
    """With what was left out: a rule that does not name it would be about any."""
    if not left_out:
        return held
    missing = {name: {"exists": False} for name in left_out}
    return held | {"when": {"all": [held["when"], missing]} if "when" in held else missing}


def _minds(service: str, action: str, field: str) -> bool:
    """Whether that an operation did not name its resource or branch should stand in the rule: a rule without is about any."""
    known = SERVICES.get(service)
    if field == "branch" and (known is None or not known.branches):
        return False
    return not is_read_only(service, action)


def _place(several: Sequence[Recorded]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, values in (
        ("resources", [one.resource for one in several]), ("branches", [one.branch for one in several]),
    ):  # fmt: skip
        named = [value for value in values if value is not None]
        if len(named) == len(values):
            found[key] = list(generalised(named))
    return found


# ── as text ──

_KEPT = ("owner", "freeze", "guardrails", "subjects", "claims", "notify")
"""Of the policy in force, what holds for every agent."""
_ORDER = ("service", "actions", "resources", "branches", "when", "expr", "tier", "approvers")


def _text(
    project: str, agent: str, grants: Sequence[Grant], never: Sequence[dict[str, Any]], unused: Sequence[Rule],
    known: AgentPolicy | None, document: Mapping[str, Any],
) -> str:  # fmt: skip
    lines = [f"project: {_flow(project)}"]
    kept = {key: document[key] for key in _KEPT if key in document}
    named = json.dumps([kept, *never, *(grant.rule for grant in grants)])
    schedules = {name: one for name, one in document.get("schedules", {}).items() if json.dumps(name) in named}
    for key, value in (kept | ({"schedules": schedules} if schedules else {})).items():
        lines.append(f"{key}: {_flow(value)}")
    own = _own(known)
    lines += ["agents:", f"  {_flow(agent)}:{'' if grants or never or own else ' {}'}"]
    lines += [f"    {key}: {_flow(value)}" for key, value in own.items()]
    for effect in ("allow", "require_approval"):
        of_it = [grant for grant in grants if grant.effect == effect]
        lines += [f"    {effect}:"] if of_it else []
        for grant in sorted(of_it, key=lambda one: (one.rule["service"], one.rule["actions"])):
            times = "once" if grant.times == 1 else f"{grant.times:,} times"
            operations = "one operation" if grant.operations == 1 else f"{grant.operations:,} operations"
            days = "one day" if grant.days == 1 else f"{grant.days} days"
            lines.append(
                f"      # {times}, {operations}, on {days}: confidence {grant.confidence}, tier {_tiers(grant)}"
            )
            lines += _rule(grant.rule)
    lines += ["    never:"] if never else []
    for rule in never:
        lines += _rule(rule)
    lines += ["    # never used:"] if unused else []
    lines += [f"    #   {rule.id}: {rule.service} {', '.join(rule.actions)}" for rule in unused]
    return "\n".join(lines) + "\n"


def _own(known: AgentPolicy | None) -> dict[str, Any]:
    """Owner, budget, and what an alert does, of the agent's present entry."""
    if known is None:
        return {}
    found: dict[str, Any] = {"owner": known.owner} if known.owner is not None else {}
    if known.budget is not None:
        said = {name: getattr(known.budget, name) for name in known.budget.__struct_fields__}
        found["budget"] = {name: value for name, value in said.items() if value is not None}
    alerts = {"loops": known.on_loop, "anomalies": known.on_anomaly}
    detect = {name: {"on_alert": does} for name, does in alerts.items() if does != "alert"}
    return found | ({"detect": detect} if detect else {})


def _tiers(grant: Grant) -> str:
    """What it proposes: run freely (1), log and alert (2), ask a human (3)."""
    rule = grant.rule
    if grant.effect != "allow":
        return str(ASK)
    if "tier" in rule:
        return str(rule["tier"])
    return " and ".join(sorted({str(verb_tier(rule["service"], action)) for action in rule["actions"]}))


def _rule(rule: Mapping[str, Any]) -> Iterable[str]:
    for at, key in enumerate(key for key in _ORDER if key in rule):
        yield f"      {'- ' if at == 0 else '  '}{key}: {_flow(rule[key])}"


def _flow(value: Any) -> str:
    """On one line, as `document.read` reads it: in quotes where anybody could take it for something else."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_flow(key)}: {_flow(one)}' for key, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, str) and _PLAIN(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
