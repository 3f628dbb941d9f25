"""`POST /v1/sql`: an analyst's own question, as ClickHouse's read-only user and within limits."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from starlette.responses import Response

from banksman import canonical, codec
from banksman.errors import InvalidInput
from banksman.http_body import read_body, require_type
from banksman.http_problem import problem

if TYPE_CHECKING:
    from starlette.requests import Request

    from banksman.console.asking import Asking
    from banksman.console.known import Known

MAX_BODY = 1 << 20
FORMS = {
    "json": ("JSONCompact", "application/json"),
    "csv": ("CSVWithNames", "text/csv; charset=utf-8"),
    "tsv": ("TabSeparatedWithNames", "text/tab-separated-values; charset=utf-8"),
    "ndjson": ("JSONEachRow", "application/x-ndjson"),
}
_READS = re.compile(r"(?:SELECT|WITH|SHOW|DESCRIBE|DESC|EXPLAIN|EXISTS|\()", re.IGNORECASE).match
_SPACE = re.compile(r"(?:\s+|--[^\n]*(?:\n|$)|#[! ][^\n]*(?:\n|$)|/\*.*?\*/)+", re.DOTALL).match


class Sql(msgspec.Struct, forbid_unknown_fields=True):
    """The body."""

    query: Annotated[
        str, msgspec.Meta(min_length=1, examples=["SELECT agent, count() AS n FROM events GROUP BY agent"])
    ]
    parameters: dict[str, str | int | float | bool | list[Any] | None] = {}
    format: Literal["json", "csv", "tsv", "ndjson"] = "json"


class Analyst:
    """The endpoint."""

    def __init__(self, knows: Known, asking: Asking) -> None:
        self._known, self._asking = knows, asking

    async def endpoint(self, request: Request) -> Response:
        """The endpoint."""
        began = time.perf_counter()
        self._known.operator(request.scope["fields"])
        require_type(request.scope, "application/json")
        body = await read_body(request.scope, request.receive, limit=MAX_BODY)
        try:
            asked = msgspec.convert(canonical.parse(body), Sql)
        except InvalidInput as error:
            raise problem(400, error.message, field=error.field) from None
        except msgspec.ValidationError as error:
            told = codec.invalid(error)
            raise problem(422, told.message, field=told.field) from None
        space = _SPACE(asked.query)
        bare = asked.query[space.end() if space else 0 :].rstrip().rstrip(";")
        if not _READS(bare):
            raise problem(
                422, "one statement that reads: SELECT, WITH, SHOW, DESCRIBE, EXPLAIN or EXISTS", field="query"
            )
        form, kind = FORMS[asked.format]
        raw = await self._asking.sql(bare, asked.parameters, form)
        if asked.format != "json":
            return Response(raw, media_type=kind)
        answer = msgspec.json.decode(raw)
        told_ = {
            "columns": answer["meta"], "rows": answer["data"],
            "rows_read": answer.get("statistics", {}).get("rows_read"),
            "took_ms": round((time.perf_counter() - began) * 1000, 1),
        }  # fmt: skip
        return Response(msgspec.json.encode(told_), media_type=kind)
