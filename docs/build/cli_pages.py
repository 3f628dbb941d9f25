"""docs/reference/cli.md: the real --help of every command, and what its --json is."""

from __future__ import annotations

import argparse
import importlib
import os
from typing import TYPE_CHECKING

from banksman.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS = 100  # argparse breaks its lines at the width of the terminal: here it has one

INTRO = """# Command line

`banksman COMMAND …`. Data goes to stdout, messages to stderr. Tables are for people: on a terminal they keep within it (a very
narrow one gets a block of lines a row), in a pipe a row is a line. `--json` is for programs: one JSON value on one line (`watch`: a
line a record), whose fields only grow. Text that an agent chose is made visible wherever a terminal could obey it (`\\x1b`,
`\\u202e`); JSON escapes the same. Colours only on a terminal, and not with `NO_COLOR` or `TERM=dumb`. Times are UTC.

Commands find the services and the operator's token by the [settings](settings.md): `BANKSMAN_URL`, `BANKSMAN_CONSOLE_URL`, and
`BANKSMAN_OPERATOR_TOKEN` or `BANKSMAN_OPERATOR_TOKEN_FILE`, else `.banksman/admin.token`. No token is taken as an argument: arguments
are seen by everybody on the machine.

| exit code | |
|---|---|
| 0 | ok |
| 1 | a finding: something is wrong out there, said on stdout |
| 2 | usage, or input that is wrong; the message names the argument, setting or field |
| 3 | no token, an unknown one, or one that may not do this |
| 4 | somebody does not answer, or it is not confirmed: try again |
| 130 | Ctrl-C |

This page is made from the commands themselves (`make docs`).
"""

JSON = {
    "status": "`{ok, wrong: [{where, text, do}], notes: [text], away: {enforcer | console: why}, enforcer, console, findings}`; the last "
    "three are the services' own answers, null or empty when they are away.",
    "doctor": "`{ok, stops_at, steps: [{name, state, text, do}]}`; `state`: `ok`, `failed`, `skipped`.",
    "now": "the answer of [`GET /v1/agents/{agent}/now`](http-console.md#what-is-an-agent-doing-now).",
    "watch": "a line a record, as [`GET /v1/watch`](http-console.md#watching) sends them.",
    "sessions": "`{sessions: [as in GET /v1/sessions], more}`; `more`: there are more than `--limit`.",
    "session": "`{header, steps, gaps, repeats}` as [`GET /v1/sessions/{session}`](http-console.md#what-happened-in-a-session) says, all "
    "pages in one. `--export ndjson`: a step a line, with `project agent session owner replay` in front; `--export csv`: the same as columns.",
    "sql": "`{columns: [{name, type}], rows, rows_read, took_ms}` as [`POST /v1/sql`](http-console.md#sql) answers.",
    "agents": "`{agents: [as in GET /v1/agents of the console]}`; without the read side what it alone knows is null (exit code 4). "
    "`add`, `rotate`: `{agent, project, owner, token}`, or with `--out` `out` (the file) instead of `token`.",
    "policy": "`lint --format json`: `{findings: [{level, code, message, mend, file, line, rule}]}`. `test`: `{files: [{file, policy_version, "
    "cases: [{test, agent, operation, line, decision, rule, reason, wrong}], uncovered: [rule]}], coverage}`. `explain`: as "
    "[`POST /v1/explain`](http-enforcer.md) answers. `diff`: `{changes: [{agent, service, action, resource, branch, under, before, after, kind}], "
    "settings: [{about, what, before, after}]}`.",
    "operators": "`{name, roles, token}`, or with `--out` `out` instead of `token`.",
    "migrate": "`{topics, migrations, dry_run}`, names of what was (or would be) made; `list`: `{migrations: [{number, name, sha256, ran}]}`.",
}


def cli_page() -> str:
    """The whole page."""
    os.environ["COLUMNS"] = str(COLUMNS)
    parts = [INTRO, f"```\n{main.overview()}\n```\n"]
    for title, verbs in main.VERBS.items():
        parts.append(f"## {title}\n")
        for verb, (module, _) in verbs.items():
            parser = main.parser_of(verb, importlib.import_module(f"banksman.cli.{module}"))
            parts.append(f"### banksman {verb}\n")
            parts += [f"```\n{one.format_help().strip()}\n```\n" for one in (parser, *_inner(parser))]
            if verb in JSON:
                parts.append(f"`--json`: {JSON[verb]}\n")
    return "\n".join(parts)


def _inner(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers of `agents add` and the like."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to its own subcommands
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - same
            yield from action.choices.values()
