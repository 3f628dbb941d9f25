"""Policy texts as they were in force: from `policy.loaded` in the audit log."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from banksman.cli import client
from banksman.errors import InvalidInput

if TYPE_CHECKING:
    from datetime import datetime

_LOADED = """
SELECT received, kind, policy_version, raw FROM events
WHERE kind IN ('policy.loaded', 'policy.removed') AND verified AND {where}
ORDER BY received DESC, offset DESC LIMIT 1
"""


def by_version(version: str) -> tuple[str, str]:
    """-> (when it was put in force, its text). InvalidInput: the log has no such version."""
    found = _asked("kind = 'policy.loaded' AND policy_version = {version:String}", version=version)
    if found is None:
        raise InvalidInput(f"no policy {version} was ever in force, as far as the audit log reaches", field="VERSION")
    return found["received"], _text(found)


def in_force(project: str, at: datetime) -> tuple[str, str, str] | None:
    """(when it was put in force, version, text) of what was in force for a project at a moment; None: nothing was."""
    moment = at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    found = _asked("project = {project:String} AND received <= {at:DateTime64(3)}", project=project, at=moment)
    if found is None or found["kind"] == "policy.removed":
        return None
    return found["received"], found["policy_version"], _text(found)


def _asked(where: str, **parameters: str) -> dict[str, Any] | None:
    body = {"query": _LOADED.replace("{where}", where), "parameters": parameters, "format": "ndjson"}
    raw, _ = client.console().fetch("POST", "/v1/sql", body=body)
    return json.loads(raw) if raw.strip() else None


def _text(found: dict[str, Any]) -> str:
    return str(json.loads(found["raw"])["text"])
