"""A candidate policy against what was really asked: which recorded decisions would be other ones.

    recorded operations, each with how often and what was said ─► the candidate ─► what moves, by agent, operation and rule

What controls and budgets said is not in it: a candidate says nothing about them. Arguments are those that were recorded, so a
condition about a secret sees what stands in its place.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from banksman.policy.compile import CompiledPolicy
from banksman.policy.conditions import attributes_of
from banksman.policy.holds import NONE, Facts
from banksman.policy.subjects import attributes, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from banksman.policy.rules import Policy
    from banksman.policy.verdict import Outcome

CLAIMED = frozenset({"subject", "resource", "context"})
EXAMPLES = 3
"""Of what moves together, so many are shown."""


class Recorded(NamedTuple):
    """One operation that was asked `times` times and got `said`, in `session` among others. `args`, `at`: where conditions need
    them, and then each is one by itself.
    """

    agent: str
    service: str
    action: str
    resource: str | None
    branch: str | None
    said: Outcome
    times: int
    session: str
    args: Mapping[str, Any] | None = None
    at: float | None = None
    days: frozenset[str] = frozenset()
    """When, by the day (UTC)."""
    subject: str | None = None
    """Whom it was about, as it stands on record."""


class Needs(NamedTuple):
    """What of a recorded decision the conditions of a policy look at besides its operation."""

    args: bool
    time: bool
    subject: bool = False
    claims: bool = False
    """These are on no record: what is decided by them cannot be worked out again."""


class Kind(NamedTuple):
    """What moves together: one agent's operation from one answer to another one, by one rule of the candidate."""

    agent: str
    service: str
    action: str
    before: Outcome
    after: Outcome
    rule: str | None
    reason: str


@dataclass
class Moved:
    """How often, in how many distinct operations, and some of them: (resource, branch, session)."""

    times: int = 0
    operations: int = 0
    examples: list[tuple[str | None, str | None, str]] = field(default_factory=list)


@dataclass
class Report:
    """What came of it. `moved`: by kind, the most frequent first."""

    decisions: int = 0
    operations: int = 0
    agents: set[str] = field(default_factory=set)
    moved: dict[Kind, Moved] = field(default_factory=dict)

    def totals(self) -> Counter[str]:
        """`allow->deny` and so on: how many decisions."""
        found: Counter[str] = Counter()
        for kind, moved in self.moved.items():
            found[f"{kind.before}->{kind.after}"] += moved.times
        return found


def needs(policy: Policy) -> Needs:
    """What has to be known of each recorded decision to put a policy to the test."""
    looked_at = {name.partition(".")[0] for rule in policy.every_rule() for name in attributes_of(rule.when)}
    return Needs(
        "args" in looked_at,
        "time" in looked_at,
        "subject" in looked_at,
        bool(policy.claims) and bool(looked_at & CLAIMED),
    )


def facts_of(policy: Policy, one: Recorded) -> Facts:
    """What conditions look at, as far as it is on record."""
    if one.args is None and one.at is None and one.subject is None:
        return NONE
    subject = None if one.subject is None else attributes(policy, *read(one.subject))
    return Facts(one.args, one.at, subject)


class Backtest:
    """A candidate that is shown recorded decisions, as many at a time as there are."""

    def __init__(self, policy: Policy) -> None:
        self._policy = CompiledPolicy(policy)
        self.report = Report()

    def take(self, several: Iterable[Recorded]) -> None:
        """Ask the candidate about each."""
        report, decide = self.report, self._policy.decide
        for one in several:
            report.decisions += one.times
            report.operations += 1
            report.agents.add(one.agent)
            facts = facts_of(self._policy.policy, one)
            ruling = decide(one.agent, one.service, one.action, one.resource, one.branch, facts).ruling
            after = ruling.shadow or ruling.decision
            if after == one.said:
                continue
            kind = Kind(one.agent, one.service, one.action, one.said, after, ruling.rule, ruling.reason)
            moved = report.moved.setdefault(kind, Moved())
            moved.times += one.times
            moved.operations += 1
            if len(moved.examples) < EXAMPLES:
                moved.examples.append((one.resource, one.branch, one.session))

    def done(self) -> Report:
        """What came of it."""
        self.report.moved = dict(sorted(self.report.moved.items(), key=lambda one: (-one[1].times, one[0][:5])))
        return self.report
