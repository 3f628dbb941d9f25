"""The policy in the form that answers fast: one bucket of rules per agent, service and action.

Nothing here decides anything: `judge` does, once per set of rules that matched, and its answer is kept. A bucket
is made when it is first asked about, so that putting a large policy in force costs a swapped reference.

Cost of a decision: two dictionary look-ups, one check of the spelling per field, one matcher per pattern list of the
two or three rules in the bucket. It grows with the rules of one (agent, service, action) only.
"""

from __future__ import annotations

from sys import intern
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec
from msgspec.json import encode

from banksman.policy.catalogue import surely_reads
from banksman.policy.conditions import apart, attributes_of, comparisons
from banksman.policy.globs import Custom, Matcher, compile_patterns
from banksman.policy.holds import NONE, Asked, Facts, Holds, compile_condition
from banksman.policy.match import NO_POLICY, judge, refuse
from banksman.policy.normal import (
    FOLDS_ACTIONS,
    MAX_ACTION,
    MAX_BRANCH,
    MAX_RESOURCE,
    MAX_SERVICE,
    PLAIN_BRANCH,
    bad_branch,
    bad_resource,
    bad_text,
    fold_action,
    plain_resource,
)
from banksman.policy.rules import EVERY_SERVICE
from banksman.policy.subjects import AGENT, attributes
from banksman.policy.verdict import Reason, Ruling, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from banksman.policy.rules import AgentPolicy, Policy, Rule

_KEPT_RULINGS = 64
"""Rulings kept per bucket: one per set of rules that matched together. In practice two or three."""

_KEPT_BUCKETS = 256
"""Buckets kept per agent for actions that no rule names exactly: the agent chooses those words, so they are bounded."""


_KEPT_AGENTS = 100_000

_Test = tuple[int, bool, Matcher | None, Matcher | None, Holds | None]
"""(bit, strict, resource, branch, condition): `strict` rules (never, require_approval) are those that a field left out must not
escape; None stands for what the rule does not have."""


class _Bucket(msgspec.Struct, gc=False):
    """The rules that one agent has for one service and action, and the rulings that came of them so far.

    `found` and `ruling` are the last question's: with 10,000 agents a decision costs what it misses in the cache, and
    two fields of the bucket are nearer than a dictionary.
    """

    tests: tuple[_Test, ...]
    plain: Matcher
    found: int
    ruling: Ruling
    rulings: dict[int, Ruling]
    rules: tuple[Rule, ...]


class CompiledPolicy:
    """One project's policy, ready to answer. What it says never changes; what it has worked out is kept."""

    __slots__ = ("_agents", "_buckets", "_by_expr", "_by_subject", "_kept", "_moments", "policy")

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._buckets: dict[tuple[str, str, str], _Bucket] = {}
        self._kept: dict[str, int] = {}
        self._agents: dict[str, AgentPolicy | None] = {}
        self._moments: tuple[Holds, ...] | None = None
        self._by_expr = False
        self._by_subject: bool | None = None

    def agent(self, name: str) -> AgentPolicy | None:
        """All that the policy says about an agent, worked out once."""
        try:
            return self._agents[name]
        except KeyError:
            if len(self._agents) >= _KEPT_AGENTS:
                self._agents.clear()
            found = self._agents[name] = self.policy.of(name)
            return found

    def is_shadow(self, name: str) -> bool:
        """Whether what the policy says about an agent is only noted."""
        return self.policy.shadows(self.agent(name))

    def moment(self, at: float) -> tuple[object, ...]:
        """Another value whenever a condition about the time begins or ends to hold; always another one where an `expr` looks at
        the time, since nobody can say when that changes.
        """
        if self._moments is None:
            self._by_expr = any(
                "time" in expr.attributes for rule in self.policy.every_rule() if (expr := apart(rule.when)[1])
            )
            said_by = (said for rule in self.policy.every_rule() for said in comparisons(rule.when))
            told = {encode(said): said for said in said_by if said.attribute == "time"}
            self._moments = tuple(compile_condition(said, "", self.policy.schedules) for said in told.values())
        if self._by_expr:
            return (at,)
        if not self._moments:
            return ()
        asked = Asked("", "", None, None, "", Facts(at=at))
        return tuple(holds(asked) for holds in self._moments)

    def about(self, agent: str, facts: Facts) -> Facts:
        """With the agent itself as whom a question is about, where it names nobody else and a condition looks at that."""
        if facts.subject is not None:
            return facts
        if self._by_subject is None:
            names = (name for rule in self.policy.every_rule() for name in attributes_of(rule.when))
            self._by_subject = any(name.startswith("subject.") for name in names)
        return facts._replace(subject=attributes(self.policy, AGENT, agent)) if self._by_subject else facts

    def decide(
        self,
        agent: str,
        service: str,
        action: str,
        resource: str | None = None,
        branch: str | None = None,
        facts: Facts = NONE,
    ) -> Verdict:
        """The verdict on one operation. Never raises, never blocks; a few microseconds."""
        if service in FOLDS_ACTIONS:
            action = fold_action(service, action)
        bucket = self._buckets.get((agent, service, action))
        if bucket is None:
            made = self._bucket(agent, service, action)
            if isinstance(made, Reason):
                return Verdict(refuse(self.policy, self.agent(agent), made), service, action, resource, branch)
            bucket = made
        if resource is not None and (len(resource) > MAX_RESOURCE or not bucket.plain(resource)):
            wrong = _refused(resource, MAX_RESOURCE, bad_resource(service, resource[: MAX_RESOURCE + 1]))
            if wrong is not None:
                return Verdict(refuse(self.policy, self.agent(agent), wrong), service, action, resource, branch)
        if branch is not None and (len(branch) > MAX_BRANCH or not PLAIN_BRANCH(branch)):
            wrong = _refused(branch, MAX_BRANCH, bad_branch(branch[: MAX_BRANCH + 1]))
            if wrong is not None:
                return Verdict(refuse(self.policy, self.agent(agent), wrong), service, action, resource, branch)

        found, asked = 0, None
        for bit, strict, resources, branches, holds in bucket.tests:
            missing = False
            if resources is not None:
                if resource is None:
                    if not strict:
                        continue
                    missing = True
                elif not resources(resource):
                    continue
            if branches is not None:
                if branch is None:
                    if not strict:
                        continue
                    missing = True
                elif not branches(branch):
                    continue
            if holds is not None:
                if asked is None:
                    asked = Asked(service, action, resource, branch, agent, self.about(agent, facts))
                truth = holds(asked)
                if not truth:
                    if truth is not None or not strict:
                        continue
                    if not missing:
                        found |= bit * 3  # both: it matches because nobody can say
                        continue
            found |= bit << 1 if missing else bit
        if found != bucket.found:
            bucket.ruling = bucket.rulings.get(found) or self._rule(agent, service, action, bucket, found)
            bucket.found = found
        return Verdict(bucket.ruling, service, action, resource, branch)

    def _bucket(self, agent: str, service: str, action: str) -> _Bucket | Reason:
        """The bucket of a service and action that is asked about for the first time, or why there can be none."""
        policy = self.policy
        entry = self.agent(agent)
        known = entry is not None
        if not known and not policy.shadow:
            return Reason.UNKNOWN_AGENT
        own = entry.rules if entry is not None else ()
        rules = [rule for rule in (*policy.guardrails, *own) if covers_service(rule, service, action)]
        named = any(
            fold_action(service, name) == action for rule in rules if rule.service == service for name in rule.actions
        )
        if not named:
            wrong = _refused(service, MAX_SERVICE, bad_text(service[: MAX_SERVICE + 1])) or _refused(
                action, MAX_ACTION, bad_text(action[: MAX_ACTION + 1])
            )
            if wrong is not None:
                return wrong
        bucket = self._make_bucket(service, tuple(rule for rule in rules if names_action(rule, action)))
        bucket.ruling = self._rule(agent, service, action, bucket, 0)
        if known and not named:
            kept = self._kept.get(agent, 0)
            if kept >= _KEPT_BUCKETS:
                return bucket
            self._kept[agent] = kept + 1
        if known:
            self._buckets[intern(agent), intern(service), intern(action)] = bucket
        return bucket

    def _rule(self, agent: str, service: str, action: str, bucket: _Bucket, found: int) -> Ruling:
        states = [(rule, found >> 2 * at & 3) for at, rule in enumerate(bucket.rules)]
        known = self.agent(agent)
        ruling = judge(
            self.policy,
            known,
            service,
            action,
            [rule for rule, state in states if state in {1, 3}],
            [rule for rule, state in states if state == 2],
            [rule for rule, state in states if state == 3],
            otherwise=Reason.UNKNOWN_AGENT if known is None else Reason.DEFAULT_DENY,
        )
        if len(bucket.rulings) < _KEPT_RULINGS:
            bucket.rulings[found] = ruling
        return ruling

    def _make_bucket(self, service: str, rules: tuple[Rule, ...]) -> _Bucket:
        tests = tuple(
            (
                1 << 2 * at,
                rule.effect != "allow",
                _matcher(Custom.RESOURCE, service, rule.resources),
                _matcher(Custom.BRANCH, service, rule.branches),
                None if rule.when is None else compile_condition(rule.when, service, self.policy.schedules),
            )
            for at, rule in enumerate(rules)
        )
        return _Bucket(tests, plain_resource(service), 0, NO_POLICY, {}, rules)


def _refused(value: str, longest: int, wrong: str | None) -> Reason | None:
    if len(value) > longest:
        return Reason.TOO_LONG
    return Reason.NOT_CANONICAL if wrong else None


def _matcher(custom: Custom, service: str, patterns: tuple[str, ...] | None) -> Matcher | None:
    return compile_patterns(custom, service, patterns) if patterns else None


def covers_service(rule: Rule, service: str, action: str) -> bool:
    """Whether the rule is about the service. A freeze may be about all of them, and lets pass what surely only reads."""
    if rule.freeze:
        return rule.service in {service, EVERY_SERVICE} and not surely_reads(service, action)
    return rule.service == service


def names_action(rule: Rule, action: str) -> bool:
    """Whether the rule's actions (of the same service) match the action, as normalised."""
    folded = tuple(fold_action(rule.service, pattern) for pattern in rule.actions)
    return bool(compile_patterns(Custom.ACTION, rule.service, folded)(action))


class Bundle:
    """Every policy in force. Immutable: a change makes a new one, and one reference is swapped."""

    __slots__ = ("policies",)

    def __init__(self, policies: Mapping[str, CompiledPolicy] | None = None) -> None:
        self.policies: Mapping[str, CompiledPolicy] = MappingProxyType(dict(policies or {}))

    def decide(
        self,
        project: str,
        agent: str,
        service: str,
        action: str,
        resource: str | None = None,
        branch: str | None = None,
        facts: Facts = NONE,
    ) -> Verdict:
        """The verdict on one operation of one agent. A project without a policy in force is denied everything."""
        policy = self.policies.get(project)
        if policy is None:
            return Verdict(NO_POLICY, service, action, resource, branch)
        return policy.decide(agent, service, action, resource, branch, facts)

    def versions(self) -> dict[str, str]:
        """Project -> policy version."""
        return {project: compiled.policy.version for project, compiled in self.policies.items()}
