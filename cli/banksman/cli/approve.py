"""`banksman approve ID`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from banksman.cli import answering

if TYPE_CHECKING:
    import argparse

HELP = """Say yes to one exact action that an agent has asked for: this agent, session, operation and arguments, once, until the
time that `banksman approvals` shows. The policy and every kill, revocation and pause are asked again when it is used.
Exit code 2: it is settled already; 3: this token may not approve, or the policy wants somebody else's answer."""
EXAMPLES = """
  banksman approve 0190a3c2-7d1e-7b60-8a55-0f0c2f9e1d11 -m "the release is agreed"
"""
arguments = answering.arguments


def run(args: argparse.Namespace) -> int:
    """Do it."""
    return answering.answer(args, "approve")
