"""`banksman kill SESSION`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from banksman.cli import acting, client, show
from banksman.errors import Unavailable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from typing import Any

HELP = """End one session of an agent, for good: from its next request on everything that it asks is denied, on every enforcer.
What already runs is not stopped, and what it reports is still recorded. The agent may open another session: `banksman
revoke` stops it altogether. Exit code 4: it may or may not be in force; say it again."""
EXAMPLES = """
  banksman kill d97e2169 -m "deletes the wrong branches"
  banksman kill s1 --agent claude-invoice-01           two agents have a session s1: say whose
"""
LOOK_S = 3.0


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("session", help="its id; `banksman now AGENT` and `banksman sessions` show it")
    parser.add_argument("--agent", help="whose; needed when two agents have a session of this id")
    acting.arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    try:
        told = _kill(args, args.agent)
    except client.Problem as problem:
        agent = _whose(args.session) if problem.status == 404 and not args.agent else None
        if agent is None:
            raise
        told = _kill(args, agent)
    if not args.json:
        show.note(f'the agent may open another session; to stop it altogether: banksman revoke {told["agent"]} -m "…"')
    return 0


def _kill(args: argparse.Namespace, agent: str | None) -> Mapping[str, Any]:
    path = f"/v1/sessions/{client.part(args.session)}/kill"
    query = {"agent": agent} if agent else None
    return acting.act(args, path, query, lambda told: f"session {told['session']} of {told['agent']} is killed")


def _whose(session: str) -> str | None:
    """The agent that the audit log knows by a session that the enforcer has not seen lately. None: it knows none, or is away.
    Problem 409: it is more than one's.
    """
    try:
        told = client.console(timeout=LOOK_S).get(f"/v1/sessions/{client.part(session)}", {"limit": 1})
    except client.Problem as problem:
        if problem.status == 409:
            raise
        return None
    except Unavailable:
        return None
    return str(told["header"]["agent"])
