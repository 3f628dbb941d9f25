"""The query string of a request: strict, because a parameter that nobody reads would have asked for something else."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from banksman.events import is_name
from banksman.http_problem import problem

if TYPE_CHECKING:
    from starlette.requests import Request

_LENGTH = re.compile(r"([0-9]{1,7})([smhd])").fullmatch
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
DAY_S = 86_400.0


def given(request: Request, *names: str) -> dict[str, str]:
    """The parameters of a request. Problem 422: one that is not among `names`, is there twice, or is empty."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names:
            raise problem(422, f"is not a parameter of this call ({', '.join(names) or 'it has none'})", field=name)
        if name in found:
            raise problem(422, "is there twice", field=name)
        if not value:
            raise problem(422, "is empty", field=name)
        found[name] = value
    for name in ("agent", "project", "session"):
        if name in found and not is_name(found[name]):
            raise problem(422, "must be a name of at most 128 letters, digits and . _ @ : -", field=name)
    if "replay" in found and found["replay"] != "*" and not is_name(found["replay"]):
        raise problem(422, "must be the name of a run, or *", field="replay")
    return found


def whole(found: dict[str, str], name: str, default: int, most: int) -> int:
    """A whole number from 1 to `most`. Problem 422."""
    text = found.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise problem(422, f"must be a whole number from 1 to {most}", field=name)
    return int(text)


def moment(found: dict[str, str], name: str, ago_s: float) -> int:
    """Milliseconds since 1970: RFC 3339, or a length before now (`90s`, `15m`, `2h`, `7d`); default: `ago_s` before now.
    Problem 422.
    """
    now = datetime.now(UTC)
    text = found.get(name)
    if text is None:
        return int((now - timedelta(seconds=ago_s)).timestamp() * 1000)
    length = _LENGTH(text)
    try:
        if length:
            at = now - timedelta(seconds=int(length[1]) * _SECONDS[length[2]])
        else:
            at = datetime.fromisoformat(text.replace(" ", "+"))  # a + that was not escaped arrives as a space
            if at.tzinfo is None:
                raise ValueError
        return max(0, int(at.timestamp() * 1000))
    except (ValueError, OverflowError):
        raise problem(
            422, "must be RFC 3339, such as 2026-11-24T15:30:00Z, or a length such as 15m", field=name
        ) from None


def of_replay(found: dict[str, str]) -> tuple[str, dict[str, str]]:
    """The SQL condition on `replay`, and its parameter: live, one run, or everything."""
    run = found.get("replay", "")
    return ("true", {}) if run == "*" else ("replay = {replay:String}", {"replay": run})
