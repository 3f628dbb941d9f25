"""The policy in the form that answers fast: one bucket of rules per agent, service and action.

Nothing here decides anything: `judge` does, once per set of rules that matched, and its answer is kept. Agents and
buckets are made when they are first asked about, so that putting a large policy in force costs a swapped reference.

Cost of a decision: three dictionary look-ups, one check of the spelling per field, one matcher per pattern list of the
two or three rules in the bucket. It grows with the rules of one (agent, service, action) only.
"""

from __future__ import annotations

from sys import intern
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from banksman.policy.globs import Custom, Matcher, compile_patterns
from banksman.policy.match import NO_POLICY, Answer, judge, refuse
from banksman.policy.normal import (
    FOLDS_ACTIONS,
    MAX_ACTION,
    MAX_BRANCH,
    MAX_RESOURCE,
    MAX_SERVICE,
    PLAIN_PATH,
    bad_branch,
    bad_resource,
    bad_text,
    fold_action,
    plain_resource,
)
from banksman.policy.verdict import Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from banksman.policy.rules import Policy, Rule

_KEPT_ANSWERS = 64
"""Answers kept per bucket: one per set of rules that matched together. In practice two or three."""

_KEPT_BUCKETS = 256
"""Buckets kept per agent for actions that no rule names exactly: the agent chooses those words, so they are bounded."""


class _Bucket(msgspec.Struct, gc=False):
    """The rules that name one service and action, and the answers that came of them so far.

    A test is (bit, strict, resource, branch): `strict` rules (never, require_approval) are those that a field left out
    must not escape; a matcher of None lets anything pass.
    """

    rules: tuple[Rule, ...]
    tests: tuple[tuple[int, bool, Matcher | None, Matcher | None], ...]
    plain: Matcher
    answers: dict[int, Answer]


class _Agent:
    """An agent's rules by service, and its buckets by service and action."""

    __slots__ = ("buckets", "kept", "known", "named", "rules")

    def __init__(self, policy: Policy, name: str) -> None:
        self.known = name in policy.agents
        self.buckets: dict[str, dict[str, _Bucket]] = {}
        self.kept = 0
        self.rules: dict[str, list[Rule]] = {}
        for rule in policy.rules_of(name):
            self.rules.setdefault(rule.service, []).append(rule)
        self.named = {
            (rule.service, fold_action(rule.service, action))
            for rules in self.rules.values()
            for rule in rules
            for action in rule.actions
        }


class CompiledPolicy:
    """One project's policy, ready to answer. What it says never changes; what it has worked out is kept."""

    __slots__ = ("_agents", "_stranger", "policy")

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._agents: dict[str, _Agent] = {}
        # Any name outside the format will do: guardrails bind whoever the file does not name.
        self._stranger = _Agent(policy, "")

    def decide(
        self, agent: str, service: str, action: str, resource: str | None = None, branch: str | None = None
    ) -> Verdict:
        """The verdict on one operation. Never raises, never blocks; a few microseconds."""
        known = self._agents.get(agent)
        if known is None:
            known = self._meet(agent)
        if service in FOLDS_ACTIONS:
            action = fold_action(service, action)
        actions = known.buckets.get(service)
        bucket = actions.get(action) if actions is not None else None
        if bucket is None:
            made = self._bucket(known, service, action)
            if isinstance(made, Reason):
                return Verdict(*refuse(self.policy, agent, made), service, action, resource, branch)
            bucket = made
        if resource is not None and (len(resource) > MAX_RESOURCE or not bucket.plain(resource)):
            wrong = _refused(resource, MAX_RESOURCE, bad_resource(service, resource[: MAX_RESOURCE + 1]))
            if wrong is not None:
                return Verdict(*refuse(self.policy, agent, wrong), service, action, resource, branch)
        if branch is not None and (len(branch) > MAX_BRANCH or not PLAIN_PATH(branch)):
            wrong = _refused(branch, MAX_BRANCH, bad_branch(branch[: MAX_BRANCH + 1]))
            if wrong is not None:
                return Verdict(*refuse(self.policy, agent, wrong), service, action, resource, branch)

        found = 0
        for bit, strict, resources, branches in bucket.tests:
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
            found |= bit << 1 if missing else bit
        answer = bucket.answers.get(found)
        if answer is None:
            answer = self._judge(agent, known, bucket, found, service, action)
        return Verdict(*answer, service, action, resource, branch)

    def _meet(self, agent: str) -> _Agent:
        if agent not in self.policy.agents:
            return self._stranger
        met = self._agents[agent] = _Agent(self.policy, agent)
        return met

    def _bucket(self, known: _Agent, service: str, action: str) -> _Bucket | Reason:
        """The bucket of a service and action that is asked about for the first time, or why there can be none."""
        if not known.known and not self.policy.shadow:
            return Reason.UNKNOWN_AGENT
        if (service, action) not in known.named:
            wrong = _refused(service, MAX_SERVICE, bad_text(service[: MAX_SERVICE + 1])) or _refused(
                action, MAX_ACTION, bad_text(action[: MAX_ACTION + 1])
            )
            if wrong is not None:
                return wrong
        bucket = _make_bucket(service, action, known.rules.get(service, []))
        if (service, action) in known.named:
            known.buckets.setdefault(intern(service), {})[intern(action)] = bucket
        elif known.kept < _KEPT_BUCKETS:
            known.buckets.setdefault(service, {})[action] = bucket
            known.kept += 1
        return bucket

    def _judge(self, agent: str, known: _Agent, bucket: _Bucket, found: int, service: str, action: str) -> Answer:
        answer = judge(
            self.policy,
            agent,
            service,
            action,
            [rule for at, rule in enumerate(bucket.rules) if found >> 2 * at & 1],
            [rule for at, rule in enumerate(bucket.rules) if found >> 2 * at & 2],
            otherwise=Reason.DEFAULT_DENY if known.known else Reason.UNKNOWN_AGENT,
        )
        if known.known and len(bucket.answers) < _KEPT_ANSWERS:
            bucket.answers[found] = answer
        return answer


def _refused(value: str, longest: int, wrong: str | None) -> Reason | None:
    if len(value) > longest:
        return Reason.TOO_LONG
    return Reason.NOT_CANONICAL if wrong else None


def _make_bucket(service: str, action: str, rules: list[Rule]) -> _Bucket:
    chosen = tuple(rule for rule in rules if names_action(rule, action))
    tests = tuple(
        (
            1 << 2 * at,
            rule.effect != "allow",
            _matcher(Custom.RESOURCE, service, rule.resources),
            _matcher(Custom.BRANCH, service, rule.branches),
        )
        for at, rule in enumerate(chosen)
    )
    return _Bucket(chosen, tests, plain_resource(service), {})


def _matcher(custom: Custom, service: str, patterns: tuple[str, ...] | None) -> Matcher | None:
    return compile_patterns(custom, service, patterns) if patterns else None


def names_action(rule: Rule, action: str) -> bool:
    """Whether the rule's actions (of the same service) match the action, as normalised."""
    folded = tuple(fold_action(rule.service, pattern) for pattern in rule.actions)
    matches = compile_patterns(Custom.ACTION, rule.service, folded)
    return matches is None or bool(matches(action))


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
    ) -> Verdict:
        """The verdict on one operation of one agent. A project without a policy in force is denied everything."""
        policy = self.policies.get(project)
        if policy is None:
            return Verdict(*NO_POLICY, service, action, resource, branch)
        return policy.decide(agent, service, action, resource, branch)

    def versions(self) -> dict[str, str]:
        """Project -> policy version."""
        return {project: compiled.policy.version for project, compiled in self.policies.items()}
