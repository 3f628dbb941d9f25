"""The same content has the same version, other content another; the text is the policy."""

from __future__ import annotations

import hashlib

import pytest

from banksman.policy.load import load

ONE = b"""
# who may do what
project: p
version: 3
mode: enforce
agents:
  b: {allow: [{service: git, actions: [push, pull], tier: 2}, {service: git, actions: [log]}]}
  a:
    budget: {daily_tokens: 100, daily_cost_usd: 40, alert_threshold: 0.8}
    require_approval: [{service: git, actions: [push], approvers: {any: [y, x], expires: 120m}}]
"""

SAME = b"""{
  "agents": {
    "a": {
      "budget": {"daily_cost_usd": 40.0, "daily_tokens": 100, "on_exhausted": "deny", "timezone": "UTC"},
      "detect": {"loops": {"on_alert": "alert"}},
      "never": [],
      "require_approval": [{"service": "git", "actions": ["push", "push"],
                            "approvers": {"min": 1, "any": ["x", "y"], "expires": "2h"}}]
    },
    "b": {"allow": [{"tier": 2, "actions": ["pull", "push"], "service": "git"}, {"service": "git", "actions": ["log"]}]}
  },
  "guardrails": {}, "project": "p", "version": 3
}"""


def test_spelling_of_the_file_does_not_matter() -> None:
    one, same = load(ONE), load(SAME)
    assert one.text == same.text
    assert one.policy == same.policy


def test_the_version_is_the_hash_of_the_text() -> None:
    loaded = load(ONE)
    digest = hashlib.sha256(loaded.text.encode()).hexdigest()
    assert loaded.policy.version == f"p@v3+sha256:{digest[:12]}"


def test_without_a_number_it_is_v0() -> None:
    assert load(b"project: p\nagents: {}\n").policy.version.startswith("p@v0+sha256:")


def test_a_pinned_version() -> None:
    """On record for ever: if this fails, every policy changes its version with the next release."""
    assert load(ONE).policy.version == "p@v3+sha256:5bc48e07cedd"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"version: 3", b"version: 4"),
        (b"mode: enforce", b"mode: shadow"),
        (b"project: p", b"project: q"),
        (b"tier: 2", b"tier: 1"),
        (b"[push, pull]", b"[push]"),
        (b"120m", b"121m"),
        (b"daily_tokens: 100", b"daily_tokens: 101"),
        (b"0.8", b"0.9"),
        (b"[y, x]", b"[y]"),
        (b"  b: ", b"  c: "),
        (
            b"[{service: git, actions: [push, pull], tier: 2}, {service: git, actions: [log]}]",
            b"[{service: git, actions: [log]}, {service: git, actions: [push, pull], tier: 2}]",
        ),
    ],
)
def test_other_content_is_another_version(old: bytes, new: bytes) -> None:
    """The order of rules means nothing either, but their ids count from the top, and ids are on record."""
    assert old in ONE
    assert load(ONE.replace(old, new)).policy.version != load(ONE).policy.version


def test_the_text_loads_to_itself_with_every_character_that_a_policy_may_hold() -> None:
    awkward = "\u00e9 \u65e5\u672c \U0001f600 ' \" # & * : { } [ ] , ! | > @ ` ~ - ? / \ue000"
    quoted = awkward.replace('"', '\\"')
    first = load(f'project: p\nowner: "{quoted}"\nagents: {{}}\n'.encode())
    assert first.policy.owner == awkward
    assert load(first.text.encode()) == first
