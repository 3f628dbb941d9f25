"""A policy for one agent, from what it really did: least privilege, generalised only where there is reason to.

    recorded operations ─► those that were allowed, or that a human was asked about ─► per service and action: where
      ─► few values are listed, many under one parent become `parent/*` ─► actions with the same places share a rule ─► YAML

Only what a policy let pass is suggested: an agent that asks for something again and again does not get it by that.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from banksman.policy.catalogue import SERVICES, is_read_only
from banksman.policy.compile import CompiledPolicy
from banksman.policy.globs import MAX_WILDCARDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from banksman.policy.backtest import Recorded
    from banksman.policy.rules import Policy, Rule

LISTED = 8
"""So many values are listed as they are."""
ENOUGH = 5
"""So many distinct values under one parent make a pattern of it."""

_WILD = re.compile(r"[\[\]{}!*?]")
_STEM = re.compile(r"[A-Za-z]{2,}[_-]").match


class Place(NamedTuple):
    """Where a rule holds. None: anywhere; `left_out`: of resource and branch those that the operation did not name."""

    resources: tuple[str, ...] | None
    branches: tuple[str, ...] | None
    left_out: tuple[str, ...]


class Grant(NamedTuple):
    """A rule to be, and what speaks for it."""

    effect: str
    service: str
    actions: tuple[str, ...]
    place: Place
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


def suggest(project: str, agent: str, recorded: Sequence[Recorded], current: Policy | None = None) -> Suggestion:
    """`current`: the policy that is in force, for its owner and budget, and for what of it was never used."""
    grants = (
        *_grants("require_approval", [one for one in recorded if one.said == "approve"]),
        *_grants("allow", [one for one in recorded if one.said == "allow"]),
    )
    unused = _unused(agent, recorded, current) if current is not None else ()
    refused: dict[str, int] = defaultdict(int)
    for one in recorded:
        if one.said == "deny":
            refused[" ".join(part for part in (one.service, one.action, one.resource, one.branch) if part)] += one.times
    denied = tuple(sorted(refused.items(), key=lambda item: (-item[1], item[0])))
    return Suggestion(_text(project, agent, grants, unused, current), grants, unused, denied)


def generalised(values: Iterable[str]) -> tuple[str, ...]:
    """Patterns for values: themselves where they are few; else one pattern for many under the same parent."""
    distinct = set(values)
    if len(distinct) <= LISTED:
        return tuple(sorted(map(_literal, distinct)))
    by_parent: dict[str, set[str]] = defaultdict(set)
    for value in distinct:
        by_parent[_parent(value)].add(value)
    patterns: set[str] = set()
    for parent, several in by_parent.items():
        patterns |= {f"{_literal(parent)}*"} if parent and len(several) >= ENOUGH else set(map(_literal, several))
    if len(patterns) > LISTED:
        patterns = _lifted(patterns)
    return tuple(sorted(patterns))


def _lifted(patterns: set[str]) -> set[str]:
    """`a/b/*`, `a/c/*`, `a/d/x` …: where many share all but their last two segments, everything below that."""
    above: dict[str, set[str]] = defaultdict(set)
    for pattern in patterns:
        head, slash, _ = pattern.removesuffix("/*").rpartition("/")
        above[head if slash and not _WILD.search(head) else ""].add(pattern)
    found: set[str] = set()
    for head, several in above.items():
        found |= {f"{head}/**"} if head and len(several) >= ENOUGH else several
    return found


def _parent(value: str) -> str:
    """What a pattern for it and its like would begin with; "": it has no like."""
    head, slash, _ = value.rpartition("/")
    if slash and head:
        return f"{head}/"
    stem = _STEM(value)
    return stem[0] if stem else ""


def _literal(value: str) -> str:
    """A pattern that matches the value: `?` stands for what would be read as more than itself."""
    if len(_WILD.findall(value)) > MAX_WILDCARDS:
        return f"{_WILD.split(value)[0]}*"
    return _WILD.sub("?", value)


def _grants(effect: str, recorded: Sequence[Recorded]) -> Iterable[Grant]:
    by_action: dict[tuple[str, str, tuple[str, ...]], list[Recorded]] = defaultdict(list)
    for one in recorded:
        left_out = tuple(
            name
            for name, value in (("resource", one.resource), ("branch", one.branch))
            if value is None and _minds(one.service, one.action, name)
        )
        by_action[one.service, one.action, left_out].append(one)
    by_place: dict[tuple[str, Place], list[tuple[str, list[Recorded]]]] = defaultdict(list)
    for (service, action, left_out), several in sorted(by_action.items()):
        by_place[service, _place(several, left_out)].append((action, several))
    for (service, place), actions in by_place.items():
        every = [one for _, several in actions for one in several]
        yield Grant(
            effect, service, tuple(action for action, _ in actions), place, sum(one.times for one in every), len(every),
            max(one.days for one in every),
        )  # fmt: skip


def _minds(service: str, action: str, field: str) -> bool:
    """Whether that an operation did not name its resource or branch should stand in the rule: a rule without is about any."""
    known = SERVICES.get(service)
    if field == "branch" and (known is None or not known.branches):
        return False
    return not is_read_only(service, action)


def _place(several: Sequence[Recorded], left_out: tuple[str, ...]) -> Place:
    resources = {one.resource for one in several if one.resource is not None}
    branches = {one.branch for one in several if one.branch is not None}
    return Place(
        generalised(resources) if resources and None not in {one.resource for one in several} else None,
        generalised(branches) if branches and None not in {one.branch for one in several} else None,
        left_out,
    )


def _unused(agent: str, recorded: Sequence[Recorded], current: Policy) -> tuple[Rule, ...]:
    compiled = CompiledPolicy(current)
    used: set[str] = set()
    for one in recorded:
        used.update(compiled.decide(agent, one.service, one.action, one.resource, one.branch).ruling.matched)
    known = current.of(agent)
    return tuple(rule for rule in (known.rules if known else ()) if rule.effect != "never" and rule.id not in used)


# ── as text ──


def _text(project: str, agent: str, grants: Sequence[Grant], unused: Sequence[Rule], current: Policy | None) -> str:
    lines = [f"project: {_flow(project)}"]
    known = current.of(agent) if current is not None else None
    owner = current.owner_of(agent) if current is not None else None
    lines += [f"owner: {_flow(owner)}"] if owner else []
    lines += ["agents:", f"  {_flow(agent)}:{'' if grants or (known and known.budget) else ' {}'}"]
    if known is not None and known.budget is not None:
        said = {"daily_tokens": known.budget.daily_tokens, "daily_cost_usd": known.budget.daily_cost_usd}
        lines.append(f"    budget: {_flow({name: value for name, value in said.items() if value is not None})}")
    for effect in ("allow", "require_approval"):
        of_it = [grant for grant in grants if grant.effect == effect]
        lines += [f"    {effect}:"] if of_it else []
        for grant in sorted(of_it, key=lambda one: (one.service, one.actions)):
            lines += _rule(grant)
    lines += ["    # never used:"] if unused else []
    lines += [f"    #   {rule.id}: {rule.service} {', '.join(rule.actions)}" for rule in unused]
    return "\n".join(lines) + "\n"


def _rule(grant: Grant) -> Iterable[str]:
    operations = "one operation" if grant.operations == 1 else f"{grant.operations} operations"
    yield f"      # {grant.times:,} times, {operations}, on up to {grant.days} days: confidence {grant.confidence}"
    yield f"      - service: {_flow(grant.service)}"
    yield f"        actions: {_flow(list(grant.actions))}"
    if grant.place.resources is not None:
        yield f"        resources: {_flow(list(grant.place.resources))}"
    if grant.place.branches is not None:
        yield f"        branches: {_flow(list(grant.place.branches))}"
    if grant.place.left_out:
        yield f"        when: {_flow({name: {'exists': False} for name in grant.place.left_out})}"


def _flow(value: Any) -> str:
    """On one line, in quotes where YAML would take it for something else."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").rstrip("\n")
