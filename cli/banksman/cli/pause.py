"""`banksman pause PROJECT`."""

from __future__ import annotations

from banksman.cli import acting

HELP = """Stop all agents of a project: from their next request on everything that they ask is denied, on every enforcer, until
`banksman resume`. What already runs is not stopped, and what they report is still recorded. Exit code 4: it may or
may not be in force; say it again."""
EXAMPLES = """
  banksman pause billing-automation -m "invoices went out twice"
"""
arguments, run = acting.verb("pause", "project", "paused")
