"""`banksman agents`, `agents add`, `agents rotate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from banksman.cli import client, credential, show

if TYPE_CHECKING:
    import argparse

HELP = "The agents that are enrolled; `add` enrols one, `rotate` gives one a new credential and ends the old one."
EXAMPLES = """
  banksman agents
  banksman agents --project billing-automation --json
  banksman agents add claude-invoice-01 --project billing-automation --owner ann@acme.example
  banksman agents add ci-bot --project ci --owner ops --out ci-bot.credential
  banksman agents rotate ci-bot --out ci-bot.credential
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--project", dest="of", metavar="PROJECT", help="only the agents of this project")
    show.json_argument(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="add | rotate")
    add = verbs.add_parser("add", help="enrol an agent; its credential is shown once", allow_abbrev=False)
    add.add_argument("agent", help="its name")
    add.add_argument("--project", required=True, help="the project whose policy it works under")
    add.add_argument("--owner", required=True, help="the person or team that answers for it")
    rotate = verbs.add_parser("rotate", help="a new credential; the old one ends at once", allow_abbrev=False)
    rotate.add_argument("agent", help="its name")
    for verb in (add, rotate):
        credential.out_argument(verb, "credential")


def run(args: argparse.Namespace) -> int:
    """Do it."""
    enforcer = client.enforcer()
    if args.verb == "add":
        body = {"agent": args.agent, "project": args.project, "owner": args.owner}
        return credential.hand_over(
            lambda: enforcer.post("/v1/agents", body), args, f"{args.agent} is enrolled in {args.project}"
        )
    if args.verb == "rotate":
        return credential.hand_over(
            lambda: enforcer.post(f"/v1/agents/{client.part(args.agent)}/rotate"),
            args,
            f"{args.agent} has a new credential, the old one is refused from now on",
            replace=True,
        )
    return _list(enforcer, args)


def _list(enforcer: client.Client, args: argparse.Namespace) -> int:
    agents = [one for one in enforcer.get("/v1/agents")["agents"] if args.of in (None, one["project"])]
    if args.json:
        show.emit({"agents": agents})
        return 0
    show.table(
        ("agent", "project", "owner", "enrolled (UTC)", "rotated (UTC)"),
        [
            (one["agent"], one["project"], one["owner"], _minute(one["enrolled_at"]), _minute(one["rotated_at"]))
            for one in agents
        ],
        empty=f"no agent of {args.of} is enrolled" if args.of
        else "no agent is enrolled yet: banksman agents add NAME --project P --owner O",
    )  # fmt: skip
    return 0


def _minute(time: str | None) -> str:
    return show.moment(time)[:16]
