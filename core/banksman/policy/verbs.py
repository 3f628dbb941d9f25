"""Which actions only read: the default tier of an `allow` rule that does not give one.

Reading is tier 1 (run freely), everything else tier 2 (log and alert). A wrong guess here never allows or denies
anything. Some services have a list of their own; for the rest the first word of the verb counts, where the verb is
what follows the last `:`, `.`, `/` or `__` (`charges:read`, `read_file`, `mcp__github__get_issue`, `listUsers`).
"""

from __future__ import annotations

import re

READ_ONLY: dict[str, frozenset[str]] = {
    "git": frozenset({
        "blame", "clone", "diff", "fetch", "grep", "log", "ls-files", "ls-remote", "ls-tree", "ls_files", "ls_remote",
        "ls_tree", "pull", "shortlog", "show", "status",
    }),
    "http": frozenset({"GET", "HEAD", "OPTIONS", "get", "head", "options"}),
    "kubernetes": frozenset({"describe", "explain", "get", "list", "logs", "top", "watch"}),
    "postgres": frozenset({"explain", "select", "show"}),
    "shell": frozenset(),
}  # fmt: skip
"""Services with a list of their own: these actions read, no other one does. A shell command may do anything."""

READ_ONLY_AWS = ("batchget", "describe", "get", "head", "list", "lookup", "query", "scan", "search", "select")
"""AWS: what an action's name begins with after its service (`s3:GetObject`), in lower case."""

READ_ONLY_WORDS = frozenset({
    "cat", "count", "describe", "diff", "exists", "fetch", "find", "get", "glob", "grep", "head", "list", "lookup", "ls",
    "query", "read", "retrieve", "search", "show", "stat", "status", "view", "watch",
})  # fmt: skip
"""Every other service: the first word of the verb."""

_AFTER = re.compile(r"[:./]|__").split
_FIRST_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+").match


def is_read_only(service: str, action: str) -> bool:
    """Whether the action (as matched, so AWS in lower case) is on the list of those that only read."""
    if service == "aws":
        return action.rpartition(":")[2].startswith(READ_ONLY_AWS)
    own = READ_ONLY.get(service)
    if own is not None:
        return action in own
    word = _FIRST_WORD(_AFTER(action)[-1])
    return word is not None and word[0].lower() in READ_ONLY_WORDS
