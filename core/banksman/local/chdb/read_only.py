"""What a read-only user may run.

The engine's `readonly=1` still lets a query read any file (the scalar function `file`), write one (INTO OUTFILE) and see what
others ask. So a read-only user's query is taken apart here and put together again from the tokens that were understood: the
engine never sees a text that this lexer could have read in another way.
"""

from __future__ import annotations

import re

from banksman.local.chdb.faults import Fault
from banksman.local.chdb.statements import READS

# What a read-only query may be made of.
_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*(?:\n|\Z)|/\*.*?\*/)
      |(?P<string>'(?:[^'\\]|\\.|'')*')
      |(?P<quoted>`[^`\\]*`|"[^"\\]*")
      |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
      |(?P<number>[0-9][0-9A-Za-z_]*)
      |(?P<sign>[-()\[\]{},.;:+*/%<>=!|?&@^~])""",
    re.DOTALL | re.VERBOSE,
)
_NAME = re.compile(r"\w[\w %().:,+*=-]*")
_PARAMETER = re.compile(r"[a-z_][a-z0-9_]*")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SAFE_TABLE_FUNCTIONS = _words("""
    numbers numbers_mt zeros zeros_mt values view null format generateseries generate_series generaterandom primes
""")
# Functions that reach outside the database. Their names are refused wherever they stand, not only before a bracket:
# `arrayMap(file, …)` and `* APPLY file` call them too.
_OUTSIDE = _words("""
    file catboostevaluate evalmlmethod reversednsquery hascolumnintable showcertificate logtrace getclienthttpheader
    addresstoline addresstosymbol addresstolinewithinlines aiclassify aiembed aiextract aifilter aigenerate airedact
    aisimilarity aitranslate
""")
# What the database says about itself. Not here: what others are asking (processes, query_cache, errors), the process
# (stack_trace).
_SYSTEM = _words("""
    aggregate_function_combinators build_options codecs collations columns completions constraints contributors
    data_skipping_index_types data_skipping_indices data_type_families database_engines databases detached_parts
    dictionaries documentation events formats functions keywords licenses merge_tree_settings merges metrics
    mutations numbers numbers_mt one parts parts_columns primes projections settings table_engines table_functions
    tables time_zones unicode zeros zeros_mt
""")


def read_only(sql: bytes, table_functions: frozenset[str], params: dict[str, str]) -> str:
    """A read-only user's query, put together again from its tokens. Fault 164 (READONLY) for what such a user may not run.

    `table_functions`: the engine's own list, lower case; all but a few that only make rows are refused. `params`: values of
    `{name:Type}`, of which an Identifier is checked like a name in the text.
    """
    try:
        query = sql.decode()
    except UnicodeDecodeError:
        raise Fault(62, "Syntax error: the query is not UTF-8. (SYNTAX_ERROR)") from None
    forbidden = table_functions - _SAFE_TABLE_FUNCTIONS
    out: list[str] = []
    seen = ["", "", ""]  # the last three tokens: names in lower case, signs as they are
    at, first = 0, ""
    while at < len(query):
        found = _TOKEN.match(query, at)
        if found is None:
            raise _refused(f"{query[at]!r} outside of a text")
        at, token, kind = found.end(), found.group(), found.lastgroup
        if kind == "space":
            out.append(" ")
            continue
        if seen[-1] == ";" and token != ";":  # noqa: S105 - no password
            raise _refused("more than one statement")
        _check_seam(out[-1][-1:] if out else " ", token, kind)
        if kind == "quoted":
            token = token[1:-1]
            if not _NAME.fullmatch(token):
                raise _refused(f"the name {token!r}")
            out.append(f"`{token}`")
        else:
            out.append(token)
        name = token.lower() if kind in ("word", "quoted") else ""
        if name and not first:
            first = token.upper()
            if first not in READS:
                raise _refused(first)
        if name:
            _check_name(name, seen)
            if name == "identifier" and seen[-1] == ":":
                _check_name(params.get(_param(out), "").lower(), ["", "", ""], parameter=True)
        if token == "(" and (seen[-1] in forbidden or seen[-1] == "}"):  # noqa: S105 - a parameter can name a function
            raise _refused(f"the function {seen[-1]}")
        seen = [*seen[1:], name or token]
    return "".join(out)


def _check_seam(last: str, token: str, kind: str | None) -> None:
    """Two tokens without a space between them that are another thing to the engine: `//` begins a comment, as does a `/*`
    that never ends, doubled quotes stand inside a name, and in `x'…'` a backslash is no escape.
    """
    if last + token[0] in ("//", "/*") or (last == "`" and kind == "quoted") or (last.isalnum() and kind == "string"):
        raise _refused(f"{token[:20]!r} right behind {last!r}")


def _check_name(name: str, seen: list[str], *, parameter: bool = False) -> None:
    if name in _OUTSIDE or name in ("outfile", "infile", "processlist"):
        raise _refused(name)
    if seen[-1] == "." and seen[-2] == "system" and name not in _SYSTEM:
        raise _refused(f"system.{name}")
    if parameter and (not _PARAMETER.fullmatch(name) or name == "system"):
        raise _refused(f"{name!r} as an identifier")


def _param(out: list[str]) -> str:
    """The name before the colon and the type: what `{name : Identifier` ends with."""
    words = [token for token in out if token != " "]  # noqa: S105 - no password
    return words[-3]


def _refused(what: str) -> Fault:
    return Fault(164, f"Cannot execute query in readonly mode: {what} is not for read-only users. (READONLY)")
