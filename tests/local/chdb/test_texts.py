"""Statements as texts: where an INSERT's data begin, what is one statement, what of a reader's query reaches the engine."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from banksman.local.chdb import statements
from banksman.local.chdb.faults import Fault, from_engine
from banksman.local.chdb.read_only import read_only
from banksman.local.chdb.settings import chosen
from banksman.local.chdb.users import READER_LIMITS, User

SOURCES = frozenset({"file", "url", "s3", "remote", "numbers", "values"})
PIECES = st.sampled_from(
    ["SELECT", " ", "\n", "file", "`", "'", '"', "\\", "(", ")", "/*", "*/", "--", "//", ";", "x", "1", ".", "system",
     "processes", "$$", "#", "INTO OUTFILE", "{", "}", ":", "Identifier", "a", "''", "é", "\0", "\u00a0", "@", ","]
)  # fmt: skip


def passed(query: bytes) -> str | None:
    """What of a reader's query reaches the engine; None: it is refused, with a code that says so."""
    try:
        return read_only(query, SOURCES, {})
    except Fault as fault:
        if fault.code not in {62, 164}:
            raise
        return None


# --- a reader's query


@given(st.lists(PIECES, max_size=14).map(lambda parts: "SELECT " + "".join(parts)))
@example("SELECT `a\\`, file('x'), `b`")
@example("SELECT 'a\\', file('x'), 'b'")
@example("SELECT 1 --\r file('x')")
@example("SELECT /*")
@example("SELECT 1 /* /* */ file('x') */")
def test_whatever_is_let_through_calls_nothing_that_is_forbidden(query: str) -> None:
    """What comes out has no comment left and no quote that could be read in two ways; so the name can be looked for by hand."""
    out = passed(query.encode())
    if out is None:
        return
    bare, quote = "", ""
    at = 0
    while at < len(out):
        sign = out[at]
        if quote == "'" and sign == "\\":
            at += 2
            continue
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'`":
            quote = sign
            bare += " "
        else:
            bare += sign
        at += 1
    assert quote == ""
    assert not any(sign in bare for sign in ("/*", "--", "//", "#", "$", '"', "\0"))
    words = bare.lower().replace("(", " ( ").replace(".", " . ").split()
    assert "file" not in words
    assert "outfile" not in words
    assert bare.rstrip(" ;").count(";") == 0
    assert passed(out.encode()) is not None


@given(st.text(max_size=60))
def test_any_text_may_stand_in_a_string(text: str) -> None:
    literal = "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    query = f"SELECT {literal}, x"
    assert read_only(query.encode("utf-8", "surrogatepass"), SOURCES, {}) == query


@given(st.binary(max_size=60))
def test_bytes_that_are_no_text_are_refused_not_run(data: bytes) -> None:
    passed(b"SELECT " + data)


@pytest.mark.parametrize("value", ["system", "a.b", "file('x')", "`x`", "", "processes\0", "FILE"])
def test_an_identifier_in_a_parameter_is_held_to_the_same(value: str) -> None:
    with pytest.raises(Fault) as refused:
        read_only(b"SELECT * FROM {t : Identifier}", SOURCES, {"t": value})
    assert refused.value.code == 164


# --- INSERT


@pytest.mark.parametrize(
    ("sql", "statement", "form", "data"),
    [
        (b"INSERT INTO t FORMAT CSV\n1,2", b"INSERT INTO t ", "CSV", b"1,2"),
        (b"INSERT INTO t FORMAT CSV\r\n1,2", b"INSERT INTO t ", "CSV", b"1,2"),
        (b"INSERT INTO t FORMAT CSV;1,2", b"INSERT INTO t ", "CSV", b"1,2"),
        (b"insert into t (a, b) values (1, 2)", b"insert into t (a, b) ", "Values", b" (1, 2)"),
        (b"INSERT INTO format FORMAT CSV 1", b"INSERT INTO format ", "CSV", b"1"),
        (b"INSERT INTO d.values VALUES (1)", b"INSERT INTO d.values ", "Values", b" (1)"),
        (b"INSERT INTO `a FORMAT b` FORMAT TSV 1", b"INSERT INTO `a FORMAT b` ", "TSV", b"1"),
        (b"INSERT INTO t /* VALUES */ FORMAT RowBinary\n\0\n", b"INSERT INTO t /* VALUES */ ", "RowBinary", b"\0\n"),
    ],
)
def test_where_the_data_begin(sql: bytes, statement: bytes, form: str, data: bytes) -> None:
    assert statements.split_insert(sql) == statements.Insert(statement, form, data)


@pytest.mark.parametrize(
    "sql",
    [
        b"INSERT INTO t SELECT 1",
        b"INSERT INTO t SELECT 1 FORMAT CSV",
        b"INSERT INTO t SELECT * FROM values('x UInt8', 1)",
        b"INSERT INTO t FROM INFILE 'x' FORMAT CSV",
        b"INSERT INTO t (a) ",
    ],
)
def test_inserts_without_data_of_their_own(sql: bytes) -> None:
    assert statements.split_insert(sql) is None


@given(st.binary(max_size=100), st.sampled_from(["CSV", "Native", "JSONEachRow"]))
def test_data_come_through_as_they_are(data: bytes, form: str) -> None:
    got = statements.split_insert(f"INSERT INTO t (a, `b`) FORMAT {form}\n".encode() + data)
    assert got is not None
    assert (got.format, got.data) == (form, data)


@pytest.mark.parametrize(
    ("sql", "one"),
    [
        (b"SELECT 1", True),
        (b"SELECT 1;", True),
        (b"SELECT 1 ; -- done\n", True),
        (b"SELECT ';'", True),
        (b"SELECT 1 /* ; */", True),
        (b"SELECT 1; SELECT 2", False),
        (b"SELECT 1;;", True),
        (b"SELECT ';'; DROP TABLE t", False),
        (b"SELECT $x$;$x$; DROP TABLE t", False),
    ],
)
def test_what_is_one_statement(sql: bytes, one: bool) -> None:
    assert statements.is_one(sql) is one


@pytest.mark.parametrize(
    ("sql", "word"),
    [(b" /* a */ -- b\n (select 1)", "SELECT"), (b"#! x\nWITH", "WITH"), (b"", ""), (b"1", ""), (b"(((FROM t", "FROM")],
)
def test_the_first_word(sql: bytes, word: str) -> None:
    assert statements.first_word(sql) == word


# --- errors and limits


def test_an_error_of_the_engine_is_told_as_a_server_tells_it() -> None:
    nested = (
        "Failed: Code: 36. DB::Exception: Code: 60. DB::Exception: Unknown table t. (UNKNOWN_TABLE). (BAD_ARGUMENTS), "
        "Stack trace (when copying this message, always include the lines below):\n0. x"
    )
    fault = from_engine(RuntimeError(nested))
    assert (fault.code, fault.status) == (60, 404)
    assert fault.message("26.9") == (
        "Code: 60. DB::Exception: Unknown table t. (UNKNOWN_TABLE) (version 26.9 (official build))"
    )
    strange = from_engine(RuntimeError("a wall fell down"))
    assert (strange.code, strange.status) == (1002, 500)


@given(st.integers(-5, 10**9) | st.floats(allow_nan=False, allow_infinity=False))
def test_no_wish_makes_a_limit_wider(wish: float) -> None:
    reader = User("analyst", "0" * 64, readonly=True, limits=READER_LIMITS)
    for name, limit in READER_LIMITS.items():
        assert 0 < int(chosen(reader, {name: str(wish)})[name]) <= limit


@pytest.mark.parametrize("wish", ["many", "nan", "inf", "1 OR 1", "", "0x10"])
def test_a_wish_that_is_no_number_is_refused(wish: str) -> None:
    reader = User("analyst", "0" * 64, readonly=True, limits=READER_LIMITS)
    with pytest.raises(Fault) as refused:
        chosen(reader, {"max_result_rows": wish})
    assert refused.value.code == 27
