"""Which of a request's parameters are engine settings, and which of these a read-only user may choose."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from banksman.local.chdb.faults import Fault

if TYPE_CHECKING:
    from banksman.local.chdb.users import User

RESERVED = frozenset(
    [
        "query",
        "database",
        "default_format",
        "user",
        "password",
        "session_id",
        "session_timeout",
        "session_check",
        "query_id",
        "quota_key",
        "compress",
        "decompress",
        "wait_end_of_query",
        "buffer_size",
        "client_protocol_version",
        "role",
        "stacktrace",
        "no_cache",
        "enable_http_compression",
        "http_zlib_compression_level",
        "send_progress_in_http_headers",
        "http_headers_progress_interval_ms",
        "add_http_cors_header",
        "database_replicated_enforce_synchronous_settings",
        "cancel_http_readonly_queries_on_client_close",
    ]
)
"""Parameters of the HTTP interface itself, never engine settings."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# How a result looks, not what it may touch: `output_format_schema` writes a file.
_READERS_OWN = re.compile(
    r"(?!\w*(?:schema|path|file|template))(?:output|input)_format_[a-z_0-9]+"
    r"|date_time_(?:in|out)put_format|session_timezone|join_use_nulls"
)
# Chosen by clients without being asked; and `log_comment`, which is ours.
_IGNORED = frozenset({"readonly", "max_block_size", "max_threads", "result_overflow_mode", "use_query_cache"})


def chosen(user: User, given: dict[str, str]) -> dict[str, str]:
    """What to set: what the request asks for, then the user's own limits, which it can only make tighter.

    Fault 115: not a setting's name. Fault 164: a read-only user chose one that is not about the look of a result.
    """
    settings: dict[str, str] = {}
    for name, value in given.items():
        if not _NAME.fullmatch(name):
            raise Fault(115, f"Unknown setting '{name}'. (UNKNOWN_SETTING)")
        if name in user.limits or name == "log_comment":
            continue
        if user.readonly:
            if name in _IGNORED:
                continue
            if not _READERS_OWN.fullmatch(name):
                raise Fault(164, f"Cannot modify '{name}' setting in readonly mode. (READONLY)")
        settings[name] = value
    for name, limit in user.limits.items():
        settings[name] = str(min(limit, _positive(name, given.get(name)) or limit))
    return settings


def _positive(name: str, value: str | None) -> int:
    """A limit as the client gave it; 0 (which would mean none) and nothing count as not given."""
    if value is None:
        return 0
    try:
        return max(0, int(float(value)))
    except (ValueError, OverflowError):
        raise Fault(
            27, f"Cannot parse {value!r} as the value of {name}. (CANNOT_PARSE_INPUT_ASSERTION_FAILED)"
        ) from None
