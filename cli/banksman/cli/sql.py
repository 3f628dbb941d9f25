"""`banksman sql "SELECT …"`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from banksman.cli import client, show
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    import argparse

HELP = """Ask the audit log in ClickHouse's SQL, as its read-only user: one statement that reads. Tables and views: `events`,
`sessions`, `session_steps`, `agents_now`, `decisions`, `approvals`, `alerts`, `spend_daily`, `permissions_used`; those that
need a filter take it as a parameter. Values belong into --param, never into the text. Integers of 64 bits are strings in
JSON."""
EXAMPLES = """
  banksman sql "SELECT agent, count() AS n FROM events GROUP BY agent ORDER BY n DESC"
  banksman sql "SELECT * FROM decisions(since = now() - INTERVAL 1 HOUR) WHERE decision = 'deny'" --json
  banksman sql "SELECT * FROM events WHERE agent = {agent:String} LIMIT 10" --param agent=claude-invoice-01
  banksman sql --format csv < question.sql > answer.csv
"""
SLOW_S = 600.0  # the console ends a query that takes too long, and says so: that is its setting, not ours


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("query", nargs="?", help="the statement; without one, or with -, it is read from stdin")
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a value for {NAME:Type} in the query; repeatable",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--format", choices=("csv", "tsv", "ndjson"), help="as ClickHouse writes it, instead of a table")
    show.json_argument(shape)


def run(args: argparse.Namespace) -> int:
    """Do it."""
    query = args.query if args.query not in (None, "-") else _read()
    body = {"query": query, "parameters": _parameters(args.param), "format": args.format or "json"}
    console = client.console(timeout=SLOW_S)
    try:
        if args.format:
            raw, _ = console.fetch("POST", "/v1/sql", body=body)
            _write(raw)
            return 0
        answer = console.post("/v1/sql", body)
    except client.Problem as problem:
        if problem.status != 422:
            raise
        raise InvalidInput(problem.detail) from None  # ClickHouse's own words, without a status around them
    if args.json:
        show.emit(answer)
        return 0
    show.table(
        [(">" if _is_number(column["type"]) else "") + column["name"] for column in answer["columns"]],
        [[_cell(value) for value in row] for row in answer["rows"]],
        empty=f"no rows ({show.seconds(answer['took_ms'] / 1000)})",
    )
    if answer["rows"] and sys.stdout.isatty():
        show.note(f"{show.count(len(answer['rows']), 'row')} in {show.seconds(answer['took_ms'] / 1000)}")
    return 0


def _read() -> str:
    if sys.stdin.isatty():
        show.note("the query, then Ctrl-D:")
    query = sys.stdin.read()
    if not query.strip():
        raise InvalidInput("is empty", field="query")
    return query


def _parameters(given: list[str]) -> dict[str, str]:
    parameters = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise InvalidInput(f"{one!r} is not NAME=VALUE", field="--param")
        parameters[name] = value
    return parameters


def _write(raw: bytes) -> None:
    """A pipe gets ClickHouse's bytes; on a terminal what agents wrote is made safe."""
    if sys.stdout.isatty():
        show.say(raw.decode("utf-8", "replace").rstrip("\n").replace("\t", "    "))
    else:
        sys.stdout.buffer.write(raw)


def _cell(value: object) -> object:
    if value is None:
        return show.Cell("NULL", "dim")
    if isinstance(value, bool):
        return "true" if value else "false"
    return show.dumps(value) if isinstance(value, dict | list) else value


def _is_number(kind: str) -> bool:
    bare = kind.removeprefix("LowCardinality(").removeprefix("Nullable(")
    return bare.startswith(("Int", "UInt", "Float", "Decimal"))
