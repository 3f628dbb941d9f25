"""Who may ask the embedded ClickHouse, and how much: a JSON file (0600) beside the data.

{"name": {"sha256": "…", "readonly": true, "limits": {"max_execution_time": 30, …}}}. Passwords are 256-bit random tokens that
`banksman up` makes, so a plain SHA-256 is enough; there is no user without one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from banksman.errors import InvalidSetting

if TYPE_CHECKING:
    from pathlib import Path

READER_LIMITS = {
    "max_execution_time": 60,
    "max_result_rows": 1_000_000,
    "max_result_bytes": 256 << 20,
    "max_memory_usage": 1 << 30,
    "max_temporary_data_on_disk_size_for_query": 1 << 30,
}


@dataclass(frozen=True)
class User:
    """One user. `limits`: engine settings that hold for every query and that the user can only make tighter."""

    name: str
    sha256: str = field(repr=False)
    readonly: bool
    limits: dict[str, int]


def write_users(path: Path, users: dict[str, tuple[str, bool]]) -> None:
    """Write a users file, whole or not at all: name -> (password, read-only?)."""
    entries = {
        name: {
            "sha256": hashlib.sha256(password.encode()).hexdigest(),
            "readonly": readonly,
            "limits": READER_LIMITS if readonly else {},
        }
        for name, (password, readonly) in users.items()
    }
    whole = path.with_suffix(".new")
    with open(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(entries, file, indent=1)
    whole.replace(path)


def load_users(path: Path) -> dict[str, User]:
    """Read a users file. InvalidSetting: unreadable, open to others, a user without a password."""
    try:
        mode = path.stat().st_mode
        data = json.loads(path.read_text())
        users = {
            name: User(name, entry["sha256"], bool(entry["readonly"]), _limits(entry.get("limits", {})))
            for name, entry in data.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidSetting(f"{path} is not a users file: {error}", field="--users") from None
    if stat.S_IMODE(mode) & 0o077:
        raise InvalidSetting(f"{path} can be read by others; `chmod 600 {path}`", field="--users")
    empty = hashlib.sha256(b"").hexdigest()
    for user in users.values():
        if not re.fullmatch("[0-9a-f]{64}", user.sha256) or user.sha256 == empty:
            raise InvalidSetting(f"user {user.name} has no password", field="--users")
    return users


def _limits(given: dict[str, int]) -> dict[str, int]:
    return {name: int(limit) for name, limit in given.items()}


def authenticate(users: dict[str, User], name: str, password: str) -> User | None:
    """The user, or None. Takes as long for an unknown name as for a wrong password."""
    user = users.get(name)
    given = hashlib.sha256(password.encode("utf-8", "surrogateescape")).hexdigest()
    fits = hmac.compare_digest(given, user.sha256 if user else "0" * 64)
    return user if user and fits else None
