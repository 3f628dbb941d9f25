"""A small world in which random policies and random operations meet often, and an oracle that shares no code.

The oracle is written from the contract, one sentence at a time, with the slowest means there are: recursion over
pattern and value. It answers (decision, reason) and knows nothing of buckets, tiers or caches.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from banksman.policy.compile import Bundle, CompiledPolicy
from banksman.policy.load import load

PROJECT = "p"

SERVICES = {
    "git": {
        "actions": ["push", "pull", "force_push", "log"],
        "action_patterns": ["push", "pull", "p*", "*", "p?ll", "force_push", "*push"],
        "resources": ["acme/billing", "acme/invoices", "acme", "acme/x/y", "other/billing", "/acme/billing", "a/b/c/d"],
        "resource_patterns": [
            "acme/billing", "acme/*", "*/billing", "**", "*", "acme/**", "**/billing", "acme/**/y", "acme/bi*ng", "a?me/*",
            "*/*", "a/**/d", "**c*e/*", "acme/*i*", "/acme/*", "**/x/**", "?/?/?/?", "*e/b*g",
        ],
        "branches": ["main", "feature/a", "feature/a/b", "release/1.2", "fix/x", "x"],
        "branch_patterns": ["main", "feature/*", "feature/**", "*", "**", "release/?.?", "**/b", "f*/*", "m??n", "fix/x"],
    },
    "aws": {
        "actions": ["s3:GetObject", "S3:GETOBJECT", "s3:PutObject", "iam:CreateUser", "s3:getobject"],
        "action_patterns": ["s3:GetObject", "s3:*", "iam:*", "*", "S3:Put*", "*:get*"],
        "resources": [
            "arn:aws:s3:::data/a/b", "arn:aws:s3:::data/a", "arn:aws:s3:::data", "arn:aws:s3:::data-2/x:y//z", "data/a",
            "arn:aws:iam::123456789012:user/ann", "arn:aws:sqs:eu-west-1:123456789012:q", "arn:aws:s3:::data/.hidden",
        ],
        "resource_patterns": [
            "arn:aws:s3:::data/*", "arn:aws:s3:::data*", "arn:aws:s3:::*/*", "*", "**", "arn:aws:*:*:*:*",
            "arn:aws:s3:*:*:data/?", "arn:aws:i?m::*:user/*", "arn:**:q", "arn:aws:s3:::data/**/b", "data/*",
            "arn:aws:sqs:eu-*:1*2:?", "arn:aws:s3:::d*a/*b", "arn:aws:s3:::data-?/x:*/z",
        ],
        "branches": ["main"],
        "branch_patterns": ["main", "*"],
    },
}  # fmt: skip
# `arn:**:q` has three parts and is refused at load; it stays out of what hypothesis may write.
SERVICES["aws"]["resource_patterns"].remove("arn:**:q")


def some(of: list[str], most: int = 3) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(of), min_size=1, max_size=most, unique=True)


@st.composite
def rules(draw: st.DrawFn, effect: str) -> dict[str, Any]:
    service = draw(st.sampled_from(sorted(SERVICES)))
    known = SERVICES[service]
    rule: dict[str, Any] = {"service": service, "actions": draw(some(known["action_patterns"]))}
    if draw(st.booleans()):
        rule["resources"] = draw(some(known["resource_patterns"]))
    if draw(st.booleans()):
        rule["branches"] = draw(some(known["branch_patterns"]))
    if effect == "allow" and draw(st.booleans()):
        rule["tier"] = draw(st.sampled_from([1, 2]))
    if effect == "require_approval" and draw(st.booleans()):
        rule["approvers"] = {
            "any": draw(some(["leads", "security", "ann"])),
            "min": draw(st.integers(1, 3)),
            "expires": draw(st.sampled_from(["90s", "15m", "2h", "1d", "60m"])),
        }
    return rule


def agents() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={
        "allow": st.lists(rules("allow"), max_size=5),
        "require_approval": st.lists(rules("require_approval"), max_size=3),
        "never": st.lists(rules("never"), max_size=2),
        "owner": st.sampled_from(["ann@acme.example", "bob"]),
        "budget": st.fixed_dictionaries(
            {"daily_tokens": st.integers(1, 10**9)},
            optional={
                "daily_cost_usd": st.floats(0.01, 1e6),
                "alert_threshold": st.floats(0.01, 1),
                "on_exhausted": st.sampled_from(["deny", "approve", "alert"]),
                "timezone": st.just("UTC"),
            },
        ),
        "detect": st.fixed_dictionaries(
            {}, optional={"loops": st.just({"on_alert": "pause"}), "anomalies": st.just({"on_alert": "alert"})}
        ),
    })  # fmt: skip


def guardrails() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={
        "never": st.lists(rules("never"), max_size=2),
        "require_approval": st.lists(rules("require_approval"), max_size=2),
    })  # fmt: skip


def policies() -> st.SearchStrategy[dict[str, Any]]:
    """Whole files, as the mapping that YAML gives."""
    return st.fixed_dictionaries(
        {"project": st.just(PROJECT), "agents": st.dictionaries(st.sampled_from(["a", "b"]), agents(), max_size=2)},
        optional={
            "version": st.integers(1, 99),
            "owner": st.just("payments-team"),
            "mode": st.sampled_from(["enforce", "shadow"]),
            "guardrails": guardrails(),
            "notify": st.just({"channel": "#payments"}),
        },
    )


Operation = tuple[str, str, str | None, str | None]


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    service = draw(st.sampled_from(sorted(SERVICES)))
    known = SERVICES[service]
    return (
        service,
        draw(st.sampled_from(known["actions"])),
        draw(st.none() | st.sampled_from(known["resources"])),
        draw(st.none() | st.sampled_from(known["branches"])),
    )


def any_operations(seed: int, count: int) -> Iterator[Operation]:
    """So many at random: what the world names, what its patterns match, and what is neither."""
    draw = random.Random(seed)

    def one_of(values: list[str], patterns: list[str]) -> str:
        sort = draw.randrange(4)
        if sort == 0:
            return draw.choice(values)
        text = draw.choice(patterns if sort == 1 else values)
        if sort == 3:
            at = draw.randrange(len(text))
            text = text[:at] + draw.choice("abmx/.-:*") + text[at + draw.randrange(2) :]
        text = text.replace("**", draw.choice(["a", "a/b", "x/y/z"])).replace(
            "*", draw.choice(["", "b", "main", "data"])
        )
        return text.replace("?", draw.choice("abx1"))

    for _ in range(count):
        service = draw.choice(sorted(SERVICES))
        known = SERVICES[service]
        action = one_of(known["actions"], known["action_patterns"])
        resource = one_of(known["resources"], known["resource_patterns"]) if draw.random() < 0.9 else None
        branch = one_of(known["branches"], known["branch_patterns"]) if draw.random() < 0.7 else None
        yield service, action, resource, branch


def bundle_of(document: dict[str, Any]) -> Bundle:
    policy = load(json.dumps(document).encode()).policy
    return Bundle({policy.project: CompiledPolicy(policy)})


# ── the oracle ──


def expected(document: dict[str, Any], agent: str, operation: Operation) -> tuple[str, str]:
    """(decision, reason) of the policy in enforce mode. Operations are in their one spelling but for AWS's case."""
    if agent not in document["agents"]:
        return "deny", "unknown_agent"
    held = document.get("guardrails", {})
    mine = document["agents"][agent]

    def which(where: dict[str, Any], effect: str, *, named: bool) -> bool:
        return any(_fits(rule, operation, named=named) for rule in where.get(effect, []))

    if which(held, "never", named=False):
        return "deny", "guardrail"
    if which(mine, "never", named=False):
        return "deny", "never"
    for where in (held, mine):
        for effect in ("never", "require_approval"):
            if any(
                _fits(r, operation, named=True) and not _fits(r, operation, named=False) for r in where.get(effect, [])
            ):
                return "deny", "incomplete_operation"
    if which(held, "require_approval", named=False) or which(mine, "require_approval", named=False):
        return "approve", "approval_required"
    if which(mine, "allow", named=False):
        return "allow", "allowed"
    return "deny", "default_deny"


def _fits(rule: dict[str, Any], operation: Operation, *, named: bool) -> bool:
    """`named`: as if the operation named what it leaves out, and named it so that it fits."""
    service, action, resource, branch = operation
    if rule["service"] != service:
        return False
    fold = str.lower if service == "aws" else str
    if not any(glob(fold(pattern), fold(action), crossing=True) for pattern in rule["actions"]):
        return False
    for key, value in (("resources", resource), ("branches", branch)):
        if key not in rule:
            continue
        if value is None:
            if not named:
                return False
        elif not any(_pattern(service, key, pattern, value) for pattern in rule[key]):
            return False
    return True


def _pattern(service: str, key: str, pattern: str, value: str) -> bool:
    if key == "resources" and service == "aws" and pattern == "*":
        return True
    if key == "resources" and pattern.startswith("arn:"):
        wanted, given = pattern.split(":", 5), value.split(":", 5)
        return (
            len(given) == 6
            and all(glob(w, g, crossing=True) for w, g in zip(wanted[:5], given[:5], strict=True))
            and glob(wanted[5], given[5], crossing=True)
        )
    return path(pattern.split("/"), value.split("/")) if "**" in pattern else same_depth(pattern, value)


def same_depth(pattern: str, value: str) -> bool:
    wanted, given = pattern.split("/"), value.split("/")
    return len(wanted) == len(given) and all(glob(w, g, crossing=True) for w, g in zip(wanted, given, strict=True))


def path(wanted: list[str], given: list[str]) -> bool:
    """Segment by segment; `**` alone is any number of segments (at the end at least one), within one it joins them."""
    if not wanted:
        return not given
    first = wanted[0]
    if first == "**":
        if len(wanted) == 1:
            return len(given) >= 1
        return any(path(wanted[1:], given[at:]) for at in range(len(given) + 1))
    if "**" in first:
        # `**c*e`: the double star may swallow segments; try every number of them as one.
        return any(
            glob_double(first, "/".join(given[:count])) and path(wanted[1:], given[count:])
            for count in range(1, len(given) + 1)
        )
    return bool(given) and glob(first, given[0], crossing=True) and path(wanted[1:], given[1:])


def glob(pattern: str, value: str, *, crossing: bool) -> bool:
    """`*` and `?` over all characters (`crossing`) or over all but `/`."""
    if not pattern:
        return not value
    if pattern[0] == "*":
        return any(
            glob(pattern[1:], value[at:], crossing=crossing)
            for at in range(len(value) + 1)
            if crossing or "/" not in value[:at]
        )
    if not value or (pattern[0] == "?" and value[0] == "/" and not crossing):
        return False
    return (pattern[0] in {"?", value[0]}) and glob(pattern[1:], value[1:], crossing=crossing)


def glob_double(pattern: str, value: str) -> bool:
    if pattern.startswith("**"):
        return any(glob_double(pattern[2:], value[at:]) for at in range(len(value) + 1))
    if pattern.startswith("*"):
        return any(glob_double(pattern[1:], value[at:]) for at in range(len(value) + 1) if "/" not in value[:at])
    if not pattern or not value:
        return pattern == value
    if pattern[0] == "?":
        return value[0] != "/" and glob_double(pattern[1:], value[1:])
    return pattern[0] == value[0] and glob_double(pattern[1:], value[1:])
