"""ClickHouse statements as text: what kind one is, where an INSERT's data begin, and what a read-only user may run.

The engine's `readonly=1` still lets a query read any file (the scalar function `file`), write one (INTO OUTFILE), kill
other queries and run several statements at once. So a read-only user's query is taken apart here and put together again
from the tokens that were understood: the engine never sees a text that this lexer could have read in another way.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from banksman.local.chdb.faults import Fault

READS = frozenset({"SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "FROM"})
"""First words of statements that return rows and change nothing."""

_COMMENT = rb"--[^\n]*|#[ !][^\n]*|/\*.*?\*/"
_LEAD = re.compile(rb"(?:\s+|" + _COMMENT + rb"|\()*", re.DOTALL)
_LEX = re.compile(
    rb"'(?:[^'\\]|\\.|'')*'|`(?:[^`\\]|\\.)*`|\"(?:[^\"\\]|\\.)*\"|" + _COMMENT + rb"|[A-Za-z_][A-Za-z0-9_]*|\s+|.",
    re.DOTALL,
)

# What a read-only query may be made of.
_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/)
      |(?P<string>'(?:[^'\\]|\\.|'')*')
      |(?P<quoted>`[^`\\]*`|"[^"\\]*")
      |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
      |(?P<number>[0-9][0-9A-Za-z_]*)
      |(?P<sign>[-()\[\]{},.;:+*/%<>=!|?&@])""",
    re.DOTALL | re.VERBOSE,
)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ %().:,-]*")
_SAFE_TABLE_FUNCTIONS = frozenset(
    [
        "numbers",
        "numbers_mt",
        "zeros",
        "zeros_mt",
        "values",
        "view",
        "null",
        "format",
        "generateseries",
        "generate_series",
        "generaterandom",
        "primes",
    ]
)
# Scalar functions that reach outside the database.
_OUTSIDE = frozenset(
    ["file", "catboostevaluate", "reversednsquery", "addresstoline", "addresstosymbol", "addresstolinewithinlines"]
)


class Insert(NamedTuple):
    """An INSERT with data behind it: the statement without FORMAT, the format's name, the first bytes of the data."""

    statement: bytes
    format: str
    data: bytes


def first_word(sql: bytes) -> str:
    """The first word of a statement, upper case, past comments and opening brackets; "" when there is none."""
    lead = _LEAD.match(sql)
    found = re.match(rb"[A-Za-z]+", sql[lead.end() if lead else 0 :])
    return found.group().decode().upper() if found else ""


def split_insert(sql: bytes) -> Insert | None:
    """`INSERT … FORMAT x data` or `INSERT … VALUES data` taken apart; None for INSERT … SELECT and everything else.

    `sql` may be the beginning of a longer body: the data need not be whole.
    """
    depth = 0
    for found in _LEX.finditer(sql):
        token = found.group().upper()
        if token == b"(":
            depth += 1
        elif token == b")":
            depth -= 1
        elif depth == 0:
            if token in (b"SELECT", b"WITH", b"INFILE"):
                return None
            if token == b"VALUES":
                return Insert(sql[: found.start()], "Values", sql[found.end() :])
            if token == b"FORMAT":
                name = re.match(rb"\s*([A-Za-z0-9_]+)[ \t]*;?(?:\r?\n| )?", sql[found.end() :])
                if name:
                    return Insert(sql[: found.start()], name[1].decode(), sql[found.end() + name.end() :])
    return None


def trailing_format(sql: bytes) -> str | None:
    """The name in a FORMAT clause that ends a query, or None."""
    found = re.search(rb"\bFORMAT\s+([A-Za-z0-9_]+)\s*(?:SETTINGS\b[^;']*)?;?\s*\Z", sql, re.IGNORECASE)
    return found[1].decode() if found else None


def quoted(name: str) -> str:
    """An identifier for a statement that runs before `readonly` is set; Fault when it could end its quotes."""
    if "`" in name or "\\" in name or not name:
        raise Fault(36, f"Bad name {name!r}. (BAD_ARGUMENTS)")
    return f"`{name}`"


def read_only(sql: bytes, table_functions: frozenset[str]) -> str:
    """A read-only user's query, put together again from its tokens. Fault 164 (READONLY) for what such a user may not run.

    `table_functions`: the engine's own list, lower case; all but a few that only make rows are refused.
    """
    try:
        text = sql.decode()
    except UnicodeDecodeError:
        raise Fault(62, "Syntax error: the query is not UTF-8. (SYNTAX_ERROR)") from None
    forbidden = (table_functions - _SAFE_TABLE_FUNCTIONS) | _OUTSIDE
    out: list[str] = []
    at, before, first = 0, "", ""
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _refused(f"{text[at]!r} outside of a text")
        at, token, kind = found.end(), found.group(), found.lastgroup
        if kind == "space":
            out.append(" ")
            continue
        if before == ";" and token != ";":  # noqa: S105
            raise _refused("more than one statement")
        if kind == "quoted":
            token = token[1:-1]
            if not _NAME.fullmatch(token):
                raise _refused(f"the name {token!r}")
            out.append(f"`{token}`")
        else:
            out.append(token)
        lower = token.lower()
        if not first and kind in ("word", "quoted"):
            first = token.upper()
            if first not in READS:
                raise _refused(first)
        if kind == "word" and lower in ("outfile", "infile"):
            raise _refused(lower.upper())
        if token == "(" and (before in forbidden or before == "}"):  # noqa: S105 - a parameter can name a function
            raise _refused(f"the function {before}")
        before = lower if kind in ("word", "quoted") else token
    return "".join(out)


def _refused(what: str) -> Fault:
    return Fault(164, f"Cannot execute query in readonly mode: {what} is not for read-only users. (READONLY)")
