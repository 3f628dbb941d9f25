"""Whom a question is about, where that is not the agent that asks: how it stands on record, and what a policy says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from banksman.policy.rules import Policy


AGENT = "agent"
"""The type of a subject that is the agent itself."""


def written(type_: str, name: str) -> str:
    """`TYPE:ID`; a colon in the type is written `%3A`, so that no two subjects are written alike."""
    return f"{type_.replace('%', '%25').replace(':', '%3A')}:{name}"


def read(text: str) -> tuple[str, str]:
    """(type, id) of a subject as it is written."""
    type_, _, name = text.partition(":")
    return type_.replace("%3A", ":").replace("%25", "%"), name


def attributes(policy: Policy, type_: str, name: str) -> Mapping[str, Any]:
    """What conditions see as `subject.…`, without claims."""
    return {**policy.subjects.get(type_, {}).get(name, {}), "type": type_, "id": name}
