"""`banksman sql`."""

from __future__ import annotations

from typing import Any

import pytest
from tests.cli.conftest import Reply, Scribe, Shell, problem

SQL = "POST /v1/sql"


def table(*rows: list[Any], **columns: str) -> Reply:
    return Reply({"columns": [{"name": n, "type": t} for n, t in columns.items()], "rows": list(rows), "took_ms": 8.0})


def test_a_table(operator: Shell, scribe: Scribe) -> None:
    scribe.on[SQL] = table(
        ["buyer\x1b[2J", "42", None, [1, "a"], True], ["x", "7", 0.5, {"a": None}, False],
        agent="LowCardinality(String)", n="UInt64", f="Nullable(Float64)", l="Array(String)", b="Bool",
    )  # fmt: skip
    ran = operator("sql", "SELECT {a:String}", "--param", "a=x=y", "--param", "b=")
    assert scribe.asked[0].body == {"query": "SELECT {a:String}", "parameters": {"a": "x=y", "b": ""}, "format": "json"}
    assert (ran.code, ran.err) == (0, "")
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[0] == ["agent", "n", "f", "l", "b"]
    assert lines[2] == ["buyer\\x1b[2J", "42", "NULL", '[1,"a"]', "true"]
    assert ran.out.splitlines()[3].index(" 7") > ran.out.splitlines()[2].index(" 42") - 1
    assert operator("sql", "SELECT 1", "--json").json["rows"][0][1] == "42"


@pytest.mark.parametrize("form", ["csv", "tsv", "ndjson"])
def test_clickhouses_own_formats(operator: Shell, scribe: Scribe, form: str) -> None:
    raw = b"a,\xff\x1b[2J\r\n1,2\r\n"
    scribe.on[SQL] = Reply(raw, kind="text/csv")
    out = operator.folder / "out"
    with out.open("wb") as file, operator.start("sql", "SELECT 1", "--format", form, stdout=file) as process:
        assert process.wait(60) == 0
    assert out.read_bytes() == raw
    assert scribe.asked[0].body["format"] == form
    ran = operator.on_terminal("sql", "SELECT 1", "--format", form)
    assert "\\x1b[2J" in ran.out
    assert "\x1b" not in ran.out


def test_from_stdin(operator: Shell, scribe: Scribe) -> None:
    scribe.on[SQL] = table(a="String")
    for words in ((), ("-",)):
        ran = operator("sql", *words, given="SELECT 'ü'\n")
        assert scribe.asked[-1].body["query"] == "SELECT 'ü'\n"
        assert (ran.code, ran.out, ran.err) == (0, "", "no rows (8 ms)\n")
    assert operator("sql", given=" \n").code == 2


def test_what_clickhouse_says(operator: Shell, scribe: Scribe) -> None:
    scribe.on[SQL] = problem(422, "Code: 62. DB::Exception: Syntax error", code=62)
    ran = operator("sql", "SELEC 1")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "banksman sql: Code: 62. DB::Exception: Syntax error\n"
    scribe.on[SQL] = problem(503, "ClickHouse is away", retry_after=2)
    assert operator("sql", "SELECT 1").code == 4
    scribe.on[SQL] = problem(429, "four queries run already", retry_after=2)
    assert operator("sql", "SELECT 1", "--format", "csv").code == 4
    assert operator("sql", "SELECT 1", "--param", "x").code == 2
    assert operator("sql", "SELECT 1", "--json", "--format", "csv").code == 2
