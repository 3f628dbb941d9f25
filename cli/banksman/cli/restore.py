"""`banksman restore AGENT`."""

from __future__ import annotations

from banksman.cli import acting

HELP = """Let a revoked agent ask again, under its policy. Sessions that were killed stay killed. It lifts the revocation that
is in force now: where somebody revokes it again at the same moment, that holds, and this says so (exit code 2)."""
EXAMPLES = """
  banksman restore claude-invoice-01 -m "new credential, ticket 4711"
"""
arguments, run = acting.verb("restore", "agent", "restored")
