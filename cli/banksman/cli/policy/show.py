"""`banksman policy show`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from banksman.cli import show
from banksman.cli.policy import versions
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    import argparse

HELP = """The text of a policy that was in force, from the log: of one version, as every decision names it, or of a project at a
moment. What is shown is the normalised text: what the file said, without comments, order and defaults. Exit code 1: nothing was
in force then."""
EXAMPLES = """
  banksman policy show billing-automation@v2+sha256:0123456789ab
  banksman policy show --project billing-automation
  banksman policy show --project billing-automation --at 2026-11-20T14:00:00Z --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("version", nargs="?", help="PROJECT@vN+sha256:12HEX")
    parser.add_argument("--project", help="in place of a version: what was in force for this project")
    parser.add_argument("--at", metavar="TIME", help="when (RFC 3339 with its zone; default: now)")
    show.json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    if (args.version is None) == (args.project is None):
        raise InvalidInput("name a version, or --project", field="VERSION")
    version = args.version
    if version is not None:
        since, text = versions.by_version(version)
    else:
        found = versions.in_force(args.project, _moment(args.at))
        if found is None:
            show.note(f"no policy was in force for {args.project} then, as far as the audit log reaches")
            return 1
        since, version, text = found
    if args.json:
        show.emit({"policy_version": version, "since": since, "text": text})
        return 0
    import yaml

    show.say(f"# {version}, in force since {show.moment(since)}")
    show.say(yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True, width=120).rstrip("\n"))
    return 0


def _moment(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput("must be a moment with its zone, such as 2026-11-20T14:00:00Z", field="--at") from None
    if found.tzinfo is None:
        raise InvalidInput("must have its zone, such as 2026-11-20T14:00:00Z", field="--at")
    return found.astimezone(UTC)
