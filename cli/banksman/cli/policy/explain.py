"""`banksman policy explain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from banksman.cli import client, show, words
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

HELP = """Why an operation is answered as it is: every rule that was looked at, the first thing about each that did not fit, the
nearest first, and what would have allowed it. With a FILE, as that file says; without one, as the enforcer would answer now,
with controls and budgets. Nothing is recorded as a decision. Exit code 1: it is not allowed."""
EXAMPLES = """
  banksman policy explain --agent claude-invoice-01 git push acme/billing main
  banksman policy explain --file policies/billing.yaml --agent claude-invoice-01 git push acme/billing main
  banksman policy explain --agent claude-invoice-01 stripe refunds:create --args '{"amount": 900}'
  banksman policy explain --agent ci-bot git push acme/web main --at 2026-12-24T12:00:00+01:00 --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--agent", required=True, help="who asks")
    parser.add_argument("--file", metavar="FILE", help="a policy file, in place of what is in force")
    parser.add_argument("--args", metavar="JSON", help="the arguments of the action, as a JSON object")
    parser.add_argument("--at", metavar="TIME", help="when it is asked (RFC 3339 with its zone; default: now)")
    parser.add_argument("service")
    parser.add_argument("action")
    parser.add_argument("resource", nargs="?")
    parser.add_argument("branch", nargs="?")
    show.json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    given = _json(args.args) if args.args is not None else None
    told = _by_file(args, given) if args.file else _by_enforcer(args, given)
    if args.json:
        show.emit(told)
    else:
        _say(told)
    return 0 if told["verdict"]["ruling"]["decision"] == "allow" else 1


def _by_file(args: argparse.Namespace, given: dict[str, Any] | None) -> Mapping[str, Any]:
    import msgspec

    from banksman.policy.compile import Bundle, CompiledPolicy
    from banksman.policy.conditions import moment
    from banksman.policy.explain import explain
    from banksman.policy.holds import Facts
    from banksman.policy.load import load

    at = None if args.at is None else moment(args.at)
    if args.at is not None and at is None:
        raise InvalidInput("must be a moment with its zone, such as 2026-12-24T12:00:00+01:00", field="--at")
    try:
        policy = load(Path(args.file).read_bytes(), args.file).policy
    except OSError as error:
        raise InvalidInput(f"cannot be read: {error.strerror}", field=args.file) from None
    bundle = Bundle({policy.project: CompiledPolicy(policy)})
    asked = args.service, args.action, args.resource, args.branch
    found: Mapping[str, Any] = msgspec.to_builtins(
        explain(bundle, policy.project, args.agent, *asked, Facts(given, at))
    )
    return found


def _by_enforcer(args: argparse.Namespace, given: dict[str, Any] | None) -> Mapping[str, Any]:
    asked = {name: getattr(args, name) for name in ("agent", "service", "action", "resource", "branch")}
    asked |= {"args": given, "time": args.at}
    body = {name: value for name, value in asked.items() if value is not None}
    return client.enforcer().post("/v1/explain", body)


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"is no JSON: {error}", field="--args") from None
    if not isinstance(value, dict):
        raise InvalidInput("must be a JSON object", field="--args")
    return value


def _say(told: Mapping[str, Any]) -> None:
    verdict = told["verdict"]
    ruling = verdict["ruling"]
    by = f" by {ruling['rule']}" if ruling.get("rule") else ""
    show.say(f"{words.operation(verdict)}: {ruling['decision']} (tier {ruling['tier']}){by}")
    show.say(f"  why: {told['because']}")
    if told["mend"]:
        show.say(f"  it would take: {told['mend']}")
    if ruling.get("policy_version"):
        show.say(f"  policy: {ruling['policy_version']}")
    rows = [
        (one["rule"], "matches" if one["failed"] is None else f"not its {one['failed']}", _wanted(one))
        for one in told["rules"]
    ]
    show.table(("rule", "", "it wants"), rows, empty="there is no rule for this agent")


def _wanted(one: Mapping[str, Any]) -> str:
    if one["failed"] is None:
        why = ", ".join(one["wanted"])
        return (
            f"(whether its condition holds cannot be worked out{f': {why}' if why else ''})"
            if one.get("unsure")
            else ""
        )
    left = " (left out)" if one["left_out"] else ""
    return f"{', '.join(one['wanted'])}{left}"
