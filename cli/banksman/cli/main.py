"""`banksman VERB …`: finds the verb's module, lets it read its arguments and run, turns errors into one line and an exit code.

A verb is a module of this folder with

    HELP: str                                 what `banksman VERB --help` opens with
    EXAMPLES: str                             worked examples, a command a line, shown at the end of --help
    def arguments(parser) -> None             adds the verb's own arguments to an argparse parser
    def run(args) -> int                      does it; returns the exit code, or raises a BanksmanError

and a line in VERBS. Only the chosen verb's module is imported, and modules of verbs that merely speak HTTP import nothing
heavy at their top: `banksman now` answers faster than it takes to import a Kafka client. Data goes to stdout,
messages to stderr (show.py).

Exit codes: 0 ok · 1 a finding (something is wrong out there, said on stdout) · 2 usage or invalid input · 3 authentication
· 4 unreachable, or not confirmed · 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from typing import TYPE_CHECKING

from banksman.errors import BanksmanError, InvalidInput, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

OK, FINDING, USAGE, AUTH, AWAY, INTERRUPTED = 0, 1, 2, 3, 4, 130

VERBS: dict[str, dict[str, tuple[str, str]]] = {
    "On this machine": {
        "up": ("up", "everything on this machine: Kafka, ClickHouse, enforcer, archiver, console"),
    },
    "What is going on": {
        "status": ("status", "is anything not enforcing, lagging, undelivered or rejected?"),
        "doctor": ("doctor", "follow the path of an action and say where it stops"),
        "now": ("now", "what an agent is doing right now"),
        "watch": ("watch", "live tail of what agents do"),
        "sessions": ("sessions", "the runs of agents"),
        "session": ("session", "what exactly happened in one run"),
        "sql": ("sql", "read-only SQL against the audit log"),
    },
    "Who may act": {
        "agents": ("agents", "the agents; `agents add` and `agents rotate` give credentials"),
        "operators": ("operators", "`operators add` gives a person a token"),
    },
    "What waits for a human": {
        "approvals": ("approvals", "the inbox"),
        "approve": ("approve", "say yes to one exact action"),
        "deny": ("deny", "say no"),
    },
    "Stop it": {
        "kill": ("kill", "end one session, for good"),
        "revoke": ("revoke", "stop an agent in every session"),
        "restore": ("restore", "let a revoked agent ask again"),
        "pause": ("pause", "stop all agents of a project"),
        "resume": ("resume", "let the agents of a paused project ask again"),
    },
    "Policy as code": {
        "policy": ("policy", "lint, test, explain and diff policies"),
    },
    "Recorded actions": {
        "replay": ("replay", "send recorded actions through the real emitter and enforcer"),
    },
    "One service at a time": {
        "serve": ("serve", "run the enforcer, the archiver or the console"),
        "migrate": ("migrate", "make the Kafka topics and the ClickHouse tables"),
    },
}

_MODULES = {verb: module for group in VERBS.values() for verb, (module, _) in group.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """The command `banksman`. Returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"]:  # `banksman help now` is `banksman now --help`
        arguments = [*arguments[1:2], "--help"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without some letter of a name shows its code instead
            stream.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return OK if arguments else USAGE
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"banksman {version('banksman')}")
        return OK
    verb = arguments[0]
    if verb not in _MODULES:
        print(f"banksman: {_unknown(verb)}", file=sys.stderr)
        return USAGE
    try:
        module = importlib.import_module(f"banksman.cli.{_MODULES[verb]}")
        parsed = parser_of(verb, module).parse_args(arguments[1:])
        code: int = module.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:  # `banksman sessions | head`: the reader has seen enough
        _drop_stdout()
        return OK
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        _drop_stdout()
        print(f"banksman {verb}: cannot write: {error.strerror}", file=sys.stderr)
        return AWAY
    except KeyboardInterrupt:
        return INTERRUPTED
    except BanksmanError as error:
        from banksman.cli import show

        show.note(f"banksman {verb}: {error}")
        return exit_code(error)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "banksman":
            raise
        extras = "server,local" if verb == "up" else "server"
        print(f"banksman {verb}: needs {error.name}: pip install 'banksman[{extras}]'", file=sys.stderr)
        return AWAY
    return code


def _drop_stdout() -> None:
    """Let go of what could not be written: the interpreter would try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_code(error: BanksmanError) -> int:
    """What a script is told about an error. Errors that know better (an HTTP answer) carry `exit_code` themselves."""
    known = getattr(error, "exit_code", None)
    if isinstance(known, int):
        return known
    if isinstance(error, InvalidInput):
        return USAGE
    return AUTH if isinstance(error, Refused) else AWAY


def parser_of(verb: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of a verb, as its module describes it."""
    parser = argparse.ArgumentParser(
        prog=f"banksman {verb}",
        description=module.HELP,
        epilog=f"examples:\n{module.EXAMPLES.strip(chr(10))}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # an abbreviation that works today means something else with the next option
    )
    module.arguments(parser)
    return parser


def overview() -> str:
    """What `banksman --help` prints. Made from the table alone: no verb is imported for it."""
    lines = ["usage: banksman COMMAND …   (banksman COMMAND --help says more)", ""]
    for title, verbs in VERBS.items():
        lines.append(f"{title}:")
        lines += [f"  {verb:<10} {help_}" for verb, (_, help_) in verbs.items()]
        lines.append("")
    lines += [
        "exit codes: 0 ok, 1 a finding, 2 usage or invalid input, 3 authentication, 4 unreachable or not confirmed",
        "",
        "examples:",
        "  banksman up --demo                    see all of it work, on this machine, in a minute",
        "  banksman now claude-invoice-01        what is this agent doing right now?",
        "  banksman session d97e2169             what exactly happened?",
    ]
    return "\n".join(lines)


def _unknown(verb: str) -> str:
    import difflib

    close = difflib.get_close_matches(verb, _MODULES, 1)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"there is no command {verb!r}{guess} (`banksman --help` lists them)"


if __name__ == "__main__":
    sys.exit(main())
