"""What `kill`, `revoke`, `restore`, `pause` and `resume` share: the reason, and what is said when it holds.

Exit code 0: no enforcer can answer without knowing of it, also where one that was silent had to be fenced; it is named. 4: it
may or may not be in force; the same command again finds out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from banksman.cli import client, show

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping
    from typing import Any

NO_REASON = "no reason given"
PATIENCE_S = 30.0
"""Longer than the longest lease that a silent replica is waited for."""


def verb(
    name: str, whom: str, state: str
) -> tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]:
    """A verb about a whole agent or project: its module's `arguments` and `run`."""

    def named(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(whom, help="its name")
        arguments(parser)

    def run(args: argparse.Namespace) -> int:
        path = f"/v1/{whom}s/{client.part(getattr(args, whom))}/{name}"
        act(args, path, None, lambda told: f"{told[whom]} is {state}")
        return 0

    return named, run


def arguments(parser: argparse.ArgumentParser) -> None:
    """`--reason`, `--json`."""
    parser.add_argument("-m", "--reason", default=NO_REASON, metavar="TEXT", help="why; it stands in the log for good")
    show.json_argument(parser)


def act(
    args: argparse.Namespace, path: str, query: Mapping[str, str] | None, sentence: Callable[[Mapping[str, Any]], str]
) -> Mapping[str, Any]:
    """Have it done, and say where it holds -> the answer. `sentence`: of the answer, what is so now."""
    told = client.enforcer(timeout=PATIENCE_S).ask("POST", path, query, {"reason": args.reason})
    if args.json:
        show.emit(told)
        return told
    where = f"in force on {told['in_force']}/{told['replicas']} enforcers in {told['took_ms']:.0f} ms"
    show.say(f"{sentence(told)}: {where}")
    if told["fenced"]:
        silent = ", ".join(told["fenced"])
        show.say(f"did not answer, and can allow nothing any more before it has caught up: {silent}", "yellow")
    return told
