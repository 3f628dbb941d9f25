"""Connections to ClickHouse, real or embedded alike. The only file that imports clickhouse_connect."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect import common
from clickhouse_connect.driver.exceptions import ClickHouseError
from urllib3.exceptions import HTTPError

from banksman.errors import InvalidInput, InvalidSetting, StoreAway
from banksman.store import cluster

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from clickhouse_connect.driver.client import Client

    from banksman.settings import ClickHouse

# A read-only user may make its limits tighter. Only the server knows which: the client would refuse them all without asking.
common.set_setting("invalid_setting_action", "send")
logging.getLogger("clickhouse_connect.driver.client").setLevel(logging.ERROR)  # it warns of each one that is sent

# What a value can be refused for. Not among them: what a body that was cut looks like (3, 32, 33), or a garbled one (26, 27,
# 117, 190), and columns of another type (53, 70), which refuse every row alike. Those, and everything else (disk, memory, too
# many parts, network, and what nobody foresaw), say nothing about a row, and may pass.
_ABOUT_VALUES = frozenset({6, 38, 41, 69, 72, 131, 321, 349, 376, 407, 467, 469, 691})
_ABOUT_QUESTION = _ABOUT_VALUES | {
    26, 27, 32, 33, 36, 42, 43, 44, 46, 47, 53, 60, 62, 63, 70, 81, 115, 117, 164, 179, 184, 190, 215, 386, 441, 456, 497,
    561, 645,
}  # fmt: skip
# What a server says that is not well, whatever it was asked: files, network, threads, space, overload, shutdown.
_ABOUT_SERVER = frozenset({
    74, 75, 76, 198, 202, 203, 209, 210, 225, 236, 242, 243, 244, 252, 279, 319, 394, 425,
    439, 668, 692, 745, 999, 1001, 1002,
})  # fmt: skip
_TOO_MUCH = frozenset({158, 159, 160, 241, 307, 396})
_CODE = re.compile(r"(?:code:|Code:) ?(\d+)")


class BadData(InvalidInput):
    """ClickHouse itself refused rows, with a code that speaks of the values in them."""


class BadQuestion(InvalidInput):
    """ClickHouse refused a query: it is wrong, not allowed, or asks for too much. `code` is ClickHouse's."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code

    @property
    def too_much(self) -> bool:
        """It ran into a limit of time, rows, bytes or memory."""
        return self.code in _TOO_MUCH


class Store:
    """One user's connection. Blocking; safe to use from several threads. Every error is one of ours."""

    def __init__(self, settings: ClickHouse, *, reader: bool, timeout: float = 30.0) -> None:
        self.database = settings.clickhouse_database
        self._settings, self._reader, self._timeout = settings, reader, timeout
        self._client: Client | None = None

    def query(
        self, sql: str, parameters: Mapping[str, Any] | None = None, *, limits: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Rows as dicts. `parameters` are bound by the server (`{name:Type}`), never pasted into the text.

        StoreAway: no answer, or the server is out of something. BadQuestion: the query itself.
        """
        names, rows = self.table(sql, parameters, limits=limits)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def table(
        self, sql: str, parameters: Mapping[str, Any] | None = None, *, limits: Mapping[str, Any] | None = None
    ) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        """(column names, rows), otherwise as `query`."""
        if self._settings.clickhouse_cluster:
            sql = cluster.globally(sql)
        try:
            result = self._connected().query(sql, parameters=dict(parameters or {}), settings=dict(limits or {}))
        except (ClickHouseError, HTTPError, OSError) as error:
            raise self._ours(error) from None
        return result.column_names, result.result_rows

    def raw(
        self, sql: str, parameters: Mapping[str, Any], *, form: str, limits: Mapping[str, Any] | None = None
    ) -> bytes:
        """The whole answer as the server writes it in the format `form`.

        `sql` is anybody's, and can end in any of ClickHouse's hundreds of errors: BadQuestion for all but those that say that
        the server is not well, which are StoreAway.
        """
        try:
            answer: bytes = self._connected().raw_query(
                sql, parameters=dict(parameters), settings=dict(limits or {}), fmt=form
            )
        except (ClickHouseError, HTTPError, OSError) as error:
            raise self._ours(error, anybodys=True) from None
        return answer

    def command(self, sql: str, parameters: Mapping[str, Any] | None = None) -> None:
        """A statement without rows."""
        try:
            self._connected().command(sql, parameters=dict(parameters or {}))
        except (ClickHouseError, HTTPError, OSError) as error:
            raise self._ours(error) from None

    def insert(self, table: str, columns: Sequence[str], block: bytes) -> None:
        """One block of `store.native` with these columns: all of its rows are there when this returns, or none.

        StoreAway: try the same again; it may be there already. BadData: ClickHouse refused it for a value in it.
        """
        try:
            done = self._connected().raw_insert(
                f"`{self.database}`.`{table}`",
                column_names=columns,
                insert_block=block,
                fmt="Native",
                settings={
                    "async_insert": 0,  # what is answered is stored, whatever the server's own profile says
                    "min_insert_block_size_rows": 0,  # the block is stored as it comes: one part, there or not there
                    "min_insert_block_size_bytes": 0,
                    "optimize_on_insert": 0,  # a block holds no row twice: it need not be searched for one
                    "input_format_null_as_default": 1,
                    **(cluster.INSERT if self._settings.clickhouse_cluster else {}),
                },
            )
        except (ClickHouseError, HTTPError, OSError) as error:
            raise self._ours(error, stores=True) from None
        if not done.query_id():  # ClickHouse's own header: a 200 of something in between stores nothing
            raise StoreAway(f"{self._settings.clickhouse} is answered by something that is not ClickHouse")

    def close(self) -> None:
        """Let the connection go."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self) -> Client:
        if self._client is None:
            address = urlsplit(self._settings.clickhouse)
            if address.scheme not in ("http", "https") or not address.hostname:
                raise InvalidSetting(
                    f"{self._settings.clickhouse!r} is no http(s) address", field="BANKSMAN_CLICKHOUSE"
                )
            user, password = self._settings.reader() if self._reader else self._settings.writer()
            secure = address.scheme == "https"
            self._client = clickhouse_connect.get_client(
                host=address.hostname,
                port=address.port or (8443 if secure else 8123),
                secure=secure,
                ca_cert=self._settings.clickhouse_ca_file or None,
                username=user,
                password=password,
                connect_timeout=2,
                send_receive_timeout=self._timeout,
                autogenerate_session_id=False,  # a session is locked by each of its queries; ours run side by side
                query_retries=0,
                compress=False,
            )
            if self._reader:
                self._client.database = self.database  # not in get_client, which would ask for it before it is made
        return self._client

    def _ours(self, error: Exception, *, stores: bool = False, anybodys: bool = False) -> Exception:
        text = str(error).replace("\n", " ").strip()
        said = re.sub(r"\(for url [^)]*\)|Received ClickHouse exception, code: \d+, server response: ", "", text)[:1000]
        # ClickHouse names the code in a header. A text may quote anything: what is stored is never judged by one.
        header = getattr(error, "code", None)
        found = None if stores or header else _CODE.search(text)
        code = header or (int(found[1]) if found else 0)
        if stores and code in _ABOUT_VALUES:
            return BadData(said)
        if not stores and (code in _ABOUT_QUESTION or (self._reader and code in _TOO_MUCH)):
            return BadQuestion(said, code)
        if code in (192, 193, 194, 516):
            return InvalidSetting(f"ClickHouse refuses the user: {said}", field="BANKSMAN_CLICKHOUSE_USER or _PASSWORD")
        if anybodys and code and code not in _ABOUT_SERVER:
            return BadQuestion(said, code)
        if not code:  # nobody answered: the next call makes a new connection
            self._client = None
        return StoreAway(f"ClickHouse at {self._settings.clickhouse}: {said}")
