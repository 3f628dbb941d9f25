"""ClickHouse statements as text: what kind one is, whether it is one, and where an INSERT's data begin."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

READS = frozenset({"SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS", "FROM"})
"""First words of statements that return rows and change nothing (but `WITH … INSERT`: see `is_query`)."""

_COMMENT = rb"--[^\n]*|#[ !][^\n]*|/\*.*?\*/"
_LEAD = re.compile(rb"(?:\s+|" + _COMMENT + rb"|\()*", re.DOTALL)
_TOKEN = re.compile(
    rb"(?P<blank>\s+|" + _COMMENT + rb")"
    rb"|'(?:[^'\\]|\\.|'')*'|`(?:[^`\\]|\\.)*`|\"(?:[^\"\\]|\\.)*\"|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$"
    rb"|[A-Za-z_][A-Za-z0-9_]*|[^\s'`\"$/#A-Za-z_();-]+|.",
    re.DOTALL,
)
_FORMAT = re.compile(rb"\s*([A-Za-z0-9_]+)[ \t]*;?(?:\r?\n| )?")


class Insert(NamedTuple):
    """An INSERT with data behind it: the statement without FORMAT, the format's name, the first bytes of the data.

    `input`: the span of `input(` in a statement that selects from its data; None when it takes them as they are.
    `settings`: where its SETTINGS begin; None: it has none.
    """

    statement: bytes
    format: str
    data: bytes
    input: tuple[int, int] | None = None
    settings: int | None = None

    def from_file(self, path: str) -> bytes:
        """The statement that takes its data from a file."""
        if self.input is not None:
            start, end = self.input
            source = f"file('{path}', '{self.format}', ".encode()
            return self.statement[:start] + source + self.statement[end:]
        at = len(self.statement) if self.settings is None else self.settings
        source = f" FROM INFILE '{path}' ".encode()
        return self.statement[:at] + source + self.statement[at:] + f" FORMAT {self.format}".encode()


def first_word(sql: bytes) -> str:
    """The first word of a statement, upper case, past comments and opening brackets; "" when there is none."""
    lead = _LEAD.match(sql)
    found = re.match(rb"[A-Za-z]+", sql[lead.end() if lead else 0 :])
    return found.group().decode().upper() if found else ""


def split_insert(sql: bytes) -> Insert | None:
    """`INSERT … FORMAT x data`, `INSERT … VALUES data` and `INSERT … SELECT … FROM input(…) … FORMAT x data` taken apart; None
    for INSERT … SELECT from anything else, and when there is no FORMAT.

    `sql` may be the beginning of a longer body: the data need not be whole.
    """
    depth, selects, before, opened, source, settings = 0, False, b"", 0, None, None
    for start, end, token in _tokens(sql):
        named, before = before in (b"INTO", b"TABLE", b"."), token  # a table may be called `format`
        if token == b"(":
            depth += 1
            source = source or ((opened, end) if selects and opened else None)
            opened = 0
            continue
        opened = start if token == b"INPUT" and not named else 0
        if token == b")":
            depth -= 1
        elif depth or named:
            continue
        elif token in (b"SELECT", b"WITH"):
            selects = True
        elif token == b"INFILE":
            return None
        elif token == b"SETTINGS":
            settings = start if settings is None else settings
        elif token == b"VALUES" and not selects:
            return Insert(sql[:start], "Values", sql[end:], settings=settings)
        elif token == b"FORMAT":
            name = _FORMAT.match(sql, end)
            if name is None or (selects and source is None):
                return None
            return Insert(sql[:start], name[1].decode(), sql[name.end() :], source, settings)
    return None


def is_query(sql: bytes, word: str) -> bool:
    """Whether rows may be streamed: a SELECT, and no `WITH … INSERT`, which begins like one."""
    if word != "WITH":
        return word in ("SELECT", "FROM")
    depth = 0
    for _, _, token in _tokens(sql):
        depth += (token == b"(") - (token == b")")
        if depth == 0 and token in (b"SELECT", b"FROM", b"INSERT"):
            return token != b"INSERT"
    return False


def is_one(sql: bytes) -> bool:
    """Whether nothing follows a semicolon: chDB would run one statement after the other, a server refuses."""
    if b";" not in sql:
        return True
    ended = False
    for _, _, token in _tokens(sql):
        if ended and token != b";":
            return False
        ended = ended or token == b";"
    return True


def trailing_format(sql: bytes) -> str | None:
    """The name in a FORMAT clause that ends a query, or None."""
    found = re.search(rb"\bFORMAT\s+([A-Za-z0-9_]+)\s*(?:SETTINGS\b[^;']*)?;?\s*\Z", sql, re.IGNORECASE)
    return found[1].decode() if found else None


def _tokens(sql: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(start, end, token in upper case) without blanks and comments."""
    for found in _TOKEN.finditer(sql):
        if found["blank"] is None:
            yield found.start(), found.end(), found.group().upper()
