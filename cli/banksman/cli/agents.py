"""`banksman agents`, `agents add`, `agents rotate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from banksman.cli import client, credential, show, words
from banksman.cli.main import AWAY, exit_code
from banksman.errors import Unavailable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

HELP = """Who runs: every agent, its state and session, and what was decided last. `add` enrols an agent, `rotate` gives one a
new credential and ends the old one. While the read side is away, only who is enrolled is shown (exit code 4)."""
EXAMPLES = """
  banksman agents
  banksman agents --project billing-automation --json
  banksman agents add claude-invoice-01 --project billing-automation --owner ann@acme.example
  banksman agents add ci-bot --project ci --owner ops --out ci-bot.credential
  banksman agents rotate ci-bot --out ci-bot.credential
"""

FIELDS = (
    "agent", "project", "owner", "enrolled", "state", "session", "last_seen", "last_kind", "last_decision", "last_rule",
    "events_last_minute", "replay",
)  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--project", dest="of", metavar="PROJECT", help="only the agents of this project")
    show.json_argument(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="add | rotate")
    add = credential.subcommand(verbs, "add", "enrol an agent; its credential is shown once")
    add.add_argument("agent", help="its name")
    add.add_argument("--project", required=True, help="the project whose policy it works under")
    add.add_argument("--owner", required=True, help="the person or team that answers for it")
    rotate = credential.subcommand(verbs, "rotate", "a new credential; the old one ends at once")
    rotate.add_argument("agent", help="its name")
    for verb in (add, rotate):
        credential.out_argument(verb, "credential")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    if args.verb == "add":
        enforcer = client.enforcer()
        body = {"agent": args.agent, "project": args.project, "owner": args.owner}
        return credential.hand_over(
            lambda: enforcer.post("/v1/agents", body), args, f"{args.agent} is enrolled in {args.project}"
        )
    if args.verb == "rotate":
        enforcer = client.enforcer()
        return credential.hand_over(
            lambda: enforcer.post(f"/v1/agents/{client.part(args.agent)}/rotate"),
            args,
            f"{args.agent} has a new credential, the old one is refused from now on",
            replace=True,
        )
    return _list(args)


def _list(args: argparse.Namespace) -> int:
    """Who runs, as the console sees it; while that is away, who is enrolled, as the enforcer knows it."""
    away = ""
    try:
        agents = client.console().get("/v1/agents", {"project": args.of})["agents"]
    except (Unavailable, client.Problem) as error:
        if exit_code(error) != AWAY:
            raise
        away = str(error)
        enrolled = client.enforcer().get("/v1/agents")["agents"]
        agents = [_without_state(one) for one in enrolled if args.of in (None, one["project"])]
    if args.json:
        show.emit({"agents": agents})
    else:
        nobody = f"no agent of {args.of} is enrolled" if args.of else "no agent is enrolled yet"
        show.table(
            ("agent", "state", "project", "owner", "session", "last seen (UTC)", "decision", "rule", ">per minute"),
            map(_row, agents),
            empty=f"{nobody}: banksman agents add NAME --project P --owner O",
        )
    if away:
        show.note(f"banksman agents: only who is enrolled, not what they do: {away}")
        return AWAY
    return 0


def _row(one: Mapping[str, Any]) -> tuple[object, ...]:
    name = one["agent"] if one["enrolled"] else f"{one['agent']} (not enrolled)"
    state = one["state"].replace("_", " ") if one["state"] else None
    run = f"{one['session']} (replay {one['replay']})" if one["replay"] else one["session"]
    return (
        name, state, one["project"], one["owner"], run, show.moment(one["last_seen"])[:19], one["last_decision"],
        one["last_rule"], words.number(one["events_last_minute"]),
    )  # fmt: skip


def _without_state(enrolled: Mapping[str, Any]) -> dict[str, Any]:
    """What the enforcer knows of an agent, in the console's shape."""
    return dict.fromkeys(FIELDS) | {name: enrolled[name] for name in ("agent", "project", "owner")} | {"enrolled": True}
