"""`banksman revoke AGENT`."""

from __future__ import annotations

from banksman.cli import acting

HELP = """Stop an agent in every session, also in those that it has not opened yet: from its next request on everything that it
asks is denied, on every enforcer, until `banksman restore`. What already runs is not stopped, and what it reports is
still recorded. Exit code 4: it may or may not be in force; say it again."""
EXAMPLES = """
  banksman revoke claude-invoice-01 -m "its credential is in a public log"
"""
arguments, run = acting.verb("revoke", "agent", "revoked")
