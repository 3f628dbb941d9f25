"""`banksman resume PROJECT`."""

from __future__ import annotations

from banksman.cli import acting

HELP = """Let the agents of a paused project ask again, under their policy. It lifts the pause that is in force now: where
somebody pauses it again at the same moment, that holds, and this says so (exit code 2)."""
EXAMPLES = """
  banksman resume billing-automation -m "mended in 4712"
"""
arguments, run = acting.verb("resume", "project", "resumed")
