"""`banksman deny ID`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from banksman.cli import answering

if TYPE_CHECKING:
    import argparse

HELP = """Say no to an action that an agent has asked for. One no is enough. Exit code 2: it is settled already; 3: this token
may not approve, or the policy wants somebody else's answer."""
EXAMPLES = """
  banksman deny 0190a3c2-7d1e-7b60-8a55-0f0c2f9e1d11 -m "not on a Friday"
"""
arguments = answering.arguments


def run(args: argparse.Namespace) -> int:
    """Do it."""
    return answering.answer(args, "deny")
